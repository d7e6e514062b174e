//! An index: the features of many pictures on the disk, computed once, added to later, searched in often.
//!
//! A folder of `part-N.safetensors`, each holding `image_embeds_proj` `[R,Q,E]` f32 (the normalised features of R pictures),
//! and `index.json`: the model they belong to, and for each picture its path, size, time, blake3 and row. A part never
//! changes once written and its number is never used again; it names its model, and the list its key (blake3 of the
//! features), so parts and lists of different times cannot be mixed up. The list is replaced whole, after the parts it names.
//! So whatever stops the program, the index is the last list written and all its parts; what came after is computed again.
//!
//! Beside each part lie its features in 16 bits (`halves`), which a search goes through.
//!
//! An index that is built anew has its list in `rebuild.json` until it is complete and takes the old one's name.
//!
//! One writer at a time (a lock); a reader opens all parts of a list at once and keeps them, whatever a writer does then.
//! Pictures of the same bytes share a row, so a picture that was moved or copied is not computed again.

mod halves;
mod list;
mod merge;
mod parts;
mod store;
#[cfg(test)]
mod tests;

pub use halves::Halves;
pub use merge::merge;
pub use store::Part;

use crate::files::{self, Disk};
use crate::pretrained::Pretrained;
use crate::{Error, Kind, Result};
use list::{Entry, LIST, List, Listed, REBUILD, part_number};
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

const LOCK: &str = "index.lock";

/// The model that features belong to: comparing those of two models would be meaningless.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Where it was when the index was begun; not compared.
    pub folder: String,
    /// blake3 of the model's files.
    pub model: String,
    /// Queries of a picture.
    pub num_query: usize,
    /// Columns of a feature.
    pub embed_dim: usize,
}

impl Identity {
    /// Of a model that was opened from a folder: its numbers and its sizes.
    pub fn of(model: &Pretrained, folder: &Path) -> Identity {
        let c = &model.model.config;
        let mut hash = blake3::Hasher::new();
        hash.update(model.identity.as_bytes()).update(format!("{c:?}").as_bytes());
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned()).display().to_string();
        let model = hash.finalize().to_hex().to_string();
        Identity { folder, model, num_query: c.num_query, embed_dim: c.embed_dim }
    }

    fn is(&self, other: &Identity) -> bool {
        (&self.model, self.num_query, self.embed_dim) == (&other.model, other.num_query, other.embed_dim)
    }
}

/// A picture file as it was when its features were computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Picture {
    /// As it is shown.
    pub name: String,
    /// Absolute; what tells one picture from another.
    pub path: String,
    /// Of the file.
    pub bytes: u64,
    /// Nanoseconds since 1970.
    pub modified: u64,
    /// blake3 of the file.
    pub hash: String,
}

/// Features of many pictures in a folder.
pub struct Index {
    folder: PathBuf,
    list: List,
    /// The list's file: of an index that is built anew, not yet the one that is searched in.
    name: &'static str,
    /// What is searched in until then.
    published: Option<List>,
    by_path: HashMap<String, usize>,
    /// Places of the pictures of the same bytes; some may have changed since.
    by_hash: HashMap<String, Vec<usize>>,
    /// Rows not yet written; entries with the part number 0 point into it.
    pending: Vec<f32>,
    /// Of a reader: the parts.
    files: BTreeMap<u32, File>,
    /// Of a reader: parts in 16 bits, as far as they were opened.
    halves: Mutex<BTreeMap<u32, Option<Arc<Halves>>>>,
    /// Behind a mutex, as an index may be read on several threads.
    _lock: Option<Mutex<Box<dyn Any + Send>>>,
}

/// How a picture whose bytes are known came to be in the index.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Adopted {
    /// Its file was elsewhere and is there no longer.
    Moved,
    /// There is another file of the same bytes.
    Copied,
}

impl Index {
    /// When the index in a folder was last written.
    pub fn written(folder: &Path) -> Option<std::time::SystemTime> {
        std::fs::metadata(folder.join(LIST)).ok()?.modified().ok()
    }

    /// Opens an index to search in it.
    pub fn read(folder: &Path) -> Result<Index> {
        let mut list = list::read(folder, LIST)?;
        loop {
            match parts::open_parts(folder, &list) {
                Ok(files) => return Ok(Index { files, ..Index::of(folder, list, LIST) }),
                // A writer may have taken parts away that its new list does not name.
                Err(e) => {
                    let now = list::read(folder, LIST)?;
                    if now.parts == list.parts {
                        return Err(e);
                    }
                    list = now;
                }
            }
        }
    }

    /// Opens an index to add to it, or makes an empty one. One that belongs to another model is an error, unless
    /// `rebuild` says to begin it anew; it is searched in until [`Index::publish`].
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
        // Only now nobody else writes.
        let names = files::retry(|| disk.list(folder)).map_err(failed)?;
        let there = names.iter().any(|n| n == LIST);
        let current = if there { Some(list::read(folder, LIST)?) } else { None };
        if let Some(current) = current.as_ref().filter(|c| !rebuild && !c.identity.is(identity)) {
            return Err(other_model(folder, &current.identity, identity)
                .fix("give --rebuild to compute it anew with this model, or choose another --out"));
        }
        let used = names.iter().filter_map(|n| part_number(n)).max().unwrap_or(0);
        let next = current.as_ref().map_or(1, |c| c.next).max(used.saturating_add(1));
        let mut index = match current {
            None => Index::of(folder, List::new(identity, next), LIST),
            Some(current) if rebuild => {
                // One that was interrupted is continued.
                let begun = list::read(folder, REBUILD).ok().filter(|l| l.identity.is(identity));
                let list = begun.unwrap_or_else(|| List::new(identity, next));
                Index { published: Some(current), ..Index::of(folder, list, REBUILD) }
            }
            Some(current) => Index::of(folder, current, LIST),
        };
        index.list.next = index.list.next.max(next);
        index._lock = Some(Mutex::new(lock));
        // A list that nobody continues is removed; the numbers of its parts stay used.
        if !there || rebuild || names.iter().any(|n| n == REBUILD) {
            index.write_list(disk)?;
        }
        index.remove_unlisted(disk)?;
        Ok(index)
    }

    fn of(folder: &Path, list: List, name: &'static str) -> Index {
        let mut index = Index {
            folder: folder.to_owned(),
            list,
            name,
            published: None,
            by_path: HashMap::new(),
            by_hash: HashMap::new(),
            pending: Vec::new(),
            files: BTreeMap::new(),
            halves: Mutex::default(),
            _lock: None,
        };
        index.find_places();
        index
    }

    fn find_places(&mut self) {
        (self.by_path, self.by_hash) = (HashMap::new(), HashMap::new());
        for (i, e) in self.list.pictures.iter().enumerate() {
            self.by_path.insert(e.picture.path.clone(), i);
            self.by_hash.entry(e.picture.hash.clone()).or_default().push(i);
        }
    }

    /// The model it belongs to.
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

    /// How many pictures it has.
    pub fn len(&self) -> usize {
        self.list.pictures.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.list.pictures.is_empty()
    }

    /// The picture at a place.
    pub fn picture(&self, i: usize) -> &Picture {
        &self.list.pictures[i].picture
    }

    /// The picture of a path.
    pub fn find(&self, path: &str) -> Option<&Picture> {
        self.by_path.get(path).map(|i| &self.list.pictures[*i].picture)
    }

    /// Adds a picture with its features `[Q,E]`, or replaces what was known under its path.
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

    /// Sizes of the pictures there are, and the hashes of their bytes.
    pub fn contents(&self) -> (HashSet<u64>, HashSet<String>) {
        let pictures = || self.list.pictures.iter().map(|e| &e.picture);
        (pictures().map(|p| p.bytes).collect(), pictures().map(|p| p.hash.clone()).collect())
    }

    /// Takes a picture in with the features of another of the same bytes: of one whose file is `gone` it takes the place.
    /// `None` if there is none of these bytes any more.
    pub fn adopt(&mut self, picture: &Picture, gone: impl Fn(&Picture) -> bool) -> Option<Adopted> {
        let same = |i: &&usize| self.list.pictures.get(**i).is_some_and(|e| e.picture.hash == picture.hash);
        let twins: Vec<usize> = self.by_hash.get(&picture.hash)?.iter().filter(same).copied().collect();
        let new = !self.by_path.contains_key(&picture.path);
        if let Some(old) = twins.iter().copied().find(|i| new && gone(&self.list.pictures[*i].picture)) {
            self.by_path.remove(&self.list.pictures[old].picture.path);
            self.by_path.insert(picture.path.clone(), old);
            self.list.pictures[old].picture = picture.clone();
            return Some(Adopted::Moved);
        }
        let Entry { part, row, .. } = self.list.pictures[*twins.first()?];
        self.put(Entry { picture: picture.clone(), part, row });
        Some(Adopted::Copied)
    }

    /// Notes that a picture's file was written again with the same bytes.
    pub fn touch(&mut self, picture: &Picture) {
        if let Some(i) = self.by_path.get(&picture.path) {
            self.list.pictures[*i].picture = picture.clone();
        }
    }

    fn put(&mut self, entry: Entry) {
        let place = self.by_path.get(&entry.picture.path).copied().unwrap_or(self.list.pictures.len());
        self.by_path.insert(entry.picture.path.clone(), place);
        self.by_hash.entry(entry.picture.hash.clone()).or_default().push(place);
        match self.list.pictures.get_mut(place) {
            Some(old) => *old = entry,
            None => self.list.pictures.push(entry),
        }
    }

    /// Forgets pictures; returns how many.
    pub fn retain(&mut self, keep: impl Fn(&Picture) -> bool) -> usize {
        let before = self.len();
        self.list.pictures.retain(|e| keep(&e.picture));
        self.find_places();
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

    /// The index that was built anew takes the place of the old one, if it is one.
    pub fn publish(&mut self, disk: &dyn Disk) -> Result<()> {
        if self.published.is_none() {
            return Ok(());
        }
        let (from, to) = (self.folder.join(REBUILD), self.folder.join(LIST));
        let failed = |e| files::write_error("write index", &to, &e);
        files::retry(|| disk.rename(&from, &to)).map_err(failed)?;
        files::retry(|| disk.sync_folder(&self.folder)).map_err(failed)?;
        (self.name, self.published) = (LIST, None);
        self.remove_unlisted(disk)
    }

    /// Rewrites the parts when most of their rows belong to no picture any more.
    pub fn tidy(&mut self, disk: &dyn Disk) -> Result<()> {
        let rows: usize = self.list.parts.values().map(|p| p.rows() as usize).sum();
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
        let number = self.list.next;
        let rows = self.pending.len() / self.row_size();
        let (path, model) = (self.part_path(number), &self.list.identity.model);
        let key = store::write(disk, &path, &self.shape(rows), &self.pending, model)?;
        halves::write(disk, &halves::path_of(&self.folder, number), &self.shape(rows), &self.pending, &key)?;
        self.pending.clear();
        self.list.next += 1;
        self.list.parts.insert(number, Listed::Keyed { rows: rows as u32, key });
        self.list.pictures.iter_mut().filter(|e| e.part == 0).for_each(|e| e.part = number);
        Ok(())
    }

    fn part_path(&self, number: u32) -> PathBuf {
        list::part_path(&self.folder, number)
    }

    fn write_list(&self, disk: &dyn Disk) -> Result<()> {
        list::write(disk, &self.folder.join(self.name), &self.list)
    }

    /// Parts that no list names: of a run that was stopped, or no longer needed. So is a list that nobody continues.
    fn remove_unlisted(&self, disk: &dyn Disk) -> Result<()> {
        files::remove_leftovers(disk, &self.folder)?;
        let failed = |e| files::write_error("tidy index", &self.folder, &e);
        let lists = || std::iter::once(&self.list).chain(&self.published);
        for name in files::retry(|| disk.list(&self.folder)).map_err(failed)? {
            let number = part_number(&name).or_else(|| halves::number_of(&name));
            let part = number.is_some_and(|n| lists().all(|l| !l.parts.contains_key(&n)));
            if part || name == REBUILD && self.name != REBUILD {
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
