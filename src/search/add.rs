//! Adds pictures to an index. Threads read each picture ([`read`]); the thread that owns the index computes the features of the new
//! ones of a batch together ([`look_at_new`]) and stores them ([`Added::take`]).
//! Pictures that are there unchanged are not read; those that were moved or copied keep their features.

use super::index::{Adopted, Index, Picture};
use crate::files::{self, RealDisk};
use crate::pretrained::Pretrained;
use crate::pretrained::pictures::{Seen, look, seen, turn};
use crate::vision::Photo;
use crate::{Error, Result};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::UNIX_EPOCH;

/// What a thread makes of a picture for the index.
pub enum Read {
    /// The file was written again with the same bytes.
    Same(Picture),
    /// The index has a picture of these bytes.
    Known(Picture),
    /// It has to be looked at.
    New(Picture, Seen),
}

/// What threads know of the index.
pub struct Known {
    /// By path.
    hashes: HashMap<String, String>,
    sizes: HashSet<u64>,
    contents: HashSet<String>,
}

/// How many pictures came into an index, and how.
#[derive(Default)]
pub struct Added {
    /// Computed, or of the bytes of another.
    pub new: usize,
    /// Their files were elsewhere.
    pub moved: usize,
    /// Of the bytes of another.
    pub copied: usize,
}

impl Known {
    /// What an index knows now.
    pub fn of(index: &Index) -> Known {
        let (sizes, contents) = index.contents();
        let hashes = (0..index.len()).map(|i| index.picture(i)).map(|p| (p.path.clone(), p.hash.clone()));
        Known { hashes: hashes.collect(), sizes, contents }
    }
}

/// Whether a picture is in an index, and its file is as it was.
pub fn unchanged(index: &Index, path: &Path) -> bool {
    stat("", path)
        .is_ok_and(|s| index.find(&s.path).is_some_and(|k| (k.bytes, k.modified) == (s.bytes, s.modified)))
}

/// A picture's file as the index knows files, without its hash.
fn stat(name: &str, path: &Path) -> Result<Picture> {
    let failed = |e| Error::io("open picture", path, &e);
    let whole = path.canonicalize().map_err(failed)?;
    let about = std::fs::metadata(&whole).map_err(failed)?;
    let modified = about.modified().map_err(failed)?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let path = whole.into_os_string().into_string().map_err(|p| {
        Error::file("open picture", p, "a path in UTF-8", "other bytes").fix("rename the folder or the file")
    })?;
    Ok(Picture {
        name: name.to_owned(),
        path,
        bytes: about.len(),
        modified: modified.as_nanos() as u64,
        hash: String::new(),
    })
}

/// Reads a picture for an index, by its name and its path.
pub fn read(model: &Pretrained, (name, path): (&str, &Path), known: &Known) -> Result<Read> {
    let mut entry = stat(name, path)?;
    if known.sizes.contains(&entry.bytes) {
        let failed = |e| Error::io("open picture", path, &e);
        entry.hash = files::hash_file(&RealDisk, path).map_err(failed)?.to_hex().to_string();
        if known.hashes.get(&entry.path) == Some(&entry.hash) {
            return Ok(Read::Same(entry));
        }
        if known.contents.contains(&entry.hash) {
            return Ok(Read::Known(entry));
        }
    }
    // The same bytes are hashed and decoded, even if the file is written to at this moment.
    let photo = Photo::open(path, turn(model))?;
    entry.hash = photo.hash().to_hex().to_string();
    Ok(Read::New(entry, seen(model, &photo)?))
}

impl Added {
    /// Takes what was read of a picture into the index; `new` gives the features of new ones in turn.
    pub fn take(
        &mut self,
        model: &Pretrained,
        index: &mut Index,
        read: Read,
        new: &mut impl Iterator<Item = Vec<f32>>,
    ) -> Result<()> {
        match read {
            Read::Same(picture) => index.touch(&picture),
            Read::Known(picture) => match index.adopt(&picture, |p| !Path::new(&p.path).exists()) {
                Some(Adopted::Moved) => self.moved += 1,
                Some(Adopted::Copied) => (self.new, self.copied) = (self.new + 1, self.copied + 1),
                // The one of the same bytes has just been replaced.
                None => {
                    let photo = Photo::open(&picture.path, turn(model))?;
                    let picture = Picture { hash: photo.hash().to_hex().to_string(), ..picture };
                    for features in features(model, &[&seen(model, &photo)?])? {
                        index.add(picture.clone(), &features)?;
                    }
                    self.new += 1;
                }
            },
            Read::New(picture, _) => {
                let features = new.next().ok_or_else(|| {
                    Error::argument("search index", "features", "those of every new picture", "fewer")
                })?;
                index.add(picture, &features)?;
                self.new += 1;
            }
        }
        Ok(())
    }
}

/// The features of the new ones among pictures that were read, in their order.
pub fn look_at_new<'a>(
    model: &Pretrained,
    read: impl Iterator<Item = &'a Read>,
) -> Result<std::vec::IntoIter<Vec<f32>>> {
    let new = read.filter_map(|read| if let Read::New(_, seen) = read { Some(seen) } else { None });
    Ok(features(model, &new.collect::<Vec<_>>())?.into_iter())
}

/// The features of pictures as an index keeps them.
fn features(model: &Pretrained, seen: &[&Seen]) -> Result<Vec<Vec<f32>>> {
    look(model, seen)?.iter().map(|image| image.proj.to_f32()).collect()
}
