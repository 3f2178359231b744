/* SPDX-License-Identifier: GPL-2.0 */
/*
 * State of the programs, and how it is found. Global arrays are mapped by the daemon, which reads and
 * writes them as memory; only what holds a lock or a timer is a map of its own.
 */
#ifndef ECS_MAPS_H
#define ECS_MAPS_H

#include "kernel.h"
#include "shared.h"
#include "threads.h"
#include "virtio_ecs.h"

/* Set by the daemon before the programs are loaded. */
const volatile struct ecs_setup setup;

/* CPUs of the same number share a cache, or where the kernel does not say, a NUMA node. */
const volatile __u16 domains[ECS_MAX_CPUS];

/* The next CPU of the same core; that after the last is the first. */
const volatile __u16 next_siblings[ECS_MAX_CPUS];

/* Never read: it carries a whole type, not only its name, into the compiled object. */
const volatile struct ecs_record type_of_records;

struct ecs_vm_config vm_configs[ECS_MAX_VMS];
struct ecs_vcpu_config vcpu_configs[ECS_MAX_TIDS];
struct ecs_vm_state vms[ECS_MAX_VMS];
struct ecs_vcpu vcpus[ECS_MAX_TIDS];
struct ecs_cpu_stats cpu_stats[ECS_MAX_CPUS];

/* Written by the daemon: VMs are in the places below. */
__u32 nr_vms;

/* CPUs whose vCPU runs without an end in sight, since nobody waited. */
__u32 nr_endless;

/* Virtual time that all VMs with work have reached, ns. See clock_of(). */
__u64 vclock_ns;

/* Why the kernel ended this scheduler; 0 while it runs. */
__u32 exit_kind;
__s64 exit_code;
char exit_reason[128];
char exit_message[256];

/* Of a VM's books: other counters are atomic, or hints. */
struct ecs_lock {
	struct bpf_spin_lock lock;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ECS_MAX_VMS);
	__type(key, __u32);
	__type(value, struct ecs_lock);
} locks SEC(".maps");

struct ecs_cpu {
	struct bpf_timer timer;
	__u64 bonus_ns;		/* what the VM before paid back */
	__u64 end_ns;		/* the vCPU here runs until then at most; 0: without an end */
	__u64 look_ns;		/* until the next look; doubles while there is nothing to see */
	__u64 since_ns;		/* the host's task here runs since then */
	__u64 clock_ns;		/* virtual time of who came here last, of several */
	__u64 before_ns;	/* that of the VM whose turn was before this one's */
	__u64 lost_dsq;		/* queue of a host task that would wait for ever here; 0: none */
	__u64 reined_ns;	/* where that one stands from now on */
	__u32 vcpu;		/* that runs here, plus one; 0: none */
	__u32 tid;		/* its thread */
	__u32 gathered;		/* VM that another CPU has turned to, and this one should, plus one */
	__u8 ends_with_section;	/* a section keeps it here: it leaves as soon as that is over */
	__u8 endless;
	__u8 rung;		/* its guest rang the doorbell, as it was asked to */
	__u8 gives;		/* its guest hands the CPU to a sibling */
	__u8 occupied;		/* a thread runs here, with this core scheduling cookie */
	__u64 cookie;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ECS_MAX_CPUS);
	__type(key, __u32);
	__type(value, struct ecs_cpu);
} cpus SEC(".maps");

/* The daemon makes it small unless it records. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 24);
} records SEC(".maps");

/*
 * NULL beyond the end of an array. The mask, which changes nothing, is for the verifier to see; and
 * the functions are not inlined, or the compiler merges their NULL with other values.
 */
#define AT(array, index) ({						\
	__u32 __at = (index);						\
	bool __in = __at < sizeof(array) / sizeof((array)[0]);		\
									\
	barrier_var(__at);						\
	__at &= sizeof(array) / sizeof((array)[0]) - 1;			\
	__in ? &(array)[__at] : NULL;					\
})

static __noinline struct ecs_vm_state *vm_at(__u32 vm)
{
	return AT(vms, vm);
}

static __noinline struct ecs_vm_config *vm_config_at(__u32 vm)
{
	return AT(vm_configs, vm);
}

static __noinline struct ecs_vcpu *vcpu_at(__u32 index)
{
	return AT(vcpus, index);
}

static __noinline struct ecs_cpu_stats *stats_at(__u32 cpu)
{
	return AT(cpu_stats, cpu);
}

static struct ecs_cpu *cpu_state(__u32 cpu)
{
	return bpf_map_lookup_elem(&cpus, &cpu);
}

/* Everything about one vCPU. */
struct vcpu_ref {
	struct ecs_vcpu *vcpu;
	struct ecs_vm_state *vm;
	struct ecs_lock *lock;
	struct ecs_thread *thread;	/* NULL where it was not found by its thread */
	const struct ecs_vm_config *vm_config;
	__u32 vm_index;
	__u32 index;		/* of the vCPU, over all VMs */
};

static bool vcpu_by_index(struct vcpu_ref *ref, __u32 index)
{
	ref->thread = NULL;
	ref->index = index;
	ref->vm_index = index / ECS_MAX_VCPUS;
	ref->vcpu = vcpu_at(index);
	ref->vm = vm_at(ref->vm_index);
	ref->vm_config = vm_config_at(ref->vm_index);
	ref->lock = bpf_map_lookup_elem(&locks, &ref->vm_index);
	return ref->vcpu && ref->vm && ref->vm_config && ref->lock;
}

/* False where `number` is no vCPU. */
static bool find_vcpu(struct vcpu_ref *ref, __u32 number)
{
	return number && vcpu_by_index(ref, number - 1);
}

static __u32 vcpu_number(struct task_struct *p)
{
	struct ecs_thread *thread = thread_of(p);

	return thread ? thread->number : 0;
}

static bool vcpu_of(struct vcpu_ref *ref, struct task_struct *p)
{
	struct ecs_thread *thread = thread_of(p);

	if (!thread || !find_vcpu(ref, thread->number))
		return false;
	ref->thread = thread;
	return true;
}

/* The parameters without `volatile`, and still not folded into what they are before the load. */
static const struct ecs_params *policy(void)
{
	const struct ecs_params *p = (const struct ecs_params *)&setup.params;

	barrier_var(p);
	return p;
}

static __u32 nr_vcpus_of(__u32 vm_index)
{
	const struct ecs_vm_config *config = vm_config_at(vm_index);
	__u32 nr = config ? config->nr_vcpus : 0;

	return nr < ECS_MAX_VCPUS ? nr : ECS_MAX_VCPUS;
}

/*
 * Where newcomers begin on a CPU, ns. CPUs may be of unequal load, when not everybody may run everywhere:
 * virtual time then goes faster on some than on others.
 */
static __u64 clock_of(__u32 cpu)
{
	const struct ecs_cpu *state = cpu_state(cpu);

	return state && state->clock_ns > vclock_ns ? state->clock_ns : vclock_ns;
}

static __noinline __u32 domain_of(__u32 cpu)
{
	const volatile __u16 *domain = AT(domains, cpu);

	return domain ? *domain : 0;
}

static __noinline __u32 next_sibling(__u32 cpu)
{
	const volatile __u16 *next = AT(next_siblings, cpu);

	return next ? *next : cpu;
}

static bool may_run(struct task_struct *p, __u32 cpu)
{
	return !p->migration_disabled && bpf_cpumask_test_cpu(cpu, p->cpus_ptr);
}

#endif /* ECS_MAPS_H */
