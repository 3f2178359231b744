// SPDX-License-Identifier: GPL-2.0
/*
 * Tracepoints: what runs on a CPU. The idle task is published, and interrupts
 * that arrive in it; each task's preemptable sections follow it (tasks.c); the
 * waits of a task are over when it leaves the CPU (waits.c).
 *
 * Not every tracepoint is exported, so all are found by name.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/interrupt.h>
#include <linux/tracepoint.h>
#include <linux/sched.h>

#include "compat.h"
#include "ecs.h"

/*
 * np_count holds the sections of other modules, and interrupts where the
 * registered word does not show them.
 */
void ecs_np_publish(struct ecs_cpu *pc)
{
	u32 count = pc->np_api;

	if (!ECS_WORD_SHOWS_IRQS)
		count += pc->irq_depth;
	if (le32_to_cpu(pc->guest->np_count) == count)
		return;
	/* An unlock is visible before its section ends. */
	smp_store_release(&pc->guest->np_count, cpu_to_le32(count));
}

static void ecs_set_idle(struct ecs_cpu *pc, bool idle)
{
	if (!!pc->guest->idle == idle)
		return;
	/* What idle makes meaningless, or not, was written before. */
	smp_store_release(&pc->guest->idle, cpu_to_le32(idle));
}

static void ecs_on_switch(void *data, bool preempt, struct task_struct *prev,
			  struct task_struct *next, unsigned int prev_state)
{
	struct ecs_cpu *pc = this_cpu_ptr(&ecs_cpus);

	if (pc->nr_waits)
		ecs_waits_reset(pc);
	if (pc->irq_depth) {
		/* An exit was missed, as at the start of tracing. */
		pc->irq_depth = 0;
		ecs_np_publish(pc);
	}
	ecs_task_switch(pc, next);
	pc->poll.in_vain = false;
	ecs_set_idle(pc, is_idle_task(next));
}

static void ecs_on_exit(ECS_EXIT_PROTO)
{
	ecs_task_exit(task);
}

/*
 * An interrupt or softirq begins. In the idle task it makes the counts mean
 * something again: the device ignores an idle CPU.
 */
static void ecs_irq_enter(void)
{
	struct ecs_cpu *pc;
	unsigned long flags;

	raw_local_irq_save(flags);
	pc = this_cpu_ptr(&ecs_cpus);
	pc->irq_depth++;
	ecs_np_publish(pc);
	ecs_set_idle(pc, false);
	raw_local_irq_restore(flags);
}

static void ecs_irq_exit(void)
{
	struct ecs_cpu *pc;
	unsigned long flags;

	raw_local_irq_save(flags);
	pc = this_cpu_ptr(&ecs_cpus);
	if (pc->irq_depth) {
		pc->irq_depth--;
		ecs_np_publish(pc);
	}
	if (!pc->irq_depth && is_idle_task(current))
		ecs_set_idle(pc, true);
	raw_local_irq_restore(flags);
}

static void ecs_on_vector_enter(void *data, int vector)
{
	ecs_irq_enter();
}

static void ecs_on_vector_exit(void *data, int vector)
{
	ecs_irq_exit();
}

static void ecs_on_irq_enter(void *data, int irq, struct irqaction *action)
{
	ecs_irq_enter();
}

static void ecs_on_irq_exit(void *data, int irq, struct irqaction *action, int ret)
{
	ecs_irq_exit();
}

static void ecs_on_softirq_enter(void *data, unsigned int nr)
{
	ecs_irq_enter();
}

static void ecs_on_softirq_exit(void *data, unsigned int nr)
{
	ecs_irq_exit();
}

static void ecs_on_contention_begin(void *data, void *lock, unsigned int flags)
{
	ecs_wait_begin(lock, flags);
}

static void ecs_on_contention_end(void *data, void *lock, int ret)
{
	ecs_wait_end(lock, ret);
}

struct ecs_hook {
	const char *name;
	void *probe;
	bool needed;
	struct tracepoint *tp;
	bool on;
};

/* Exits before entries: an exit without its entry does no harm. */
static struct ecs_hook ecs_hooks[] = {
	{ "sched_switch", ecs_on_switch, true },
	{ "sched_process_exit", ecs_on_exit, true },
	{ "softirq_exit", ecs_on_softirq_exit, false },
	{ "irq_handler_exit", ecs_on_irq_exit, false },
	{ "local_timer_exit", ecs_on_vector_exit, false },
	{ "reschedule_exit", ecs_on_vector_exit, false },
	{ "call_function_exit", ecs_on_vector_exit, false },
	{ "call_function_single_exit", ecs_on_vector_exit, false },
	{ "irq_work_exit", ecs_on_vector_exit, false },
	{ "softirq_entry", ecs_on_softirq_enter, false },
	{ "irq_handler_entry", ecs_on_irq_enter, false },
	{ "local_timer_entry", ecs_on_vector_enter, false },
	{ "reschedule_entry", ecs_on_vector_enter, false },
	{ "call_function_entry", ecs_on_vector_enter, false },
	{ "call_function_single_entry", ecs_on_vector_enter, false },
	{ "irq_work_entry", ecs_on_vector_enter, false },
	{ "contention_end", ecs_on_contention_end, false },
	{ "contention_begin", ecs_on_contention_begin, false },
};

static void ecs_hook_match(struct tracepoint *tp, void *priv)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(ecs_hooks); i++)
		if (!strcmp(ecs_hooks[i].name, tp->name))
			ecs_hooks[i].tp = tp;
}

/* Last to first: an entry goes before its exit. */
void ecs_hooks_stop(void)
{
	int i;

	ecs_fprobes_stop();
	for (i = ARRAY_SIZE(ecs_hooks) - 1; i >= 0; i--) {
		struct ecs_hook *hook = &ecs_hooks[i];

		if (hook->on)
			tracepoint_probe_unregister(hook->tp, hook->probe, NULL);
		hook->on = false;
	}
	tracepoint_synchronize_unregister();
	ecs_tasks_reset();
}

int ecs_hooks_start(void)
{
	unsigned int i;
	int err;

	for_each_kernel_tracepoint(ecs_hook_match, NULL);
	for (i = 0; i < ARRAY_SIZE(ecs_hooks); i++) {
		struct ecs_hook *hook = &ecs_hooks[i];

		err = hook->tp ? tracepoint_probe_register(hook->tp, hook->probe, NULL) : -ENOENT;
		hook->on = !err;
		if (!err)
			continue;
		if (hook->needed) {
			pr_err("tracepoint %s: error %d\n", hook->name, err);
			ecs_hooks_stop();
			return err;
		}
		pr_info("no tracepoint %s: what it shows is not published\n", hook->name);
	}
	ecs_fprobes_start();
	return 0;
}
