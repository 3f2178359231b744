//! What the scheduler's parts cost inside the kernel of this machine, ns: each in a loop there, less
//! the loop itself. Also how long its programs are, as the verifier sees them.
//!
//! `cargo bench -p ecs-sched --features scx --bench kernel`
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

#[cfg(feature = "scx")]
#[path = "../tests/kernel/checker.rs"]
mod checker;
#[cfg(feature = "scx")]
#[path = "../tests/kernel/memory.rs"]
mod memory;

#[cfg(feature = "scx")]
mod costs {
    use ecs_abi::*;
    use ecs_policy::Params;
    use ecs_shm::SlotAddresses;
    use libbpf_rs::ProgramMut;
    use vm_memory::{Bytes, GuestAddress};

    use crate::checker::{Checker, types};
    use crate::memory::{Guest, HOST_LINES, LINES, LOCKS, WORDS};

    /// Rounds of a loop, and loops of each kind.
    const ROUNDS: u32 = 2000;
    const LOOPS: usize = 51;
    /// Before them, for the caches.
    const WARM_UP: usize = 5;

    /// Costs of one round, ns, in ascending order.
    fn measure(
        checker: &mut Checker,
        program: impl Fn(&Checker) -> &ProgramMut<'static>,
    ) -> Vec<f64> {
        let mut costs = Vec::new();
        checker.shared().nr_rounds = ROUNDS;
        for round in 0..WARM_UP + LOOPS {
            checker.run(&program);
            if round >= WARM_UP {
                costs.push(checker.shared().cost_ns as f64 / f64::from(ROUNDS));
            }
        }
        costs.sort_by(f64::total_cmp);
        costs
    }

    /// Median, and the middle half.
    fn print(what: &str, costs: &[f64], base: f64) {
        let at = |part: usize| costs[(costs.len() - 1) * part / 4] - base;
        println!(
            "{what:<52} {:>7.1} ns  (quartiles {:.1} to {:.1})",
            at(2),
            at(1),
            at(3)
        );
    }

    fn write(guest: &Guest, vcpu: u64, line: &VirtioEcsGuestLine) {
        let at = GuestAddress(LINES + vcpu * 64);
        guest.ours.map().write_slice(&line.to_bytes(), at).unwrap();
    }

    fn register(checker: &mut Checker, guest: &Guest, vcpu: u64, format: u32) {
        let place = &mut checker.shared().vcpu_configs[usize::try_from(vcpu).unwrap()];
        *place = types::ecs_vcpu_config {
            guest_line: guest.user(LINES + vcpu * 64).unwrap(),
            word_addr: guest.user(WORDS + vcpu * 4).unwrap(),
            word_format: format,
            reserved: 0,
        };
    }

    pub(crate) fn run() {
        let mut checker = match Checker::load(&Params::default()) {
            Ok(checker) => checker,
            Err(reason) => {
                println!("SKIPPED: kernel: {reason}");
                return;
            }
        };
        let guest = Guest::new();
        let at = |gpa| guest.user(gpa);
        let words = SlotAddresses {
            guest_line: at(LINES),
            host_line: at(HOST_LINES),
            word: at(WORDS),
        };
        checker.name_thread(0, words);
        let waits = VirtioEcsGuestLine {
            waiting: VIRTIO_ECS_WAIT_SPIN,
            wait_addr: LOCKS,
            wait_mask: u64::MAX,
            wait_value: 1,
            wait_width: VIRTIO_ECS_WIDTH_64,
            ..VirtioEcsGuestLine::default()
        };
        let nothing = measure(&mut checker, |checker| &checker.skel.progs.cost_nothing);
        print("an empty loop, subtracted below", &nothing, 0.0);
        let base = nothing[nothing.len() / 2];
        let clock = measure(&mut checker, |checker| &checker.skel.progs.cost_clock);
        print("the clock", &clock, base);
        let thread = measure(&mut checker, |checker| &checker.skel.progs.cost_thread);
        print("finding the vCPU of a thread", &thread, base);
        // It was found.
        assert_eq!(checker.shared().cost_result, u64::from(ROUNDS));

        for (what, line, format) in [
            (
                "a read: line",
                VirtioEcsGuestLine::default(),
                VIRTIO_ECS_WORD_NONE,
            ),
            (
                "a read: line and word",
                VirtioEcsGuestLine::default(),
                VIRTIO_ECS_WORD_X86_PREEMPT,
            ),
            ("a read: line and wait word", waits, VIRTIO_ECS_WORD_NONE),
            (
                "a read: line, word and wait word",
                waits,
                VIRTIO_ECS_WORD_X86_PREEMPT,
            ),
        ] {
            checker.shared().vm_configs[0] = guest.config(1);
            write(&guest, 0, &line);
            register(&mut checker, &guest, 0, format);
            let costs = measure(&mut checker, |checker| &checker.skel.progs.cost_read);
            print(what, &costs, base);
        }
        // In a section, which is seen each time.
        let holds = VirtioEcsGuestLine {
            np_count: 1,
            ..VirtioEcsGuestLine::default()
        };
        write(&guest, 0, &holds);
        register(&mut checker, &guest, 0, VIRTIO_ECS_WORD_X86_PREEMPT);
        let pinned = measure(&mut checker, |checker| &checker.skel.progs.cost_pinned);
        print(
            "finding the vCPU, and its pinned line and word",
            &pinned,
            base,
        );
        assert_eq!(checker.shared().cost_result, u64::from(ROUNDS));
        for nr in [2, 4, 16] {
            checker.shared().vm_configs[0] = guest.config(nr);
            for vcpu in 0..nr as u64 {
                write(&guest, vcpu, &waits);
                register(&mut checker, &guest, vcpu, VIRTIO_ECS_WORD_X86_PREEMPT);
            }
            let costs = measure(&mut checker, |checker| &checker.skel.progs.cost_queue);
            print(
                &format!("a read, and the queue of {nr} vCPUs that wait"),
                &costs,
                base,
            );
        }
        let begin = measure(&mut checker, |checker| &checker.skel.progs.cost_begin);
        print("a turn that begins, with the books' lock", &begin, base);

        // Of the policy's decisions.
        const KEEP: u64 = 0;
        const LEAVE: u64 = 3;
        for (line, what) in [
            (VirtioEcsGuestLine::default(), "outside of sections"),
            (holds, "in a section"),
        ] {
            write(&guest, 0, &line);
            checker.run(|checker| &checker.skel.progs.cost_begin);
            let look = measure(&mut checker, |checker| &checker.skel.progs.cost_look);
            assert_eq!(checker.shared().cost_result, KEEP);
            print(&format!("a whole look, {what}: it runs on"), &look, base);
            let end = measure(&mut checker, |checker| &checker.skel.progs.cost_end);
            assert_eq!(checker.shared().cost_result, LEAVE * u64::from(ROUNDS));
            print(&format!("a whole look, {what}: it leaves"), &end, base);
        }
    }
}

fn main() {
    #[cfg(feature = "scx")]
    costs::run();
    #[cfg(not(feature = "scx"))]
    println!("SKIPPED: kernel: built without the feature scx");
}
