//! Metric families while they are filled, and the units of the expositions.

use std::collections::HashMap;

use ecs_stats::{HISTOGRAM_BUCKETS, Histogram};
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};

use crate::catalogue::{Family, Kind};

/// The families of one scrape.
#[derive(Default)]
pub(crate) struct Families {
    families: Vec<MetricFamily>,
    /// Place of each family, by its name.
    places: HashMap<&'static str, usize>,
    series: usize,
}

impl Families {
    /// Number of series so far; a histogram counts as many as it is stored as.
    pub(crate) fn series(&self) -> usize {
        self.series
    }

    /// One series of a counter or gauge; label values in the order of the catalogue.
    pub(crate) fn add(&mut self, family: &'static Family, labels: &[&str], value: f64) {
        let mut metric = Metric::from_label(pairs(family, labels));
        if family.kind == Kind::Counter {
            let mut counter = proto::Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = proto::Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.push(family, metric, 1);
    }

    /// One histogram; label values in the order of the catalogue.
    pub(crate) fn histogram(
        &mut self,
        family: &'static Family,
        labels: &[&str],
        histogram: &Histogram,
    ) {
        let mut metric = Metric::from_label(pairs(family, labels));
        metric.set_histogram(cumulative(histogram));
        self.push(family, metric, HISTOGRAM_BUCKETS + 2);
    }

    pub(crate) fn into_vec(self) -> Vec<MetricFamily> {
        self.families
    }

    fn push(&mut self, family: &'static Family, metric: Metric, series: usize) {
        self.series += series;
        let place = *self.places.entry(family.name).or_insert_with(|| {
            self.families.push(empty(family));
            self.families.len() - 1
        });
        if let Some(family) = self.families.get_mut(place) {
            family.mut_metric().push(metric);
        }
    }
}

fn empty(family: &'static Family) -> MetricFamily {
    let mut out = MetricFamily::default();
    out.set_name(family.name.to_owned());
    out.set_help(family.help.to_owned());
    out.set_field_type(match family.kind {
        Kind::Counter => MetricType::COUNTER,
        Kind::Gauge => MetricType::GAUGE,
        Kind::Histogram => MetricType::HISTOGRAM,
    });
    out
}

fn pairs(family: &'static Family, values: &[&str]) -> Vec<LabelPair> {
    debug_assert_eq!(family.labels.len(), values.len(), "{}", family.name);
    let pair = |(name, value): (&&str, &&str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    family.labels.iter().zip(values).map(pair).collect()
}

/// Powers of two in nanoseconds become cumulative buckets in seconds. The last one holds everything
/// above: the encoders write it as `+Inf`, out of the count.
fn cumulative(histogram: &Histogram) -> proto::Histogram {
    let mut count = 0u64;
    let mut buckets = Vec::with_capacity(HISTOGRAM_BUCKETS);
    for (index, in_bucket) in histogram.buckets.iter().enumerate() {
        count = count.saturating_add(*in_bucket);
        if index + 1 == HISTOGRAM_BUCKETS {
            break;
        }
        let mut bucket = proto::Bucket::default();
        bucket.set_upper_bound(seconds(1 << index));
        bucket.set_cumulative_count(count);
        buckets.push(bucket);
    }
    let mut out = proto::Histogram::default();
    out.set_bucket(buckets);
    // The buckets, not the count beside them: both must agree or a scrape is refused.
    out.set_sample_count(count);
    out.set_sample_sum(seconds(histogram.sum_ns));
    out
}

pub(crate) const NS_PER_SECOND: f64 = 1e9;

pub(crate) fn seconds(ns: u64) -> f64 {
    ns as f64 / NS_PER_SECOND
}

pub(crate) fn truth(value: bool) -> f64 {
    f64::from(u8::from(value))
}
