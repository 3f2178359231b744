/* SPDX-License-Identifier: GPL-2.0 */
/*
 * virtio_ecs, internal: what the files of the driver share.
 *
 *   core.c      module, virtio device, negotiation, suspend
 *   ctrl.c      control and event queue
 *   slots.c     lines of each CPU, registration, CPU hotplug
 *   hooks.c     tracepoints: idle, interrupts, the task that runs
 *   waits.c     spinning waiters
 *   tasks.c     preemptable sections, which belong to tasks
 *   sections.c  mutex and rwsem acquisitions by fprobe (sections=all)
 *   user.c      /dev/virtio_ecs: sections of processes, and the host's hints for them
 *   beat.c      whether the host still writes to a line
 *   idle.c      polls before it halts, while the pCPU is free
 *   api.c       the six calls for other modules
 *   stats.c     debugfs
 */
#ifndef _VIRTIO_ECS_INTERNAL_H
#define _VIRTIO_ECS_INTERNAL_H

#include <linux/completion.h>
#include <linux/mm_types.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/virtio.h>
#include <linux/workqueue.h>

#include "virtio_ecs.h"

/* ---- counters, one set a CPU (stats.c) ---- */

enum ecs_counter {
	ECS_C_REGISTERED,	/* REGISTER accepted */
	ECS_C_UNREGISTERED,	/* UNREGISTER accepted */
	ECS_C_REFUSED,		/* requests the device refused */
	ECS_C_TIMEOUTS,		/* requests the device did not answer in time */
	ECS_C_EVENTS,		/* events received */
	ECS_C_FAULTS,		/* EV_FAULT: the device could not read a slot */
	ECS_C_WAITS,		/* spins for a lock */
	ECS_C_WAITS_DROPPED,	/* spins nested too deep to be shown */
	ECS_C_BLAMED,		/* holders found by a waiter */
	ECS_C_HELD,		/* acquisitions seen by fprobe */
	ECS_C_USER,		/* sections of user space */
	ECS_C_TASKS_DROPPED,	/* sections not shown: a table was full */
	ECS_NR_COUNTERS
};

struct ecs_stats {
	u64 nr[ECS_NR_COUNTERS];
};

DECLARE_PER_CPU(struct ecs_stats, ecs_stats);

#define ecs_count(counter)	this_cpu_inc(ecs_stats.nr[counter])

void ecs_stats_init(void);
void ecs_stats_exit(void);

/* ---- the state of a CPU ---- */

/* A task, a softirq and an interrupt may each wait, and one more to be sure. */
#define ECS_MAX_WAITS	4

struct ecs_wait {
	void *lock;
	/* What the line showed before this wait: put back at its end. */
	u32 waiting;
	u64 addr;
	u64 mask;
	u64 value;
	u32 width;
};

/* The last look at the host's heartbeat, of this CPU or another one (beat.c). */
struct ecs_beat {
	atomic_t busy;		/* somebody looks at this moment */
	u32 last;
	u64 looked;		/* ns */
	u64 alive_until;	/* ns; read by everybody */
};

/* How this CPU polls when it is idle (idle.c). */
struct ecs_poll {
	u64 since;		/* begin of the last poll, ns */
	u32 limit;		/* longest poll, ns: adapts itself */
	u32 rest;		/* ns polled that are not in poll_us yet */
	bool in_vain;		/* it has polled since it became idle: halt now */
};

struct ecs_cpu {
	struct virtio_ecs_guest_line *guest;
	struct virtio_ecs_host_line *host;
	struct ecs_beat beat;

	/* Written by this CPU only, with interrupts off or by nesting rules. */
	struct ecs_wait waits[ECS_MAX_WAITS];
	unsigned int nr_waits;
	unsigned int irq_depth;
	unsigned int np_api;
	struct ecs_poll poll;

	/*
	 * The running task, compared and never followed, and its entry in the
	 * table of tasks, if it has one (tasks.c).
	 */
	struct task_struct *curr;
	struct ecs_task *task;

	/* Under ecs_device.slots_lock. */
	bool registered;
	bool lost;		/* unregistered without an answer: the device may still write */
};

DECLARE_PER_CPU(struct ecs_cpu, ecs_cpus);

/* ---- the device ---- */

struct ecs_ctrl_buf {
	union {
		struct virtio_ecs_register reg;
		struct virtio_ecs_vcpu_msg vcpu;
	} msg;
	struct virtio_ecs_ctrl_reply reply;
};

#define ECS_NR_EVENTS	8

struct ecs_device {
	struct virtio_device *vdev;
	struct virtqueue *ctrl_vq;
	struct virtqueue *event_vq;
	u64 features;
	u32 max_vcpus;
	u32 generation;
	bool ready;			/* queues are up; under slots_lock */
	bool closing;			/* nothing is registered any more; under slots_lock */

	struct mutex ctrl_lock;		/* one request at a time */
	struct completion ctrl_done;
	struct ecs_ctrl_buf *ctrl_buf;
	bool ctrl_busy;			/* the device has the buffer; under ctrl_lock */
	u32 cookie;

	struct mutex slots_lock;	/* inside the CPU hotplug lock */
	int hotplug_state;
	u32 beat;			/* sum of the heartbeats when last looked at */

	struct virtio_ecs_event *events;
	struct work_struct event_work;
	struct delayed_work watch;
	bool restart;			/* the device says registrations are lost */
	bool missing;			/* a CPU could not be registered: try again */
};

extern struct ecs_device *ecs_dev;	/* the device in use; under ecs_dev_lock */
extern struct mutex ecs_dev_lock;
extern struct workqueue_struct *ecs_wq;

/* core.c */
int ecs_negotiate(struct ecs_device *ecs);

/* ctrl.c */
int ecs_ctrl_register(struct ecs_device *ecs, unsigned int cpu, u64 guest, u64 host, u64 word);
int ecs_ctrl_unregister(struct ecs_device *ecs, unsigned int cpu);
int ecs_ctrl_query(struct ecs_device *ecs, unsigned int cpu, u64 *grants, u64 *faults);
void ecs_ctrl_done(struct virtqueue *vq);
void ecs_event_done(struct virtqueue *vq);
void ecs_events_post(struct ecs_device *ecs);
void ecs_event_work(struct work_struct *work);

/* slots.c */
int ecs_slots_alloc(void);
void ecs_slots_free(void);
int ecs_slots_mmap(struct vm_area_struct *vma);
int ecs_slots_start(struct ecs_device *ecs);
void ecs_slots_stop(struct ecs_device *ecs);
void ecs_slots_register(struct ecs_device *ecs);
void ecs_slots_unregister(struct ecs_device *ecs);
bool ecs_slots_silent(struct ecs_device *ecs);
bool ecs_slots_lost(struct ecs_device *ecs);
u64 ecs_phys(const void *addr);

/* hooks.c */
int ecs_hooks_start(void);
void ecs_hooks_stop(void);
void ecs_np_publish(struct ecs_cpu *pc);

/* beat.c */
u64 ecs_beat_left(struct ecs_cpu *pc);

/* idle.c */
int ecs_idle_init(void);
void ecs_idle_start(struct ecs_device *ecs);
void ecs_idle_stop(void);

/* waits.c */
void ecs_wait_begin(void *lock, unsigned int flags);
void ecs_wait_end(void *lock, int ret);
void ecs_waits_reset(struct ecs_cpu *pc);

/* tasks.c */
enum ecs_sections {
	ECS_SECTIONS_OFF,
	ECS_SECTIONS_CONTENDED,
	ECS_SECTIONS_ALL,
};

extern enum ecs_sections ecs_sections;

#define ECS_OWNER_FLAGS	7UL	/* low bits of a mutex's or rwsem's owner */

/* The sections announced through one open file of /dev/virtio_ecs. */
struct ecs_user {
	unsigned int sections;
};

int ecs_tasks_init(void);
void ecs_tasks_exit(void);
void ecs_tasks_reset(void);
void ecs_task_start(struct ecs_cpu *pc);
void ecs_task_switch(struct ecs_cpu *pc, struct task_struct *next);
void ecs_task_exit(struct task_struct *task);
void ecs_task_waits(void *lock, unsigned int flags);
void ecs_task_wait_over(void *lock, int ret);
void ecs_task_hold(const void *lock);
void ecs_task_drop(const void *lock);
void ecs_task_call(int change);
int ecs_task_user_enter(struct ecs_user *user, unsigned int max);
int ecs_task_user_leave(struct ecs_user *user);
void ecs_task_user_forget(struct ecs_user *user);
unsigned int ecs_tasks_used(void);

/* sections.c */
void ecs_fprobes_start(void);
void ecs_fprobes_stop(void);

/* user.c */
int ecs_user_init(void);
void ecs_user_exit(void);

#endif /* _VIRTIO_ECS_INTERNAL_H */
