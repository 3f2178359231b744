/* SPDX-License-Identifier: GPL-2.0 */
/* Threads of the host whose cgroup has used up its limit: they wait apart, and a timer lets them go on. */
#ifndef ECS_LIMITED_H
#define ECS_LIMITED_H

#include "host.h"
#include "queues.h"

/* The timer is late by no more than this where two CPUs set it at once, ns. */
#define REFILL_MOST_NS	4000000ULL
/* Time that it has to let threads go on, before others of its CPU have theirs, ns. */
#define REFILL_BATCH_NS	200000ULL

struct ecs_refill {
	struct bpf_timer timer;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ecs_refill);
} refills SEC(".maps");

static void start_refill(struct ecs_refill *refill, __u64 until_ns, __u64 now_ns)
{
	bpf_timer_start(&refill->timer, ecs_min(ecs_sub(until_ns, now_ns), REFILL_MOST_NS), 0);
}

/* Lets a thread wait until then. */
static void wait_for_limit(struct task_struct *p, __u64 until_ns, __u64 now_ns, __u64 enq_flags)
{
	struct task_struct *head = scx_bpf_dsq_peek(DSQ_LIMITED);
	struct ecs_refill *refill;
	__u32 key = 0;

	scx_bpf_dsq_insert_vtime(p, DSQ_LIMITED, HOST_SLICE_NS, until_ns, enq_flags);
	if (head)
		until_ns = ecs_min(until_ns, head->scx.dsq_vtime);
	refill = bpf_map_lookup_elem(&refills, &key);
	if (refill)
		start_refill(refill, until_ns, now_ns);
}

/* An idle CPU comes for a thread at once; otherwise its own one, from a vCPU that is far enough ahead of it or
 * runs without an end in sight.
 */
static void call_soon(struct task_struct *p, __u64 vtime_ns)
{
	bool is_idle = false;
	__s32 cpu = scx_bpf_select_cpu_dfl(p, scx_bpf_task_cpu(p), 0, &is_idle);
	const struct ecs_cpu *state = cpu_state(cpu);

	if (is_idle)
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
	else if (state && state->endless)
		scx_bpf_kick_cpu(cpu, SCX_KICK_PREEMPT);
	else
		press(p, vtime_ns);
}

/* Who may run again comes as one who wakes up. */
static int limits_refilled(void *map, __u32 *key, struct ecs_refill *refill)
{
	__u64 now_ns = bpf_ktime_get_ns(), next_ns = 0, vtime_ns;
	struct task_struct *p;

	bpf_for_each(scx_dsq, p, DSQ_LIMITED, 0) {
		if (p->scx.dsq_vtime > now_ns || bpf_ktime_get_ns() - now_ns > REFILL_BATCH_NS) {
			next_ns = p->scx.dsq_vtime;
			break;
		}
		vtime_ns = place_of(p, 0, true);
		scx_bpf_dsq_move_set_vtime(&___it /* of bpf_for_each */, vtime_ns);
		if (!scx_bpf_dsq_move_vtime(&___it, p, queue_of(p), 0))
			continue;
		call_soon(p, vtime_ns);
	}
	if (next_ns)
		start_refill(refill, next_ns, now_ns);
	return 0;
}

#endif /* ECS_LIMITED_H */
