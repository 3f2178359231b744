/* SPDX-License-Identifier: GPL-2.0 */
/*
 * vCPUs that call each other and spin for the answer, as for a TLB shoot-down. What such a vCPU waits for
 * is a sibling, not a lock: nothing dissolves when it steps aside. And while it spins it answers
 * calls itself: of two that run, each may be useless as a caller and needed by the other one. So its
 * place is found by who waits for whom, and the vCPUs of such a VM run at the same time.
 */
#ifndef ECS_ANSWERS_H
#define ECS_ANSWERS_H

#include "guest.h"
#include "maps.h"

/* Turns for which a VM whose vCPUs were seen to wait for answers counts as such. */
#define ANSWERS_TURNS	16

/* What a walk over the siblings of a spinner finds. */
#define ANSWERS_LOCK		1	/* what it waits for is a lock: one of them holds it, or wants it, too */
#define ANSWERS_CALLED_RUNS	2	/* the sibling it waits for is on a CPU */
#define ANSWERS_CALLED_WAITS	4	/* that one is off the CPU with work to do */
#define ANSWERS_OWED		8	/* a sibling on a CPU waits for answers of this spinner's own */

/*
 * The place of a spinner that waits for what one sibling does, and for no lock: it makes way only if that
 * one is off the CPU, and nobody on a CPU waits for the spinner. -1 where it waits for something else.
 */
__noinline int place_among_answers(__u32 index, const struct ecs_snapshot *own __arg_nonnull)
{
	__u32 vm_index = index / ECS_MAX_VCPUS, base = vm_index * ECS_MAX_VCPUS, nr = nr_vcpus_of(vm_index);
	struct ecs_vcpu *self = vcpu_at(index);
	struct ecs_vm_state *vm = vm_at(vm_index);
	__u64 found;
	int i;

	if (!self || !vm || own->wait != ECS_WAIT_PENDING || !own->holder)
		return -1;
	/* Zero, which the verifier does not know: else it follows every combination of bits by itself. */
	found = vm->reserved1;
	bpf_for(i, 0, nr) {
		struct ecs_vcpu *vcpu = vcpu_at(base + i);
		struct ecs_snapshot other;

		if (!vcpu || base + i == index)
			continue;
		read_snapshot(base + i, NULL, NULL, true, &other);
		if (other.wait >= ECS_WAIT_PENDING && other.lock == own->lock)
			found |= ANSWERS_LOCK;
		if (own->holder == (__u32)i + 1) {
			if (ecs_holds(&other) && !ecs_spins(&other))
				found |= ANSWERS_LOCK;
			found |= vcpu->running ? ANSWERS_CALLED_RUNS :
				 vcpu->runnable ? ANSWERS_CALLED_WAITS : 0;
		}
		/* Between two calls it is not seen to wait, and will call again. */
		if (vcpu->running && base + vcpu->called == index + 1)
			found |= ANSWERS_OWED;
	}
	if (found & ANSWERS_LOCK)
		return -1;
	self->called = own->holder;
	vm->answers = ANSWERS_TURNS;
	return found == ANSWERS_CALLED_WAITS ? ECS_QUEUE_HOPELESS : ECS_QUEUE_UNKNOWN;
}

/*
 * A spinner names a sibling that holds nothing, and nobody else holds or was handed what it waits for: it
 * waits for an answer, unless it has it by now.
 */
__noinline int note_answers(__u32 index)
{
	struct ecs_vm_state *vm = vm_at(index / ECS_MAX_VCPUS);
	struct ecs_snapshot again;

	read_snapshot(index, NULL, NULL, true, &again);
	if (vm && again.wait == ECS_WAIT_PENDING && again.holder)
		vm->answers = ANSWERS_TURNS;
	return 0;
}

/*
 * This CPU turns to a VM whose vCPUs wait for answers of each other: others turn to it, too, as many as it
 * has vCPUs that wait. Those of a VM of the same kind, which is of little use on fewer CPUs, do so as soon as
 * they are not behind; those of others, a slice and more ahead of it.
 */
static __always_inline void gather(__u32 here, __u32 vm_index, __s32 nr_queued)
{
	const struct ecs_vm_state *vm = vm_at(vm_index);
	__u64 vtime_ns;
	int i;

	if (!vm || !vm->answers)
		return;
	vtime_ns = vm->vm.ledger.vtime_ns;
	bpf_for(i, 0, setup.nr_cpus) {
		struct ecs_cpu *state = cpu_state(i);
		struct vcpu_ref ref;

		if (nr_queued <= 0)
			break;
		if ((__u32)i == here || !state || !find_vcpu(&ref, state->vcpu) ||
		    ref.vm_index == vm_index ||
		    !ecs_is_urgent(ref.vm->answers ? vtime_ns : ecs_add(vtime_ns, setup.params.slice_ns),
				   ref.vm->vm.ledger.vtime_ns))
			continue;
		state->gathered = vm_index + 1;
		scx_bpf_kick_cpu(i, SCX_KICK_PREEMPT);
		nr_queued--;
	}
}

#endif /* ECS_ANSWERS_H */
