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

/* Reads all vCPUs of the first VM. */
SEC("syscall")
int check_read(void *ctx)
{
	int i;

	bpf_for(i, 0, nr_vcpus_of(0)) {
		struct check_read *read = AT(check_reads, i);
		struct ecs_snapshot snap;

		if (!read)
			break;
		read->error = read_snapshot(i, &snap);
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

	result += read_snapshot(0, &snap);
	result += snap.wait;
}))

/* The place of vCPU 0 among the vCPUs of its VM, with a look at each. */
COST(cost_queue, ({
	struct ecs_snapshot snap;

	result += read_snapshot(0, &snap);
	result += queue_place(0, &snap);
}))

COST(cost_thread, result += vcpu_number(bpf_get_current_task_btf()))

COST(cost_clock, result += bpf_ktime_get_ns())

/* A turn of vCPU 0 that begins, is looked at with nothing to decide, and ends by the slice. */
COST(cost_turn, ({
	struct ecs_input in = { .others = 1 };
	struct ecs_decision decision;

	begin_turn(0, 0);
	decide(0, &in, &decision);
	in.ran_ns = ECS_U64_MAX / 4;
	decide(0, &in, &decision);
	result += decision.kind;
}))

/* One decision that lets it run on, with its lock. */
COST(cost_decide, ({
	struct ecs_input in = { .others = 1, .ran_ns = 1 };
	struct ecs_decision decision;

	decide(0, &in, &decision);
	result += decision.kind;
}))

/* What a look that lets the vCPU run on adds at a tick or dispatch, with nobody in a queue. */
COST(cost_decision, ({
	struct ecs_input in = { .others = 1 };
	struct ecs_decision decision;
	__u64 now_ns = bpf_ktime_get_ns();

	result += vcpu_number(bpf_get_current_task_btf());
	result += read_snapshot(0, &in.snap);
	in.queue = queue_place(0, &in.snap);
	in.ran_ns = now_ns & 1;
	decide(0, &in, &decision);
	result += decision.kind;
}))

/* A line in a page that the kernel has pinned for the programs: nobody reads guests this way yet. */
COST(cost_pinned, ({
	struct ecs_thread *thread = thread_of(bpf_get_current_task_btf());
	struct virtio_ecs_host_line *line = thread ? thread->host : NULL;

	if (line) {
		result += line->granted + line->yield + line->preempted + line->overloaded;
		result += line->nr_grants + line->reserved0 + line->reserved1;
	}
}))
