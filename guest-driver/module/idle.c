// SPDX-License-Identifier: GPL-2.0
/*
 * Idle: polls for work while the pCPU is free, and halts at once when it is not.
 *
 * A halt is an exit, and waking from it another one and an interrupt: tens of
 * microseconds, which a vCPU that is alone on its pCPU may as well spend looking
 * for work. Only the host knows whether it is alone, and says so in the line.
 *
 * A cpuidle driver with two states that do the same. With two the governor
 * keeps the tick in short idle times and stops it in long ones; with one it
 * stops it always. Neither has CPUIDLE_FLAG_POLLING: the governor would take
 * that as a state to avoid.
 *
 * A poll that met nothing returns to the idle loop, which then calls again for
 * the halt. An interrupt that came while polling may have set a timer, and only
 * the idle loop looks at timers: a halt right after the poll would sleep past it.
 * It returns an error, so that the governor does not take it for an idle time.
 *
 * Each CPU's device comes and goes by CPU hotplug, on that CPU and in a task of
 * it: its idle loop is nowhere in this file when the device goes, and does not
 * come back. cpuidle by itself waits for a grace period only, which an idle CPU
 * does not hold up.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpu.h>
#include <linux/cpuhotplug.h>
#include <linux/cpuidle.h>
#include <linux/minmax.h>
#include <linux/module.h>
#include <linux/sched/clock.h>
#include <linux/sched/idle.h>
#include <linux/string.h>

#include "compat.h"
#include "ecs.h"

static char *idle = "auto";
module_param(idle, charp, 0444);
MODULE_PARM_DESC(idle, "Whether idle CPUs poll before they halt: auto (where nobody else polls), off");

static unsigned int idle_poll_us = 200;
module_param(idle_poll_us, uint, 0644);
MODULE_PARM_DESC(idle_poll_us, "Longest poll before a halt, us (at most 10000); 0: none");

static bool idle_wanted;

int ecs_idle_init(void)
{
	static const char *const names[] = { "off", "auto" };
	int nr = match_string(names, ARRAY_SIZE(names), idle);

	if (nr < 0) {
		pr_err("idle is auto or off\n");
		return -EINVAL;
	}
	idle_wanted = nr;
	return 0;
}

#ifdef CONFIG_X86_64

#define ECS_POLL_MAX_US		10000U
#define ECS_POLL_START_NS	(50U * NSEC_PER_USEC)
/* Turns of the loop between two looks at the clock. */
#define ECS_POLL_TURNS		32

static struct cpuidle_device __percpu *idle_devices;
static int idle_hotplug;

static __always_inline u32 ecs_poll_max(void)
{
	return min(READ_ONCE(idle_poll_us), ECS_POLL_MAX_US) * NSEC_PER_USEC;
}

static __always_inline bool ecs_overloaded(const struct ecs_cpu *pc)
{
	return READ_ONCE(pc->host->overloaded);
}

static __always_inline void ecs_line_add(__le32 *word, u32 more)
{
	WRITE_ONCE(*word, cpu_to_le32(le32_to_cpu(*word) + more));
}

/* How long to poll before this halt, ns. */
static __always_inline u64 ecs_poll_budget(struct ecs_cpu *pc)
{
	u32 max = ecs_poll_max();
	u64 left;

	if (!max || pc->poll.in_vain)
		return 0;
	/* Also where it will not poll: who looks rarely believes nothing. */
	left = ecs_beat_left(pc);
	if (ecs_overloaded(pc))
		return 0;
	return min3(left, (u64)pc->poll.limit, (u64)max);
}

/* Whether there was work within @budget from @start. */
static __always_inline bool ecs_poll(struct ecs_cpu *pc, u64 start, u64 budget)
{
	u64 spent;
	unsigned int turns = 0;
	bool paid;

	raw_local_irq_enable();
	if (!current_set_polling_and_test()) {
		while (!need_resched() && !ecs_overloaded(pc)) {
			cpu_relax();
			if (++turns % ECS_POLL_TURNS == 0 && local_clock() - start >= budget)
				break;
		}
	}
	raw_local_irq_disable();
	current_clr_polling();

	paid = need_resched();
	ecs_line_add(paid ? &pc->guest->polls_paid : &pc->guest->polls_wasted, 1);
	spent = local_clock() - start + pc->poll.rest;
	ecs_line_add(&pc->guest->poll_us, spent / NSEC_PER_USEC);
	pc->poll.rest = spent % NSEC_PER_USEC;
	pc->poll.since = start;
	pc->poll.in_vain = !paid;
	return paid;
}

/*
 * Halts, and learns from it: an idle time that a poll could have met makes the
 * next poll longer, one that it could not have ends polling.
 */
static __always_inline void ecs_poll_halt(struct ecs_cpu *pc, u64 now)
{
	u64 since = pc->poll.in_vain ? pc->poll.since : now;
	u32 max = ecs_poll_max();
	u64 took;

	pc->poll.in_vain = false;
	ecs_halt();
	took = local_clock() - since;
	if (took > max)
		pc->poll.limit = 0;
	else if (took > pc->poll.limit)
		pc->poll.limit = clamp(2 * pc->poll.limit, min_t(u32, ECS_POLL_START_NS, max), max);
}

/* Interrupts are off, here and on return, and RCU does not watch. */
static notrace int __cpuidle ecs_idle_enter(struct cpuidle_device *dev,
					    struct cpuidle_driver *drv, int index)
{
	struct ecs_cpu *pc;
	u64 now, budget;

	instrumentation_begin();
	pc = this_cpu_ptr(&ecs_cpus);
	/* Before it looks at the heartbeat: what that allows ends in time, whatever comes between. */
	now = local_clock();
	budget = ecs_poll_budget(pc);
	if (!budget)
		ecs_poll_halt(pc, now);
	else if (!ecs_poll(pc, now, budget))
		index = -EAGAIN;
	instrumentation_end();
	return index;
}

/* No owner: a driver in use does not keep its module loaded. */
static struct cpuidle_driver ecs_idle_driver = {
	.name = KBUILD_MODNAME,
	.states = {
		{
			.name = "ECS-SHORT",
			.desc = "poll if the pCPU is free, halt",
			.enter = ecs_idle_enter,
		},
		{
			.name = "ECS-LONG",
			.desc = "the same, tick stopped",
			.exit_latency = 1,
			.target_residency = 1,
			.enter = ecs_idle_enter,
		},
	},
	.state_count = 2,
};

/* In a task of the CPU that comes or goes. A CPU without a device halts as ever. */
static int ecs_idle_online(unsigned int cpu)
{
	struct cpuidle_device *dev = per_cpu_ptr(idle_devices, cpu);
	int err;

	per_cpu_ptr(&ecs_cpus, cpu)->poll = (struct ecs_poll){};
	dev->cpu = cpu;
	err = cpuidle_register_device(dev);
	if (err)
		pr_warn_once("CPU %u halts without polling: error %d\n", cpu, err);
	return 0;
}

static int ecs_idle_offline(unsigned int cpu)
{
	cpuidle_unregister_device(per_cpu_ptr(idle_devices, cpu));
	return 0;
}

/* Why idle is not ours; NULL if it may be. */
static const char *ecs_idle_not_ours(const struct ecs_device *ecs)
{
	if (!idle_wanted)
		return "idle=off";
	if (!(ecs->features & VIRTIO_ECS_F_HINTS))
		return "the device gives no hints";
	if (boot_option_idle_override != IDLE_NO_OVERRIDE)
		return "the kernel was started with idle=";
	if (boot_cpu_has(X86_FEATURE_MWAIT))
		return "this guest has MWAIT, which waits without an exit";
	if (!ecs_can_halt())
		return "this guest does not halt by HLT";
	return NULL;
}

static int ecs_idle_register(void)
{
	int err;

	idle_devices = alloc_percpu(struct cpuidle_device);
	if (!idle_devices)
		return -ENOMEM;
	err = cpuidle_register_driver(&ecs_idle_driver);
	if (err)
		goto free;
	err = cpuhp_setup_state(CPUHP_AP_ONLINE_DYN, "virtio_ecs/idle:online",
				ecs_idle_online, ecs_idle_offline);
	if (err < 0)
		goto unregister;
	idle_hotplug = err;
	return 0;

unregister:
	cpuidle_unregister_driver(&ecs_idle_driver);
free:
	free_percpu(idle_devices);
	idle_devices = NULL;
	return err;
}

/* Takes over idle if nobody else has; says who it is that polls, or not. */
void ecs_idle_start(struct ecs_device *ecs)
{
	const char *why = ecs_idle_not_ours(ecs);
	struct cpuidle_driver *other;
	int err;

	if (why) {
		pr_info("idle CPUs do not poll for us: %s\n", why);
		return;
	}
	err = ecs_idle_register();
	if (!err) {
		pr_info("idle CPUs poll up to %u us while their pCPU is free\n",
			ecs_poll_max() / (u32)NSEC_PER_USEC);
		return;
	}
	other = err == -EBUSY ? cpuidle_get_driver() : NULL;
	if (other)
		pr_info("idle CPUs do not poll for us: %s has them\n", other->name);
	else
		pr_info("idle CPUs do not poll for us: cpuidle refuses, error %d\n", err);
}

/* No CPU is in this file after it. */
void ecs_idle_stop(void)
{
	if (!idle_devices)
		return;
	cpuhp_remove_state(idle_hotplug);
	cpuidle_unregister_driver(&ecs_idle_driver);
	free_percpu(idle_devices);
	idle_devices = NULL;
}

#else

void ecs_idle_start(struct ecs_device *ecs)
{
	if (idle_wanted)
		pr_info("idle CPUs do not poll for us: only on x86-64\n");
}

void ecs_idle_stop(void)
{
}

#endif /* CONFIG_X86_64 */
