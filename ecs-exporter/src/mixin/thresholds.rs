//! Every number of the rules and alerts, in one place.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A length of time as Prometheus writes it: `90s`, `15m`, `6h`, `3d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Span {
    seconds: u32,
}

/// A text that is no [`Span`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not a length of time; write a whole number above 0 with s, m, h or d, as in 15m")]
pub struct SpanError(String);

const UNITS: [(char, u32); 4] = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

impl Span {
    /// `count` seconds.
    #[must_use]
    pub const fn seconds(count: u32) -> Self {
        Self { seconds: count }
    }

    /// `count` minutes.
    #[must_use]
    pub const fn minutes(count: u32) -> Self {
        Self::seconds(count * 60)
    }

    /// `count` hours.
    #[must_use]
    pub const fn hours(count: u32) -> Self {
        Self::minutes(count * 60)
    }

    /// Its length in seconds.
    #[must_use]
    pub const fn as_seconds(self) -> u32 {
        self.seconds
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, length): &(char, u32)| {
            self.seconds >= *length && self.seconds.is_multiple_of(*length)
        };
        let (unit, length) = UNITS.into_iter().find(fits).unwrap_or(('s', 1));
        write!(f, "{}{unit}", self.seconds / length)
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let parse = || {
            let (unit, length) = UNITS.into_iter().find(|(unit, _)| text.ends_with(*unit))?;
            let count: u32 = text.strip_suffix(unit)?.parse().ok()?;
            count.checked_mul(length).filter(|seconds| *seconds > 0)
        };
        let seconds = parse().ok_or_else(|| SpanError(text.to_owned()))?;
        Ok(Self { seconds })
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

impl TryFrom<String> for Span {
    type Error = SpanError;

    fn try_from(text: String) -> Result<Self, SpanError> {
        text.parse()
    }
}

macro_rules! thresholds {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty = $value:expr;)*) => {
        /// What the rules and alerts compare with. Ratios are fractions: 0.05 is 5 %.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Thresholds {
            $($(#[doc = $doc])+ pub $name: $type,)*
        }

        impl Default for Thresholds {
            fn default() -> Self {
                Self { $($name: $value,)* }
            }
        }
    };
}

thresholds! {
    /// Window of the rates of the recording rules.
    rate_window: Span = Span::minutes(5);
    /// A VM entitled to fewer CPUs than this is idle: its deviation says nothing.
    fair_floor_cpus: f64 = 0.01;

    /// Deviation from the fair share, in either direction, that counts as unfair.
    drift_ratio: f64 = 0.05;
    /// How long before EcsVmFairnessDrift.
    drift_for: Span = Span::minutes(15);
    /// Missing part of the fair share that counts as starved.
    starved_ratio: f64 = 0.10;
    /// How long before EcsVmStarved.
    starved_for: Span = Span::minutes(10);

    /// Part of the VM-minutes that may be unfair: the error budget.
    unfair_budget: f64 = 0.01;
    /// Rate at which the budget burns, as a multiple, that pages at once.
    burn_fast: f64 = 14.4;
    /// Long window of `burn_fast`.
    burn_fast_long: Span = Span::hours(1);
    /// Short window of `burn_fast`.
    burn_fast_short: Span = Span::minutes(5);
    /// Rate that pages after hours.
    burn_medium: f64 = 6.0;
    /// Long window of `burn_medium`.
    burn_medium_long: Span = Span::hours(6);
    /// Short window of `burn_medium`.
    burn_medium_short: Span = Span::minutes(30);
    /// Rate that is worth a ticket.
    burn_slow: f64 = 1.0;
    /// Long window of `burn_slow`.
    burn_slow_long: Span = Span::hours(72);
    /// Short window of `burn_slow`.
    burn_slow_short: Span = Span::hours(6);

    /// Jain's index below which the host as a whole is unfair; 1 is fair.
    jain_index: f64 = 0.99;
    /// How long before EcsJainIndexLow.
    jain_for: Span = Span::minutes(15);

    /// Debt of a VM, as a part of the host's limit, above which it must not grow.
    debt_ratio: f64 = 0.6;
    /// Window in which the debt's growth is seen.
    debt_window: Span = Span::minutes(30);
    /// How long before EcsDebtNotRepaid.
    debt_for: Span = Span::minutes(30);
    /// Extension time as a part of the VM's CPU time.
    cost_ratio: f64 = 0.02;
    /// How long before EcsExtensionCostHigh.
    cost_for: Span = Span::minutes(15);

    /// Part of the time a vCPU waits for a CPU: worth a look.
    ready_high: f64 = 0.05;
    /// Part of the time a vCPU waits for a CPU: users notice.
    ready_critical: f64 = 0.10;
    /// How long before EcsVmCpuReadyHigh and EcsVmCpuReadyCritical.
    ready_for: Span = Span::minutes(15);

    /// Expired extensions as a part of those that ended.
    abuse_ratio: f64 = 0.5;
    /// How long before EcsGuestAbusesHints.
    abuse_for: Span = Span::minutes(15);
    /// Extensions that ended as yielded, as a part of those that ended: below it they do not help.
    avoided_ratio: f64 = 0.5;
    /// Grants a second below which EcsExtensionsIneffective does not judge.
    avoided_min_grants: f64 = 10.0;
    /// How long before EcsExtensionsIneffective.
    avoided_for: Span = Span::minutes(30);

    /// How long before EcsExporterDown and EcsBackendDown.
    down_for: Span = Span::minutes(5);
    /// How long before EcsCollectorFailing.
    collector_for: Span = Span::minutes(15);
    /// Window in which lost perf records are counted.
    perf_lost_window: Span = Span::minutes(10);
    /// How long before EcsSeriesLimitReached.
    series_for: Span = Span::minutes(15);
    /// How long before EcsConfigReloadFailed.
    reload_for: Span = Span::minutes(5);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn spans_are_read_and_written_as_prometheus_does() {
        for text in ["1s", "90s", "15m", "6h", "3d"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        assert_eq!("60m".parse::<Span>().unwrap().to_string(), "1h");
        for text in [
            "", "m", "0s", "-1m", "1.5h", "1h30m", "5 m", "5w", "99999d", "5é",
        ] {
            assert_eq!(
                text.parse::<Span>().unwrap_err(),
                SpanError(text.to_owned())
            );
        }
    }

    #[test]
    fn unknown_thresholds_are_refused() {
        let read = |text| serde_json::from_str::<Thresholds>(text);
        assert_eq!(read("{}").unwrap(), Thresholds::default());
        let starved = read(r#"{"starved_for": "10s"}"#).unwrap().starved_for;
        assert_eq!(starved, Span::seconds(10));
        assert!(read(r#"{"starved": "10s"}"#).is_err());
        assert!(read(r#"{"starved_for": 10}"#).is_err());
    }
}
