// SPDX-License-Identifier: GPL-2.0
/*
 * Hints for guests beside any scheduler: "preempted" and "overloaded" are written into a vCPU's host
 * line in the moment they change, at the context switches and wake-ups of its CPU. Steers nothing.
 *
 * The kernel holds the run queue's lock at each of these places: what is kept of a CPU has one writer
 * at a time.
 */
#include "shared.h"
#include "threads.h"

#define SCHED_IDLE	5

char _license[] SEC("license") = "GPL";

/*
 * The process whose threads look at vCPUs, and are gone again in microseconds: to be interrupted by
 * them is not to be preempted. 0: none.
 */
const volatile __s32 looker;

/* By the number of the vCPU: time it ran while its CPU had more to do, ns, up to the last switch. */
__u64 overloaded_ns[ECS_MAX_TIDS];

/* What runs on a CPU. */
struct tell_cpu {
	__u32 vcpu;		/* its number, plus one; 0: no vCPU */
	__s32 tid;		/* its thread */
	__u64 since_ns;		/* overloaded since then; 0: it is not */
	bool idle_class;	/* it is of that class itself */
	bool crowded;		/* written by the daemon: it makes other vCPUs wait here */
};

struct tell_cpu cpus[ECS_MAX_CPUS];

static struct tell_cpu *cpu_at(__u32 cpu)
{
	barrier_var(cpu);
	return cpu < ECS_MAX_CPUS ? &cpus[cpu] : NULL;
}

/* The run queue of a task's CPU, whatever its class; "runqueues" has no name in some kernels. */
static struct rq *rq_of(struct task_struct *p)
{
	return p->se.cfs_rq->rq;
}

/*
 * Whether somebody waits for the CPU beside the task that runs. Idle-class tasks take only what nobody
 * wants: they do not count, unless they are vCPUs that the daemon makes wait in that class.
 */
static bool is_overloaded(const struct tell_cpu *cpu, struct rq *rq)
{
	__u32 nr = rq->nr_running, idle = 0;

	if (bpf_core_field_exists(rq->cfs.h_nr_idle) && !cpu->idle_class)
		idle = rq->cfs.h_nr_idle;
	/* Tasks that want to sleep, and stay on the queue until they have paid back what they had. */
	if (bpf_core_field_exists(rq->cfs.h_nr_runnable))
		nr -= rq->cfs.h_nr_queued - rq->cfs.h_nr_runnable;
	return nr > idle + 1 || cpu->crowded;
}

static void tell_overloaded(struct ecs_thread *thread, bool overloaded)
{
	struct virtio_ecs_host_line *host = thread ? thread->host : NULL;

	if (host)
		host->overloaded = overloaded;
}

static void book(struct tell_cpu *cpu)
{
	__u32 vcpu = cpu->vcpu - 1;

	barrier_var(vcpu);
	if (cpu->since_ns && vcpu < ECS_MAX_TIDS)
		overloaded_ns[vcpu] += bpf_ktime_get_ns() - cpu->since_ns;
	cpu->since_ns = 0;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(ecs_tell_switch, bool preempt, struct task_struct *prev, struct task_struct *next,
	     unsigned int prev_state)
{
	struct tell_cpu *cpu = cpu_at(bpf_get_smp_processor_id());
	struct ecs_thread *thread;
	bool overloaded;

	if (!cpu)
		return 0;
	if (cpu->vcpu) {
		book(cpu);
		thread = thread_of(prev);
		if (thread && thread->host && (!looker || next->tgid != looker))
			thread->host->preempted = preempt || !prev_state;
		cpu->vcpu = 0;
	}
	thread = thread_of(next);
	if (!thread || !thread->number)
		return 0;
	cpu->vcpu = thread->number;
	cpu->tid = next->pid;
	if (thread->host)
		thread->host->preempted = 0;
	cpu->idle_class = next->policy == SCHED_IDLE;
	overloaded = is_overloaded(cpu, rq_of(next));
	tell_overloaded(thread, overloaded);
	if (overloaded)
		cpu->since_ns = bpf_ktime_get_ns();
	return 0;
}

static int woken(struct task_struct *p)
{
	struct tell_cpu *cpu = cpu_at(p->thread_info.cpu);

	if (!cpu || !cpu->vcpu || cpu->since_ns || (looker && p->tgid == looker))
		return 0;
	if (!is_overloaded(cpu, rq_of(p)) && !(looker && thread_of(p)))
		return 0;
	tell_wanted(cpu->tid);
	cpu->since_ns = bpf_ktime_get_ns();
	return 0;
}

SEC("tp_btf/sched_wakeup")
int BPF_PROG(ecs_tell_wakeup, struct task_struct *p)
{
	return woken(p);
}

SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(ecs_tell_wakeup_new, struct task_struct *p)
{
	return woken(p);
}
