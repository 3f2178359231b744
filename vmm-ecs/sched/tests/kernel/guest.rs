//! `guest.h` in the kernel reads a guest's slots as `ecs-shm` does, whatever the guest writes there.

use std::sync::Arc;

use ecs_abi::*;
use ecs_policy::{CsSnapshot, Params, Wait};
use ecs_shm::{SlotCounters, VcpuSlots};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};
use vm_memory::{Bytes, GuestAddress};

use crate::checker::{Checker, types};
use crate::memory::{FORBIDDEN, Guest, HOST_LINES, LINES, LOCKS, PAGE, REGIONS, WORDS};

/// Rounds of reads, and vCPUs that are read in each.
const ROUNDS: u32 = 40;
/// Rounds when slow cases were asked for: more than 100 000 reads.
const ROUNDS_FULL: u32 = 400;
const VCPUS: usize = 256;

/// What one vCPU's guest has registered, and written.
#[derive(Debug, Clone)]
struct Slot {
    is_registered: bool,
    line: VirtioEcsGuestLine,
    /// The line, or the word, is on the page without access.
    line_forbidden: bool,
    word_forbidden: bool,
    word: u32,
    format: u32,
    /// What is in the word that it waits for, if that is among [`LOCKS`].
    lock: u64,
    /// The wait has ended, if it makes sense.
    ended: bool,
}

fn count() -> impl Strategy<Value = u32> {
    prop_oneof![
        12 => Just(0),
        4 => 1u32..4,
        1 => (1u32 << 20) - 1..=(1 << 20) + 1,
        1 => any::<u32>(),
    ]
}

fn address() -> impl Strategy<Value = u64> {
    let end = prop::sample::select(REGIONS.map(|(at, len)| at + len).to_vec());
    let start = prop::sample::select(REGIONS.map(|(at, _)| at).to_vec());
    prop_oneof![
        20 => (0u64..512).prop_map(|word| LOCKS + word * 8),
        3 => (0u64..PAGE).prop_map(|at| LOCKS + at),
        2 => (0u64..512).prop_map(|word| FORBIDDEN + word * 8),
        2 => (end, 0u64..24).prop_map(|(end, back)| end + 8 - back),
        1 => (start, 0u64..24).prop_map(|(start, on)| start.wrapping_sub(8).wrapping_add(on)),
        1 => (0u64..16).prop_map(|back| u64::MAX - back),
        1 => any::<u64>(),
    ]
}

fn word() -> impl Strategy<Value = u32> {
    let bits = [
        0,
        1,
        2,
        0xff,
        0x100,
        0x200,
        0x300,
        0x201,
        0x1_0000,
        0x2_0000,
        0x1_0201,
        0x10_0000,
        0x100_0000,
        0x1000_0000,
        0x8000_0000,
        0x8000_0001,
        0x8001_0000,
    ];
    prop_oneof![3 => prop::sample::select(bits.to_vec()), 1 => any::<u32>()]
}

fn line() -> impl Strategy<Value = VirtioEcsGuestLine> {
    let waiting = prop_oneof![9 => 0u32..4, 6 => 2u32..4, 1 => 4u32..6, 1 => any::<u32>()];
    let idle = prop_oneof![6 => Just(0), 1 => Just(1), 1 => any::<u32>()];
    let mask = prop_oneof![
        2 => Just(u64::MAX),
        2 => Just(u64::from(u32::MAX)),
        2 => Just(0xffff << 16),
        1 => Just(0),
        1 => any::<u64>(),
    ];
    let holder = prop_oneof![12 => 0u32..4, 2 => 255u32..=257, 1 => any::<u32>()];
    let width = prop_oneof![6 => Just(4), 10 => Just(8), 1 => 0u32..17, 1 => any::<u32>()];
    (
        (count(), count(), waiting, idle),
        (address(), mask, any::<u64>()),
        (holder, width, any::<u32>()),
    )
        .prop_map(
            |((np_count, p_count, waiting, idle), (addr, mask, value), (holder, width, rest))| {
                VirtioEcsGuestLine {
                    np_count,
                    p_count,
                    waiting,
                    idle,
                    wait_addr: addr,
                    wait_mask: mask,
                    wait_value: value,
                    wait_holder: holder,
                    wait_width: width,
                    // Not read.
                    handback: u32::MAX,
                    poll_us: rest,
                    polls_paid: u32::MAX,
                    polls_wasted: rest,
                }
            },
        )
}

fn slot() -> impl Strategy<Value = Slot> {
    let rarely = || (0u8..20).prop_map(|n| n == 0);
    (
        (rarely(), line(), rarely(), rarely()),
        (word(), 0u32..3, any::<u64>(), any::<bool>()),
    )
        .prop_map(
            |((absent, line, line_forbidden, word_forbidden), (word, format, lock, ended))| Slot {
                is_registered: !absent,
                line,
                line_forbidden,
                word_forbidden,
                word,
                format,
                lock,
                ended,
            },
        )
}

impl Guest {
    /// Writes what a vCPU's guest writes, and says where.
    fn write(&self, vcpu: usize, slot: &Slot) -> VirtioEcsRegister {
        let at = vcpu as u64;
        let forbidden = |is: bool, gpa: u64| if is { FORBIDDEN + gpa % PAGE } else { gpa };
        let registration = VirtioEcsRegister {
            guest_line: forbidden(slot.line_forbidden, LINES + at * 64),
            host_line: HOST_LINES + at * 64,
            word_addr: forbidden(slot.word_forbidden, WORDS + at * 4),
            word_format: slot.format,
            ..VirtioEcsRegister::default()
        };
        let map = self.ours.map();
        let write = |bytes: &[u8], gpa: u64| map.write_slice(bytes, GuestAddress(gpa)).unwrap();
        write(&slot.line.to_bytes(), registration.guest_line);
        write(&slot.word.to_le_bytes(), registration.word_addr);
        registration
    }

    /// What each vCPU waits for, and, of the lines, what it is to be.
    fn write_locks(&self, slots: &mut [Slot]) {
        let map = self.ours.map();
        for slot in slots.iter() {
            let at = slot.line.wait_addr;
            if (LOCKS..LOCKS + PAGE - 8).contains(&at) {
                map.write_slice(&slot.lock.to_le_bytes(), GuestAddress(at))
                    .unwrap();
            }
        }
        for slot in slots.iter_mut().filter(|slot| slot.ended) {
            let at = GuestAddress(slot.line.wait_addr);
            let now = if slot.line.wait_width == VIRTIO_ECS_WIDTH_32 {
                map.read_obj::<u32>(at).map(u64::from)
            } else {
                map.read_obj::<u64>(at)
            };
            if let Ok(now) = now {
                slot.line.wait_value = now & slot.line.wait_mask;
            }
        }
    }
}

fn is_forbidden(addr: u64) -> bool {
    (FORBIDDEN..FORBIDDEN + PAGE).contains(&addr)
}

/// The snapshot, and whether there was anything wrong, as the VMM's process would see it: words that
/// are pinned whatever access it has to them.
fn expected(slots: &VcpuSlots, is_pinned: bool) -> (CsSnapshot, bool) {
    let registration = slots.registration();
    let out_of_reach = |addr| !is_pinned && is_forbidden(addr);
    if out_of_reach(registration.guest_line) {
        return (CsSnapshot::default(), true);
    }
    let before = slots.nr_faults();
    let snap = slots.read();
    let lock_forbidden = match snap.wait {
        Wait::Pending { lock, .. } | Wait::Ended { lock } => is_forbidden(lock),
        _ => false,
    };
    let no_word =
        registration.word_format != VIRTIO_ECS_WORD_NONE && out_of_reach(registration.word_addr);
    if slots.nr_faults() != before || no_word || lock_forbidden {
        return (CsSnapshot::default(), true);
    }
    (snap, false)
}

/// The header's words for a snapshot.
fn in_words(snap: &CsSnapshot) -> types::ecs_snapshot {
    let holder_of = |holder: Option<u16>| holder.map_or(0, |vcpu| u32::from(vcpu) + 1);
    let (wait, holder, lock) = match snap.wait {
        Wait::None => (0, 0, 0),
        Wait::Entering => (1, 0, 0),
        Wait::Unknown { holder } => (2, holder_of(holder), 0),
        Wait::Pending { lock, holder } => (3, holder_of(holder), lock),
        Wait::Ended { lock } => (4, 0, lock),
    };
    types::ecs_snapshot {
        lock,
        wait,
        holder,
        non_preemptable: u8::from(snap.non_preemptable),
        preemptable: u8::from(snap.preemptable),
        blocked: u8::from(snap.blocked),
        idle: u8::from(snap.idle),
        reserved: 0,
    }
}

/// Every field.
fn words_of((snap, error): &(types::ecs_snapshot, i32)) -> [u64; 8] {
    [
        snap.lock,
        snap.wait.into(),
        snap.holder.into(),
        snap.non_preemptable.into(),
        snap.preemptable.into(),
        snap.blocked.into(),
        snap.idle.into(),
        i64::from(*error).cast_unsigned(),
    ]
}

/// How often each kind of answer came: a comparison of faults alone would be worth nothing.
#[derive(Debug, Default)]
struct Seen {
    reads: u32,
    pinned: u32,
    errors: u32,
    unregistered: u32,
    sections: u32,
    waits: [u32; 5],
}

#[test]
fn the_kernel_reads_slots_as_this_side_does() {
    let mut checker = match Checker::load(&Params::default()) {
        Ok(checker) => checker,
        Err(reason) => {
            println!("SKIPPED: the_kernel_reads_slots_as_this_side_does: {reason}");
            return;
        }
    };
    let guest = Guest::new();
    checker.shared().vm_configs[0] = guest.config(VCPUS);
    let checker = std::cell::RefCell::new(checker);
    let seen = std::cell::RefCell::new(Seen::default());
    let full =
        std::env::var_os("ECS_TEST_FULL").is_some_and(|value| !value.is_empty() && value != "0");
    let rounds = if full { ROUNDS_FULL } else { ROUNDS };
    let config = Config {
        cases: rounds,
        max_shrink_iters: 300,
        failure_persistence: None,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&prop::collection::vec(slot(), VCPUS), |mut slots| {
        let mut checker = checker.borrow_mut();
        let mut seen = seen.borrow_mut();
        guest.write_locks(&mut slots);
        let mut registered = Vec::new();
        for (vcpu, slot) in slots.iter().enumerate() {
            let registration = guest.write(vcpu, slot);
            let counters = Arc::new(SlotCounters::default());
            let ours = VcpuSlots::new(&guest.ours, &registration, counters).unwrap();
            checker.shared().vcpu_configs[vcpu] = if slot.is_registered {
                types::ecs_vcpu_config {
                    guest_line: guest.user(registration.guest_line).unwrap(),
                    word_addr: guest.user(registration.word_addr).unwrap(),
                    word_format: registration.word_format,
                    reserved: 0,
                }
            } else {
                types::ecs_vcpu_config::default()
            };
            registered.push(slot.is_registered.then_some(ours));
        }
        // One vCPU, another one each time, is read in pinned pages.
        let pinned = seen.reads as usize / VCPUS % VCPUS;
        let words = registered[pinned].as_ref().map(VcpuSlots::addresses);
        checker.name_thread(pinned, words.unwrap_or_default());
        checker.run(|checker| &checker.skel.progs.check_read);
        for ((vcpu, ours), slot) in registered.iter().enumerate().zip(&slots) {
            let theirs = checker.shared().check_reads[vcpu];
            let is_pinned = vcpu == pinned;
            let (snap, error) = ours
                .as_ref()
                .map(|ours| expected(ours, is_pinned))
                .unwrap_or_default();
            let ours = (in_words(&snap), -i32::from(error));
            let theirs = (theirs.snap, theirs.error);
            if words_of(&ours) != words_of(&theirs) {
                let text = format!("vCPU {vcpu}: {ours:?}, in the kernel {theirs:?}: {slot:?}");
                return Err(TestCaseError::fail(text));
            }
            seen.reads += 1;
            seen.pinned += u32::from(is_pinned && slot.is_registered);
            seen.errors += u32::from(error);
            seen.unregistered += u32::from(!slot.is_registered);
            seen.sections += u32::from(snap.non_preemptable || snap.preemptable);
            seen.waits[usize::try_from(ours.0.wait).unwrap()] += 1;
        }
        Ok(())
    });
    // Without the whole input, which is long.
    if let Err(TestError::Fail(reason, _)) = result {
        panic!("{reason}");
    }
    let seen = seen.into_inner();
    println!("{seen:?}");
    assert!(seen.reads as usize >= rounds as usize * VCPUS, "{seen:?}");
    assert!(seen.pinned as usize > rounds as usize / 2, "{seen:?}");
    for kind in [seen.errors, seen.unregistered, seen.sections] {
        assert!(kind > seen.reads / 50, "{seen:?}");
    }
    assert!(
        seen.waits.iter().all(|&nr| nr > seen.reads / 50),
        "{seen:?}"
    );
}
