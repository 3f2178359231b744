//! The promises of the policy, one named test each: the decision at a slice end, eventual fairness,
//! the defects known from earlier work, and the rules that leave lock queues clean.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss
)]

mod common;

mod semantics {
    mod decision;
    mod defects;
    mod fairness;
    mod queue;
}
