//! What a reader of an index sees of its parts: their features, in 32 and in 16 bits, and whose they are.

use super::list::{self, List, Listed};
use super::{Halves, Index, Part, halves, store};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, PoisonError};

impl Index {
    /// Every part with its rows and the places of their pictures.
    pub fn places(&self) -> BTreeMap<u32, Vec<(usize, usize)>> {
        let mut places: BTreeMap<u32, Vec<(usize, usize)>> = BTreeMap::new();
        for (i, e) in self.list.pictures.iter().enumerate() {
            places.entry(e.part).or_default().push((e.row as usize, i));
        }
        places
    }

    /// A part in 16 bits, checked when it is first asked for; `None` if there is none.
    pub fn halves(&self, number: u32) -> Result<Option<Arc<Halves>>> {
        let mut opened = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        let path = halves::path_of(&self.folder, number);
        if let Some(known) = opened.get(&number) {
            known.iter().try_for_each(|halves| halves.check(&path))?;
            return Ok(known.clone());
        }
        let listed = self.list.parts.get(&number);
        let key = listed.and_then(|l| Some((l.rows() as usize, l.key()?)));
        let halves = match key {
            Some((rows, key)) => halves::open(&path, &self.shape(rows), key)?.map(Arc::new),
            None => None,
        };
        opened.insert(number, halves.clone());
        Ok(halves)
    }

    /// The features `[Q,E]` of one row of a part.
    pub fn row(&self, number: u32, row: usize) -> Result<Vec<f32>> {
        let path = self.part_path(number);
        let size = self.row_size();
        let features = match self.files.get(&number) {
            Some(file) => store::row(file, &path, size, row)?,
            None => store::row(&store::open(&path)?, &path, size, row)?,
        };
        if let Some(halves) = self.halves(number)? {
            let rounded = features.iter().map(|x| half::f16::from_f32(*x).to_le_bytes());
            if !rounded.eq(halves.of(row..row + 1).iter().copied()) {
                return Err(Error::file("read index", &path, "the features of its 16 bits", "others")
                    .fix("the file was damaged or changed: make the index anew in another folder"));
            }
        }
        Ok(features)
    }

    /// The numbers of the parts there are.
    pub fn parts(&self) -> Vec<u32> {
        self.list.parts.keys().copied().collect()
    }

    /// A part's features and the pictures they belong to.
    pub fn part(&self, number: u32) -> Result<Part> {
        let path = self.part_path(number);
        let listed = self.list.parts.get(&number);
        let rows = listed.map_or(0, Listed::rows) as usize;
        let own = listed.and_then(Listed::key).map(|key| (self.list.identity.model.as_str(), key));
        let features = match self.files.get(&number) {
            Some(file) => store::read(file, &path, &self.shape(rows), own)?,
            None => store::read(&store::open(&path)?, &path, &self.shape(rows), own)?,
        };
        let of = self.list.pictures.iter().enumerate().filter(|(_, e)| e.part == number);
        let mut pictures: Vec<(usize, usize)> = of.map(|(i, e)| (e.row as usize, i)).collect();
        pictures.sort_unstable();
        Ok(Part { features, pictures })
    }
}

/// Every part of a list.
pub(super) fn open_parts(folder: &Path, list: &List) -> Result<BTreeMap<u32, File>> {
    allow_files(list.parts.len() as u64);
    let open = |n: &u32| Ok((*n, store::open(&list::part_path(folder, *n))?));
    list.parts.keys().map(open).collect()
}

/// An index of many millions of pictures has more parts than a process may open unless it asks; best effort.
fn allow_files(number: u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let wanted = number.saturating_add(256);
    if now.current.is_some_and(|n| n < wanted) {
        let current = Some(now.maximum.map_or(wanted, |most| most.min(wanted)));
        let _ = setrlimit(Resource::Nofile, Rlimit { current, ..now });
    }
}
