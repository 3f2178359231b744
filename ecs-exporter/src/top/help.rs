//! What the keys do, and what the columns mean.

use crate::live::COLUMNS;

/// Keys, and what they do.
const KEYS: [(&str, &str); 10] = [
    ("q", "quit"),
    ("up, down, PgUp, PgDn", "choose a VM"),
    ("Enter", "the VM over time; Esc goes back"),
    ("/", "filter by name, a regular expression; Esc clears it"),
    ("s, S, left, right", "sort by the next or last column"),
    ("r", "turn the order"),
    ("N", "sort by name"),
    ("p, space", "pause"),
    ("+, -", "longer, shorter pause between two looks"),
    ("?, h", "this page"),
];

/// Lines of the help page; a terminal of 24 lines has room for it.
pub(super) fn lines() -> Vec<String> {
    let keys = KEYS
        .iter()
        .map(|(keys, text)| format!("  {keys:<22}{text}"));
    let columns = COLUMNS.iter().map(|column| {
        let (key, title, help) = (column.key, column.title, column.help);
        format!("  {key}  {title:<9}{help}")
    });
    let title = "Columns, with the key that sorts by each; once more turns the order";
    keys.chain([title.to_owned()]).chain(columns).collect()
}
