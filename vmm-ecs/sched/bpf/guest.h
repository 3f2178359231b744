/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Reads what a guest publishes, as ecs-shm does: each word once, none trusted. What is not pinned is
 * read in the context of a thread of that VM's VMM only: elsewhere the addresses mean other memory.
 * Global functions are verified once each, not once for every path that leads to them.
 */
#ifndef ECS_GUEST_H
#define ECS_GUEST_H

#include "maps.h"
#include "virtio_ecs.h"

#define MAX_COUNT	(1U << 20)

/* Of the caller's process; 0 where the guest has no such memory. */
__noinline __u64 user_addr(__u32 vm_index, __u64 gpa, __u32 width)
{
	const struct ecs_vm_config *vm = vm_config_at(vm_index);
	__u32 nr = vm ? vm->nr_regions : 0;

	for (__u32 i = 0; i < ECS_MAX_REGIONS; i++) {
		const struct ecs_region *region;
		__u64 offset;

		if (!vm || i >= nr)
			return 0;
		region = &vm->regions[i];
		offset = gpa - region->gpa;

		if (gpa >= region->gpa && offset < region->len && region->len - offset >= width)
			return region->user + offset;
	}
	return 0;
}

/* One level of each is a spinning waiter's own. */
static bool word_in_section(__u32 word, __u32 format, bool waits)
{
	bool wide = format == VIRTIO_ECS_WORD_X86_PREEMPT64;
	__u32 preempt = word & 0xff, softirq = word & 0xff00;
	__u32 irqs_disabled = wide ? word & 0xff0000 : 0;
	__u32 interrupts = word & (wide ? 0xff000000 : 0xff0000);

	return interrupts ||
	       (irqs_disabled && !(waits && irqs_disabled == 0x10000)) ||
	       (softirq && !(waits && softirq == 0x200)) ||
	       (preempt && !(waits && preempt == 1));
}

__noinline int read_wait(__u32 vm_index, const struct virtio_ecs_guest_line *line __arg_nonnull,
			 bool at_hand, struct ecs_snapshot *snap __arg_nonnull)
{
	__u64 now = 0, addr = line->wait_addr;
	__u32 width = line->wait_width;
	const void *word;

	switch (line->waiting) {
	case VIRTIO_ECS_WAIT_NONE:
		return 0;
	case VIRTIO_ECS_WAIT_ENTER:
		snap->wait = ECS_WAIT_ENTERING;
		return 0;
	case VIRTIO_ECS_WAIT_SPIN:
	case VIRTIO_ECS_WAIT_BLOCK:
		break;
	default:
		return -1;
	}
	if (line->wait_holder > VIRTIO_ECS_MAX_VCPUS)
		return -1;
	snap->holder = line->wait_holder;
	snap->wait = ECS_WAIT_UNKNOWN;
	if (!line->wait_mask || !at_hand)
		return 0;
	if ((width != VIRTIO_ECS_WIDTH_32 && width != VIRTIO_ECS_WIDTH_64) || addr & (width - 1))
		return -1;
	word = (const void *)user_addr(vm_index, addr, width);
	if (!word)
		return -1;
	if (width == VIRTIO_ECS_WIDTH_32) {
		__u32 half;

		if (bpf_probe_read_user(&half, sizeof(half), word))
			return -1;
		now = half;
	} else if (bpf_probe_read_user(&now, sizeof(now), word)) {
		return -1;
	}
	snap->lock = addr;
	snap->wait = ECS_WAIT_PENDING;
	if ((now & line->wait_mask) == line->wait_value) {
		/* Whoever held the lock, nobody is waited for any more. */
		snap->wait = ECS_WAIT_ENDED;
		snap->holder = 0;
	}
	return 0;
}

/*
 * What makes no sense is "not in a section", and an error. `pinned_line` and `pinned_word` are the
 * vCPU's own where its thread is known: a call to copy either costs more than all the rest. `at_hand` tells
 * whether a thread of its VMM is the current one; where it is not, what is not pinned is not known.
 */
__noinline int read_snapshot(__u32 index, const struct virtio_ecs_guest_line *pinned_line,
			     const struct ecs_word *pinned_word, bool at_hand,
			     struct ecs_snapshot *snap __arg_nonnull)
{
	const struct ecs_vcpu_config *vcpu = AT(vcpu_configs, index);
	struct virtio_ecs_guest_line line;
	struct ecs_snapshot seen = { 0 };
	__u32 word = 0;

	*snap = seen;
	if (!vcpu || !vcpu->guest_line || !(at_hand || (pinned_line && pinned_word)))
		return 0;
	if (pinned_line)
		line = *pinned_line;
	else if (bpf_probe_read_user(&line, sizeof(line), (const void *)vcpu->guest_line))
		return -1;
	/* The guest may write meanwhile: what was checked is what is used. */
	barrier();
	if (line.np_count > MAX_COUNT || line.p_count > MAX_COUNT ||
	    read_wait(index / ECS_MAX_VCPUS, &line, at_hand, &seen))
		return -1;
	if (vcpu->word_format) {
		if (pinned_word)
			word = *(const volatile __u32 *)&pinned_word->value;
		else if (bpf_probe_read_user(&word, sizeof(word), (const void *)vcpu->word_addr))
			return -1;
		seen.non_preemptable = word_in_section(word, vcpu->word_format,
						       seen.wait != ECS_WAIT_NONE);
	}
	if (line.np_count)
		seen.non_preemptable = 1;
	seen.preemptable = line.p_count != 0;
	seen.blocked = line.waiting == VIRTIO_ECS_WAIT_BLOCK;
	seen.idle = line.idle != 0;
	*snap = seen;
	return 0;
}

#endif /* ECS_GUEST_H */
