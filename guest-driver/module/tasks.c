// SPDX-License-Identifier: GPL-2.0
/*
 * Preemptable sections. They belong to tasks: p_count of a CPU is the count of
 * the task that runs there.
 *
 * A task has sections for four reasons: it holds mutexes or rwsems that fprobe
 * saw it take (sections=all), it holds locks that somebody waits for
 * (sections=contended), another module said so, or user space did.
 *
 * Only tasks with a section, or in a sleeping wait, have an entry here, in a
 * pool of fixed size. Tasks are compared, never followed: a stale pointer finds
 * nothing. A wrong guess lasts until the next context switch.
 *
 * Locking: tasks_lock guards both tables and every p_count, with one
 * exception. With sections=all nothing is written for another CPU, and a task
 * changes its own entry and its CPU's count with interrupts off.
 */
#include <linux/hash.h>
#include <linux/jiffies.h>
#include <linux/mutex.h>
#include <linux/rwsem.h>
#include <linux/slab.h>
#include <trace/events/lock.h>

#include "compat.h"
#include "ecs.h"

#define ECS_NR_TASKS		1024
#define ECS_NR_MARKS		1024
#define ECS_HASH_BITS		10
#define ECS_MAX_HELD		8
/* A section this old is a leak: a lock released by another task, or unseen. */
#define ECS_HELD_MAX_AGE	HZ

struct ecs_held {
	const void *lock;
	unsigned long since;
};

struct ecs_task {
	struct hlist_node node;
	struct task_struct *task;	/* NULL: exited, but still blamed */
	bool used;			/* not in the pool */
	unsigned int blamed;		/* marks that name this task */
	unsigned int calls;		/* sections of other modules */
	struct ecs_user *user;		/* of its section in user space */
	void *waits_on;			/* contended lock, in a sleeping wait */
	unsigned int nr_held;
	struct ecs_held held[ECS_MAX_HELD];
};

/* A lock somebody sleeps for, and who holds it. */
struct ecs_mark {
	struct hlist_node node;
	void *lock;
	struct ecs_task *owner;
	unsigned int waiters;
};

static DEFINE_RAW_SPINLOCK(tasks_lock);
static struct hlist_head task_hash[1 << ECS_HASH_BITS];
static struct hlist_head mark_hash[1 << ECS_HASH_BITS];
static struct hlist_head free_tasks;
static struct hlist_head free_marks;
static struct ecs_task *task_pool;
static struct ecs_mark *mark_pool;
static unsigned int nr_tasks;

enum ecs_sections ecs_sections;

static struct hlist_head *ecs_bucket(struct hlist_head *table, const void *key)
{
	return &table[hash_ptr(key, ECS_HASH_BITS)];
}

/* ---- entries of tasks: tasks_lock held ---- */

static struct ecs_task *ecs_task_find(const struct task_struct *task)
{
	struct ecs_task *t;

	hlist_for_each_entry(t, ecs_bucket(task_hash, task), node)
		if (t->task == task)
			return t;
	return NULL;
}

static struct ecs_task *ecs_task_get(struct task_struct *task)
{
	struct ecs_task *t = ecs_task_find(task);

	if (t)
		return t;
	if (hlist_empty(&free_tasks)) {
		ecs_count(ECS_C_TASKS_DROPPED);
		return NULL;
	}
	t = hlist_entry(free_tasks.first, struct ecs_task, node);
	hlist_del(&t->node);
	memset(t, 0, sizeof(*t));
	t->task = task;
	t->used = true;
	hlist_add_head(&t->node, ecs_bucket(task_hash, task));
	nr_tasks++;
	return t;
}

/* Back into the pool, if nothing is left to say about its task. */
static void ecs_task_put(struct ecs_task *t)
{
	if (!t->used || t->blamed || t->calls || t->user || t->waits_on || t->nr_held)
		return;
	t->used = false;
	if (t->task)
		hlist_del(&t->node);
	hlist_add_head(&t->node, &free_tasks);
	nr_tasks--;
}

static u32 ecs_task_count(const struct ecs_task *t)
{
	return t ? t->blamed + t->calls + !!t->user + t->nr_held : 0;
}

static void ecs_p_publish(struct ecs_cpu *pc, u32 count)
{
	if (le32_to_cpu(READ_ONCE(pc->guest->p_count)) == count)
		return;
	/* An unlock is visible before its section ends. */
	smp_store_release(&pc->guest->p_count, cpu_to_le32(count));
}

/*
 * Gives a CPU the entry and the count of the task that runs there. That CPU
 * may switch tasks meanwhile: it then sees pc->task and comes for the lock, or
 * this loop sees the new task.
 */
static void ecs_cpu_refresh(struct ecs_cpu *pc)
{
	struct task_struct *curr;
	int tries = 3;

	do {
		curr = READ_ONCE(pc->curr);
		WRITE_ONCE(pc->task, ecs_task_find(curr));
		ecs_p_publish(pc, ecs_task_count(pc->task));
		smp_mb();	/* pairs with ecs_task_switch() */
	} while (curr != READ_ONCE(pc->curr) && --tries);
}

/* After an entry changed: its count may show on a CPU, and it may be done with. */
static void ecs_task_changed(struct ecs_task *t)
{
	struct task_struct *task = t->task;
	int cpu;

	ecs_task_put(t);
	if (task == current) {
		ecs_cpu_refresh(this_cpu_ptr(&ecs_cpus));
		return;
	}
	smp_mb();		/* pairs with ecs_task_switch() */
	for_each_online_cpu(cpu) {
		struct ecs_cpu *pc = per_cpu_ptr(&ecs_cpus, cpu);

		if ((task && READ_ONCE(pc->curr) == task) || READ_ONCE(pc->task) == t)
			ecs_cpu_refresh(pc);
	}
}

/* ---- what the running task does itself ---- */

static void ecs_task_forget_old(struct ecs_task *t)
{
	int i;

	for (i = t->nr_held - 1; i >= 0; i--)
		if (time_after(jiffies, t->held[i].since + ECS_HELD_MAX_AGE))
			t->held[i] = t->held[--t->nr_held];
}

/* In every context switch, with interrupts off. */
void ecs_task_switch(struct ecs_cpu *pc, struct task_struct *next)
{
	struct ecs_task *prev, *t;

	WRITE_ONCE(pc->curr, next);
	if (ecs_sections == ECS_SECTIONS_CONTENDED)
		smp_mb();	/* pairs with ecs_task_changed() */
	prev = READ_ONCE(pc->task);
	if (!prev && hlist_empty(ecs_bucket(task_hash, next)))
		return;

	raw_spin_lock(&tasks_lock);
	t = ecs_task_find(next);
	if (prev && prev != t && pc->task == prev)
		ecs_task_put(prev);
	if (t)
		ecs_task_forget_old(t);
	WRITE_ONCE(pc->task, t);
	ecs_p_publish(pc, ecs_task_count(t));
	raw_spin_unlock(&tasks_lock);
}

/* The entry of the running task, made if need be. Interrupts are off. */
static struct ecs_task *ecs_task_current(struct ecs_cpu *pc)
{
	struct ecs_task *t = pc->task;

	if (t)
		return t;
	raw_spin_lock(&tasks_lock);
	t = ecs_task_get(current);
	WRITE_ONCE(pc->task, t);
	raw_spin_unlock(&tasks_lock);
	return t;
}

/* sections=all: the running task has taken @lock. */
void ecs_task_hold(const void *lock)
{
	struct ecs_cpu *pc;
	struct ecs_task *t;
	unsigned long flags;

	if (!in_task())
		return;
	/* Not raw: lockdep has to know, for tasks_lock is also taken under others. */
	local_irq_save(flags);
	pc = this_cpu_ptr(&ecs_cpus);
	t = ecs_task_current(pc);
	if (t && t->nr_held < ECS_MAX_HELD) {
		t->held[t->nr_held++] = (struct ecs_held){ lock, jiffies };
		ecs_p_publish(pc, ecs_task_count(t));
		ecs_count(ECS_C_HELD);
	} else {
		ecs_count(ECS_C_TASKS_DROPPED);
	}
	local_irq_restore(flags);
}

/* sections=all: the running task has released @lock. */
void ecs_task_drop(const void *lock)
{
	struct ecs_cpu *pc;
	struct ecs_task *t;
	unsigned long flags;
	int i;

	if (!in_task())
		return;
	raw_local_irq_save(flags);
	pc = this_cpu_ptr(&ecs_cpus);
	t = pc->task;
	for (i = t ? t->nr_held - 1 : -1; i >= 0; i--) {
		if (t->held[i].lock != lock)
			continue;
		t->held[i] = t->held[--t->nr_held];
		ecs_p_publish(pc, ecs_task_count(t));
		break;
	}
	raw_local_irq_restore(flags);
}

/* Another module's section of the running task: +1 or -1, not below zero. */
void ecs_task_call(int change)
{
	struct ecs_task *t;
	unsigned long flags;

	raw_spin_lock_irqsave(&tasks_lock, flags);
	t = change > 0 ? ecs_task_get(current) : ecs_task_find(current);
	if (t) {
		if (change > 0)
			t->calls++;
		else if (t->calls)
			t->calls--;
		ecs_task_changed(t);
	}
	raw_spin_unlock_irqrestore(&tasks_lock, flags);
}

/* The running task enters a section in user space; it has one at most. */
int ecs_task_user_enter(struct ecs_user *user, unsigned int max)
{
	struct ecs_task *t;
	unsigned long flags;
	int err = -EAGAIN;

	raw_spin_lock_irqsave(&tasks_lock, flags);
	t = user->sections < max ? ecs_task_get(current) : NULL;
	if (t && t->user) {
		err = -EALREADY;
	} else if (t) {
		t->user = user;
		user->sections++;
		ecs_task_changed(t);
		ecs_count(ECS_C_USER);
		err = 0;
	}
	raw_spin_unlock_irqrestore(&tasks_lock, flags);
	return err;
}

static void ecs_task_user_end(struct ecs_task *t)
{
	if (t->user)
		t->user->sections--;
	t->user = NULL;
}

int ecs_task_user_leave(struct ecs_user *user)
{
	struct ecs_task *t;
	unsigned long flags;
	int err = -EALREADY;

	raw_spin_lock_irqsave(&tasks_lock, flags);
	t = ecs_task_find(current);
	if (t && t->user == user) {
		ecs_task_user_end(t);
		ecs_task_changed(t);
		err = 0;
	}
	raw_spin_unlock_irqrestore(&tasks_lock, flags);
	return err;
}

/* The file is closed: no task has a section through it any more. */
void ecs_task_user_forget(struct ecs_user *user)
{
	unsigned long flags;
	unsigned int i;

	for (i = 0; i < ECS_NR_TASKS; i++) {
		struct ecs_task *t = &task_pool[i];

		if (READ_ONCE(t->user) != user)
			continue;
		raw_spin_lock_irqsave(&tasks_lock, flags);
		if (t->user == user) {
			ecs_task_user_end(t);
			ecs_task_changed(t);
		}
		raw_spin_unlock_irqrestore(&tasks_lock, flags);
	}
}

/* ---- sections=contended: holders that somebody waits for ---- */

static struct ecs_mark *ecs_mark_find(const void *lock)
{
	struct ecs_mark *m;

	hlist_for_each_entry(m, ecs_bucket(mark_hash, lock), node)
		if (m->lock == lock)
			return m;
	return NULL;
}

static struct ecs_mark *ecs_mark_get(void *lock)
{
	struct ecs_mark *m = ecs_mark_find(lock);

	if (m)
		return m;
	if (hlist_empty(&free_marks)) {
		ecs_count(ECS_C_TASKS_DROPPED);
		return NULL;
	}
	m = hlist_entry(free_marks.first, struct ecs_mark, node);
	hlist_del(&m->node);
	memset(m, 0, sizeof(*m));
	m->lock = lock;
	hlist_add_head(&m->node, ecs_bucket(mark_hash, lock));
	return m;
}

static void ecs_mark_owner(struct ecs_mark *m, struct task_struct *owner)
{
	struct ecs_task *old = m->owner;

	if (old && owner && old->task == owner)
		return;
	m->owner = owner ? ecs_task_get(owner) : NULL;
	if (m->owner) {
		m->owner->blamed++;
		ecs_task_changed(m->owner);
		ecs_count(ECS_C_BLAMED);
	}
	if (old) {
		old->blamed--;
		ecs_task_changed(old);
	}
}

static void ecs_mark_leave(struct ecs_mark *m, struct task_struct *new_owner)
{
	if (--m->waiters) {
		if (new_owner)
			ecs_mark_owner(m, new_owner);
		return;
	}
	ecs_mark_owner(m, NULL);
	hlist_del(&m->node);
	hlist_add_head(&m->node, &free_marks);
}

/* Holder of a mutex or rwsem; false for other kinds of lock. */
static bool ecs_lock_owner(void *lock, unsigned int flags, struct task_struct **owner)
{
#ifndef CONFIG_PREEMPT_RT
	unsigned long word;

	if (flags & LCB_F_MUTEX)
		word = atomic_long_read(&((struct mutex *)lock)->owner);
	else if (flags == LCB_F_READ || flags == LCB_F_WRITE)
		/* With readers inside, the last one that came: a guess. */
		word = atomic_long_read(&((struct rw_semaphore *)lock)->owner);
	else
		return false;
	*owner = (struct task_struct *)(word & ~ECS_OWNER_FLAGS);
	return true;
#else
	return false;
#endif
}

/* The running task is about to wait for @lock; called again as it goes on. */
void ecs_task_waits(void *lock, unsigned int flags)
{
	struct task_struct *owner;
	struct ecs_task *me;
	struct ecs_mark *m;
	unsigned long irqs;

	if (!ecs_lock_owner(lock, flags, &owner))
		return;
	raw_spin_lock_irqsave(&tasks_lock, irqs);
	me = ecs_task_get(current);
	m = me && (!me->waits_on || me->waits_on == lock) ? ecs_mark_get(lock) : NULL;
	if (m) {
		if (!me->waits_on)
			m->waiters++;
		me->waits_on = lock;
		ecs_mark_owner(m, owner == current ? NULL : owner);
	} else if (me) {
		ecs_task_put(me);
	}
	raw_spin_unlock_irqrestore(&tasks_lock, irqs);
}

/* The running task waits no more: it has the lock if @ret is zero. */
void ecs_task_wait_over(void *lock, int ret)
{
	struct ecs_task *me;
	struct ecs_mark *m;
	unsigned long flags;

	/* Spinlocks come here too, even the one taken below. */
	if (lock == &tasks_lock || hlist_empty(ecs_bucket(mark_hash, lock)))
		return;
	raw_spin_lock_irqsave(&tasks_lock, flags);
	me = ecs_task_find(current);
	m = ecs_mark_find(lock);
	if (me && m && me->waits_on == lock) {
		me->waits_on = NULL;
		ecs_mark_leave(m, ret ? NULL : current);
		ecs_task_changed(me);
	}
	raw_spin_unlock_irqrestore(&tasks_lock, flags);
}

/* ---- life ---- */

void ecs_task_exit(struct task_struct *task)
{
	struct ecs_task *t;
	struct ecs_mark *m;
	unsigned long flags;

	if (hlist_empty(ecs_bucket(task_hash, task)))
		return;
	raw_spin_lock_irqsave(&tasks_lock, flags);
	t = ecs_task_find(task);
	if (t) {
		m = t->waits_on ? ecs_mark_find(t->waits_on) : NULL;
		if (m)
			ecs_mark_leave(m, NULL);
		t->waits_on = NULL;
		t->calls = 0;
		ecs_task_user_end(t);
		t->nr_held = 0;
		t->task = NULL;
		hlist_del(&t->node);
		ecs_task_changed(t);
	}
	raw_spin_unlock_irqrestore(&tasks_lock, flags);
}

/* The tracepoints are off: what only they would end, ends now. */
void ecs_tasks_reset(void)
{
	unsigned long flags;
	unsigned int i;
	int cpu;

	raw_spin_lock_irqsave(&tasks_lock, flags);
	for (i = 0; i < ECS_NR_MARKS; i++) {
		struct ecs_mark *m = &mark_pool[i];

		if (!m->waiters)
			continue;
		m->waiters = 0;
		hlist_del(&m->node);
		hlist_add_head(&m->node, &free_marks);
	}
	for (i = 0; i < ECS_NR_TASKS; i++) {
		struct ecs_task *t = &task_pool[i];

		t->blamed = 0;
		t->waits_on = NULL;
		t->nr_held = 0;
		ecs_task_put(t);
	}
	for_each_possible_cpu(cpu) {
		struct ecs_cpu *pc = per_cpu_ptr(&ecs_cpus, cpu);

		pc->curr = NULL;
		pc->task = NULL;
		ecs_p_publish(pc, 0);
	}
	raw_spin_unlock_irqrestore(&tasks_lock, flags);
}

/* The CPU this runs on comes into use, with interrupts off. */
void ecs_task_start(struct ecs_cpu *pc)
{
	raw_spin_lock(&tasks_lock);
	WRITE_ONCE(pc->curr, current);
	ecs_cpu_refresh(pc);
	raw_spin_unlock(&tasks_lock);
}

unsigned int ecs_tasks_used(void)
{
	return READ_ONCE(nr_tasks);
}

int ecs_tasks_init(void)
{
	unsigned int i;

	task_pool = kvcalloc(ECS_NR_TASKS, sizeof(*task_pool), GFP_KERNEL);
	mark_pool = kvcalloc(ECS_NR_MARKS, sizeof(*mark_pool), GFP_KERNEL);
	if (!task_pool || !mark_pool) {
		ecs_tasks_exit();
		return -ENOMEM;
	}
	for (i = 0; i < ECS_NR_TASKS; i++)
		hlist_add_head(&task_pool[i].node, &free_tasks);
	for (i = 0; i < ECS_NR_MARKS; i++)
		hlist_add_head(&mark_pool[i].node, &free_marks);
	return 0;
}

void ecs_tasks_exit(void)
{
	kvfree(task_pool);
	kvfree(mark_pool);
}
