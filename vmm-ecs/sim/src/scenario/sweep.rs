//! `[sweep]`: one file, many scenarios.

use serde::Deserialize;
use toml::{Table, Value};

use super::{MAX_POINTS, Scenario, ScenarioError};

/// One scenario of a sweep.
#[derive(Debug, Clone)]
pub struct Point {
    /// What it differs in: path in the file and value; nothing in a file without a sweep.
    pub at: Vec<(String, String)>,
    /// The whole scenario.
    pub scenario: Scenario,
}

/// Reads a scenario file: every combination of what its `[sweep]` lists, the last key varying fastest.
/// A key is a path in the file, `"policy.slice_us"` or `"vm.0.count"`; its value is a list.
///
/// # Errors
/// What is wrong with the file, or with the first scenario of it that is wrong.
pub fn points(text: &str) -> Result<Vec<Point>, ScenarioError> {
    let parse = |error| ScenarioError::Parse(Box::new(error));
    let mut file: Table = toml::from_str(text).map_err(parse)?;
    let Some(sweep) = file.remove("sweep") else {
        // From the text, so that an error says where.
        let scenario = text.parse()?;
        return Ok(vec![Point {
            at: Vec::new(),
            scenario,
        }]);
    };
    let axes = Vec::<(String, Vec<Value>)>::from_iter(
        std::collections::BTreeMap::deserialize(sweep).map_err(parse)?,
    );
    let nr_points = axes
        .iter()
        .try_fold(1usize, |product, (_, values)| {
            product.checked_mul(values.len())
        })
        .unwrap_or(usize::MAX);
    if !(1..=MAX_POINTS).contains(&nr_points) {
        return Err(ScenarioError::SweepSize(nr_points));
    }
    (0..nr_points)
        .map(|mut number| {
            let mut file = file.clone();
            let mut at = Vec::new();
            for (path, values) in axes.iter().rev() {
                let Some(value) = values.get(number % values.len()) else {
                    continue;
                };
                number /= values.len();
                *place(&mut file, path).ok_or_else(|| ScenarioError::SweepPath(path.clone()))? =
                    value.clone();
                at.insert(0, (path.clone(), value.to_string()));
            }
            let scenario = Scenario::deserialize(file).map_err(parse)?;
            scenario.check()?;
            Ok(Point { at, scenario })
        })
        .collect()
}

/// The value at a path. The tables on the way are made; a `[[vm]]` on the way must be there.
fn place<'a>(file: &'a mut Table, path: &str) -> Option<&'a mut Value> {
    let mut words = path.split('.');
    let mut found = file
        .entry(words.next()?)
        .or_insert_with(|| Value::Table(Table::new()));
    for word in words {
        found = match found {
            Value::Table(table) => table
                .entry(word)
                .or_insert_with(|| Value::Table(Table::new())),
            Value::Array(array) => array.get_mut(word.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: &str =
        "[[vm]]\nvcpus = 2\nworkload = { kind = \"compute\", in_us = 5, out_us = 5 }\n";

    #[test]
    fn every_combination_is_one_scenario() {
        let text = format!(
            "[sweep]\n\"vm.0.count\" = [1, 2]\n\"policy.slice_us\" = [1000, 3000, 5000]\n{VM}"
        );
        let found = points(&text).unwrap();
        let at: Vec<_> = found
            .iter()
            .map(|point| (point.scenario.policy.slice_us, point.scenario.vms[0].count))
            .collect();
        assert_eq!(
            at,
            [
                (1000, 1),
                (1000, 2),
                (3000, 1),
                (3000, 2),
                (5000, 1),
                (5000, 2)
            ]
        );
        assert_eq!(found[1].at[1], ("vm.0.count".to_owned(), "2".to_owned()));
    }

    #[test]
    fn a_file_without_a_sweep_is_one_scenario() {
        assert_eq!(points(VM).unwrap().len(), 1);
    }

    #[test]
    fn what_cannot_be_swept_is_named() {
        for (sweep, part) in [
            ("\"vm.7.count\" = [1]", "vm.7.count"),
            ("\"policy.slice\" = [1]", "slice"),
            ("\"policy.slice_us\" = []", "0 points"),
            ("\"seed.x\" = [1]", "seed.x"),
        ] {
            let error = points(&format!("seed = 1\n[sweep]\n{sweep}\n{VM}")).unwrap_err();
            let source = std::error::Error::source(&error).map(ToString::to_string);
            let said = format!("{error}: {}", source.unwrap_or_default());
            assert!(said.contains(part), "{sweep}: {said}");
        }
    }
}
