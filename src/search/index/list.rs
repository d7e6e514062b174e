//! The list of an index: the model, the parts and the pictures in them.

use super::{Identity, Picture};
use crate::files::{self, Disk};
use crate::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(super) const LIST: &str = "index.json";
/// The list of an index that is built anew.
pub(super) const REBUILD: &str = "rebuild.json";
/// 1 knew no keys of parts and numbered them anew; it is still read.
const FORMAT: u32 = 2;
/// Bounds of the list's file.
const MAX_LIST: u64 = 4 << 30;

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub picture: Picture,
    pub part: u32,
    pub row: u32,
}

/// A part as the list knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Listed {
    /// Of format 1: its rows alone.
    Rows(u32),
    /// `key` is the blake3 of its features, which its file holds, too.
    Keyed { rows: u32, key: String },
}

impl Listed {
    pub fn rows(&self) -> u32 {
        match self {
            Listed::Rows(rows) | Listed::Keyed { rows, .. } => *rows,
        }
    }

    pub fn key(&self) -> Option<&str> {
        match self {
            Listed::Rows(_) => None,
            Listed::Keyed { key, .. } => Some(key),
        }
    }
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct List {
    pub format: u32,
    pub identity: Identity,
    /// The number of the next part: none is used twice.
    #[serde(default)]
    pub next: u32,
    pub parts: BTreeMap<u32, Listed>,
    pub pictures: Vec<Entry>,
}

impl List {
    pub fn new(identity: &Identity, next: u32) -> List {
        let (parts, pictures) = (BTreeMap::new(), Vec::new());
        List { format: FORMAT, identity: identity.clone(), next, parts, pictures }
    }
}

pub(super) fn part_path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("part-{number:06}.safetensors"))
}

/// The number in the name of a part's file.
pub(super) fn part_number(name: &str) -> Option<u32> {
    name.strip_prefix("part-")?.strip_suffix(".safetensors")?.parse().ok()
}

pub(super) fn write(disk: &dyn Disk, path: &Path, list: &List) -> Result<()> {
    let text = serde_json::to_vec(list).map_err(|e| Error::new(Kind::Write, "write index").got(e))?;
    files::write_atomic(disk, path, text.len() as u64, |to| to.write_all(&text))
}

/// Reads and checks a list: what it says about parts and rows is believed afterwards.
pub(super) fn read(folder: &Path, name: &str) -> Result<List> {
    let path = folder.join(name);
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
    let mut list: List = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
    if !(1..=FORMAT).contains(&list.format) {
        return Err(wrong(format!("format {}, this program knows {FORMAT}", list.format)));
    }
    let i = &list.identity;
    if !(1..=1 << 14).contains(&i.num_query) || !(1..=1 << 14).contains(&i.embed_dim) {
        return Err(wrong(format!("{} queries of {} numbers", i.num_query, i.embed_dim)));
    }
    let mut paths = std::collections::HashSet::new();
    for e in &list.pictures {
        if list.parts.get(&e.part).is_none_or(|part| e.row >= part.rows()) {
            return Err(wrong(format!(
                "{:?} in row {} of part {}, which is not there",
                e.picture.name, e.row, e.part
            )));
        }
        if !paths.insert(&e.picture.path) {
            return Err(wrong(format!("{:?} twice", e.picture.path)));
        }
    }
    let last = list.parts.keys().next_back().copied().unwrap_or(0);
    list.next = list.next.max(last.saturating_add(1));
    list.format = FORMAT;
    Ok(list)
}
