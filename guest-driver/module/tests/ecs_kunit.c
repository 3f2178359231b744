// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit: the table of tasks, on a CPU of its own making, and how long a host is
 * believed. Runs where the kernel has CONFIG_KUNIT, without a device.
 */
#include <kunit/test.h>

#include "../beat.c"
#include "../tasks.c"

DEFINE_PER_CPU(struct ecs_cpu, ecs_cpus);
DEFINE_PER_CPU(struct ecs_stats, ecs_stats);

static struct virtio_ecs_guest_line line;
static int locks[ECS_MAX_HELD + 1];

static u32 count(void)
{
	return le32_to_cpu(line.p_count);
}

static int ecs_kunit_init(struct kunit *test)
{
	unsigned int cpu;

	memset(&line, 0, sizeof(line));
	memset(task_hash, 0, sizeof(task_hash));
	memset(mark_hash, 0, sizeof(mark_hash));
	INIT_HLIST_HEAD(&free_tasks);
	INIT_HLIST_HEAD(&free_marks);
	nr_tasks = 0;
	/* Without hooks, the test's task is taken to run on every CPU. */
	for_each_possible_cpu(cpu) {
		per_cpu_ptr(&ecs_cpus, cpu)->guest = &line;
		per_cpu_ptr(&ecs_cpus, cpu)->curr = current;
		per_cpu_ptr(&ecs_cpus, cpu)->task = NULL;
	}
	/* For good: each case has a thread of its own, and its end another one. */
	if (set_cpus_allowed_ptr(current, cpumask_of(raw_smp_processor_id())))
		return -EINVAL;
	return ecs_tasks_init();
}

static void ecs_kunit_exit(struct kunit *test)
{
	ecs_tasks_exit();
}

static void an_inner_unlock_keeps_the_outer_section(struct kunit *test)
{
	ecs_task_hold(&locks[0]);
	ecs_task_hold(&locks[1]);
	KUNIT_EXPECT_EQ(test, count(), 2);
	ecs_task_drop(&locks[1]);
	KUNIT_EXPECT_EQ(test, count(), 1);
	ecs_task_drop(&locks[0]);
	KUNIT_EXPECT_EQ(test, count(), 0);
}

static void a_release_that_was_never_taken_changes_nothing(struct kunit *test)
{
	ecs_task_hold(&locks[0]);
	ecs_task_drop(&locks[1]);
	ecs_task_call(-1);
	KUNIT_EXPECT_EQ(test, count(), 1);
	ecs_task_drop(&locks[0]);
	ecs_task_drop(&locks[0]);
	KUNIT_EXPECT_EQ(test, count(), 0);
}

static void more_locks_than_an_entry_holds_do_not_unbalance_it(struct kunit *test)
{
	int i;

	for (i = 0; i <= ECS_MAX_HELD; i++)
		ecs_task_hold(&locks[i]);
	KUNIT_EXPECT_EQ(test, count(), ECS_MAX_HELD);
	for (i = 0; i <= ECS_MAX_HELD; i++)
		ecs_task_drop(&locks[i]);
	KUNIT_EXPECT_EQ(test, count(), 0);
}

static void a_thread_has_one_user_section_at_most(struct kunit *test)
{
	struct ecs_user user = {};

	KUNIT_EXPECT_EQ(test, ecs_task_user_enter(&user, 1), 0);
	KUNIT_EXPECT_EQ(test, ecs_task_user_enter(&user, 2), -EALREADY);
	KUNIT_EXPECT_EQ(test, count(), 1);
	KUNIT_EXPECT_EQ(test, ecs_task_user_leave(&user), 0);
	KUNIT_EXPECT_EQ(test, ecs_task_user_leave(&user), -EALREADY);
	KUNIT_EXPECT_EQ(test, ecs_task_user_enter(&user, 0), -EAGAIN);
	KUNIT_EXPECT_EQ(test, count(), 0);
	KUNIT_EXPECT_EQ(test, ecs_tasks_used(), 0);
}

static void the_sections_of_a_task_end_with_it(struct kunit *test)
{
	struct ecs_user user = {};

	ecs_task_call(1);
	KUNIT_EXPECT_EQ(test, ecs_task_user_enter(&user, 1), 0);
	KUNIT_EXPECT_EQ(test, count(), 2);
	ecs_task_exit(current);
	KUNIT_EXPECT_EQ(test, count(), 0);
	KUNIT_EXPECT_EQ(test, user.sections, 0);
	KUNIT_EXPECT_EQ(test, ecs_tasks_used(), 0);
}

static bool alive(const struct ecs_beat *b, u64 now_ms)
{
	return b->alive_until > now_ms * NSEC_PER_MSEC;
}

/* Looks at the clock and beats of a host that beats until 1080 ms. */
static void a_silent_host_is_believed_for_a_tenth_of_a_second(struct kunit *test)
{
	struct ecs_beat b = {};

	ecs_beat_found(&b, 7, 1000 * NSEC_PER_MSEC);
	KUNIT_EXPECT_FALSE(test, alive(&b, 1000));
	ecs_beat_found(&b, 7, 1010 * NSEC_PER_MSEC);
	KUNIT_EXPECT_FALSE(test, alive(&b, 1010));
	ecs_beat_found(&b, 8, 1060 * NSEC_PER_MSEC);
	KUNIT_EXPECT_TRUE(test, alive(&b, 1109));
	KUNIT_EXPECT_FALSE(test, alive(&b, 1110));
	ecs_beat_found(&b, 9, 1090 * NSEC_PER_MSEC);
	ecs_beat_found(&b, 9, 1150 * NSEC_PER_MSEC);
	KUNIT_EXPECT_TRUE(test, alive(&b, 1159));
	KUNIT_EXPECT_FALSE(test, alive(&b, 1160));
}

static void a_beat_that_may_be_old_proves_nothing(struct kunit *test)
{
	struct ecs_beat b = {};

	ecs_beat_found(&b, 7, 1000 * NSEC_PER_MSEC);
	ecs_beat_found(&b, 8, 1100 * NSEC_PER_MSEC);
	KUNIT_EXPECT_FALSE(test, alive(&b, 1100));
	/* The guest has cleared the line. */
	ecs_beat_found(&b, 0, 1110 * NSEC_PER_MSEC);
	KUNIT_EXPECT_FALSE(test, alive(&b, 1110));
}

static struct kunit_case ecs_cases[] = {
	KUNIT_CASE(an_inner_unlock_keeps_the_outer_section),
	KUNIT_CASE(a_release_that_was_never_taken_changes_nothing),
	KUNIT_CASE(more_locks_than_an_entry_holds_do_not_unbalance_it),
	KUNIT_CASE(a_thread_has_one_user_section_at_most),
	KUNIT_CASE(the_sections_of_a_task_end_with_it),
	KUNIT_CASE(a_silent_host_is_believed_for_a_tenth_of_a_second),
	KUNIT_CASE(a_beat_that_may_be_old_proves_nothing),
	{}
};

static struct kunit_suite ecs_suite = {
	.name = "virtio_ecs",
	.init = ecs_kunit_init,
	.exit = ecs_kunit_exit,
	.test_cases = ecs_cases,
};

kunit_test_suite(ecs_suite);

MODULE_DESCRIPTION("KUnit tests of virtio_ecs");
MODULE_LICENSE("GPL");
