// SPDX-License-Identifier: GPL-2.0
/*
 * Whether the host still writes to a CPU's line: its last words stay there when
 * it is gone, and must not be believed for longer than ECS_BEAT_NS.
 *
 * A heartbeat that has changed was written after the look before this one, so
 * the host was alive then, and that is all that is certain: it counts as alive
 * for ECS_BEAT_NS from the look before. Who looks rarely is told "not alive" at
 * first, and must come again once the heart has beaten.
 */
#include <linux/irqflags.h>
#include <linux/ktime.h>

#include "compat.h"
#include "ecs.h"

/* Two of the longest gaps between the beats of a host that lives. */
#define ECS_BEAT_NS	(100 * NSEC_PER_MSEC)

/* What a look at time @now says that finds the heartbeat at @beat. */
static notrace void ecs_beat_found(struct ecs_beat *b, u32 beat, u64 now)
{
	/* Zero is no beat: this guest itself has cleared the line. */
	if (beat != b->last && beat)
		WRITE_ONCE(b->alive_until, b->looked + ECS_BEAT_NS);
	b->last = beat;
	b->looked = now;
}

/*
 * Looks, and says for how much longer the host counts as alive, ns; 0: it does
 * not. From any context, also for another CPU, and where RCU does not watch.
 */
notrace u64 ecs_beat_left(struct ecs_cpu *pc)
{
	struct ecs_beat *b = &pc->beat;
	/* Before the beat is read, which may be newer then but never older. */
	u64 now = ktime_get_mono_fast_ns(), until;
	unsigned long flags;

	/* Whoever comes while somebody else looks takes what is known. */
	raw_local_irq_save(flags);
	if (!atomic_cmpxchg_acquire(&b->busy, 0, 1)) {
		ecs_beat_found(b, le32_to_cpu(READ_ONCE(pc->host->heartbeat)), now);
		atomic_set_release(&b->busy, 0);
	}
	raw_local_irq_restore(flags);
	until = READ_ONCE(b->alive_until);
	return until > now ? until - now : 0;
}
