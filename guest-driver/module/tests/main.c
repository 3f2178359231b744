// SPDX-License-Identifier: GPL-2.0
/*
 * Workloads for tests of virtio_ecs, and the truth about them: this file runs
 * them. Never load it into a guest that matters.
 *
 * /sys/kernel/debug/ecs_test:
 *   truth   "0xGPA N": the table of struct truth, entry i is CPU i
 *   locks   "name 0xGPA" of the locks used
 *   run     write "WORK cpu=0,1 ms=1000 hold_us=50 gap_us=50"; read "running K" or "idle"
 *   stop    write anything: ends the workload
 *   result  "ops N errors N" of the last one
 *   hints   "CPU preempted overloaded", as the driver's calls answer when asked again after 60 ms
 *   bench   nanoseconds and cycles for each lock and unlock, and for a task switch
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpu.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "../virtio_ecs_api.h"
#include "ecs_test.h"

#define MAX_MS		60000
#define MAX_US		100000

struct truth *truth;
struct locks *locks;
cpumask_t run_cpus;
unsigned int hold_us, gap_us;

static size_t truth_size;
static struct dentry *dir;

static DEFINE_MUTEX(run_lock);	/* starts, stops and measures */
static struct task_struct **threads;
static const struct work *run_work;
static unsigned long run_end;
static atomic_t running;
static atomic64_t nr_ops, nr_errors;

void failed(void)
{
	atomic64_inc(&nr_errors);
}

/* Outside every section: busy, or asleep where real-time threads would starve the rest. */
static void pause_outside(bool fifo)
{
	tell(T_OUTSIDE, NULL);
	if (fifo)
		usleep_range(gap_us + 1, gap_us * 2 + 2);
	else
		spend(gap_us);
	tell(0, NULL);
	cond_resched();
}

static int worker(void *data)
{
	const struct work *work = data;

	if (work->fifo)
		sched_set_fifo(current);
	while (!kthread_should_stop() && time_before(jiffies, run_end)) {
		pause_outside(work->fifo);
		work->step();
		atomic64_inc(&nr_ops);
	}
	atomic_dec(&running);
	while (!kthread_should_stop())
		schedule_timeout_interruptible(HZ / 50);
	return 0;
}

static void stop_all(void)
{
	int cpu;

	run_end = jiffies;
	for_each_possible_cpu(cpu) {
		if (!threads[cpu])
			continue;
		kthread_stop(threads[cpu]);
		put_task_struct(threads[cpu]);
		threads[cpu] = NULL;
	}
}

static int start(const struct work *work, bool one)
{
	struct task_struct *task;
	int cpu;

	for_each_cpu(cpu, &run_cpus) {
		task = kthread_create_on_node(worker, (void *)work, cpu_to_node(cpu),
					      "ecs_test/%d", cpu);
		if (IS_ERR(task)) {
			stop_all();
			return PTR_ERR(task);
		}
		if (one)
			set_cpus_allowed_ptr(task, cpumask_of(cpu));
		else
			kthread_bind(task, cpu);
		threads[cpu] = get_task_struct(task);
		atomic_inc(&running);
		wake_up_process(task);
		if (one)
			break;
	}
	return 0;
}

static int parse(char *line, unsigned int *ms)
{
	char *word = strsep(&line, "\n ");
	unsigned int i;

	run_work = NULL;
	for (i = 0; i < nr_works; i++)
		if (!strcmp(works[i].name, word))
			run_work = &works[i];
	cpumask_clear(&run_cpus);
	*ms = 1000;
	hold_us = 50;
	gap_us = 50;
	while (line) {
		word = strsep(&line, "\n ");
		if (!strncmp(word, "cpu=", 4)) {
			if (cpulist_parse(word + 4, &run_cpus))
				return -EINVAL;
		} else if (sscanf(word, "ms=%u", ms) != 1 &&
			   sscanf(word, "hold_us=%u", &hold_us) != 1 &&
			   sscanf(word, "gap_us=%u", &gap_us) != 1 && *word) {
			return -EINVAL;
		}
	}
	cpumask_and(&run_cpus, &run_cpus, cpu_online_mask);
	if (!run_work || cpumask_empty(&run_cpus) || *ms > MAX_MS || hold_us > MAX_US ||
	    gap_us > MAX_US)
		return -EINVAL;
	return 0;
}

static ssize_t run_write(struct file *file, const char __user *buf, size_t size, loff_t *pos)
{
	unsigned int ms;
	char *line;
	int err;

	line = memdup_user_nul(buf, min_t(size_t, size, 255));
	if (IS_ERR(line))
		return PTR_ERR(line);
	mutex_lock(&run_lock);
	err = -EBUSY;
	if (!atomic_read(&running)) {
		stop_all();
		err = parse(line, &ms);
	}
	if (!err) {
		atomic64_set(&nr_ops, 0);
		atomic64_set(&nr_errors, 0);
		run_end = jiffies + msecs_to_jiffies(ms);
		err = start(run_work, !strcmp(run_work->name, "migrate_mutex"));
	}
	mutex_unlock(&run_lock);
	kfree(line);
	return err ?: size;
}

static int run_show(struct seq_file *m, void *v)
{
	int nr = atomic_read(&running);

	if (nr)
		seq_printf(m, "running %d\n", nr);
	else
		seq_puts(m, "idle\n");
	return 0;
}

static int run_open(struct inode *inode, struct file *file)
{
	return single_open(file, run_show, NULL);
}

static const struct file_operations run_fops = {
	.owner = THIS_MODULE,
	.open = run_open,
	.read = seq_read,
	.write = run_write,
	.release = single_release,
};

static ssize_t stop_write(struct file *file, const char __user *buf, size_t size, loff_t *pos)
{
	mutex_lock(&run_lock);
	stop_all();
	mutex_unlock(&run_lock);
	return size;
}

static const struct file_operations stop_fops = {
	.owner = THIS_MODULE,
	.write = stop_write,
};

static int truth_show(struct seq_file *m, void *v)
{
	seq_printf(m, "0x%llx %u\n", (u64)virt_to_phys(truth), nr_cpu_ids);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(truth);

static int locks_show(struct seq_file *m, void *v)
{
	seq_printf(m, "spin 0x%llx\n", (u64)virt_to_phys(&locks->spin));
	seq_printf(m, "spin2 0x%llx\n", (u64)virt_to_phys(&locks->spin2));
	seq_printf(m, "rwlock 0x%llx\n", (u64)virt_to_phys(&locks->rwlock));
	seq_printf(m, "mutex 0x%llx\n", (u64)virt_to_phys(&locks->mutex));
	seq_printf(m, "mutex2 0x%llx\n", (u64)virt_to_phys(&locks->mutex2));
	seq_printf(m, "rwsem 0x%llx\n", (u64)virt_to_phys(&locks->rwsem));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(locks);

static int result_show(struct seq_file *m, void *v)
{
	seq_printf(m, "ops %lld errors %lld\n", (s64)atomic64_read(&nr_ops),
		   (s64)atomic64_read(&nr_errors));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(result);

static int hints_show(struct seq_file *m, void *v)
{
	typeof(&is_vcpu_preempted) preempted = symbol_get(is_vcpu_preempted);
	typeof(&is_pcpu_overloaded) overloaded = symbol_get(is_pcpu_overloaded);
	int cpu;

	if (preempted && overloaded) {
		/* A host must be seen to live: it beats within this time. */
		for_each_possible_cpu(cpu)
			preempted(cpu);
		msleep(60);
		for_each_possible_cpu(cpu)
			seq_printf(m, "%d %d %d\n", cpu, preempted(cpu), overloaded(cpu));
	}
	if (preempted)
		symbol_put(is_vcpu_preempted);
	if (overloaded)
		symbol_put(is_pcpu_overloaded);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(hints);

static int bench_locked_show(struct seq_file *m, void *v)
{
	int err;

	mutex_lock(&run_lock);
	err = bench_show(m, v);
	mutex_unlock(&run_lock);
	return err;
}
DEFINE_SHOW_ATTRIBUTE(bench_locked);

static void free_all(void)
{
	if (truth)
		free_pages_exact(truth, truth_size);
	kfree(threads);
	kfree(locks);
}

static int __init ecs_test_init(void)
{
	int err = -ENOMEM;

	truth_size = PAGE_ALIGN(nr_cpu_ids * sizeof(*truth));
	truth = alloc_pages_exact(truth_size, GFP_KERNEL | __GFP_ZERO);
	threads = kcalloc(nr_cpu_ids, sizeof(*threads), GFP_KERNEL);
	locks = kzalloc(sizeof(*locks), GFP_KERNEL);
	if (truth && threads && locks)
		err = works_init();
	if (err) {
		free_all();
		return err;
	}
	spin_lock_init(&locks->spin);
	spin_lock_init(&locks->spin2);
	rwlock_init(&locks->rwlock);
	mutex_init(&locks->mutex);
	mutex_init(&locks->mutex2);
	init_rwsem(&locks->rwsem);

	dir = debugfs_create_dir("ecs_test", NULL);
	debugfs_create_file("truth", 0400, dir, NULL, &truth_fops);
	debugfs_create_file("locks", 0400, dir, NULL, &locks_fops);
	debugfs_create_file("run", 0600, dir, NULL, &run_fops);
	debugfs_create_file("stop", 0200, dir, NULL, &stop_fops);
	debugfs_create_file("result", 0400, dir, NULL, &result_fops);
	debugfs_create_file("hints", 0400, dir, NULL, &hints_fops);
	debugfs_create_file("bench", 0400, dir, NULL, &bench_locked_fops);
	return 0;
}

static void __exit ecs_test_exit(void)
{
	debugfs_remove_recursive(dir);
	stop_all();
	works_exit();
	free_all();
}

module_init(ecs_test_init);
module_exit(ecs_test_exit);

MODULE_DESCRIPTION("Workloads and ground truth for tests of virtio_ecs");
MODULE_LICENSE("GPL");
