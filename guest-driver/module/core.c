// SPDX-License-Identifier: GPL-2.0
/*
 * virtio_ecs: tells the host which vCPUs are in critical sections.
 *
 * The module publishes where the state of each CPU lies, and keeps what a stock
 * kernel does not keep by itself: waits, idle, preemptable sections. The ABI is
 * in docs/abi.md. This file: the module, the virtio device, negotiation,
 * suspend, and the watch over a device that restarts.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kmemleak.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>

#include "compat.h"
#include "ecs.h"

#define ECS_WANTED	(VIRTIO_ECS_F_LINES | VIRTIO_ECS_F_WORD | VIRTIO_ECS_F_WAIT | \
			 VIRTIO_ECS_F_HINTS | VIRTIO_ECS_F_EVENTS)
/*
 * Not F_DOORBELL: a spinlock's release cannot be hooked, and a host that waits
 * for doorbells does not look for releases by itself.
 */

#define ECS_WATCH_MS	1000

static unsigned int virtio_id;
module_param(virtio_id, uint, 0444);
MODULE_PARM_DESC(virtio_id, "Virtio device id to serve beside 63, for tests");

static char *sections = "contended";
module_param(sections, charp, 0444);
MODULE_PARM_DESC(sections, "Mutexes and rwsems shown: off, contended (those somebody waits for), all");

struct ecs_device *ecs_dev;
DEFINE_MUTEX(ecs_dev_lock);
struct workqueue_struct *ecs_wq;

static struct virtio_device_id ecs_ids[] = {
	{ VIRTIO_ECS_DEFAULT_ID, VIRTIO_DEV_ANY_ID },
	{ 0 },		/* virtio_id */
	{ 0 },
};
MODULE_DEVICE_TABLE(virtio, ecs_ids);

/* Reads what the device offers and commits a choice; 0 once it is accepted. */
int ecs_negotiate(struct ecs_device *ecs)
{
	struct virtio_device *vdev = ecs->vdev;
	u32 magic, status;
	u16 min, max, line_size;
	u64 features;

	virtio_cread_le(vdev, struct virtio_ecs_config, magic, &magic);
	virtio_cread_le(vdev, struct virtio_ecs_config, version_min, &min);
	virtio_cread_le(vdev, struct virtio_ecs_config, version_max, &max);
	virtio_cread_le(vdev, struct virtio_ecs_config, features, &features);
	virtio_cread_le(vdev, struct virtio_ecs_config, line_size, &line_size);
	if (magic != VIRTIO_ECS_MAGIC) {
		pr_warn_once("not a virtio-ecs device: magic 0x%08x\n", magic);
		return -ENODEV;
	}
	if (min > VIRTIO_ECS_VERSION || max < VIRTIO_ECS_VERSION) {
		pr_warn_once("the device speaks versions %u to %u, this driver %u\n",
			     min, max, VIRTIO_ECS_VERSION);
		return -EPROTONOSUPPORT;
	}
	if (line_size != VIRTIO_ECS_LINE_SIZE || !(features & VIRTIO_ECS_F_LINES)) {
		pr_warn_once("the device does not offer lines of %u bytes\n",
			     VIRTIO_ECS_LINE_SIZE);
		return -EPROTONOSUPPORT;
	}
	ecs->features = features & ECS_WANTED;
	virtio_cwrite_le(vdev, struct virtio_ecs_config, driver_version,
			 &(u16){ VIRTIO_ECS_VERSION });
	virtio_cwrite_le(vdev, struct virtio_ecs_config, driver_features, &ecs->features);
	virtio_cread_le(vdev, struct virtio_ecs_config, status, &status);
	if (status != VIRTIO_ECS_NEG_OK) {
		pr_warn_once("the device refuses the choice: status %u\n", status);
		return -EPROTO;
	}
	virtio_cread_le(vdev, struct virtio_ecs_config, max_vcpus, &ecs->max_vcpus);
	ecs->max_vcpus = min_t(u32, ecs->max_vcpus, VIRTIO_ECS_MAX_VCPUS);
	virtio_cread_le(vdev, struct virtio_ecs_config, generation, &ecs->generation);
	return 0;
}

/*
 * Once a second, and when the device says so: registers again what the device
 * has lost or could not be told. Config space is read only when it has answered.
 */
static void ecs_watch(struct work_struct *work)
{
	struct ecs_device *ecs = container_of(work, struct ecs_device, watch.work);
	bool silent = ecs_slots_silent(ecs);
	bool lost = silent && ecs_slots_lost(ecs);
	u32 status = VIRTIO_ECS_NEG_OK;

	if (xchg(&ecs->restart, false)) {
		lost = true;
		virtio_cread_le(ecs->vdev, struct virtio_ecs_config, status, &status);
	}
	if (status != VIRTIO_ECS_NEG_OK && ecs_negotiate(ecs))
		WRITE_ONCE(ecs->restart, true);
	else if (lost || ecs->missing)
		ecs_slots_register(ecs);
	queue_delayed_work(ecs_wq, &ecs->watch, msecs_to_jiffies(ECS_WATCH_MS));
}

/*
 * The device never changes config space by itself. A VMM that has lost the
 * daemon may say so in this way, and not survive a look: ask by the queue.
 */
static void ecs_config_changed(struct virtio_device *vdev)
{
	struct ecs_device *ecs = vdev->priv;

	mod_delayed_work(ecs_wq, &ecs->watch, 0);
}

/* Sets up the queues and lets the device run. */
static int ecs_queues_up(struct ecs_device *ecs)
{
	static const char *const names[] = { "control", "event" };
	vq_callback_t *callbacks[] = { ecs_ctrl_done, ecs_event_done };
	struct virtqueue *vqs[2];
	int err;

	err = ecs_find_vqs(ecs->vdev, 2, vqs, callbacks, names);
	if (err)
		return err;
	ecs->ctrl_vq = vqs[VIRTIO_ECS_VQ_CONTROL];
	ecs->event_vq = vqs[VIRTIO_ECS_VQ_EVENT];
	virtio_device_ready(ecs->vdev);
	ecs_events_post(ecs);
	ecs->ready = true;
	return 0;
}

/* Every CPU is unregistered, as far as the device answers. */
static void ecs_device_down(struct ecs_device *ecs)
{
	mutex_lock(&ecs->slots_lock);
	ecs->ready = false;
	mutex_unlock(&ecs->slots_lock);
	virtio_reset_device(ecs->vdev);
	cancel_work_sync(&ecs->event_work);
	ecs->vdev->config->del_vqs(ecs->vdev);
	if (ecs->ctrl_busy) {
		/* The device may still write the reply: leave it the buffer. */
		kmemleak_not_leak(ecs->ctrl_buf);
		ecs->ctrl_buf = NULL;
		ecs->ctrl_busy = false;
	}
}

static void ecs_device_free(struct ecs_device *ecs)
{
	kfree(ecs->ctrl_buf);
	kfree(ecs->events);
	kfree(ecs);
}

static struct ecs_device *ecs_device_alloc(struct virtio_device *vdev)
{
	struct ecs_device *ecs = kzalloc(sizeof(*ecs), GFP_KERNEL);

	if (!ecs)
		return NULL;
	ecs->vdev = vdev;
	ecs->ctrl_buf = kzalloc(sizeof(*ecs->ctrl_buf), GFP_KERNEL);
	ecs->events = kcalloc(ECS_NR_EVENTS, sizeof(*ecs->events), GFP_KERNEL);
	if (!ecs->ctrl_buf || !ecs->events) {
		ecs_device_free(ecs);
		return NULL;
	}
	mutex_init(&ecs->ctrl_lock);
	mutex_init(&ecs->slots_lock);
	init_completion(&ecs->ctrl_done);
	INIT_WORK(&ecs->event_work, ecs_event_work);
	INIT_DELAYED_WORK(&ecs->watch, ecs_watch);
	vdev->priv = ecs;
	return ecs;
}

static void ecs_say_what_counts(void)
{
	if (!IS_ENABLED(CONFIG_X86_64))
		pr_info("no preemption count in a per-CPU word here: spinlocks are not shown\n");
	else if (!IS_ENABLED(CONFIG_PREEMPT_COUNT))
		pr_info("kernel without PREEMPT_COUNT: spinlocks are not shown\n");
	else if (preempt_model_none() || preempt_model_voluntary())
		pr_info("preemption none or voluntary, with PREEMPT_COUNT: spinlocks are shown\n");
}

static int ecs_probe(struct virtio_device *vdev)
{
	struct ecs_device *ecs;
	int err;

	mutex_lock(&ecs_dev_lock);
	if (ecs_dev) {
		pr_warn("one device is in use already\n");
		err = -EBUSY;
		goto unlock;
	}
	ecs = ecs_device_alloc(vdev);
	if (!ecs) {
		err = -ENOMEM;
		goto unlock;
	}
	err = ecs_negotiate(ecs);
	if (!err)
		err = ecs_queues_up(ecs);
	if (err)
		goto free;
	ecs_dev = ecs;
	err = ecs_hooks_start();
	if (err)
		goto down;
	err = ecs_slots_start(ecs);
	if (err)
		goto stop;
	ecs_say_what_counts();
	ecs_idle_start(ecs);
	queue_delayed_work(ecs_wq, &ecs->watch, msecs_to_jiffies(ECS_WATCH_MS));
	mutex_unlock(&ecs_dev_lock);
	return 0;

stop:
	ecs_hooks_stop();
down:
	ecs_dev = NULL;
	ecs_device_down(ecs);
	/* An event may have started it. */
	cancel_delayed_work_sync(&ecs->watch);
free:
	/* The device may have asked for a look already. */
	cancel_delayed_work_sync(&ecs->watch);
	ecs_device_free(ecs);
unlock:
	mutex_unlock(&ecs_dev_lock);
	return err;
}

static void ecs_remove(struct virtio_device *vdev)
{
	struct ecs_device *ecs = vdev->priv;

	mutex_lock(&ecs_dev_lock);
	ecs_idle_stop();
	ecs_slots_stop(ecs);
	ecs_hooks_stop();
	ecs_device_down(ecs);
	cancel_delayed_work_sync(&ecs->watch);
	ecs_dev = NULL;
	ecs_device_free(ecs);
	mutex_unlock(&ecs_dev_lock);
}

#ifdef CONFIG_PM_SLEEP
static int ecs_freeze(struct virtio_device *vdev)
{
	struct ecs_device *ecs = vdev->priv;

	/* The work queue is frozen. */
	ecs_slots_unregister(ecs);
	ecs_device_down(ecs);
	return 0;
}

static int ecs_restore(struct virtio_device *vdev)
{
	struct ecs_device *ecs = vdev->priv;
	int err;

	if (!ecs->ctrl_buf)
		ecs->ctrl_buf = kzalloc(sizeof(*ecs->ctrl_buf), GFP_KERNEL);
	if (!ecs->ctrl_buf)
		return -ENOMEM;
	/*
	 * What was negotiated still holds, and who has forgotten it says so when
	 * asked to register. Config space may hang if the daemon is away.
	 */
	err = ecs_queues_up(ecs);
	if (err)
		return err;
	ecs_slots_register(ecs);
	return 0;
}
#endif

static struct virtio_driver ecs_driver = {
	.driver.name = KBUILD_MODNAME,
	.id_table = ecs_ids,
	.probe = ecs_probe,
	.remove = ecs_remove,
	.config_changed = ecs_config_changed,
#ifdef CONFIG_PM_SLEEP
	.freeze = ecs_freeze,
	.restore = ecs_restore,
#endif
};

static int __init ecs_init(void)
{
	static const char *const names[] = {
		[ECS_SECTIONS_OFF] = "off",
		[ECS_SECTIONS_CONTENDED] = "contended",
		[ECS_SECTIONS_ALL] = "all",
	};
	int err;

	err = match_string(names, ARRAY_SIZE(names), sections);
	if (err < 0) {
		pr_err("sections is off, contended or all\n");
		return -EINVAL;
	}
	ecs_sections = err;
	err = ecs_idle_init();
	if (err)
		return err;
	if (virtio_id)
		ecs_ids[1] = (struct virtio_device_id){ virtio_id, VIRTIO_DEV_ANY_ID };

	ecs_wq = alloc_workqueue("virtio_ecs", WQ_UNBOUND | WQ_FREEZABLE, 0);
	if (!ecs_wq)
		return -ENOMEM;
	err = ecs_slots_alloc();
	if (err)
		goto workqueue;
	err = ecs_tasks_init();
	if (err)
		goto slots;
	ecs_stats_init();
	err = register_virtio_driver(&ecs_driver);
	if (err)
		goto tasks;
	/* Last: a module that fails to load goes, whoever has its device open. */
	err = ecs_user_init();
	if (!err)
		return 0;

	unregister_virtio_driver(&ecs_driver);
tasks:
	ecs_stats_exit();
	ecs_tasks_exit();
slots:
	ecs_slots_free();
workqueue:
	destroy_workqueue(ecs_wq);
	return err;
}

static void __exit ecs_exit(void)
{
	ecs_stats_exit();
	ecs_user_exit();
	unregister_virtio_driver(&ecs_driver);
	ecs_tasks_exit();
	ecs_slots_free();
	destroy_workqueue(ecs_wq);
}

module_init(ecs_init);
module_exit(ecs_exit);

MODULE_DESCRIPTION("Enlightened critical sections over virtio, guest driver");
MODULE_AUTHOR("The vmm-ecs authors");
MODULE_LICENSE("GPL");
MODULE_VERSION("0.1.0");
