// SPDX-License-Identifier: GPL-2.0
/*
 * The six calls, for other modules.
 */
#include <linux/export.h>
#include <linux/preempt.h>

#include "compat.h"
#include "ecs.h"
#include "virtio_ecs_api.h"

static void ecs_np_change(int change)
{
	struct ecs_cpu *pc;
	unsigned long flags;

	raw_local_irq_save(flags);
	pc = this_cpu_ptr(&ecs_cpus);
	if (change > 0)
		pc->np_api++;
	else if (pc->np_api)
		pc->np_api--;
	ecs_np_publish(pc);
	raw_local_irq_restore(flags);
}

void activate_non_preemptable_ecs(void)
{
	preempt_disable();
	ecs_np_change(1);
}
EXPORT_SYMBOL_GPL(activate_non_preemptable_ecs);

void deactivate_non_preemptable_ecs(void)
{
	ecs_np_change(-1);
	preempt_enable();
}
EXPORT_SYMBOL_GPL(deactivate_non_preemptable_ecs);

void activate_preemptable_ecs(void)
{
	ecs_task_call(1);
}
EXPORT_SYMBOL_GPL(activate_preemptable_ecs);

void deactivate_preemptable_ecs(void)
{
	ecs_task_call(-1);
}
EXPORT_SYMBOL_GPL(deactivate_preemptable_ecs);

/*
 * Words of a host whose heart does not beat mean nothing. It is looked at also
 * where the word is zero: who looks rarely is told nothing.
 */
static bool ecs_hint(struct ecs_cpu *pc, const __le32 *word)
{
	return ecs_beat_left(pc) && READ_ONCE(*word);
}

bool is_vcpu_preempted(unsigned int cpu)
{
	struct ecs_cpu *pc;

	if (cpu >= nr_cpu_ids || !cpu_possible(cpu))
		return false;
	pc = per_cpu_ptr(&ecs_cpus, cpu);
	return ecs_hint(pc, &pc->host->preempted);
}
EXPORT_SYMBOL_GPL(is_vcpu_preempted);

bool is_pcpu_overloaded(unsigned int cpu)
{
	struct ecs_cpu *pc;

	if (cpu >= nr_cpu_ids || !cpu_possible(cpu))
		return false;
	pc = per_cpu_ptr(&ecs_cpus, cpu);
	return ecs_hint(pc, &pc->host->overloaded);
}
EXPORT_SYMBOL_GPL(is_pcpu_overloaded);
