/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The six calls of eCS, for other kernel modules. They are cheap, work the
 * same whether or not there is a device, and are exported GPL-only.
 *
 * Mutexes, rwsems, spinlocks and interrupts are shown by the driver itself:
 * these calls are for locks that no hook sees.
 */
#ifndef _VIRTIO_ECS_API_H
#define _VIRTIO_ECS_API_H

#include <linux/types.h>

/*
 * A section this kernel itself cannot preempt. Preemption is disabled until the
 * matching deactivate, which comes after the unlock. Any context but NMI; nests.
 */
void activate_non_preemptable_ecs(void);
void deactivate_non_preemptable_ecs(void);

/*
 * A section of the current task, which may sleep in it: it follows the task to
 * whichever CPU it runs on. Task context; nests. An unbalanced deactivate does
 * nothing, and the sections of a task end with it.
 */
void activate_preemptable_ecs(void);
void deactivate_preemptable_ecs(void);

/*
 * Hints of the host: whether the vCPU of @cpu is off its CPU although it had
 * work, and whether its CPU has more than one runnable task. False if unknown.
 * Where the kernel has vcpu_is_preempted(), prefer that.
 *
 * A host that is gone is believed for 100 ms at most. For that its heart must be
 * seen to beat: the first call for a CPU that nobody has asked about for 100 ms
 * answers false, and so do those until its next beat, within 50 ms.
 */
bool is_vcpu_preempted(unsigned int cpu);
bool is_pcpu_overloaded(unsigned int cpu);

#endif /* _VIRTIO_ECS_API_H */
