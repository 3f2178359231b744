//! What the state looks like.

use ratatui::Frame as Screen;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, RenderDirection, Row, Sparkline, Table};

use super::app::{App, View};
use super::{help, printable};
use crate::live::{COLUMNS, Column, Frame, HostView, VmView};

/// Width of a column of figures.
const FIGURE: u16 = 8;
/// Least width of the names.
const NAME: u16 = 14;
/// Width of the state.
const STATE: u16 = 10;
/// Lines above the problems.
const HEAD: u16 = 3;
/// Columns of the bar that shows how busy the CPUs are.
const BAR: usize = 20;

impl App {
    /// Draws all of it.
    pub fn draw(&mut self, screen: &mut Screen<'_>) {
        let problems = self.frames.back().map_or(0, |frame| frame.problems.len());
        let problems = u16::try_from(problems).unwrap_or(u16::MAX);
        let head = match self.view {
            // It needs the room.
            View::Help => 0,
            _ => HEAD + problems,
        };
        let [head, body, foot] = Layout::vertical([
            Constraint::Length(head),
            Constraint::Min(1),
            Constraint::Length(1),
        ])
        .areas(screen.area());
        screen.render_widget(Paragraph::new(self.head()), head);
        match self.view.clone() {
            View::Table => self.draw_table(screen, body),
            View::Vm(name) => self.draw_vm(screen, body, &name),
            View::Help => screen.render_widget(Paragraph::new(help::lines().join("\n")), body),
        }
        screen.render_widget(Paragraph::new(self.foot()), foot);
    }

    fn colour(&self, severity: u8) -> Style {
        match severity {
            _ if !self.is_colourful && severity > 0 => Style::new().bold(),
            0 => Style::new(),
            1 => Style::new().fg(Color::Yellow),
            _ => Style::new().fg(Color::Red).bold(),
        }
    }

    fn head(&self) -> Vec<Line<'static>> {
        let Some(frame) = self.frames.back() else {
            return vec![Line::raw("ecs-exporter top: looking ...")];
        };
        let mut lines = vec![Line::from(vec![
            Span::raw("ecs-exporter top").bold(),
            Span::raw(if self.is_paused { " PAUSED" } else { "" }).bold(),
            Span::raw(format!(", every {}: {}", seconds(self.delay), facts(frame))),
        ])];
        lines.extend(summary(&frame.host).map(Line::raw));
        lines.extend(frame.problems.iter().map(|problem| {
            let text = format!("{}: {}", problem.collector, printable(&problem.text));
            Line::styled(text, self.colour(2))
        }));
        lines
    }

    fn foot(&self) -> Line<'static> {
        if self.is_typing {
            return Line::raw(format!("Filter: {}_", printable(&self.filter)));
        }
        let keys = match self.view {
            View::Table => "q quit  ? help  / filter  s sort  r turn  p pause  Enter one VM",
            View::Vm(_) => "q quit  ? help  Esc back  p pause",
            View::Help => {
                "any key goes back; colours are the thresholds of the alerts, - is not known"
            }
        };
        let filter = match self.filter.as_str() {
            "" => String::new(),
            filter => format!("  [filter: {}]", printable(filter)),
        };
        Line::styled(format!("{keys}{filter}"), Style::new().dim())
    }

    fn draw_table(&mut self, screen: &mut Screen<'_>, area: Rect) {
        let fitting = fitting(area.width);
        let columns = COLUMNS.get(..fitting).unwrap_or(COLUMNS);
        let is_wide = area.width > NAME + FIGURE * cells(fitting) + STATE;
        let rows: Vec<Row<'_>> = self
            .rows()
            .into_iter()
            .map(|vm| {
                let name = Cell::new(printable(&vm.name));
                let figures = columns.iter().map(|column| self.figure(column, vm));
                let state = is_wide.then(|| Cell::new(format!(" {}", vm.state)));
                Row::new([name].into_iter().chain(figures).chain(state))
            })
            .collect();
        let is_empty = rows.is_empty();
        let mut widths = vec![Constraint::Fill(1)];
        widths.extend(columns.iter().map(|_| Constraint::Length(FIGURE - 1)));
        widths.extend(is_wide.then_some(Constraint::Length(STATE)));
        let table = Table::new(rows, widths)
            .header(self.header(columns, is_wide))
            .column_spacing(1)
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        self.page = usize::from(area.height.saturating_sub(1)).max(1);
        screen.render_stateful_widget(table, area, &mut self.table);
        if is_empty && area.height > 2 {
            let [_, note] =
                Layout::vertical([Constraint::Length(2), Constraint::Min(1)]).areas(area);
            screen.render_widget(Paragraph::new(self.nothing()), note);
        }
    }

    fn nothing(&self) -> &'static str {
        match (self.frames.back(), self.filter.as_str()) {
            (None, _) => "",
            (Some(frame), _) if frame.vms.is_empty() => "No VMs here yet.",
            (Some(_), "") => "",
            (Some(_), _) => "No VM passes the filter.",
        }
    }

    fn header(&self, columns: &[Column], is_wide: bool) -> Row<'static> {
        let mark = |place: Option<usize>| {
            let style = Style::new().bold().underlined();
            if self.sort == place {
                style.reversed()
            } else {
                style
            }
        };
        let name = Cell::new("VM").style(mark(None));
        let figures = columns.iter().enumerate().map(|(place, column)| {
            let title = Line::raw(column.title).right_aligned();
            Cell::new(title).style(mark(Some(place)))
        });
        let state = is_wide.then(|| Cell::new(" STATE").style(Style::new().bold().underlined()));
        Row::new([name].into_iter().chain(figures).chain(state))
    }

    fn figure(&self, column: &Column, vm: &VmView) -> Cell<'static> {
        let text = Line::raw(column.text(vm)).right_aligned();
        Cell::new(text).style(self.colour(column.severity(vm)))
    }

    /// One VM: each figure with its last values.
    fn draw_vm(&self, screen: &mut Screen<'_>, area: Rect, name: &str) {
        let found = self.frames.back().and_then(|frame| find(frame, name));
        let title = match found {
            Some(vm) => {
                let weight = vm.weight.map(|weight| format!(", weight {weight}"));
                let (vcpus, weight) = (vm.vcpus, weight.unwrap_or_default());
                format!(
                    "VM {}: {}, {vcpus} vCPUs{weight}",
                    printable(name),
                    vm.state
                )
            }
            None => format!("VM {}: gone", printable(name)),
        };
        let [head, body] =
            Layout::vertical([Constraint::Length(2), Constraint::Min(0)]).areas(area);
        screen.render_widget(Paragraph::new(title).style(Style::new().bold()), head);
        // Two lines each where there is room.
        let drawn = COLUMNS.len() - 1;
        let height = if usize::from(body.height) >= drawn * 2 {
            2
        } else {
            1
        };
        let rows = Layout::vertical(vec![Constraint::Length(height); drawn]).split(body);
        for (column, row) in COLUMNS.iter().zip(rows.iter()) {
            self.draw_figure(screen, *row, column, name, found);
        }
    }

    fn draw_figure(
        &self,
        screen: &mut Screen<'_>,
        area: Rect,
        column: &Column,
        name: &str,
        now: Option<&VmView>,
    ) {
        let [label, graph] =
            Layout::horizontal([Constraint::Length(20), Constraint::Min(0)]).areas(area);
        let (text, severity) = now.map_or_else(
            || ("-".to_owned(), 0),
            |vm| (column.text(vm), column.severity(vm)),
        );
        let line = Line::from(vec![
            Span::raw(format!("{:<9}", column.title)),
            Span::styled(format!("{text:>9}"), self.colour(severity)),
        ]);
        screen.render_widget(line, label);
        let values: Vec<Option<u64>> = self
            .frames
            .iter()
            .rev()
            .map(|frame| find(frame, name).and_then(column.value).map(height))
            .collect();
        // The newest at the right edge.
        let spark = Sparkline::default()
            .data(values)
            .direction(RenderDirection::RightToLeft);
        screen.render_widget(spark, graph);
    }
}

fn find<'a>(frame: &'a Frame, name: &str) -> Option<&'a VmView> {
    frame.vms.iter().find(|vm| vm.name == name)
}

/// A sparkline draws whole numbers, and nothing below 0.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn height(value: f64) -> u64 {
    (value.abs() * 1e4) as u64
}

/// Number of columns that a width has room for.
fn fitting(width: u16) -> usize {
    usize::from(width.saturating_sub(NAME) / FIGURE).clamp(1, COLUMNS.len())
}

fn cells(count: usize) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}

fn seconds(time: std::time::Duration) -> String {
    format!("{} s", time.as_secs_f64())
}

/// What does not change.
pub(super) fn facts(frame: &Frame) -> String {
    let host = &frame.host;
    let mut parts = vec![format!(
        "{} VMs, {} vCPUs, {} CPUs",
        frame.vms.len(),
        host.vcpus,
        host.cpus
    )];
    if !host.controller.is_empty() {
        parts.push(host.controller.clone());
    }
    if !host.kernel.is_empty() {
        parts.push(format!("Linux {}", host.kernel));
    }
    parts.join(", ")
}

/// The host in two lines, its CPUs and its extensions; what is not known is left out.
pub(super) fn summary(host: &HostView) -> [String; 2] {
    let percent =
        |name: &str, value: Option<f64>| value.map(|value| format!("{name} {:.1}%", value * 100.0));
    let rate = |name: &str, value: Option<f64>| value.map(|value| format!("{name} {value:.0}/s"));
    let used = host
        .used
        .map(|used| format!("CPU [{}] {:.1}%", bar(used), used * 100.0));
    let debt = host
        .debt_seconds
        .map(|debt| format!("debt {:.2} ms", debt * 1000.0));
    let jain = host.jain.map(|jain| format!("Jain {jain:.3}"));
    let join = |parts: Vec<Option<String>>| {
        let known: Vec<String> = parts.into_iter().flatten().collect();
        known.join("  ")
    };
    [
        join(vec![used, percent("ready", host.ready), jain]),
        join(vec![
            rate("grants", host.grants),
            percent("avoided", host.avoided),
            rate("critical preemptions", host.critical),
            debt,
        ]),
    ]
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn bar(part: f64) -> String {
    let full = ((part * BAR as f64).round() as usize).min(BAR);
    format!("{}{}", "|".repeat(full), " ".repeat(BAR - full))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyCode, KeyEvent};

    use super::*;
    use crate::live::Problem;
    use crate::live::tests::frames;
    use crate::top::Setup;

    fn app(count: u64, keys: &str) -> App {
        let mut app = App::new(&Setup::default());
        frames(count).into_iter().for_each(|frame| app.push(frame));
        for c in keys.chars() {
            let code = if c == '\n' {
                KeyCode::Enter
            } else {
                KeyCode::Char(c)
            };
            app.key(KeyEvent::from(code));
        }
        app
    }

    /// What a terminal of that size shows, trailing blanks cut off.
    fn screen(app: &mut App, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|screen| app.draw(screen)).unwrap();
        let text = terminal.backend().to_string();
        let lines = text.lines().map(|line| line.trim_matches('"').trim_end());
        lines.map(str::to_owned).collect()
    }

    /// Compares with a snapshot; `ECS_WRITE_SNAPSHOTS` writes it anew.
    fn assert_screen(shown: &[String], name: &str, snapshot: &str) {
        if std::env::var_os("ECS_WRITE_SNAPSHOTS").is_some() {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/top/snapshots");
            std::fs::write(format!("{folder}/{name}.txt"), shown.join("\n") + "\n").unwrap();
        }
        let wanted: Vec<&str> = snapshot.lines().collect();
        assert_eq!(shown, wanted, "\n{}\n", shown.join("\n"));
    }

    #[test]
    fn a_usual_terminal() {
        let shown = screen(&mut app(2, "D"), 80, 9);
        assert_screen(&shown, "table-80", include_str!("snapshots/table-80.txt"));
    }

    #[test]
    fn a_wide_terminal_has_every_column() {
        let shown = screen(&mut app(2, ""), 132, 9);
        assert_screen(&shown, "table-132", include_str!("snapshots/table-132.txt"));
    }

    #[test]
    fn one_vm_over_time() {
        let shown = screen(&mut app(30, "D\n"), 80, 30);
        assert_screen(&shown, "vm", include_str!("snapshots/vm.txt"));
    }

    #[test]
    fn the_help_fits_a_usual_terminal() {
        let shown = screen(&mut app(2, "?"), 80, 24);
        assert_screen(&shown, "help", include_str!("snapshots/help.txt"));
    }

    #[test]
    fn colours_are_the_thresholds_of_the_alerts() {
        let mut app = app(2, "D");
        let mut terminal = Terminal::new(TestBackend::new(80, 9)).unwrap();
        terminal.draw(|screen| app.draw(screen)).unwrap();
        let colour = |x, y| terminal.backend().buffer()[(x, y)].fg;
        // db is starved and waits; web has more than its share.
        let row = |y: u16| (0..80).map(|x| colour(x, y)).collect::<Vec<_>>();
        assert!(row(4).contains(&Color::Red));
        assert!(row(5).contains(&Color::Yellow) && !row(5).contains(&Color::Red));
    }

    #[test]
    fn names_cannot_command_the_terminal_and_problems_are_told() {
        let mut app = app(2, "");
        let mut frame = app.frames.back().unwrap().clone();
        for vm in &mut frame.vms {
            vm.name = format!("\x1b[2J\n{}", vm.name);
        }
        frame.problems.push(Problem {
            collector: "perf",
            text: "no\x07thing".into(),
        });
        app.push(frame);
        let shown = screen(&mut app, 80, 9).join("\n");
        assert!(shown.contains("\u{fffd}[2J\u{fffd}web"), "{shown}");
        assert!(shown.contains("perf: no\u{fffd}thing"), "{shown}");
        assert!(!shown.contains(['\x1b', '\x07']));
    }

    #[test]
    fn every_size_can_be_drawn() {
        for keys in ["", "?", "\n", "/x", "/x\n"] {
            for (width, height) in [(1, 1), (3, 2), (10, 4), (20, 3), (400, 100)] {
                screen(&mut app(3, keys), width, height);
            }
        }
        let shown = screen(&mut App::new(&Setup::default()), 40, 3);
        assert_eq!(shown.first().unwrap(), "ecs-exporter top: looking ...");
        let mut none = App::new(&Setup::default());
        none.push(Frame::default());
        assert!(
            screen(&mut none, 40, 9)
                .join("")
                .contains("No VMs here yet.")
        );
    }
}
