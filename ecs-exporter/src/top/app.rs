//! State of the terminal, and what keys do to it.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::widgets::TableState;
use regex::{Regex, RegexBuilder};

use crate::live::{COLUMNS, Frame, VmView};

/// Frames that are kept for the view of one VM.
const HISTORY: usize = 240;

/// Pauses between two looks that `+` and `-` go through.
const PAUSES: [Duration; 6] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
];

/// How it begins.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Time between two looks.
    pub delay: Duration,
    /// Column to sort by: `name` or a field of a VM; the default if there is none such.
    pub sort: String,
    /// Part of the names of VMs to show.
    pub filter: String,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            delay: Duration::from_secs(2),
            sort: "share".to_owned(),
            filter: String::new(),
        }
    }
}

/// What is on the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum View {
    /// All VMs.
    Table,
    /// One VM, by name.
    Vm(String),
    /// The keys.
    Help,
}

/// State of the terminal.
#[derive(Debug)]
pub struct App {
    pub(super) frames: VecDeque<Frame>,
    pub(super) view: View,
    /// Column the table is sorted by, `None` for the name.
    pub(super) sort: Option<usize>,
    pub(super) is_reversed: bool,
    pub(super) filter: String,
    /// Whether keys go into the filter.
    pub(super) is_typing: bool,
    pub(super) is_paused: bool,
    pub(super) delay: Duration,
    pub(super) table: TableState,
    /// Rows on the screen when it was drawn last.
    pub(super) page: usize,
    pub(super) is_colourful: bool,
    /// Name of the VM under the cursor: it stays there when the order changes.
    selected: Option<String>,
    has_ended: bool,
}

impl App {
    /// The state before the first frame.
    #[must_use]
    pub fn new(setup: &Setup) -> Self {
        Self {
            frames: VecDeque::new(),
            view: View::Table,
            sort: sort_column(&setup.sort).unwrap_or(Some(0)),
            is_reversed: false,
            filter: setup.filter.clone(),
            is_typing: false,
            is_paused: false,
            delay: setup.delay,
            table: TableState::default(),
            page: 10,
            is_colourful: true,
            selected: None,
            has_ended: false,
        }
    }

    /// Whether it was told to end.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Time between two looks.
    #[must_use]
    pub fn delay(&self) -> Duration {
        self.delay
    }

    /// Shows in colour, or not.
    pub fn set_colourful(&mut self, colourful: bool) {
        self.is_colourful = colourful;
    }

    /// Takes a frame; none while paused.
    pub fn push(&mut self, frame: Frame) {
        if self.is_paused {
            return;
        }
        if self.frames.len() == HISTORY {
            self.frames.pop_front();
        }
        self.frames.push_back(frame);
        self.follow();
    }

    /// VMs of the last frame that pass the filter, in order.
    pub(super) fn rows(&self) -> Vec<&VmView> {
        let filter = Filter::new(&self.filter);
        let vms = self.frames.back().map_or(&[][..], |frame| &frame.vms);
        let mut rows: Vec<&VmView> = vms.iter().filter(|vm| filter.has(&vm.name)).collect();
        rows.sort_by(|a, b| self.order(a, b));
        rows
    }

    fn order(&self, a: &VmView, b: &VmView) -> Ordering {
        let by_name = || a.name.cmp(&b.name);
        let Some(column) = self.sort.and_then(|sort| COLUMNS.get(sort)) else {
            let order = by_name();
            return if self.is_reversed {
                order.reverse()
            } else {
                order
            };
        };
        match ((column.value)(a), (column.value)(b)) {
            (Some(a), Some(b)) => {
                let order = a.total_cmp(&b);
                if column.ascending == self.is_reversed {
                    order.reverse()
                } else {
                    order
                }
            }
            // What is not known comes last, in either order.
            (a, b) => b.is_some().cmp(&a.is_some()),
        }
        .then_with(by_name)
    }

    /// Puts the cursor where its VM is now.
    fn follow(&mut self) {
        let rows = self.rows();
        let found = self
            .selected
            .as_ref()
            .and_then(|name| rows.iter().position(|vm| vm.name == *name));
        let last = rows.len().checked_sub(1);
        let row = last.map(|last| {
            let here = found.or(self.table.selected()).unwrap_or(0);
            here.min(last)
        });
        self.table.select(row);
    }

    fn go_to(&mut self, row: usize) {
        let rows = self.rows();
        let row = row.min(rows.len().saturating_sub(1));
        let name = rows.get(row).map(|vm| vm.name.clone());
        self.table.select(name.as_ref().map(|_| row));
        self.selected = name;
    }

    /// Does what a key means.
    pub fn key(&mut self, key: KeyEvent) {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            if key.code == KeyCode::Char('c') {
                self.has_ended = true;
            }
            return;
        }
        if self.is_typing {
            self.type_filter(key.code);
            return;
        }
        match (&self.view, key.code) {
            (_, KeyCode::Char('q')) => self.has_ended = true,
            (View::Table, KeyCode::Esc) => {
                self.filter.clear();
                self.follow();
            }
            (_, KeyCode::Esc | KeyCode::Backspace) => self.view = View::Table,
            (View::Help, _) => self.view = View::Table,
            (_, KeyCode::Char('?' | 'h') | KeyCode::F(1)) => self.view = View::Help,
            (_, KeyCode::Char('p' | ' ')) => self.is_paused = !self.is_paused,
            (_, KeyCode::Char('+')) => self.change_delay(1),
            (_, KeyCode::Char('-')) => self.change_delay(-1),
            (View::Vm(_), _) => {}
            (View::Table, code) => self.table_key(code),
        }
    }

    fn table_key(&mut self, code: KeyCode) {
        let row = self.table.selected().unwrap_or(0);
        match code {
            KeyCode::Up | KeyCode::Char('k') => self.go_to(row.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.go_to(row + 1),
            KeyCode::PageUp => self.go_to(row.saturating_sub(self.page)),
            KeyCode::PageDown => self.go_to(row + self.page),
            KeyCode::Home | KeyCode::Char('g') => self.go_to(0),
            KeyCode::End => self.go_to(usize::MAX),
            KeyCode::Enter => {
                let name = self.rows().get(row).map(|vm| vm.name.clone());
                if let Some(name) = name {
                    self.selected = Some(name.clone());
                    self.view = View::Vm(name);
                }
            }
            KeyCode::Char('/' | 'f') => self.is_typing = true,
            KeyCode::Char('r') => self.is_reversed = !self.is_reversed,
            KeyCode::Right | KeyCode::Char('s' | '>') => self.shift_sort(1),
            KeyCode::Left | KeyCode::Char('S' | '<') => self.shift_sort(-1),
            KeyCode::Char('N') => self.sort_by(None),
            KeyCode::Char(key) => {
                if let Some(column) = COLUMNS.iter().position(|column| column.key == key) {
                    self.sort_by(Some(column));
                }
            }
            _ => {}
        }
        self.follow();
    }

    /// The column once more turns the order.
    fn sort_by(&mut self, column: Option<usize>) {
        self.is_reversed = self.sort == column && !self.is_reversed;
        self.sort = column;
    }

    fn shift_sort(&mut self, by: isize) {
        // Place 0 is the name.
        let place = self.sort.map_or(0, |column| column + 1);
        let places = COLUMNS.len() + 1;
        let place = (place + places).saturating_add_signed(by) % places;
        self.sort = place.checked_sub(1);
        self.is_reversed = false;
    }

    fn change_delay(&mut self, by: isize) {
        let here = PAUSES.partition_point(|pause| *pause < self.delay);
        let there = here.saturating_add_signed(by).min(PAUSES.len() - 1);
        if let Some(pause) = PAUSES.get(there) {
            self.delay = *pause;
        }
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(c) => self.filter.push(c),
            _ => {}
        }
        self.follow();
    }
}

/// Place of a column by its field; `Some(None)` is the name.
pub(super) fn sort_column(id: &str) -> Option<Option<usize>> {
    if id == "name" {
        return Some(None);
    }
    let place = COLUMNS.iter().position(|column| column.id == id);
    place.map(Some)
}

/// A regular expression without regard to case, or the text itself if it is none.
pub(super) struct Filter(Option<Regex>);

impl Filter {
    pub(super) fn new(text: &str) -> Self {
        let build = |pattern: &str| RegexBuilder::new(pattern).case_insensitive(true).build();
        let regex = build(text).or_else(|_| build(&regex::escape(text)));
        Self(regex.ok().filter(|_| !text.is_empty()))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|regex| regex.is_match(name))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::live::tests::frames;

    fn app(count: u64) -> App {
        let mut app = App::new(&Setup::default());
        frames(count).into_iter().for_each(|frame| app.push(frame));
        app
    }

    fn press(app: &mut App, keys: &str) {
        for c in keys.chars() {
            let code = match c {
                '\n' => KeyCode::Enter,
                '\x1b' => KeyCode::Esc,
                '\x7f' => KeyCode::Backspace,
                c => KeyCode::Char(c),
            };
            app.key(KeyEvent::from(code));
        }
    }

    fn names(app: &App) -> Vec<&str> {
        app.rows().iter().map(|vm| vm.name.as_str()).collect()
    }

    #[test]
    fn keys_choose_the_order() {
        let mut app = app(2);
        assert_eq!(names(&app), ["web", "db"], "the greater share first");
        for (keys, wanted) in [
            ("D", ["db", "web"]),
            ("D", ["web", "db"]),
            ("N", ["db", "web"]),
            ("r", ["web", "db"]),
            ("R", ["db", "web"]),
            ("C", ["web", "db"]),
            ("<", ["db", "web"]),
            (">", ["web", "db"]),
        ] {
            press(&mut app, keys);
            assert_eq!(names(&app), wanted, "{keys}");
        }
        for _ in 0..=COLUMNS.len() {
            press(&mut app, "s");
        }
        assert_eq!(app.sort, Some(0), "once around");
    }

    #[test]
    fn what_is_not_known_comes_last() {
        let mut app = app(2);
        let mut frame = app.frames.back().unwrap().clone();
        frame.vms.push(VmView {
            name: "a".into(),
            ..VmView::default()
        });
        app.push(frame);
        assert_eq!(names(&app), ["web", "db", "a"]);
        press(&mut app, "C");
        assert_eq!(names(&app), ["db", "web", "a"]);
    }

    #[test]
    fn the_filter_is_typed_and_cleared() {
        let mut app = app(2);
        press(&mut app, "/WEBq\x7f\n");
        assert_eq!((names(&app), app.has_ended()), (vec!["web"], false));
        press(&mut app, "\x1b");
        assert_eq!(names(&app).len(), 2);
        press(&mut app, "/(\n");
        assert_eq!(names(&app).len(), 0, "a text that is no expression");
        press(&mut app, "/\x1b/^d|x\n");
        assert_eq!(names(&app), ["db"]);
    }

    #[test]
    fn the_cursor_stays_on_its_vm() {
        let mut app = app(2);
        press(&mut app, "j");
        assert_eq!(app.table.selected(), Some(1));
        press(&mut app, "N");
        assert_eq!(app.table.selected(), Some(0), "db is first by name");
        press(&mut app, "jjjj\n");
        assert_eq!(app.view, View::Vm("web".into()));
        press(&mut app, "\x1b");
        assert_eq!(app.view, View::Table);
        app.push(Frame::default());
        assert_eq!(app.table.selected(), None);
        press(&mut app, "jk\n");
        assert_eq!(app.view, View::Table);
    }

    #[test]
    fn paused_means_that_nothing_changes() {
        let mut app = app(2);
        press(&mut app, "p");
        app.push(Frame::default());
        assert_eq!(names(&app).len(), 2);
        press(&mut app, " ");
        app.push(Frame::default());
        assert_eq!(names(&app).len(), 0);
    }

    #[test]
    fn the_pause_between_looks_has_bounds() {
        let mut app = app(0);
        press(&mut app, "+");
        assert_eq!(app.delay(), Duration::from_secs(5));
        press(&mut app, "+++++");
        assert_eq!(app.delay(), Duration::from_secs(30));
        press(&mut app, "----------");
        assert_eq!(app.delay(), Duration::from_millis(500));
    }

    #[test]
    fn q_and_control_c_end_it_help_goes_with_any_key() {
        for key in [
            KeyEvent::from(KeyCode::Char('q')),
            KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL),
        ] {
            let mut app = app(1);
            app.key(key);
            assert!(app.has_ended());
        }
        let mut app = app(1);
        press(&mut app, "?");
        assert_eq!(app.view, View::Help);
        press(&mut app, "x");
        assert_eq!(app.view, View::Table);
    }

    #[test]
    fn history_is_bounded() {
        assert_eq!(app(HISTORY as u64 + 5).frames.len(), HISTORY);
    }
}
