/* SPDX-License-Identifier: GPL-2.0 */
/* A vCPU runs until the next look, which finds out whether it stays. */
#ifndef ECS_LOOKS_H
#define ECS_LOOKS_H

#include "queues.h"

static void set_endless(struct ecs_cpu *cpu, bool endless)
{
	if (cpu->endless == endless)
		return;
	cpu->endless = endless;
	__sync_fetch_and_add(&nr_endless, endless ? 1 : -1);
}

/* The vCPU runs on until the next look; `for_ns` of it at most. */
static void let_run(struct task_struct *p, struct ecs_cpu *cpu, bool watched, __u64 for_ns,
		    __u64 now_ns)
{
	cpu->end_ns = now_ns + for_ns;
	cpu->ends_with_section = watched;
	set_endless(cpu, false);
	/* The timer ends it; the tick, which is coarser, only where the timer fails. */
	scx_bpf_task_set_slice(p, for_ns);
	bpf_timer_start(&cpu->timer, ecs_min(for_ns, cpu->look_ns), TIMER_CPU_PIN);
}

/* Nobody waits: it runs until somebody does, unwatched. */
static void let_run_on(struct task_struct *p, struct ecs_cpu *cpu)
{
	cpu->end_ns = 0;
	cpu->ends_with_section = false;
	/* A timer that is still set finds nothing to do. */
	scx_bpf_task_set_slice(p, SCX_SLICE_INF);
	set_endless(cpu, true);
}

/*
 * Whether spinners without hope leave their CPUs: not where their VM is so far behind the one before it
 * that its vCPUs are about to run all at once (docs/adr/0010-together.md).
 */
static bool steps_aside(const struct vcpu_ref *ref, const struct ecs_cpu *state)
{
	__u64 together_ns = ecs_mul(TOGETHER_SLICES, setup.params.slice_ns);

	return setup.step_aside && ecs_add(ref->vm->vm.ledger.vtime_ns, together_ns) >= state->before_ns;
}

/* `p` is the vCPU's thread. The kernel may ask about it on another CPU: there its VMM's memory is not seen. */
static void look_and_place(struct task_struct *p, struct vcpu_ref *ref, const struct ecs_cpu *state,
			   struct ecs_input *in)
{
	bool at_hand = p == bpf_get_current_task_btf();

	look_at(ref, at_hand, &in->snap);
	in->queue = state->gives ? ECS_QUEUE_HOPELESS :
		    at_hand ? queue_place(ref->index, &in->snap) : ECS_QUEUE_UNKNOWN;
	if (in->queue == ECS_QUEUE_HOPELESS && !steps_aside(ref, state))
		in->queue = ECS_QUEUE_UNKNOWN;
	ref->vcpu->rank = in->queue == ECS_QUEUE_HOPELESS ? ECS_RANK_HOPELESS :
			  ecs_holds(&in->snap) || in->queue == ECS_QUEUE_HEAD ? ECS_RANK_HEAD :
			  ECS_RANK_READY;
}

/* What a guest is asked for: to leave its section as it ends, and not to spin for what stands still. */
static __u8 wanted_of(const struct ecs_vm_state *vm, bool watched)
{
	__u8 wanted = watched ? VIRTIO_ECS_YIELD_RELEASE : 0;

	if (setup.params.queue_rules && vm->stuck && !vm->answers)
		wanted |= VIRTIO_ECS_YIELD_RELEASE | VIRTIO_ECS_YIELD_HOPELESS;
	return wanted;
}

/* Whether the vCPU here has a reason to stay, found out without a word to the policy. */
static bool stays(struct task_struct *current, struct ecs_cpu *state, __u64 now_ns)
{
	struct ecs_snapshot snap;
	struct vcpu_ref ref;
	__u32 place;

	if (now_ns >= state->end_ns || !vcpu_of(&ref, current))
		return false;
	look_at(&ref, true, &snap);
	place = queue_place(ref.index, &snap);
	survey(ref.index, &snap, false);
	ask(&ref, wanted_of(ref.vm, state->ends_with_section));
	/* An extension is watched all the time, a slice less and less. */
	if (!state->ends_with_section && (!ref.vm->stuck || ref.vm->answers))
		state->look_ns = ecs_mul(state->look_ns, 2);
	if (place == ECS_QUEUE_HOPELESS && setup.params.queue_rules && steps_aside(&ref, state))
		return false;
	return !state->ends_with_section ||
	       ecs_section_of(policy(), &snap, place) != ECS_SECTION_NONE;
}

/* The end of a slice or of an extension, a look in between, or the end of a VM's limit. */
static int timer_fired(void *map, __u32 *cpu, struct ecs_cpu *state)
{
	__u64 now_ns = bpf_ktime_get_ns();
	struct task_struct *current = bpf_get_current_task_btf();

	if (!state->vcpu) {
		scx_bpf_kick_cpu(*cpu, SCX_KICK_IDLE);
		return 0;
	}
	if (state->endless)
		return 0;
	if (state->rung || (__u32)current->pid != state->tid || !stays(current, state, now_ns)) {
		scx_bpf_kick_cpu(*cpu, SCX_KICK_PREEMPT);
		return 0;
	}
	bpf_timer_start(&state->timer, ecs_min(state->end_ns - now_ns, state->look_ns),
			TIMER_CPU_PIN);
	return 0;
}

#endif /* ECS_LOOKS_H */
