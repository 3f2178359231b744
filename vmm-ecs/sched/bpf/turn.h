/* SPDX-License-Identifier: GPL-2.0 */
/* A vCPU's turn: who it is, what it does, what it costs, and what ecs_policy.h says about it. */
#ifndef ECS_TURN_H
#define ECS_TURN_H

#include "guest.h"
#include "maps.h"

/* Takes over what the daemon wrote about a VM, and a VM that is new in its place. */
static void adopt(struct vcpu_ref *ref)
{
	struct ecs_vm_entry *vm = ref->vm;
	__u32 epoch = ref->vm_config->epoch, weight = ref->vm_config->weight;
	__u64 clock = vclock_ns;

	bpf_spin_lock(&vm->lock);
	if (vm->state.epoch != epoch) {
		vm->state.vm.counters = (struct ecs_counters){ 0 };
		ecs_ledger_new(&vm->state.vm.ledger, weight, clock);
		vm->state.inner_vclock_ns = 0;
		vm->state.nr_runnable = 0;
		vm->state.epoch = epoch;
	}
	if (vm->state.vm.ledger.weight != weight && weight)
		ecs_ledger_set_weight(&vm->state.vm.ledger, weight);
	vm->state.vm.enabled = ref->vm_config->enabled;
	bpf_spin_unlock(&vm->lock);
	if (ref->vcpu->epoch != epoch)
		*ref->vcpu = (struct ecs_vcpu){ .epoch = epoch };
}

static void look_at(const struct vcpu_ref *ref, struct ecs_snapshot *snap)
{
	if (read_snapshot(ref->index, snap))
		ref->vcpu->faults++;
}

/* The vCPU's place in its lock queue. Reads the words of its siblings, who share its address space. */
__noinline __u32 queue_place(__u32 index, const struct ecs_snapshot *own __arg_nonnull)
{
	__u32 vm_index = index / ECS_MAX_VCPUS, base = vm_index * ECS_MAX_VCPUS;
	struct ecs_vm_config *config = bpf_map_lookup_elem(&vm_configs, &vm_index);
	struct ecs_queue_walk walk;
	__u32 place = ecs_queue_begin(&walk, own);
	__u32 nr;
	int i;

	if (place != ECS_QUEUE_UNKNOWN || !config)
		return place;
	nr = config->nr_vcpus;
	if (nr > ECS_MAX_VCPUS)
		nr = ECS_MAX_VCPUS;
	bpf_for(i, 0, nr) {
		__u32 other = base + i;
		struct ecs_vcpu *vcpu = bpf_map_lookup_elem(&vcpus, &other);
		struct ecs_snapshot snap;

		if (other == index || !vcpu)
			continue;
		read_snapshot(other, &snap);
		ecs_queue_see(&walk, own, i, &snap, vcpu->running);
	}
	return ecs_queue_end(&walk, own);
}

/* Books what the vCPU ran since the last time. */
static void book(struct vcpu_ref *ref, __u64 now_ns)
{
	struct ecs_vm_entry *vm = ref->vm;
	__u64 ran_ns = ecs_sub(now_ns, ref->vcpu->since_ns);

	ref->vcpu->since_ns = now_ns;
	ref->vcpu->turn_ran_ns += ran_ns;
	ref->vcpu->inner_vtime_ns += ran_ns;
	ref->vcpu->state.cpu_ns += ran_ns;
	bpf_spin_lock(&vm->lock);
	ecs_ledger_charge(&vm->state.vm.ledger, ran_ns);
	bpf_spin_unlock(&vm->lock);
}

__noinline int begin_turn(__u32 index, __u32 cpu_index)
{
	__u32 vm_index = index / ECS_MAX_VCPUS;
	struct ecs_vm_entry *vm = bpf_map_lookup_elem(&vms, &vm_index);
	struct ecs_vcpu *vcpu = bpf_map_lookup_elem(&vcpus, &index);
	struct ecs_cpu *cpu = cpu_state(cpu_index);
	__u64 bonus_ns, taken;

	if (!vm || !vcpu || !cpu)
		return -1;
	bonus_ns = cpu->bonus_ns;
	bpf_spin_lock(&vm->lock);
	taken = ecs_turn_start(&vcpu->turn, policy(), &vm->state.vm, &vcpu->state, bonus_ns);
	bpf_spin_unlock(&vm->lock);
	cpu->bonus_ns = taken;
	vcpu->turn_ran_ns = 0;
	vcpu->in_turn = 1;
	return 0;
}

__noinline int decide(__u32 index, const struct ecs_input *in __arg_nonnull,
		      struct ecs_decision *decision __arg_nonnull)
{
	__u32 vm_index = index / ECS_MAX_VCPUS;
	struct ecs_vm_entry *vm = bpf_map_lookup_elem(&vms, &vm_index);
	struct ecs_vcpu *vcpu = bpf_map_lookup_elem(&vcpus, &index);

	if (!vm || !vcpu)
		return -1;
	bpf_spin_lock(&vm->lock);
	ecs_turn_decide(decision, &vcpu->turn, policy(), &vm->state.vm, &vcpu->state, in);
	bpf_spin_unlock(&vm->lock);
	vcpu->turn_ran_ns = 0;
	if (decision->kind == ECS_EXTEND)
		vcpu->grants++;
	if (decision->kind == ECS_LEAVE)
		vcpu->in_turn = 0;
	return 0;
}

static void count_critical(struct vcpu_ref *ref, __u32 cause, __u64 now_ns)
{
	if (cause == ECS_CAUSE_DENIED)
		__sync_fetch_and_add(&ref->vm->state.critical[ECS_CAUSE_DENIED], 1);
	else if (cause == ECS_CAUSE_EXPIRED)
		__sync_fetch_and_add(&ref->vm->state.critical[ECS_CAUSE_EXPIRED], 1);
	else
		__sync_fetch_and_add(&ref->vm->state.critical[ECS_CAUSE_HOST], 1);
	ref->vcpu->critical++;
	ref->vcpu->critical_since_ns = now_ns;
}

static void count_preemption(struct vcpu_ref *ref)
{
	ref->vcpu->preemptions++;
	__sync_fetch_and_add(&ref->vm->state.preemptions, 1);
}

#endif /* ECS_TURN_H */
