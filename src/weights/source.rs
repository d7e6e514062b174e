//! The bytes of one file: opened once, its length fixed at the opening, read by offset.
//!
//! Nothing is read past that length and nothing is allocated that the file does not hold, whatever its contents claim.
//! A file that is cut while we read gives an error, not old bytes.

use super::Refusal;
use crate::{Error, Result};
use rayon::prelude::*;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) const OP: &str = "read weights";

/// What one thread reads at a time.
const PIECE: usize = 4 << 20;

pub struct Source {
    path: PathBuf,
    length: u64,
    from: From,
}

enum From {
    File(File),
    Memory(Arc<[u8]>),
}

impl Source {
    pub fn open(path: &Path) -> Result<Source> {
        let io = |e: std::io::Error| Error::io(OP, path, &e);
        // Asked before the opening: opening a pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(Error::file(OP, path, "a file", "a folder or a device"));
        }
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        Ok(Source { path: path.to_path_buf(), length, from: From::File(file) })
    }

    /// A file that is in memory already; `name` stands for its path in messages.
    pub fn memory(name: &str, bytes: Arc<[u8]>) -> Source {
        Source { path: name.into(), length: bytes.len() as u64, from: From::Memory(bytes) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    /// Fills `to` from offset `at`.
    pub fn read_at(&self, at: u64, to: &mut [u8]) -> Result<(), Refusal> {
        let end = at.checked_add(to.len() as u64).filter(|end| *end <= self.length);
        if end.is_none() {
            let got = format!("{} bytes wanted where the file of {} bytes has ended", to.len(), self.length);
            return Err(Refusal::at(at, "the file", got).fix(Refusal::FETCH_AGAIN));
        }
        match &self.from {
            From::File(file) => to
                .par_chunks_mut(PIECE)
                .enumerate()
                .try_for_each(|(i, piece)| file.read_exact_at(piece, at + (i * PIECE) as u64))
                .map_err(|e| Refusal::at(at, "the file", e).fix("check the disk, or copy the file again")),
            From::Memory(bytes) => {
                let start = at as usize; // below the length of a slice
                to.copy_from_slice(bytes.get(start..start + to.len()).unwrap_or_default());
                Ok(())
            }
        }
    }

    /// Asks the system to fetch these bytes: many small reads then wait for the disk together, not one after the other.
    pub fn prefetch(&self, at: u64, len: u64) {
        if let (From::File(file), Some(len)) = (&self.from, std::num::NonZeroU64::new(len)) {
            // A hint, no more; macOS has no such call.
            #[cfg(not(target_vendor = "apple"))]
            let _ = rustix::fs::fadvise(file, at, Some(len), rustix::fs::Advice::WillNeed);
            #[cfg(target_vendor = "apple")]
            let _ = (file, at, len);
        }
    }

    /// `len` bytes from `at`; nothing is allocated before the file is known to hold them.
    pub fn read(&self, at: u64, len: u64) -> Result<Vec<u8>, Refusal> {
        let held = at.checked_add(len).is_some_and(|end| end <= self.length);
        if !held {
            let got = format!("{len} bytes wanted where the file of {} bytes has ended", self.length);
            return Err(Refusal::at(at, "the file", got).fix(Refusal::FETCH_AGAIN));
        }
        let mut bytes = room(len as usize);
        self.read_at(at, &mut bytes)?;
        Ok(bytes)
    }
}

/// Zeros to be filled from a file. In large pages, where the system has them: else most of the time of reading a file that is in
/// memory goes into a page fault for each 4 KiB.
pub(super) fn room<T: bytemuck::Pod>(n: usize) -> Vec<T> {
    #[cfg_attr(not(target_os = "linux"), expect(unused_mut))]
    let mut values = vec![T::zeroed(); n];
    #[cfg(target_os = "linux")]
    in_large_pages(bytemuck::cast_slice_mut(&mut values));
    values
}

#[cfg(target_os = "linux")]
fn in_large_pages(bytes: &mut [u8]) {
    const LARGE: usize = 2 << 20;
    let skipped = bytes.as_ptr().align_offset(LARGE);
    if let Some(inside) = bytes.get_mut(skipped..).filter(|inside| inside.len() >= LARGE) {
        let whole = inside.len() / LARGE * LARGE;
        // SAFETY: the range lies in the buffer, which is borrowed for writing, and the advice changes no contents.
        let _hint = unsafe {
            rustix::mm::madvise(inside.as_mut_ptr().cast(), whole, rustix::mm::Advice::LinuxHugepage)
        };
    }
}
