//! Generated text in Markdown pages.

use anyhow::Context;

const END: &str = "<!-- end -->";

/// The page with the text of every block as `text_of` has it by the block's name: what stands between
/// `begin`, the name, ` -->` and `<!-- end -->`.
///
/// # Errors
/// A block has no end, or `text_of` has nothing for it.
pub(crate) fn fill(
    page: &str,
    begin: &str,
    text_of: impl Fn(&str) -> anyhow::Result<String>,
) -> anyhow::Result<String> {
    let mut out = String::new();
    let mut rest = page;
    while let Some((before, block)) = rest.split_once(begin) {
        let (name, body) = block
            .split_once(" -->")
            .with_context(|| format!("{begin:?} without a name"))?;
        let (_, after) = body
            .split_once(END)
            .with_context(|| format!("The block {name:?} has no {END:?}"))?;
        let text = text_of(name)?;
        out += &format!("{before}{begin}{name} -->\n{text}{END}");
        rest = after;
    }
    Ok(out + rest)
}
