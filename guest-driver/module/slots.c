// SPDX-License-Identifier: GPL-2.0
/*
 * The lines of each CPU: where they lie, and who knows of them.
 *
 * A CPU is registered when it comes online and unregistered before it goes.
 * The lines belong to the module, not to the device: two blocks for its whole
 * life. If the device did not confirm an unregistration it may still write
 * there, and they are never freed: some hundred bytes a CPU, once a load.
 *
 * Processes may read what the host writes (user.c), and nothing else: guest
 * lines hold guest physical addresses. So the two share no page.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpu.h>
#include <linux/cpuhotplug.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "compat.h"
#include "ecs.h"

DEFINE_PER_CPU(struct ecs_cpu, ecs_cpus);

static struct virtio_ecs_guest_line *ecs_guest_lines;
static struct virtio_ecs_host_line *ecs_host_lines;
/* Of each of the two. */
static size_t ecs_lines_size;

/* Guest physical address of a kernel object; 0 if it has none. */
u64 ecs_phys(const void *addr)
{
	struct page *page;

	if (virt_addr_valid(addr))
		return virt_to_phys((void *)addr);
	if (!is_vmalloc_addr(addr)
#ifdef MODULES_VADDR
	    && !((unsigned long)addr >= MODULES_VADDR && (unsigned long)addr < MODULES_END)
#endif
	   )
		return 0;
	page = vmalloc_to_page(addr);
	return page ? page_to_phys(page) + offset_in_page(addr) : 0;
}

int ecs_slots_alloc(void)
{
	unsigned int cpu;

	BUILD_BUG_ON(sizeof(*ecs_guest_lines) != VIRTIO_ECS_LINE_SIZE);
	BUILD_BUG_ON(sizeof(*ecs_host_lines) != VIRTIO_ECS_LINE_SIZE);
	/* Whole pages: aligned, and nothing else lies in them. */
	ecs_lines_size = PAGE_ALIGN(nr_cpu_ids * VIRTIO_ECS_LINE_SIZE);
	ecs_guest_lines = alloc_pages_exact(ecs_lines_size, GFP_KERNEL | __GFP_ZERO);
	if (!ecs_guest_lines)
		return -ENOMEM;
	ecs_host_lines = alloc_pages_exact(ecs_lines_size, GFP_KERNEL | __GFP_ZERO);
	if (!ecs_host_lines) {
		free_pages_exact(ecs_guest_lines, ecs_lines_size);
		return -ENOMEM;
	}
	for_each_possible_cpu(cpu) {
		struct ecs_cpu *pc = per_cpu_ptr(&ecs_cpus, cpu);

		pc->guest = &ecs_guest_lines[cpu];
		pc->host = &ecs_host_lines[cpu];
	}
	return 0;
}

/*
 * Maps the host's lines for a process. No reference to the pages is taken: who
 * maps them keeps the module, and the module keeps them.
 */
int ecs_slots_mmap(struct vm_area_struct *vma)
{
	size_t size = vma->vm_end - vma->vm_start;

	if (vma->vm_pgoff || size > ecs_lines_size)
		return -EINVAL;
	return remap_pfn_range(vma, vma->vm_start, virt_to_phys(ecs_host_lines) >> PAGE_SHIFT,
			       size, vma->vm_page_prot);
}

void ecs_slots_free(void)
{
	unsigned int cpu;

	for_each_possible_cpu(cpu)
		if (per_cpu_ptr(&ecs_cpus, cpu)->lost) {
			pr_warn("the device did not let go: %zu bytes are left behind\n",
				2 * ecs_lines_size);
			return;
		}
	free_pages_exact(ecs_host_lines, ecs_lines_size);
	free_pages_exact(ecs_guest_lines, ecs_lines_size);
}

/* On the CPU itself. What its line says from now on is kept right by the hooks. */
static void ecs_slot_start(void)
{
	struct ecs_cpu *pc;
	unsigned long flags;

	local_irq_save(flags);
	pc = this_cpu_ptr(&ecs_cpus);
	pc->nr_waits = 0;
	pc->irq_depth = 0;
	memset(pc->guest, 0, sizeof(*pc->guest));
	memset(pc->host, 0, sizeof(*pc->host));
	ecs_np_publish(pc);
	ecs_task_start(pc);
	local_irq_restore(flags);
}

/* slots_lock is held. */
static void ecs_slot_register(struct ecs_device *ecs, unsigned int cpu)
{
	struct ecs_cpu *pc = per_cpu_ptr(&ecs_cpus, cpu);
	u64 guest = ecs_phys(pc->guest), host = ecs_phys(pc->host);
	void *word = ecs_preempt_word(cpu);
	int err;

	if (!ecs->ready || ecs->closing || cpu >= ecs->max_vcpus)
		return;
	err = ecs_ctrl_register(ecs, cpu, guest, host, word ? ecs_phys(word) : 0);
	if (err == -EOPNOTSUPP)
		err = ecs_ctrl_register(ecs, cpu, guest, host, 0);
	/* A request that was not answered may have been heard. */
	if (!err || err == -ETIMEDOUT || err == -EPROTO)
		pc->lost = true;
	pc->registered = !err;
	/* A refusal is for good; anything else may pass. */
	if (err && err != -EINVAL)
		ecs->missing = true;
}

/* slots_lock is held. */
static void ecs_slot_unregister(struct ecs_device *ecs, unsigned int cpu)
{
	struct ecs_cpu *pc = per_cpu_ptr(&ecs_cpus, cpu);

	if (!ecs->ready || !pc->lost)
		return;
	pc->registered = false;
	if (!ecs_ctrl_unregister(ecs, cpu))
		pc->lost = false;
}

/* Called on the CPU that comes. Never fails: it runs without eCS then. */
static int ecs_cpu_online(unsigned int cpu)
{
	ecs_slot_start();
	mutex_lock(&ecs_dev->slots_lock);
	ecs_slot_register(ecs_dev, cpu);
	mutex_unlock(&ecs_dev->slots_lock);
	return 0;
}

static int ecs_cpu_offline(unsigned int cpu)
{
	mutex_lock(&ecs_dev->slots_lock);
	ecs_slot_unregister(ecs_dev, cpu);
	mutex_unlock(&ecs_dev->slots_lock);
	return 0;
}

/* Registers every CPU, now and as they come. */
int ecs_slots_start(struct ecs_device *ecs)
{
	int state;

	state = cpuhp_setup_state(CPUHP_AP_ONLINE_DYN, "virtio_ecs:online",
				  ecs_cpu_online, ecs_cpu_offline);
	if (state < 0)
		return state;
	ecs->hotplug_state = state;
	if (nr_cpu_ids > ecs->max_vcpus)
		pr_info("the device serves CPUs below %u: the others run without\n",
			ecs->max_vcpus);
	return 0;
}

/* Unregisters every CPU, for good. */
void ecs_slots_stop(struct ecs_device *ecs)
{
	mutex_lock(&ecs->slots_lock);
	ecs->closing = true;
	mutex_unlock(&ecs->slots_lock);
	cpuhp_remove_state(ecs->hotplug_state);
}

/* Registers the CPUs that are online again: the device has lost them. */
void ecs_slots_register(struct ecs_device *ecs)
{
	unsigned int cpu;

	cpus_read_lock();
	mutex_lock(&ecs->slots_lock);
	ecs->missing = false;
	for_each_online_cpu(cpu)
		ecs_slot_register(ecs, cpu);
	mutex_unlock(&ecs->slots_lock);
	cpus_read_unlock();
}

/* Unregisters every CPU; they stay online. */
void ecs_slots_unregister(struct ecs_device *ecs)
{
	unsigned int cpu;

	mutex_lock(&ecs->slots_lock);
	for_each_possible_cpu(cpu)
		ecs_slot_unregister(ecs, cpu);
	mutex_unlock(&ecs->slots_lock);
}

/*
 * Asks the device for a CPU that should be registered: the answer says whether
 * it still is. Config space would too, but reading it hangs or ends some VMMs
 * while the daemon is away.
 */
bool ecs_slots_lost(struct ecs_device *ecs)
{
	u64 grants, faults;
	unsigned int cpu;
	bool lost = false;

	mutex_lock(&ecs->slots_lock);
	for_each_possible_cpu(cpu) {
		if (!per_cpu_ptr(&ecs_cpus, cpu)->registered)
			continue;
		lost = ecs_ctrl_query(ecs, cpu, &grants, &faults) == -ENOENT;
		break;
	}
	mutex_unlock(&ecs->slots_lock);
	return lost;
}

/* Whether no heartbeat has changed since this was last asked. */
bool ecs_slots_silent(struct ecs_device *ecs)
{
	u32 beat = 0;
	unsigned int cpu;
	bool silent;

	for_each_possible_cpu(cpu)
		beat += le32_to_cpu(READ_ONCE(per_cpu_ptr(&ecs_cpus, cpu)->host->heartbeat));
	silent = beat == ecs->beat;
	ecs->beat = beat;
	return silent;
}
