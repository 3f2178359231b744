// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR BSD-3-Clause
/*
 * Reads one operation a line, a letter and numbers, carries it out with ecs_policy.h, and prints the
 * result and all books after it. tests/parity.rs does the same with ecs-policy and compares.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "ecs_policy.h"

#define NR_VMS		2
#define NR_VCPUS	2
#define NR_SLOTS	2
#define MAX_WALK	8

static struct ecs_params params;
static struct ecs_vm vms[NR_VMS];
static struct ecs_vcpu_state vcpus[NR_VMS][NR_VCPUS];
static struct {
	struct ecs_turn turn;
	unsigned int vm, vcpu, used;
} slots[NR_SLOTS];

static __u64 next(void)
{
	uint64_t number;

	if (scanf("%" SCNu64, &number) != 1)
		exit(2);
	return number;
}

static unsigned int below(unsigned int limit)
{
	__u64 number = next();

	if (number >= limit)
		exit(3);
	return (unsigned int)number;
}

static void show(__u64 number)
{
	printf(" %" PRIu64, (uint64_t)number);
}

static void show_all(const __u64 *numbers, int nr)
{
	for (int i = 0; i < nr; i++)
		show(numbers[i]);
}

static void show_books(void)
{
	for (int i = 0; i < NR_VMS; i++) {
		const struct ecs_ledger *l = &vms[i].ledger;
		const struct ecs_counters *c = &vms[i].counters;

		printf(" | vm");
		show(l->weight);
		show(l->vtime_ns);
		show(l->cpu_ns);
		show(l->extension_ns);
		show(l->penalty_ns);
		show(l->forgiven_ns);
		show(ecs_ledger_debt(l));
		show(c->requests);
		show_all(c->grants, ECS_NR_SECTIONS);
		show_all(c->denials, ECS_NR_DENIALS);
		show_all(c->ended, ECS_NR_OUTCOMES);
		show(c->running);
		show(c->stepped_aside);
		show(c->handed_back);
		for (int j = 0; j < NR_VCPUS; j++) {
			show(vcpus[i][j].cooldown);
			show(vcpus[i][j].streak);
			show(vcpus[i][j].credit_ns);
		}
	}
	for (int i = 0; i < NR_SLOTS; i++) {
		printf(" | turn");
		if (!slots[i].used)
			continue;
		show(ecs_turn_left(&slots[i].turn));
		show(ecs_turn_is_extended(&slots[i].turn));
		show(slots[i].turn.used_ns);
	}
	printf("\n");
}

static struct ecs_snapshot read_snapshot(void)
{
	struct ecs_snapshot snap = { 0 };

	snap.non_preemptable = (__u8)below(2);
	snap.preemptable = (__u8)below(2);
	snap.blocked = (__u8)below(2);
	snap.idle = (__u8)below(2);
	snap.wait = below(ECS_WAIT_ENDED + 1);
	snap.holder = below(1 << 16);
	snap.lock = next();
	return snap;
}

static void look(void)
{
	unsigned int slot = below(NR_SLOTS);
	struct ecs_input in = { 0 };
	struct ecs_decision d;

	in.event = below(ECS_EVENT_BLOCKED + 1);
	in.ran_ns = next();
	in.snap = read_snapshot();
	in.queue = below(ECS_QUEUE_UNKNOWN + 1);
	in.others = (__u8)below(2);
	in.urgent = (__u8)below(2);
	if (!slots[slot].used)
		return;
	ecs_turn_decide(&d, &slots[slot].turn, &params, &vms[slots[slot].vm],
			&vcpus[slots[slot].vm][slots[slot].vcpu], &in);
	show(d.kind);
	show(d.for_ns);
	show(d.leave);
	show(d.section);
	show(d.denial);
	if (d.kind == ECS_LEAVE)
		slots[slot].used = 0;
}

static void queue(void)
{
	struct ecs_snapshot snaps[MAX_WALK];
	unsigned int runs[MAX_WALK];
	struct ecs_queue_walk walk;
	unsigned int nr = below(MAX_WALK + 1);
	unsigned int me = below(MAX_WALK);
	__u32 place;

	for (unsigned int i = 0; i < nr; i++) {
		snaps[i] = read_snapshot();
		runs[i] = below(2);
	}
	if (me >= nr)
		exit(3);
	place = ecs_queue_begin(&walk, &snaps[me]);
	if (place == ECS_QUEUE_UNKNOWN) {
		for (unsigned int i = 0; i < nr; i++)
			if (i != me)
				ecs_queue_see(&walk, &snaps[me], i, &snaps[i], runs[i]);
		place = ecs_queue_end(&walk, &snaps[me]);
	}
	show(place);
}

static void pick(void)
{
	unsigned int nr = below(MAX_WALK + 1), first = 0;
	struct ecs_candidate best = { 0 };

	for (unsigned int i = 0; i < nr; i++) {
		struct ecs_candidate c = { 0 };

		c.vm_vtime_ns = next();
		c.vcpu_cpu_ns = next();
		c.rank = below(ECS_RANK_HOPELESS + 1);
		if (!i || ecs_is_before(&c, &best, &params)) {
			best = c;
			first = i;
		}
	}
	show(first);
}

int main(void)
{
	char op;

	for (int i = 0; i < NR_VMS; i++) {
		vms[i].enabled = 1;
		ecs_ledger_new(&vms[i].ledger, 1, 0);
	}
	while (scanf(" %c", &op) == 1) {
		unsigned int vm, weight;

		switch (op) {
		case 'P':
			params.slice_ns = next();
			params.extension_ns = next();
			params.budget_ns = next();
			params.cooldown_max = below(ECS_U32_MAX);
			params.extensions = (__u8)below(2);
			params.queue_rules = (__u8)below(2);
			break;
		case 'N':	/* a new VM in the place of another */
			vm = below(NR_VMS);
			vms[vm] = (struct ecs_vm){ .enabled = 1 };
			weight = below(ECS_U32_MAX);
			ecs_ledger_new(&vms[vm].ledger, weight, next());
			for (int i = 0; i < NR_VCPUS; i++)
				vcpus[vm][i] = (struct ecs_vcpu_state){ 0 };
			for (int i = 0; i < NR_SLOTS; i++)
				if (slots[i].vm == vm)
					slots[i].used = 0;
			break;
		case 'B': {
			unsigned int slot = below(NR_SLOTS);

			slots[slot].vm = below(NR_VMS);
			slots[slot].vcpu = below(NR_VCPUS);
			slots[slot].used = 1;
			show(ecs_turn_start(&slots[slot].turn, &params, &vms[slots[slot].vm],
					    &vcpus[slots[slot].vm][slots[slot].vcpu], next()));
			break;
		}
		case 'L':
			look();
			break;
		case 'C':
			vm = below(NR_VMS);
			ecs_ledger_charge(&vms[vm].ledger, next());
			break;
		case 'W':
			vm = below(NR_VMS);
			ecs_ledger_set_weight(&vms[vm].ledger, below(ECS_U32_MAX));
			break;
		case 'K': {
			__u64 vclock_ns;

			vm = below(NR_VMS);
			vclock_ns = next();
			ecs_ledger_wake(&vms[vm].ledger, vclock_ns, next());
			break;
		}
		case 'E':
			vm = below(NR_VMS);
			vms[vm].enabled = below(2);
			break;
		case 'F':
			show(ecs_ledger_forgive(&vms[below(NR_VMS)].ledger));
			break;
		case 'A':
			ecs_vm_abort_extension(&vms[below(NR_VMS)]);
			break;
		case 'Q':
			queue();
			break;
		case 'R':
			pick();
			break;
		case 'U': {
			__u64 head = next();

			show(ecs_is_urgent(head, next()));
			break;
		}
		default:
			return 4;
		}
		show_books();
	}
	return 0;
}
