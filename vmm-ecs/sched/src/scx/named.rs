//! What the programs are told of a thread: `struct ecs_thread` of `bpf/maps.h`.

use ecs_shm::SlotAddresses;

/// Its bytes. `number` is the vCPU's over all VMs, plus one; the last field is the programs' own.
pub(crate) fn value(number: u64, words: SlotAddresses) -> [[u8; 8]; 5] {
    let fields = [
        Some(number),
        words.host_line,
        words.guest_line,
        words.word,
        None,
    ];
    fields.map(|field| field.unwrap_or(0).to_ne_bytes())
}
