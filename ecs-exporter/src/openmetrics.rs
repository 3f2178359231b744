//! OpenMetrics 1.0 text, which the `prometheus` crate does not write.

use std::fmt::{self, Write};

use prometheus::proto::{Metric, MetricFamily, MetricType};

use crate::catalogue;

/// Writes all families and the end mark.
pub(crate) fn encode(families: &[MetricFamily]) -> Result<String, fmt::Error> {
    let mut out = String::new();
    for family in families {
        encode_family(&mut out, family)?;
    }
    out.push_str("# EOF\n");
    Ok(out)
}

fn encode_family(out: &mut String, family: &MetricFamily) -> fmt::Result {
    let kind = family.get_field_type();
    // A counter's family is named without the suffix its samples carry.
    let name = match kind {
        MetricType::COUNTER => family
            .name()
            .strip_suffix("_total")
            .unwrap_or(family.name()),
        _ => family.name(),
    };
    let known = catalogue::ALL
        .iter()
        .find(|known| known.name == family.name());
    writeln!(out, "# TYPE {name} {}", format!("{kind:?}").to_lowercase())?;
    if let Some(unit) = known
        .map(|known| known.unit)
        .filter(|unit| !unit.is_empty())
    {
        writeln!(out, "# UNIT {name} {unit}")?;
    }
    write!(out, "# HELP {name} ")?;
    escape(out, family.help());
    out.push('\n');
    for metric in family.get_metric() {
        match kind {
            MetricType::COUNTER => {
                sample(
                    out,
                    name,
                    "_total",
                    metric,
                    None,
                    metric.get_counter().get_value(),
                )?;
            }
            MetricType::HISTOGRAM => encode_histogram(out, name, metric)?,
            _ => sample(out, name, "", metric, None, metric.get_gauge().get_value())?,
        }
    }
    Ok(())
}

fn encode_histogram(out: &mut String, name: &str, metric: &Metric) -> fmt::Result {
    let histogram = metric.get_histogram();
    for bucket in histogram.get_bucket() {
        let bound = bucket.upper_bound().to_string();
        let count = bucket.cumulative_count() as f64;
        sample(out, name, "_bucket", metric, Some(&bound), count)?;
    }
    let count = histogram.get_sample_count() as f64;
    sample(out, name, "_bucket", metric, Some("+Inf"), count)?;
    sample(out, name, "_sum", metric, None, histogram.get_sample_sum())?;
    sample(out, name, "_count", metric, None, count)
}

fn sample(
    out: &mut String,
    name: &str,
    suffix: &str,
    metric: &Metric,
    bound: Option<&str>,
    value: f64,
) -> fmt::Result {
    write!(out, "{name}{suffix}")?;
    let pairs = metric
        .get_label()
        .iter()
        .map(|pair| (pair.name(), pair.value()));
    let mut open = '{';
    for (label, text) in pairs.chain(bound.map(|bound| ("le", bound))) {
        write!(out, "{open}{label}=\"")?;
        escape(out, text);
        out.push('"');
        open = ',';
    }
    if open == ',' {
        out.push('}');
    }
    writeln!(out, " {value}")
}

fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
}
