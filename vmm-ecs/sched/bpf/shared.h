/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR BSD-3-Clause */
/*
 * What the programs and the daemon share. Both sides get these types from this file: the daemon by
 * way of the type information in the compiled object.
 */
#ifndef ECS_SHARED_H
#define ECS_SHARED_H

#include <linux/types.h>

#include "ecs_policy.h"

#define ECS_MAX_VMS	128
#define ECS_MAX_VCPUS	256	/* of one VM */
#define ECS_MAX_REGIONS	16
#define ECS_MAX_TIDS	(ECS_MAX_VMS * ECS_MAX_VCPUS)
#define ECS_MAX_CPUS	1024

/* What does not change while a scheduler runs. */
struct ecs_setup {
	struct ecs_params params;
	__u64 look_ns;		/* between two looks at a vCPU that may stand still, or end its section */
	__u32 nr_cpus;
	__u8 step_aside;	/* rules of the lock queue, to measure each: hopeless spinners leave early */
	__u8 head_first;	/* the vCPU that the others wait for runs first */
	__u8 apart;		/* VMs that wait for their own locks run on few CPUs at a time */
	__u8 record;		/* every operation on the books goes to `records` */
	__u8 near;		/* vCPUs stay near the cache they ran at; there is more than one */
	__u8 shared_cores;	/* several CPUs are one core */
};

/* Guest memory as the VMM's process sees it. */
struct ecs_region {
	__u64 gpa;
	__u64 len;
	__u64 user;
};

/* Written by the daemon; the index is the VM. */
struct ecs_vm_config {
	__u32 epoch;		/* changes with each VM in this place; 0: none */
	__u32 weight;
	__u32 enabled;
	__u32 nr_vcpus;
	__u32 nr_regions;
	__u32 reserved;
	struct ecs_region regions[ECS_MAX_REGIONS];
};

/* Written by the daemon; the index is vm * ECS_MAX_VCPUS + vcpu. */
struct ecs_vcpu_config {
	__u64 guest_line;	/* address in the VMM's process; 0: not registered */
	__u64 word_addr;
	__u32 word_format;	/* VIRTIO_ECS_WORD_* */
	__u32 reserved;
};

enum ecs_cause {
	ECS_CAUSE_DENIED,
	ECS_CAUSE_EXPIRED,
	ECS_CAUSE_HOST,
	ECS_NR_CAUSES,
};

/* Written by the programs. */
struct ecs_vm_state {
	__u64 seq;		/* odd while the books change */
	struct ecs_vm vm;
	__u64 inner_vclock_ns;	/* CPU time of its vCPU that came last */
	__u64 preemptions;
	__u64 critical[ECS_NR_CAUSES];
	__u64 stall_ns;
	__u64 wakeups;
	__u64 overloaded_ns;	/* vCPUs ran while others waited for their CPU */
	__u64 rotations;
	__u64 nr_runnable;
	__u64 nr_running;
	__u32 epoch;		/* of the VM these books are of */
	__u32 first;		/* vCPU the others wait for, plus one; 0: none */
	__u32 lock_bound;	/* turns for which it still counts as waiting for its own locks */
	__u32 answers;		/* the same, as waiting for answers of its own vCPUs */
	__u32 reserved1;
	__u32 stuck;		/* a vCPU is off the CPU inside a lock queue */
	__u32 limited;		/* its cgroup has a limit, or one around it */
	__u32 reserved2;
};

/* Written by the programs. */
struct ecs_vcpu {
	struct ecs_vcpu_state state;
	struct ecs_turn turn;
	__u64 inner_vtime_ns;	/* orders the vCPUs of one VM */
	__u64 since_ns;		/* on the CPU and not yet booked since then */
	__u64 turn_ran_ns;	/* booked, but not yet shown to the policy */
	__u64 critical_since_ns;
	__u64 preemptions;
	__u64 critical;
	__u64 grants;
	__u64 faults;		/* reads that failed or made no sense */
	__u64 extension_ns;	/* of the extension that runs, or ran last */
	__u32 epoch;
	__u32 rank;		/* enum ecs_rank when it left the CPU */
	__u32 section;		/* enum ecs_section of the extension that ran last */
	__u8 in_turn;
	__u8 running;
	__u8 runnable;
	__u8 yield;		/* VIRTIO_ECS_YIELD_*: what its guest was last asked for */
	__u8 overloaded;	/* what its guest was last told */
	__u8 reserved0;
	__u16 called;		/* sibling it was last seen to spin for, plus one */
	__u32 cpu;		/* where it ran last, plus one */
	__u32 critical_section;	/* enum ecs_section of what it was taken from at critical_since_ns */
};

#define ECS_NR_BUCKETS	32

/* Bucket i counts values v with 2^(i-1) < v <= 2^i ns, the last one everything above. */
struct ecs_histogram {
	__u64 buckets[ECS_NR_BUCKETS];
	__u64 count;
	__u64 sum_ns;
};

/* Of one CPU, written there only. */
struct ecs_cpu_stats {
	struct ecs_histogram extension[ECS_NR_SECTIONS];
	struct ecs_histogram critical_stall[ECS_NR_SECTIONS];
	struct ecs_histogram decision;
	__u64 looks;
	__u64 extended_max_ns;	/* the longest extension */
	__u64 doorbells;
	__u64 yields;		/* to a sibling, by KVM's directed yield */
	__u64 moves;		/* vCPUs that came from another CPU */
	__u64 far_moves;	/* those of them that came from another cache, or node */
	__u64 records_lost;
};

/* One operation on the books of a VM, in the order of `seq`. */
enum ecs_op {
	ECS_OP_NEW,
	ECS_OP_WEIGHT,
	ECS_OP_ENABLE,
	ECS_OP_WAKE,
	ECS_OP_CHARGE,
	ECS_OP_START,
	ECS_OP_DECIDE,
	ECS_OP_ABORT,
	ECS_OP_REIN,
};

struct ecs_record {
	__u64 seq;
	__u64 a;		/* what the operation takes */
	__u64 b;
	struct ecs_input in;	/* DECIDE */
	struct ecs_decision out;
	__u32 vcpu;		/* index over all VMs */
	__u32 op;		/* enum ecs_op */
};

#endif /* ECS_SHARED_H */
