// SPDX-License-Identifier: GPL-2.0
/*
 * The scheduler. Every VM is one entity of weighted fair virtual time, whatever the number of its
 * vCPUs; so is every other thread of the host, which comes first after a sleep and so has low
 * latency. All preemption goes through ecs_dispatch(): there ecs_policy.h decides whether a vCPU in a
 * section runs on, and for how long.
 *
 * Guest words are read in dispatch, stopping and the timer only, while the vCPU's thread is the one
 * on the CPU; never in running, where the address space is another one's.
 *
 *   maps.h    state, and how it is found       queues.h  who waits, who comes next
 *   host.h    threads that are no vCPUs        core.h    CPUs that are one core
 *   cgroups.h weights and limits of cgroups    limited.h threads that wait for theirs
 *   guest.h   what a guest publishes           turn.h    a vCPU's turn, and its books
 *   hints.h   what leaves: hints, histograms   looks.h   whether a vCPU stays on its CPU
 *   ecs_policy.h, shared.h: shared with the daemon
 */
#include "core.h"
#include "limited.h"
#include "looks.h"
#include "queues.h"

char _license[] SEC("license") = "GPL";

SEC("struct_ops/ecs_select_cpu")
__s32 BPF_PROG(ecs_select_cpu, struct task_struct *p, __s32 prev_cpu, __u64 wake_flags)
{
	bool is_idle = false;
	__s32 cpu = scx_bpf_select_cpu_dfl(p, prev_cpu, wake_flags, &is_idle);

	/* What has a limit, or would have to wait for the core, goes the long way: dispatch knows when and
	 * where it may run.
	 */
	if (is_idle && !is_limited(cgroup_of(p)) && fits(p, cpu))
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, HOST_SLICE_NS, 0);
	return cpu;
}

/* Time a vCPU slept is no credit against its siblings; nor is it behind those that share its CPU. */
static void raise_inside(struct task_struct *p, struct vcpu_ref *ref)
{
	__u64 slice_ns = setup.params.slice_ns;
	__u64 floor_ns = ecs_sub(ref->vm->inner_vclock_ns, slice_ns);
	const struct ecs_cpu *state = cpu_state(scx_bpf_task_cpu(p));
	const struct task_struct *head = scx_bpf_dsq_peek(DSQ_VM + ref->vm_index);
	struct vcpu_ref sibling;

	if (state && find_vcpu(&sibling, state->vcpu) && sibling.vm_index == ref->vm_index)
		floor_ns = ecs_min(floor_ns, sibling.vcpu->inner_vtime_ns);
	if (head)
		floor_ns = ecs_min(floor_ns, head->scx.dsq_vtime);
	if (ref->vcpu->inner_vtime_ns < floor_ns)
		ref->vcpu->inner_vtime_ns = floor_ns;
}

static void enqueue_vcpu(struct task_struct *p, struct vcpu_ref *ref, __u64 enq_flags)
{
	struct ecs_vcpu *vcpu = ref->vcpu;
	__u64 slice_ns = setup.params.slice_ns, key;

	wake(ref, scx_bpf_task_cpu(p));
	raise_inside(p, ref);
	/* Set back by two slices a rank: a head comes first, and none waits for ever. */
	key = vcpu->inner_vtime_ns + (vcpu->rank & 3) * ecs_boost_ns(policy());
	scx_bpf_dsq_insert_vtime(p, DSQ_VM + ref->vm_index, slice_ns, key, enq_flags);
}

SEC("struct_ops/ecs_enqueue")
void BPF_PROG(ecs_enqueue, struct task_struct *p, __u64 enq_flags)
{
	struct vcpu_ref ref;
	__u64 vtime_ns;

	if (vcpu_of(&ref, p)) {
		enqueue_vcpu(p, &ref, enq_flags);
		if (enq_flags & SCX_ENQ_WAKEUP)
			__sync_fetch_and_add(&ref.vm->wakeups, 1);
		/* A VM that woke far behind need not wait for the end of a slice either. */
		vtime_ns = ecs_add(ref.vm->vm.ledger.vtime_ns, setup.params.slice_ns / 2);
	} else {
		__u64 now_ns = bpf_ktime_get_ns(), until_ns = limited_until(cgroup_of(p), now_ns);

		if (until_ns && !must_stay(p)) {
			wait_for_limit(p, until_ns, now_ns, enq_flags);
			return;
		}
		vtime_ns = place_of(p, p->scx.dsq_vtime, enq_flags & SCX_ENQ_WAKEUP);
		scx_bpf_dsq_insert_vtime(p, queue_of(p), HOST_SLICE_NS, vtime_ns, enq_flags);
	}
	if (enq_flags & SCX_ENQ_WAKEUP)
		press(p, vtime_ns);
	call_for(p);
}

/* Whether somebody waits whom this VM, in virtual time, must not let wait. */
static void weigh(struct ecs_input *in, const struct waiting *w, const struct ecs_vm_state *vm,
		  __u64 limited_until_ns)
{
	__u64 vtime_ns = vm->vm.ledger.vtime_ns;

	in->urgent = (w->host_dsq && ecs_is_urgent(w->host_vtime_ns, vtime_ns)) ||
		     (w->vm != NO_VM && ecs_is_urgent(ecs_add(w->vm_vtime_ns, setup.params.slice_ns),
						      vtime_ns)) ||
		     limited_until_ns;
	/* Who waits behind this VM in virtual time does not want the CPU yet; nor does its own VM
	 * stand still while a spinner that can get nowhere has it.
	 */
	in->others = in->urgent || (w->vm != NO_VM && (w->vm_vtime_ns <= vtime_ns ||
						       in->queue == ECS_QUEUE_HOPELESS));
}

/* Whether the vCPU runs on; if it does not, `first` is the VM that goes next, or NO_VM. */
static __noinline bool runs_on(struct task_struct *p, __u32 cpu, __u32 *first, __u32 *here)
{
	struct ecs_cpu_stats *stats = stats_at(cpu);
	struct ecs_cpu *state = cpu_state(cpu);
	struct ecs_input in = { .event = ECS_EVENT_LOOK };
	struct ecs_decision decision;
	struct vcpu_ref ref;
	struct waiting w;
	__u64 now_ns = bpf_ktime_get_ns(), until_ns;
	__u32 section;
	bool alone, extended, rung, wanted;

	if (!p || !state || !vcpu_of(&ref, p))
		return false;
	*here = ref.vm_index;
	rung = state->rung;
	state->rung = false;
	if (!ref.vcpu->in_turn)
		return false;
	book(&ref, p, ecs_sub(now_ns, ref.vcpu->since_ns), now_ns);
	ref.vm->limited = is_limited(cgroup_of(p));
	until_ns = throttled_until(ref.vm, p, now_ns);
	in.ran_ns = ref.vcpu->turn_ran_ns;
	look_around(&w, cpu, NULL, ref.vm_index, now_ns);
	wanted = core_is_wanted(cpu);
	alone = nobody(&w) && !ref.vm->limited && !wanted;
	/* What a vCPU does that nobody wants to take the CPU from is nobody's business. */
	if (!alone)
		look_and_place(p, &ref, state, &in);
	state->gives = false;
	weigh(&in, &w, ref.vm, until_ns);
	in.others |= wanted;
	rein_where_due(cpu, &w, ref.vm->vm.ledger.vtime_ns);
	if (state->lost_dsq)
		in.urgent = in.others = true;
	/* Its vCPUs want to run at the same time: now. */
	if (state->gathered == w.vm + 1 && in.others)
		in.urgent = true;
	state->gathered = 0;
	if (rung && (ecs_turn_is_extended(&ref.vcpu->turn) || ref.vm->stuck)) {
		/* At a place that suits it, for its siblings in the queue if for nobody else. */
		in.event = ECS_EVENT_HAND_BACK;
		in.others |= w.vm != NO_VM;
	}
	tell_overloaded(&ref, !alone);
	if (decide(ref.index, ref.vcpu, &in, &decision))
		return false;
	if (!alone && stats)
		observe(&stats->decision, bpf_ktime_get_ns() - now_ns);
	switch (decision.kind) {
	case ECS_RENEW:
		begin_turn(ref.index, cpu);
		decision.for_ns = ecs_turn_left(&ref.vcpu->turn);
		break;
	case ECS_LEAVE:
		ask(&ref, 0);
		tell_granted(&ref, false);
		count_preemption(&ref);
		__sync_fetch_and_add(&ref.vm->rotations, 1);
		section = ecs_section_of(policy(), &in.snap, in.queue);
		if (decision.leave == ECS_LEAVE_DENIED)
			count_critical(&ref, ECS_CAUSE_DENIED, section, now_ns);
		else if (decision.leave == ECS_LEAVE_EXPIRED)
			count_critical(&ref, ECS_CAUSE_EXPIRED, section, now_ns);
		if (ref.vm->lock_bound && p == bpf_get_current_task_btf())
			survey(ref.index, &in.snap, true);
		/* To the sibling it waits for, or makes way for, if that one can run here; not for ever,
		 * or two vCPUs that make way for each other would keep the CPU.
		 */
		if (!in.urgent && (decision.leave == ECS_LEAVE_HOPELESS ||
				   (decision.leave == ECS_LEAVE_HAND_BACK && ref.vm->stuck)))
			*first = ref.vm_index;
		return false;
	}
	extended = ecs_turn_is_extended(&ref.vcpu->turn);
	tell_granted(&ref, extended);
	if (alone) {
		ask(&ref, 0);
		let_run_on(p, state);
		return true;
	}
	if (ref.vm->lock_bound && p == bpf_get_current_task_btf())
		survey(ref.index, &in.snap, false);
	ask(&ref, wanted_of(ref.vm, extended || in.urgent));
	if (extended || in.urgent)
		state->look_ns = setup.look_ns;
	let_run(p, state, extended || in.urgent, decision.for_ns, now_ns);
	return true;
}

SEC("struct_ops/ecs_dispatch")
void BPF_PROG(ecs_dispatch, __s32 cpu, struct task_struct *prev)
{
	__u32 first = NO_VM, here = NO_VM;
	__u64 now_ns = bpf_ktime_get_ns();
	struct ecs_cpu *state = cpu_state(cpu);
	struct waiting w = { .vm = NO_VM };
	bool goes_on = prev && prev->scx.flags & SCX_TASK_QUEUED, is_vcpu;
	struct vcpu_ref ref;
	__u64 until_ns;

	if (!state)
		return;
	if (goes_on && runs_on(prev, cpu, &first, &here))
		return;
	is_vcpu = goes_on && vcpu_of(&ref, prev);
	if (goes_on && !is_vcpu)
		book_host(prev, cpu, state, now_ns);
	if (run_next(cpu, first, here, goes_on, &w, now_ns))
		return;
	/* A vCPU at its limit waits among the others of its VM, a thread of the host apart. */
	until_ns = goes_on ? limited_until(cgroup_of(prev), now_ns) : 0;
	if (is_vcpu && until_ns && (!w.refill_ns || until_ns < w.refill_ns))
		w.refill_ns = until_ns;
	if (w.refill_ns > now_ns)
		bpf_timer_start(&state->timer, w.refill_ns - now_ns, TIMER_CPU_PIN);
	/* Nobody could take the CPU after all. Somebody may be there already, and wait for the core. */
	if (!goes_on || until_ns || (is_vcpu && core_is_wanted(cpu)))
		return;
	if (!is_vcpu) {
		scx_bpf_task_set_slice(prev, HOST_SLICE_NS);
	} else {
		begin_turn(ref.index, cpu);
		tell_preempted(&ref, false);
		let_run(prev, state, false, ecs_turn_left(&ref.vcpu->turn), now_ns);
	}
}

/* Only a net: whoever begins to wait calls for the CPU, and the timer ends turns. */
SEC("struct_ops/ecs_tick")
void BPF_PROG(ecs_tick, struct task_struct *p)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct ecs_cpu *state = cpu_state(cpu);
	__u64 now_ns = bpf_ktime_get_ns();
	struct waiting w;

	if (!state || !state->vcpu)
		return;
	if (state->endless) {
		look_around(&w, cpu, NULL, NO_VM, now_ns);
		if (!nobody(&w) || core_is_wanted(cpu) || is_limited(cgroup_of(p)))
			scx_bpf_task_set_slice(p, 0);
	} else if (now_ns > state->end_ns) {
		scx_bpf_task_set_slice(p, 0);
	}
}

SEC("struct_ops/ecs_running")
void BPF_PROG(ecs_running, struct task_struct *p)
{
	__u32 cpu = scx_bpf_task_cpu(p);	/* not this one, where something about the thread changes */
	struct ecs_cpu *state = cpu_state(cpu);
	__u64 now_ns = bpf_ktime_get_ns(), left_ns;
	struct vcpu_ref ref;
	struct waiting w;
	bool extended, alone;

	if (!state)
		return;
	state->vcpu = 0;
	state->since_ns = now_ns;
	occupy(state, cpu, p);
	if (!vcpu_of(&ref, p)) {
		if (state->reined_ns && p->scx.dsq_vtime > state->reined_ns)
			scx_bpf_task_set_dsq_vtime(p, state->reined_ns);
		state->reined_ns = 0;
		return;
	}
	wake(&ref, cpu);
	count_return(&ref, now_ns);
	if (ref.vm->inner_vclock_ns < ref.vcpu->inner_vtime_ns)
		ref.vm->inner_vclock_ns = ref.vcpu->inner_vtime_ns;
	if (ref.vm->first == ref.index % ECS_MAX_VCPUS + 1)
		ref.vm->first = 0;
	ref.vcpu->since_ns = now_ns;
	count_move(&ref, cpu);
	if (!ref.thread->base_ns)
		ref.thread->base_ns = p->se.sum_exec_runtime - ref.vcpu->state.cpu_ns;
	ref.vcpu->running = 1;
	__sync_fetch_and_add(&ref.vm->nr_running, 1);
	if (!ref.vcpu->in_turn)
		begin_turn(ref.index, cpu);
	state->vcpu = ref.index + 1;
	if (state->tid != (__u32)p->pid)
		state->rung = false;
	state->tid = p->pid;
	look_around(&w, cpu, NULL, ref.vm_index, now_ns);
	ref.vm->limited = is_limited(cgroup_of(p));
	alone = nobody(&w) && !ref.vm->limited && !core_is_wanted(cpu);
	tell_overloaded(&ref, !alone);
	if (alone) {
		let_run_on(p, state);
		return;
	}
	extended = ecs_turn_is_extended(&ref.vcpu->turn);
	ask(&ref, wanted_of(ref.vm, extended));
	left_ns = extended ? ecs_sub(setup.params.extension_ns, ref.vcpu->turn.used_ns) :
			     ecs_turn_left(&ref.vcpu->turn);
	state->look_ns = extended ? setup.look_ns : first_look_ns(ref.vm);
	let_run(p, state, extended, left_ns, now_ns);
}

/*
 * Books the rest of what a vCPU ran. By now the kernel has counted, too, and its word is the last: else
 * the time of switches would be nobody's, and a VM that switches often would have more than its share.
 */
static void book_stint(struct vcpu_ref *ref, struct task_struct *p, __u64 now_ns)
{
	__u64 base_ns = ref->thread->base_ns, ran_ns;

	ran_ns = base_ns ? ecs_sub(p->se.sum_exec_runtime, base_ns + ref->vcpu->state.cpu_ns) :
			   ecs_sub(now_ns, ref->vcpu->since_ns);
	book(ref, p, ran_ns, now_ns);
}

SEC("struct_ops/ecs_stopping")
void BPF_PROG(ecs_stopping, struct task_struct *p, bool runnable)
{
	__u32 cpu = scx_bpf_task_cpu(p);
	struct ecs_cpu *state = cpu_state(cpu);
	__u64 now_ns = bpf_ktime_get_ns();
	struct ecs_input in = { 0 };
	struct vcpu_ref ref;
	__u32 section;

	if (!state)
		return;
	state->occupied = false;
	if (!vcpu_of(&ref, p)) {
		book_host(p, cpu, state, now_ns);
		state->since_ns = 0;
		return;
	}
	/* Without that it became a vCPU while it ran: there is nothing to book yet. */
	if (state->vcpu) {
		book_stint(&ref, p, now_ns);
		ref.vcpu->running = 0;
		__sync_fetch_and_add(&ref.vm->nr_running, -1);
		ask(&ref, 0);
		if (runnable && ref.vcpu->in_turn) {
			/* Not by our word: something above this class. The turn goes on later. */
			count_preemption(&ref);
			look_and_place(p, &ref, state, &in);
			section = ecs_section_of(policy(), &in.snap, in.queue);
			if (section != ECS_SECTION_NONE)
				count_critical(&ref, ECS_CAUSE_HOST, section, now_ns);
		}
	}
	state->vcpu = 0;
	state->end_ns = 0;
	state->gives = false;
	set_endless(state, false);
}

SEC("struct_ops/ecs_quiescent")
void BPF_PROG(ecs_quiescent, struct task_struct *p, __u64 deq_flags)
{
	struct ecs_input in = { .event = ECS_EVENT_BLOCKED };
	struct ecs_decision decision;
	struct vcpu_ref ref;

	if (!vcpu_of(&ref, p))
		return;
	if (ref.vcpu->runnable) {
		ref.vcpu->runnable = 0;
		__sync_fetch_and_add(&ref.vm->nr_runnable, -1);
	}
	/* Without that flag the kernel changes something about the thread, which runs on at once: as
	 * when it is preempted where it must not migrate, in the program below that hears a doorbell.
	 */
	if (deq_flags & SCX_DEQ_SLEEP && ref.vcpu->in_turn) {
		in.ran_ns = ref.vcpu->turn_ran_ns;
		decide(ref.index, ref.vcpu, &in, &decision);
		tell_granted(&ref, false);
	}
}

/*
 * A guest hands its CPU to a sibling (KVM's directed yield), of which it waits for something: what it waits
 * for stands still, whatever section it is in, and that one comes first in its VM.
 */
SEC("struct_ops/ecs_yield")
bool BPF_PROG(ecs_yield, struct task_struct *from, struct task_struct *to)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct ecs_cpu_stats *stats = stats_at(cpu);
	struct ecs_cpu *state = cpu_state(cpu);
	struct vcpu_ref giver, taker;

	scx_bpf_task_set_slice(from, 0);
	if (!to || !state || !vcpu_of(&giver, from) || !vcpu_of(&taker, to) ||
	    giver.vm_index != taker.vm_index || !taker.vcpu->runnable || taker.vcpu->running)
		return false;
	taker.vm->first = taker.index % ECS_MAX_VCPUS + 1;
	state->gives = true;
	if (stats)
		stats->yields++;
	return true;
}

/* Which of two threads of a core's CPUs comes first. */
SEC("struct_ops/ecs_core_sched_before")
bool BPF_PROG(ecs_core_sched_before, struct task_struct *a, struct task_struct *b)
{
	return standing_ns(a) < standing_ns(b);
}

/*
 * A vCPU rings its doorbell, which is an eventfd: KVM signals it in the context of the vCPU's own
 * thread. What it rings for is decided where all is decided, after an interrupt at once.
 */
SEC("fentry/eventfd_signal_mask")
int BPF_PROG(ecs_doorbell)
{
	struct task_struct *current = bpf_get_current_task_btf();
	__u32 cpu = bpf_get_smp_processor_id();
	struct ecs_cpu_stats *stats = stats_at(cpu);
	struct ecs_cpu *state;
	struct vcpu_ref ref;

	if (!vcpu_of(&ref, current) || !ref.vcpu->yield)
		return 0;
	state = cpu_state(cpu);
	if (!state || state->tid != (__u32)current->pid || !state->vcpu || state->rung)
		return 0;
	if (stats)
		stats->doorbells++;
	state->rung = true;
	bpf_timer_start(&state->timer, 0, TIMER_CPU_PIN);
	return 0;
}

/* CPUs that come and go need nothing here; without these the kernel would end the scheduler. */
SEC("struct_ops/ecs_cpu_online")
void BPF_PROG(ecs_cpu_online, __s32 cpu)
{
}

SEC("struct_ops/ecs_cpu_offline")
void BPF_PROG(ecs_cpu_offline, __s32 cpu)
{
	struct ecs_cpu *state = cpu_state(cpu);

	if (state)
		set_endless(state, false);
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
	struct vcpu_ref ref;
	__u64 seq;

	if (!vcpu_of(&ref, p))
		return;
	ref.thread->number = 0;
	if (!ecs_turn_is_extended(&ref.vcpu->turn))
		return;
	seq = open_books(&ref);
	ecs_vm_abort_extension(&ref.vm->vm);
	close_books(&ref);
	ref.vcpu->turn = (struct ecs_turn){ 0 };
	record(&ref, ECS_OP_ABORT, seq, 0, 0, NULL, NULL);
}

SEC("struct_ops.s/ecs_init")
__s32 BPF_PROG(ecs_init)
{
	__s32 error = scx_bpf_create_dsq(DSQ_HOST, -1);
	struct ecs_refill *refill;
	__u32 key = 0;
	int i;

	refill = bpf_map_lookup_elem(&refills, &key);
	if (!refill)
		return -22;
	if (!error)
		error = scx_bpf_create_dsq(DSQ_LIMITED, -1);
	if (!error)
		error = bpf_timer_init(&refill->timer, &refills, CLOCK_MONOTONIC);
	if (!error)
		error = bpf_timer_set_callback(&refill->timer, limits_refilled);
	bpf_for(i, 0, ECS_MAX_VMS)
		if (!error)
			error = scx_bpf_create_dsq(DSQ_VM + i, -1);
	bpf_for(i, 0, setup.nr_cpus) {
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
	bpf_probe_read_kernel_str(exit_message, sizeof(exit_message), info->msg);
	exit_code = info->exit_code;
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
	.yield = (void *)ecs_yield,
	.core_sched_before = (void *)ecs_core_sched_before,
	.cpu_online = (void *)ecs_cpu_online,
	.cpu_offline = (void *)ecs_cpu_offline,
	.init_task = (void *)ecs_init_task,
	.exit_task = (void *)ecs_exit_task,
	.init = (void *)ecs_init,
	.exit = (void *)ecs_exit,
	/* Whatever the kernel itself put into a CPU's queue would run next without a word to dispatch. */
	.flags = SCX_OPS_ENQ_LAST | SCX_OPS_ENQ_EXITING | SCX_OPS_ENQ_MIGRATION_DISABLED,
	.timeout_ms = 10000,
	.name = "ecs",
};
