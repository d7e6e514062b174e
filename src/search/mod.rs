//! Searching pictures by a text or by a picture: features of many pictures on the disk ([`Index`]), one search in them
//! ([`query`]), and all searches of a data set at once ([`gallery`]).

pub mod add;
pub mod gallery;
pub mod index;
pub mod kept;
pub mod query;
pub mod scan;

pub use index::Index;
pub use kept::Kept;
pub use query::{Found, Query, Rank, Ranked, search, search_keeping};

use crate::files::RealDisk;
use crate::pretrained::Pretrained;
use crate::{Error, Result};
use index::Identity;
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// Pictures that are decoded at once.
const AT_ONCE: usize = 64;

impl Index {
    /// Adds pictures to the index in `folder` and opens it for searching; the folder is created where there is none. `model` was
    /// opened from the folder `from`. Pictures that the index has, and that are unchanged, are not read again. `skipped` gets each
    /// picture that cannot be used.
    pub fn build(
        folder: &Path,
        (model, from): (&Pretrained, &Path),
        pictures: &[PathBuf],
        mut skipped: impl FnMut(&Path, Error),
    ) -> Result<Index> {
        let mut index = Index::own(&RealDisk, folder, &Identity::of(model, from), false)?;
        let todo: Vec<&PathBuf> = pictures.iter().filter(|p| !add::unchanged(&index, p)).collect();
        let mut added = add::Added::default();
        let known = add::Known::of(&index);
        for some in todo.chunks(AT_ONCE) {
            let read = |path: &&PathBuf| add::read(model, (&path.display().to_string(), path), &known);
            let read: Vec<Result<add::Read>> = some.par_iter().map(read).collect();
            let mut new = add::look_at_new(model, read.iter().filter_map(|read| read.as_ref().ok()))?;
            for (path, read) in some.iter().zip(read) {
                match read {
                    Ok(read) => added.take(model, &mut index, read, &mut new)?,
                    Err(e) => skipped(path, e),
                }
            }
            if index.full() {
                index.save(&RealDisk)?;
            }
        }
        index.save(&RealDisk)?;
        index.tidy(&RealDisk)?;
        drop(index);
        Index::read(folder)
    }
}
