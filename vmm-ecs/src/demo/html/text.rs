//! Text and numbers as they may stand in the page.

use std::fmt::Write;

use crate::demo::digits;

/// Between the thousands of a number: narrow, and no place to break a line.
const GAP: char = '\u{202f}';

/// A table that scrolls by itself where the page is narrow.
pub(crate) fn table_of(caption: &str, head: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{caption}\">\
         <table class=\"wide\"><caption>{caption}</caption><thead><tr>"
    );
    for name in head {
        let _ = write!(table, "<th scope=\"col\">{name}</th>");
    }
    table.push_str("</tr></thead><tbody>");
    for row in rows {
        table.push_str("<tr>");
        for cell in row {
            let _ = write!(table, "<td>{}</td>", escape(cell));
        }
        table.push_str("</tr>\n");
    }
    table + "</tbody></table></div>"
}

/// `1 VM`, `2 VMs`.
pub(crate) fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// A count, its thousands apart.
pub(crate) fn count(value: u64) -> String {
    digits::grouped(&value.to_string(), GAP)
}

/// Seconds to the millisecond.
pub(crate) fn seconds(value: f64) -> String {
    if value.is_finite() {
        format!("{value:.3}")
    } else {
        number(value)
    }
}

/// A number to three digits or more, its thousands apart; a dash where there is none.
pub(crate) fn number(value: f64) -> String {
    digits::number(value, GAP)
}

/// In place of a figure that there is not.
pub(crate) fn none() -> String {
    "–".to_owned()
}

/// The same for an axis: no zeros that say nothing.
pub(crate) fn tick(value: f64) -> String {
    let text = number(value);
    if text.contains('.') {
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    text
}

/// Text as it may stand in HTML, between tags and in attributes.
pub(crate) fn escape(text: &str) -> String {
    html_escape::encode_safe(&text.replace(char::is_control, " ")).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_say_no_needless_zeros() {
        assert_eq!(tick(2.0), "2");
        assert_eq!(tick(0.5), "0.5");
        assert_eq!(tick(100.0), "100");
        assert_eq!(tick(-20_000.0), "−20\u{202f}000");
    }
}
