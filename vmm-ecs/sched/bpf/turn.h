/* SPDX-License-Identifier: GPL-2.0 */
/* A vCPU's turn: who it is, what it does, what it costs, and what ecs_policy.h says about it. */
#ifndef ECS_TURN_H
#define ECS_TURN_H

#include "answers.h"
#include "cgroups.h"
#include "guest.h"
#include "hints.h"
#include "maps.h"

/* Turns for which a VM whose vCPU was seen in a lock queue counts as waiting for its own locks. */
#define LOCK_BOUND_TURNS	64
/* Slices of virtual time behind the clock from which a VM runs together. */
#define TOGETHER_SLICES		8

/*
 * The books of a VM change between these two. No helper may be called meanwhile. Returns the number
 * of the change, which orders records.
 */
static __always_inline __u64 open_books(struct vcpu_ref *ref)
{
	bpf_spin_lock(&ref->lock->lock);
	ref->vm->seq++;
	barrier();
	return ref->vm->seq;
}

static __always_inline void close_books(struct vcpu_ref *ref)
{
	barrier();
	ref->vm->seq++;
	bpf_spin_unlock(&ref->lock->lock);
}

/* Takes over what the daemon wrote about a VM, and a VM that is new in its place. */
static void adopt(struct vcpu_ref *ref, __u32 cpu)
{
	__u32 epoch = ref->vm_config->epoch, weight = ref->vm_config->weight;
	__u32 enabled = ref->vm_config->enabled;
	struct ecs_vm_state *vm = ref->vm;
	__u64 seq;

	if (ref->vcpu->epoch != epoch)
		*ref->vcpu = (struct ecs_vcpu){ .epoch = epoch };
	if (vm->epoch == epoch && (vm->vm.ledger.weight == weight || !weight) &&
	    vm->vm.enabled == enabled)
		return;
	if (vm->epoch != epoch) {
		__u64 clock = clock_of(cpu);

		seq = open_books(ref);
		vm->vm.counters = (struct ecs_counters){ 0 };
		ecs_ledger_new(&vm->vm.ledger, weight, clock);
		vm->inner_vclock_ns = 0;
		vm->preemptions = 0;
		vm->critical[ECS_CAUSE_DENIED] = 0;
		vm->critical[ECS_CAUSE_EXPIRED] = 0;
		vm->critical[ECS_CAUSE_HOST] = 0;
		vm->stall_ns = 0;
		vm->rotations = 0;
		vm->nr_runnable = 0;
		vm->nr_running = 0;
		vm->first = 0;
		vm->stuck = 0;
		vm->lock_bound = 0;
		vm->answers = 0;
		vm->limited = 0;
		vm->epoch = epoch;
		close_books(ref);
		record(ref, ECS_OP_NEW, seq, weight, clock, NULL, NULL);
	} else if (vm->vm.ledger.weight != weight && weight) {
		seq = open_books(ref);
		ecs_ledger_set_weight(&vm->vm.ledger, weight);
		close_books(ref);
		record(ref, ECS_OP_WEIGHT, seq, weight, 0, NULL, NULL);
	}
	seq = open_books(ref);
	vm->vm.enabled = enabled;
	close_books(ref);
	record(ref, ECS_OP_ENABLE, seq, enabled, 0, NULL, NULL);
}

/* A vCPU has work, perhaps the first of its VM for long: time a VM did not use is no credit. */
static void wake(struct vcpu_ref *ref, __u32 cpu)
{
	__u64 slack_ns = setup.params.slice_ns, clock, seq;

	adopt(ref, cpu);
	if (ref->vcpu->runnable)
		return;
	ref->vcpu->runnable = 1;
	if (__sync_fetch_and_add(&ref->vm->nr_runnable, 1))
		return;
	clock = clock_of(cpu);
	seq = open_books(ref);
	ecs_ledger_wake(&ref->vm->vm.ledger, clock, slack_ns);
	close_books(ref);
	record(ref, ECS_OP_WAKE, seq, clock, slack_ns, NULL, NULL);
}

static void look_at(const struct vcpu_ref *ref, bool at_hand, struct ecs_snapshot *snap)
{
	struct ecs_cpu_stats *stats = stats_at(bpf_get_smp_processor_id());
	struct ecs_thread *thread = ref->thread;

	if (stats)
		stats->looks++;
	if (read_snapshot(ref->index, thread ? thread->line : NULL, thread ? thread->word : NULL, at_hand,
			  snap))
		ref->vcpu->faults++;
	if (ecs_spins(snap) || snap->blocked)
		ref->vm->lock_bound = LOCK_BOUND_TURNS;
}

/* The vCPU's place in its lock queue. Reads the words of its siblings, who share its address space. */
__noinline __u32 queue_place(__u32 index, const struct ecs_snapshot *own __arg_nonnull)
{
	__u32 vm_index = index / ECS_MAX_VCPUS, base = vm_index * ECS_MAX_VCPUS;
	struct ecs_queue_walk walk;
	struct ecs_vm_state *vm = vm_at(vm_index);
	__u32 place = ecs_queue_begin(&walk, own);
	int i, answer;

	if (place != ECS_QUEUE_UNKNOWN || !vm)
		return place;
	if (vm->answers) {
		answer = place_among_answers(index, own);
		if (answer >= 0)
			return answer;
	}
	/* The same places as numbers that the verifier does not know: it would follow each combination. */
	walk.holder += vm->reserved1;
	walk.ended += vm->reserved1;
	walk.any += vm->reserved1;
	walk.entering_runs += vm->reserved1;
	bpf_for(i, 0, nr_vcpus_of(vm_index)) {
		__u32 other = base + i;
		struct ecs_vcpu *vcpu = vcpu_at(other);
		struct ecs_snapshot snap;

		if (other == index || !vcpu)
			continue;
		read_snapshot(other, NULL, NULL, true, &snap);
		ecs_queue_see(&walk, own, i, &snap, vcpu->running);
	}
	place = ecs_queue_end(&walk, own);
	if (place == ECS_QUEUE_UNKNOWN && own->wait == ECS_WAIT_PENDING && own->holder && !vm->answers)
		note_answers(index);
	return place;
}

/*
 * Looks at all vCPUs of a VM that stand still with work to do: their words are frozen until they run
 * again. `index` is the vCPU on the CPU, `own` what it does; `leaves` says that it stands still, too.
 * Notes in the VM's state whether one of them is inside a lock queue, and which one the others wait
 * for: what is found now holds when the VM has a CPU the next time, unless one that runs changes it.
 */
__noinline int survey(__u32 index, const struct ecs_snapshot *own __arg_nonnull, bool leaves)
{
	__u32 vm_index = index / ECS_MAX_VCPUS, base = vm_index * ECS_MAX_VCPUS;
	struct ecs_vm_state *vm = vm_at(vm_index);
	__u32 head = 0, best = 0, stuck = 0;
	int i;

	if (!vm)
		return 0;
	bpf_for(i, 0, nr_vcpus_of(vm_index)) {
		__u32 other = base + i;
		struct ecs_vcpu *vcpu = vcpu_at(other);
		struct ecs_snapshot snap;
		bool holds, ended;

		if (!vcpu || (other == index ? !leaves : vcpu->running || !vcpu->runnable))
			continue;
		if (other == index)
			snap = *own;
		else
			read_snapshot(other, NULL, NULL, true, &snap);
		holds = ecs_holds(&snap) && !ecs_spins(&snap);
		ended = !snap.idle && snap.wait == ECS_WAIT_ENDED;
		stuck |= holds || ecs_spins(&snap);
		if (vm->answers && own->wait == ECS_WAIT_PENDING && own->holder == (__u32)i + 1)
			best = i + 1;
		if (!holds && !ended)
			continue;
		if (!head)
			head = i + 1;
		/* The one that the vCPU here waits for is the best there is. */
		if ((holds && own->holder == (__u32)i + 1) ||
		    (ended && own->wait == ECS_WAIT_PENDING && snap.lock == own->lock))
			best = i + 1;
	}
	vm->stuck = stuck;
	/* Of those that wait for answers, any that was answered: no queue stands still behind it. */
	if (!best && !vm->answers)
		best = head;
	vm->first = setup.head_first ? best : 0;
	return 0;
}

/* Books what a vCPU, whose thread is `p`, ran since the last time. */
static void book(struct vcpu_ref *ref, const struct task_struct *p, __u64 ran_ns, __u64 now_ns)
{
	struct ecs_vm_state *vm = ref->vm;
	__u64 seq;

	ref->vcpu->since_ns = now_ns;
	ref->vcpu->turn_ran_ns += ran_ns;
	ref->vcpu->inner_vtime_ns += ran_ns;
	ref->vcpu->state.cpu_ns += ran_ns;
	if (ref->vcpu->overloaded)
		__sync_fetch_and_add(&vm->overloaded_ns, ran_ns);
	seq = open_books(ref);
	ecs_ledger_charge(&vm->vm.ledger, ran_ns);
	close_books(ref);
	record(ref, ECS_OP_CHARGE, seq, ran_ns, 0, NULL, NULL);
	if (vm->limited)
		use_limits(cgroup_of(p), ran_ns, now_ns);
}

/* When a VM whose limit is used up may run again, by one of its threads; 0: it may run. */
static __u64 throttled_until(const struct ecs_vm_state *vm, const struct task_struct *p, __u64 now_ns)
{
	return vm->limited && p ? limited_until(cgroup_of(p), now_ns) : 0;
}

/* Time until the next look at a vCPU of a VM, ns; only VMs that use locks are looked at in a turn. */
static __u64 first_look_ns(const struct ecs_vm_state *vm)
{
	return vm->lock_bound ? setup.look_ns : ECS_U64_MAX;
}

__noinline int begin_turn(__u32 index, __u32 cpu_index)
{
	struct ecs_cpu *cpu = cpu_state(cpu_index);
	struct vcpu_ref ref;
	__u64 bonus_ns, taken, seq;

	if (!cpu || !vcpu_by_index(&ref, index))
		return -1;
	bonus_ns = cpu->bonus_ns;
	seq = open_books(&ref);
	taken = ecs_turn_start(&ref.vcpu->turn, policy(), &ref.vm->vm, &ref.vcpu->state, bonus_ns);
	if (ref.vm->lock_bound)
		ref.vm->lock_bound--;
	if (ref.vm->answers)
		ref.vm->answers--;
	close_books(&ref);
	record(&ref, ECS_OP_START, seq, bonus_ns, taken, NULL, NULL);
	cpu->bonus_ns = taken;
	cpu->look_ns = first_look_ns(ref.vm);
	ref.vcpu->turn_ran_ns = 0;
	ref.vcpu->in_turn = 1;
	return 0;
}

/* `vcpu` is the one of that index: most looks need no more of it. */
__noinline int decide(__u32 index, struct ecs_vcpu *vcpu __arg_nonnull,
		      const struct ecs_input *in __arg_nonnull,
		      struct ecs_decision *decision __arg_nonnull)
{
	__u32 vm_index = index / ECS_MAX_VCPUS;
	struct vcpu_ref ref = { .vcpu = vcpu, .index = index };
	__u64 used_ns, seq;
	bool extended = ecs_turn_is_extended(&vcpu->turn);
	bool alone = ecs_turn_decide_alone(decision, &vcpu->turn, policy(), &vcpu->state, in);

	/* A replay wants every operation in its place among all others. */
	if (alone && !setup.record)
		goto out;
	ref.vm = vm_at(vm_index);
	ref.lock = bpf_map_lookup_elem(&locks, &vm_index);
	if (!ref.vm || !ref.lock)
		return -1;
	seq = open_books(&ref);
	used_ns = ref.vm->vm.ledger.extension_ns;
	if (!alone)
		ecs_turn_decide_booked(decision, &vcpu->turn, policy(), &ref.vm->vm, &vcpu->state, in);
	used_ns = ref.vm->vm.ledger.extension_ns - used_ns;
	close_books(&ref);
	record(&ref, ECS_OP_DECIDE, seq, 0, 0, in, decision);
	if (extended && !ecs_turn_is_extended(&ref.vcpu->turn)) {
		ref.vcpu->extension_ns = used_ns;
		observe_extension(ref.vcpu->section, used_ns);
	}
	if (decision->kind == ECS_EXTEND) {
		ref.vcpu->grants++;
		ref.vcpu->section = decision->section;
	}
out:
	vcpu->turn_ran_ns = 0;
	if (decision->kind == ECS_LEAVE)
		vcpu->in_turn = 0;
	return 0;
}

static void count_critical(struct vcpu_ref *ref, __u32 cause, __u32 section, __u64 now_ns)
{
	if (cause == ECS_CAUSE_DENIED)
		__sync_fetch_and_add(&ref->vm->critical[ECS_CAUSE_DENIED], 1);
	else if (cause == ECS_CAUSE_EXPIRED)
		__sync_fetch_and_add(&ref->vm->critical[ECS_CAUSE_EXPIRED], 1);
	else
		__sync_fetch_and_add(&ref->vm->critical[ECS_CAUSE_HOST], 1);
	ref->vcpu->critical++;
	ref->vcpu->critical_since_ns = now_ns;
	ref->vcpu->critical_section = section;
}

static void count_preemption(struct vcpu_ref *ref)
{
	ref->vcpu->preemptions++;
	__sync_fetch_and_add(&ref->vm->preemptions, 1);
	tell_preempted(ref, true);
}

/* It is on this CPU now. */
static void count_move(struct vcpu_ref *ref, __u32 cpu)
{
	struct ecs_cpu_stats *stats = stats_at(cpu);
	__u32 before = ref->vcpu->cpu;

	ref->vcpu->cpu = cpu + 1;
	if (!stats || !before || before == cpu + 1)
		return;
	stats->moves++;
	if (domain_of(before - 1) != domain_of(cpu))
		stats->far_moves++;
}

/* It is on a CPU again. */
static void count_return(struct vcpu_ref *ref, __u64 now_ns)
{
	__u64 stall_ns = ecs_sub(now_ns, ref->vcpu->critical_since_ns);
	struct ecs_cpu_stats *stats = stats_at(bpf_get_smp_processor_id());

	tell_preempted(ref, false);
	if (!ref->vcpu->critical_since_ns)
		return;
	ref->vcpu->critical_since_ns = 0;
	__sync_fetch_and_add(&ref->vm->stall_ns, stall_ns);
	if (stats)
		observe_section(stats->critical_stall, ref->vcpu->critical_section, stall_ns);
}

#endif /* ECS_TURN_H */
