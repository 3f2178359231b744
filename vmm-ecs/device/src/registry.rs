//! The registrations of one VM, and the slots built from them.

use std::collections::BTreeMap;
use std::sync::Arc;

use ecs_abi::*;
use ecs_shm::{GuestMem, SlotCounters, SlotError, VcpuSlots, VmSlots};

#[derive(Debug)]
struct Entry {
    registration: VirtioEcsRegister,
    counters: Arc<SlotCounters>,
    /// `None` while the memory it needs is not there.
    slots: Option<Arc<VcpuSlots>>,
}

/// Registrations by vCPU number.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    entries: BTreeMap<u32, Entry>,
    slots: Arc<VmSlots>,
}

impl Registry {
    /// A registry of saved registrations; slots come with [`Registry::rebuild`].
    pub(crate) fn restored(registrations: Vec<VirtioEcsRegister>) -> Self {
        let entries = registrations
            .into_iter()
            .filter(|registration| registration.vcpu < VIRTIO_ECS_MAX_VCPUS)
            .map(|registration| {
                let entry = Entry {
                    registration,
                    counters: Arc::default(),
                    slots: None,
                };
                (registration.vcpu, entry)
            })
            .collect();
        Self {
            entries,
            slots: Arc::default(),
        }
    }

    /// Registers a vCPU or replaces its registration.
    ///
    /// # Errors
    /// [`SlotError`], as [`VcpuSlots::new`], and overlap with another vCPU.
    pub(crate) fn register(
        &mut self,
        mem: &Arc<GuestMem>,
        registration: &VirtioEcsRegister,
    ) -> Result<(), SlotError> {
        let vcpu = registration.vcpu;
        let counters = self
            .entries
            .get(&vcpu)
            .map(|entry| entry.counters.clone())
            .unwrap_or_default();
        let slots = VcpuSlots::new(mem, registration, counters.clone())?;
        if self
            .entries
            .iter()
            .any(|(other, entry)| *other != vcpu && slots.overlaps(&entry.registration))
        {
            return Err(SlotError::Overlap(registration.guest_line));
        }
        self.entries.insert(
            vcpu,
            Entry {
                registration: *registration,
                counters,
                slots: Some(Arc::new(slots)),
            },
        );
        self.collect();
        Ok(())
    }

    /// Forgets a vCPU; `false` if it was not registered.
    pub(crate) fn unregister(&mut self, vcpu: u32) -> bool {
        let known = self.entries.remove(&vcpu).is_some();
        self.collect();
        known
    }

    pub(crate) fn counters(&self, vcpu: u32) -> Option<&SlotCounters> {
        self.entries.get(&vcpu).map(|entry| &*entry.counters)
    }

    /// Forgets every vCPU; returns how many there were.
    pub(crate) fn clear(&mut self) -> usize {
        let nr = self.entries.len();
        self.entries.clear();
        self.collect();
        nr
    }

    /// Builds all slots anew against `mem`. A registration that does not fit is dropped if
    /// `drop_unfit`, and waits for more memory otherwise. Returns how many were dropped.
    pub(crate) fn rebuild(&mut self, mem: &Arc<GuestMem>, drop_unfit: bool) -> usize {
        let before = self.entries.len();
        let mut accepted: Vec<VirtioEcsRegister> = Vec::with_capacity(before);
        self.entries.retain(|_, entry| {
            entry.slots = VcpuSlots::new(mem, &entry.registration, entry.counters.clone())
                .ok()
                .filter(|slots| !accepted.iter().any(|other| slots.overlaps(other)))
                .map(Arc::new);
            if entry.slots.is_some() {
                accepted.push(entry.registration);
            }
            entry.slots.is_some() || !drop_unfit
        });
        self.collect();
        before - self.entries.len()
    }

    fn collect(&mut self) {
        let mut vcpus: Vec<Option<Arc<VcpuSlots>>> = Vec::new();
        for (vcpu, entry) in &self.entries {
            let Ok(index) = usize::try_from(*vcpu) else {
                continue;
            };
            vcpus.resize(index, None);
            vcpus.push(entry.slots.clone());
        }
        self.slots = Arc::new(VmSlots { vcpus });
    }

    pub(crate) fn slots(&self) -> &Arc<VmSlots> {
        &self.slots
    }

    pub(crate) fn registrations(&self) -> Vec<VirtioEcsRegister> {
        self.entries
            .values()
            .map(|entry| entry.registration)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use vm_memory::{GuestAddress, GuestRegionMmap};

    fn mem(ranges: &[(u64, usize)]) -> Arc<GuestMem> {
        let regions = ranges
            .iter()
            .map(|(at, len)| {
                Arc::new(GuestRegionMmap::from_range(GuestAddress(*at), *len, None).unwrap())
            })
            .collect();
        Arc::new(GuestMem::new(regions).unwrap())
    }

    fn registration(vcpu: u32, at: u64) -> VirtioEcsRegister {
        VirtioEcsRegister {
            op: VIRTIO_ECS_CTRL_REGISTER,
            vcpu,
            guest_line: at,
            host_line: at + 64,
            ..Default::default()
        }
    }

    #[test]
    fn slots_follow_the_memory() {
        let both = mem(&[(0, 0x1000), (0x10_0000, 0x1000)]);
        let mut registry = Registry::default();
        registry.register(&both, &registration(0, 0)).unwrap();
        registry
            .register(&both, &registration(3, 0x10_0000))
            .unwrap();
        assert_eq!(registry.slots().vcpus.len(), 4);
        assert_eq!(registry.slots().nr_registered(), 2);

        let low = mem(&[(0, 0x1000)]);
        assert_eq!(registry.rebuild(&low, false), 0, "it may come back");
        assert_eq!(registry.slots().nr_registered(), 1);
        assert_eq!(registry.rebuild(&both, false), 0);
        assert_eq!(registry.slots().nr_registered(), 2);
        assert_eq!(registry.rebuild(&low, true), 1);
        assert_eq!(registry.rebuild(&both, true), 0);
        assert_eq!(
            registry.slots().nr_registered(),
            1,
            "what was dropped stays dropped"
        );
    }

    #[test]
    fn a_vcpu_may_replace_its_own_lines_only() {
        let mem = mem(&[(0, 0x1000)]);
        let mut registry = Registry::default();
        registry.register(&mem, &registration(0, 0)).unwrap();
        registry.register(&mem, &registration(0, 64)).unwrap();
        let taken = registry.register(&mem, &registration(1, 128));
        assert_eq!(taken, Err(SlotError::Overlap(128)));
        registry.register(&mem, &registration(1, 192)).unwrap();
        assert!(registry.unregister(0));
        assert!(!registry.unregister(0));
        registry.register(&mem, &registration(2, 64)).unwrap();
    }

    #[test]
    fn saved_registrations_that_overlap_or_are_out_of_range_are_not_believed() {
        let mem = mem(&[(0, 0x1000)]);
        let saved = vec![
            registration(0, 0),
            registration(1, 64),
            registration(VIRTIO_ECS_MAX_VCPUS, 256),
            registration(u32::MAX, 512),
        ];
        let mut registry = Registry::restored(saved);
        assert_eq!(registry.rebuild(&mem, true), 1);
        assert_eq!(registry.slots().nr_registered(), 1);
    }
}
