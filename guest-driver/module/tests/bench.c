// SPDX-License-Identifier: GPL-2.0
/*
 * What a lock and its release cost, and a task switch: nanoseconds and cycles.
 */
#include <linux/completion.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/minmax.h>
#include <linux/sched.h>
#include <linux/timex.h>

#include "ecs_test.h"

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

int bench_show(struct seq_file *m, void *v)
{
	struct locks *l = locks;

	BENCH(m, "empty", barrier(), barrier());
	BENCH(m, "spin", spin_lock(&l->spin), spin_unlock(&l->spin));
	BENCH(m, "spin_irq", spin_lock_irq(&l->spin), spin_unlock_irq(&l->spin));
	BENCH(m, "rw_read", read_lock(&l->rwlock), read_unlock(&l->rwlock));
	BENCH(m, "rw_write", write_lock(&l->rwlock), write_unlock(&l->rwlock));
	BENCH(m, "mutex", mutex_lock(&l->mutex), mutex_unlock(&l->mutex));
	BENCH(m, "rwsem_read", down_read(&l->rwsem), up_read(&l->rwsem));
	BENCH(m, "rwsem_write", down_write(&l->rwsem), up_write(&l->rwsem));
	bench_switch(m);
	return 0;
}
