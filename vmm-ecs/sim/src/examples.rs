//! Scenarios that come with the program.

macro_rules! examples {
    ($($name:literal)*) => {
        /// Name and text of each.
        pub static EXAMPLES: &[(&str, &str)] = &[
            $(($name, include_str!(concat!("../scenarios/", $name, ".toml"))),)*
        ];
    };
}

examples! {
    "paper-80-cores"
    "over-commit"
    "extension"
    "budget"
    "budget-of-a-large-vm"
    "starved-convoy"
    "slice"
    "fleet"
    "bench/ticket"
    "bench/convoy"
    "bench/three-vms"
    "bench/fairness"
    "bench/fairness-weights"
    "bench/fairness-liar"
    "bench/no-locks"
    "bench/mutex-alone"
    "bench/mutex"
    "bench/mutex-lengths"
    "bench/matrix"
    "bench/matrix-kinds"
    "bench/matrix-reads"
    "bench/matrix-weights"
    "bench/peers"
    "validation/ticket-2x4"
    "validation/ticket-3x2"
    "validation/ticket-2x2-long"
    "validation/ticket-3x4-sparse"
    "validation/queue-2x4"
    "validation/rwlock-2x4"
    "validation/irq-2x4"
    "validation/blocking-2x2"
    "validation/compute-2x2"
}
