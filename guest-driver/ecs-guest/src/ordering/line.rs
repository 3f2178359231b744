//! What the host may see of the lines themselves: waits, and requests to hand the pCPU back.

use ecs_abi::{
    VIRTIO_ECS_WAIT_BLOCK, VIRTIO_ECS_WAIT_NONE, VIRTIO_ECS_WAIT_SPIN, VIRTIO_ECS_WIDTH_32,
    VIRTIO_ECS_YIELD_RELEASE,
};

use super::*;

struct Bell(Arc<AtomicU32>);
impl Doorbell for Bell {
    fn ring(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// One vCPU shows a wait and ends it.
fn check_description(show: fn(&TestVcpu<'_>, &WaitFor<'_>)) {
    const DESCRIPTION: (u32, u32, u32) = (0xff, 7, 3);
    model(move || {
        let world = World::new(AtomicU32::new(0), 1);
        let observer = observe_last(&world, |world| {
            let line = &world.lines[0].guest;
            let waiting = line.waiting.load(Ordering::Acquire);
            if waiting == VIRTIO_ECS_WAIT_SPIN || waiting == VIRTIO_ECS_WAIT_BLOCK {
                let (mask, value, holder) = DESCRIPTION;
                let addr = core::ptr::from_ref(&world.lock).addr() as u64;
                assert_eq!(line.wait_addr.load(Ordering::Relaxed), addr);
                assert_eq!(line.wait_mask.load(Ordering::Relaxed), mask.into());
                assert_eq!(line.wait_value.load(Ordering::Relaxed), value.into());
                assert_eq!(line.wait_holder.load(Ordering::Relaxed), holder);
                let width = line.wait_width.load(Ordering::Relaxed);
                assert_eq!(width, VIRTIO_ECS_WIDTH_32);
            }
        });
        let vcpu = world.vcpu(0);
        let (mask, value, holder) = DESCRIPTION;
        let word = &world.lock;
        let outer = vcpu.wait_enter();
        show(
            &vcpu,
            &WaitFor {
                word,
                mask,
                value,
                holder,
            },
        );
        vcpu.wait_end(outer);
        observer.join().unwrap();
    });
}

#[test]
fn a_wait_that_shows_is_described_in_full() {
    check_description(|vcpu, wait| vcpu.wait_spin(wait));
    check_description(|vcpu, wait| vcpu.wait_block(wait));
}

#[test]
fn an_inner_lock_never_hides_the_outer_wait() {
    model(|| {
        let world = World::new(TicketLock::default(), 1);
        let observer = observe_last(&world, |world| {
            let before = world.ghosts[0].load(Ordering::Acquire);
            let waiting = world.lines[0].guest.waiting.load(Ordering::Acquire);
            let after = world.ghosts[0].load(Ordering::Acquire);
            if before == IN && after == IN {
                assert_ne!(waiting, VIRTIO_ECS_WAIT_NONE);
            }
        });
        let vcpu = world.vcpu(0);
        let awaited = AtomicU32::new(0);
        let outer = vcpu.wait_enter();
        vcpu.wait_spin(&WaitFor {
            word: &awaited,
            mask: 1,
            value: 1,
            holder: 0,
        });
        world.ghosts[0].store(IN, Ordering::Release);
        drop(world.lock.lock(&vcpu));
        world.ghosts[0].store(OUT, Ordering::Release);
        vcpu.wait_end(outer);
        observer.join().unwrap();
    });
}

/// Rings that must come outside the lock, as the vCPU and the host see it.
struct OutsideBell<'w>(&'w World<TicketLock>);

impl Doorbell for OutsideBell<'_> {
    fn ring(&self) {
        assert!(!self.0.lock.is_locked(), "rung inside the lock");
        self.0.protected.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_request_in_time_is_answered_once_and_outside_the_lock() {
    model(|| {
        let world = World::new(TicketLock::default(), 1);
        let host = observe_last(&world, |world| {
            let line = &world.lines[0];
            line.host
                .r#yield
                .store(VIRTIO_ECS_YIELD_RELEASE, Ordering::Relaxed);
            world.ghosts[0].store(IN, Ordering::Release);
            if line.guest.handback.load(Ordering::Acquire) != 0 {
                assert_eq!(line.guest.np_count.load(Ordering::Relaxed), 0);
                assert!(!world.lock.is_locked());
            }
        });
        let vcpu = Vcpu::new(0, &world.lines, OutsideBell(&world), OffsetMap(0), 1).unwrap();
        let guard = world.lock.lock(&vcpu);
        let in_time = world.ghosts[0].load(Ordering::Acquire) == IN;
        drop(guard);
        let rings = world.protected.load(Ordering::Relaxed);
        assert_eq!(rings, world.lines[0].guest.handback.load(Ordering::Relaxed));
        assert!(rings == 1 || (rings == 0 && !in_time));
        host.join().unwrap();
    });
}

#[test]
fn hand_back_rings_once_after_the_last_section_and_never_inside() {
    model(|| {
        let rings = Arc::new(AtomicU32::new(0));
        let lines = [VcpuLines::default()];
        lines[0]
            .host
            .r#yield
            .store(VIRTIO_ECS_YIELD_RELEASE, Ordering::Relaxed);
        let vcpu = Vcpu::new(0, &lines, Bell(Arc::clone(&rings)), OffsetMap(0), 1).unwrap();
        vcpu.activate_preemptable_ecs();
        vcpu.activate_non_preemptable_ecs();
        vcpu.deactivate_non_preemptable_ecs();
        assert_eq!(rings.load(Ordering::Relaxed), 0);
        vcpu.deactivate_preemptable_ecs();
        assert_eq!(rings.load(Ordering::Relaxed), 1);
        assert_eq!(lines[0].guest.handback.load(Ordering::Relaxed), 1);
    });
}
