// SPDX-License-Identifier: GPL-2.0
/*
 * The scheduler. Every VM is one entity of weighted fair virtual time, whatever the number of its
 * vCPUs; so is every other thread of the host, which comes first after a sleep and so has low
 * latency. All preemption goes through ecs_dispatch(): there ecs_policy.h decides whether a vCPU in a
 * section runs on, and for how long.
 *
 * Guest words are read in dispatch, tick, stopping and the timer only, while the vCPU's thread is the
 * one on the CPU; never in running, where the address space is another one's.
 */
#include "turn.h"

char _license[] SEC("license") = "GPL";

/* Queues: of a VM, by its number; of the host; of what may run on one CPU only. */
#define DSQ_VM		0x1000ULL
#define DSQ_HOST	0x2000ULL
#define DSQ_PINNED	0x10000ULL

/* Time between two looks at a vCPU in an extension, ns: its release has no other sign here. */
#define POLL_NS		50000
/* A host task's turn, ns: short, since many share one queue. */
#define HOST_SLICE_NS	1000000
/* VMs that may prove unable to run on a CPU before another one is left for later. */
#define MAX_TRIES	4
#define NO_VM		ECS_MAX_VMS

struct waiting {
	__u64 vm_vtime_ns;
	__u64 host_vtime_ns;
	__u64 host_dsq;		/* 0: no host task waits */
	__u32 vm;		/* that comes first; NO_VM: none waits */
};

static void peek_host(struct waiting *w, __u64 dsq)
{
	struct task_struct *p = scx_bpf_dsq_peek(dsq);

	if (p && (!w->host_dsq || p->scx.dsq_vtime < w->host_vtime_ns)) {
		w->host_dsq = dsq;
		w->host_vtime_ns = p->scx.dsq_vtime;
	}
}

/* Who waits for this CPU; VMs in `tried` do not count. */
__noinline int look_around(struct waiting *w __arg_nonnull, __s32 cpu, __u64 tried)
{
	__u32 nr = nr_vms;
	int i;

	*w = (struct waiting){ .vm = NO_VM };
	peek_host(w, DSQ_HOST);
	peek_host(w, DSQ_PINNED + (__u32)cpu);
	if (nr > ECS_MAX_VMS)
		nr = ECS_MAX_VMS;
	bpf_for(i, 0, nr) {
		__u32 key = i;
		struct ecs_vm_entry *vm;
		__u64 vtime_ns;

		if (tried & (1ULL << (i & 63)) || scx_bpf_dsq_nr_queued(DSQ_VM + i) <= 0)
			continue;
		vm = bpf_map_lookup_elem(&vms, &key);
		if (!vm)
			continue;
		vtime_ns = vm->state.vm.ledger.vtime_ns;
		if (w->vm == NO_VM || vtime_ns < w->vm_vtime_ns) {
			w->vm = i;
			w->vm_vtime_ns = vtime_ns;
		}
	}
	return 0;
}

/* Moves the one with the least virtual time to the CPU; `first` is a VM that goes before all. */
static bool run_next(__s32 cpu, __u32 first)
{
	struct waiting w;
	__u64 tried = 0;
	int i;

	if (first < NO_VM && scx_bpf_dsq_move_to_local(DSQ_VM + first))
		return true;
	bpf_for(i, 0, MAX_TRIES) {
		look_around(&w, cpu, tried);
		if (w.host_dsq && (w.vm == NO_VM || w.host_vtime_ns <= w.vm_vtime_ns)) {
			if (scx_bpf_dsq_move_to_local(w.host_dsq)) {
				advance_vclock(w.host_vtime_ns);
				return true;
			}
		}
		if (w.vm == NO_VM)
			break;
		if (scx_bpf_dsq_move_to_local(DSQ_VM + w.vm)) {
			advance_vclock(w.vm_vtime_ns);
			return true;
		}
		tried |= 1ULL << (w.vm & 63);
	}
	return scx_bpf_dsq_move_to_local(DSQ_PINNED + (__u32)cpu) ||
	       scx_bpf_dsq_move_to_local(DSQ_HOST);
}

/* The vCPU runs on for at most so long; in an extension it is looked at in between. */
static void let_run(struct task_struct *p, struct ecs_cpu *cpu, bool extended, __u64 for_ns,
		    __u64 now_ns)
{
	cpu->hard_stop_ns = extended ? now_ns + for_ns : 0;
	/* The timer ends it; the tick, which is coarser, only where the timer fails. */
	scx_bpf_task_set_slice(p, for_ns);
	bpf_timer_start(&cpu->timer, extended ? ecs_min(for_ns, POLL_NS) : for_ns, TIMER_CPU_PIN);
}

static void look_and_place(struct vcpu_ref *ref, struct ecs_input *in)
{
	look_at(ref, &in->snap);
	in->queue = queue_place(ref->index, &in->snap);
	ref->vcpu->rank = in->queue == ECS_QUEUE_HOPELESS ? ECS_RANK_HOPELESS :
			  ecs_holds(&in->snap) || in->queue == ECS_QUEUE_HEAD ? ECS_RANK_HEAD :
			  ECS_RANK_READY;
}

SEC("struct_ops/ecs_select_cpu")
__s32 BPF_PROG(ecs_select_cpu, struct task_struct *p, __s32 prev_cpu, __u64 wake_flags)
{
	bool is_idle = false;
	__s32 cpu = scx_bpf_select_cpu_dfl(p, prev_cpu, wake_flags, &is_idle);

	if (is_idle)
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, HOST_SLICE_NS, 0);
	return cpu;
}

/* A vCPU has work, perhaps the first of its VM for long: time a VM did not use is no credit. */
static void wake(struct vcpu_ref *ref)
{
	struct ecs_vm_entry *vm = ref->vm;
	__u64 slice_ns = params.slice_ns, clock = vclock_ns;

	adopt(ref);
	if (ref->vcpu->runnable)
		return;
	ref->vcpu->runnable = 1;
	if (__sync_fetch_and_add(&vm->state.nr_runnable, 1))
		return;
	bpf_spin_lock(&vm->lock);
	ecs_ledger_wake(&vm->state.vm.ledger, clock, slice_ns);
	bpf_spin_unlock(&vm->lock);
}

static void enqueue_vcpu(struct task_struct *p, struct vcpu_ref *ref, __u64 enq_flags)
{
	struct ecs_vm_entry *vm = ref->vm;
	struct ecs_vcpu *vcpu = ref->vcpu;
	__u64 slice_ns = params.slice_ns, key;

	wake(ref);
	/* Time a vCPU slept is no credit against its siblings. */
	if (vcpu->inner_vtime_ns < ecs_sub(vm->state.inner_vclock_ns, slice_ns))
		vcpu->inner_vtime_ns = ecs_sub(vm->state.inner_vclock_ns, slice_ns);
	/* Set back by two slices a rank: a head comes first, and none waits for ever. */
	key = vcpu->inner_vtime_ns + (vcpu->rank & 3) * ecs_boost_ns(policy());
	scx_bpf_dsq_insert_vtime(p, DSQ_VM + (ref->vm_index & 63), slice_ns, key, enq_flags);
}

/* A host task that woke takes the CPU from a vCPU that is ahead of it, by way of dispatch. */
static void press(struct task_struct *p, __u64 vtime_ns)
{
	__s32 cpu = scx_bpf_task_cpu(p);
	struct ecs_cpu *state = cpu_state(cpu);
	struct vcpu_ref ref;

	if (state && find_vcpu(&ref, state->vcpu) &&
	    ecs_is_urgent(vtime_ns, ref.vm->state.vm.ledger.vtime_ns))
		scx_bpf_kick_cpu(cpu, SCX_KICK_PREEMPT);
}

SEC("struct_ops/ecs_enqueue")
void BPF_PROG(ecs_enqueue, struct task_struct *p, __u64 enq_flags)
{
	struct vcpu_ref ref;
	__s32 idle;

	if (vcpu_of(&ref, p)) {
		enqueue_vcpu(p, &ref, enq_flags);
	} else {
		__u64 vtime_ns = p->scx.dsq_vtime;
		__u64 floor = ecs_sub(vclock_ns, params.slice_ns);
		bool pinned = p->nr_cpus_allowed == 1;

		if (vtime_ns < floor)
			vtime_ns = floor;
		scx_bpf_dsq_insert_vtime(p, pinned ? DSQ_PINNED + (__u32)scx_bpf_task_cpu(p) : DSQ_HOST,
					 HOST_SLICE_NS, vtime_ns, enq_flags);
		if (enq_flags & SCX_ENQ_WAKEUP)
			press(p, vtime_ns);
	}
	idle = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
	if (idle >= 0)
		scx_bpf_kick_cpu(idle, SCX_KICK_IDLE);
}

/* Whether the vCPU runs on; if it does not, `first` is the VM that goes next, or NO_VM. */
static __noinline bool runs_on(struct task_struct *p, __u32 number, __u32 cpu, __u32 *first)
{
	struct ecs_cpu *state = cpu_state(cpu);
	struct ecs_input in = { .event = ECS_EVENT_LOOK };
	struct ecs_decision decision;
	struct vcpu_ref ref;
	struct waiting w;
	__u64 now_ns = bpf_ktime_get_ns(), vtime_ns;

	if (!p || !state || !find_vcpu(&ref, number) || !ref.vcpu->in_turn)
		return false;
	book(&ref, now_ns);
	in.ran_ns = ref.vcpu->turn_ran_ns;
	look_around(&w, cpu, 0);
	look_and_place(&ref, &in);
	vtime_ns = ref.vm->state.vm.ledger.vtime_ns;
	in.urgent = w.host_dsq && ecs_is_urgent(w.host_vtime_ns, vtime_ns);
	/* Who waits behind this VM in virtual time does not want the CPU yet; nor does its own VM
	 * stand still while a spinner that can get nowhere has it.
	 */
	in.others = in.urgent || (w.vm != NO_VM && (w.vm_vtime_ns <= vtime_ns ||
						    in.queue == ECS_QUEUE_HOPELESS));
	if (decide(ref.index, &in, &decision))
		return false;
	switch (decision.kind) {
	case ECS_RENEW:
		begin_turn(ref.index, cpu);
		decision.for_ns = ecs_turn_left(&ref.vcpu->turn);
		break;
	case ECS_LEAVE:
		count_preemption(&ref);
		__sync_fetch_and_add(&ref.vm->state.rotations, 1);
		if (decision.leave == ECS_LEAVE_DENIED)
			count_critical(&ref, ECS_CAUSE_DENIED, now_ns);
		else if (decision.leave == ECS_LEAVE_EXPIRED)
			count_critical(&ref, ECS_CAUSE_EXPIRED, now_ns);
		/* To the sibling it waits for, if that one can run here. */
		if (decision.leave == ECS_LEAVE_HOPELESS)
			*first = ref.vm_index;
		return false;
	}
	let_run(p, state, ecs_turn_is_extended(&ref.vcpu->turn), decision.for_ns, now_ns);
	return true;
}

SEC("struct_ops/ecs_dispatch")
void BPF_PROG(ecs_dispatch, __s32 cpu, struct task_struct *prev)
{
	__u32 number = 0, first = NO_VM;
	struct ecs_cpu *state;
	struct vcpu_ref ref;

	if (prev && prev->scx.flags & SCX_TASK_QUEUED)
		number = vcpu_number(prev);
	if (number && runs_on(prev, number, cpu, &first))
		return;
	if (run_next(cpu, first) || !number || !prev)
		return;
	/* Nobody could take the CPU after all. */
	state = cpu_state(cpu);
	if (state && find_vcpu(&ref, number)) {
		begin_turn(ref.index, cpu);
		let_run(prev, state, false, ecs_turn_left(&ref.vcpu->turn), bpf_ktime_get_ns());
	}
}

SEC("struct_ops/ecs_tick")
void BPF_PROG(ecs_tick, struct task_struct *p)
{
	struct ecs_input in = { 0 };
	struct vcpu_ref ref;

	if (!params.queue_rules || !vcpu_of(&ref, p) || !ref.vcpu->in_turn)
		return;
	look_and_place(&ref, &in);
	/* A hopeless spinner gives its CPU up early; dispatch finds out whether somebody wants it. */
	if (in.queue == ECS_QUEUE_HOPELESS)
		scx_bpf_task_set_slice(p, 0);
}

SEC("struct_ops/ecs_running")
void BPF_PROG(ecs_running, struct task_struct *p)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct ecs_cpu *state = cpu_state(cpu);
	__u64 now_ns = bpf_ktime_get_ns(), left_ns;
	__u32 number = vcpu_number(p);
	struct vcpu_ref ref;
	bool extended;

	if (!state)
		return;
	state->vcpu = 0;
	state->since_ns = now_ns;
	if (!find_vcpu(&ref, number)) {
		advance_vclock(p->scx.dsq_vtime);
		return;
	}
	wake(&ref);
	if (ref.vcpu->critical_since_ns) {
		__sync_fetch_and_add(&ref.vm->state.stall_ns, now_ns - ref.vcpu->critical_since_ns);
		ref.vcpu->critical_since_ns = 0;
	}
	if (ref.vm->state.inner_vclock_ns < ref.vcpu->inner_vtime_ns)
		ref.vm->state.inner_vclock_ns = ref.vcpu->inner_vtime_ns;
	ref.vcpu->since_ns = now_ns;
	ref.vcpu->running = 1;
	if (!ref.vcpu->in_turn)
		begin_turn(ref.index, cpu);
	state->vcpu = number;
	state->tid = p->pid;
	extended = ecs_turn_is_extended(&ref.vcpu->turn);
	left_ns = extended ? ecs_sub(params.extension_ns, ref.vcpu->turn.used_ns) :
			     ecs_turn_left(&ref.vcpu->turn);
	let_run(p, state, extended, left_ns, now_ns);
}

SEC("struct_ops/ecs_stopping")
void BPF_PROG(ecs_stopping, struct task_struct *p, bool runnable)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct ecs_cpu *state = cpu_state(cpu);
	__u64 now_ns = bpf_ktime_get_ns();
	struct ecs_input in = { .event = ECS_EVENT_BLOCKED };
	struct ecs_decision decision;
	struct vcpu_ref ref;

	if (!state)
		return;
	if (!find_vcpu(&ref, vcpu_number(p))) {
		__u64 ran_ns = ecs_sub(now_ns, state->since_ns);
		__u32 weight = p->scx.weight ? p->scx.weight : 1;

		/* A sleeper's floor, which its place in the queue had as well. */
		scx_bpf_task_set_dsq_vtime(p, (p->scx.dsq_vtime > ecs_sub(vclock_ns, params.slice_ns) ?
					       p->scx.dsq_vtime : ecs_sub(vclock_ns, params.slice_ns)) +
					      ecs_mul(ran_ns, ECS_WEIGHT_DEFAULT) / weight);
		return;
	}
	/* It became a vCPU while it ran: there is nothing to book yet. */
	if (state->vcpu) {
		book(&ref, now_ns);
		ref.vcpu->running = 0;
		if (runnable && ref.vcpu->in_turn) {
			/* Not by our word: something above this class. The turn goes on later. */
			count_preemption(&ref);
			look_and_place(&ref, &in);
			if (ecs_section_of(policy(), &in.snap, in.queue) != ECS_SECTION_NONE)
				count_critical(&ref, ECS_CAUSE_HOST, now_ns);
		} else if (!runnable && ref.vcpu->in_turn) {
			in.ran_ns = ref.vcpu->turn_ran_ns;
			decide(ref.index, &in, &decision);
		}
	}
	state->vcpu = 0;
	state->hard_stop_ns = 0;
}

SEC("struct_ops/ecs_quiescent")
void BPF_PROG(ecs_quiescent, struct task_struct *p, __u64 deq_flags)
{
	struct vcpu_ref ref;

	if (vcpu_of(&ref, p) && ref.vcpu->runnable) {
		ref.vcpu->runnable = 0;
		__sync_fetch_and_add(&ref.vm->state.nr_runnable, -1);
	}
}

/* The end of a slice or of an extension, or a look in between. */
static int timer_fired(void *map, __u32 *cpu, struct ecs_cpu *state)
{
	__u64 hard_stop_ns = state->hard_stop_ns, now_ns = bpf_ktime_get_ns();
	struct task_struct *current = bpf_get_current_task_btf();
	struct ecs_snapshot snap;
	struct vcpu_ref ref;

	if (!state->vcpu)
		return 0;
	if (now_ns < hard_stop_ns && (__u32)current->pid == state->tid &&
	    find_vcpu(&ref, state->vcpu)) {
		look_at(&ref, &snap);
		/* Its place in a queue is for dispatch to find out. */
		if (ecs_section_of(policy(), &snap, ECS_QUEUE_NOT_WAITING) != ECS_SECTION_NONE) {
			bpf_timer_start(&state->timer, ecs_min(hard_stop_ns - now_ns, POLL_NS),
					TIMER_CPU_PIN);
			return 0;
		}
	}
	scx_bpf_kick_cpu(*cpu, SCX_KICK_PREEMPT);
	return 0;
}

SEC("struct_ops/ecs_init_task")
__s32 BPF_PROG(ecs_init_task, struct task_struct *p, struct scx_init_task_args *args)
{
	scx_bpf_task_set_dsq_vtime(p, vclock_ns);
	return 0;
}

SEC("struct_ops/ecs_exit_task")
void BPF_PROG(ecs_exit_task, struct task_struct *p, struct scx_exit_task_args *args)
{
	__u32 tid = p->pid;
	struct vcpu_ref ref;

	if (!vcpu_of(&ref, p))
		return;
	bpf_map_delete_elem(&tids, &tid);
	if (ecs_turn_is_extended(&ref.vcpu->turn)) {
		bpf_spin_lock(&ref.vm->lock);
		ecs_vm_abort_extension(&ref.vm->state.vm);
		bpf_spin_unlock(&ref.vm->lock);
	}
}

SEC("struct_ops.s/ecs_init")
__s32 BPF_PROG(ecs_init)
{
	__s32 error = scx_bpf_create_dsq(DSQ_HOST, -1);
	int i;

	bpf_for(i, 0, ECS_MAX_VMS)
		if (!error)
			error = scx_bpf_create_dsq(DSQ_VM + i, -1);
	bpf_for(i, 0, nr_cpus) {
		struct ecs_cpu *state = cpu_state(i);

		if (error)
			break;
		if (!state)
			return -22;
		error = scx_bpf_create_dsq(DSQ_PINNED + i, -1);
		if (!error)
			error = bpf_timer_init(&state->timer, &cpus, CLOCK_MONOTONIC);
		if (!error)
			error = bpf_timer_set_callback(&state->timer, timer_fired);
	}
	return error;
}

SEC("struct_ops.s/ecs_exit")
void BPF_PROG(ecs_exit, struct scx_exit_info *info)
{
	bpf_probe_read_kernel_str(exit_reason, sizeof(exit_reason), info->reason);
	exit_kind = info->kind;
}

SEC(".struct_ops.link")
struct sched_ext_ops ecs_ops = {
	.select_cpu = (void *)ecs_select_cpu,
	.enqueue = (void *)ecs_enqueue,
	.dispatch = (void *)ecs_dispatch,
	.tick = (void *)ecs_tick,
	.running = (void *)ecs_running,
	.stopping = (void *)ecs_stopping,
	.quiescent = (void *)ecs_quiescent,
	.init_task = (void *)ecs_init_task,
	.exit_task = (void *)ecs_exit_task,
	.init = (void *)ecs_init,
	.exit = (void *)ecs_exit,
	.timeout_ms = 10000,
	.name = "ecs",
};
