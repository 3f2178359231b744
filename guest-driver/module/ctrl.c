// SPDX-License-Identifier: GPL-2.0
/*
 * Control queue: one request at a time, each with a limit. A request the device
 * does not answer keeps the only buffer, so those that follow fail at once: a
 * dead device costs one time-out, not one a CPU. Its late answer revives it.
 *
 * Event queue: what arrives is checked, counted and answered by a work item.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/moduleparam.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

#include "compat.h"
#include "ecs.h"

static unsigned int ctrl_timeout_ms = 1000;
module_param(ctrl_timeout_ms, uint, 0644);
MODULE_PARM_DESC(ctrl_timeout_ms, "Longest wait for an answer of the device, ms (10 to 10000)");

/* Most events handled before others get the CPU. */
#define ECS_EVENT_BUDGET	64

void ecs_ctrl_done(struct virtqueue *vq)
{
	struct ecs_device *ecs = vq->vdev->priv;

	complete(&ecs->ctrl_done);
}

/* Takes the buffer back if the device is done with it; its used length or an error. */
static int ecs_ctrl_reclaim(struct ecs_device *ecs)
{
	unsigned int len;

	if (!virtqueue_get_buf(ecs->ctrl_vq, &len)) {
		if (!virtqueue_is_broken(ecs->ctrl_vq))
			return -EBUSY;
		pr_warn_once("the device has broken its control queue\n");
		return -EPROTO;
	}
	ecs->ctrl_busy = false;
	/* What a device says it wrote may be any number, an error too. */
	return min_t(unsigned int, len, INT_MAX);
}

static int ecs_ctrl_check(struct ecs_device *ecs, u16 op, unsigned int cpu, int len,
			  const struct virtio_ecs_ctrl_reply *reply)
{
	u16 status = le16_to_cpu(reply->status);

	if (len < sizeof(*reply) || le16_to_cpu(reply->op) != op ||
	    le32_to_cpu(reply->cookie) != ecs->cookie) {
		ecs_count(ECS_C_REFUSED);
		pr_warn_once("the device's answers make no sense\n");
		return -EPROTO;
	}
	/* The device has lost what it knew of the other CPUs. */
	if (le32_to_cpu(reply->generation) != ecs->generation)
		WRITE_ONCE(ecs->restart, true);
	ecs->generation = le32_to_cpu(reply->generation);
	switch (status) {
	case VIRTIO_ECS_S_OK:
		return 0;
	case VIRTIO_ECS_S_NOT_REGISTERED:
		return op == VIRTIO_ECS_CTRL_UNREGISTER ? 0 : -ENOENT;
	case VIRTIO_ECS_S_NOT_NEGOTIATED:
		WRITE_ONCE(ecs->restart, true);
		return -EAGAIN;
	case VIRTIO_ECS_S_BAD_FORMAT:
		pr_warn_once("the device does not know this kernel's preemption count: spinlocks are not shown\n");
		return -EOPNOTSUPP;
	default:
		ecs_count(ECS_C_REFUSED);
		pr_warn_ratelimited("CPU %u: request %u refused, status %u\n", cpu, op, status);
		return -EINVAL;
	}
}

/* Sends the message in ctrl_buf. Sleeps up to the time-out. */
static int ecs_ctrl_send(struct ecs_device *ecs, u16 op, unsigned int cpu, size_t size,
			 struct virtio_ecs_ctrl_reply *answer)
{
	unsigned int limit_ms = clamp(ctrl_timeout_ms, 10U, 10000U);
	struct ecs_ctrl_buf *buf = ecs->ctrl_buf;
	struct scatterlist out, in, *sgs[] = { &out, &in };
	unsigned long deadline = jiffies + msecs_to_jiffies(limit_ms);
	int len;

	memset(&buf->reply, 0, sizeof(buf->reply));
	sg_init_one(&out, &buf->msg, size);
	sg_init_one(&in, &buf->reply, sizeof(buf->reply));
	reinit_completion(&ecs->ctrl_done);
	if (virtqueue_add_sgs(ecs->ctrl_vq, sgs, 1, 1, ecs, GFP_KERNEL))
		return -EIO;
	ecs->ctrl_busy = true;
	virtqueue_kick(ecs->ctrl_vq);

	for (;;) {
		len = ecs_ctrl_reclaim(ecs);
		if (len != -EBUSY)
			break;
		if (time_after(jiffies, deadline)) {
			ecs_count(ECS_C_TIMEOUTS);
			pr_warn_once("the device does not answer\n");
			return -ETIMEDOUT;
		}
		/* An interrupt that got lost is made up for. */
		wait_for_completion_timeout(&ecs->ctrl_done, msecs_to_jiffies(100));
	}
	if (len < 0)
		return len;
	*answer = buf->reply;
	return ecs_ctrl_check(ecs, op, cpu, len, answer);
}

/* Whether a request can be made; ctrl_lock is held. */
static int ecs_ctrl_begin(struct ecs_device *ecs, unsigned int cpu)
{
	if (!ecs->ready)
		return -ENODEV;
	if (cpu >= ecs->max_vcpus)
		return -ERANGE;
	if (ecs->ctrl_busy && ecs_ctrl_reclaim(ecs) < 0)
		return -ETIMEDOUT;
	ecs->cookie++;
	memset(&ecs->ctrl_buf->msg, 0, sizeof(ecs->ctrl_buf->msg));
	return 0;
}

/* Tells the device where the slots of @cpu lie; @word is 0 where there is none. */
int ecs_ctrl_register(struct ecs_device *ecs, unsigned int cpu, u64 guest, u64 host, u64 word)
{
	struct virtio_ecs_ctrl_reply answer = {};
	struct virtio_ecs_register *reg;
	int err;

	mutex_lock(&ecs->ctrl_lock);
	err = ecs_ctrl_begin(ecs, cpu);
	if (err)
		goto out;
	reg = &ecs->ctrl_buf->msg.reg;
	reg->op = cpu_to_le16(VIRTIO_ECS_CTRL_REGISTER);
	reg->cookie = cpu_to_le32(ecs->cookie);
	reg->vcpu = cpu_to_le32(cpu);
	reg->guest_line = cpu_to_le64(guest);
	reg->host_line = cpu_to_le64(host);
	if (word && (ecs->features & VIRTIO_ECS_F_WORD)) {
		reg->word_addr = cpu_to_le64(word);
		reg->word_format = cpu_to_le32(ECS_WORD_FORMAT);
		if (!IS_ENABLED(CONFIG_PREEMPT_COUNT))
			reg->flags = cpu_to_le32(VIRTIO_ECS_REG_NO_PREEMPT_COUNT);
	}
	err = ecs_ctrl_send(ecs, VIRTIO_ECS_CTRL_REGISTER, cpu, sizeof(*reg), &answer);
	if (!err)
		ecs_count(ECS_C_REGISTERED);
out:
	mutex_unlock(&ecs->ctrl_lock);
	return err;
}

static int ecs_ctrl_vcpu(struct ecs_device *ecs, u16 op, unsigned int cpu,
			 struct virtio_ecs_ctrl_reply *answer)
{
	struct virtio_ecs_vcpu_msg *msg;
	int err;

	mutex_lock(&ecs->ctrl_lock);
	err = ecs_ctrl_begin(ecs, cpu);
	if (!err) {
		msg = &ecs->ctrl_buf->msg.vcpu;
		msg->op = cpu_to_le16(op);
		msg->cookie = cpu_to_le32(ecs->cookie);
		msg->vcpu = cpu_to_le32(cpu);
		err = ecs_ctrl_send(ecs, op, cpu, sizeof(*msg), answer);
	}
	mutex_unlock(&ecs->ctrl_lock);
	return err;
}

/* After success, or if it was not registered, the lines are the guest's again. */
int ecs_ctrl_unregister(struct ecs_device *ecs, unsigned int cpu)
{
	struct virtio_ecs_ctrl_reply answer;
	int err = ecs_ctrl_vcpu(ecs, VIRTIO_ECS_CTRL_UNREGISTER, cpu, &answer);

	if (!err)
		ecs_count(ECS_C_UNREGISTERED);
	return err;
}

int ecs_ctrl_query(struct ecs_device *ecs, unsigned int cpu, u64 *grants, u64 *faults)
{
	struct virtio_ecs_ctrl_reply answer;
	int err = ecs_ctrl_vcpu(ecs, VIRTIO_ECS_CTRL_QUERY, cpu, &answer);

	if (!err) {
		*grants = le64_to_cpu(answer.nr_grants);
		*faults = le64_to_cpu(answer.nr_faults);
	}
	return err;
}

/* ---- events ---- */

void ecs_event_done(struct virtqueue *vq)
{
	struct ecs_device *ecs = vq->vdev->priv;

	queue_work(ecs_wq, &ecs->event_work);
}

static int ecs_event_post(struct ecs_device *ecs, struct virtio_ecs_event *event)
{
	struct scatterlist sg;

	memset(event, 0, sizeof(*event));
	sg_init_one(&sg, event, sizeof(*event));
	return virtqueue_add_inbuf(ecs->event_vq, &sg, 1, event, GFP_KERNEL);
}

void ecs_events_post(struct ecs_device *ecs)
{
	unsigned int i;

	for (i = 0; i < ECS_NR_EVENTS; i++)
		if (ecs_event_post(ecs, &ecs->events[i]))
			break;
	virtqueue_kick(ecs->event_vq);
}

static void ecs_event(struct ecs_device *ecs, const struct virtio_ecs_event *event)
{
	ecs_count(ECS_C_EVENTS);
	switch (le16_to_cpu(event->type)) {
	case VIRTIO_ECS_EV_RESTART:
		ecs->restart = true;
		mod_delayed_work(ecs_wq, &ecs->watch, 0);
		break;
	case VIRTIO_ECS_EV_FAULT:
		ecs_count(ECS_C_FAULTS);
		pr_warn_ratelimited("vCPU %u: the device cannot read its slots (%llu faults)\n",
				    le32_to_cpu(event->vcpu), le64_to_cpu(event->data));
		break;
	default:	/* enabled, disabled, and what we do not know */
		break;
	}
}

void ecs_event_work(struct work_struct *work)
{
	struct ecs_device *ecs = container_of(work, struct ecs_device, event_work);
	struct virtio_ecs_event *event;
	int budget = ECS_EVENT_BUDGET;
	unsigned int len;

	mutex_lock(&ecs->slots_lock);
	while (ecs->ready && budget--) {
		event = virtqueue_get_buf(ecs->event_vq, &len);
		if (!event)
			break;
		if (len >= sizeof(*event))
			ecs_event(ecs, event);
		ecs_event_post(ecs, event);
	}
	if (ecs->ready) {
		virtqueue_kick(ecs->event_vq);
		if (budget < 0)
			queue_work(ecs_wq, &ecs->event_work);
	}
	mutex_unlock(&ecs->slots_lock);
}
