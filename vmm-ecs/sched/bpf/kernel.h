/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the programs use of the kernel: fields are found by name when they are loaded (CO-RE), so
 * each structure holds only those that are read. No generated vmlinux.h is needed.
 */
#ifndef ECS_KERNEL_H
#define ECS_KERNEL_H

#include <linux/types.h>
#include <linux/bpf.h>

struct bpf_iter_num {
	__u64 __opaque[1];
} __attribute__((aligned(8)));

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

typedef _Bool bool;
#define true	1
#define false	0
#define NULL	((void *)0)

#ifndef CLOCK_MONOTONIC
#define CLOCK_MONOTONIC	1
#endif
/* Since 6.7: newer than the headers this may be compiled with. */
#define TIMER_CPU_PIN	2

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct cpumask {
	unsigned long bits[1];
} cpumask_t;

struct sched_ext_entity {
	__u32 weight;
	__u64 slice;
	__u64 dsq_vtime;
	__u32 flags;
};

struct sched_entity {
	__u64 sum_exec_runtime;
	struct cfs_rq *cfs_rq;
};

struct thread_info {
	__u32 cpu;
};

/* Of a cgroup; the root's has no parent. */
struct scx_task_group {
	__u32 weight;
	__u64 bw_period_us;
	__u64 bw_quota_us;
	bool idle;
};

struct task_group {
	struct task_group *parent;
	struct scx_task_group scx;
};

struct task_struct {
	struct thread_info thread_info;
	int pid;
	int tgid;
	unsigned int policy;
	struct sched_entity se;
	int nr_cpus_allowed;
	unsigned short migration_disabled;
	cpumask_t cpus_mask;	/* not read: without it the compiler would not describe its type */
	const cpumask_t *cpus_ptr;
	struct sched_ext_entity scx;
	struct task_group *sched_task_group;
	unsigned long core_cookie;
};

/* Names since 6.14; before, a task that sleeps before its time counts as runnable. */
struct cfs_rq {
	unsigned int h_nr_queued;
	unsigned int h_nr_runnable;
	unsigned int h_nr_idle;
	struct rq *rq;
};

struct rq {
	unsigned int nr_running;
	struct cfs_rq cfs;
};

struct scx_init_task_args;
struct scx_exit_task_args;

enum scx_exit_kind {
	SCX_EXIT_NONE = 0,
};

struct scx_exit_info {
	enum scx_exit_kind kind;
	__s64 exit_code;
	const char *reason;
	char *msg;
};

#pragma clang attribute pop

/* Members are matched by name, too. */
struct sched_ext_ops {
	__s32 (*select_cpu)(struct task_struct *p, __s32 prev_cpu, __u64 wake_flags);
	void (*enqueue)(struct task_struct *p, __u64 enq_flags);
	void (*dispatch)(__s32 cpu, struct task_struct *prev);
	void (*tick)(struct task_struct *p);
	void (*running)(struct task_struct *p);
	void (*stopping)(struct task_struct *p, bool runnable);
	void (*quiescent)(struct task_struct *p, __u64 deq_flags);
	bool (*yield)(struct task_struct *from, struct task_struct *to);
	bool (*core_sched_before)(struct task_struct *a, struct task_struct *b);
	void (*cpu_online)(__s32 cpu);
	void (*cpu_offline)(__s32 cpu);
	__s32 (*init_task)(struct task_struct *p, struct scx_init_task_args *args);
	void (*exit_task)(struct task_struct *p, struct scx_exit_task_args *args);
	__s32 (*init)(void);
	void (*exit)(struct scx_exit_info *info);
	__u64 flags;
	__u32 timeout_ms;
	char name[128];
};

/* Constants of the kernel's enumerations; they are its interface to schedulers. */
#define SCX_DSQ_LOCAL		0x8000000000000002ULL
#define SCX_DSQ_LOCAL_ON	0xc000000000000000ULL
#define SCX_ENQ_WAKEUP		1ULL
#define SCX_DEQ_SLEEP		1ULL
#define SCX_KICK_IDLE		1ULL
#define SCX_KICK_PREEMPT	2ULL
#define SCX_TASK_QUEUED		1U
#define SCX_OPS_ENQ_LAST	2ULL
#define SCX_OPS_ENQ_EXITING	4ULL
#define SCX_OPS_ENQ_MIGRATION_DISABLED	16ULL
#define SCX_SLICE_INF		(~0ULL)

__s32 scx_bpf_create_dsq(__u64 dsq_id, __s32 node) __ksym;
__s32 scx_bpf_select_cpu_dfl(struct task_struct *p, __s32 prev_cpu, __u64 wake_flags,
			     bool *is_idle) __ksym;
__s32 scx_bpf_task_cpu(const struct task_struct *p) __ksym;
__s32 scx_bpf_dsq_nr_queued(__u64 dsq_id) __ksym;
struct task_struct *scx_bpf_dsq_peek(__u64 dsq_id) __ksym;
bool scx_bpf_dsq_move_to_local(__u64 dsq_id) __ksym;
void scx_bpf_dsq_insert(struct task_struct *p, __u64 dsq_id, __u64 slice, __u64 enq_flags) __ksym;
void scx_bpf_dsq_insert_vtime(struct task_struct *p, __u64 dsq_id, __u64 slice, __u64 vtime,
			      __u64 enq_flags) __ksym;
bool scx_bpf_task_set_slice(struct task_struct *p, __u64 slice) __ksym;
bool scx_bpf_task_set_dsq_vtime(struct task_struct *p, __u64 vtime) __ksym;
void scx_bpf_kick_cpu(__s32 cpu, __u64 flags) __ksym;
bool bpf_cpumask_test_cpu(__u32 cpu, const cpumask_t *cpumask) __ksym;

/* One queue's tasks, in order; one of them can be moved out of its turn. */
struct bpf_iter_scx_dsq {
	__u64 __opaque[6];
} __attribute__((aligned(8)));

int bpf_iter_scx_dsq_new(struct bpf_iter_scx_dsq *it, __u64 dsq_id, __u64 flags) __ksym;
struct task_struct *bpf_iter_scx_dsq_next(struct bpf_iter_scx_dsq *it) __ksym;
void bpf_iter_scx_dsq_destroy(struct bpf_iter_scx_dsq *it) __ksym;
void scx_bpf_dsq_move_set_slice(struct bpf_iter_scx_dsq *it, __u64 slice) __ksym;
void scx_bpf_dsq_move_set_vtime(struct bpf_iter_scx_dsq *it, __u64 vtime) __ksym;
bool scx_bpf_dsq_move_vtime(struct bpf_iter_scx_dsq *it, struct task_struct *p, __u64 dsq_id,
			    __u64 enq_flags) __ksym;
bool scx_bpf_dsq_move(struct bpf_iter_scx_dsq *it, struct task_struct *p, __u64 dsq_id,
		      __u64 enq_flags) __ksym;

#endif /* ECS_KERNEL_H */
