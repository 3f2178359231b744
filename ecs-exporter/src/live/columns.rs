//! What is shown of a VM: one table for the terminal and the page.

use serde::Serialize;

use super::VmView;
use crate::mixin::Thresholds;

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A fraction of 1, in per cent.
    Percent,
    /// The same, with its sign.
    SignedPercent,
    /// A number a second.
    Rate,
    /// Seconds, in ms.
    Millis,
    /// A whole number.
    Count,
}

impl Unit {
    /// The value as text, without its unit.
    #[must_use]
    pub fn text(self, value: f64) -> String {
        match self {
            Self::Percent => format!("{:.1}", value * 100.0),
            Self::SignedPercent => {
                // No "-0.0".
                let tenths = (value * 1000.0).round() + 0.0;
                format!("{:+.1}", tenths / 10.0)
            }
            Self::Rate if value < 10.0 => format!("{value:.1}"),
            Self::Rate | Self::Count => format!("{value:.0}"),
            Self::Millis => format!("{:.2}", value * 1000.0),
        }
    }
}

/// One figure of a VM.
#[derive(Debug, Serialize)]
pub struct Column {
    /// Field of [`VmView`].
    pub id: &'static str,
    /// Title in a terminal, with the unit.
    pub title: &'static str,
    /// Title on the page.
    pub name: &'static str,
    /// Key that sorts by it.
    pub key: char,
    /// One sentence.
    pub help: &'static str,
    /// How it is written.
    pub unit: Unit,
    /// Whether the smallest value is the first one to look at.
    pub ascending: bool,
    /// The value.
    #[serde(skip)]
    pub value: fn(&VmView) -> Option<f64>,
}

impl Column {
    /// The value as text; `-` if it is not known.
    #[must_use]
    pub fn text(&self, vm: &VmView) -> String {
        let value = (self.value)(vm);
        value.map_or_else(|| "-".to_owned(), |value| self.unit.text(value))
    }

    /// How bad the value is, by the thresholds of the alerts: 0 is fine, 1 worth a look, 2 bad.
    #[must_use]
    pub fn severity(&self, vm: &VmView) -> u8 {
        let t = Thresholds::default();
        let Some(value) = (self.value)(vm) else {
            return 0;
        };
        match self.id {
            "deviation" if value < -t.starved_ratio => 2,
            "deviation" => u8::from(value.abs() > t.drift_ratio),
            "ready" if value > t.ready_critical => 2,
            "ready" => u8::from(value > t.ready_high),
            "cost" => u8::from(value > t.cost_ratio),
            _ => 0,
        }
    }
}

/// Every column, the most telling first: a narrow terminal shows what fits.
pub static COLUMNS: &[Column] = &[
    Column {
        id: "share",
        title: "SHARE%",
        name: "Share",
        key: 'C',
        help: "CPU time received, of all CPUs the VMs may run on.",
        unit: Unit::Percent,
        ascending: false,
        value: |vm| vm.share,
    },
    Column {
        id: "entitlement",
        title: "ENTIT%",
        name: "Entitled",
        key: 'E',
        help: "CPU time the VM was entitled to by its weight, of all CPUs.",
        unit: Unit::Percent,
        ascending: false,
        value: |vm| vm.entitlement,
    },
    Column {
        id: "deviation",
        title: "DEV%",
        name: "Deviation",
        key: 'D',
        help: "Received over entitled; below 0 the VM got too little.",
        unit: Unit::SignedPercent,
        ascending: true,
        value: |vm| vm.deviation,
    },
    Column {
        id: "ready",
        title: "READY%",
        name: "Ready",
        key: 'R',
        help: "Time a vCPU was runnable but not running, per vCPU.",
        unit: Unit::Percent,
        ascending: false,
        value: |vm| vm.ready,
    },
    Column {
        id: "grants",
        title: "GRANT/s",
        name: "Grants/s",
        key: 'G',
        help: "Slice extensions granted.",
        unit: Unit::Rate,
        ascending: false,
        value: |vm| vm.grants,
    },
    Column {
        id: "avoided",
        title: "AVOID%",
        name: "Avoided",
        key: 'A',
        help: "Extensions that ended with their critical section.",
        unit: Unit::Percent,
        ascending: true,
        value: |vm| vm.avoided,
    },
    Column {
        id: "debt_seconds",
        title: "DEBTms",
        name: "Debt ms",
        key: 'B',
        help: "Extension time not yet taken back.",
        unit: Unit::Millis,
        ascending: false,
        value: |vm| vm.debt_seconds,
    },
    Column {
        id: "critical",
        title: "CRIT/s",
        name: "Critical/s",
        key: 'X',
        help: "Preemptions that did hit a critical section.",
        unit: Unit::Rate,
        ascending: false,
        value: |vm| vm.critical,
    },
    Column {
        id: "preemptions",
        title: "PREEM/s",
        name: "Preempt/s",
        key: 'P',
        help: "Times a vCPU was taken off its CPU.",
        unit: Unit::Rate,
        ascending: false,
        value: |vm| vm.preemptions,
    },
    Column {
        id: "cost",
        title: "COST%",
        name: "Cost",
        key: 'O',
        help: "Time inside extensions, of the VM's CPU time.",
        unit: Unit::Percent,
        ascending: false,
        value: |vm| vm.cost,
    },
    Column {
        id: "vcpus",
        title: "VCPUS",
        name: "vCPUs",
        key: 'V',
        help: "vCPU threads.",
        unit: Unit::Count,
        ascending: false,
        value: |vm| Some(vm.vcpus as f64),
    },
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn each_column_is_a_field_with_a_key_of_its_own() {
        let fields = serde_json::to_value(VmView::default()).unwrap();
        let mut keys: Vec<char> = COLUMNS.iter().map(|column| column.key).collect();
        for column in COLUMNS {
            assert!(fields.get(column.id).is_some(), "{}", column.id);
            assert!(column.key.is_ascii_uppercase() && column.key != 'N');
        }
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), COLUMNS.len());
    }

    #[test]
    fn values_are_short() {
        assert_eq!(Unit::SignedPercent.text(-0.0001), "+0.0");
        assert_eq!(Unit::SignedPercent.text(-0.2), "-20.0");
        assert_eq!(Unit::Percent.text(1.0), "100.0");
        assert_eq!(Unit::Rate.text(3.21), "3.2");
        assert_eq!(Unit::Rate.text(12345.6), "12346");
        assert_eq!(Unit::Millis.text(0.0015), "1.50");
    }
}
