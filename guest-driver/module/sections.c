// SPDX-License-Identifier: GPL-2.0
/*
 * sections=all: every mutex and rwsem acquisition and release, by fprobe.
 *
 * An acquisition counts at its return, if it succeeded; a release counts once
 * it is done. Each held lock is remembered by address (tasks.c), so a return
 * that fprobe missed, or a release by another task, cannot unbalance a count.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/mutex.h>

#include "compat.h"
#include "ecs.h"

#ifdef ECS_HAVE_FPROBE

enum ecs_role {
	ECS_ACQUIRE,		/* always succeeds */
	ECS_ACQUIRE_ZERO,	/* succeeds if it returns 0 */
	ECS_ACQUIRE_TRUE,	/* succeeds if it returns non-zero */
	ECS_RELEASE,
};

/*
 * With lockdep, the _nested variants take the place of the plain ones. One name
 * that a kernel has not keeps its whole probe from being registered.
 */
#ifdef CONFIG_DEBUG_LOCK_ALLOC
#define ECS_NESTED	"_nested"
#else
#define ECS_NESTED	""
#endif

static const char *ecs_acquire[] = {
	"mutex_lock" ECS_NESTED, "mutex_lock_io" ECS_NESTED,
	"down_read", "down_write",
#ifdef CONFIG_DEBUG_LOCK_ALLOC
	"down_read_nested", "down_write_nested",
	"_mutex_lock_nest_lock", "_down_write_nest_lock",
#endif
};

static const char *ecs_acquire_zero[] = {
	"mutex_lock_interruptible" ECS_NESTED, ECS_MUTEX_LOCK_KILLABLE,
	"down_read_interruptible", "down_read_killable", "down_write_killable",
#ifdef CONFIG_DEBUG_LOCK_ALLOC
	"down_read_killable_nested", "down_write_killable_nested",
#endif
};

static const char *ecs_acquire_true[] = {
	ECS_MUTEX_TRYLOCK, "down_read_trylock", "down_write_trylock",
};

/* downgrade_write() keeps the section: nothing to do. */
static const char *ecs_release[] = {
	"mutex_unlock", "up_read", "up_write",
#ifdef CONFIG_DEBUG_LOCK_ALLOC
	"up_read_non_owner",
#endif
};

/*
 * One probe a role: each costs some grace periods to remove, which is long on
 * a busy guest.
 */
struct ecs_probe {
	enum ecs_role role;
	const char **symbols;
	int nr_symbols;
	bool on;
	struct fprobe fprobe;
};

/* Releases first: a hold that was seen is also seen to end. */
static struct ecs_probe ecs_probes[] = {
	{ ECS_RELEASE, ecs_release, ARRAY_SIZE(ecs_release) },
	{ ECS_ACQUIRE, ecs_acquire, ARRAY_SIZE(ecs_acquire) },
	{ ECS_ACQUIRE_ZERO, ecs_acquire_zero, ARRAY_SIZE(ecs_acquire_zero) },
	{ ECS_ACQUIRE_TRUE, ecs_acquire_true, ARRAY_SIZE(ecs_acquire_true) },
};

static int ecs_on_entry(struct fprobe *fp, unsigned long entry_ip, unsigned long ret_ip,
			ecs_fprobe_regs *regs, void *entry_data)
{
	*(const void **)entry_data = (const void *)ecs_fprobe_arg0(regs);
	return 0;
}

static void ecs_on_return(struct fprobe *fp, unsigned long entry_ip, unsigned long ret_ip,
			  ecs_fprobe_regs *regs, void *entry_data)
{
	struct ecs_probe *probe = container_of(fp, struct ecs_probe, fprobe);
	const void *lock = *(const void **)entry_data;

	switch (probe->role) {
	case ECS_ACQUIRE_ZERO:
		if ((int)ecs_fprobe_ret(regs) != 0)
			return;
		break;
	case ECS_ACQUIRE_TRUE:
		if ((int)ecs_fprobe_ret(regs) == 0)
			return;
		break;
	case ECS_RELEASE:
		ecs_task_drop(lock);
		return;
	case ECS_ACQUIRE:
		break;
	}
	ecs_task_hold(lock);
}

void ecs_fprobes_start(void)
{
	unsigned int i;
	int err;

	if (ecs_sections != ECS_SECTIONS_ALL)
		return;
	for (i = 0; i < ARRAY_SIZE(ecs_probes); i++) {
		struct ecs_probe *probe = &ecs_probes[i];

		memset(&probe->fprobe, 0, sizeof(probe->fprobe));
		probe->fprobe.entry_handler = ecs_on_entry;
		probe->fprobe.exit_handler = ecs_on_return;
		probe->fprobe.entry_data_size = sizeof(void *);
		err = register_fprobe_syms(&probe->fprobe, probe->symbols, probe->nr_symbols);
		probe->on = !err;
		if (err)
			pr_warn("fprobe on %s and others: error %d, not shown\n",
				probe->symbols[0], err);
	}
}

void ecs_fprobes_stop(void)
{
	int i;

	for (i = ARRAY_SIZE(ecs_probes) - 1; i >= 0; i--) {
		if (ecs_probes[i].on)
			unregister_fprobe(&ecs_probes[i].fprobe);
		ecs_probes[i].on = false;
	}
}

#else /* !ECS_HAVE_FPROBE */

void ecs_fprobes_start(void)
{
	if (ecs_sections == ECS_SECTIONS_ALL) {
		pr_warn("sections=all needs CONFIG_FPROBE and Linux 6.6: contended locks only\n");
		ecs_sections = ECS_SECTIONS_CONTENDED;
	}
}

void ecs_fprobes_stop(void)
{
}

#endif
