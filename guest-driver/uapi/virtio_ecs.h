/* SPDX-License-Identifier: ((GPL-2.0 WITH Linux-syscall-note) OR BSD-3-Clause) */
/*
 * virtio_ecs: enlightened critical sections over virtio.
 *
 * THE wire ABI between a guest and vmm-ecs. vmm-ecs/abi mirrors it in Rust; a
 * test compiles this file and compares every size, offset and constant.
 *
 * All fields are little-endian. All addresses are guest physical. Reserved
 * fields are written as zero and ignored by the reader. See docs/abi.md.
 */
#ifndef _UAPI_LINUX_VIRTIO_ECS_H
#define _UAPI_LINUX_VIRTIO_ECS_H

#include <linux/types.h>

/* Virtio device id when none is configured: the highest id Linux accepts. */
#define VIRTIO_ECS_DEFAULT_ID		63

#define VIRTIO_ECS_MAGIC		0x53436576	/* "veCS" */
#define VIRTIO_ECS_VERSION		1
#define VIRTIO_ECS_LINE_SIZE		64
#define VIRTIO_ECS_MAX_VCPUS		256

/* Virtqueues. Queue VIRTIO_ECS_VQ_DOORBELL + n rings for vCPU n, modulo the doorbell queues offered. */
#define VIRTIO_ECS_VQ_CONTROL		0
#define VIRTIO_ECS_VQ_EVENT		1
#define VIRTIO_ECS_VQ_DOORBELL		2

/* Features, negotiated in config space: device feature bits below 24 do not pass every VMM. */
#define VIRTIO_ECS_F_LINES		(1ULL << 0)	/* guest-written and host-written lines */
#define VIRTIO_ECS_F_WORD		(1ULL << 1)	/* a slot may point at an existing guest word */
#define VIRTIO_ECS_F_WAIT		(1ULL << 2)	/* wait descriptors */
#define VIRTIO_ECS_F_DOORBELL		(1ULL << 3)	/* hand-back by doorbell queue */
#define VIRTIO_ECS_F_HINTS		(1ULL << 4)	/* preempted and overloaded in the host-written line */
#define VIRTIO_ECS_F_EVENTS		(1ULL << 5)	/* event queue */

/* config.status, written by the device */
#define VIRTIO_ECS_NEG_NONE		0	/* the driver has not chosen yet */
#define VIRTIO_ECS_NEG_OK		1	/* version and features accepted */
#define VIRTIO_ECS_NEG_BAD_VERSION	2	/* driver_version outside version_min..version_max */
#define VIRTIO_ECS_NEG_BAD_FEATURES	3	/* driver_features not a subset of features */

struct virtio_ecs_config {
	__le32 magic;			/*  0 VIRTIO_ECS_MAGIC */
	__le16 version_min;		/*  4 lowest version the device speaks */
	__le16 version_max;		/*  6 highest version the device speaks */
	__le64 features;		/*  8 VIRTIO_ECS_F_* the device offers */
	__le32 max_vcpus;		/* 16 vCPU numbers are below this */
	__le16 line_size;		/* 20 VIRTIO_ECS_LINE_SIZE */
	__le16 nr_doorbells;		/* 22 doorbell queues offered */
	__le32 generation;		/* 24 changes whenever the device lost its registrations */
	__le32 status;			/* 28 VIRTIO_ECS_NEG_* */
	__le32 extension_ns;		/* 32 longest extension, for information */
	__le32 slice_ns;		/* 36 default slice, for information */
	__le16 driver_version;		/* 40 written by the driver */
	__le16 reserved0;		/* 42 */
	__le32 reserved1;		/* 44 */
	__le64 driver_features;		/* 48 written by the driver last: commits the choice */
	__le64 reserved2;		/* 56 */
};					/* 64 */

/* ---- lines in guest memory, one pair a vCPU, each 64 bytes and 64-byte aligned ---- */

/* guest_line.waiting */
#define VIRTIO_ECS_WAIT_NONE		0	/* not waiting */
#define VIRTIO_ECS_WAIT_ENTER		1	/* about to join a queue: descriptor not valid yet */
#define VIRTIO_ECS_WAIT_SPIN		2	/* spinning; the descriptor is valid if wait_mask != 0 */
#define VIRTIO_ECS_WAIT_BLOCK		3	/* halted or about to halt until the wait ends */

/* guest_line.wait_width: bytes of the word at wait_addr, naturally aligned */
#define VIRTIO_ECS_WIDTH_32		4
#define VIRTIO_ECS_WIDTH_64		8

struct virtio_ecs_guest_line {		/* written by the guest, read by the host */
	__le32 np_count;		/*  0 open non-preemptable sections */
	__le32 p_count;			/*  4 open preemptable sections of the current task */
	__le32 waiting;			/*  8 VIRTIO_ECS_WAIT_* */
	__le32 idle;			/* 12 non-zero: the idle task runs, counts mean nothing */
	__le64 wait_addr;		/* 16 the wait ends when (*wait_addr & wait_mask) == wait_value */
	__le64 wait_mask;		/* 24 zero: no descriptor */
	__le64 wait_value;		/* 32 */
	__le32 wait_holder;		/* 40 vCPU that holds the lock, plus one; 0: unknown */
	__le32 wait_width;		/* 44 VIRTIO_ECS_WIDTH_* */
	__le32 handback;		/* 48 hand-backs rung so far, wraps */
	__le32 poll_us;			/* 52 time polled for work instead of halting, us, wraps */
	__le32 polls_paid;		/* 56 such polls that met work, wraps */
	__le32 polls_wasted;		/* 60 such polls that ended in a halt, wraps */
};					/* 64 */

/* host_line.yield */
#define VIRTIO_ECS_YIELD_RELEASE	(1U << 0)	/* ring the doorbell when the last section is left */
#define VIRTIO_ECS_YIELD_HOPELESS	(1U << 1)	/* a vCPU of this VM is off the CPU inside a lock queue:
							 * a waiter rings the doorbell instead of spinning on */
#define VIRTIO_ECS_YIELD_BLOCK		(1U << 2)	/* others want this pCPU: ring the doorbell before
							 * halting for a lock */

struct virtio_ecs_host_line {		/* written by the host, read by the guest */
	__le32 granted;			/*  0 non-zero while an extension runs */
	__le32 yield;			/*  4 VIRTIO_ECS_YIELD_* */
	__le32 preempted;		/*  8 non-zero while the vCPU is off the CPU although it had work */
	__le32 overloaded;		/* 12 non-zero while its pCPU has more than one runnable task */
	__le32 generation;		/* 16 config.generation of the writer */
	__le32 heartbeat;		/* 20 changes at least every 50 ms while the host is alive */
	__le64 nr_grants;		/* 24 extensions granted to this vCPU */
	__le64 reserved0;		/* 32 */
	__le64 reserved1;		/* 40 */
	__le64 reserved2;		/* 48 */
	__le64 reserved3;		/* 56 */
};					/* 64 */

/* ---- control queue: one device-readable message, one device-writable reply ---- */

#define VIRTIO_ECS_CTRL_REGISTER	1
#define VIRTIO_ECS_CTRL_UNREGISTER	2
#define VIRTIO_ECS_CTRL_QUERY		3

/* register.word_format */
#define VIRTIO_ECS_WORD_NONE		0
#define VIRTIO_ECS_WORD_X86_PREEMPT	1	/* x86 preempt_count: bits 0-7 preempt depth, 8-15 softirq,
						 * 16-19 hardirq, 20-23 NMI, bit 31 inverted need-resched */
#define VIRTIO_ECS_WORD_X86_PREEMPT64	2	/* the low half of a 64-bit x86 preempt_count: bits 0-7 preempt
						 * depth, 8-15 softirq, 16-23 interrupts disabled, 24-27 hardirq,
						 * 28-31 NMI */

/* register.flags */
#define VIRTIO_ECS_REG_NO_PREEMPT_COUNT	(1U << 0)	/* kernel without PREEMPT_COUNT: the word shows
							 * interrupt context only */

struct virtio_ecs_ctrl_hdr {
	__le16 op;			/*  0 VIRTIO_ECS_CTRL_* */
	__le16 flags;			/*  2 zero */
	__le32 cookie;			/*  4 echoed in the reply */
};					/*  8 */

struct virtio_ecs_register {		/* a vCPU registered already is replaced */
	__le16 op;			/*  0 the first three fields are a virtio_ecs_ctrl_hdr */
	__le16 hdr_flags;		/*  2 */
	__le32 cookie;			/*  4 */
	__le32 vcpu;			/*  8 */
	__le32 flags;			/* 12 VIRTIO_ECS_REG_* */
	__le64 guest_line;		/* 16 */
	__le64 host_line;		/* 24 */
	__le64 word_addr;		/* 32 */
	__le32 word_format;		/* 40 VIRTIO_ECS_WORD_* */
	__le32 reserved0;		/* 44 */
	__le64 reserved1;		/* 48 */
	__le64 reserved2;		/* 56 */
};					/* 64 */

struct virtio_ecs_vcpu_msg {		/* UNREGISTER and QUERY */
	__le16 op;			/*  0 */
	__le16 hdr_flags;		/*  2 */
	__le32 cookie;			/*  4 */
	__le32 vcpu;			/*  8 */
	__le32 reserved0;		/* 12 */
};					/* 16 */

/* reply.status */
#define VIRTIO_ECS_S_OK			0
#define VIRTIO_ECS_S_BAD_OP		1	/* unknown op */
#define VIRTIO_ECS_S_BAD_LENGTH		2	/* message shorter or longer than the op's */
#define VIRTIO_ECS_S_BAD_VCPU		3	/* vcpu >= max_vcpus */
#define VIRTIO_ECS_S_BAD_ADDR		4	/* not in guest memory, or address overflow */
#define VIRTIO_ECS_S_MISALIGNED		5	/* line not 64-byte aligned, word not 4-byte aligned */
#define VIRTIO_ECS_S_OVERLAP		6	/* lines overlap each other or another vCPU's */
#define VIRTIO_ECS_S_BAD_FORMAT		7	/* unknown word_format */
#define VIRTIO_ECS_S_NOT_REGISTERED	8	/* UNREGISTER or QUERY of an unknown vCPU */
#define VIRTIO_ECS_S_NOT_NEGOTIATED	9	/* config.status is not VIRTIO_ECS_NEG_OK */

struct virtio_ecs_ctrl_reply {
	__le32 cookie;			/*  0 */
	__le16 op;			/*  4 */
	__le16 status;			/*  6 VIRTIO_ECS_S_* */
	__le32 generation;		/*  8 */
	__le32 vcpu;			/* 12 */
	__le64 nr_grants;		/* 16 QUERY: extensions granted */
	__le64 nr_faults;		/* 24 QUERY: reads of this vCPU's slots that made no sense */
};					/* 32 */

/* ---- event queue: the driver posts device-writable buffers of at least one event ---- */

#define VIRTIO_ECS_EV_RESTART		1	/* registrations are lost: register again */
#define VIRTIO_ECS_EV_ENABLED		2	/* extensions are given from now on */
#define VIRTIO_ECS_EV_DISABLED		3	/* no extensions until further notice */
#define VIRTIO_ECS_EV_FAULT		4	/* the vCPU's slots make no sense; data: faults so far */

struct virtio_ecs_event {
	__le16 type;			/*  0 VIRTIO_ECS_EV_* */
	__le16 flags;			/*  2 zero */
	__le32 vcpu;			/*  4 vCPU, or VIRTIO_ECS_ALL_VCPUS */
	__le64 data;			/*  8 */
};					/* 16 */

#define VIRTIO_ECS_ALL_VCPUS		0xffffffffU

#endif /* _UAPI_LINUX_VIRTIO_ECS_H */
