//! The policy against slow and obvious oracles, on random input.
//!
//! The oracles keep every event since the beginning and recompute all from it, with wide integers;
//! they share no code with the policy.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss
)]

mod oracle {
    mod books;
    mod events;
    mod fair;
    mod history;
    mod pick;
    mod queue;

    use proptest::test_runner::{Config, FileFailurePersistence};

    /// `cases` runs, failures kept beside the tests.
    pub(crate) fn config(cases: u32) -> Config {
        Config {
            cases,
            failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
                "tests/oracle.proptest-regressions",
            ))),
            ..Config::default()
        }
    }
}
