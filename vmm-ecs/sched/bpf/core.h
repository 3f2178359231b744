/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Core scheduling: where VMMs ask for it, threads with different cookies (those of two VMs) are never on
 * the CPUs of one core at the same time. The kernel sees to that after dispatch: it asks each CPU of a core
 * for its thread, takes the one that comes first, and lets those wait whose cookie is another one. So
 *
 * - a thread that a CPU took from a queue may still wait, in the CPU's own queue, for its core;
 * - dispatch may be called for another CPU of the core than the one that it runs on, whose thread is then
 *   not the current one.
 */
#ifndef ECS_CORE_H
#define ECS_CORE_H

#include "maps.h"

/* CPUs of one core that are looked at. */
#define MAX_SIBLINGS	8

/* Whether a thread that has come to a CPU of this core waits for the core. */
static bool core_is_wanted(__u32 cpu)
{
	__u32 sibling = cpu;
	int i;

	if (!setup.shared_cores)
		return false;
	bpf_for(i, 0, MAX_SIBLINGS) {
		if (scx_bpf_dsq_nr_queued(SCX_DSQ_LOCAL_ON | sibling) > 0)
			return true;
		sibling = next_sibling(sibling);
		if (sibling == cpu)
			break;
	}
	return false;
}

static __u64 cookie_of(const struct task_struct *p)
{
	return bpf_core_field_exists(p->core_cookie) ? p->core_cookie : 0;
}

/* Whether a thread could run on a CPU at once, beside those that are on other CPUs of the core. */
static bool fits(const struct task_struct *p, __u32 cpu)
{
	__u32 sibling = cpu;
	int i;

	if (!setup.shared_cores || !p)
		return true;
	bpf_for(i, 0, MAX_SIBLINGS) {
		const struct ecs_cpu *state;

		sibling = next_sibling(sibling);
		if (sibling == cpu)
			break;
		state = cpu_state(sibling);
		if (state && state->occupied && state->cookie != cookie_of(p))
			return false;
	}
	return true;
}

/* A thread is on this CPU now: idle ones of the core may find others that go with it. */
static void occupy(struct ecs_cpu *state, __u32 cpu, const struct task_struct *p)
{
	__u32 sibling = cpu;
	int i;

	if (!setup.shared_cores)
		return;
	state->occupied = true;
	if (state->cookie == cookie_of(p))
		return;
	state->cookie = cookie_of(p);
	bpf_for(i, 0, MAX_SIBLINGS) {
		sibling = next_sibling(sibling);
		if (sibling == cpu)
			break;
		scx_bpf_kick_cpu(sibling, SCX_KICK_IDLE);
	}
}

/*
 * Where a thread stands among those that want a core, ns of virtual time: as it does among those that want
 * a CPU. A turn goes on until dispatch ends it: there a section is looked for, and nowhere else.
 */
static __u64 standing_ns(struct task_struct *p)
{
	struct vcpu_ref ref;

	if (!vcpu_of(&ref, p))
		return ecs_sub(p->scx.dsq_vtime, setup.params.slice_ns);
	return ref.vcpu->running && ref.vcpu->in_turn ? 0 : ref.vm->vm.ledger.vtime_ns;
}

#endif /* ECS_CORE_H */
