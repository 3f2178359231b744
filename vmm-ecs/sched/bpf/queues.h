/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Who waits for a CPU, and who of them comes next. Every VM is one entity of weighted virtual time,
 * whatever the number of its vCPUs, with a queue of its own; so is every thread of the host.
 */
#ifndef ECS_QUEUES_H
#define ECS_QUEUES_H

#include "maps.h"
#include "turn.h"

/* Queues: of a VM, by its number; of the host; of what may run on one CPU only. */
#define DSQ_VM		0x1000ULL
#define DSQ_HOST	0x2000ULL
#define DSQ_PINNED	0x10000ULL

/* VMs that may prove unable to run on a CPU before the rest is left for later. */
#define MAX_TRIES	4
#define NO_VM		ECS_MAX_VMS

struct waiting {
	__u64 vm_vtime_ns;
	__u64 host_vtime_ns;
	__u64 host_dsq;		/* 0: no host task waits */
	__u64 refill_ns;	/* a VM waits only for its limit, until then; 0: none does */
	__u32 vm;		/* that comes first; NO_VM: none waits */
	__u32 reserved;
};

struct tried {
	__u32 nr;
	__u32 vm[MAX_TRIES];
};

static void peek_host(struct waiting *w, __u64 dsq)
{
	struct task_struct *p = scx_bpf_dsq_peek(dsq);

	if (p && (!w->host_dsq || p->scx.dsq_vtime < w->host_vtime_ns)) {
		w->host_dsq = dsq;
		w->host_vtime_ns = p->scx.dsq_vtime;
	}
}

/*
 * Who waits for this CPU; VMs in `tried` do not count. `here` is the VM of the vCPU on this CPU.
 *
 * vCPUs that want the same locks slow each other down when they run at the same time. A VM that waits
 * for its own locks therefore comes after others while it is on another CPU, unless it is far behind.
 */
__noinline int look_around(struct waiting *w __arg_nonnull, __u32 cpu, const struct tried *tried,
			   __u32 here, __u64 now_ns)
{
	__u64 first_ns = 0, place_ns;
	__u32 nr = nr_vms;
	int i;

	*w = (struct waiting){ .vm = NO_VM };
	peek_host(w, DSQ_HOST);
	peek_host(w, DSQ_PINNED + cpu);
	if (nr > ECS_MAX_VMS)
		nr = ECS_MAX_VMS;
	bpf_for(i, 0, nr) {
		const struct ecs_vm_config *config = vm_config_at(i);
		struct ecs_vm_state *vm = vm_at(i);
		__u64 vtime_ns, until_ns;
		bool seen = false;

		/* Without work there is no need to ask the kernel. */
		if (!vm || !config || !vm->nr_runnable || scx_bpf_dsq_nr_queued(DSQ_VM + i) <= 0)
			continue;
		for (int j = 0; tried && j < MAX_TRIES; j++)
			seen |= (__u32)j < tried->nr && tried->vm[j] == (__u32)i;
		if (seen)
			continue;
		until_ns = throttled_until(config, vm, now_ns);
		if (until_ns) {
			if (!w->refill_ns || until_ns < w->refill_ns)
				w->refill_ns = until_ns;
			continue;
		}
		vtime_ns = vm->vm.ledger.vtime_ns;
		place_ns = vtime_ns;
		if (setup.apart && vm->nr_running > (here == (__u32)i)) {
			__u64 boost_ns = ecs_boost_ns(policy());

			if (vm->answers)
				place_ns = ecs_sub(place_ns, boost_ns);
			else if (vm->lock_bound)
				place_ns = ecs_add(place_ns, boost_ns);
		}
		if (w->vm == NO_VM || place_ns < first_ns) {
			w->vm = i;
			w->vm_vtime_ns = vtime_ns;
			first_ns = place_ns;
		}
	}
	return 0;
}

static bool nobody(const struct waiting *w)
{
	return w->vm == NO_VM && !w->host_dsq;
}

/* Moves one vCPU to this CPU, ahead of the others in its VM's queue, if it may run here. */
static bool take(__u32 cpu, __u32 vm, __u32 number)
{
	struct task_struct *p;
	bool moved = false;

	bpf_for_each(scx_dsq, p, DSQ_VM + vm, 0) {
		if (vcpu_number(p) != number)
			continue;
		if (!p->migration_disabled && bpf_cpumask_test_cpu(cpu, p->cpus_ptr))
			moved = scx_bpf_dsq_move(&___it /* of bpf_for_each */, p, SCX_DSQ_LOCAL, 0);
		break;
	}
	return moved;
}

/* Moves a vCPU of a VM to this CPU: the one that its siblings wait for, or who comes first. */
static bool take_from(__u32 cpu, __u32 vm_index)
{
	struct ecs_vm_state *vm = vm_at(vm_index);
	__u32 first = vm ? vm->first : 0;

	if (!vm)
		return false;
	if (first) {
		vm->first = 0;
		if (take(cpu, vm_index, vm_index * ECS_MAX_VCPUS + first))
			return true;
	}
	return scx_bpf_dsq_move_to_local(DSQ_VM + vm_index);
}

/*
 * Moves the one with the least virtual time to the CPU; `first` is a VM that goes before all. False
 * if nobody could be moved: `w` then says who waits for something else than a CPU.
 */
static bool run_next(__u32 cpu, __u32 first, __u32 here, struct waiting *w, __u64 now_ns)
{
	struct tried tried = { 0 };
	int i;

	if (first < NO_VM && take_from(cpu, first))
		return true;
	bpf_for(i, 0, MAX_TRIES) {
		look_around(w, cpu, &tried, here, now_ns);
		if (w->host_dsq && (w->vm == NO_VM || w->host_vtime_ns <= w->vm_vtime_ns)) {
			if (scx_bpf_dsq_move_to_local(w->host_dsq)) {
				advance_vclock(w->host_vtime_ns);
				return true;
			}
		}
		if (w->vm == NO_VM)
			break;
		if (take_from(cpu, w->vm)) {
			advance_vclock(w->vm_vtime_ns);
			if (w->vm != here)
				gather(cpu, w->vm, scx_bpf_dsq_nr_queued(DSQ_VM + w->vm));
			return true;
		}
		if (tried.nr < MAX_TRIES)
			tried.vm[tried.nr++] = w->vm;
	}
	return scx_bpf_dsq_move_to_local(DSQ_PINNED + cpu) || scx_bpf_dsq_move_to_local(DSQ_HOST);
}

/*
 * Makes a CPU that runs its vCPU without an end in sight come for work. The guest hears of it from
 * here, at once: the CPU comes an interrupt later. Dispatch books it, and takes it back if somebody
 * else took the work.
 */
static __always_inline void call_from(__s32 cpu, const struct ecs_cpu *state)
{
	tell_wanted(state->tid);
	scx_bpf_kick_cpu(cpu, SCX_KICK_PREEMPT);
}

/* Makes a CPU come for work: an idle one, or one that runs its vCPU without an end in sight. */
static void call_for(struct task_struct *p)
{
	__s32 cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
	struct ecs_cpu *state;
	int i;

	if (cpu >= 0) {
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
		return;
	}
	if (!nr_endless)
		return;
	cpu = scx_bpf_task_cpu(p);
	state = cpu_state(cpu);
	if (state && state->endless && bpf_cpumask_test_cpu(cpu, p->cpus_ptr)) {
		call_from(cpu, state);
		return;
	}
	bpf_for(i, 0, setup.nr_cpus) {
		state = cpu_state(i);
		if (!state || !state->endless || !bpf_cpumask_test_cpu(i, p->cpus_ptr))
			continue;
		call_from(i, state);
		return;
	}
}

#endif /* ECS_QUEUES_H */
