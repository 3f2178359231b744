/* SPDX-License-Identifier: ((GPL-2.0 WITH Linux-syscall-note) OR BSD-3-Clause) */
/*
 * /dev/virtio_ecs: a thread says that it holds a lock others wait for, and reads
 * whether waiting awake is worth it.
 *
 * A thread is in a section or it is not: ENTER twice is EALREADY. The section
 * follows the thread over context switches and CPUs, and ends with LEAVE, with
 * the thread, or with the file it was announced through.
 *
 * mmap() at offset 0, readable and nothing more (EPERM otherwise), shows what the
 * host writes: a struct virtio_ecs_host_line for each CPU n, at
 * n * VIRTIO_ECS_LINE_SIZE. There is one for each possible CPU, in whole pages;
 * EINVAL beyond them, or at another offset. The mapping outlives the file
 * descriptor, and keeps the driver loaded.
 *
 * All fields are hints. They mean nothing while heartbeat stands still: a value
 * that has changed was written after the look before, and the host counts as
 * alive until 100 ms after that look. Zero is no heartbeat: the line is not in
 * use. A thread may be moved to another CPU between any two looks.
 */
#ifndef _UAPI_LINUX_VIRTIO_ECS_USER_H
#define _UAPI_LINUX_VIRTIO_ECS_USER_H

#include <linux/ioctl.h>

/* EALREADY: in a section already. EAGAIN: too many sections at this moment. */
#define VIRTIO_ECS_USER_ENTER	_IO(0xec, 0)
/* EALREADY: not in a section of this file. */
#define VIRTIO_ECS_USER_LEAVE	_IO(0xec, 1)

#endif /* _UAPI_LINUX_VIRTIO_ECS_USER_H */
