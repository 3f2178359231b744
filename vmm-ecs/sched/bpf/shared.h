/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR BSD-3-Clause */
/*
 * What the programs and whoever loads them share through maps.
 */
#ifndef ECS_SHARED_H
#define ECS_SHARED_H

#include <linux/types.h>

#include "ecs_policy.h"

#define ECS_MAX_VMS	64
#define ECS_MAX_VCPUS	64	/* of one VM */
#define ECS_MAX_REGIONS	8
#define ECS_MAX_TIDS	(ECS_MAX_VMS * ECS_MAX_VCPUS)

/* Guest memory as the VMM's process sees it. */
struct ecs_region {
	__u64 gpa;
	__u64 len;
	__u64 user;
};

/* Map vm_configs, written by the daemon; the index is the VM. */
struct ecs_vm_config {
	__u32 epoch;		/* changes with each VM in this place; 0: none */
	__u32 weight;
	__u32 enabled;
	__u32 nr_vcpus;
	__u32 nr_regions;
	__u32 reserved;
	struct ecs_region regions[ECS_MAX_REGIONS];
};

/* Map vcpu_configs, written by the daemon; the index is vm * ECS_MAX_VCPUS + vcpu. */
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

/* Map vms, written by the programs. */
struct ecs_vm_state {
	__u32 epoch;		/* of the VM these books are of */
	__u32 reserved;
	struct ecs_vm vm;
	__u64 inner_vclock_ns;	/* CPU time of its vCPU that came last */
	__u64 preemptions;
	__u64 critical[ECS_NR_CAUSES];
	__u64 stall_ns;
	__u64 rotations;
	__u64 nr_runnable;
};

/* Map vcpus, written by the programs. */
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
	__u32 epoch;
	__u32 rank;		/* enum ecs_rank when it left the CPU */
	__u8 in_turn;
	__u8 running;
	__u8 runnable;
	__u8 reserved0;
	__u32 reserved1;
};

#endif /* ECS_SHARED_H */
