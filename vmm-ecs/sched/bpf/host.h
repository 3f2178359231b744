/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Threads of the host that are no vCPUs. Each is an entity of weighted virtual time of its own, and those of
 * one cgroup together are no more than one: `cpu.weight` says how much that is, and how much all is that is
 * in the cgroups around it.
 */
#ifndef ECS_HOST_H
#define ECS_HOST_H

#include "cgroups.h"
#include "maps.h"

/* Queues: of a VM, by its number; of the host; of those whose cgroup has used up its limit, by the time when
 * they may run again; of what may run on one CPU only.
 */
#define DSQ_VM		0x1000ULL
#define DSQ_HOST	0x2000ULL
#define DSQ_LIMITED	0x2001ULL
#define DSQ_PINNED	0x10000ULL

/* A host task's turn, ns: short, since many share one queue. */
#define HOST_SLICE_NS	1000000ULL
/* What a cgroup can run on a CPU before others have their turn, ns: slices end at ticks. */
#define HOST_LEASH_NS	20000000ULL

static __u32 weight_of(const struct task_struct *p)
{
	return weight_in(cgroup_of(p), p->scx.weight);
}

static __u64 weigh_ns(__u64 ns, __u32 weight)
{
	return ecs_mul(ns, ECS_WEIGHT_DEFAULT) / (weight ? weight : 1);
}

/* How far a thread may stand ahead of whom it waits for, ns of virtual time. */
static __u64 leash_ns(__u32 weight)
{
	return ecs_min(weigh_ns(HOST_LEASH_NS * setup.nr_cpus, weight), ECS_LEASH_MAX_NS);
}

/* Where a thread stands in the queue, whose own virtual time is `place_ns`: no sooner than its cgroup does, but
 * for who wakes up.
 */
static __u64 place_of(const struct task_struct *p, __u64 place_ns, bool woke)
{
	__u64 slice_ns = setup.params.slice_ns, clock_ns = clock_of(scx_bpf_task_cpu(p));
	__u64 floor_ns = ecs_sub(clock_ns, slice_ns);
	const struct ecs_group *books = books_of(cgroup_of(p));

	if (books) {
		__u64 group_ns = ecs_sub(books->vtime_ns, woke ? slice_ns : 0);

		if (place_ns < group_ns)
			place_ns = group_ns;
	}
	if (place_ns < floor_ns)
		place_ns = floor_ns;
	/* Most do, and their weights need not be looked up. */
	if (place_ns <= clock_ns)
		return place_ns;
	return ecs_min(place_ns, ecs_add(clock_ns, leash_ns(weight_of(p))));
}

/* Whether the thread may not leave its CPU now. A program that runs counts on its own thread, too. */
static bool must_stay(struct task_struct *p)
{
	return p->migration_disabled > (p == bpf_get_current_task_btf());
}

static __u64 queue_of(struct task_struct *p)
{
	return p->nr_cpus_allowed == 1 || must_stay(p) ? DSQ_PINNED + (__u32)scx_bpf_task_cpu(p) : DSQ_HOST;
}

/* What a thread of the host ran goes to its virtual time, that of its cgroup, and all limits. */
static void charge_host(struct task_struct *p, __u32 cpu, __u64 ran_ns, __u64 now_ns)
{
	const struct task_group *group = cgroup_of(p);
	/* A sleeper's floor, which its place in the queue had as well. */
	__u64 clock_ns = clock_of(cpu), floor_ns = ecs_sub(clock_ns, setup.params.slice_ns), vtime_ns;
	__u32 weight = weight_of(p);
	struct ecs_group *books = books_of(group);

	vtime_ns = p->scx.dsq_vtime > floor_ns ? p->scx.dsq_vtime : floor_ns;
	vtime_ns = ecs_add(vtime_ns, weigh_ns(ran_ns, weight));
	/* Nobody is charged without end for what nobody else wanted. */
	vtime_ns = ecs_min(vtime_ns, ecs_add(clock_ns, leash_ns(weight)));
	scx_bpf_task_set_dsq_vtime(p, vtime_ns);
	if (!books)
		return;
	use_limits(group, ran_ns, now_ns);
	weight = weight_in(group, ECS_WEIGHT_DEFAULT);
	if (books->vtime_ns < floor_ns)
		books->vtime_ns = floor_ns;
	__sync_fetch_and_add(&books->vtime_ns, weigh_ns(ran_ns, weight));
	vtime_ns = ecs_add(clock_ns, leash_ns(weight));
	if (books->vtime_ns > vtime_ns)
		books->vtime_ns = vtime_ns;
}

/* Books what a thread of the host has run on a CPU since the last time. */
static void book_host(struct task_struct *p, __u32 cpu, struct ecs_cpu *state, __u64 now_ns)
{
	/* What ran when this scheduler came has no beginning: that is no time since the machine's start,
	 * which would set all other threads of the host back behind every VM.
	 */
	if (state->since_ns)
		charge_host(p, cpu, ecs_sub(now_ns, state->since_ns), now_ns);
	state->since_ns = now_ns;
}

/* Finds a thread of the host that waits for this CPU far ahead of `base_ns`. */
static void find_lost(struct ecs_cpu *state, __u32 cpu, __u64 base_ns)
{
	int i;

	for (i = 0; i < 2; i++) {
		__u64 dsq = i ? DSQ_PINNED + cpu : DSQ_HOST;
		struct task_struct *p = scx_bpf_dsq_peek(dsq);
		__u64 limit_ns;

		if (!p || (!i && !may_run(p, cpu)))
			continue;
		limit_ns = ecs_add(base_ns, leash_ns(weight_of(p)));
		if (p->scx.dsq_vtime <= limit_ns)
			continue;
		state->lost_dsq = dsq;
		state->reined_ns = limit_ns;
	}
}

#endif /* ECS_HOST_H */
