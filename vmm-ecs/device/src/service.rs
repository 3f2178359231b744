//! The device's side of the control and event queues.

use ecs_abi::*;
use vm_memory::GuestMemoryMmap;

use crate::backend::Backend;
use crate::control::{self, MAX_MESSAGE};
use crate::counters::count;
use crate::events::Events;
use crate::ring::Buffers;

impl Backend {
    /// Answers every control message there is.
    pub(crate) fn serve_control(&mut self) {
        let mem = self.memory.mem().clone();
        let map = mem.map();
        let Some(ring) = self
            .rings
            .get_mut(VIRTIO_ECS_VQ_CONTROL)
            .filter(|ring| ring.runs())
        else {
            return;
        };
        let most = usize::from(ring.size());
        let chains = match ring.chains(map, most) {
            Ok(chains) => chains,
            Err(error) => return self.fault(&error),
        };
        let mut done = Vec::with_capacity(chains.len());
        let mut changed = false;
        for chain in chains {
            let head = chain.head_index();
            let answered =
                Buffers::of(chain, MAX_MESSAGE, VirtioEcsCtrlReply::SIZE).and_then(|buffers| {
                    let answer =
                        control::answer(&buffers.message, &self.space, &mut self.registry, &mem);
                    changed |= answer.changed;
                    if answer.reply.status != VIRTIO_ECS_S_OK {
                        count(&self.context.counters.refused_messages, 1);
                    }
                    buffers.write(map, &answer.reply.to_bytes())
                });
            let len = answered.unwrap_or_else(|error| {
                self.fault(&error);
                0
            });
            done.push((head, len));
        }
        if changed {
            // Before the guest sees its answer: from then on the memory is its own again.
            self.persist();
            self.publish();
        }
        self.give_back(VIRTIO_ECS_VQ_CONTROL, map, &done);
    }

    /// Delivers waiting events into the buffers the guest has posted.
    pub(crate) fn serve_events(&mut self) {
        let mem = self.memory.mem().clone();
        let map = mem.map();
        let mut done = Vec::new();
        let mut tries = 0;
        while let Some(event) = self.events.next() {
            let Some(ring) = self
                .rings
                .get_mut(VIRTIO_ECS_VQ_EVENT)
                .filter(|ring| ring.runs())
            else {
                break;
            };
            // The guest may post bad buffers as fast as they are refused.
            tries += 1;
            if tries > usize::from(ring.size()) {
                break;
            }
            let chain = match ring.chains(map, 1) {
                Ok(mut chains) => chains.pop(),
                Err(error) => {
                    self.fault(&error);
                    break;
                }
            };
            let Some(chain) = chain else {
                break;
            };
            let head = chain.head_index();
            let written = Buffers::of(chain, 0, VirtioEcsEvent::SIZE)
                .and_then(|buffers| buffers.write(map, &event.to_bytes()));
            match written {
                Ok(len) => {
                    self.events.delivered();
                    done.push((head, len));
                }
                Err(error) => {
                    self.fault(&error);
                    done.push((head, 0));
                }
            }
        }
        self.give_back(VIRTIO_ECS_VQ_EVENT, map, &done);
    }

    fn give_back(&mut self, index: usize, map: &GuestMemoryMmap<()>, done: &[(u16, u32)]) {
        let Some(ring) = self.rings.get_mut(index) else {
            return;
        };
        let size = ring.size();
        let mut result = Ok(());
        for (head, len) in done {
            // A head outside the table was counted already and cannot be given back.
            if *head < size {
                result = result.and(ring.give_back(map, *head, *len));
            }
        }
        if !done.is_empty() {
            ring.interrupt();
        }
        if let Err(error) = result {
            self.fault(&error);
        }
    }

    /// Keeps events for the guest.
    pub(crate) fn push_events(&mut self, more: Events) {
        let dropped = self.events.append(more);
        count(&self.context.counters.dropped_events, dropped);
    }

    fn fault(&self, error: &dyn std::error::Error) {
        count(&self.context.counters.guest_faults, 1);
        self.context.warn(error, "The guest's queue makes no sense");
    }
}
