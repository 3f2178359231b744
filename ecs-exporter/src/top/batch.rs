//! The table as text, for pipes and files.

use std::fmt::Write;

use ratatui::text::Span;

use super::app::App;
use super::draw::{facts, summary};
use super::{Setup, printable};
use crate::live::{COLUMNS, Frame};

/// A frame as text with every column, ended by an empty line. The order is that of `setup`.
#[must_use]
pub fn batch(frame: &Frame, setup: &Setup) -> String {
    let mut app = App::new(setup);
    app.push(frame.clone());
    let rows: Vec<_> = app
        .rows()
        .into_iter()
        .map(|vm| (printable(&vm.name), vm))
        .collect();
    let width = |text: &str| Span::raw(text).width();
    let names = rows.iter().map(|(name, _)| width(name));
    let names = names.max().unwrap_or(0).max("VM".len());
    let mut out = format!(
        "{}.{:03} {}\n",
        frame.time_ms / 1000,
        frame.time_ms % 1000,
        facts(frame)
    );
    // Writing to a String cannot fail.
    for line in summary(&frame.host).iter().filter(|line| !line.is_empty()) {
        let _ = writeln!(out, "{line}");
    }
    for problem in &frame.problems {
        let _ = writeln!(out, "{}: {}", problem.collector, printable(&problem.text));
    }
    let _ = write!(out, "VM{}", " ".repeat(names - 2));
    for column in COLUMNS {
        let _ = write!(out, " {:>9}", column.title);
    }
    let _ = writeln!(out, " STATE");
    for (name, vm) in rows {
        // Not by format!: it counts characters, and some take two places.
        let _ = write!(out, "{name}{}", " ".repeat(names - width(&name)));
        for column in COLUMNS {
            let _ = write!(out, " {:>9}", column.text(vm));
        }
        let _ = writeln!(out, " {}", vm.state);
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::live::tests::frames;

    #[test]
    fn every_column_is_written() {
        let frame = frames(2).pop().unwrap();
        let setup = Setup {
            sort: "deviation".into(),
            ..Setup::default()
        };
        let text = batch(&frame, &setup);
        assert_eq!(text, include_str!("snapshots/batch.txt"), "\n{text}");
    }

    #[test]
    fn wide_names_keep_the_columns_straight() {
        let mut frame = frames(2).pop().unwrap();
        frame.vms.first_mut().unwrap().name = "虚拟机\n一".into();
        let text = batch(&frame, &Setup::default());
        let ends: Vec<usize> = text
            .lines()
            .filter(|line| line.ends_with("active"))
            .map(|line| Span::raw(line.to_owned()).width())
            .collect();
        assert_eq!(ends.len(), 2, "{text}");
        assert_eq!(ends.first(), ends.last(), "{text}");
    }
}
