/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR BSD-3-Clause */
/*
 * Decision and ledger for programs in the kernel: the twin of the Rust crate ecs-policy, which is the
 * reference and says why each rule is as it is. Same names, same integers, same rounding;
 * tests/parity.rs feeds random histories to both and compares every decision and every book.
 *
 * Freestanding: no clock, no I/O, no loop, no 128-bit integer. Compiles for BPF and natively.
 */
#ifndef ECS_POLICY_H
#define ECS_POLICY_H

#include <linux/types.h>

#define ECS_INLINE		static inline __attribute__((always_inline))
#define ECS_U64_MAX		(~(__u64)0)
#define ECS_U32_MAX		(~(__u32)0)
#define ECS_WEIGHT_DEFAULT	100

ECS_INLINE __u64 ecs_min(__u64 a, __u64 b)
{
	return a < b ? a : b;
}

ECS_INLINE __u64 ecs_add(__u64 a, __u64 b)
{
	return a + b < a ? ECS_U64_MAX : a + b;
}

ECS_INLINE __u64 ecs_sub(__u64 a, __u64 b)
{
	return a < b ? 0 : a - b;
}

ECS_INLINE __u64 ecs_mul(__u64 a, __u64 b)
{
	__u64 most = b ? ECS_U64_MAX / b : ECS_U64_MAX;

	/* Kept from becoming a 128-bit product, which BPF has not. */
	__asm__ volatile("" : "+r"(most));
	return a > most ? ECS_U64_MAX : a * b;
}

struct ecs_params {
	__u64 slice_ns;
	__u64 extension_ns;
	__u64 budget_ns;
	__u32 cooldown_max;
	__u8 extensions;
	__u8 queue_rules;
	__u16 reserved;
};

/* ---- ledger ---- */

struct ecs_ledger {
	__u64 vtime_ns;
	__u64 vtime_rest;
	__u64 cpu_ns;
	__u64 extension_ns;
	__u64 penalty_ns;
	__u64 forgiven_ns;
	__u32 weight;
	__u32 reserved;
};

ECS_INLINE void ecs_ledger_new(struct ecs_ledger *l, __u32 weight, __u64 vclock_ns)
{
	*l = (struct ecs_ledger){ .vtime_ns = vclock_ns, .weight = weight ? weight : 1 };
}

ECS_INLINE void ecs_ledger_set_weight(struct ecs_ledger *l, __u32 weight)
{
	l->weight = weight ? weight : 1;
	l->vtime_rest = 0;
}

ECS_INLINE __u64 ecs_ledger_debt(const struct ecs_ledger *l)
{
	return l->extension_ns - l->penalty_ns - l->forgiven_ns;
}

ECS_INLINE void ecs_ledger_charge(struct ecs_ledger *l, __u64 ran_ns)
{
	__u64 scaled = ecs_add(ecs_mul(ran_ns, ECS_WEIGHT_DEFAULT), l->vtime_rest);
	/* Never zero; said again because the verifier, unlike us, cannot know. */
	__u32 weight = l->weight ? l->weight : 1;

	l->cpu_ns = ecs_add(l->cpu_ns, ran_ns);
	l->vtime_ns = ecs_add(l->vtime_ns, scaled / weight);
	l->vtime_rest = scaled % weight;
}

ECS_INLINE void ecs_ledger_borrow(struct ecs_ledger *l, __u64 used_ns, const struct ecs_params *params)
{
	l->extension_ns = ecs_add(l->extension_ns, used_ns);
	l->forgiven_ns += ecs_sub(ecs_ledger_debt(l), params->budget_ns);
}

ECS_INLINE _Bool ecs_ledger_may_borrow(const struct ecs_ledger *l, __u64 nr_running,
				       const struct ecs_params *params)
{
	__u64 reserved_ns = ecs_mul(params->extension_ns, ecs_add(nr_running, 1));

	return ecs_add(ecs_ledger_debt(l), reserved_ns) <= params->budget_ns;
}

ECS_INLINE __u64 ecs_ledger_repay(struct ecs_ledger *l, __u64 most_ns)
{
	__u64 taken = ecs_min(ecs_ledger_debt(l), most_ns);

	l->penalty_ns += taken;
	return taken;
}

ECS_INLINE __u64 ecs_ledger_forgive(struct ecs_ledger *l)
{
	__u64 debt = ecs_ledger_debt(l);

	l->forgiven_ns += debt;
	return debt;
}

ECS_INLINE void ecs_ledger_wake(struct ecs_ledger *l, __u64 vclock_ns, __u64 slack_ns)
{
	__u64 floor = ecs_sub(vclock_ns, slack_ns);

	if (l->vtime_ns < floor) {
		l->vtime_ns = floor;
		l->vtime_rest = 0;
	}
}

/* Slices of virtual time that a VM may lag behind the others, and each vCPU receive at once. */
#define ECS_CREDIT_SLICES	64
#define ECS_TURNS_AT_ONCE	4
#define ECS_LEASH_MAX_NS	1000000000ULL

ECS_INLINE __u64 ecs_ledger_leash_ns(const struct ecs_ledger *l, __u64 nr_vcpus,
				     const struct ecs_params *params)
{
	__u64 slices = ecs_add(ecs_mul(nr_vcpus, ECS_TURNS_AT_ONCE), ECS_CREDIT_SLICES);
	__u64 scaled = ecs_mul(ecs_mul(params->slice_ns, slices), ECS_WEIGHT_DEFAULT);

	return ecs_min(scaled / (l->weight ? l->weight : 1), ECS_LEASH_MAX_NS);
}

ECS_INLINE void ecs_ledger_rein(struct ecs_ledger *l, __u64 vclock_ns, __u64 nr_vcpus,
				const struct ecs_params *params)
{
	__u64 limit = ecs_add(vclock_ns, ecs_ledger_leash_ns(l, nr_vcpus, params));

	if (l->vtime_ns > limit) {
		l->vtime_ns = limit;
		l->vtime_rest = 0;
	}
}

/* ---- what a vCPU does, and its place in its lock queue ---- */

enum ecs_wait {
	ECS_WAIT_NONE,
	ECS_WAIT_ENTERING,
	ECS_WAIT_UNKNOWN,
	ECS_WAIT_PENDING,
	ECS_WAIT_ENDED,
};

struct ecs_snapshot {
	__u64 lock;		/* guest-physical; of a wait that is pending or has ended */
	__u32 wait;		/* enum ecs_wait */
	__u32 holder;		/* vCPU that holds the lock, plus one; 0: unknown */
	__u8 non_preemptable;
	__u8 preemptable;
	__u8 blocked;
	__u8 idle;
	__u32 reserved;
};

enum ecs_queue {
	ECS_QUEUE_NOT_WAITING,
	ECS_QUEUE_HEAD,
	ECS_QUEUE_HEAD_RUNS,
	ECS_QUEUE_HOPELESS,
	ECS_QUEUE_UNKNOWN,
};

ECS_INLINE _Bool ecs_holds(const struct ecs_snapshot *s)
{
	return !s->idle && (s->non_preemptable || s->preemptable);
}

ECS_INLINE _Bool ecs_spins(const struct ecs_snapshot *s)
{
	return !s->idle && !s->blocked && s->wait != ECS_WAIT_NONE;
}

/*
 * The place of a vCPU among those of its VM, found by one walk over the others: ecs_queue_begin(),
 * ecs_queue_see() for each, ecs_queue_end(). Where the first returns a place that is not
 * ECS_QUEUE_UNKNOWN, no walk is needed.
 */
struct ecs_queue_walk {
	__u32 holder;		/* place behind the named holder, or ECS_QUEUE_UNKNOWN */
	__u32 ended;		/* behind those whose wait for this lock has ended */
	__u32 any;		/* behind any holder or head */
	__u32 entering_runs;
};

ECS_INLINE __u32 ecs_queue_begin(struct ecs_queue_walk *walk, const struct ecs_snapshot *own)
{
	*walk = (struct ecs_queue_walk){
		.holder = ECS_QUEUE_UNKNOWN,
		.ended = ECS_QUEUE_UNKNOWN,
		.any = ECS_QUEUE_UNKNOWN,
	};
	if (own->idle)
		return ECS_QUEUE_NOT_WAITING;
	switch (own->wait) {
	case ECS_WAIT_NONE:
		return ECS_QUEUE_NOT_WAITING;
	case ECS_WAIT_ENDED:
		return ECS_QUEUE_HEAD;
	case ECS_WAIT_ENTERING:
		return ECS_QUEUE_HEAD_RUNS;
	default:
		return ECS_QUEUE_UNKNOWN;
	}
}

/* One that runs gives hope, whoever else does not. */
ECS_INLINE void ecs_queue_note(__u32 *place, _Bool runs)
{
	if (runs)
		*place = ECS_QUEUE_HEAD_RUNS;
	else if (*place == ECS_QUEUE_UNKNOWN)
		*place = ECS_QUEUE_HOPELESS;
}

/* Another vCPU of the VM, never the waiter itself. */
ECS_INLINE void ecs_queue_see(struct ecs_queue_walk *walk, const struct ecs_snapshot *own,
			      __u32 vcpu, const struct ecs_snapshot *other, _Bool runs)
{
	_Bool holds = ecs_holds(other) && !ecs_spins(other);

	if (holds && own->holder == vcpu + 1)
		ecs_queue_note(&walk->holder, runs);
	if (other->idle)
		return;
	if (other->wait == ECS_WAIT_ENDED && other->lock == own->lock)
		ecs_queue_note(&walk->ended, runs);
	if (other->wait == ECS_WAIT_ENTERING && runs)
		walk->entering_runs = 1;
	if (holds || other->wait == ECS_WAIT_ENTERING || other->wait == ECS_WAIT_ENDED)
		ecs_queue_note(&walk->any, runs);
}

ECS_INLINE __u32 ecs_queue_end(const struct ecs_queue_walk *walk, const struct ecs_snapshot *own)
{
	if (walk->holder != ECS_QUEUE_UNKNOWN)
		return walk->holder;
	/* Without a descriptor there is no telling which holder matters. */
	if (own->wait != ECS_WAIT_PENDING)
		return ECS_QUEUE_UNKNOWN;
	if (walk->ended != ECS_QUEUE_UNKNOWN)
		return walk->ended;
	if (walk->entering_runs)
		return ECS_QUEUE_HEAD_RUNS;
	return walk->any;
}

/* ---- who runs next ---- */

enum ecs_rank {
	ECS_RANK_HEAD,
	ECS_RANK_READY,
	ECS_RANK_HOPELESS,
};

struct ecs_candidate {
	__u64 vm_vtime_ns;
	__u64 vcpu_cpu_ns;
	__u32 rank;		/* enum ecs_rank */
	__u32 reserved;
};

ECS_INLINE __u64 ecs_boost_ns(const struct ecs_params *params)
{
	return 2 * params->slice_ns;
}

ECS_INLINE _Bool ecs_is_urgent(__u64 head_vtime_ns, __u64 current_vtime_ns)
{
	return head_vtime_ns <= current_vtime_ns;
}

/* The others are set back, so that nothing is subtracted below zero. */
ECS_INLINE __u64 ecs_set_back(const struct ecs_candidate *c, const struct ecs_params *params)
{
	return c->rank == ECS_RANK_READY ? ecs_add(c->vm_vtime_ns, ecs_boost_ns(params)) : c->vm_vtime_ns;
}

/* Whether `a` comes before `b`; of equals the one that was found first does. */
ECS_INLINE _Bool ecs_is_before(const struct ecs_candidate *a, const struct ecs_candidate *b,
			       const struct ecs_params *params)
{
	_Bool last_a = a->rank == ECS_RANK_HOPELESS, last_b = b->rank == ECS_RANK_HOPELESS;
	__u64 vtime_a = ecs_set_back(a, params), vtime_b = ecs_set_back(b, params);

	if (last_a != last_b)
		return last_b;
	if (vtime_a != vtime_b)
		return vtime_a < vtime_b;
	return a->vcpu_cpu_ns < b->vcpu_cpu_ns;
}

/* ---- a turn ---- */

enum ecs_event {
	ECS_EVENT_LOOK,
	ECS_EVENT_HAND_BACK,
	ECS_EVENT_BLOCKED,
};

enum ecs_section {
	ECS_SECTION_NON_PREEMPTABLE,
	ECS_SECTION_PREEMPTABLE,
	ECS_SECTION_WAIT,
	ECS_NR_SECTIONS,
	ECS_SECTION_NONE = ECS_NR_SECTIONS,
};

enum ecs_denial {
	ECS_DENIAL_USED,
	ECS_DENIAL_BUDGET,
	ECS_DENIAL_COOLDOWN,
	ECS_DENIAL_DISABLED,
	ECS_NR_DENIALS,
	ECS_DENIAL_NONE = ECS_NR_DENIALS,
};

enum ecs_outcome {
	ECS_OUTCOME_YIELDED,
	ECS_OUTCOME_EXPIRED,
	ECS_OUTCOME_REVOKED,
	ECS_OUTCOME_ABORTED,
	ECS_NR_OUTCOMES,
};

enum ecs_decision_kind {
	ECS_KEEP,
	ECS_EXTEND,
	ECS_RENEW,
	ECS_LEAVE,
};

enum ecs_leave {
	ECS_LEAVE_SLICE_END,
	ECS_LEAVE_YIELDED,
	ECS_LEAVE_EXPIRED,
	ECS_LEAVE_DENIED,
	ECS_LEAVE_HOPELESS,
	ECS_LEAVE_HAND_BACK,
	ECS_LEAVE_URGENT,
	ECS_LEAVE_BLOCKED,
};

struct ecs_decision {
	__u64 for_ns;		/* KEEP, EXTEND: CPU time until the next look or the hard stop */
	__u32 kind;		/* enum ecs_decision_kind */
	__u32 leave;		/* LEAVE: enum ecs_leave */
	__u32 section;		/* EXTEND: enum ecs_section */
	__u32 denial;		/* LEAVE, DENIED: enum ecs_denial */
};

struct ecs_input {
	__u64 ran_ns;
	struct ecs_snapshot snap;
	__u32 event;		/* enum ecs_event */
	__u32 queue;		/* enum ecs_queue */
	__u8 others;
	__u8 urgent;
	__u16 reserved0;
	__u32 reserved1;
};

struct ecs_vcpu_state {
	__u64 credit_ns;
	__u64 cpu_ns;
	__u32 cooldown;
	__u32 streak;
};

struct ecs_counters {
	__u64 requests;
	__u64 grants[ECS_NR_SECTIONS];
	__u64 denials[ECS_NR_DENIALS];
	__u64 ended[ECS_NR_OUTCOMES];
	__u64 running;
	__u64 stepped_aside;
	__u64 handed_back;
};

struct ecs_vm {
	struct ecs_ledger ledger;
	struct ecs_counters counters;
	__u32 enabled;
	__u32 reserved;
};

enum ecs_extension {
	ECS_EXTENSION_UNUSED,
	ECS_EXTENSION_RUNNING,
	ECS_EXTENSION_USED,
};

struct ecs_turn {
	__u64 length_ns;
	__u64 ran_ns;
	__u64 used_ns;		/* of the extension that runs */
	__u32 extension;	/* enum ecs_extension */
	__u32 reserved;
};

/* A vCPU went away inside an extension: no turn is left to end it. */
ECS_INLINE void ecs_vm_abort_extension(struct ecs_vm *vm)
{
	if (vm->counters.running > 0) {
		vm->counters.running--;
		vm->counters.ended[ECS_OUTCOME_ABORTED]++;
	}
}

/* Returns the time taken back, which is the next VM's bonus. */
ECS_INLINE __u64 ecs_turn_start(struct ecs_turn *turn, const struct ecs_params *params,
				struct ecs_vm *vm, struct ecs_vcpu_state *vcpu, __u64 bonus_ns)
{
	__u64 base = params->slice_ns;
	__u64 taken = ecs_ledger_repay(&vm->ledger, base / 2);
	__u64 credit = ecs_min(vcpu->credit_ns, base);

	vcpu->credit_ns = 0;
	if (vcpu->cooldown)
		vcpu->cooldown--;
	*turn = (struct ecs_turn){
		.length_ns = base - taken + credit + ecs_min(bonus_ns, base),
	};
	return taken;
}

ECS_INLINE __u64 ecs_turn_left(const struct ecs_turn *turn)
{
	return ecs_sub(turn->length_ns, turn->ran_ns);
}

ECS_INLINE _Bool ecs_turn_is_extended(const struct ecs_turn *turn)
{
	return turn->extension == ECS_EXTENSION_RUNNING;
}

/* What the vCPU would be interrupted in, if it had to leave now. */
ECS_INLINE __u32 ecs_section_of(const struct ecs_params *params, const struct ecs_snapshot *snap,
				__u32 queue)
{
	if (snap->idle)
		return ECS_SECTION_NONE;
	if (snap->non_preemptable)
		return ECS_SECTION_NON_PREEMPTABLE;
	if (snap->preemptable)
		return ECS_SECTION_PREEMPTABLE;
	if ((queue == ECS_QUEUE_HEAD || queue == ECS_QUEUE_HEAD_RUNS) && params->queue_rules &&
	    !snap->blocked)
		return ECS_SECTION_WAIT;
	return ECS_SECTION_NONE;
}

ECS_INLINE __u32 ecs_turn_refusal(const struct ecs_turn *turn, const struct ecs_params *params,
				  const struct ecs_vm *vm, const struct ecs_vcpu_state *vcpu)
{
	if (!params->extensions || !vm->enabled)
		return ECS_DENIAL_DISABLED;
	if (turn->extension != ECS_EXTENSION_UNUSED)
		return ECS_DENIAL_USED;
	if (vcpu->cooldown)
		return ECS_DENIAL_COOLDOWN;
	if (!ecs_ledger_may_borrow(&vm->ledger, vm->counters.running, params))
		return ECS_DENIAL_BUDGET;
	return ECS_DENIAL_NONE;
}

ECS_INLINE void ecs_turn_end_extension(struct ecs_turn *turn, const struct ecs_params *params,
				       struct ecs_vm *vm, struct ecs_vcpu_state *vcpu,
				       __u64 ran_ns, __u32 outcome)
{
	__u64 used_ns = ecs_add(turn->used_ns, ran_ns);

	turn->extension = ECS_EXTENSION_USED;
	turn->used_ns = 0;
	ecs_ledger_borrow(&vm->ledger, used_ns, params);
	if (vm->counters.running)
		vm->counters.running--;
	/* Each by its name: an index that is not constant is more than the verifier follows. */
	switch (outcome) {
	case ECS_OUTCOME_YIELDED:
		vm->counters.ended[ECS_OUTCOME_YIELDED]++;
		vcpu->streak = 0;
		break;
	case ECS_OUTCOME_EXPIRED:
		vm->counters.ended[ECS_OUTCOME_EXPIRED]++;
		if (vcpu->streak) {
			__u32 shift = vcpu->streak - 1;
			__u32 turns = shift < 32 ? (__u32)1 << (shift & 31) : ECS_U32_MAX;

			if (turns > params->cooldown_max)
				turns = params->cooldown_max;
			vcpu->cooldown = turns == ECS_U32_MAX ? turns : turns + 1;
		}
		if (vcpu->streak != ECS_U32_MAX)
			vcpu->streak++;
		break;
	case ECS_OUTCOME_REVOKED:
		vm->counters.ended[ECS_OUTCOME_REVOKED]++;
		break;
	default:
		vm->counters.ended[ECS_OUTCOME_ABORTED]++;
	}
}

ECS_INLINE void ecs_leave(struct ecs_decision *d, __u32 leave)
{
	d->kind = ECS_LEAVE;
	d->leave = leave;
}

ECS_INLINE void ecs_keep(struct ecs_decision *d, __u64 for_ns)
{
	d->kind = ECS_KEEP;
	d->for_ns = for_ns;
}

/* The turn is over in a section. */
ECS_INLINE void ecs_turn_decide_at_end(struct ecs_decision *d, struct ecs_turn *turn,
				       const struct ecs_params *params, struct ecs_vm *vm,
				       struct ecs_vcpu_state *vcpu, __u32 section)
{
	vm->counters.requests++;
	d->denial = ecs_turn_refusal(turn, params, vm, vcpu);
	switch (d->denial) {
	case ECS_DENIAL_USED:
		vm->counters.denials[ECS_DENIAL_USED]++;
		break;
	case ECS_DENIAL_BUDGET:
		vm->counters.denials[ECS_DENIAL_BUDGET]++;
		break;
	case ECS_DENIAL_COOLDOWN:
		vm->counters.denials[ECS_DENIAL_COOLDOWN]++;
		break;
	case ECS_DENIAL_DISABLED:
		vm->counters.denials[ECS_DENIAL_DISABLED]++;
		break;
	default:
		if (section == ECS_SECTION_NON_PREEMPTABLE)
			vm->counters.grants[ECS_SECTION_NON_PREEMPTABLE]++;
		else if (section == ECS_SECTION_PREEMPTABLE)
			vm->counters.grants[ECS_SECTION_PREEMPTABLE]++;
		else
			vm->counters.grants[ECS_SECTION_WAIT]++;
		vm->counters.running++;
		turn->extension = ECS_EXTENSION_RUNNING;
		turn->used_ns = 0;
		d->kind = ECS_EXTEND;
		d->for_ns = params->extension_ns;
		d->section = section;
		return;
	}
	ecs_leave(d, ECS_LEAVE_DENIED);
}

/*
 * Decides what says nothing to the books of the VM, which then need no lock: false where they have a
 * word in it: then nothing has changed, and ecs_turn_decide_booked() goes on.
 */
ECS_INLINE _Bool ecs_turn_decide_alone(struct ecs_decision *d, struct ecs_turn *turn,
				       const struct ecs_params *params,
				       struct ecs_vcpu_state *vcpu, const struct ecs_input *in)
{
	_Bool hopeless = params->queue_rules && in->queue == ECS_QUEUE_HOPELESS;
	_Bool outside = ecs_section_of(params, &in->snap, in->queue) == ECS_SECTION_NONE;
	_Bool hands_back = in->event == ECS_EVENT_HAND_BACK && outside;
	__u64 ran_ns = ecs_add(turn->ran_ns, in->ran_ns);
	__u64 used_ns = ecs_add(turn->used_ns, in->ran_ns);
	__u64 left_ns = ecs_sub(turn->length_ns, ran_ns);

	*d = (struct ecs_decision){ .section = ECS_SECTION_NONE, .denial = ECS_DENIAL_NONE };
	if (ecs_turn_is_extended(turn)) {
		if (in->event == ECS_EVENT_BLOCKED || !in->others || hopeless || outside ||
		    used_ns >= params->extension_ns)
			return 0;
		turn->used_ns = used_ns;
		ecs_keep(d, params->extension_ns - used_ns);
	} else if (in->event == ECS_EVENT_BLOCKED) {
		ecs_leave(d, ECS_LEAVE_BLOCKED);
	} else if (in->others && (hopeless || hands_back)) {
		return 0;
	} else if (in->urgent && outside) {
		vcpu->credit_ns = left_ns;
		ecs_leave(d, ECS_LEAVE_URGENT);
	} else if (left_ns) {
		ecs_keep(d, left_ns);
	} else if (!in->others) {
		d->kind = ECS_RENEW;
	} else if (outside) {
		ecs_leave(d, ECS_LEAVE_SLICE_END);
	} else {
		return 0;
	}
	turn->ran_ns = ran_ns;
	return 1;
}

/* An extension that does not go on. */
ECS_INLINE void ecs_turn_decide_extended(struct ecs_decision *d, struct ecs_turn *turn,
					 const struct ecs_params *params, struct ecs_vm *vm,
					 struct ecs_vcpu_state *vcpu, const struct ecs_input *in,
					 __u32 section, _Bool hopeless)
{
	__u32 outcome;

	if (in->event == ECS_EVENT_BLOCKED) {
		outcome = ECS_OUTCOME_ABORTED;
		ecs_leave(d, ECS_LEAVE_BLOCKED);
	} else if (!in->others) {
		outcome = ECS_OUTCOME_ABORTED;
		d->kind = ECS_RENEW;
	} else if (hopeless) {
		outcome = ECS_OUTCOME_REVOKED;
		ecs_leave(d, ECS_LEAVE_HOPELESS);
	} else if (section == ECS_SECTION_NONE) {
		outcome = ECS_OUTCOME_YIELDED;
		ecs_leave(d, ECS_LEAVE_YIELDED);
	} else {
		outcome = ECS_OUTCOME_EXPIRED;
		ecs_leave(d, ECS_LEAVE_EXPIRED);
	}
	ecs_turn_end_extension(turn, params, vm, vcpu, in->ran_ns, outcome);
}

/* What ecs_turn_decide_alone() left: an end in a section or of an extension, or a vCPU that makes way. */
ECS_INLINE void ecs_turn_decide_booked(struct ecs_decision *d, struct ecs_turn *turn,
				       const struct ecs_params *params, struct ecs_vm *vm,
				       struct ecs_vcpu_state *vcpu, const struct ecs_input *in)
{
	_Bool hopeless = params->queue_rules && in->queue == ECS_QUEUE_HOPELESS;
	__u32 section = ecs_section_of(params, &in->snap, in->queue);

	turn->ran_ns = ecs_add(turn->ran_ns, in->ran_ns);
	if (ecs_turn_is_extended(turn)) {
		ecs_turn_decide_extended(d, turn, params, vm, vcpu, in, section, hopeless);
	} else if (hopeless && in->others) {
		vm->counters.stepped_aside++;
		vcpu->credit_ns = ecs_turn_left(turn);
		ecs_leave(d, ECS_LEAVE_HOPELESS);
	} else if (section == ECS_SECTION_NONE) {
		vm->counters.handed_back++;
		vcpu->credit_ns = ecs_turn_left(turn);
		ecs_leave(d, ECS_LEAVE_HAND_BACK);
	} else {
		ecs_turn_decide_at_end(d, turn, params, vm, vcpu, section);
	}
}

/* Decides what happens to the vCPU, and books it. */
ECS_INLINE void ecs_turn_decide(struct ecs_decision *d, struct ecs_turn *turn,
				const struct ecs_params *params, struct ecs_vm *vm,
				struct ecs_vcpu_state *vcpu, const struct ecs_input *in)
{
	if (!ecs_turn_decide_alone(d, turn, params, vcpu, in))
		ecs_turn_decide_booked(d, turn, params, vm, vcpu, in);
}

#endif /* ECS_POLICY_H */
