//! What a vCPU does: the guest's code.
//!
//! The same machine code runs in a vCPU thread and at CPL3 in a KVM guest. It may therefore use
//! neither the heap, nor thread-local storage, nor anything of libc, and must not panic.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ecs_abi::VIRTIO_ECS_WAIT_NONE;
use ecs_guest::{Annotate, Clock, Doorbell, Halt, OffsetMap, Spin, Unannotated, Vcpu, WaitFor};

use crate::config::{Guest, Waiters, WorkloadKind};
use crate::report::bucket_of;
use crate::shared::{PerVcpu, RAM_GPA, Shared, TABLE_SLOTS};
use crate::work::{busy, ticks};

/// Longest piece of work between two looks at the mailbox, in parts of the work between sections.
const INTERRUPT_PARTS: u64 = 8;

/// Index of a workload, for the control block.
pub(crate) fn index_of(kind: WorkloadKind) -> u32 {
    match kind {
        WorkloadKind::Ticket => 0,
        WorkloadKind::Queue => 1,
        WorkloadKind::RwLock => 2,
        WorkloadKind::Irq => 3,
        WorkloadKind::Blocking => 4,
        WorkloadKind::Compute => 5,
    }
}

/// Behaviour as a number, for the control block.
pub(crate) fn guest_code(guest: Guest) -> u32 {
    match guest {
        Guest::Honest => 0,
        Guest::PinCounts => 1,
        Guest::Lies => 2,
    }
}

/// Way to wait as a number, for the control block.
pub(crate) fn waiters_code(waiters: Waiters) -> u32 {
    match waiters {
        Waiters::Wise => 0,
        Waiters::Halt => 1,
        Waiters::Poll => 2,
    }
}

/// What the platform under the guest can do.
pub trait Platform: Doorbell + Halt {}
impl<T: Doorbell + Halt> Platform for T {}

/// One vCPU at work.
struct Worker<'a, A, P> {
    shared: &'a Shared,
    own: &'a PerVcpu,
    vcpu: &'a A,
    platform: &'a P,
    number: usize,
    nr_vcpus: usize,
    in_iterations: u64,
    out_iterations: u64,
    read_pct: u64,
    random: u64,
}

/// Runs the workload of the control block on vCPU `number` until it is told to stop, and then serves
/// the other vCPUs until they have stopped too.
#[inline(never)]
pub fn run_vcpu<P: Platform>(shared: &Shared, number: u32, platform: &P) {
    let control = &shared.control;
    if control.guest.load(Ordering::Relaxed) == guest_code(Guest::PinCounts)
        && let Some(lines) = shared.lines.get(number as usize)
    {
        lines.guest.np_count.store(1, Ordering::Relaxed);
    }
    let waiters = control.waiters.load(Ordering::Relaxed);
    let polls = waiters == waiters_code(Waiters::Poll);
    if control.annotate.load(Ordering::Relaxed) == 0 {
        work(shared, &Unannotated { number, polls }, platform);
        return;
    }
    let waiters = if polls {
        ecs_guest::Waiters::Poll
    } else if waiters == waiters_code(Waiters::Halt) {
        ecs_guest::Waiters::Halt
    } else {
        ecs_guest::Waiters::Wise
    };
    let clock = Clock {
        ticks,
        per_us: u64::from(control.ticks_per_us.load(Ordering::Relaxed)),
    };
    let offset = RAM_GPA.wrapping_sub(std::ptr::from_ref(shared).addr() as u64);
    let pauses = control.pauses_per_us.load(Ordering::Relaxed);
    if let Some(vcpu) = Vcpu::new(number, &shared.lines, platform, OffsetMap(offset), pauses) {
        let vcpu = vcpu.with_waiters(waiters).with_clock(clock);
        work(shared, &vcpu, platform);
    }
}

fn work<A: Annotate, P: Platform>(shared: &Shared, vcpu: &A, platform: &P) {
    let control = &shared.control;
    let number = vcpu.number() as usize;
    let Some(own) = shared.vcpus.get(number) else {
        return;
    };
    let mut worker = Worker {
        shared,
        own,
        vcpu,
        platform,
        number,
        nr_vcpus: control.vcpus.load(Ordering::Relaxed) as usize,
        in_iterations: control.in_iterations.load(Ordering::Relaxed),
        out_iterations: control.out_iterations.load(Ordering::Relaxed),
        read_pct: u64::from(control.read_pct.load(Ordering::Relaxed)),
        random: 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(number as u64 + 1),
    };
    let kind = control.workload.load(Ordering::Relaxed);
    let lies = control.guest.load(Ordering::Relaxed) == guest_code(Guest::Lies);
    let max_ops = control.max_ops.load(Ordering::Relaxed);
    let mut ops = 0u64;
    while control.stop.load(Ordering::Relaxed) == 0 && (max_ops == 0 || ops < max_ops) {
        if lies {
            worker.lie();
        }
        worker.operation(kind);
        ops = ops.wrapping_add(1);
        own.ops.store(ops, Ordering::Relaxed);
    }
    control.done.fetch_add(1, Ordering::AcqRel);
    while (control.done.load(Ordering::Acquire) as usize) < worker.nr_vcpus {
        worker.serve();
        if kind == index_of(WorkloadKind::Irq) {
            std::hint::spin_loop();
        } else {
            break;
        }
    }
}

/// Adds one to a counter that only its owner, or the holder of its lock, writes.
fn count(counter: &AtomicU64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(1),
        Ordering::Relaxed,
    );
}

impl<A: Annotate, P: Platform> Worker<'_, A, P> {
    fn operation(&mut self, kind: u32) {
        let shared = self.shared;
        if kind == index_of(WorkloadKind::Ticket) {
            let guard = shared.ticket.lock(self.vcpu);
            self.taken(guard.waited());
            self.change();
            self.releasing();
            drop(guard);
        } else if kind == index_of(WorkloadKind::Queue) {
            let Some(guard) = shared.queue.lock(self.vcpu) else {
                return;
            };
            self.taken(guard.waited());
            self.change();
            self.releasing();
            drop(guard);
        } else if kind == index_of(WorkloadKind::Blocking) {
            let guard = shared.mutex.lock(self.vcpu, self.platform);
            self.taken(guard.waited());
            self.change();
            self.releasing();
            drop(guard);
        } else if kind == index_of(WorkloadKind::RwLock) {
            self.read_or_write();
        } else if kind == index_of(WorkloadKind::Irq) {
            self.call_next();
            return;
        } else {
            busy(self.in_iterations);
        }
        busy(self.out_iterations);
    }

    /// xorshift64*.
    fn random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// The lock has just been taken: books how long it was nobody's.
    fn taken(&self, waited: bool) {
        if waited {
            let released = self.shared.protected.released_at.load(Ordering::Relaxed);
            let took = ticks().saturating_sub(released);
            if let Some(bucket) = self.own.handoff.get(bucket_of(took)) {
                count(bucket);
            }
        }
    }

    fn releasing(&self) {
        self.shared
            .protected
            .released_at
            .store(ticks(), Ordering::Relaxed);
    }

    /// A section that changes the hash table, then computes.
    fn change(&mut self) {
        let key = self.random() | 1;
        self.insert(key);
        count(&self.shared.protected.changes);
        count(&self.own.changes);
        busy(self.in_iterations);
    }

    /// Puts a key into the table: into its own slot, an empty one close by, or in place of another.
    fn insert(&self, key: u64) {
        const PROBES: u64 = 8;
        let table = &self.shared.protected.table;
        let home = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        for probe in 0..PROBES {
            let Ok(slot) = usize::try_from((home + probe) % TABLE_SLOTS as u64) else {
                return;
            };
            let Some(entry) = table.get(slot) else { return };
            let found = entry.load(Ordering::Relaxed);
            if found == 0 || found == key || probe == PROBES - 1 {
                entry.store(key, Ordering::Relaxed);
                return;
            }
        }
    }

    fn read_or_write(&mut self) {
        let shared = self.shared;
        let data = &shared.protected;
        if self.random() % 100 < self.read_pct {
            let guard = shared.rw.read(self.vcpu);
            self.taken(guard.waited());
            let first = data.changes.load(Ordering::Relaxed);
            busy(self.in_iterations);
            if data.changes_again.load(Ordering::Relaxed) != first {
                count(&self.own.torn_reads);
            }
            self.releasing();
            drop(guard);
        } else {
            let guard = shared.rw.write(self.vcpu);
            self.taken(guard.waited());
            self.change();
            let changes = data.changes.load(Ordering::Relaxed);
            data.changes_again.store(changes, Ordering::Relaxed);
            self.releasing();
            drop(guard);
        }
    }

    /// Calls the next vCPU and spins until it has answered, serving calls meanwhile, as a TLB
    /// shoot-down does; then computes, taking interrupts.
    fn call_next(&mut self) {
        let next = if self.number + 1 < self.nr_vcpus {
            self.number + 1
        } else {
            0
        };
        let Some(target) = self.shared.vcpus.get(next) else {
            return;
        };
        let request = &target.request.0;
        let call = request.load(Ordering::Relaxed).wrapping_add(1);
        if next == self.number {
            request.store(call, Ordering::Release);
            self.serve();
        } else {
            let answer = &self.own.answer.0;
            let holder = u32::try_from(next).unwrap_or(0).wrapping_add(1);
            let wait = WaitFor {
                word: answer,
                mask: u32::MAX,
                value: call,
                holder,
            };
            let outer = self.vcpu.wait_enter();
            request.store(call, Ordering::Release);
            self.vcpu.wait_spin(&wait);
            let mut spin = Spin::default();
            while !wait.ended() {
                self.vcpu.spin(&mut spin);
                if self.called() {
                    // In interrupt context this vCPU does not wait: it is what another one waits for.
                    self.vcpu.wait_retry();
                    self.serve();
                    self.vcpu.wait_spin(&wait);
                }
            }
            self.vcpu.wait_end(outer);
        }
        count(&self.own.changes);
        for _ in 0..INTERRUPT_PARTS {
            busy(self.out_iterations / INTERRUPT_PARTS);
            self.serve();
        }
    }

    /// Whether a call has come in that is not served yet.
    fn called(&self) -> bool {
        let served = self.own.served.load(Ordering::Relaxed);
        u64::from(self.own.request.0.load(Ordering::Acquire)) != served & u64::from(u32::MAX)
    }

    /// Serves a call in interrupt context, if there is one.
    fn serve(&self) {
        if !self.called() {
            return;
        }
        self.vcpu.enter_non_preemptable();
        busy(self.in_iterations);
        count(&self.own.served);
        let before = if self.number == 0 {
            self.nr_vcpus
        } else {
            self.number
        };
        if let Some(caller) = self.shared.vcpus.get(before.wrapping_sub(1)) {
            let call = self.own.request.0.load(Ordering::Relaxed);
            caller.answer.0.store(call, Ordering::Release);
        }
        self.vcpu.leave_non_preemptable();
    }

    /// Fills this vCPU's line with nonsense, now and then with something plausible.
    #[cold]
    fn lie(&mut self) {
        let Some(lines) = self.shared.lines.get(self.number) else {
            return;
        };
        let line = &lines.guest;
        let sensible = self.random().is_multiple_of(4);
        let small = |word: &AtomicU32, value: u64| {
            let value = if sensible {
                (value % 4) << 32
            } else {
                value << 16
            };
            word.store(u32::try_from(value >> 32).unwrap_or(0), Ordering::Relaxed);
        };
        for word in [
            &line.np_count,
            &line.p_count,
            &line.idle,
            &line.wait_holder,
            &line.wait_width,
            &line.handback,
            &line.poll_us,
            &line.polls_paid,
            &line.polls_wasted,
            &line.waiting,
        ] {
            let value = self.random();
            small(word, value);
        }
        for word in [&line.wait_addr, &line.wait_mask, &line.wait_value] {
            let value = self.random();
            word.store(value.wrapping_mul(value), Ordering::Relaxed);
        }
        if line.waiting.load(Ordering::Relaxed) == VIRTIO_ECS_WAIT_NONE {
            self.platform.ring();
        }
    }
}
