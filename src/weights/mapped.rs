//! A part of a file, mapped into memory: it costs address space until it is used, and the system may drop it again.

use super::source::{OP, Source};
use crate::{Error, Result};
use memmap2::Mmap;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// Bytes of a mapped file; clones share the mapping.
#[derive(Clone)]
pub struct Mapped {
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl Mapped {
    pub(super) fn new(map: Arc<Mmap>, range: Range<usize>) -> Option<Mapped> {
        map.get(range.clone())?;
        Some(Mapped { map, range })
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.get(self.range.clone()).unwrap_or_default()
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// Maps a whole file for reading.
pub(super) fn map(source: &Source) -> Result<Arc<Mmap>> {
    let file = source.file().ok_or_else(|| Error::argument(OP, "map", "a file", "bytes in memory"))?;
    // SAFETY: the mapping is read-only and its bytes are plain numbers, any value of which is valid. What remains is that
    // another process cuts or rewrites the file while it is mapped (then the system stops us with SIGBUS, or numbers
    // change): the owner of the file promises not to, as with every program that maps its weights.
    let map = unsafe { memmap2::MmapOptions::new().len(source.length() as usize).map(file) };
    Ok(Arc::new(map.map_err(|e| Error::io(OP, source.path(), &e))?))
}
