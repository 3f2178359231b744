//! Page tables of the guest: four levels, 4 KiB pages.

use std::io;

use super::KvmError;
use crate::sys::{Mapping, PAGE};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
/// Set beforehand, so that the CPU has nothing to write.
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const ENTRIES: usize = PAGE / 8;
/// Enough for 2 GiB of mapped memory; untouched pages cost nothing.
const PAGES: usize = 1024;
/// First page: the GDT. Second page: the root.
const ROOT: usize = 1;

/// Descriptors of a 64-bit user program: null, user data, user code.
const GDT: [u64; 3] = [0, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];
pub(super) const USER_DATA: u16 = 0x08 | 3;
pub(super) const USER_CODE: u16 = 0x10 | 3;
pub(super) const GDT_LIMIT: u16 = 8 * 3 - 1;

/// What the guest may do with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    Execute,
}

impl Access {
    fn bits(self) -> u64 {
        match self {
            Self::Read => NO_EXECUTE,
            Self::Write => WRITABLE | NO_EXECUTE,
            Self::Execute => 0,
        }
    }
}

/// Page tables and GDT, in memory of their own.
#[derive(Debug)]
pub(super) struct PageTables {
    memory: Mapping,
    gpa: u64,
    used: usize,
}

impl PageTables {
    /// Empty tables that will lie at guest-physical `gpa`.
    pub(super) fn new(gpa: u64) -> io::Result<Self> {
        let mut tables = Self {
            memory: Mapping::anonymous(PAGES * PAGE)?,
            gpa,
            used: ROOT + 1,
        };
        for (index, descriptor) in GDT.into_iter().enumerate() {
            tables.set(0, index, descriptor);
        }
        Ok(tables)
    }

    /// Address of the tables in this process.
    pub(super) fn addr(&self) -> usize {
        self.memory.as_ptr().addr()
    }

    /// Length of the tables, bytes.
    pub(super) fn len(&self) -> usize {
        self.memory.len()
    }

    /// Guest-physical address of the root, for CR3.
    pub(super) fn root(&self) -> u64 {
        self.gpa + (ROOT * PAGE) as u64
    }

    /// Linear address of the GDT. CPL3 never reads it, and it is mapped nowhere.
    pub(super) fn gdt(&self) -> u64 {
        self.addr() as u64
    }

    /// Maps `len` bytes at `va`, whole pages, to `gpa`.
    pub(super) fn map(
        &mut self,
        va: usize,
        gpa: u64,
        len: usize,
        access: Access,
    ) -> Result<(), KvmError> {
        for offset in (0..len).step_by(PAGE) {
            let va = va + offset;
            let mut page = ROOT;
            for level in [39, 30, 21] {
                page = self.next_table(page, (va >> level) % ENTRIES)?;
            }
            let flags = PRESENT | USER | ACCESSED | DIRTY | access.bits();
            self.set(page, (va >> 12) % ENTRIES, (gpa + offset as u64) | flags);
        }
        Ok(())
    }

    fn next_table(&mut self, page: usize, index: usize) -> Result<usize, KvmError> {
        let entry = self.get(page, index);
        if entry & PRESENT != 0 {
            let offset = (entry & ADDRESS).wrapping_sub(self.gpa);
            return usize::try_from(offset)
                .map(|at| at / PAGE)
                .map_err(|_| KvmError::TablesFull);
        }
        let new = self.used;
        if new >= PAGES {
            return Err(KvmError::TablesFull);
        }
        self.used += 1;
        let flags = PRESENT | WRITABLE | USER | ACCESSED;
        self.set(page, index, (self.gpa + (new * PAGE) as u64) | flags);
        Ok(new)
    }

    fn entry(&self, page: usize, index: usize) -> *mut u64 {
        assert!(page < PAGES && index < ENTRIES, "entry outside the tables");
        // SAFETY: by the check above the entry lies inside the mapping, which is `PAGES` pages long.
        unsafe {
            self.memory
                .as_ptr()
                .cast::<u64>()
                .add(page * ENTRIES + index)
        }
    }

    fn get(&self, page: usize, index: usize) -> u64 {
        // SAFETY: the entry is aligned, inside the mapping and initialised (anonymous memory is
        // zero); tables are only built before the guest runs, by their one owner.
        unsafe { self.entry(page, index).read() }
    }

    fn set(&mut self, page: usize, index: usize, value: u64) {
        // SAFETY: as in `get`.
        unsafe { self.entry(page, index).write(value) }
    }

    /// Translates as the CPU would: guest-physical address and the flags of the last level.
    #[cfg(test)]
    fn walk(&self, va: usize) -> Option<(u64, u64)> {
        let mut page = ROOT;
        for level in [39, 30, 21] {
            let entry = self.get(page, (va >> level) % ENTRIES);
            if entry & PRESENT == 0 {
                return None;
            }
            page = usize::try_from((entry & ADDRESS) - self.gpa).ok()? / PAGE;
        }
        let entry = self.get(page, (va >> 12) % ENTRIES);
        (entry & PRESENT != 0).then_some(((entry & ADDRESS) + (va % PAGE) as u64, entry & !ADDRESS))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn mapped_pages_translate_and_others_do_not() {
        let mut tables = PageTables::new(0x2_0000_0000).unwrap();
        // Across the border of a last-level table.
        let va = 0x7f12_3440_0000 - PAGE;
        tables.map(va, 0x10_0000, 3 * PAGE, Access::Write).unwrap();
        tables
            .map(0x5500_0000_0000, 0x1_0000_0000, PAGE, Access::Execute)
            .unwrap();
        for page in 0..3 {
            let (gpa, flags) = tables.walk(va + page * PAGE + 5).unwrap();
            assert_eq!(gpa, 0x10_0005 + (page * PAGE) as u64);
            assert_eq!(
                flags & (WRITABLE | USER | NO_EXECUTE),
                WRITABLE | USER | NO_EXECUTE
            );
        }
        let (gpa, flags) = tables.walk(0x5500_0000_0000).unwrap();
        assert_eq!(
            (gpa, flags & (WRITABLE | USER | NO_EXECUTE)),
            (0x1_0000_0000, USER)
        );
        assert_eq!(tables.walk(va - 1), None);
        assert_eq!(tables.walk(va + 3 * PAGE), None);
    }

    #[test]
    fn tables_that_run_out_are_an_error() {
        let mut tables = PageTables::new(0x2_0000_0000).unwrap();
        let far_apart = (0..PAGES).map(|page| page << 39 >> 1);
        let mut results = far_apart.map(|va| tables.map(va, 0, PAGE, Access::Read));
        assert!(results.any(|result| matches!(result, Err(KvmError::TablesFull))));
    }
}
