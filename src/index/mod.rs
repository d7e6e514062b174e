//! An index: the features of many pictures on the disk, computed once, added to later, searched in often.
//!
//! A folder of `part-N.safetensors`, each holding `image_embeds_proj` [R,Q,E] f32 (the normalised features of R pictures),
//! and `index.json`: the model they belong to, and for each picture its path, size, time, blake3 and row. A part never
//! changes once written; the list is replaced whole, after the parts it names. So whatever stops the program, the index
//! is the last list written and all its parts; what came after is computed again.
//!
//! One writer at a time (a lock); readers need none.

mod store;
#[cfg(test)]
mod tests;

pub use store::Part;

use crate::files::{self, Disk};
use crate::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

const LIST: &str = "index.json";
const LOCK: &str = "index.lock";
const FORMAT: u32 = 1;
/// Bounds of the list's file.
const MAX_LIST: u64 = 4 << 30;

/// The model that features belong to: comparing those of two models would be meaningless.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Where it was when the index was begun; not compared.
    pub folder: String,
    /// blake3 of the model's files.
    pub model: String,
    pub num_query: usize,
    pub embed_dim: usize,
}

impl Identity {
    fn is(&self, other: &Identity) -> bool {
        (&self.model, self.num_query, self.embed_dim) == (&other.model, other.num_query, other.embed_dim)
    }
}

/// A picture file as it was when its features were computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Picture {
    pub name: String,
    /// Absolute; what tells one picture from another.
    pub path: String,
    pub bytes: u64,
    /// Nanoseconds since 1970.
    pub modified: u64,
    /// blake3 of the file.
    pub hash: String,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    picture: Picture,
    part: u32,
    row: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    format: u32,
    identity: Identity,
    /// Rows of each part, by its number.
    parts: BTreeMap<u32, u32>,
    pictures: Vec<Entry>,
}

pub struct Index {
    folder: PathBuf,
    list: List,
    by_path: HashMap<String, usize>,
    /// Rows not yet written; entries with the part number 0 point into it.
    pending: Vec<f32>,
    _lock: Option<Box<dyn Any + Send>>,
}

impl Index {
    /// Opens an index to search in it.
    pub fn read(folder: &Path) -> Result<Index> {
        Ok(Index::of(folder, read_list(folder)?, None))
    }

    /// Opens an index to add to it, or makes an empty one. One that belongs to another model is an error, unless
    /// `rebuild` says to begin it anew.
    pub fn own(disk: &dyn Disk, folder: &Path, identity: &Identity, rebuild: bool) -> Result<Index> {
        files::make_folders(disk, folder)?;
        let failed = |e| files::write_error("write index", folder, &e);
        let names = files::retry(|| disk.list(folder)).map_err(failed)?;
        let there = names.iter().any(|n| n == LIST);
        if !there && names.iter().any(|n| n != LOCK && !n.starts_with('.')) {
            let got = "a folder with other files in it";
            return Err(Error::new(Kind::Argument, "write index")
                .about(folder.display().to_string())
                .expected("an index, or an empty or new folder")
                .got(got)
                .fix("choose another --out"));
        }
        let lock = lock(disk, folder)?;
        let fresh = || List {
            format: FORMAT,
            identity: identity.clone(),
            parts: BTreeMap::new(),
            pictures: Vec::new(),
        };
        let list = if there { read_list(folder)? } else { fresh() };
        let other = there && !list.identity.is(identity);
        if other && !rebuild {
            return Err(other_model(folder, &list.identity, identity)
                .fix("give --rebuild to compute it anew with this model, or choose another --out"));
        }
        let begin = !there || rebuild;
        let index = Index::of(folder, if begin { fresh() } else { list }, Some(lock));
        if begin {
            index.write_list(disk)?;
        }
        index.remove_unlisted(disk)?;
        Ok(index)
    }

    fn of(folder: &Path, list: List, lock: Option<Box<dyn Any + Send>>) -> Index {
        let by_path = list.pictures.iter().enumerate().map(|(i, e)| (e.picture.path.clone(), i)).collect();
        Index { folder: folder.to_owned(), list, by_path, pending: Vec::new(), _lock: lock }
    }

    pub fn identity(&self) -> &Identity {
        &self.list.identity
    }

    /// An error unless the index belongs to this model.
    pub fn check(&self, identity: &Identity) -> Result<()> {
        if self.list.identity.is(identity) {
            return Ok(());
        }
        Err(other_model(&self.folder, &self.list.identity, identity)
            .fix("search with the model that made it, or make an index with this one"))
    }

    pub fn len(&self) -> usize {
        self.list.pictures.len()
    }

    pub fn is_empty(&self) -> bool {
        self.list.pictures.is_empty()
    }

    pub fn picture(&self, i: usize) -> &Picture {
        &self.list.pictures[i].picture
    }

    pub fn find(&self, path: &str) -> Option<&Picture> {
        self.by_path.get(path).map(|i| &self.list.pictures[*i].picture)
    }

    /// Adds a picture with its features [Q,E], or replaces what was known under its path.
    pub fn add(&mut self, picture: Picture, features: &[f32]) -> Result<()> {
        let size = self.row_size();
        if features.len() != size {
            return Err(Error::argument("add to index", "features", size, features.len()));
        }
        if features.iter().any(|x| !x.is_finite()) {
            return Err(Error::new(Kind::NonFinite, "add to index")
                .about(picture.path)
                .expected("finite features")
                .got("NaN or infinity")
                .fix("look into the model's weights"));
        }
        let row = (self.pending.len() / size) as u32;
        self.pending.extend_from_slice(features);
        self.put(Entry { picture, part: 0, row });
        Ok(())
    }

    /// Notes that a picture's file was written again with the same bytes.
    pub fn touch(&mut self, picture: &Picture) {
        if let Some(i) = self.by_path.get(&picture.path) {
            self.list.pictures[*i].picture = picture.clone();
        }
    }

    fn put(&mut self, entry: Entry) {
        match self.by_path.get(&entry.picture.path) {
            Some(i) => self.list.pictures[*i] = entry,
            None => {
                self.by_path.insert(entry.picture.path.clone(), self.list.pictures.len());
                self.list.pictures.push(entry);
            }
        }
    }

    /// Forgets pictures; returns how many.
    pub fn retain(&mut self, keep: impl Fn(&Picture) -> bool) -> usize {
        let before = self.len();
        self.list.pictures.retain(|e| keep(&e.picture));
        self.by_path =
            self.list.pictures.iter().enumerate().map(|(i, e)| (e.picture.path.clone(), i)).collect();
        before - self.len()
    }

    /// Whether enough is waiting to be worth a part.
    pub fn full(&self) -> bool {
        self.pending.len() / self.row_size() >= (self.len() / 16).clamp(512, 8192)
    }

    fn row_size(&self) -> usize {
        (self.list.identity.num_query * self.list.identity.embed_dim).max(1)
    }

    fn shape(&self, rows: usize) -> [usize; 3] {
        [rows, self.list.identity.num_query, self.list.identity.embed_dim]
    }

    /// Makes what was added, replaced and forgotten durable.
    pub fn save(&mut self, disk: &dyn Disk) -> Result<()> {
        if !self.pending.is_empty() {
            self.write_part(disk)?;
        }
        self.write_list(disk)
    }

    /// Rewrites the parts when most of their rows belong to no picture any more.
    pub fn tidy(&mut self, disk: &dyn Disk) -> Result<()> {
        let rows: usize = self.list.parts.values().map(|r| *r as usize).sum();
        if rows <= 2 * self.len() {
            return Ok(());
        }
        let old: Vec<u32> = self.list.parts.keys().copied().collect();
        let size = self.row_size();
        for number in old {
            let part = self.part(number)?;
            for (row, i) in &part.pictures {
                let to = (self.pending.len() / size) as u32;
                self.pending.extend_from_slice(&part.features[row * size..][..size]);
                (self.list.pictures[*i].part, self.list.pictures[*i].row) = (0, to);
            }
            if self.full() {
                self.write_part(disk)?;
            }
            self.list.parts.remove(&number);
        }
        self.save(disk)?;
        self.remove_unlisted(disk)
    }

    /// Writes the waiting rows; the list does not name the part yet.
    fn write_part(&mut self, disk: &dyn Disk) -> Result<()> {
        let number = self.next_part();
        let rows = self.pending.len() / self.row_size();
        store::write(disk, &self.part_path(number), &self.shape(rows), &std::mem::take(&mut self.pending))?;
        self.list.parts.insert(number, rows as u32);
        self.list.pictures.iter_mut().filter(|e| e.part == 0).for_each(|e| e.part = number);
        Ok(())
    }

    /// The numbers of the parts there are.
    pub fn parts(&self) -> Vec<u32> {
        self.list.parts.keys().copied().collect()
    }

    /// A part's features and the pictures they belong to.
    pub fn part(&self, number: u32) -> Result<Part> {
        let rows = self.list.parts.get(&number).copied().unwrap_or(0) as usize;
        let features = store::read(&self.part_path(number), &self.shape(rows))?;
        let of = self.list.pictures.iter().enumerate().filter(|(_, e)| e.part == number);
        let mut pictures: Vec<(usize, usize)> = of.map(|(i, e)| (e.row as usize, i)).collect();
        pictures.sort_unstable();
        Ok(Part { features, pictures })
    }

    fn next_part(&self) -> u32 {
        // Numbers are never used twice while a list that names them may be on the disk.
        let listed = self.list.parts.keys().next_back().copied().unwrap_or(0);
        (listed + 1..).find(|n| !self.part_path(*n).exists()).unwrap_or(listed + 1)
    }

    fn part_path(&self, number: u32) -> PathBuf {
        self.folder.join(format!("part-{number:06}.safetensors"))
    }

    fn write_list(&self, disk: &dyn Disk) -> Result<()> {
        let path = self.folder.join(LIST);
        let text =
            serde_json::to_vec(&self.list).map_err(|e| Error::new(Kind::Write, "write index").got(e))?;
        files::write_atomic(disk, &path, text.len() as u64, |to| to.write_all(&text))
    }

    /// Parts that no list names: of a run that was stopped, or no longer needed.
    fn remove_unlisted(&self, disk: &dyn Disk) -> Result<()> {
        files::remove_leftovers(disk, &self.folder)?;
        let failed = |e| files::write_error("tidy index", &self.folder, &e);
        for name in files::retry(|| disk.list(&self.folder)).map_err(failed)? {
            let number = name.strip_prefix("part-").and_then(|n| n.strip_suffix(".safetensors"));
            if number.and_then(|n| n.parse().ok()).is_some_and(|n| !self.list.parts.contains_key(&n)) {
                files::retry(|| disk.remove(&self.folder.join(&name))).map_err(failed)?;
            }
        }
        Ok(())
    }
}

fn lock(disk: &dyn Disk, folder: &Path) -> Result<Box<dyn Any + Send>> {
    let path = folder.join(LOCK);
    disk.lock(&path, &std::process::id().to_string()).map_err(|e| match e.kind() {
        std::io::ErrorKind::WouldBlock => Error::new(Kind::Write, "write index")
            .about(folder.display().to_string())
            .got("another process is writing to it")
            .fix("wait until it has ended"),
        _ => files::write_error("write index", &path, &e),
    })
}

fn other_model(folder: &Path, has: &Identity, wanted: &Identity) -> Error {
    let short = |i: &Identity| {
        format!("{} ({} x {})", i.model.get(..12).unwrap_or(&i.model), i.num_query, i.embed_dim)
    };
    Error::file(
        "open index",
        folder,
        format!("an index of model {}", short(wanted)),
        format!("one of model {}", short(has)),
    )
}

/// Reads and checks a list: what it says about parts and rows is believed afterwards.
fn read_list(folder: &Path) -> Result<List> {
    let path = folder.join(LIST);
    let wrong = |got: String| {
        Error::file("open index", &path, "the list of an index", got)
            .fix("make the index anew in another folder")
    };
    let length = std::fs::metadata(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::file("open index", folder, "a folder made by `search index`", "no index.json")
                .fix("make one: qformer search index --model DIR --out INDEX PICTURES")
        }
        _ => Error::io("open index", &path, &e),
    })?;
    if length.len() > MAX_LIST {
        return Err(wrong(format!("{} bytes", length.len())));
    }
    let bytes = std::fs::read(&path).map_err(|e| Error::io("open index", &path, &e))?;
    let list: List = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
    if list.format != FORMAT {
        return Err(wrong(format!("format {}, this program knows {FORMAT}", list.format)));
    }
    let i = &list.identity;
    if !(1..=1 << 14).contains(&i.num_query) || !(1..=1 << 14).contains(&i.embed_dim) {
        return Err(wrong(format!("{} queries of {} numbers", i.num_query, i.embed_dim)));
    }
    let mut paths = std::collections::HashSet::new();
    for e in &list.pictures {
        if list.parts.get(&e.part).is_none_or(|rows| e.row >= *rows) {
            return Err(wrong(format!(
                "{:?} in row {} of part {}, which is not there",
                e.picture.name, e.row, e.part
            )));
        }
        if !paths.insert(&e.picture.path) {
            return Err(wrong(format!("{:?} twice", e.picture.path)));
        }
    }
    Ok(list)
}
