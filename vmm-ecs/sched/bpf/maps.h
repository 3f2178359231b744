/* SPDX-License-Identifier: GPL-2.0 */
/* State of the programs, and how it is found. */
#ifndef ECS_MAPS_H
#define ECS_MAPS_H

#include "kernel.h"
#include "shared.h"

/* Set by the daemon before the programs are loaded. */
const volatile struct ecs_params params;
const volatile __u32 nr_cpus = 1;

/* Written by the daemon: places in vm_configs that may be in use lie below. */
__u32 nr_vms;

/* Virtual time that has been reached, ns: newcomers begin here. */
__u64 vclock_ns;

/* Why the kernel ended this scheduler; 0 while it runs. */
__u32 exit_kind;
char exit_reason[128];

/* A vCPU as one number, plus one; 0 is none. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ECS_MAX_TIDS);
	__type(key, __u32);
	__type(value, __u32);
} tids SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ECS_MAX_VMS);
	__type(key, __u32);
	__type(value, struct ecs_vm_config);
} vm_configs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ECS_MAX_TIDS);
	__type(key, __u32);
	__type(value, struct ecs_vcpu_config);
} vcpu_configs SEC(".maps");

struct ecs_vm_entry {
	struct bpf_spin_lock lock;	/* of `vm`: other counters are atomic, or hints */
	struct ecs_vm_state state;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ECS_MAX_VMS);
	__type(key, __u32);
	__type(value, struct ecs_vm_entry);
} vms SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ECS_MAX_TIDS);
	__type(key, __u32);
	__type(value, struct ecs_vcpu);
} vcpus SEC(".maps");

struct ecs_cpu {
	struct bpf_timer timer;
	__u64 bonus_ns;		/* what the VM before paid back */
	__u64 hard_stop_ns;	/* of the extension that runs here */
	__u64 since_ns;		/* the host's task here runs since then */
	__u32 vcpu;		/* that runs here, plus one; 0: none */
	__u32 tid;		/* its thread */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);	/* the daemon makes it one a CPU */
	__type(key, __u32);
	__type(value, struct ecs_cpu);
} cpus SEC(".maps");

/* Everything about one vCPU. */
struct vcpu_ref {
	struct ecs_vcpu *vcpu;
	struct ecs_vm_entry *vm;
	const struct ecs_vm_config *vm_config;
	__u32 vm_index;
	__u32 index;		/* of the vCPU, over all VMs */
};

/* False where `number` is no vCPU. */
static bool find_vcpu(struct vcpu_ref *ref, __u32 number)
{
	if (!number)
		return false;
	ref->index = number - 1;
	ref->vm_index = ref->index / ECS_MAX_VCPUS;
	ref->vcpu = bpf_map_lookup_elem(&vcpus, &ref->index);
	ref->vm = bpf_map_lookup_elem(&vms, &ref->vm_index);
	ref->vm_config = bpf_map_lookup_elem(&vm_configs, &ref->vm_index);
	return ref->vcpu && ref->vm && ref->vm_config;
}

static __u32 vcpu_number(const struct task_struct *p)
{
	__u32 tid = p->pid;
	__u32 *number = bpf_map_lookup_elem(&tids, &tid);

	return number ? *number : 0;
}

static bool vcpu_of(struct vcpu_ref *ref, const struct task_struct *p)
{
	return find_vcpu(ref, vcpu_number(p));
}

static struct ecs_cpu *cpu_state(__u32 cpu)
{
	return bpf_map_lookup_elem(&cpus, &cpu);
}

/* The parameters without `volatile`, and still not folded into what they are before the load. */
static const struct ecs_params *policy(void)
{
	const struct ecs_params *p = (const struct ecs_params *)&params;

	barrier_var(p);
	return p;
}

static void advance_vclock(__u64 vtime_ns)
{
	if (vclock_ns < vtime_ns)
		vclock_ns = vtime_ns;
}

#endif /* ECS_MAPS_H */
