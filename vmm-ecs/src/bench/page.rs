//! The result as one HTML page with plots; it loads nothing and runs no script.

use std::fmt::Write;

use super::cell::{Cell, FileFound, Found};
use super::tables::{self, Table, label};
use super::{paper, summary};
use crate::demo::Arm;
use crate::demo::html;
use crate::demo::html::plot::{ECS, INK, MARK, NEUTRAL, Row, SQUARE, bars_figure, key, legend};
use crate::demo::html::text::{escape, number, table_of};

/// The whole page.
pub(super) fn render(found: &Found) -> String {
    let mut page = html::begin("eCS benchmark");
    let _ = write!(
        page,
        "<h1>eCS benchmark</h1><p class=\"lead\">{}</p>{}",
        escape(&summary::machine(found)),
        sentences(&summary::limit(found)),
    );
    for table in [paper::table(found), tables::bars(found)] {
        let _ = write!(page, "<section><h2>{}</h2>", escape(&table.title));
        page += &table_html(&table);
        page += "</section>\n";
    }
    for file in &found.files {
        let table = tables::of_file(file);
        let _ = write!(page, "<section><h2>{}</h2>", escape(&table.title));
        let _ = write!(page, "<div class=\"pair\">{}</div>", plot(file));
        page += &table_html(&table);
        page += "</section>\n";
    }
    page + html::END
}

/// Markdown of sentences and one list, as HTML.
fn sentences(markdown: &str) -> String {
    let lines = markdown.lines().filter(|line| !line.is_empty());
    let html = lines.map(|line| match line.strip_prefix("- ") {
        Some(item) => format!("<li>{}</li>", escape(item)),
        None => format!("<p>{}</p>", escape(line)),
    });
    html.collect::<String>().replacen("<li>", "<ul><li>", 1)
        + if markdown.contains("- ") { "</ul>" } else { "" }
}

fn table_html(table: &Table) -> String {
    let head: Vec<&str> = table.head.iter().map(String::as_str).collect();
    table_of(&escape(&table.title), &head, &table.rows)
}

/// Throughput of every arm of every scenario, of the limit where it is known, else of the best arm's.
fn plot(file: &FileFound) -> String {
    let rows: Vec<Row> = file.cells.iter().flat_map(rows).collect();
    let keys = [
        key(SQUARE, ECS, "eCS, median"),
        key(SQUARE, NEUTRAL, "other arms, median; dots are runs"),
        key(MARK, INK, "the limit: one VM alone, or the best arm"),
    ];
    legend(&keys) + &bars_figure("Throughput, of the limit", &rows, Some(1.0))
}

fn rows(cell: &Cell) -> Vec<Row> {
    let best = cell.arms.iter().map(|arm| arm.median_ops_per_s());
    let limit = cell
        .alone_ops_per_s
        .unwrap_or_else(|| best.fold(0.0, f64::max))
        .max(f64::MIN_POSITIVE);
    let name = label(&cell.scenario);
    let of_arm = |arm: &super::cell::ArmFound| {
        let median = arm.median_ops_per_s();
        let paint = if arm.arm == Arm::Ecs { ECS } else { NEUTRAL };
        Row {
            label: format!("{name}, {}: {}", arm.arm.title(), number(median)),
            bars: vec![(
                median / limit,
                paint,
                arm.ops_per_s.iter().map(|ops| ops / limit).collect(),
            )],
        }
    };
    cell.arms.iter().map(of_arm).collect()
}
