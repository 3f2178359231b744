// SPDX-License-Identifier: GPL-2.0
/*
 * Spinning waiters. A waiter has preemption disabled like a holder; the
 * contention tracepoints tell the two apart, and the wait descriptor says
 * which word ends the wait.
 *
 * Waits nest: an interrupt may spin while it interrupts a spin. Each CPU keeps
 * what its line showed before each wait, and puts it back at the end.
 *
 * Not seen: the first waiter of a native qspinlock, which spins on the pending
 * bit before the tracepoint, and test-and-set locks (virt_spin_lock), which
 * have no tracepoint. Both look like holders.
 */
#include <linux/mm.h>
#include <linux/rcupdate.h>
#include <linux/spinlock.h>
#include <trace/events/lock.h>

#include "compat.h"
#include "ecs.h"

/* What ends a wait: (*addr & mask) == value. */
struct ecs_awaited {
	u64 addr;
	u64 mask;
	u64 value;
	u32 width;
	u32 holder;
};

static struct ecs_awaited ecs_describe(void *lock, unsigned int flags)
{
	struct ecs_awaited a = { .width = VIRTIO_ECS_WIDTH_32 };

	switch (flags) {
#ifdef CONFIG_QUEUED_SPINLOCKS
	case LCB_F_SPIN:
		a.addr = ecs_phys(lock);
		a.mask = 0xffff;	/* locked and pending */
		break;
#endif
#ifdef CONFIG_QUEUED_RWLOCKS
	case LCB_F_SPIN | LCB_F_READ:
		a.addr = ecs_phys(&((struct qrwlock *)lock)->cnts);
		a.mask = _QW_LOCKED;
		break;
	case LCB_F_SPIN | LCB_F_WRITE:
		/* The writer in front leaves _QW_WAITING set while it spins. */
		a.addr = ecs_phys(&((struct qrwlock *)lock)->cnts);
		a.mask = U32_MAX & ~_QW_WAITING;
		break;
#endif
#if !defined(CONFIG_PREEMPT_RT) && defined(CONFIG_64BIT)
	case LCB_F_SPIN | LCB_F_MUTEX: {
		struct task_struct *owner;

		a.addr = ecs_phys(&((struct mutex *)lock)->owner);
		a.mask = ~(u64)ECS_OWNER_FLAGS;
		a.width = VIRTIO_ECS_WIDTH_64;
		/* The owner lives as long as this grace period. */
		rcu_read_lock();
		owner = (void *)(atomic_long_read(&((struct mutex *)lock)->owner) &
				 ~ECS_OWNER_FLAGS);
		a.holder = owner ? task_cpu(owner) + 1 : 0;
		rcu_read_unlock();
		break;
	}
#endif
	default:
		break;
	}
	if (!a.addr || a.holder > VIRTIO_ECS_MAX_VCPUS)
		a.holder = 0;
	if (!a.addr)
		a.mask = 0;
	return a;
}

static void ecs_line_wait(struct virtio_ecs_guest_line *line, const struct ecs_awaited *a,
			  u32 waiting)
{
	WRITE_ONCE(line->waiting, cpu_to_le32(VIRTIO_ECS_WAIT_ENTER));
	/* The descriptor changes behind WAIT_ENTER only. */
	smp_wmb();
	WRITE_ONCE(line->wait_addr, cpu_to_le64(a->addr));
	WRITE_ONCE(line->wait_mask, cpu_to_le64(a->mask));
	WRITE_ONCE(line->wait_value, cpu_to_le64(a->value));
	WRITE_ONCE(line->wait_holder, cpu_to_le32(a->holder));
	WRITE_ONCE(line->wait_width, cpu_to_le32(a->width));
	/* The host reads waiting before the descriptor. */
	smp_store_release(&line->waiting, cpu_to_le32(waiting));
}

static void ecs_wait_push(struct ecs_cpu *pc, void *lock, unsigned int flags)
{
	struct virtio_ecs_guest_line *line = pc->guest;
	struct ecs_awaited awaited;
	struct ecs_wait *wait;

	if (pc->nr_waits == ECS_MAX_WAITS) {
		ecs_count(ECS_C_WAITS_DROPPED);
		return;
	}
	wait = &pc->waits[pc->nr_waits++];
	wait->lock = lock;
	wait->waiting = le32_to_cpu(line->waiting);
	wait->addr = le64_to_cpu(line->wait_addr);
	wait->mask = le64_to_cpu(line->wait_mask);
	wait->value = le64_to_cpu(line->wait_value);
	wait->width = le32_to_cpu(line->wait_width);
	awaited = ecs_describe(lock, flags);
	ecs_line_wait(line, &awaited, VIRTIO_ECS_WAIT_SPIN);
	ecs_count(ECS_C_WAITS);
}

/* Ends the wait for @lock, and those inside it whose end was not seen. */
static void ecs_wait_pop(struct ecs_cpu *pc, void *lock)
{
	struct virtio_ecs_guest_line *line = pc->guest;
	struct ecs_awaited awaited = {};
	struct ecs_wait *wait;
	int i;

	for (i = pc->nr_waits - 1; i >= 0 && pc->waits[i].lock != lock; i--)
		;
	if (i < 0)
		return;
	wait = &pc->waits[i];
	pc->nr_waits = i;
	if (wait->waiting == VIRTIO_ECS_WAIT_NONE) {
		/* The section that follows is counted already. */
		smp_store_release(&line->waiting, cpu_to_le32(VIRTIO_ECS_WAIT_NONE));
		return;
	}
	awaited.addr = wait->addr;
	awaited.mask = wait->mask;
	awaited.value = wait->value;
	awaited.width = wait->width;
	ecs_line_wait(line, &awaited, wait->waiting);
}

/* A spin keeps preemption disabled: no wait outlives its task's turn on the CPU. */
void ecs_waits_reset(struct ecs_cpu *pc)
{
	pc->nr_waits = 0;
	/* As at the end of a wait. */
	smp_store_release(&pc->guest->waiting, cpu_to_le32(VIRTIO_ECS_WAIT_NONE));
}

/*
 * Interrupts are kept out rather than preemption: the latter would count in
 * the word, as a section that is none.
 */
void ecs_wait_begin(void *lock, unsigned int flags)
{
	unsigned long irqs;
	struct ecs_cpu *pc;

	if (in_nmi())
		return;
	raw_local_irq_save(irqs);
	pc = this_cpu_ptr(&ecs_cpus);
	/* A mutex waiter alternates between spinning and sleeping, without an end. */
	if (pc->nr_waits && (flags & LCB_F_MUTEX))
		ecs_wait_pop(pc, lock);
	if ((flags & LCB_F_SPIN) && !(flags & LCB_F_RT))
		ecs_wait_push(pc, lock, flags);
	raw_local_irq_restore(irqs);
	if (ecs_sections == ECS_SECTIONS_CONTENDED)
		ecs_task_waits(lock, flags);
}

void ecs_wait_end(void *lock, int ret)
{
	unsigned long irqs;
	struct ecs_cpu *pc;

	if (in_nmi())
		return;
	/* The section is counted before its wait ends. */
	if (ecs_sections == ECS_SECTIONS_CONTENDED)
		ecs_task_wait_over(lock, ret);
	raw_local_irq_save(irqs);
	pc = this_cpu_ptr(&ecs_cpus);
	if (pc->nr_waits)
		ecs_wait_pop(pc, lock);
	raw_local_irq_restore(irqs);
}
