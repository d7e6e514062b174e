//! Which bytes a cache's tokens are of: 48 bytes of every picture in the file `pictures`, 16 of what the file system says of its
//! file (size, times, inode) and 32 of its blake3. Where the first agree, nothing is read; where they differ, the bytes
//! decide: a data set that was moved or copied keeps its tokens, a picture that was replaced under its name does not.

use super::OPERATION;
use crate::data::Image;
use crate::files;
use crate::vision;
use crate::{Error, Result};
use rayon::prelude::*;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

const BYTES: usize = 48;

/// A picture's file; zeros where it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Source {
    pub file: [u8; 16],
    pub hash: [u8; 32],
}

impl Source {
    /// Of a file whose bytes have this hash; asked before they were read.
    pub fn new(file: [u8; 16], hash: blake3::Hash) -> Source {
        Source { file, hash: *hash.as_bytes() }
    }

    /// What the file system says of a file.
    pub fn file(path: &Path) -> Result<[u8; 16]> {
        let about = std::fs::metadata(path).map_err(|e| Error::io(OPERATION, path, &e))?;
        let mut hash = blake3::Hasher::new();
        for number in [about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec()] {
            hash.update(&number.to_le_bytes());
        }
        hash.update(&about.size().to_le_bytes()).update(&about.ino().to_le_bytes());
        let mut short = [0; 16];
        short.copy_from_slice(&hash.finalize().as_bytes()[..16]);
        Ok(short)
    }
}

pub(super) struct Sources {
    path: PathBuf,
    file: File,
    known: Mutex<Vec<Source>>,
}

impl Sources {
    pub fn open(path: &Path, pictures: usize, begun: bool) -> Result<Sources> {
        let failed = |e| Error::io(OPERATION, path, &e);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(!begun).open(path);
        let file = file.map_err(failed)?;
        let length = (pictures * BYTES) as u64;
        file.set_len(length).map_err(|e| files::write_error("write", path, &e))?;
        let mut bytes = vec![0; pictures * BYTES];
        file.read_exact_at(&mut bytes, 0).map_err(failed)?;
        let source = |bytes: &[u8]| {
            let mut source = Source::default();
            source.file.copy_from_slice(&bytes[..16]);
            source.hash.copy_from_slice(&bytes[16..]);
            source
        };
        let known = Mutex::new(bytes.chunks_exact(BYTES).map(source).collect());
        Ok(Sources { path: path.to_owned(), file, known })
    }

    fn known(&self) -> MutexGuard<'_, Vec<Source>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn of(&self, picture: usize) -> Source {
        self.known().get(picture).copied().unwrap_or_default()
    }

    /// Notes what a picture's tokens are of; true if it was known with other bytes.
    pub fn set(&self, picture: usize, source: Source) -> Result<bool> {
        let before = self.of(picture);
        if before != source {
            let bytes = [&source.file[..], &source.hash].concat();
            let written = self.file.write_all_at(&bytes, (picture * BYTES) as u64);
            written.map_err(|e| files::write_error("write", &self.path, &e))?;
            if let Some(known) = self.known().get_mut(picture) {
                *known = source;
            }
        }
        Ok(before.hash != source.hash && before != Source::default())
    }

    /// Which of these pictures are not what they were. Those of the same bytes are known again by their files (`write`).
    pub fn compare(
        &self,
        pictures: &[usize],
        image: impl Fn(usize) -> Option<Image> + Sync,
        write: bool,
    ) -> Result<Vec<usize>> {
        let known = self.known().clone();
        // One that cannot be read counts as changed: why is reported when it is to be computed.
        let now = |picture: usize| -> Option<Source> {
            let (image, known) = (image(picture)?, known.get(picture)?);
            let file = Source::file(image.file()).ok()?;
            if file == known.file {
                return Some(*known);
            }
            let now = Source::new(file, blake3::hash(&image.read(vision::MAX_FILE).ok()?));
            (now.hash == known.hash).then_some(now)
        };
        let found: Vec<Option<Source>> = pictures.par_iter().map(|p| now(*p)).collect();
        let mut changed = Vec::new();
        for (picture, source) in pictures.iter().zip(found) {
            match source {
                Some(source) if write => drop(self.set(*picture, source)?),
                Some(_) => {}
                None => changed.push(*picture),
            }
        }
        Ok(changed)
    }
}
