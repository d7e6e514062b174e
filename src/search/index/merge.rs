//! The indexes of all shards as one, with its pictures in the order in which a single command would have listed them.
//!
//! Parts keep their bytes, under new numbers: a part is linked where the disk allows it, else copied. Each is read once before: its
//! features must be those of its key.

use super::list::{self, Entry, LIST, List, Listed};
use super::{Index, halves, other_model};
use crate::files::{self, RealDisk, composed};
use crate::results::Merged;
use crate::results::shard::{self, Placed, Record};
use crate::{Error, Kind, Result};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

const OPERATION: &str = "merge";

/// Writes the indexes of all shards as one index; it appears whole or not at all. `partial` allows gaps.
pub fn merge(parts: &[PathBuf], out: &Path, partial: bool) -> Result<Merged> {
    let records = shard::records(parts)?;
    let indexes: Vec<Index> = parts.iter().map(|p| Index::read(p)).collect::<Result<_>>()?;
    let Some(first) = indexes.first() else { return Ok(Merged::default()) };
    let mut merged = Merging { list: List::new(&first.list.identity, 1), paths: HashMap::new() };
    let mut placed = Placed::default();
    let mut renumbered: Vec<HashMap<u32, u32>> = Vec::new();
    for ((part, index), record) in parts.iter().zip(&indexes).zip(&records) {
        if !index.list.identity.is(&first.list.identity) {
            return Err(other_model(part, &index.list.identity, &first.list.identity)
                .fix("run that shard again with --rebuild and the model of the others"));
        }
        renumbered.push(merged.number(index));
        let numbers = &renumbered[renumbered.len() - 1];
        placed.take(part, record, merged.entries(index, part, record, numbers)?);
    }
    let (pictures, missing) = placed.in_turn(partial)?;
    merged.list.pictures = pictures;
    files::write_folder(out, &[], |staged| {
        for (index, numbers) in indexes.iter().zip(&renumbered) {
            numbers.iter().try_for_each(|(from, to)| merged.take(index, *from, *to, staged))?;
        }
        list::write(&RealDisk, &staged.join(LIST), &merged.list)
    })?;
    Ok(Merged { pictures: merged.list.pictures.len(), missing })
}

struct Merging {
    list: List,
    /// Which index has a picture's path.
    paths: HashMap<String, PathBuf>,
}

impl Merging {
    /// New numbers for the parts of an index.
    fn number(&mut self, index: &Index) -> HashMap<u32, u32> {
        let mut numbers = HashMap::new();
        for (number, listed) in &index.list.parts {
            let key = listed.key().unwrap_or_default().to_owned();
            self.list.parts.insert(self.list.next, Listed::Keyed { rows: listed.rows(), key });
            numbers.insert(*number, self.list.next);
            self.list.next += 1;
        }
        numbers
    }

    /// Its pictures by their composed names, in parts of new numbers.
    fn entries(
        &mut self,
        index: &Index,
        part: &Path,
        record: &Record,
        numbers: &HashMap<u32, u32>,
    ) -> Result<BTreeMap<String, Entry>> {
        let fail = |want: String, got: String| {
            Error::new(Kind::Data, OPERATION).about(part.display().to_string()).expected(want).got(got)
        };
        let mut own = BTreeMap::new();
        for e in &index.list.pictures {
            let name = composed(&e.picture.name).into_owned();
            if !record.shard().has(&name) {
                return Err(fail(
                    format!("pictures of shard {}", record.shard()),
                    format!("{name:?}, which belongs to another"),
                )
                .fix("run that shard again into an index of its own"));
            }
            if let Some(other) = self.paths.insert(e.picture.path.clone(), part.to_owned()) {
                let got = format!("{} in {}, too", e.picture.path, other.display());
                return Err(fail("each picture once".into(), got).fix("leave one of them out"));
            }
            let Some(number) = numbers.get(&e.part).copied() else { continue };
            let entry = Entry { picture: e.picture.clone(), part: number, row: e.row };
            if own.insert(name, entry).is_some() {
                let got = format!("{:?} twice", e.picture.name);
                return Err(fail("pictures of different names".into(), got)
                    .fix("index them with names of their own: --relative-to FOLDER"));
            }
        }
        Ok(own)
    }

    /// Takes a part over, under its new number.
    fn take(&self, index: &Index, from: u32, to: u32, staged: &Path) -> Result<()> {
        let path = index.part_path(from);
        let features = index.part(from)?.features;
        let key = blake3::hash(bytemuck::cast_slice(&features)).to_hex();
        let listed = index.list.parts.get(&from);
        let Some(known) = listed.and_then(Listed::key).filter(|known| *known == key.as_str()) else {
            let want = "the features that were written, under their key";
            return Err(Error::file(OPERATION, path, want, "others, or an index of an early version")
                .fix("run that shard again with --rebuild"));
        };
        let new = list::part_path(staged, to);
        link(&path, &new)?;
        let (old, new) = (halves::path_of(&index.folder, from), halves::path_of(staged, to));
        if old.exists() {
            return link(&old, &new);
        }
        let rows = listed.map_or(0, Listed::rows) as usize;
        halves::write(&RealDisk, &new, &index.shape(rows), &features, known)
    }
}

/// Another name for a file that never changes, or a copy of it.
fn link(from: &Path, to: &Path) -> Result<()> {
    if std::fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    let failed = |e| files::write_error(OPERATION, to, &e);
    std::fs::copy(from, to).map_err(failed)?;
    std::fs::File::open(to).and_then(|f| f.sync_all()).map_err(failed)
}
