// SPDX-License-Identifier: GPL-2.0
/*
 * Workloads for tests of virtio_ecs, and the truth about them: a page in which
 * each CPU says what it holds at this moment, for a test on the host to compare
 * with what the slots say. Never load it into a guest that matters.
 *
 * /sys/kernel/debug/ecs_test:
 *   truth   "0xGPA N": the table of struct truth, entry i is CPU i
 *   locks   "name 0xGPA" of the locks used
 *   run     write "WORK cpu=0,1 ms=1000 hold_us=50 gap_us=50"; read "running K" or "idle"
 *   stop    write anything: ends the workload
 *   result  "ops N errors N" of the last one
 *   bench   nanoseconds and cycles for each lock and unlock, and for a task switch
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/completion.h>
#include <linux/cpu.h>
#include <linux/cpumask.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/hrtimer.h>
#include <linux/io.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/rwsem.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/timex.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#include "../virtio_ecs_api.h"

#define MAX_MS		60000
#define MAX_US		100000

enum {
	T_SPIN = 0x1, T_IRQ = 0x2, T_SOFTIRQ = 0x4, T_RCU = 0x8,
	T_RW_READ = 0x10, T_RW_WRITE = 0x20, T_MUTEX = 0x40,
	T_RWSEM_R = 0x80, T_RWSEM_W = 0x100,
	T_WAITING = 0x200,	/* about to have it, spinning or just got it */
	T_IDLE = 0x400, T_OUTSIDE = 0x800,
	T_SLEEPING_HOLDER = 0x1000, T_IN_IDLE_IRQ = 0x2000,
	T_API_NP = 0x4000, T_API_P = 0x8000,
};

struct truth {
	u32 seq;		/* odd while the entry changes */
	u32 state;
	u64 lock;		/* guest physical */
	u64 task;
	u64 nr;
	u64 reserved[4];
};

struct locks {
	spinlock_t spin;
	spinlock_t spin2;
	rwlock_t rwlock;
	struct mutex mutex;
	struct mutex mutex2;
	struct rw_semaphore rwsem;
};

struct work {
	const char *name;
	bool fifo;		/* the thread must not be preempted by the guest */
	void (*step)(void);
};

static struct truth *truth;
static size_t truth_size;
static struct locks *locks;
static struct dentry *dir;

static DEFINE_MUTEX(run_lock);	/* starts and stops */
static struct task_struct **threads;
static cpumask_t run_cpus;
static const struct work *run_work;
static unsigned long run_end;
static unsigned int hold_us, gap_us;
static atomic_t running;
static atomic64_t nr_ops, nr_errors;

/* ---- truth ---- */

static void tell(u32 state, const void *lock)
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

static void spend(unsigned int us)
{
	u64 end = ktime_get_mono_fast_ns() + us * 1000ULL;

	while (ktime_get_mono_fast_ns() < end)
		cpu_relax();
}

static void failed(void)
{
	atomic64_inc(&nr_errors);
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
	int home = smp_processor_id(), cpu;

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

static const struct work works[] = {
	{ "spin", false, step_spin },
	{ "spin_irq", false, step_spin_irq },
	{ "spin_bh", false, step_spin_bh },
	{ "spin_nested", false, step_spin_nested },
	{ "rw_read", false, step_rw_read },
	{ "rw_write", false, step_rw_write },
	{ "irq", false, step_irq },
	{ "softirq", false, step_softirq },
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
	{ "api_np", false, step_api_np },
	{ "api_p", true, step_api_p },
};

/* ---- running ---- */

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
	for (i = 0; i < ARRAY_SIZE(works); i++)
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

/* ---- micro-benchmarks: the best of some batches ---- */

#define BATCHES		7
#define BATCH_OPS	20000
#define SWITCHES	2000

#define BENCH(m, name, lock_stmt, unlock_stmt) do {			\
	u64 best_ns = U64_MAX, best_cycles = U64_MAX;			\
	unsigned int b, i;						\
									\
	for (b = 0; b < BATCHES; b++) {					\
		u64 ns = ktime_get_ns(), cycles = get_cycles();		\
									\
		for (i = 0; i < BATCH_OPS; i++) {			\
			lock_stmt;					\
			unlock_stmt;					\
		}							\
		best_cycles = min_t(u64, best_cycles, get_cycles() - cycles); \
		best_ns = min_t(u64, best_ns, ktime_get_ns() - ns);	\
		cond_resched();						\
	}								\
	seq_printf(m, "%s %llu.%02llu %llu\n", name, best_ns / BATCH_OPS, \
		   best_ns % BATCH_OPS * 100 / BATCH_OPS, best_cycles / BATCH_OPS); \
} while (0)

struct pingpong {
	struct seq_file *m;
	struct completion ping;
	struct completion pong;
	struct completion done;
};

static int ponger(void *data)
{
	struct pingpong *p = data;
	unsigned int i;

	for (i = 0; i < SWITCHES; i++) {
		wait_for_completion(&p->ping);
		complete(&p->pong);
	}
	return 0;
}

/* Two threads of one CPU: each round is two task switches and two wake-ups. */
static int pinger(void *data)
{
	struct pingpong *p = data;
	u64 ns = ktime_get_ns(), cycles = get_cycles();
	unsigned int i;

	for (i = 0; i < SWITCHES; i++) {
		complete(&p->ping);
		wait_for_completion(&p->pong);
	}
	cycles = get_cycles() - cycles;
	ns = ktime_get_ns() - ns;
	seq_printf(p->m, "switch %llu.00 %llu\n", ns / (2 * SWITCHES), cycles / (2 * SWITCHES));
	complete(&p->done);
	return 0;
}

static void bench_switch(struct seq_file *m)
{
	struct pingpong p = { .m = m };
	struct task_struct *ping, *pong;

	init_completion(&p.ping);
	init_completion(&p.pong);
	init_completion(&p.done);
	pong = kthread_create(ponger, &p, "ecs_test/pong");
	if (IS_ERR(pong))
		return;
	ping = kthread_create(pinger, &p, "ecs_test/ping");
	if (IS_ERR(ping)) {
		kthread_stop(pong);
		return;
	}
	kthread_bind(pong, 0);
	kthread_bind(ping, 0);
	wake_up_process(pong);
	wake_up_process(ping);
	wait_for_completion(&p.done);
}

static int bench_show(struct seq_file *m, void *v)
{
	struct locks *l = locks;

	mutex_lock(&run_lock);
	BENCH(m, "empty", barrier(), barrier());
	BENCH(m, "spin", spin_lock(&l->spin), spin_unlock(&l->spin));
	BENCH(m, "spin_irq", spin_lock_irq(&l->spin), spin_unlock_irq(&l->spin));
	BENCH(m, "rw_read", read_lock(&l->rwlock), read_unlock(&l->rwlock));
	BENCH(m, "rw_write", write_lock(&l->rwlock), write_unlock(&l->rwlock));
	BENCH(m, "mutex", mutex_lock(&l->mutex), mutex_unlock(&l->mutex));
	BENCH(m, "rwsem_read", down_read(&l->rwsem), up_read(&l->rwsem));
	BENCH(m, "rwsem_write", down_write(&l->rwsem), up_write(&l->rwsem));
	bench_switch(m);
	mutex_unlock(&run_lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(bench);

static int __init ecs_test_init(void)
{
	truth_size = PAGE_ALIGN(nr_cpu_ids * sizeof(*truth));
	truth = alloc_pages_exact(truth_size, GFP_KERNEL | __GFP_ZERO);
	threads = kcalloc(nr_cpu_ids, sizeof(*threads), GFP_KERNEL);
	locks = kzalloc(sizeof(*locks), GFP_KERNEL);
	if (!truth || !threads || !locks) {
		if (truth)
			free_pages_exact(truth, truth_size);
		kfree(threads);
		kfree(locks);
		return -ENOMEM;
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
	debugfs_create_file("bench", 0400, dir, NULL, &bench_fops);
	return 0;
}

static void __exit ecs_test_exit(void)
{
	debugfs_remove_recursive(dir);
	stop_all();
	free_pages_exact(truth, truth_size);
	kfree(threads);
	kfree(locks);
}

module_init(ecs_test_init);
module_exit(ecs_test_exit);

MODULE_DESCRIPTION("Workloads and ground truth for tests of virtio_ecs");
MODULE_LICENSE("GPL");
