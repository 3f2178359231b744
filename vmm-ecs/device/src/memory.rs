//! The front-end's memory table: mapping, translation, hotplug.

use std::fs::File;
use std::sync::Arc;

use ecs_shm::GuestMem;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    FileOffset, GuestAddress, GuestRegionCollectionError, GuestRegionMmap, MmapRegion,
};

use crate::view::UserRegion;

/// Regions a front-end may add.
pub(crate) const MAX_REGIONS: usize = 256;

/// Why a region is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("The region at {0:#x} is empty or overflows")]
    Range(u64),
    #[error("The file behind the region at {gpa:#x} is {have} bytes long, {need} are needed")]
    Short { gpa: u64, have: u64, need: u64 },
    #[error("Cannot look at the file behind the region at {gpa:#x}")]
    Stat {
        gpa: u64,
        #[source]
        source: std::io::Error,
    },
    #[error("Cannot map the region at {gpa:#x}")]
    Map {
        gpa: u64,
        #[source]
        source: MmapRegionError,
    },
    #[error("The regions do not fit together")]
    Collection(#[from] GuestRegionCollectionError),
    #[error("More than {MAX_REGIONS} regions")]
    TooMany,
    #[error("There is no such region at {0:#x}")]
    Unknown(u64),
}

/// One region as a front-end announces it.
#[derive(Debug)]
pub(crate) struct Announced {
    pub(crate) region: UserRegion,
    /// Offset of the region in the file, bytes.
    pub(crate) offset: u64,
    pub(crate) file: File,
}

#[derive(Debug, Clone)]
struct Mapped {
    user: UserRegion,
    region: Arc<GuestRegionMmap<()>>,
}

/// Every region of one front-end, by ascending guest address.
#[derive(Debug, Default)]
pub(crate) struct MemTable {
    mapped: Vec<Mapped>,
    mem: Arc<GuestMem>,
}

impl MemTable {
    /// Maps a whole new table in place of the old one, which stays if anything is wrong.
    pub(crate) fn replace(&mut self, announced: Vec<Announced>) -> Result<(), MemoryError> {
        let mapped = announced.into_iter().map(map).collect::<Result<_, _>>()?;
        self.adopt(mapped)
    }

    /// Maps one more region.
    pub(crate) fn add(&mut self, announced: Announced) -> Result<(), MemoryError> {
        if self.mapped.len() >= MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        let mut mapped = self.mapped.clone();
        mapped.push(map(announced)?);
        self.adopt(mapped)
    }

    /// Lets go of one region. It stays mapped as long as an earlier view is held.
    pub(crate) fn remove(&mut self, region: UserRegion) -> Result<(), MemoryError> {
        let mut mapped = self.mapped.clone();
        mapped.retain(|known| known.user != region);
        if mapped.len() == self.mapped.len() {
            return Err(MemoryError::Unknown(region.gpa));
        }
        self.adopt(mapped)
    }

    fn adopt(&mut self, mut mapped: Vec<Mapped>) -> Result<(), MemoryError> {
        mapped.sort_by_key(|known| known.user.gpa);
        self.mem = if mapped.is_empty() {
            Arc::default()
        } else {
            let regions = mapped.iter().map(|known| known.region.clone()).collect();
            Arc::new(GuestMem::new(regions)?)
        };
        self.mapped = mapped;
        Ok(())
    }

    pub(crate) fn mem(&self) -> &Arc<GuestMem> {
        &self.mem
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.mapped.is_empty()
    }

    pub(crate) fn user_regions(&self) -> Vec<UserRegion> {
        self.mapped.iter().map(|known| known.user).collect()
    }

    /// Guest-physical address of an address in the front-end's process.
    pub(crate) fn translate(&self, address: u64) -> Option<GuestAddress> {
        self.mapped.iter().find_map(|known| {
            let offset = address.checked_sub(known.user.userspace_addr)?;
            (offset < known.user.len).then(|| GuestAddress(known.user.gpa + offset))
        })
    }
}

fn map(announced: Announced) -> Result<Mapped, MemoryError> {
    let UserRegion {
        gpa,
        len,
        userspace_addr,
    } = announced.region;
    let sound =
        len > 0 && gpa.checked_add(len).is_some() && userspace_addr.checked_add(len).is_some();
    let size = usize::try_from(len)
        .ok()
        .filter(|_| sound)
        .ok_or(MemoryError::Range(gpa))?;
    let need = announced
        .offset
        .checked_add(len)
        .ok_or(MemoryError::Range(gpa))?;
    // A mapping past the end of the file would fault at the first access.
    let have = announced
        .file
        .metadata()
        .map_err(|source| MemoryError::Stat { gpa, source })?
        .len();
    if have < need {
        return Err(MemoryError::Short { gpa, have, need });
    }
    let mapping = MmapRegion::from_file(FileOffset::new(announced.file, announced.offset), size)
        .map_err(|source| MemoryError::Map { gpa, source })?;
    let region = GuestRegionMmap::new(mapping, GuestAddress(gpa)).ok_or(MemoryError::Range(gpa))?;
    Ok(Mapped {
        user: announced.region,
        region: Arc::new(region),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn announced(gpa: u64, len: u64, user: u64, file_len: u64) -> Announced {
        let file = tempfile::tempfile().unwrap();
        file.set_len(file_len).unwrap();
        Announced {
            region: UserRegion {
                gpa,
                len,
                userspace_addr: user,
            },
            offset: 0,
            file,
        }
    }

    #[test]
    fn translates_within_regions_only() {
        let mut table = MemTable::default();
        table
            .replace(vec![
                announced(0x10_0000, 0x2000, 0x7000_0000, 0x2000),
                announced(0, 0x1000, 0x5000_0000, 0x1000),
            ])
            .unwrap();
        assert_eq!(table.translate(0x7000_1fff), Some(GuestAddress(0x10_1fff)));
        assert_eq!(table.translate(0x7000_2000), None);
        assert_eq!(table.translate(0x5000_0010), Some(GuestAddress(0x10)));
        assert_eq!(table.translate(0), None);
        assert_eq!(
            table.user_regions().first().map(|region| region.gpa),
            Some(0)
        );
    }

    #[test]
    fn what_is_wrong_leaves_the_old_table() {
        let mut table = MemTable::default();
        table
            .add(announced(0, 0x2000, 0x1000_0000, 0x2000))
            .unwrap();
        let short = table.add(announced(0x10_0000, 0x2000, 0x2000_0000, 0x1fff));
        assert!(matches!(
            short,
            Err(MemoryError::Short { have: 0x1fff, .. })
        ));
        let overlap = table.add(announced(0x1000, 0x1000, 0x3000_0000, 0x1000));
        assert!(matches!(overlap, Err(MemoryError::Collection(_))));
        let empty = table.add(announced(0x10_0000, 0, 0x3000_0000, 0x1000));
        assert!(matches!(empty, Err(MemoryError::Range(_))));
        let high = table.add(announced(u64::MAX, 0x1000, 0, 0x1000));
        assert!(matches!(high, Err(MemoryError::Range(_))));
        let device = Announced {
            file: File::open("/dev/zero").unwrap(),
            ..announced(0x10_0000, 0x1000, 0, 0)
        };
        assert!(matches!(
            table.add(device),
            Err(MemoryError::Short { have: 0, .. })
        ));
        assert_eq!(table.user_regions().len(), 1);

        let known = table.user_regions().first().copied().unwrap();
        let other = UserRegion {
            len: 0x1000,
            ..known
        };
        assert!(matches!(table.remove(other), Err(MemoryError::Unknown(0))));
        table.remove(known).unwrap();
        assert!(table.is_empty());
    }
}
