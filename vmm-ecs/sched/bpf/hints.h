/* SPDX-License-Identifier: GPL-2.0 */
/* What leaves the programs beside decisions: hints for guests, histograms, records for a replay. */
#ifndef ECS_HINTS_H
#define ECS_HINTS_H

#include "maps.h"

/* What a guest should know of its vCPU, written into its host line: a store, news or not. */
static void tell_preempted(struct vcpu_ref *ref, bool preempted)
{
	struct virtio_ecs_host_line *host = ref->thread ? ref->thread->host : NULL;

	if (host)
		host->preempted = preempted;
}

static void tell_overloaded(struct vcpu_ref *ref, bool overloaded)
{
	struct virtio_ecs_host_line *host = ref->thread ? ref->thread->host : NULL;

	ref->vcpu->overloaded = overloaded;
	if (host)
		host->overloaded = overloaded;
}

static void tell_granted(struct vcpu_ref *ref, bool granted)
{
	struct virtio_ecs_host_line *host = ref->thread ? ref->thread->host : NULL;

	if (!host)
		return;
	host->nr_grants = ref->vcpu->grants;
	host->granted = granted;
}

/* Asks the guest to hand its CPU back; VIRTIO_ECS_YIELD_*, 0: not any more. */
static void ask(struct vcpu_ref *ref, __u8 yield)
{
	struct virtio_ecs_host_line *host = ref->thread ? ref->thread->host : NULL;

	ref->vcpu->yield = yield;
	if (host)
		host->yield = yield;
}

static void observe(struct ecs_histogram *h, __u64 value_ns)
{
	__u64 rest = value_ns ? value_ns - 1 : 0;
	__u32 bits = 0;

	for (int shift = 32; shift; shift >>= 1) {
		if (rest >> shift) {
			rest >>= shift;
			bits += shift;
		}
	}
	bits += rest != 0;
	if (bits >= ECS_NR_BUCKETS)
		bits = ECS_NR_BUCKETS - 1;
	barrier_var(bits);
	if (bits < ECS_NR_BUCKETS)
		h->buckets[bits]++;
	h->count++;
	h->sum_ns += value_ns;
}

static void observe_section(struct ecs_histogram histograms[ECS_NR_SECTIONS], __u32 section,
			    __u64 ns)
{
	if (section == ECS_SECTION_NON_PREEMPTABLE)
		observe(&histograms[ECS_SECTION_NON_PREEMPTABLE], ns);
	else if (section == ECS_SECTION_PREEMPTABLE)
		observe(&histograms[ECS_SECTION_PREEMPTABLE], ns);
	else
		observe(&histograms[ECS_SECTION_WAIT], ns);
}

static void observe_extension(__u32 section, __u64 used_ns)
{
	struct ecs_cpu_stats *stats = stats_at(bpf_get_smp_processor_id());

	if (!stats)
		return;
	observe_section(stats->extension, section, used_ns);
	if (stats->extended_max_ns < used_ns)
		stats->extended_max_ns = used_ns;
}

/* An operation on the books, for a replay by ecs-policy; nothing unless the daemon records. */
static void record(const struct vcpu_ref *ref, __u32 op, __u64 seq, __u64 a, __u64 b,
		   const struct ecs_input *in, const struct ecs_decision *out)
{
	struct ecs_record *r;

	if (!setup.record)
		return;
	r = bpf_ringbuf_reserve(&records, sizeof(*r), 0);
	if (!r) {
		struct ecs_cpu_stats *stats = stats_at(bpf_get_smp_processor_id());

		if (stats)
			stats->records_lost++;
		return;
	}
	*r = (struct ecs_record){ .seq = seq, .a = a, .b = b, .vcpu = ref->index, .op = op };
	if (in && out) {
		r->in = *in;
		r->out = *out;
	}
	bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);
}

#endif /* ECS_HINTS_H */
