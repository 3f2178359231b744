/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Every difference between the kernels this driver builds for, 6.1 to 7.3.
 */
#ifndef _VIRTIO_ECS_COMPAT_H
#define _VIRTIO_ECS_COMPAT_H

#include <linux/cpu.h>
#include <linux/ftrace.h>
#include <linux/mm.h>
#include <linux/percpu.h>
#include <linux/preempt.h>
#include <linux/version.h>
#include <linux/virtio_config.h>
#ifdef CONFIG_FPROBE
#include <linux/fprobe.h>
#endif

/*
 * The per-CPU preemption count of x86-64: a variable of its own, a field of
 * pcpu_hot from 6.2, and a variable again from 6.15.
 */
#ifdef CONFIG_X86_64
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0) && \
	LINUX_VERSION_CODE < KERNEL_VERSION(6, 15, 0)
#include <asm/current.h>
#define ecs_preempt_word(cpu)	((void *)per_cpu_ptr(&pcpu_hot.preempt_count, cpu))
#else
#include <asm/preempt.h>
#define ecs_preempt_word(cpu)	((void *)per_cpu_ptr(&__preempt_count, cpu))
#endif
#else
/* Elsewhere the count is the task's, not the CPU's: there is no word. */
#define ecs_preempt_word(cpu)	((void)(cpu), (void *)NULL)
#endif

/*
 * Kernels that count the depth of disabled interrupts (7.1 or so) have a 64-bit
 * count; its lower half has a format of its own.
 */
#ifdef HARDIRQ_DISABLE_BITS
#define ECS_WORD_FORMAT	VIRTIO_ECS_WORD_X86_PREEMPT64
#else
#define ECS_WORD_FORMAT	VIRTIO_ECS_WORD_X86_PREEMPT
#endif

/* Where there is no word, np_count shows interrupts. */
#define ECS_WORD_SHOWS_IRQS	IS_ENABLED(CONFIG_X86_64)

#ifdef CONFIG_X86_64
/*
 * Halts until an interrupt comes, as the kernel does where no cpuidle driver is
 * there. Called and left with interrupts off, which 6.1 does not ask for.
 */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
#define ecs_can_halt()	true
static __always_inline void ecs_halt(void)
{
	arch_cpu_idle();
}
#else
/* arch_cpu_idle() is not exported to modules: HLT is all there is. */
#define ecs_can_halt()	(!boot_cpu_has(X86_FEATURE_TDX_GUEST) && \
			 !boot_cpu_has_bug(X86_BUG_AMD_E400))
static __always_inline void ecs_halt(void)
{
	raw_safe_halt();
	raw_local_irq_disable();
}
#endif
#endif

/* 6.11 replaced two arrays by one of virtqueue_info. */
static inline int ecs_find_vqs(struct virtio_device *vdev, unsigned int nvqs,
			       struct virtqueue *vqs[], vq_callback_t *callbacks[],
			       const char *const names[])
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
	struct virtqueue_info info[4] = {};
	unsigned int i;

	if (WARN_ON_ONCE(nvqs > ARRAY_SIZE(info)))
		return -EINVAL;
	for (i = 0; i < nvqs; i++) {
		info[i].name = names[i];
		info[i].callback = callbacks[i];
	}
	return virtio_find_vqs(vdev, nvqs, vqs, info, NULL);
#else
	return virtio_find_vqs(vdev, nvqs, vqs, callbacks, (const char **)names, NULL);
#endif
}

/* 6.3 made vm_flags read only, and gave functions to change them. */
static inline void ecs_vm_flags_clear(struct vm_area_struct *vma, unsigned long flags)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_clear(vma, flags);
#else
	vma->vm_flags &= ~flags;
#endif
}

/* sched_process_exit has had a second argument since 6.16. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 16, 0)
#define ECS_EXIT_PROTO	void *data, struct task_struct *task, bool group_dead
#else
#define ECS_EXIT_PROTO	void *data, struct task_struct *task
#endif

/*
 * fprobe: usable entry data since 6.6, struct ftrace_regs since 6.14. Older
 * kernels and those without CONFIG_FPROBE do without sections=all.
 */
#if defined(CONFIG_FPROBE) && LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0)
#define ECS_HAVE_FPROBE	1
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 14, 0)
#define ecs_fprobe_regs		struct ftrace_regs
#define ecs_fprobe_arg0(regs)	ftrace_regs_get_argument(regs, 0)
#define ecs_fprobe_ret(regs)	ftrace_regs_get_return_value(regs)
#else
#define ecs_fprobe_regs		struct pt_regs
#define ecs_fprobe_arg0(regs)	regs_get_kernel_argument(regs, 0)
#define ecs_fprobe_ret(regs)	regs_return_value(regs)
#endif
#endif

/* What mutex_lock_killable() and mutex_trylock() are with lockdep: other functions since 6.16. */
#ifndef CONFIG_DEBUG_LOCK_ALLOC
#define ECS_MUTEX_LOCK_KILLABLE	"mutex_lock_killable"
#define ECS_MUTEX_TRYLOCK	"mutex_trylock"
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(6, 16, 0)
#define ECS_MUTEX_LOCK_KILLABLE	"_mutex_lock_killable"
#define ECS_MUTEX_TRYLOCK	"_mutex_trylock_nest_lock"
#else
#define ECS_MUTEX_LOCK_KILLABLE	"mutex_lock_killable_nested"
#define ECS_MUTEX_TRYLOCK	"mutex_trylock"
#endif

#endif /* _VIRTIO_ECS_COMPAT_H */
