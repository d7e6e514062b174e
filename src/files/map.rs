//! A file's bytes in memory without a copy: the kernel reads what is looked at and forgets it under pressure, so memory stays flat.
//!
//! Only for files of our own that are never written again once they have their name, as `write_atomic` leaves them. Removing or replacing
//! one is harmless. One that somebody cuts short would end the program with SIGBUS where its pages are missing: [`Map::check`] before the
//! bytes are used makes that an error, but for the moment between the two.

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::File;
use std::io;

/// A file in memory.
pub struct Map {
    file: File,
    at: *mut core::ffi::c_void,
    len: usize,
}

// SAFETY: the pages are only read, and belong to nobody else.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// The first `len` bytes of a file, which has as many.
    pub fn open(file: File, len: usize) -> io::Result<Map> {
        if len == 0 {
            return Ok(Map { file, at: std::ptr::null_mut(), len });
        }
        if file.metadata()?.len() < len as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: a new mapping at an address of the kernel's choice; `Drop` takes away exactly this one.
        let at = unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, &file, 0) }?;
        Ok(Map { file, at, len })
    }

    /// An error if the file was cut short since.
    pub fn check(&self) -> io::Result<()> {
        if self.file.metadata()?.len() < self.len as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: `len` readable bytes from `at` as long as `self` lives, which nobody writes (see the header).
        unsafe { std::slice::from_raw_parts(self.at.cast::<u8>(), self.len) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the mapping that `open` made; no slice of it outlives `self`.
            let _ = unsafe { munmap(self.at, self.len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Map;

    fn open_to_write(path: &std::path::Path) -> std::fs::File {
        std::fs::OpenOptions::new().write(true).open(path).unwrap()
    }

    #[test]
    fn the_bytes_are_the_files_also_when_it_is_gone_and_cuts_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let bytes: Vec<u8> = (0..10_000).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let open = || std::fs::File::open(&path).unwrap();
        let map = Map::open(open(), 9_001).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(map.bytes(), &bytes[..9_001]);
        std::fs::write(&path, b"").unwrap();
        assert!(Map::open(open(), 0).unwrap().bytes().is_empty() && Map::open(open(), 1).is_err());
        assert!(map.check().is_ok());
        std::fs::write(&path, &bytes).unwrap();
        let map = Map::open(open(), 10_000).unwrap();
        open_to_write(&path).set_len(9_999).unwrap();
        assert!(map.check().is_err());
    }
}
