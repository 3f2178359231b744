//! Plots of bars and of lines as inline SVG, their colours and their legends.
//!
//! Plots are drawn in the colours of the light theme; a style sheet exchanges them, by value, where
//! the reader prefers dark.

use std::error::Error;
use std::fmt::Write;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::text::{escape, tick};

/// A colour: as drawn, and in its place on a dark page.
#[derive(Clone, Copy)]
pub(crate) struct Paint(pub(crate) RGBColor, RGBColor);

pub(crate) const INK: Paint = Paint(RGBColor(0x1f, 0x1f, 0x1d), RGBColor(0xf0, 0xef, 0xea));
const MUTED: Paint = Paint(RGBColor(0x5f, 0x5e, 0x5a), RGBColor(0xb0, 0xaf, 0xa8));
const GRID: Paint = Paint(RGBColor(0xe3, 0xe2, 0xdd), RGBColor(0x3a, 0x3a, 0x37));
const SURFACE: Paint = Paint(RGBColor(0xfd, 0xfd, 0xfc), RGBColor(0x20, 0x20, 0x1e));
pub(crate) const NEUTRAL: Paint = Paint(RGBColor(0x94, 0x93, 0x8d), RGBColor(0x84, 0x83, 0x7d));
pub(crate) const ECS: Paint = Paint(RGBColor(0x2a, 0x78, 0xd6), RGBColor(0x39, 0x87, 0xe5));
pub(crate) const CRITICAL: Paint = Paint(RGBColor(0xe3, 0x48, 0x48), RGBColor(0xe6, 0x66, 0x66));
/// Lines of the VMs, in their order; VMs beyond them share `NEUTRAL`.
pub(crate) const VMS: [Paint; 6] = [
    ECS,
    Paint(RGBColor(0xeb, 0x68, 0x34), RGBColor(0xd9, 0x59, 0x26)),
    Paint(RGBColor(0x1b, 0xaf, 0x7a), RGBColor(0x19, 0x9e, 0x70)),
    Paint(RGBColor(0x4a, 0x3a, 0xa7), RGBColor(0x90, 0x85, 0xe9)),
    Paint(RGBColor(0xed, 0xa1, 0x00), RGBColor(0xc9, 0x85, 0x00)),
    Paint(RGBColor(0xe8, 0x7b, 0xa4), RGBColor(0xd5, 0x51, 0x81)),
];

/// Sizes of plots, in units of their own; shown smaller, as coordinates are integers.
const BARS_WIDTH: u32 = 700;
const PANEL: (u32, u32) = (600, 400);
/// Shapes of a legend: SVG paths in a box of 12 by 12.
pub(crate) const SQUARE: &str = "M0 0h12v12H0z";
pub(crate) const DOT: &str = "M6 2a4 4 0 1 0 .01 0z";
pub(crate) const MARK: &str = "M5 0h2v12H5z";
pub(crate) const DASH: &str = "M0 4h12v4H0z";
/// Size plotters writes as 24 units: it divides by 1.24.
const FONT: (&str, f64) = ("sans-serif", 29.76);

/// A group of bars with a line of text above.
pub(crate) struct Row {
    pub(crate) label: String,
    /// Length, colour, and dots beside it.
    pub(crate) bars: Vec<(f64, Paint, Vec<f64>)>,
}

/// Heights of a bar, of the text above it and of the axis, in units of the plot.
const BAR: u32 = 34;
const LABEL: u32 = 52;
const AXIS: u32 = 48;

/// Horizontal bars, with a mark at the limit.
pub(crate) fn bars_figure(what: &str, rows: &[Row], limit: Option<f64>) -> String {
    let labels: Vec<&str> = rows.iter().map(|row| row.label.as_str()).collect();
    let size = (BARS_WIDTH, rows.iter().map(row_height).sum::<u32>() + AXIS);
    let alt = format!("{what}. {}", labels.join("; "));
    figure(&alt, size, |root| draw_bars(root, rows, limit))
}

fn row_height(row: &Row) -> u32 {
    row.bars.iter().map(|_| BAR + 4).sum::<u32>() + LABEL + 14
}

type Drawing = Result<(), Box<dyn Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw_bars(root: &Area<'_>, rows: &[Row], limit: Option<f64>) -> Drawing {
    let bars = || rows.iter().flat_map(|row| &row.bars);
    let top = bars()
        .flat_map(|(value, _, dots)| dots.iter().chain([value]))
        .chain(&limit);
    let top = top
        .copied()
        .filter(|value| value.is_finite())
        .fold(0.0, f64::max);
    let end = if top > 0.0 { top * 1.02 } else { 1.0 };
    let depth = f64::from(rows.iter().map(row_height).sum::<u32>());
    let mut chart = ChartBuilder::on(root)
        .margin_left(12)
        .margin_right(40)
        .x_label_area_size(AXIS)
        .build_cartesian_2d(0.0..end, depth.max(1.0)..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_labels(5)
        .x_label_formatter(&|value| tick(*value))
        .x_label_style(FONT.into_font().color(&MUTED.0))
        .axis_style(MUTED.0.stroke_width(2))
        .bold_line_style(GRID.0.stroke_width(2))
        .light_line_style(TRANSPARENT)
        .draw()?;
    let mut y = 0.0;
    for row in rows {
        let ink = FONT
            .into_font()
            .color(&INK.0)
            .pos(Pos::new(HPos::Left, VPos::Center));
        chart.draw_series([Text::new(row.label.clone(), (0.0, y + 34.0), ink)])?;
        y += f64::from(LABEL);
        for (value, paint, dots) in &row.bars {
            let (upper, lower) = (y, y + f64::from(BAR));
            let length = if value.is_finite() {
                value.max(0.0)
            } else {
                0.0
            };
            chart.draw_series([Rectangle::new(
                [(0.0, upper), (length, lower)],
                paint.0.filled(),
            )])?;
            if let Some(limit) = limit.filter(|limit| limit.is_finite()) {
                let mark = [(limit, upper - 6.0), (limit, lower + 6.0)];
                chart.draw_series([PathElement::new(mark, INK.0.stroke_width(4))])?;
            }
            let middle = f64::midpoint(upper, lower);
            for dot in dots.iter().filter(|dot| dot.is_finite()) {
                // A ring in the colour of the page keeps dots apart from the bar and each other.
                chart.draw_series([
                    Circle::new((*dot, middle), 10, SURFACE.0.filled()),
                    Circle::new((*dot, middle), 7, INK.0.filled()),
                ])?;
            }
            y = lower + 4.0;
        }
        y += 14.0;
    }
    Ok(())
}

/// Lines over seconds from 0 to `seconds`, in ms around a straight line at 0; one a VM, in order.
pub(crate) fn lines_figure(
    alt: &str,
    lines: &[Vec<(f64, f64)>],
    seconds: f64,
    widest_ms: f64,
) -> String {
    figure(alt, PANEL, |root| {
        draw_lines(root, lines, seconds, widest_ms)
    })
}

fn draw_lines(root: &Area<'_>, lines: &[Vec<(f64, f64)>], seconds: f64, widest_ms: f64) -> Drawing {
    let mut chart = ChartBuilder::on(root)
        .margin_top(20)
        .margin_right(30)
        .x_label_area_size(AXIS)
        .y_label_area_size(90)
        .build_cartesian_2d(0.0..seconds, -widest_ms * 1.05..widest_ms * 1.05)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(5)
        .y_labels(5)
        .x_label_formatter(&|value| tick(*value))
        .y_label_formatter(&|value| tick(*value))
        .label_style(FONT.into_font().color(&MUTED.0))
        .axis_style(GRID.0.stroke_width(2))
        .bold_line_style(GRID.0.stroke_width(2))
        .light_line_style(TRANSPARENT)
        .draw()?;
    let fair = [(0.0, 0.0), (seconds, 0.0)];
    chart.draw_series([PathElement::new(fair, MUTED.0.stroke_width(3))])?;
    for (index, line) in lines.iter().enumerate() {
        let paint = VMS.get(index).copied().unwrap_or(NEUTRAL);
        chart.draw_series(LineSeries::new(
            line.iter().copied(),
            paint.0.stroke_width(4),
        ))?;
    }
    Ok(())
}

/// One SVG, with its text for who cannot see it.
fn figure(alt: &str, size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Drawing) -> String {
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    let drawn = draw(&root).and_then(|()| Ok(root.present()?));
    drop(root);
    if let Err(error) = drawn {
        let error = escape(&error.to_string());
        return format!("<p class=\"note\">Cannot draw this plot: {error}.</p>");
    }
    let alt = escape(alt);
    let named = format!("<svg role=\"img\" aria-label=\"{alt}\"");
    format!("<figure>{}</figure>", svg.replacen("<svg", &named, 1))
}

/// An entry of a legend.
pub(crate) fn key(shape: &str, paint: Paint, text: &str) -> String {
    let (fill, text) = (hex(paint.0), escape(text));
    format!(
        "<li><svg viewBox=\"0 0 12 12\" aria-hidden=\"true\"><path d=\"{shape}\" \
         fill=\"{fill}\"/></svg>{text}</li>"
    )
}

/// What colours and shapes mean.
pub(crate) fn legend(keys: &[String]) -> String {
    format!("<ul class=\"key\">{}</ul>", keys.concat())
}

/// Exchanges the colours of the plots on a dark page.
pub(super) fn dark_plots() -> String {
    let mut css = "@media (prefers-color-scheme:dark){".to_owned();
    for Paint(light, dark) in [INK, MUTED, GRID, SURFACE, NEUTRAL, CRITICAL]
        .iter()
        .chain(&VMS)
    {
        let (light, dark) = (hex(*light), hex(*dark));
        let _ = write!(
            css,
            "svg [fill=\"{light}\"]{{fill:{dark}}}svg [stroke=\"{light}\"]{{stroke:{dark}}}"
        );
    }
    css + "}"
}

/// A colour as plotters writes it.
pub(crate) fn hex(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}
