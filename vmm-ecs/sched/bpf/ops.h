/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR BSD-3-Clause */
/*
 * Operations on the policy's books, given and answered as numbers: tests carry them out with
 * ecs_policy.h natively (tests/parity/driver.c) and inside the kernel (check.bpf.c), with ecs-policy,
 * and compare. Who includes this file has
 *
 *   next_number()     the next number of the operation
 *   show(number)      one number of the answer
 *   refuse()          the operation makes no sense
 *   EACH(i, nr)       a loop over 0 <= i < nr
 */
#ifndef ECS_OPS_H
#define ECS_OPS_H

#include "ecs_policy.h"

/* Powers of two: see IN(). */
#define NR_VMS		2
#define NR_VCPUS	2
#define NR_SLOTS	2
#define MAX_WALK	8

/* Which vCPU's turn it is. */
struct slot {
	struct ecs_turn turn;
	__u32 vm, vcpu, used;
};

static struct {
	struct ecs_params params;
	struct ecs_vm vms[NR_VMS];
	struct ecs_vcpu_state vcpus[NR_VMS][NR_VCPUS];
	struct slot slots[NR_SLOTS];
	/* Of one walk or pick. */
	struct ecs_snapshot snaps[MAX_WALK];
	__u32 runs[MAX_WALK];
} books;

/* A place in an array. The mask, which changes nothing, is for the verifier to see. */
#define IN(array, index) ({						\
	__u32 __at = (index);						\
									\
	__asm__ volatile("" : "+r"(__at));				\
	&(array)[__at & (sizeof(array) / sizeof((array)[0]) - 1)];	\
})

static __u32 below(__u32 limit)
{
	__u64 number = next_number();

	if (number >= limit)
		refuse();
	return (__u32)number;
}

static struct ecs_vm *next_vm(void)
{
	return IN(books.vms, below(NR_VMS));
}

static void show_books(void)
{
	__u32 i, j;

	EACH(i, NR_VMS) {
		const struct ecs_vm *vm = IN(books.vms, i);
		const struct ecs_ledger *l = &vm->ledger;
		const struct ecs_counters *c = &vm->counters;

		show(l->weight);
		show(l->vtime_ns);
		show(l->cpu_ns);
		show(l->extension_ns);
		show(l->penalty_ns);
		show(l->forgiven_ns);
		show(ecs_ledger_debt(l));
		show(c->requests);
		EACH(j, ECS_NR_SECTIONS)
			show(c->grants[j & 3]);
		EACH(j, ECS_NR_DENIALS)
			show(c->denials[j & 3]);
		EACH(j, ECS_NR_OUTCOMES)
			show(c->ended[j & 3]);
		show(c->running);
		show(c->stepped_aside);
		show(c->handed_back);
		EACH(j, NR_VCPUS) {
			const struct ecs_vcpu_state *vcpu = IN(*IN(books.vcpus, i), j);

			show(vcpu->cooldown);
			show(vcpu->streak);
			show(vcpu->credit_ns);
		}
	}
	EACH(i, NR_SLOTS) {
		const struct slot *slot = IN(books.slots, i);

		show(slot->used);
		show(slot->used ? ecs_turn_left(&slot->turn) : 0);
		show(slot->used ? ecs_turn_is_extended(&slot->turn) : 0);
		show(slot->used ? slot->turn.used_ns : 0);
	}
}

static void next_snapshot(struct ecs_snapshot *snap)
{
	*snap = (struct ecs_snapshot){ 0 };
	snap->non_preemptable = (__u8)below(2);
	snap->preemptable = (__u8)below(2);
	snap->blocked = (__u8)below(2);
	snap->idle = (__u8)below(2);
	snap->wait = below(ECS_WAIT_ENDED + 1);
	snap->holder = below(1 << 16);
	snap->lock = next_number();
}

static void set_params(void)
{
	struct ecs_params *params = &books.params;

	params->slice_ns = next_number();
	params->extension_ns = next_number();
	params->budget_ns = next_number();
	params->cooldown_max = below(ECS_U32_MAX);
	params->extensions = (__u8)below(2);
	params->queue_rules = (__u8)below(2);
}

/* A new VM in the place of another. */
static void new_vm(void)
{
	__u32 index = below(NR_VMS), weight = below(ECS_U32_MAX), i;
	struct ecs_vm *vm = IN(books.vms, index);

	*vm = (struct ecs_vm){ .enabled = 1 };
	ecs_ledger_new(&vm->ledger, weight, next_number());
	EACH(i, NR_VCPUS)
		*IN(*IN(books.vcpus, index), i) = (struct ecs_vcpu_state){ 0 };
	EACH(i, NR_SLOTS)
		if (IN(books.slots, i)->vm == index)
			IN(books.slots, i)->used = 0;
}

static void begin(void)
{
	struct slot *slot = IN(books.slots, below(NR_SLOTS));
	__u32 vm = below(NR_VMS), vcpu = below(NR_VCPUS);

	slot->vm = vm;
	slot->vcpu = vcpu;
	slot->used = 1;
	show(ecs_turn_start(&slot->turn, &books.params, IN(books.vms, vm),
			    IN(*IN(books.vcpus, vm), vcpu), next_number()));
}

static void look(void)
{
	struct slot *slot = IN(books.slots, below(NR_SLOTS));
	struct ecs_input in = { 0 };
	struct ecs_decision d;

	in.event = below(ECS_EVENT_BLOCKED + 1);
	in.ran_ns = next_number();
	next_snapshot(&in.snap);
	in.queue = below(ECS_QUEUE_UNKNOWN + 1);
	in.others = (__u8)below(2);
	in.urgent = (__u8)below(2);
	if (!slot->used)
		return;
	ecs_turn_decide(&d, &slot->turn, &books.params, IN(books.vms, slot->vm),
			IN(*IN(books.vcpus, slot->vm), slot->vcpu), &in);
	show(d.kind);
	show(d.for_ns);
	show(d.leave);
	show(d.section);
	show(d.denial);
	if (d.kind == ECS_LEAVE)
		slot->used = 0;
}

static void walk_queue(void)
{
	__u32 nr = below(MAX_WALK + 1), me = below(MAX_WALK), place, i;
	struct ecs_queue_walk walk;
	struct ecs_snapshot own;

	EACH(i, nr) {
		next_snapshot(IN(books.snaps, i));
		*IN(books.runs, i) = below(2);
	}
	if (me >= nr)
		refuse();
	own = *IN(books.snaps, me);
	place = ecs_queue_begin(&walk, &own);
	if (place == ECS_QUEUE_UNKNOWN) {
		EACH(i, nr)
			if (i != me)
				ecs_queue_see(&walk, &own, i, IN(books.snaps, i),
					      *IN(books.runs, i));
		place = ecs_queue_end(&walk, &own);
	}
	show(place);
}

static void pick(void)
{
	__u32 nr = below(MAX_WALK + 1), first = 0, i;
	struct ecs_candidate best = { 0 };

	EACH(i, nr) {
		struct ecs_candidate c = { 0 };

		c.vm_vtime_ns = next_number();
		c.vcpu_cpu_ns = next_number();
		c.rank = below(ECS_RANK_HOPELESS + 1);
		if (!i || ecs_is_before(&c, &best, &books.params)) {
			best = c;
			first = i;
		}
	}
	show(first);
}

static void charge(void)
{
	struct ecs_vm *vm = next_vm();

	ecs_ledger_charge(&vm->ledger, next_number());
}

static void set_weight(void)
{
	struct ecs_vm *vm = next_vm();

	ecs_ledger_set_weight(&vm->ledger, below(ECS_U32_MAX));
}

static void wake_up(void)
{
	struct ecs_vm *vm = next_vm();
	__u64 vclock_ns = next_number();

	ecs_ledger_wake(&vm->ledger, vclock_ns, next_number());
}

static void rein(void)
{
	struct ecs_vm *vm = next_vm();
	__u64 vclock_ns = next_number();

	ecs_ledger_rein(&vm->ledger, vclock_ns, next_number(), &books.params);
}

static void enable(void)
{
	struct ecs_vm *vm = next_vm();

	vm->enabled = below(2);
}

static void urgent(void)
{
	__u64 head_ns = next_number();

	show(ecs_is_urgent(head_ns, next_number()));
}

/* Before the first operation of a history. */
static void start_books(void)
{
	__u32 i, j;

	EACH(i, NR_VMS) {
		struct ecs_vm *vm = IN(books.vms, i);

		*vm = (struct ecs_vm){ .enabled = 1 };
		ecs_ledger_new(&vm->ledger, 1, 0);
		EACH(j, NR_VCPUS)
			*IN(*IN(books.vcpus, i), j) = (struct ecs_vcpu_state){ 0 };
	}
	EACH(i, NR_SLOTS)
		*IN(books.slots, i) = (struct slot){ 0 };
}

/* Carries one operation out, by its letter; shows the result, and all books after it. */
static void apply(char op)
{
	switch (op) {
	case 'P':
		set_params();
		break;
	case 'N':
		new_vm();
		break;
	case 'B':
		begin();
		break;
	case 'L':
		look();
		break;
	case 'C':
		charge();
		break;
	case 'W':
		set_weight();
		break;
	case 'K':
		wake_up();
		break;
	case 'I':
		rein();
		break;
	case 'E':
		enable();
		break;
	case 'F':
		show(ecs_ledger_forgive(&next_vm()->ledger));
		break;
	case 'A':
		ecs_vm_abort_extension(next_vm());
		break;
	case 'Q':
		walk_queue();
		break;
	case 'R':
		pick();
		break;
	case 'U':
		urgent();
		break;
	default:
		refuse();
	}
	show_books();
}

#endif /* ECS_OPS_H */
