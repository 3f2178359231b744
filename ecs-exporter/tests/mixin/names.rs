//! No query names a series that nobody has.

use std::collections::{BTreeMap, BTreeSet};

use ecs_exporter::catalogue::{self, Kind};
use ecs_exporter::mixin::Thresholds;
use promql_parser::label::METRIC_NAME;
use promql_parser::parser::{self, Expr, VectorSelector};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_json::Value;

use crate::files;

/// Names that exist, with their labels where they are known.
fn known() -> BTreeMap<String, Option<BTreeSet<String>>> {
    let mut known = BTreeMap::from([("up".to_owned(), None), ("ALERTS".to_owned(), None)]);
    for family in catalogue::ALL {
        let mut labels: BTreeSet<String> = family
            .labels
            .iter()
            .map(|label| (*label).to_owned())
            .collect();
        labels.extend(["job".to_owned(), "instance".to_owned()]);
        if family.kind == Kind::Histogram {
            for suffix in ["_sum", "_count"] {
                known.insert(format!("{}{suffix}", family.name), Some(labels.clone()));
            }
            labels.insert("le".to_owned());
            known.insert(format!("{}_bucket", family.name), Some(labels));
        } else {
            known.insert(family.name.to_owned(), Some(labels));
        }
    }
    for rule in files::rules(&Thresholds::default(), "rules/recording.yaml") {
        known.insert(rule["record"].as_str().unwrap().to_owned(), None);
    }
    known
}

/// Collects the selectors of an expression.
#[derive(Default)]
struct Selectors(Vec<VectorSelector>);

impl ExprVisitor for Selectors {
    type Error = std::convert::Infallible;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, Self::Error> {
        match expr {
            Expr::VectorSelector(selector) => self.0.push(selector.clone()),
            Expr::MatrixSelector(matrix) => self.0.push(matrix.vs.clone()),
            _ => {}
        }
        Ok(true)
    }
}

/// Every query of rules, alerts, panels, annotations and variables, and where it stands.
pub(crate) fn queries() -> Vec<(String, String)> {
    let thresholds = Thresholds::default();
    let mut queries = Vec::new();
    let mut add = |place: &str, expr: &Value| {
        queries.push((place.to_owned(), expr.as_str().unwrap().to_owned()));
    };
    for path in ["rules/recording.yaml", "rules/alerts.yaml"] {
        for rule in files::rules(&thresholds, path) {
            add(path, &rule["expr"]);
        }
    }
    for (path, dashboard) in files::dashboards() {
        for panel in files::panels(&dashboard) {
            for target in panel["targets"].as_array().unwrap() {
                add(path, &target["expr"]);
            }
        }
        for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
            add(path, &annotation["expr"]);
        }
        for variable in dashboard["templating"]["list"].as_array().unwrap() {
            if let Some(query) = variable["query"]["query"].as_str() {
                let inside = query.strip_prefix("label_values(").unwrap();
                let (metric, _) = inside.rsplit_once(", ").unwrap();
                add(path, &metric.into());
            }
        }
    }
    queries
}

#[test]
fn no_query_names_a_series_or_label_that_does_not_exist() {
    let known = known();
    let mut used = BTreeSet::new();
    for (place, query) in queries() {
        let expr = parser::parse(&query.replace("$__rate_interval", "5m"))
            .unwrap_or_else(|error| panic!("{place}: {query}: {error}"));
        let mut selectors = Selectors::default();
        walk_expr(&mut selectors, &expr).unwrap();
        assert!(!selectors.0.is_empty(), "{place}: {query} selects nothing");
        for selector in selectors.0 {
            let name = selector.name.unwrap();
            let labels = known
                .get(&name)
                .unwrap_or_else(|| panic!("{place}: there is no {name}: {query}"));
            for matcher in &selector.matchers.matchers {
                let exists = labels.as_ref().is_none_or(|labels| {
                    matcher.name == METRIC_NAME || labels.contains(&matcher.name)
                });
                assert!(exists, "{place}: {name} has no label {}", matcher.name);
            }
            used.insert(name);
        }
    }
    for name in known.keys().filter(|name| name.contains(':')) {
        assert!(used.contains(name), "{name} is recorded for nobody");
    }
}
