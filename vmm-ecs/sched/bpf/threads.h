/* SPDX-License-Identifier: GPL-2.0 */
/* Which threads are vCPUs, and where the words of their guests are. */
#ifndef ECS_THREADS_H
#define ECS_THREADS_H

#include "kernel.h"
#include "virtio_ecs.h"

/* The word in which a guest's kernel counts what keeps a CPU from being preempted. */
struct ecs_word {
	__u32 value;
};

/*
 * What the daemon says of a thread. The others are places in pages of guest memory that the daemon has
 * mapped and the kernel pins: plain memory at any moment, whoever runs. NULL where it cannot pin them.
 */
struct ecs_thread {
	__u32 number;		/* the vCPU over all VMs, plus one; 0: none */
	__u32 reserved;
	struct virtio_ecs_host_line __uptr *host;
	struct virtio_ecs_guest_line __uptr *line;
	struct ecs_word __uptr *word;
	__u64 base_ns;		/* what the kernel says it ran, less what is booked; 0: not yet known */
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct ecs_thread);
} threads SEC(".maps");

struct task_struct *bpf_task_from_pid(__s32 pid) __ksym;
void bpf_task_release(struct task_struct *p) __ksym;

static struct ecs_thread *thread_of(struct task_struct *p)
{
	return bpf_task_storage_get(&threads, p, NULL, 0);
}

/* Tells the vCPU of a thread that its CPU is wanted; whichever CPU this is. */
static __always_inline void tell_wanted(__s32 tid)
{
	struct task_struct *p = bpf_task_from_pid(tid);
	struct ecs_thread *thread;

	if (!p)
		return;
	thread = thread_of(p);
	if (thread && thread->host)
		thread->host->overloaded = 1;
	bpf_task_release(p);
}

/* Never read: they carry whole types, not only their names, into the compiled object. */
const volatile struct virtio_ecs_host_line type_of_host_lines;
const volatile struct virtio_ecs_guest_line type_of_guest_lines;
const volatile struct ecs_word type_of_words;

#endif /* ECS_THREADS_H */
