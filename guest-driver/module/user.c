// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/virtio_ecs: sections of user space, and the host's lines for it to read.
 * Off unless user_sections=1.
 *
 * A section costs a system call, because the host reads the line of a vCPU and
 * nothing else: a word in the thread's own memory would be seen only when the
 * guest next switches tasks, and by then it is too late.
 *
 * What a hostile process can do: hold user_max files, and show a section in
 * each of its threads, up to the size of the table of tasks. The host bounds
 * and charges what that gains. It can read when each vCPU of this guest is off
 * its CPU, and when a pCPU is shared: as much as a clock tells it, with less work.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "compat.h"
#include "ecs.h"
#include "virtio_ecs_user.h"

static bool user_sections;
module_param(user_sections, bool, 0444);
MODULE_PARM_DESC(user_sections, "Whether user space may announce sections, by /dev/virtio_ecs");

static unsigned int user_max = 16;
module_param(user_max, uint, 0644);
MODULE_PARM_DESC(user_max, "Open files a user may have, and sections a file may show at a time");

struct ecs_user_file {
	struct list_head list;
	kuid_t uid;
	struct ecs_user sections;
};

static LIST_HEAD(ecs_users);
static DEFINE_MUTEX(ecs_users_lock);

static int ecs_user_open(struct inode *inode, struct file *file)
{
	struct ecs_user_file *user, *other;
	unsigned int files = 0;

	user = kzalloc(sizeof(*user), GFP_KERNEL_ACCOUNT);
	if (!user)
		return -ENOMEM;
	user->uid = current_uid();
	mutex_lock(&ecs_users_lock);
	list_for_each_entry(other, &ecs_users, list)
		files += uid_eq(other->uid, user->uid);
	if (files >= READ_ONCE(user_max)) {
		mutex_unlock(&ecs_users_lock);
		kfree(user);
		return -EMFILE;
	}
	list_add(&user->list, &ecs_users);
	mutex_unlock(&ecs_users_lock);
	file->private_data = user;
	return 0;
}

static int ecs_user_release(struct inode *inode, struct file *file)
{
	struct ecs_user_file *user = file->private_data;

	ecs_task_user_forget(&user->sections);
	mutex_lock(&ecs_users_lock);
	list_del(&user->list);
	mutex_unlock(&ecs_users_lock);
	kfree(user);
	return 0;
}

static long ecs_user_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct ecs_user_file *user = file->private_data;

	switch (cmd) {
	case VIRTIO_ECS_USER_ENTER:
		return ecs_task_user_enter(&user->sections, READ_ONCE(user_max));
	case VIRTIO_ECS_USER_LEAVE:
		return ecs_task_user_leave(&user->sections);
	default:
		return -ENOTTY;
	}
}

/* The host's lines, read only, also later: nobody is to lie to the kernel in them. */
static int ecs_user_mmap(struct file *file, struct vm_area_struct *vma)
{
	if (vma->vm_flags & (VM_WRITE | VM_EXEC))
		return -EPERM;
	/* Without VM_MAYWRITE a private mapping makes no copy either. */
	ecs_vm_flags_clear(vma, VM_MAYWRITE | VM_MAYEXEC);
	return ecs_slots_mmap(vma);
}

static const struct file_operations ecs_user_fops = {
	.owner = THIS_MODULE,
	.open = ecs_user_open,
	.release = ecs_user_release,
	.unlocked_ioctl = ecs_user_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.mmap = ecs_user_mmap,
};

static struct miscdevice ecs_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "virtio_ecs",
	.fops = &ecs_user_fops,
	.mode = 0660,
};

int ecs_user_init(void)
{
	return user_sections ? misc_register(&ecs_misc) : 0;
}

void ecs_user_exit(void)
{
	if (user_sections)
		misc_deregister(&ecs_misc);
}
