/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What cgroups say, where the kernel keeps it: `cpu.weight`, of which threads that are no vCPUs have their
 * share (a VM's is the daemon's word), and `cpu.max`, which holds for vCPUs as well.
 */
#ifndef ECS_CGROUPS_H
#define ECS_CGROUPS_H

#include "maps.h"

/* Levels of cgroups that are looked at. */
#define MAX_DEPTH	8
/* A cgroup without a limit. */
#define NO_QUOTA	ECS_U64_MAX
/* Periods, of a second at most, that anybody waits for a limit at a time: the kernel ends a scheduler under which a
 * thread waits for ten seconds, and slices end at ticks, however small a limit is.
 */
#define MAX_PERIODS	3

struct ecs_group {
	__u64 vtime_ns;		/* of its threads that are no vCPUs */
	__u64 period_since_ns;	/* the period of its limit that runs, and what it used of it */
	__u64 period_used_ns;
};

/* The key is the place of the cgroup's struct task_group. One that is forgotten begins anew. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct ecs_group);
} groups SEC(".maps");

/* The cgroup of a thread; NULL for the root's, which has neither weight nor limit. */
static struct task_group *cgroup_of(const struct task_struct *p)
{
	struct task_group *group;

	if (!bpf_core_field_exists(p->sched_task_group) ||
	    !bpf_core_field_exists(((struct task_group *)0)->scx))
		return NULL;
	group = p->sched_task_group;
	return group && group->parent ? group : NULL;
}

static struct ecs_group *books_of(const struct task_group *group)
{
	__u64 key = (__u64)group;
	struct ecs_group new = { 0 };
	struct ecs_group *books;

	if (!group)
		return NULL;
	books = bpf_map_lookup_elem(&groups, &key);
	if (books)
		return books;
	bpf_map_update_elem(&groups, &key, &new, BPF_NOEXIST);
	return bpf_map_lookup_elem(&groups, &key);
}

/*
 * `weight` among all of the host, inside of this cgroup. Functions that walk take what the verifier does not
 * know, and are verified once each instead of for every path that leads to them.
 */
__noinline __u32 weight_in(const struct task_group *group __arg_untrusted, __u32 weight)
{
	__u64 scaled = (__u64)weight << 10;
	int i;

	bpf_for(i, 0, MAX_DEPTH) {
		if (!group || !group->parent)
			break;
		scaled = scaled * (group->scx.idle ? 1 : group->scx.weight) / ECS_WEIGHT_DEFAULT;
		group = group->parent;
	}
	scaled >>= 10;
	return scaled > ECS_U32_MAX ? ECS_U32_MAX : scaled ? scaled : 1;
}

static bool has_limit(const struct task_group *group)
{
	return bpf_core_field_exists(group->scx.bw_quota_us) && group->scx.bw_quota_us != NO_QUOTA &&
	       group->scx.bw_quota_us && group->scx.bw_period_us;
}

/* Whether a limit holds in this cgroup: its own, or that of one around it. */
__noinline bool is_limited(const struct task_group *group __arg_untrusted)
{
	int i;

	bpf_for(i, 0, MAX_DEPTH) {
		if (!group || !group->parent)
			break;
		if (has_limit(group))
			return true;
		group = group->parent;
	}
	return false;
}

/* A thread of this cgroup ran: that counts in every limit. */
__noinline int use_limits(const struct task_group *group __arg_untrusted, __u64 ran_ns, __u64 now_ns)
{
	int i;

	bpf_for(i, 0, MAX_DEPTH) {
		__u64 period_ns, gone, since_ns;
		struct ecs_group *books;

		if (!group || !group->parent)
			break;
		books = has_limit(group) ? books_of(group) : NULL;
		if (books) {
			period_ns = group->scx.bw_period_us * 1000;
			since_ns = books->period_since_ns;
			gone = period_ns ? ecs_sub(now_ns, since_ns) / period_ns : 0;
			/* What it ran too much in one period is missing in the next. One CPU turns the page. */
			if (gone && __sync_val_compare_and_swap(&books->period_since_ns, since_ns,
								since_ns + gone * period_ns) == since_ns)
				books->period_used_ns = ecs_sub(books->period_used_ns,
								ecs_mul(gone, group->scx.bw_quota_us * 1000));
			__sync_fetch_and_add(&books->period_used_ns, ran_ns);
		}
		group = group->parent;
	}
	return 0;
}

/* When a thread of this cgroup may run again, whose limit is used up; 0: it may run. */
__noinline __u64 limited_until(const struct task_group *group __arg_untrusted, __u64 now_ns)
{
	__u64 until_ns = 0;
	int i;

	bpf_for(i, 0, MAX_DEPTH) {
		__u64 quota_ns, end_ns;
		const struct ecs_group *books;

		if (!group || !group->parent)
			break;
		books = has_limit(group) ? books_of(group) : NULL;
		quota_ns = group->scx.bw_quota_us * 1000;
		if (books && quota_ns && books->period_used_ns >= quota_ns) {
			end_ns = books->period_since_ns +
				 ecs_min(books->period_used_ns / quota_ns, MAX_PERIODS) *
					 group->scx.bw_period_us * 1000;
			if (end_ns > now_ns && end_ns > until_ns)
				until_ns = end_ns;
		}
		group = group->parent;
	}
	return until_ns;
}

#endif /* ECS_CGROUPS_H */
