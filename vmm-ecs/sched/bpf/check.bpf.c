// SPDX-License-Identifier: GPL-2.0
/*
 * What tests and benchmarks run inside any kernel, by BPF_PROG_TEST_RUN: the policy's header on given
 * operations, reads of guest memory, and the cost of each. No part of the scheduler.
 */
/* Only part of it is used here. */
#pragma clang diagnostic ignored "-Wunused-function"
#include "turn.h"

#define EACH(i, nr)	bpf_for(i, 0, nr)

#define MAX_OPS		4096
#define OP_NUMBERS	128
#define ANSWER_NUMBERS	128

char _license[] SEC("license") = "GPL";

/* ---- operations: see ops.h ---- */

struct check_op {
	__u64 letter;
	__u64 numbers[OP_NUMBERS];
};

struct check_answer {
	__u64 nr;
	__u64 numbers[ANSWER_NUMBERS];
};

struct check_op check_ops[MAX_OPS];
struct check_answer check_answers[MAX_OPS];
__u32 nr_check_ops;
/* The first of them begins a history. */
__u32 anew;
/* Operations that made no sense. */
__u32 nr_refused;

/* The operation at work, and how many of its numbers have been taken. */
__u32 current_op;
__u32 taken;

/* Global functions are verified once each, not once for every path that leads to them. */
__noinline __u64 next_number(void)
{
	const struct check_op *op = AT(check_ops, current_op);
	__u32 at = taken++;

	barrier_var(at);
	return op ? op->numbers[at & (OP_NUMBERS - 1)] : 0;
}

__noinline int show(__u64 number)
{
	struct check_answer *answer = AT(check_answers, current_op);
	__u64 at;

	if (!answer)
		return -1;
	at = answer->nr++;
	barrier_var(at);
	answer->numbers[at & (ANSWER_NUMBERS - 1)] = number;
	return 0;
}

static void refuse(void)
{
	nr_refused++;
}

#include "ops.h"

__noinline int apply_current(void)
{
	const struct check_op *op = AT(check_ops, current_op);
	struct check_answer *answer = AT(check_answers, current_op);

	if (!op || !answer)
		return -1;
	taken = 0;
	answer->nr = 0;
	apply(op->letter);
	return 0;
}

SEC("syscall")
int check_apply(void *ctx)
{
	int i;

	if (anew)
		start_books();
	nr_refused = 0;
	bpf_for(i, 0, nr_check_ops) {
		current_op = i;
		apply_current();
	}
	return 0;
}

/* ---- reads of guest memory, in the process that runs the program ---- */

#define MAX_READS	ECS_MAX_VCPUS

struct check_read {
	struct ecs_snapshot snap;
	__s32 error;
	__u32 reserved;
};

struct check_read check_reads[MAX_READS];

/* Reads all vCPUs of the first VM; the words of the one that the caller is are pinned. */
SEC("syscall")
int check_read(void *ctx)
{
	struct ecs_thread *thread = thread_of(bpf_get_current_task_btf());
	int i;

	bpf_for(i, 0, nr_vcpus_of(0)) {
		struct check_read *read = AT(check_reads, i);
		bool own = thread && thread->number == (__u32)i + 1;
		struct ecs_snapshot snap;

		if (!read)
			break;
		read->error = read_snapshot(i, own ? thread->line : NULL, own ? thread->word : NULL,
					    true, &snap);
		read->snap = snap;
	}
	return 0;
}

/* ---- costs: each in a loop of `nr_rounds` ---- */

__u32 nr_rounds;
__u64 cost_ns;
/* What the work gave, so that it is done. */
__u64 cost_result;

#define COST(name, work)						\
	SEC("syscall")							\
	int name(void *ctx)						\
	{								\
		__u64 since_ns = bpf_ktime_get_ns(), result = 0;	\
		int i;							\
									\
		bpf_for(i, 0, nr_rounds) {				\
			work;						\
		}							\
		cost_ns = bpf_ktime_get_ns() - since_ns;		\
		cost_result = result;					\
		return 0;						\
	}

COST(cost_nothing, result += i)

/* Of vCPU 0: what is in its line is the caller's choice. */
COST(cost_read, ({
	struct ecs_snapshot snap;

	result += read_snapshot(0, NULL, NULL, true, &snap);
	result += snap.wait;
}))

/* The place of vCPU 0 among the vCPUs of its VM, with a look at each. */
COST(cost_queue, ({
	struct ecs_snapshot snap;

	result += read_snapshot(0, NULL, NULL, true, &snap);
	result += queue_place(0, &snap);
}))

COST(cost_thread, result += vcpu_number(bpf_get_current_task_btf()))

COST(cost_clock, result += bpf_ktime_get_ns())

/* The caller's own words, pinned. */
COST(cost_pinned, ({
	struct ecs_thread *thread = thread_of(bpf_get_current_task_btf());
	struct ecs_snapshot snap;

	if (thread) {
		result += read_snapshot(0, thread->line, thread->word, true, &snap);
		result += snap.non_preemptable;
	}
}))

/* What is added at a tick or dispatch, with nobody in a queue, when the vCPU has run for `ran_ns`. */
static __u64 whole_look(__u64 ran_ns)
{
	struct ecs_input in = { .others = 1 };
	struct ecs_decision decision;
	__u64 now_ns = bpf_ktime_get_ns();
	struct vcpu_ref ref;

	if (!vcpu_of(&ref, bpf_get_current_task_btf()))
		return 0;
	look_at(&ref, true, &in.snap);
	in.queue = queue_place(ref.index, &in.snap);
	in.ran_ns = ran_ns + (now_ns & 1);
	decide(ref.index, ref.vcpu, &in, &decision);
	return decision.kind;
}

COST(cost_begin, result += begin_turn(0, 0))

/* The turn goes on. */
COST(cost_look, result += whole_look(0))

/* It is over. */
COST(cost_end, result += whole_look(ECS_U64_MAX / 4))
