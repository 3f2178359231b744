//! Tables in a Markdown page, between `<!-- bench: NAME -->` and `<!-- end -->`, where NAME is that of a
//! scenario file, or `bars`, `paper`, `limit`, `machine`.

use anyhow::bail;

use super::cell::Found;
use super::{paper, summary, tables};
use crate::markdown;

const BEGIN: &str = "<!-- bench: ";

/// The page with every block as `found` has it.
pub(super) fn fill(page: &str, found: &Found) -> anyhow::Result<String> {
    markdown::fill(page, BEGIN, |name| block_of(name, found))
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
