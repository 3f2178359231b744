/* SPDX-License-Identifier: ((GPL-2.0 WITH Linux-syscall-note) OR BSD-3-Clause) */
/*
 * /dev/virtio_ecs: a thread says that it holds a lock others wait for.
 *
 * A thread is in a section or it is not: ENTER twice is EALREADY. The section
 * follows the thread over context switches and CPUs, and ends with LEAVE, with
 * the thread, or with the file it was announced through.
 */
#ifndef _UAPI_LINUX_VIRTIO_ECS_USER_H
#define _UAPI_LINUX_VIRTIO_ECS_USER_H

#include <linux/ioctl.h>

/* EALREADY: in a section already. EAGAIN: too many sections at this moment. */
#define VIRTIO_ECS_USER_ENTER	_IO(0xec, 0)
/* EALREADY: not in a section of this file. */
#define VIRTIO_ECS_USER_LEAVE	_IO(0xec, 1)

#endif /* _UAPI_LINUX_VIRTIO_ECS_USER_H */
