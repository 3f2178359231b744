//! Reads the ABI header, as far as an ABI header may go.
//!
//! The compiler tells what a name means, but not which names there are. So the text is read here,
//! and whatever is not an object-like macro or a structure of fixed-size little-endian fields is an
//! error: it would be something nobody compares.

use anyhow::{Context, bail, ensure};

/// What the header defines, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Names of the macros, the include guard left out.
    pub constants: Vec<String>,
    /// The structures.
    pub structs: Vec<Struct>,
}

/// One structure.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Struct {
    /// Its tag.
    pub name: String,
    /// Name and size in bytes of each field.
    pub fields: Vec<(String, usize)>,
}

/// Reads a header.
///
/// # Errors
/// What it holds that has no place in an ABI header.
pub fn parse(text: &str) -> anyhow::Result<Header> {
    let text = without_comments(text)?;
    ensure!(
        !text.contains('\\'),
        "A line is continued: write each definition on one line"
    );
    let mut header = Header::default();
    let mut guard = None;
    let mut rest = String::new();
    for line in text.lines().map(str::trim) {
        let Some(directive) = line.strip_prefix('#') else {
            rest.push_str(line);
            rest.push(' ');
            continue;
        };
        let mut words = directive.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("ifndef"), Some(name), None) if guard.is_none() => guard = Some(name.to_owned()),
            (Some("define"), Some(name), None) if guard.as_deref() == Some(name) => {}
            (Some("define"), Some(name), Some(_)) if is_name(name) => {
                header.constants.push(name.to_owned());
            }
            (Some("include"), Some("<linux/types.h>"), None) | (Some("endif"), None, None) => {}
            _ => bail!("Not a constant: {line:?}"),
        }
    }
    let mut rest = rest.as_str();
    while !rest.trim().is_empty() {
        let (found, after) = structure(rest).with_context(|| {
            let start: String = rest.trim().chars().take(60).collect();
            format!("Not a structure of __le16, __le32 and __le64: {start:?}")
        })?;
        header.structs.push(found);
        rest = after;
    }
    Ok(header)
}

/// `struct name { type field; ... };`, and what follows it.
fn structure(text: &str) -> Option<(Struct, &str)> {
    let (name, rest) = text.trim_start().strip_prefix("struct ")?.split_once('{')?;
    let (body, rest) = rest.split_once('}')?;
    let rest = rest.trim_start().strip_prefix(';')?;
    let name = name.trim();
    let (fields, end) = body.rsplit_once(';')?;
    let fields = fields.split(';').map(field).collect::<Option<Vec<_>>>()?;
    (is_name(name) && end.trim().is_empty()).then(|| {
        (
            Struct {
                name: name.to_owned(),
                fields,
            },
            rest,
        )
    })
}

/// `type field`.
fn field(text: &str) -> Option<(String, usize)> {
    let mut words = text.split_whitespace();
    let size = match words.next()? {
        "__le16" => 2,
        "__le32" => 4,
        "__le64" => 8,
        _ => return None,
    };
    let name = words.next()?;
    (is_name(name) && words.next().is_none()).then(|| (name.to_owned(), size))
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn without_comments(text: &str) -> anyhow::Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, comment)) = rest.split_once("/*") {
        let (_, after) = comment.split_once("*/").context("A comment does not end")?;
        out.push_str(before);
        out.push(' ');
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    const GOOD: &str = "/* x */\n#ifndef _G\n#define _G\n#include <linux/types.h>\n\
        #define A 1 /* one,\n * two */\n#define B (1ULL << A)\n\
        struct s {\n\t__le16 a;\t/* 0 */\n\t__le64 b;\n};\t/* 10 */\nstruct t { __le32 c; };\n\
        #endif /* _G */\n";

    #[test]
    fn names_and_sizes_are_read() {
        let header = parse(GOOD).unwrap();
        assert_eq!(header.constants, ["A", "B"]);
        let (s, t) = (&header.structs[0], &header.structs[1]);
        assert_eq!((s.name.as_str(), t.name.as_str()), ("s", "t"));
        assert_eq!(s.fields, [("a".to_owned(), 2), ("b".to_owned(), 8)]);
        assert_eq!(t.fields, [("c".to_owned(), 4)]);
    }

    #[test]
    fn what_nobody_compares_is_refused() {
        for (with, says) in [
            ("#define F(x) (x)", "Not a constant"),
            ("#define EMPTY", "Not a constant"),
            ("#ifdef X", "Not a constant"),
            ("#include <stdint.h>", "Not a constant"),
            ("#define LONG 1 \\\n + 1", "continued"),
            ("struct s { int a; };", "Not a structure"),
            ("struct s { __le32 a[2]; };", "Not a structure"),
            ("struct s { __le32 a : 1; };", "Not a structure"),
            ("struct s { union { __le32 a; }; };", "Not a structure"),
            (
                "struct s { __le32 a; } __attribute__((packed));",
                "Not a structure",
            ),
            ("enum e { X };", "Not a structure"),
            ("typedef __le32 x;", "Not a structure"),
            ("/* no end", "does not end"),
        ] {
            let error = parse(&GOOD.replace("#endif /* _G */", with)).unwrap_err();
            assert!(error.to_string().contains(says), "{with:?} gave {error:#}");
        }
    }
}
