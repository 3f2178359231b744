//! How long the programs are, and how much work they were for the kernel's verifier.

use std::os::fd::AsFd;

use libbpf_rs::Object;
use libbpf_rs::query::{ProgInfoIter, ProgInfoQueryOptions};

/// One program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramSize {
    /// Its name, as far as the kernel keeps it.
    pub name: String,
    /// Instructions that the verifier went through, over all paths.
    pub verified_insns: u32,
    /// The program itself, bytes: 8 an instruction.
    pub translated: usize,
    /// Machine code, bytes; 0 where the kernel does not say.
    pub machine: usize,
}

/// Every loaded program of an object.
pub(super) fn of(object: &Object) -> Vec<ProgramSize> {
    let ids: Vec<u32> = object
        .progs()
        .filter_map(|program| libbpf_rs::Program::id_from_fd(program.as_fd()).ok())
        .collect();
    let options = ProgInfoQueryOptions::default()
        .include_xlated_prog_insns(true)
        .include_jited_prog_insns(true);
    ProgInfoIter::with_query_opts(options)
        .filter(|info| ids.contains(&info.id))
        .map(|info| ProgramSize {
            name: info.name.to_string_lossy().into_owned(),
            verified_insns: info.verified_insns,
            translated: info.xlated_prog_insns.len(),
            machine: info.jited_prog_insns.len(),
        })
        .collect()
}
