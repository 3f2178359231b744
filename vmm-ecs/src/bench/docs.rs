//! Tables in a Markdown page, between `<!-- bench: NAME -->` and `<!-- end -->`, where NAME is that of a
//! scenario file, or `bars`, `paper`, `limit`, `machine`.

use anyhow::{Context, bail};

use super::cell::Found;
use super::{paper, summary, tables};

const BEGIN: &str = "<!-- bench: ";
const END: &str = "<!-- end -->";

/// The page with every block as `found` has it.
pub(super) fn fill(page: &str, found: &Found) -> anyhow::Result<String> {
    let mut out = String::new();
    let mut rest = page;
    while let Some((before, block)) = rest.split_once(BEGIN) {
        let (name, body) = block
            .split_once(" -->")
            .with_context(|| format!("{BEGIN:?} without a name"))?;
        let (_, after) = body
            .split_once(END)
            .with_context(|| format!("The block {name:?} has no {END:?}"))?;
        let text = block_of(name, found)?;
        out += &format!("{before}{BEGIN}{name} -->\n{text}{END}");
        rest = after;
    }
    Ok(out + rest)
}

fn block_of(name: &str, found: &Found) -> anyhow::Result<String> {
    Ok(match name {
        "machine" => summary::machine(found),
        "limit" => summary::limit(found),
        "bars" => tables::bars(found).markdown(),
        "paper" => paper::table(found).markdown(),
        _ => match found.files.iter().find(|file| file.file == name) {
            Some(file) => tables::of_file(file).markdown(),
            None => bail!("The result has nothing for the block {name:?}"),
        },
    })
}
