/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the files of the test module share.
 *
 *   main.c   threads that run a workload, debugfs
 *   work.c   workloads, one for each class of section, and the truth about them
 *   bench.c  what a lock and a task switch cost
 */
#ifndef _ECS_TEST_H
#define _ECS_TEST_H

#include <linux/cpumask.h>
#include <linux/mutex.h>
#include <linux/rwsem.h>
#include <linux/seq_file.h>
#include <linux/spinlock.h>
#include <linux/types.h>

/* Bits of a truth's state. */
enum {
	T_SPIN = 0x1, T_IRQ = 0x2, T_SOFTIRQ = 0x4, T_RCU = 0x8,
	T_RW_READ = 0x10, T_RW_WRITE = 0x20, T_MUTEX = 0x40,
	T_RWSEM_R = 0x80, T_RWSEM_W = 0x100,
	T_WAITING = 0x200,	/* about to have it, spinning or just got it */
	T_IDLE = 0x400, T_OUTSIDE = 0x800,
	T_SLEEPING_HOLDER = 0x1000, T_IN_IDLE_IRQ = 0x2000,
	T_API_NP = 0x4000, T_API_P = 0x8000,
	T_NMI = 0x10000,
};

struct truth {
	u32 seq;		/* odd while the entry changes */
	u32 state;
	u64 lock;		/* guest physical */
	u64 task;
	u64 nr;
	u64 reserved[4];
};

/* What the workloads contend for. */
struct locks {
	spinlock_t spin;		/* outer */
	spinlock_t spin2;		/* inner */
	rwlock_t rwlock;
	struct mutex mutex;		/* outer */
	struct mutex mutex2;		/* inner */
	struct rw_semaphore rwsem;
};

struct work {
	const char *name;
	bool fifo;		/* the thread must not be preempted by the guest */
	void (*step)(void);
};

extern struct truth *truth;
extern struct locks *locks;

/* Of the workload that runs. */
extern cpumask_t run_cpus;
extern unsigned int hold_us, gap_us;

/* main.c */
void failed(void);

/* work.c */
extern const struct work works[];
extern const unsigned int nr_works;
int works_init(void);
void works_exit(void);
void tell(u32 state, const void *lock);
void spend(unsigned int us);

/* bench.c: the file of that name in debugfs */
int bench_show(struct seq_file *m, void *v);

#endif /* _ECS_TEST_H */
