//! Names of things, and tables that only their own names index.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Index, IndexMut};

/// What names a row of a [`Table`].
pub(crate) trait Id: Copy {
    /// Number of the row.
    fn number(self) -> usize;
    /// The name of row `number`.
    fn of(number: usize) -> Self;
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
            pub(crate) struct $name(u32);

            impl Id for $name {
                fn number(self) -> usize {
                    self.0 as usize
                }
                fn of(number: usize) -> Self {
                    // A scenario is limited to far less than 2^32 of anything.
                    Self(u32::try_from(number).unwrap_or(u32::MAX))
                }
            }
        )*
    };
}

ids! {
    /// A CPU of the host.
    CpuId
    /// A VM.
    VmId
    /// A vCPU, of all VMs.
    VcpuId
    /// A lock, of all VMs.
    LockId
}

/// Rows of one kind. Rows are never removed: a name that was given stays good.
pub(crate) struct Table<I, T> {
    rows: Vec<T>,
    id: PhantomData<I>,
}

impl<I: Id, T> Table<I, T> {
    pub(crate) fn new() -> Self {
        Self {
            rows: Vec::new(),
            id: PhantomData,
        }
    }

    pub(crate) fn push(&mut self, row: T) -> I {
        self.rows.push(row);
        I::of(self.rows.len() - 1)
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = I> + use<I, T> {
        (0..self.rows.len()).map(I::of)
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.rows.iter()
    }
}

impl<I, T: fmt::Debug> fmt::Debug for Table<I, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rows.fmt(f)
    }
}

#[expect(
    clippy::indexing_slicing,
    reason = "a name is only made with its row, and rows stay"
)]
impl<I: Id, T> Index<I> for Table<I, T> {
    type Output = T;
    #[inline]
    fn index(&self, id: I) -> &T {
        &self.rows[id.number()]
    }
}

#[expect(
    clippy::indexing_slicing,
    reason = "a name is only made with its row, and rows stay"
)]
impl<I: Id, T> IndexMut<I> for Table<I, T> {
    #[inline]
    fn index_mut(&mut self, id: I) -> &mut T {
        &mut self.rows[id.number()]
    }
}
