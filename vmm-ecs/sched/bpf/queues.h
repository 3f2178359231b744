/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Who waits for a CPU, and who of them comes next. Every VM is one entity of weighted virtual time,
 * whatever the number of its vCPUs, with a queue of its own; so is every thread of the host.
 */
#ifndef ECS_QUEUES_H
#define ECS_QUEUES_H

#include "core.h"
#include "host.h"
#include "maps.h"
#include "turn.h"

/* vCPUs of a queue that are looked at for one that ran near. */
#define NEAR_TRIES	8

/* VMs that may prove unable to run on a CPU before the rest is left for later. */
#define MAX_TRIES	4
#define NO_VM		ECS_MAX_VMS

struct waiting {
	__u64 least_ns;		/* virtual time of the first of all VMs with work, waiting or not */
	__u64 last_ns;		/* of the last one that waits */
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

	if (!p)
		return;
	if (p->scx.dsq_vtime > w->last_ns)
		w->last_ns = p->scx.dsq_vtime;
	if (!w->host_dsq || p->scx.dsq_vtime < w->host_vtime_ns) {
		w->host_dsq = dsq;
		w->host_vtime_ns = p->scx.dsq_vtime;
	}
}

static bool is_far(struct task_struct *p, __u32 cpu)
{
	return p && domain_of(scx_bpf_task_cpu(p)) != domain_of(cpu);
}

/*
 * Who waits for this CPU; VMs in `tried` do not count. `here` is the VM of the vCPU on this CPU.
 *
 * vCPUs that want the same locks slow each other down when they run at the same time. A VM that waits
 * for its own locks therefore comes after others while it is on another CPU, unless it is far behind.
 * A VM whose first vCPU would have to come from another cache comes half a slice later, and one that the core
 * has no room for a slice.
 */
__noinline int look_around(struct waiting *w __arg_nonnull, __u32 cpu, const struct tried *tried,
			   __u32 here, __u64 now_ns)
{
	__u64 first_ns = 0, place_ns;
	__u32 nr = nr_vms;
	int i;

	*w = (struct waiting){ .vm = NO_VM, .least_ns = ECS_U64_MAX };
	peek_host(w, DSQ_HOST);
	peek_host(w, DSQ_PINNED + cpu);
	if (nr > ECS_MAX_VMS)
		nr = ECS_MAX_VMS;
	bpf_for(i, 0, nr) {
		struct ecs_vm_state *vm = vm_at(i);
		__u64 vtime_ns, until_ns;
		struct task_struct *head;
		bool seen = false;

		if (!vm || !vm->nr_runnable)
			continue;
		vtime_ns = vm->vm.ledger.vtime_ns;
		head = vm->limited || setup.near || setup.shared_cores ? scx_bpf_dsq_peek(DSQ_VM + i) :
									NULL;
		until_ns = throttled_until(vm, head, now_ns);
		if (!until_ns)
			w->least_ns = ecs_min(w->least_ns, vtime_ns);
		if (scx_bpf_dsq_nr_queued(DSQ_VM + i) <= 0)
			continue;
		for (int j = 0; tried && j < MAX_TRIES; j++)
			seen |= (__u32)j < tried->nr && tried->vm[j] == (__u32)i;
		if (seen)
			continue;
		if (until_ns) {
			if (!w->refill_ns || until_ns < w->refill_ns)
				w->refill_ns = until_ns;
			continue;
		}
		if (vtime_ns > w->last_ns)
			w->last_ns = vtime_ns;
		place_ns = vtime_ns;
		if (setup.apart && vm->nr_running > (here == (__u32)i)) {
			__u64 boost_ns = ecs_boost_ns(policy());

			if (vm->answers)
				place_ns = ecs_sub(place_ns, boost_ns);
			else if (vm->lock_bound)
				place_ns = ecs_add(place_ns, boost_ns);
		}
		if (setup.near && is_far(head, cpu))
			place_ns = ecs_add(place_ns, setup.params.slice_ns / 2);
		if (!fits(head, cpu))
			place_ns = ecs_add(place_ns, setup.params.slice_ns);
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
		if (may_run(p, cpu))
			moved = scx_bpf_dsq_move(&___it /* of bpf_for_each */, p, SCX_DSQ_LOCAL, 0);
		break;
	}
	return moved;
}

/* Moves the first vCPU that ran near this CPU, of those that come first but for a slice. */
static bool take_near(__u32 cpu, __u32 vm)
{
	struct task_struct *p;
	__u64 limit_ns = 0;
	bool moved = false;
	int seen = 0;

	bpf_for_each(scx_dsq, p, DSQ_VM + vm, 0) {
		if (!limit_ns)
			limit_ns = ecs_add(p->scx.dsq_vtime, setup.params.slice_ns);
		if (seen++ >= NEAR_TRIES || p->scx.dsq_vtime > limit_ns)
			break;
		if (!may_run(p, cpu) || is_far(p, cpu))
			continue;
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
	if (setup.near && take_near(cpu, vm_index))
		return true;
	return scx_bpf_dsq_move_to_local(DSQ_VM + vm_index);
}

/*
 * Nobody waits for ever. Virtual time goes faster where few share a CPU, and for those who run because
 * nobody else wants to: where they then wait for one that stands at `base_ns`, they stand ahead of it by
 * no more than they can be after a turn. A task of the host has its turn at once, since its place in the
 * queue cannot be changed.
 */
__noinline int rein(__u32 cpu, __u64 base_ns)
{
	struct ecs_cpu *state = cpu_state(cpu);
	__u32 nr = nr_vms;
	int i;

	if (nr > ECS_MAX_VMS)
		nr = ECS_MAX_VMS;
	bpf_for(i, 0, nr) {
		struct task_struct *p;
		struct vcpu_ref ref;
		__u64 nr_vcpus = nr_vcpus_of(i), leash_ns, seq;

		if (!vcpu_by_index(&ref, i * ECS_MAX_VCPUS) || !ref.vm->nr_runnable)
			continue;
		leash_ns = ecs_ledger_leash_ns(&ref.vm->vm.ledger, nr_vcpus, policy());
		if (ref.vm->vm.ledger.vtime_ns <= ecs_add(base_ns, leash_ns))
			continue;
		p = scx_bpf_dsq_peek(DSQ_VM + i);
		if (!p || !may_run(p, cpu))
			continue;
		seq = open_books(&ref);
		ecs_ledger_rein(&ref.vm->vm.ledger, base_ns, nr_vcpus, policy());
		close_books(&ref);
		record(&ref, ECS_OP_REIN, seq, base_ns, nr_vcpus, NULL, NULL);
	}
	if (state)
		find_lost(state, cpu, base_ns);
	return 0;
}

/* The same, where it can be that somebody is so far ahead. */
static void rein_where_due(__u32 cpu, const struct waiting *w, __u64 base_ns)
{
	if (w->last_ns > ecs_add(base_ns, ECS_TURNS_AT_ONCE * setup.params.slice_ns))
		rein(cpu, base_ns);
}

/* Takes a task of the host that rein() found. */
static bool take_lost(struct ecs_cpu *state)
{
	__u64 dsq = state->lost_dsq;

	state->lost_dsq = 0;
	if (dsq && scx_bpf_dsq_move_to_local(dsq))
		return true;
	state->reined_ns = 0;
	return false;
}

/* Somebody comes to this CPU from a queue; `here` is the VM that had it, if that is another one. */
static void turn_to(struct ecs_cpu *state, const struct waiting *w, __u64 vtime_ns, __u32 here)
{
	const struct ecs_vm_state *before = vm_at(here);

	state->clock_ns = vtime_ns;
	if (before)
		state->before_ns = before->vm.ledger.vtime_ns;
	vtime_ns = ecs_min(vtime_ns, w->least_ns);
	if (vclock_ns < vtime_ns)
		vclock_ns = vtime_ns;
}

/*
 * Moves the one with the least virtual time to the CPU; `first` is a VM that goes before all. False
 * if nobody could be moved: `w` then says who waits for something else than a CPU.
 */
static bool run_next(__u32 cpu, __u32 first, __u32 here, bool contended, struct waiting *w, __u64 now_ns)
{
	struct ecs_cpu *state = cpu_state(cpu);
	struct tried tried = { 0 };
	int i;

	if (!state)
		return false;
	if (first < NO_VM && take_from(cpu, first))
		return true;
	if (take_lost(state))
		return true;
	bpf_for(i, 0, MAX_TRIES) {
		look_around(w, cpu, &tried, here, now_ns);
		if (w->host_dsq && (w->vm == NO_VM || w->host_vtime_ns <= w->vm_vtime_ns)) {
			if (scx_bpf_dsq_move_to_local(w->host_dsq)) {
				/* What runs because nobody else wants to is ahead of its time. */
				if (contended)
					turn_to(state, w, w->host_vtime_ns, here);
				return true;
			}
		}
		if (w->vm == NO_VM)
			break;
		if (take_from(cpu, w->vm)) {
			turn_to(state, w, w->vm_vtime_ns, w->vm == here ? NO_VM : here);
			rein_where_due(cpu, w, w->vm_vtime_ns);
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

/*
 * Makes a CPU come for work: an idle one, near and of an idle core if there is one (the kernel's choice),
 * or one that runs its vCPU without an end in sight.
 */
static void call_for(struct task_struct *p)
{
	bool is_idle = false;
	__s32 cpu = scx_bpf_select_cpu_dfl(p, scx_bpf_task_cpu(p), 0, &is_idle);
	struct ecs_cpu *state;
	int i;

	if (is_idle) {
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

/* Who woke takes the CPU from a vCPU that is far enough ahead of it, by way of dispatch. */
static void press(struct task_struct *p, __u64 vtime_ns)
{
	__s32 cpu = scx_bpf_task_cpu(p);
	struct ecs_cpu *state = cpu_state(cpu);
	struct vcpu_ref ref;

	if (state && find_vcpu(&ref, state->vcpu) &&
	    ecs_is_urgent(vtime_ns, ref.vm->vm.ledger.vtime_ns))
		scx_bpf_kick_cpu(cpu, SCX_KICK_PREEMPT);
}

#endif /* ECS_QUEUES_H */
