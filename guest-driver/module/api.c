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

/* Words of a host whose heart does not beat mean nothing. */
static bool ecs_hint(const __le32 *word)
{
	return READ_ONCE(ecs_host_alive) && READ_ONCE(*word);
}

bool is_vcpu_preempted(unsigned int cpu)
{
	return cpu < nr_cpu_ids && cpu_possible(cpu) &&
	       ecs_hint(&per_cpu_ptr(&ecs_cpus, cpu)->host->preempted);
}
EXPORT_SYMBOL_GPL(is_vcpu_preempted);

bool is_pcpu_overloaded(unsigned int cpu)
{
	return cpu < nr_cpu_ids && cpu_possible(cpu) &&
	       ecs_hint(&per_cpu_ptr(&ecs_cpus, cpu)->host->overloaded);
}
EXPORT_SYMBOL_GPL(is_pcpu_overloaded);
