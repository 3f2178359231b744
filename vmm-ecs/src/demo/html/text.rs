//! Text and numbers as they may stand in the page.

use std::fmt::Write;

use crate::demo::digits::grouped;

/// Between the thousands of a number: narrow, and no place to break a line.
const GAP: char = '\u{202f}';

/// A table that scrolls by itself where the page is narrow.
pub(super) fn table_of(caption: &str, head: &[&str], rows: &[Vec<String>]) -> String {
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

pub(super) fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

pub(super) fn count(value: u64) -> String {
    grouped(&value.to_string(), GAP)
}

pub(super) fn seconds(value: f64) -> String {
    if value.is_finite() {
        format!("{value:.3}")
    } else {
        number(value)
    }
}

/// A number to three digits or more, its thousands apart; a dash where there is none.
pub(super) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    let size = value.abs();
    let digits = match size {
        _ if size < 1e-9 => return "0".to_owned(),
        _ if size >= 99.95 => format!("{size:.0}"),
        _ if size >= 9.995 => format!("{size:.1}"),
        _ => format!("{size:.2}"),
    };
    let is_zero = digits.bytes().all(|digit| matches!(digit, b'0' | b'.'));
    let sign = if value < 0.0 && !is_zero { "−" } else { "" };
    format!("{sign}{}", grouped(&digits, GAP))
}

/// The same for an axis: no zeros that say nothing.
pub(super) fn tick(value: f64) -> String {
    let text = number(value);
    if text.contains('.') {
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    text
}

/// Text as it may stand in HTML, between tags and in attributes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(number(0.0), "0");
        assert_eq!(number(-0.0004), "0.00");
        assert_eq!(number(9.996), "10.0");
        assert_eq!(number(-12.34), "−12.3");
        assert_eq!(number(1_234_567.8), "1\u{202f}234\u{202f}568");
        assert_eq!(number(f64::NAN), "–");
        assert_eq!(
            (tick(2.0), tick(0.5), tick(100.0)),
            ("2".into(), "0.5".into(), "100".into())
        );
    }
}
