//! Finds the vCPU threads of a VMM, and reads what the kernel counts of each.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::Tid;

/// A vCPU thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcpuThread {
    /// vCPU number, from the thread's name.
    pub vcpu: u32,
    /// Thread id.
    pub tid: Tid,
}

/// vCPU threads of a process, by vCPU number: threads named `vcpuN`, as Cloud Hypervisor names
/// them, or `CPU N/KVM`, as QEMU does if told to name them. They appear late (at boot, and when vCPUs
/// are hot-plugged): ask again.
///
/// # Errors
/// If the process is gone.
pub fn vcpu_threads(pid: u32) -> io::Result<Vec<VcpuThread>> {
    vcpu_threads_in(Path::new(&format!("/proc/{pid}")))
}

/// The same, of the process that this folder of a /proc describes.
///
/// # Errors
/// If the process is gone.
pub fn vcpu_threads_in(process: &Path) -> io::Result<Vec<VcpuThread>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(process.join("task"))? {
        let path = entry?.path();
        // A thread that ends while we look is no error.
        let Ok(name) = fs::read_to_string(path.join("comm")) else {
            continue;
        };
        let vcpu = number_in(name.trim_end());
        let tid = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        if let (Some(vcpu), Some(tid)) = (vcpu, tid) {
            found.push(VcpuThread { vcpu, tid });
        }
    }
    found.sort_unstable_by_key(|thread| (thread.vcpu, thread.tid));
    found.dedup_by_key(|thread| thread.vcpu);
    Ok(found)
}

/// vCPU number in the name of a vCPU thread.
fn number_in(name: &str) -> Option<u32> {
    let qemu = || name.strip_prefix("CPU ")?.strip_suffix("/KVM");
    name.strip_prefix("vcpu").or_else(qemu)?.parse().ok()
}

/// Start time of a thread in clock ticks since boot: with the id it names a thread for ever.
///
/// # Errors
/// If the thread is gone.
pub fn start_time(tid: Tid) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{tid}/stat"))?;
    // The name, in parentheses, may hold anything; field 22 is the 20th after it.
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok())
        .ok_or_else(|| io::Error::other(format!("Cannot read the start time of thread {tid}")))
}

/// What the kernel counts of a thread, through a descriptor kept open.
#[derive(Debug)]
pub struct SchedStat(File);

impl SchedStat {
    /// Opens `schedstat` in the thread's folder in /proc.
    ///
    /// # Errors
    /// If the thread is gone, or no descriptor is left.
    pub fn open(thread: &Path) -> io::Result<Self> {
        File::open(thread.join("schedstat")).map(Self)
    }

    /// CPU time and time spent runnable but not running, ns; `None` once the thread is gone.
    #[must_use]
    pub fn cpu_and_delay_ns(&self) -> Option<(u64, u64)> {
        let mut buffer = [0u8; 96];
        let len = self.0.read_at(&mut buffer, 0).ok()?;
        let text = std::str::from_utf8(buffer.get(..len)?).ok()?;
        let mut fields = text.split_whitespace().map(str::parse);
        Some((fields.next()?.ok()?, fields.next()?.ok()?))
    }
}

/// A thread's [`SchedStat`], and whether it sleeps, through descriptors kept open.
#[derive(Debug)]
pub struct ThreadStat {
    schedstat: SchedStat,
    wchan: Option<File>,
}

impl ThreadStat {
    /// Opens both.
    ///
    /// # Errors
    /// If the thread is gone, or no descriptor is left.
    pub fn open(tid: Tid) -> io::Result<Self> {
        let thread = format!("/proc/{tid}");
        let thread = Path::new(&thread);
        Ok(Self {
            schedstat: SchedStat::open(thread)?,
            wchan: File::open(thread.join("wchan")).ok(),
        })
    }

    /// See [`SchedStat::cpu_and_delay_ns`].
    #[must_use]
    pub fn cpu_and_delay_ns(&self) -> Option<(u64, u64)> {
        self.schedstat.cpu_and_delay_ns()
    }

    /// Whether the thread is on a run queue. `wchan` names where a thread sleeps, and is `0` while
    /// it does not.
    #[must_use]
    pub fn is_runnable(&self) -> bool {
        let mut buffer = [0u8; 8];
        self.wchan
            .as_ref()
            .and_then(|file| file.read_at(&mut buffer, 0).ok())
            .is_some_and(|len| len > 0 && buffer.first() == Some(&b'0'))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    /// Id of this thread, from the link the kernel keeps.
    fn own_tid() -> Tid {
        let link = fs::read_link("/proc/thread-self").unwrap();
        link.file_name().unwrap().to_str().unwrap().parse().unwrap()
    }

    #[test]
    fn vcpu_threads_are_found_by_name_and_told_from_sleeping_ones() {
        let (stop, stopped) = mpsc::channel::<()>();
        let sleeper = thread::Builder::new()
            .name("vcpu7".to_owned())
            .spawn(move || stopped.recv().is_err())
            .unwrap();
        thread::sleep(Duration::from_millis(20));
        let found = vcpu_threads(std::process::id()).unwrap();
        let seven = found.iter().find(|thread| thread.vcpu == 7).unwrap();
        assert!(start_time(seven.tid).unwrap() > 0);
        let stat = ThreadStat::open(seven.tid).unwrap();
        assert!(!stat.is_runnable());
        assert!(ThreadStat::open(own_tid()).unwrap().is_runnable());
        let (cpu, _) = stat.cpu_and_delay_ns().unwrap();
        assert!(cpu > 0);
        drop(stop);
        sleeper.join().unwrap();
    }

    #[test]
    fn names_of_both_vmms_are_known() {
        assert_eq!(number_in("vcpu12"), Some(12));
        assert_eq!(number_in("CPU 3/KVM"), Some(3));
        for other in [
            "vcpu",
            "vcpu1a",
            "CPU 3/TCG",
            "CPU/KVM",
            "vmm",
            "CPU -1/KVM",
        ] {
            assert_eq!(number_in(other), None, "{other}");
        }
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        assert!(vcpu_threads(u32::MAX >> 2).is_err());
    }
}
