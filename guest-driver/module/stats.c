// SPDX-License-Identifier: GPL-2.0
/*
 * /sys/kernel/debug/virtio_ecs: what the driver did, and what the lines say.
 */
#include <linux/debugfs.h>
#include <linux/seq_file.h>

#include "compat.h"
#include "ecs.h"

DEFINE_PER_CPU(struct ecs_stats, ecs_stats);

static struct dentry *ecs_dir;

static const char *const ecs_counter_names[ECS_NR_COUNTERS] = {
	[ECS_C_REGISTERED] = "registered",
	[ECS_C_UNREGISTERED] = "unregistered",
	[ECS_C_REFUSED] = "refused",
	[ECS_C_TIMEOUTS] = "timeouts",
	[ECS_C_EVENTS] = "events",
	[ECS_C_FAULTS] = "faults",
	[ECS_C_WAITS] = "waits",
	[ECS_C_WAITS_DROPPED] = "waits_dropped",
	[ECS_C_BLAMED] = "blamed",
	[ECS_C_HELD] = "held",
	[ECS_C_USER] = "user",
	[ECS_C_TASKS_DROPPED] = "tasks_dropped",
};

static int counters_show(struct seq_file *m, void *v)
{
	unsigned int i, cpu;

	for (i = 0; i < ECS_NR_COUNTERS; i++) {
		u64 sum = 0;

		for_each_possible_cpu(cpu)
			sum += per_cpu_ptr(&ecs_stats, cpu)->nr[i];
		seq_printf(m, "%s %llu\n", ecs_counter_names[i], sum);
	}
	seq_printf(m, "tasks %u\n", ecs_tasks_used());
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(counters);

static void ecs_show_cpu(struct seq_file *m, unsigned int cpu)
{
	const struct ecs_cpu *pc = per_cpu_ptr(&ecs_cpus, cpu);
	const struct virtio_ecs_guest_line *guest = pc->guest;
	const struct virtio_ecs_host_line *host = pc->host;
	void *word = ecs_preempt_word(cpu);
	u64 grants = 0, faults = 0;

	if (ecs_dev && pc->registered)
		ecs_ctrl_query(ecs_dev, cpu, &grants, &faults);
	seq_printf(m, "%u registered=%u guest=0x%llx host=0x%llx word=0x%llx",
		   cpu, pc->registered, ecs_phys(guest), ecs_phys(host),
		   word ? ecs_phys(word) : 0);
	seq_printf(m, " np=%u p=%u waiting=%u idle=%u",
		   le32_to_cpu(guest->np_count), le32_to_cpu(guest->p_count),
		   le32_to_cpu(guest->waiting), le32_to_cpu(guest->idle));
	seq_printf(m, " poll_us=%u paid=%u wasted=%u limit_ns=%u",
		   le32_to_cpu(guest->poll_us), le32_to_cpu(guest->polls_paid),
		   le32_to_cpu(guest->polls_wasted), pc->poll.limit);
	seq_printf(m, " preempted=%u overloaded=%u heartbeat=%u grants=%llu faults=%llu waits=%llu\n",
		   le32_to_cpu(host->preempted), le32_to_cpu(host->overloaded),
		   le32_to_cpu(host->heartbeat), grants, faults,
		   per_cpu_ptr(&ecs_stats, cpu)->nr[ECS_C_WAITS]);
}

static int cpus_show(struct seq_file *m, void *v)
{
	unsigned int cpu;

	mutex_lock(&ecs_dev_lock);
	for_each_possible_cpu(cpu)
		ecs_show_cpu(m, cpu);
	mutex_unlock(&ecs_dev_lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(cpus);

void ecs_stats_init(void)
{
	ecs_dir = debugfs_create_dir(KBUILD_MODNAME, NULL);
	debugfs_create_file("counters", 0400, ecs_dir, NULL, &counters_fops);
	debugfs_create_file("cpus", 0400, ecs_dir, NULL, &cpus_fops);
}

void ecs_stats_exit(void)
{
	debugfs_remove_recursive(ecs_dir);
}
