// SPDX-License-Identifier: GPL-2.0
/*
 * Workloads, and the truth about them: a page in which each CPU says what it
 * holds at this moment, for a test on the host to compare with what the slots
 * say.
 */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/hrtimer.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/version.h>
#ifdef CONFIG_X86_64
#include <asm/apic.h>
#include <asm/nmi.h>
#endif

#include "../virtio_ecs_api.h"
#include "ecs_test.h"

/* ---- truth ---- */

void tell(u32 state, const void *lock)
{
	struct truth *t;
	unsigned long flags;

	BUILD_BUG_ON(sizeof(*t) != 64);
	raw_local_irq_save(flags);
	t = &truth[smp_processor_id()];
	WRITE_ONCE(t->seq, t->seq + 1);
	smp_wmb();	/* odd before the change */
	WRITE_ONCE(t->state, state);
	WRITE_ONCE(t->lock, lock ? virt_to_phys((void *)lock) : 0);
	WRITE_ONCE(t->task, current->pid);
	WRITE_ONCE(t->nr, t->nr + 1);
	smp_wmb();	/* even after it */
	WRITE_ONCE(t->seq, t->seq + 1);
	raw_local_irq_restore(flags);
}

void spend(unsigned int us)
{
	u64 end = ktime_get_mono_fast_ns() + us * 1000ULL;

	while (ktime_get_mono_fast_ns() < end)
		cpu_relax();
}

/* ---- one step of each workload: acquire, hold, release ---- */

#define STEP(name, bits, obj, lock_stmt, unlock_stmt)			\
static void step_##name(void)						\
{									\
	tell(T_WAITING, obj);						\
	lock_stmt;							\
	tell(bits, obj);						\
	spend(hold_us);							\
	tell(0, NULL);							\
	unlock_stmt;							\
}

#define TRY_STEP(name, bits, obj, got, unlock_stmt)			\
static void step_##name(void)						\
{									\
	tell(T_WAITING, obj);						\
	if (!(got)) {							\
		tell(0, NULL);						\
		return;							\
	}								\
	tell(bits, obj);						\
	spend(hold_us);							\
	tell(0, NULL);							\
	unlock_stmt;							\
}

STEP(spin, T_SPIN, &locks->spin, spin_lock(&locks->spin), spin_unlock(&locks->spin))
STEP(spin_irq, T_SPIN, &locks->spin, spin_lock_irq(&locks->spin), spin_unlock_irq(&locks->spin))
STEP(spin_bh, T_SPIN, &locks->spin, spin_lock_bh(&locks->spin), spin_unlock_bh(&locks->spin))
STEP(rw_read, T_RW_READ, &locks->rwlock, read_lock(&locks->rwlock), read_unlock(&locks->rwlock))
STEP(rw_write, T_RW_WRITE, &locks->rwlock, write_lock(&locks->rwlock),
	write_unlock(&locks->rwlock))
STEP(rcu, T_RCU, NULL, rcu_read_lock(), rcu_read_unlock())
STEP(mutex, T_MUTEX, &locks->mutex, mutex_lock(&locks->mutex), mutex_unlock(&locks->mutex))
TRY_STEP(mutex_interruptible, T_MUTEX, &locks->mutex,
	 !mutex_lock_interruptible(&locks->mutex), mutex_unlock(&locks->mutex))
TRY_STEP(mutex_killable, T_MUTEX, &locks->mutex,
	 !mutex_lock_killable(&locks->mutex), mutex_unlock(&locks->mutex))
TRY_STEP(mutex_trylock, T_MUTEX, &locks->mutex,
	 mutex_trylock(&locks->mutex), mutex_unlock(&locks->mutex))
STEP(rwsem_read, T_RWSEM_R, &locks->rwsem, down_read(&locks->rwsem), up_read(&locks->rwsem))
STEP(rwsem_write, T_RWSEM_W, &locks->rwsem, down_write(&locks->rwsem), up_write(&locks->rwsem))
TRY_STEP(rwsem_trylock, T_RWSEM_W, &locks->rwsem,
	 down_write_trylock(&locks->rwsem), up_write(&locks->rwsem))

static void step_rwsem_downgrade(void)
{
	tell(T_WAITING, &locks->rwsem);
	down_write(&locks->rwsem);
	tell(T_RWSEM_W, &locks->rwsem);
	spend(hold_us);
	downgrade_write(&locks->rwsem);
	tell(T_RWSEM_R, &locks->rwsem);
	spend(hold_us);
	tell(0, NULL);
	up_read(&locks->rwsem);
}

/* The inner unlock must not end the outer section. */
static void step_mutex_nested(void)
{
	tell(T_WAITING, &locks->mutex);
	mutex_lock(&locks->mutex);
	tell(T_MUTEX, &locks->mutex);
	mutex_lock_nested(&locks->mutex2, 1);
	spend(hold_us);
	mutex_unlock(&locks->mutex2);
	spend(hold_us);
	tell(0, NULL);
	mutex_unlock(&locks->mutex);
}

static void step_spin_nested(void)
{
	tell(T_WAITING, &locks->spin);
	spin_lock(&locks->spin);
	tell(T_SPIN, &locks->spin);
	spin_lock_nested(&locks->spin2, 1);
	spend(hold_us);
	spin_unlock(&locks->spin2);
	spend(hold_us);
	tell(0, NULL);
	spin_unlock(&locks->spin);
}

static void step_sleep_mutex(void)
{
	mutex_lock(&locks->mutex);
	tell(T_MUTEX | T_SLEEPING_HOLDER, &locks->mutex);
	usleep_range(hold_us + 1, hold_us * 2 + 2);
	tell(0, NULL);
	mutex_unlock(&locks->mutex);
}

/* Takes the mutex here, and holds it on every CPU of the list in turn. */
static void step_migrate_mutex(void)
{
	int home = raw_smp_processor_id(), cpu;

	mutex_lock(&locks->mutex);
	for_each_cpu(cpu, &run_cpus) {
		if (set_cpus_allowed_ptr(current, cpumask_of(cpu)))
			failed();
		tell(T_MUTEX, &locks->mutex);
		spend(hold_us);
		tell(0, NULL);
	}
	mutex_unlock(&locks->mutex);
	if (set_cpus_allowed_ptr(current, cpumask_of(home)))
		failed();
}

static void step_idle(void)
{
	tell(T_IDLE, NULL);
	usleep_range(hold_us + 1, hold_us * 2 + 2);
	tell(0, NULL);
}

/*
 * Two CPUs that wait for each other, as fast as they can: one runs, the other is
 * idle. A turn that was missed, at the end of a run, costs a tenth of a second.
 */
static void step_pingpong(void)
{
	static DECLARE_COMPLETION(ping);
	static DECLARE_COMPLETION(pong);
	bool first = smp_processor_id() == cpumask_first(&run_cpus);

	if (first) {
		/* One turn is on its way at a time, whatever an earlier run has left. */
		reinit_completion(&ping);
		reinit_completion(&pong);
		complete(&ping);
	}
	if (wait_for_completion_timeout(first ? &pong : &ping, HZ / 10) && !first)
		complete(&pong);
}

/* ---- interrupts: a timer of this CPU, in hard or soft context ---- */

struct shot {
	struct hrtimer timer;
	struct completion done;
	u32 bits;
};

static enum hrtimer_restart shoot(struct hrtimer *timer)
{
	struct shot *shot = container_of(timer, struct shot, timer);
	struct truth *t = &truth[smp_processor_id()];
	u32 before = t->state;

	tell(shot->bits | (is_idle_task(current) ? T_IN_IDLE_IRQ : 0), NULL);
	spend(hold_us);
	tell(before, NULL);
	complete(&shot->done);
	return HRTIMER_NORESTART;
}

static void shoot_once(u32 bits, enum hrtimer_mode mode)
{
	static atomic_t turn;
	struct shot shot = { .bits = bits };

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
	hrtimer_setup_on_stack(&shot.timer, shoot, CLOCK_MONOTONIC, mode);
#else
	hrtimer_init_on_stack(&shot.timer, CLOCK_MONOTONIC, mode);
	shot.timer.function = shoot;
#endif
	init_completion(&shot.done);
	hrtimer_start(&shot.timer, ns_to_ktime(max(gap_us, 20U) * 1000ULL), mode);
	/* Every other time the interrupt meets the idle task. */
	if (atomic_inc_return(&turn) & 1) {
		u64 end = ktime_get_mono_fast_ns() + NSEC_PER_SEC;

		while (!completion_done(&shot.done) && ktime_get_mono_fast_ns() < end)
			cpu_relax();
	}
	if (!wait_for_completion_timeout(&shot.done, HZ))
		failed();
	hrtimer_cancel(&shot.timer);
	destroy_hrtimer_on_stack(&shot.timer);
}

static void step_irq(void)
{
	shoot_once(T_IRQ, HRTIMER_MODE_REL_PINNED_HARD);
}

static void step_softirq(void)
{
	shoot_once(T_SOFTIRQ, HRTIMER_MODE_REL_PINNED_SOFT);
}

/* ---- an NMI that this CPU sends itself ---- */

#ifdef CONFIG_X86_64
#define NMI_NAME	"ecs_test"

static DEFINE_PER_CPU(bool, nmi_sent);

static int on_nmi(unsigned int type, struct pt_regs *regs)
{
	/* Another source's, or one that came too late. */
	if (!this_cpu_read(nmi_sent))
		return NMI_DONE;
	tell(T_NMI, NULL);
	spend(hold_us);
	tell(0, NULL);
	this_cpu_write(nmi_sent, false);
	return NMI_HANDLED;
}

static void step_nmi(void)
{
	bool *sent = raw_cpu_ptr(&nmi_sent);
	u64 end = ktime_get_mono_fast_ns() + NSEC_PER_SEC;

	WRITE_ONCE(*sent, true);
	apic->send_IPI(raw_smp_processor_id(), NMI_VECTOR);
	while (READ_ONCE(*sent)) {
		cpu_relax();
		if (ktime_get_mono_fast_ns() > end) {
			failed();
			return;
		}
	}
}

int works_init(void)
{
	return register_nmi_handler(NMI_LOCAL, on_nmi, 0, NMI_NAME);
}

void works_exit(void)
{
	unregister_nmi_handler(NMI_LOCAL, NMI_NAME);
}
#else
int works_init(void)
{
	return 0;
}

void works_exit(void)
{
}
#endif

/* ---- the six calls, if virtio_ecs is there ---- */

#define CALL_STEP(name, bits, enter, leave)				\
static void step_##name(void)						\
{									\
	typeof(&enter) do_enter = symbol_get(enter);			\
	typeof(&leave) do_leave = symbol_get(leave);			\
									\
	if (do_enter && do_leave) {					\
		do_enter();						\
		tell(bits, NULL);					\
		spend(hold_us);						\
		tell(0, NULL);						\
		do_leave();						\
	} else {							\
		failed();						\
	}								\
	if (do_enter)							\
		symbol_put(enter);					\
	if (do_leave)							\
		symbol_put(leave);					\
}

CALL_STEP(api_np, T_API_NP, activate_non_preemptable_ecs, deactivate_non_preemptable_ecs)
CALL_STEP(api_p, T_API_P, activate_preemptable_ecs, deactivate_preemptable_ecs)

const struct work works[] = {
	{ "spin", false, step_spin },
	{ "spin_irq", false, step_spin_irq },
	{ "spin_bh", false, step_spin_bh },
	{ "spin_nested", false, step_spin_nested },
	{ "rw_read", false, step_rw_read },
	{ "rw_write", false, step_rw_write },
	{ "irq", false, step_irq },
	{ "softirq", false, step_softirq },
#ifdef CONFIG_X86_64
	{ "nmi", false, step_nmi },
#endif
	{ "rcu", false, step_rcu },
	{ "mutex", true, step_mutex },
	{ "mutex_interruptible", true, step_mutex_interruptible },
	{ "mutex_killable", true, step_mutex_killable },
	{ "mutex_trylock", true, step_mutex_trylock },
	{ "mutex_nested", true, step_mutex_nested },
	{ "rwsem_read", true, step_rwsem_read },
	{ "rwsem_write", true, step_rwsem_write },
	{ "rwsem_downgrade", true, step_rwsem_downgrade },
	{ "rwsem_trylock", true, step_rwsem_trylock },
	{ "sleep_mutex", false, step_sleep_mutex },
	{ "migrate_mutex", true, step_migrate_mutex },
	{ "idle", false, step_idle },
	{ "pingpong", false, step_pingpong },
	{ "api_np", false, step_api_np },
	{ "api_p", true, step_api_p },
};

const unsigned int nr_works = ARRAY_SIZE(works);
