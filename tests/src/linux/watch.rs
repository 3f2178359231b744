//! The host's side: the real device, and what it reads against what the guest says is true.

use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ecs_abi::{VIRTIO_ECS_ALL_VCPUS, VIRTIO_ECS_EV_RESTART, VirtioEcsEvent, VirtioEcsGuestLine};
use ecs_device::{Device, DeviceConfig, VmSink, VmView};
use ecs_policy::{CsSnapshot, Wait};
use ecs_shm::VcpuSlots;
use vm_memory::{Bytes, GuestAddress};

use super::Guest;
use crate::process::until;

/// What a CPU does, in the words of `ecs_test.ko`: bits of an entry's `state`.
pub mod state {
    /// A spinlock is held.
    pub const SPIN: u32 = 0x1;
    /// An interrupt handler runs.
    pub const IRQ: u32 = 0x2;
    /// A softirq runs.
    pub const SOFTIRQ: u32 = 0x4;
    /// An RCU read-side section.
    pub const RCU: u32 = 0x8;
    /// A rwlock is held by a reader.
    pub const RW_READ: u32 = 0x10;
    /// A rwlock is held by a writer.
    pub const RW_WRITE: u32 = 0x20;
    /// A mutex is held.
    pub const MUTEX: u32 = 0x40;
    /// A rwsem is held by a reader.
    pub const RWSEM_READ: u32 = 0x80;
    /// A rwsem is held by a writer.
    pub const RWSEM_WRITE: u32 = 0x100;
    /// It may wait for a lock, or have just got it.
    pub const WAITING: u32 = 0x200;
    /// The thread sleeps.
    pub const IDLE: u32 = 0x400;
    /// The thread runs, and neither holds nor wants a lock.
    pub const OUTSIDE: u32 = 0x800;
    /// A mutex is held by a thread that sleeps.
    pub const SLEEPING_HOLDER: u32 = 0x1000;
    /// Another module said that it is in a section, of either kind.
    pub const API_NP: u32 = 0x4000;
    /// See [`API_NP`].
    pub const API_P: u32 = 0x8000;
    /// The handler of an NMI runs.
    pub const NMI: u32 = 0x10000;

    /// What the guest itself cannot preempt, and shows.
    pub const NON_PREEMPTABLE: u32 = SPIN | IRQ | SOFTIRQ | NMI | RW_READ | RW_WRITE | API_NP;
    /// Sections that belong to a task.
    pub const PREEMPTABLE: u32 = MUTEX | RWSEM_READ | RWSEM_WRITE | API_P;
}

#[derive(Debug, Default)]
struct Latest(Mutex<Option<VmView>>);

impl Latest {
    fn set(&self, view: Option<VmView>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = view;
    }

    fn get(&self) -> Option<VmView> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl VmSink for Latest {
    fn update(&self, view: VmView) {
        self.set(Some(view));
    }

    fn gone(&self, _name: &str) {
        self.set(None);
    }
}

/// Our device, without a controller behind it.
#[derive(Debug)]
pub struct Watch {
    latest: Arc<Latest>,
    socket: PathBuf,
    state_dir: PathBuf,
    _dir: tempfile::TempDir,
    device: Option<Device>,
}

impl Watch {
    /// Name of the VM it watches.
    pub const VM: &str = "guest";

    /// Waits for a guest on a socket of its own.
    ///
    /// # Errors
    /// If the device cannot be made.
    pub fn new() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("ecs-watch-").tempdir()?;
        let state_dir = dir.path().to_owned();
        Self::bind(dir, state_dir)
    }

    /// The same, with what a daemon has saved in `state_dir` of the VM [`Watch::VM`].
    ///
    /// # Errors
    /// If the device cannot be made.
    pub fn taking_over(state_dir: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("ecs-watch-").tempdir()?;
        Self::bind(dir, state_dir.to_owned())
    }

    fn bind(dir: tempfile::TempDir, state_dir: PathBuf) -> anyhow::Result<Self> {
        let mut watch = Self {
            latest: Arc::default(),
            socket: dir.path().join("guest.sock"),
            state_dir,
            _dir: dir,
            device: None,
        };
        watch.start()?;
        Ok(watch)
    }

    /// Waits for a guest again after [`Watch::stop`]. What it had registered is known.
    ///
    /// # Errors
    /// If the device cannot be made.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let config = DeviceConfig {
            name: Self::VM.to_owned(),
            socket: self.socket.clone(),
            socket_mode: 0o600,
            nr_doorbells: 4,
            extension_ns: 1_000_000,
            slice_ns: 3_000_000,
            state_dir: Some(self.state_dir.clone()),
        };
        self.device = Some(Device::bind(config, self.latest.clone())?);
        Ok(())
    }

    /// Leaves the guest without a device.
    pub fn stop(&mut self) {
        self.device = None;
    }

    /// Tells the guest that its registrations are lost.
    pub fn forget(&self) {
        if let Some(device) = &self.device {
            device.notify(VirtioEcsEvent {
                r#type: VIRTIO_ECS_EV_RESTART,
                vcpu: VIRTIO_ECS_ALL_VCPUS,
                ..VirtioEcsEvent::default()
            });
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What a CPU registered; `None` if it did not.
    #[must_use]
    pub fn slots(&self, cpu: usize) -> Option<Arc<VcpuSlots>> {
        self.latest.get()?.slots.get(cpu).cloned()
    }

    /// What a CPU says of its polls; `None` if it is not registered.
    #[must_use]
    pub fn polls(&self, cpu: usize) -> Option<Polls> {
        let view = self.latest.get()?;
        let line = view.slots.get(cpu)?.registration().guest_line;
        let word = |field: usize| {
            let at = GuestAddress(line + field as u64);
            view.mem.map().load(at, Ordering::Acquire).ok()
        };
        Some(Polls {
            us: word(offset_of!(VirtioEcsGuestLine, poll_us))?,
            paid: word(offset_of!(VirtioEcsGuestLine, polls_paid))?,
            wasted: word(offset_of!(VirtioEcsGuestLine, polls_wasted))?,
        })
    }

    /// Lives: writes heartbeats to every CPU, until what is returned is stopped or dropped.
    #[must_use]
    pub fn beat(&self) -> Heart {
        const GAP: Duration = Duration::from_millis(20);
        let latest = self.latest.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let beats = std::thread::spawn(move || {
            let mut beat = 0;
            let mut last = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                beat += 1;
                if let Some(view) = latest.get() {
                    for slots in view.slots.vcpus.iter().flatten() {
                        slots.set_heartbeat(view.generation, beat);
                    }
                    last = Instant::now();
                }
                std::thread::sleep(GAP);
            }
            last
        });
        Heart {
            stop,
            beats: Some(beats),
        }
    }

    /// Generation of the device; `None` without a guest.
    #[must_use]
    pub fn generation(&self) -> Option<u32> {
        self.latest.get().map(|view| view.generation)
    }

    /// CPUs that are registered.
    #[must_use]
    pub fn registered(&self) -> Vec<usize> {
        let Some(view) = self.latest.get().filter(|view| view.running) else {
            return Vec::new();
        };
        let cpus = view.slots.vcpus.iter().enumerate();
        cpus.filter(|(_, slots)| slots.is_some())
            .map(|(cpu, _)| cpu)
            .collect()
    }

    /// Waits until exactly these CPUs are registered.
    ///
    /// # Errors
    /// With those that are, if it is not so within `limit`.
    pub fn wait_for(&self, cpus: &[usize], limit: Duration) -> anyhow::Result<()> {
        until("the CPUs to be registered", limit, || {
            (self.registered() == cpus).then_some(())
        })
        .with_context(|| format!("Registered are {:?}, not {cpus:?}", self.registered()))
    }

    /// Reads that made no sense, all CPUs.
    #[must_use]
    pub fn faults(&self) -> u64 {
        let view = self.latest.get();
        let slots = view
            .iter()
            .flat_map(|view| view.slots.vcpus.iter().flatten());
        slots.map(|slots| slots.nr_faults()).sum()
    }

    /// Runs a workload of the guest's test module, and reads until it is over; again, a few times,
    /// as long as the machine was too busy for as many reads as are `enough`.
    ///
    /// # Errors
    /// If it does not run, its locks failed, or there were never enough reads.
    pub fn judge(
        &self,
        guest: &mut Guest,
        truth: &Truth,
        work: &str,
        enough: impl Fn(&Tally) -> bool,
    ) -> anyhow::Result<Tally> {
        const ROUNDS: u32 = 10;
        let mut tally = Tally::default();
        for _ in 0..ROUNDS {
            self.round(guest, truth, work, &mut tally)?;
            if enough(&tally) {
                return Ok(tally);
            }
        }
        bail!("{work}: too few reads in {ROUNDS} rounds: {tally:?}");
    }

    fn round(
        &self,
        guest: &mut Guest,
        truth: &Truth,
        work: &str,
        tally: &mut Tally,
    ) -> anyhow::Result<()> {
        guest.sh(&format!("echo {work} >{}/run", Truth::DIR))?;
        let ms: u64 = work
            .split_whitespace()
            .find_map(|word| word.strip_prefix("ms="))
            .context("The workload needs ms=")?
            .parse()?;
        self.tally(truth, Duration::from_millis(ms), tally)?;
        let wait = format!(
            "while [ \"$(cat {0}/run)\" != idle ]; do sleep 0.1; done",
            Truth::DIR
        );
        guest.sh(&wait)?;
        let result = guest.sh(&format!("cat {}/result", Truth::DIR))?;
        let words: Vec<&str> = result.split_whitespace().collect();
        let ["ops", ops, "errors", "0"] = words.as_slice() else {
            bail!("{work}: {result}");
        };
        if ops.parse::<u64>()? == 0 {
            bail!("{work} did nothing");
        }
        Ok(())
    }

    /// Reads every CPU again and again, for a time.
    fn tally(&self, truth: &Truth, time: Duration, tally: &mut Tally) -> anyhow::Result<()> {
        let view = self.latest.get().context("No guest is connected")?;
        let end = Instant::now() + time;
        while Instant::now() < end {
            for _ in 0..1000 {
                for cpu in 0..truth.cpus {
                    let Some(slots) = view.slots.get(cpu) else {
                        continue;
                    };
                    let Some(before) = truth.read(&view, cpu) else {
                        continue;
                    };
                    let quiet = word_says(&view, slots) == Some(false);
                    let snap = slots.read();
                    let quiet = quiet && word_says(&view, slots) == Some(false);
                    if truth.read(&view, cpu) == Some(before) {
                        tally.judge(&before, &snap, quiet);
                    }
                }
            }
        }
        Ok(())
    }
}

/// What a CPU says of its polls, in words that wrap.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Polls {
    /// Time polled, microseconds.
    pub us: u32,
    /// Polls that met work.
    pub paid: u32,
    /// Polls that ended in a halt.
    pub wasted: u32,
}

/// A host that lives.
#[derive(Debug)]
pub struct Heart {
    stop: Arc<AtomicBool>,
    beats: Option<JoinHandle<Instant>>,
}

impl Heart {
    /// Stops it; when it last beat, or just after.
    ///
    /// # Errors
    /// If it has ended by a panic.
    pub fn stop(mut self) -> anyhow::Result<Instant> {
        self.stop.store(true, Ordering::Relaxed);
        let beats = self.beats.take().context("It is stopped already")?;
        beats
            .join()
            .map_err(|_| anyhow::anyhow!("The heartbeats panicked"))
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(beats) = self.beats.take() {
            // Nothing is to be said of a panic here: it was printed.
            drop(beats.join());
        }
    }
}

/// Whether the guest's own `preempt_count` has interrupts, softirqs or preemption disabled; `None`
/// where it is not registered.
fn word_says(view: &VmView, slots: &VcpuSlots) -> Option<bool> {
    let registration = slots.registration();
    let counted = match registration.word_format {
        ecs_abi::VIRTIO_ECS_WORD_X86_PREEMPT => 0x00ff_ffff,
        ecs_abi::VIRTIO_ECS_WORD_X86_PREEMPT64 => u32::MAX,
        _ => return None,
    };
    let word: u32 = view
        .mem
        .map()
        .load(GuestAddress(registration.word_addr), Ordering::Acquire)
        .ok()?;
    Some(word & counted != 0)
}

/// The page on which the guest's test module says what each CPU does.
#[derive(Debug, Clone, Copy)]
pub struct Truth {
    table: u64,
    cpus: usize,
}

/// What one CPU does, as the test module wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    seq: u32,
    state: u32,
    lock: u64,
}

impl Truth {
    /// Files of the test module.
    pub const DIR: &str = "/sys/kernel/debug/ecs_test";

    /// Loads the test module and asks where the page is.
    ///
    /// # Errors
    /// If it does not load.
    pub fn load(guest: &mut Guest) -> anyhow::Result<Self> {
        guest.sh("insmod /ecs_test.ko")?;
        Self::find(guest)
    }

    /// Asks the test module where the page is.
    ///
    /// # Errors
    /// If it is not loaded.
    pub fn find(guest: &mut Guest) -> anyhow::Result<Self> {
        let text = guest.sh(&format!("cat {}/truth", Self::DIR))?;
        let (table, cpus) = text
            .trim()
            .strip_prefix("0x")
            .and_then(|rest| rest.split_once(' '))
            .with_context(|| format!("No address of the truth: {text:?}"))?;
        Ok(Self {
            table: u64::from_str_radix(table, 16)?,
            cpus: cpus.parse()?,
        })
    }

    /// One entry, unless it changes at this moment.
    fn read(&self, view: &VmView, cpu: usize) -> Option<Entry> {
        const ENTRY: u64 = 64;
        let at = self.table + cpu as u64 * ENTRY;
        let map = view.mem.map();
        let seq: u32 = map.load(GuestAddress(at), Ordering::Acquire).ok()?;
        let entry = Entry {
            seq,
            state: map.load(GuestAddress(at + 4), Ordering::Acquire).ok()?,
            lock: map.load(GuestAddress(at + 8), Ordering::Acquire).ok()?,
        };
        seq.is_multiple_of(2).then_some(entry)
    }
}

/// What came of many reads. Only reads during which the truth stood still are judged.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// Reads while a non-preemptable section was open, and those that showed none.
    pub np: u64,
    /// See `np`.
    pub np_missed: u64,
    /// Reads while a mutex or rwsem was held by the running task, and those that showed none.
    pub p: u64,
    /// See `p`.
    pub p_missed: u64,
    /// Reads of an RCU reader, and those that showed a section.
    pub rcu: u64,
    /// See `rcu`.
    pub rcu_shown: u64,
    /// Reads while the task was outside of sections or asleep, with nothing disabled in the guest's
    /// own count, and those that showed a section.
    pub outside: u64,
    /// See `outside`.
    pub outside_wrong: u64,
    /// Reads while it was outside or asleep, whatever an interrupt did, and those that showed one.
    pub away: u64,
    /// See `away`.
    pub away_inside: u64,
    /// Reads of a waiter, those that showed a wait, and those that took it for a holder.
    pub waiting: u64,
    /// See `waiting`.
    pub waits_seen: u64,
    /// See `waiting`.
    pub waiter_as_holder: u64,
    /// Wait descriptors read, and those of another lock.
    pub descriptors: u64,
    /// See `descriptors`.
    pub descriptors_wrong: u64,
}

impl Tally {
    /// `quiet`: the guest's own count had nothing disabled, before the snapshot and after it.
    fn judge(&mut self, truth: &Entry, snap: &CsSnapshot, quiet: bool) {
        if truth.state & state::WAITING != 0 {
            self.judge_waiter(truth, snap);
            return;
        }
        if truth.state & state::NON_PREEMPTABLE != 0 {
            self.np += 1;
            self.np_missed += u64::from(!snap.holds());
        } else if truth.state & state::PREEMPTABLE != 0 {
            if truth.state & state::SLEEPING_HOLDER == 0 {
                self.p += 1;
                self.p_missed += u64::from(!snap.holds());
            }
        } else if truth.state & state::RCU != 0 {
            self.rcu += 1;
            self.rcu_shown += u64::from(snap.holds());
        } else if truth.state & (state::OUTSIDE | state::IDLE) != 0 {
            self.away += 1;
            self.away_inside += u64::from(snap.holds());
            if quiet || snap.idle {
                self.outside += 1;
                // A preemptable section may be another task's, that runs meanwhile.
                self.outside_wrong += u64::from(snap.holds() && snap.non_preemptable);
            }
        }
    }

    fn judge_waiter(&mut self, truth: &Entry, snap: &CsSnapshot) {
        self.waiting += 1;
        self.waits_seen += u64::from(snap.spins());
        self.waiter_as_holder += u64::from(snap.holds());
        if let Wait::Pending { lock, .. } | Wait::Ended { lock } = snap.wait {
            self.descriptors += 1;
            // The word may be any of the lock, as the inner lock of a rwlock is.
            self.descriptors_wrong += u64::from(!(truth.lock..truth.lock + 16).contains(&lock));
        }
    }
}
