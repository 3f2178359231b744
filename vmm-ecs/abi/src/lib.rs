//! Mirror of `guest-driver/uapi/virtio_ecs.h`, the wire ABI between a guest and the host.
//!
//! # Problem
//! Two languages describe the same bytes: C in the guest driver, Rust on the host and in
//! unikernels. A field that moves in one of them corrupts the other without a compile error.
//!
//! # Approach
//! `wire!` declares each structure once in Rust and derives from it the size, every offset
//! ([`WireField`]), and a decoder and encoder over plain bytes. A test in `ecs-tests` compiles the C
//! header and compares every size, offset and constant with these.
//!
//! # Invariants
//! Fields are little-endian and naturally aligned; there is no implicit padding; decoding never
//! fails on content, only on length.
//!
//! # What it does not do
//! It gives no meaning to the values: `ecs-shm` reads lines, `ecs-device` answers messages.
#![no_std]
#![forbid(unsafe_code)]

/// One field of a wire structure: name as in the C header, offset and size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireField {
    /// Field name, the same as in the C header.
    pub name: &'static str,
    /// Offset from the start of the structure, bytes.
    pub offset: usize,
    /// Size, bytes.
    pub size: usize,
}

/// Name of a field in C: there, no Rust keyword needs a mark.
const fn c_name(name: &'static str) -> &'static str {
    match name.as_bytes() {
        [b'r', b'#', ..] => name.split_at(2).1,
        _ => name,
    }
}

/// Declares a wire structure together with its C name, size, field table, decoder and encoder.
macro_rules! wire {
    ($(#[$meta:meta])* $name:ident, $c_name:literal, $size:literal {
        $($(#[$fmeta:meta])* $field:ident : $ty:ty),* $(,)?
    }) => {
        $(#[$meta])*
        #[doc(alias = $c_name)]
        #[repr(C)]
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$fmeta])* pub $field: $ty,)*
        }

        impl $name {
            /// Name of the structure in `virtio_ecs.h`.
            pub const C_NAME: &'static str = $c_name;
            /// Size on the wire, bytes.
            pub const SIZE: usize = $size;
            /// Every field, in order.
            pub const FIELDS: &'static [WireField] = &[$(WireField {
                name: c_name(stringify!($field)),
                offset: core::mem::offset_of!($name, $field),
                size: core::mem::size_of::<$ty>(),
            }),*];

            /// Decodes the structure; `None` if `bytes` is shorter than [`Self::SIZE`].
            #[must_use]
            pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
                Some(Self {
                    $($field: <$ty>::from_le_bytes(
                        bytes
                            .get(core::mem::offset_of!($name, $field)..)?
                            .first_chunk()
                            .copied()?,
                    ),)*
                })
            }

            /// Encodes the structure as it stands on the wire.
            #[must_use]
            pub fn to_bytes(&self) -> [u8; $size] {
                let mut out = [0u8; $size];
                $(
                    if let Some(dst) = out
                        .get_mut(core::mem::offset_of!($name, $field)..)
                        .and_then(|rest| rest.first_chunk_mut())
                    {
                        *dst = self.$field.to_le_bytes();
                    }
                )*
                out
            }
        }

        const _: () = assert!(core::mem::size_of::<$name>() == $size);
    };
}

/// Virtio device id used when none is configured: the highest id Linux guests accept.
pub const VIRTIO_ECS_DEFAULT_ID: u32 = 63;
/// `config.magic`: `"veCS"` in memory order.
pub const VIRTIO_ECS_MAGIC: u32 = 0x5343_6576;
/// Version of this ABI.
pub const VIRTIO_ECS_VERSION: u16 = 1;
/// Size and alignment of a line, bytes.
pub const VIRTIO_ECS_LINE_SIZE: usize = 64;
/// vCPU numbers are below this.
pub const VIRTIO_ECS_MAX_VCPUS: u32 = 256;

/// Index of the control queue.
pub const VIRTIO_ECS_VQ_CONTROL: usize = 0;
/// Index of the event queue.
pub const VIRTIO_ECS_VQ_EVENT: usize = 1;
/// Index of the first doorbell queue.
pub const VIRTIO_ECS_VQ_DOORBELL: usize = 2;

/// Feature: guest-written and host-written lines.
pub const VIRTIO_ECS_F_LINES: u64 = 1 << 0;
/// Feature: a slot may point at an existing guest word.
pub const VIRTIO_ECS_F_WORD: u64 = 1 << 1;
/// Feature: wait descriptors.
pub const VIRTIO_ECS_F_WAIT: u64 = 1 << 2;
/// Feature: hand-back by doorbell queue.
pub const VIRTIO_ECS_F_DOORBELL: u64 = 1 << 3;
/// Feature: `preempted` and `overloaded` in the host-written line.
pub const VIRTIO_ECS_F_HINTS: u64 = 1 << 4;
/// Feature: event queue.
pub const VIRTIO_ECS_F_EVENTS: u64 = 1 << 5;

/// `config.status`: the driver has not chosen yet.
pub const VIRTIO_ECS_NEG_NONE: u32 = 0;
/// `config.status`: version and features accepted.
pub const VIRTIO_ECS_NEG_OK: u32 = 1;
/// `config.status`: `driver_version` outside `version_min..=version_max`.
pub const VIRTIO_ECS_NEG_BAD_VERSION: u32 = 2;
/// `config.status`: `driver_features` is not a subset of `features`.
pub const VIRTIO_ECS_NEG_BAD_FEATURES: u32 = 3;

/// `guest_line.waiting`: not waiting.
pub const VIRTIO_ECS_WAIT_NONE: u32 = 0;
/// `guest_line.waiting`: about to join a queue, the descriptor is not valid yet.
pub const VIRTIO_ECS_WAIT_ENTER: u32 = 1;
/// `guest_line.waiting`: spinning; the descriptor is valid if `wait_mask != 0`.
pub const VIRTIO_ECS_WAIT_SPIN: u32 = 2;
/// `guest_line.waiting`: halted, or about to halt, until the wait ends.
pub const VIRTIO_ECS_WAIT_BLOCK: u32 = 3;

/// `guest_line.wait_width`: the word at `wait_addr` has 4 bytes.
pub const VIRTIO_ECS_WIDTH_32: u32 = 4;
/// `guest_line.wait_width`: the word at `wait_addr` has 8 bytes.
pub const VIRTIO_ECS_WIDTH_64: u32 = 8;

/// `host_line.yield`: ring the doorbell when the last section is left.
pub const VIRTIO_ECS_YIELD_RELEASE: u32 = 1 << 0;
/// `host_line.yield`: a vCPU of this VM is off the CPU inside a lock queue; a waiter rings the
/// doorbell instead of spinning on.
pub const VIRTIO_ECS_YIELD_HOPELESS: u32 = 1 << 1;
/// `host_line.yield`: others want this pCPU; ring the doorbell before halting for a lock.
pub const VIRTIO_ECS_YIELD_BLOCK: u32 = 1 << 2;

/// Control operation: register the slots of a vCPU.
pub const VIRTIO_ECS_CTRL_REGISTER: u16 = 1;
/// Control operation: forget the slots of a vCPU.
pub const VIRTIO_ECS_CTRL_UNREGISTER: u16 = 2;
/// Control operation: counters of a vCPU.
pub const VIRTIO_ECS_CTRL_QUERY: u16 = 3;

/// `register.word_format`: no word.
pub const VIRTIO_ECS_WORD_NONE: u32 = 0;
/// `register.word_format`: x86 `preempt_count`.
pub const VIRTIO_ECS_WORD_X86_PREEMPT: u32 = 1;
/// `register.word_format`: the low half of a 64-bit x86 `preempt_count`.
pub const VIRTIO_ECS_WORD_X86_PREEMPT64: u32 = 2;

/// `register.flags`: the kernel has no PREEMPT_COUNT, the word shows interrupt context only.
pub const VIRTIO_ECS_REG_NO_PREEMPT_COUNT: u32 = 1 << 0;

/// `reply.status`: done.
pub const VIRTIO_ECS_S_OK: u16 = 0;
/// `reply.status`: unknown operation.
pub const VIRTIO_ECS_S_BAD_OP: u16 = 1;
/// `reply.status`: message shorter or longer than the operation's.
pub const VIRTIO_ECS_S_BAD_LENGTH: u16 = 2;
/// `reply.status`: vCPU number at or above `max_vcpus`.
pub const VIRTIO_ECS_S_BAD_VCPU: u16 = 3;
/// `reply.status`: address outside guest memory, or overflowing.
pub const VIRTIO_ECS_S_BAD_ADDR: u16 = 4;
/// `reply.status`: line not 64-byte aligned, or word not 4-byte aligned.
pub const VIRTIO_ECS_S_MISALIGNED: u16 = 5;
/// `reply.status`: lines overlap each other or another vCPU's.
pub const VIRTIO_ECS_S_OVERLAP: u16 = 6;
/// `reply.status`: unknown `word_format`.
pub const VIRTIO_ECS_S_BAD_FORMAT: u16 = 7;
/// `reply.status`: the vCPU is not registered.
pub const VIRTIO_ECS_S_NOT_REGISTERED: u16 = 8;
/// `reply.status`: `config.status` is not `VIRTIO_ECS_NEG_OK`.
pub const VIRTIO_ECS_S_NOT_NEGOTIATED: u16 = 9;

/// Event: registrations are lost, register again.
pub const VIRTIO_ECS_EV_RESTART: u16 = 1;
/// Event: extensions are given from now on.
pub const VIRTIO_ECS_EV_ENABLED: u16 = 2;
/// Event: no extensions until further notice.
pub const VIRTIO_ECS_EV_DISABLED: u16 = 3;
/// Event: the vCPU's slots make no sense; `data` is the number of faults so far.
pub const VIRTIO_ECS_EV_FAULT: u16 = 4;

wire! {
    /// Config space of the device, 64 bytes.
    VirtioEcsConfig, "virtio_ecs_config", 64 {
        /// [`VIRTIO_ECS_MAGIC`].
        magic: u32,
        /// Lowest version the device speaks.
        version_min: u16,
        /// Highest version the device speaks.
        version_max: u16,
        /// `VIRTIO_ECS_F_*` the device offers.
        features: u64,
        /// vCPU numbers are below this.
        max_vcpus: u32,
        /// [`VIRTIO_ECS_LINE_SIZE`].
        line_size: u16,
        /// Doorbell queues offered.
        nr_doorbells: u16,
        /// Changes whenever the device lost its registrations.
        generation: u32,
        /// `VIRTIO_ECS_NEG_*`.
        status: u32,
        /// Longest extension, ns, for information.
        extension_ns: u32,
        /// Default slice, ns, for information.
        slice_ns: u32,
        /// Written by the driver.
        driver_version: u16,
        /// Zero.
        reserved0: u16,
        /// Zero.
        reserved1: u32,
        /// Written by the driver last: commits the choice.
        driver_features: u64,
        /// Zero.
        reserved2: u64,
    }
}

wire! {
    /// Line written by the guest and read by the host, one a vCPU, 64-byte aligned.
    VirtioEcsGuestLine, "virtio_ecs_guest_line", 64 {
        /// Open non-preemptable sections.
        np_count: u32,
        /// Open preemptable sections of the current task.
        p_count: u32,
        /// `VIRTIO_ECS_WAIT_*`.
        waiting: u32,
        /// Non-zero: the idle task runs, counts mean nothing.
        idle: u32,
        /// The wait ends when `(*wait_addr & wait_mask) == wait_value`; guest physical.
        wait_addr: u64,
        /// Zero: no descriptor.
        wait_mask: u64,
        /// Value that ends the wait.
        wait_value: u64,
        /// vCPU that holds the lock, plus one; 0: unknown.
        wait_holder: u32,
        /// `VIRTIO_ECS_WIDTH_*`.
        wait_width: u32,
        /// Hand-backs rung so far, wraps.
        handback: u32,
        /// Time polled for work instead of halting, us, wraps.
        poll_us: u32,
        /// Such polls that met work, wraps.
        polls_paid: u32,
        /// Such polls that ended in a halt, wraps.
        polls_wasted: u32,
    }
}

wire! {
    /// Line written by the host and read by the guest, one a vCPU, 64-byte aligned.
    VirtioEcsHostLine, "virtio_ecs_host_line", 64 {
        /// Non-zero while an extension runs.
        granted: u32,
        /// `VIRTIO_ECS_YIELD_*`.
        r#yield: u32,
        /// Non-zero while the vCPU is off the CPU although it had work.
        preempted: u32,
        /// Non-zero while its pCPU has more than one runnable task.
        overloaded: u32,
        /// `config.generation` of the writer.
        generation: u32,
        /// Changes at least every 50 ms while the host is alive.
        heartbeat: u32,
        /// Extensions granted to this vCPU.
        nr_grants: u64,
        /// Zero.
        reserved0: u64,
        /// Zero.
        reserved1: u64,
        /// Zero.
        reserved2: u64,
        /// Zero.
        reserved3: u64,
    }
}

wire! {
    /// Head of every control message.
    VirtioEcsCtrlHdr, "virtio_ecs_ctrl_hdr", 8 {
        /// `VIRTIO_ECS_CTRL_*`.
        op: u16,
        /// Zero.
        flags: u16,
        /// Echoed in the reply.
        cookie: u32,
    }
}

wire! {
    /// REGISTER: the slots of one vCPU. A vCPU registered already is replaced.
    VirtioEcsRegister, "virtio_ecs_register", 64 {
        /// `VIRTIO_ECS_CTRL_REGISTER`.
        op: u16,
        /// Zero.
        hdr_flags: u16,
        /// Echoed in the reply.
        cookie: u32,
        /// vCPU number.
        vcpu: u32,
        /// `VIRTIO_ECS_REG_*`.
        flags: u32,
        /// Guest-physical address of the guest-written line.
        guest_line: u64,
        /// Guest-physical address of the host-written line.
        host_line: u64,
        /// Guest-physical address of an existing word, if `word_format` says so.
        word_addr: u64,
        /// `VIRTIO_ECS_WORD_*`.
        word_format: u32,
        /// Zero.
        reserved0: u32,
        /// Zero.
        reserved1: u64,
        /// Zero.
        reserved2: u64,
    }
}

wire! {
    /// UNREGISTER and QUERY.
    VirtioEcsVcpuMsg, "virtio_ecs_vcpu_msg", 16 {
        /// `VIRTIO_ECS_CTRL_UNREGISTER` or `VIRTIO_ECS_CTRL_QUERY`.
        op: u16,
        /// Zero.
        hdr_flags: u16,
        /// Echoed in the reply.
        cookie: u32,
        /// vCPU number.
        vcpu: u32,
        /// Zero.
        reserved0: u32,
    }
}

wire! {
    /// Reply to every control message.
    VirtioEcsCtrlReply, "virtio_ecs_ctrl_reply", 32 {
        /// Cookie of the message.
        cookie: u32,
        /// Operation of the message.
        op: u16,
        /// `VIRTIO_ECS_S_*`.
        status: u16,
        /// Generation of the device.
        generation: u32,
        /// vCPU of the message.
        vcpu: u32,
        /// QUERY: extensions granted.
        nr_grants: u64,
        /// QUERY: reads of this vCPU's slots that made no sense.
        nr_faults: u64,
    }
}

wire! {
    /// One event on the event queue.
    VirtioEcsEvent, "virtio_ecs_event", 16 {
        /// `VIRTIO_ECS_EV_*`.
        r#type: u16,
        /// Zero.
        flags: u16,
        /// vCPU, or [`VIRTIO_ECS_ALL_VCPUS`].
        vcpu: u32,
        /// Depends on the type.
        data: u64,
    }
}

/// `event.vcpu`: every vCPU.
pub const VIRTIO_ECS_ALL_VCPUS: u32 = u32::MAX;

/// The constants of the header that are numbers, by C name, for the check against the header.
pub const CONSTANTS: &[(&str, u64)] = &[
    ("VIRTIO_ECS_DEFAULT_ID", VIRTIO_ECS_DEFAULT_ID as u64),
    ("VIRTIO_ECS_MAGIC", VIRTIO_ECS_MAGIC as u64),
    ("VIRTIO_ECS_VERSION", VIRTIO_ECS_VERSION as u64),
    ("VIRTIO_ECS_LINE_SIZE", VIRTIO_ECS_LINE_SIZE as u64),
    ("VIRTIO_ECS_MAX_VCPUS", VIRTIO_ECS_MAX_VCPUS as u64),
    ("VIRTIO_ECS_VQ_CONTROL", VIRTIO_ECS_VQ_CONTROL as u64),
    ("VIRTIO_ECS_VQ_EVENT", VIRTIO_ECS_VQ_EVENT as u64),
    ("VIRTIO_ECS_VQ_DOORBELL", VIRTIO_ECS_VQ_DOORBELL as u64),
    ("VIRTIO_ECS_F_LINES", VIRTIO_ECS_F_LINES),
    ("VIRTIO_ECS_F_WORD", VIRTIO_ECS_F_WORD),
    ("VIRTIO_ECS_F_WAIT", VIRTIO_ECS_F_WAIT),
    ("VIRTIO_ECS_F_DOORBELL", VIRTIO_ECS_F_DOORBELL),
    ("VIRTIO_ECS_F_HINTS", VIRTIO_ECS_F_HINTS),
    ("VIRTIO_ECS_F_EVENTS", VIRTIO_ECS_F_EVENTS),
    ("VIRTIO_ECS_NEG_NONE", VIRTIO_ECS_NEG_NONE as u64),
    ("VIRTIO_ECS_NEG_OK", VIRTIO_ECS_NEG_OK as u64),
    (
        "VIRTIO_ECS_NEG_BAD_VERSION",
        VIRTIO_ECS_NEG_BAD_VERSION as u64,
    ),
    (
        "VIRTIO_ECS_NEG_BAD_FEATURES",
        VIRTIO_ECS_NEG_BAD_FEATURES as u64,
    ),
    ("VIRTIO_ECS_WAIT_NONE", VIRTIO_ECS_WAIT_NONE as u64),
    ("VIRTIO_ECS_WAIT_ENTER", VIRTIO_ECS_WAIT_ENTER as u64),
    ("VIRTIO_ECS_WAIT_SPIN", VIRTIO_ECS_WAIT_SPIN as u64),
    ("VIRTIO_ECS_WAIT_BLOCK", VIRTIO_ECS_WAIT_BLOCK as u64),
    ("VIRTIO_ECS_WIDTH_32", VIRTIO_ECS_WIDTH_32 as u64),
    ("VIRTIO_ECS_WIDTH_64", VIRTIO_ECS_WIDTH_64 as u64),
    ("VIRTIO_ECS_YIELD_RELEASE", VIRTIO_ECS_YIELD_RELEASE as u64),
    (
        "VIRTIO_ECS_YIELD_HOPELESS",
        VIRTIO_ECS_YIELD_HOPELESS as u64,
    ),
    ("VIRTIO_ECS_YIELD_BLOCK", VIRTIO_ECS_YIELD_BLOCK as u64),
    ("VIRTIO_ECS_CTRL_REGISTER", VIRTIO_ECS_CTRL_REGISTER as u64),
    (
        "VIRTIO_ECS_CTRL_UNREGISTER",
        VIRTIO_ECS_CTRL_UNREGISTER as u64,
    ),
    ("VIRTIO_ECS_CTRL_QUERY", VIRTIO_ECS_CTRL_QUERY as u64),
    ("VIRTIO_ECS_WORD_NONE", VIRTIO_ECS_WORD_NONE as u64),
    (
        "VIRTIO_ECS_WORD_X86_PREEMPT",
        VIRTIO_ECS_WORD_X86_PREEMPT as u64,
    ),
    (
        "VIRTIO_ECS_WORD_X86_PREEMPT64",
        VIRTIO_ECS_WORD_X86_PREEMPT64 as u64,
    ),
    (
        "VIRTIO_ECS_REG_NO_PREEMPT_COUNT",
        VIRTIO_ECS_REG_NO_PREEMPT_COUNT as u64,
    ),
    ("VIRTIO_ECS_S_OK", VIRTIO_ECS_S_OK as u64),
    ("VIRTIO_ECS_S_BAD_OP", VIRTIO_ECS_S_BAD_OP as u64),
    ("VIRTIO_ECS_S_BAD_LENGTH", VIRTIO_ECS_S_BAD_LENGTH as u64),
    ("VIRTIO_ECS_S_BAD_VCPU", VIRTIO_ECS_S_BAD_VCPU as u64),
    ("VIRTIO_ECS_S_BAD_ADDR", VIRTIO_ECS_S_BAD_ADDR as u64),
    ("VIRTIO_ECS_S_MISALIGNED", VIRTIO_ECS_S_MISALIGNED as u64),
    ("VIRTIO_ECS_S_OVERLAP", VIRTIO_ECS_S_OVERLAP as u64),
    ("VIRTIO_ECS_S_BAD_FORMAT", VIRTIO_ECS_S_BAD_FORMAT as u64),
    (
        "VIRTIO_ECS_S_NOT_REGISTERED",
        VIRTIO_ECS_S_NOT_REGISTERED as u64,
    ),
    (
        "VIRTIO_ECS_S_NOT_NEGOTIATED",
        VIRTIO_ECS_S_NOT_NEGOTIATED as u64,
    ),
    ("VIRTIO_ECS_EV_RESTART", VIRTIO_ECS_EV_RESTART as u64),
    ("VIRTIO_ECS_EV_ENABLED", VIRTIO_ECS_EV_ENABLED as u64),
    ("VIRTIO_ECS_EV_DISABLED", VIRTIO_ECS_EV_DISABLED as u64),
    ("VIRTIO_ECS_EV_FAULT", VIRTIO_ECS_EV_FAULT as u64),
    ("VIRTIO_ECS_ALL_VCPUS", VIRTIO_ECS_ALL_VCPUS as u64),
];

/// Every structure of the header, by C name, with its size and fields.
pub const STRUCTS: &[(&str, usize, &[WireField])] = &[
    (
        VirtioEcsConfig::C_NAME,
        VirtioEcsConfig::SIZE,
        VirtioEcsConfig::FIELDS,
    ),
    (
        VirtioEcsGuestLine::C_NAME,
        VirtioEcsGuestLine::SIZE,
        VirtioEcsGuestLine::FIELDS,
    ),
    (
        VirtioEcsHostLine::C_NAME,
        VirtioEcsHostLine::SIZE,
        VirtioEcsHostLine::FIELDS,
    ),
    (
        VirtioEcsCtrlHdr::C_NAME,
        VirtioEcsCtrlHdr::SIZE,
        VirtioEcsCtrlHdr::FIELDS,
    ),
    (
        VirtioEcsRegister::C_NAME,
        VirtioEcsRegister::SIZE,
        VirtioEcsRegister::FIELDS,
    ),
    (
        VirtioEcsVcpuMsg::C_NAME,
        VirtioEcsVcpuMsg::SIZE,
        VirtioEcsVcpuMsg::FIELDS,
    ),
    (
        VirtioEcsCtrlReply::C_NAME,
        VirtioEcsCtrlReply::SIZE,
        VirtioEcsCtrlReply::FIELDS,
    ),
    (
        VirtioEcsEvent::C_NAME,
        VirtioEcsEvent::SIZE,
        VirtioEcsEvent::FIELDS,
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_a_round_trip() {
        let msg = VirtioEcsRegister {
            op: VIRTIO_ECS_CTRL_REGISTER,
            cookie: 7,
            vcpu: 3,
            guest_line: 0x1000,
            host_line: 0x1040,
            word_addr: 0xdead_beef_0000,
            word_format: VIRTIO_ECS_WORD_X86_PREEMPT,
            ..Default::default()
        };
        assert_eq!(VirtioEcsRegister::from_bytes(&msg.to_bytes()), Some(msg));
    }

    #[test]
    fn short_messages_do_not_decode() {
        let bytes = VirtioEcsRegister::default().to_bytes();
        for len in 0..VirtioEcsRegister::SIZE {
            assert_eq!(
                VirtioEcsRegister::from_bytes(&bytes[..len]),
                None,
                "{len} bytes"
            );
        }
    }

    #[test]
    fn structures_have_no_implicit_padding() {
        for (name, size, fields) in STRUCTS {
            let mut next = 0;
            for field in *fields {
                assert_eq!(field.offset, next, "{name}.{}", field.name);
                next += field.size;
            }
            assert_eq!(next, *size, "{name}");
        }
    }
}
