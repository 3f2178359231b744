//! Events that wait for a buffer of the guest.

use std::collections::VecDeque;

use ecs_abi::*;

/// Events kept at most; the oldest goes first.
const MAX_WAITING: usize = 16;

/// Events on their way to the guest.
#[derive(Debug, Default)]
pub(crate) struct Events {
    /// Kept apart, so that no flood of other events can push it out.
    restart: bool,
    waiting: VecDeque<VirtioEcsEvent>,
}

impl Events {
    /// Keeps an event. Returns whether an older one had to go.
    pub(crate) fn push(&mut self, event: VirtioEcsEvent) -> bool {
        if event.r#type == VIRTIO_ECS_EV_RESTART {
            self.restart = true;
            return false;
        }
        let full = self.waiting.len() >= MAX_WAITING;
        if full {
            self.waiting.pop_front();
        }
        self.waiting.push_back(event);
        full
    }

    /// Keeps all events of `other`, after those here. Returns how many older ones had to go.
    pub(crate) fn append(&mut self, other: Self) -> u64 {
        self.restart |= other.restart;
        other
            .waiting
            .into_iter()
            .map(|event| u64::from(self.push(event)))
            .sum()
    }

    /// Tells the guest to register again.
    pub(crate) fn push_restart(&mut self) {
        self.restart = true;
    }

    /// The next event to deliver.
    pub(crate) fn next(&self) -> Option<VirtioEcsEvent> {
        if self.restart {
            return Some(VirtioEcsEvent {
                r#type: VIRTIO_ECS_EV_RESTART,
                vcpu: VIRTIO_ECS_ALL_VCPUS,
                ..Default::default()
            });
        }
        self.waiting.front().copied()
    }

    /// Takes the event [`Events::next`] gave.
    pub(crate) fn delivered(&mut self) {
        if !std::mem::take(&mut self.restart) {
            self.waiting.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_and_a_restart_is_never_lost() {
        let mut events = Events::default();
        events.push_restart();
        let mut dropped = 0;
        for data in 0..40 {
            let event = VirtioEcsEvent {
                r#type: VIRTIO_ECS_EV_FAULT,
                data,
                ..Default::default()
            };
            dropped += usize::from(events.push(event));
        }
        assert_eq!(dropped, 40 - MAX_WAITING);
        assert_eq!(
            events.next().map(|event| event.r#type),
            Some(VIRTIO_ECS_EV_RESTART)
        );
        events.delivered();
        for data in 40 - 16..40 {
            assert_eq!(events.next().map(|event| event.data), Some(data));
            events.delivered();
        }
        assert_eq!(events.next(), None);
    }
}
