//! Which files hold a checkpoint.
//!
//! In a folder, as transformers looks for them: `model.safetensors`; else what `model.safetensors.index.json` names; else
//! `pytorch_model.bin`; else what its index names; else shards whose names count them (`...-00002-of-00003.bin`), all of which
//! must be there. `vit.safetensors` beside them is the image encoder of our own folders. An index may be given itself.
//! Files beside those - shards of an earlier save - are left alone.

use super::source::OP;
use crate::files;
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// The frozen image encoder of our folders.
pub const VIT_FILE: &str = "vit.safetensors";

const SINGLE: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
const INDEX: &str = ".index.json";
const MOST_INDEX: u64 = 64 << 20;
const FETCH: &str = "download or copy it, too: a checkpoint in shards is all of its files";

pub(super) struct Files {
    pub paths: Vec<PathBuf>,
    pub index: Option<Index>,
}

/// What an index says.
pub(super) struct Index {
    /// Of the index itself.
    pub name: String,
    /// Which of the paths holds a tensor.
    pub places: HashMap<String, usize>,
    /// How many of the paths are shards; they come first.
    pub shards: usize,
}

pub(super) fn files(path: &Path) -> Result<Files> {
    if path.is_dir() {
        return of_folder(path);
    }
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    match name.ends_with(INDEX) {
        true => of_index(files::folder_of(path), &name),
        false => Ok(Files { paths: vec![path.to_path_buf()], index: None }),
    }
}

fn of_folder(folder: &Path) -> Result<Files> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(OP, folder, &e))? {
        let entry = entry.map_err(|e| Error::io(OP, folder, &e))?;
        names.extend(entry.file_name().into_string().ok());
    }
    let single = |name: &str| Files { paths: vec![folder.join(name)], index: None };
    let mut found = None;
    for name in SINGLE {
        let index = format!("{name}{INDEX}");
        if names.contains(name) {
            found = Some(single(name));
        } else if names.contains(&index) {
            found = Some(of_index(folder, &index)?);
        }
        if found.is_some() {
            break;
        }
    }
    let mut found = match found {
        Some(found) => found,
        None => Files { paths: counted(folder, &names)?, index: None },
    };
    if names.contains(VIT_FILE) {
        found.paths.push(folder.join(VIT_FILE));
    }
    if found.paths.is_empty() {
        let expected = format!("a folder with {} or {}", SINGLE[0], SINGLE[1]);
        return Err(Error::file(OP, folder, expected, "neither").fix("name the file of weights itself"));
    }
    Ok(found)
}

/// Whether anything in a folder looks like weights, of whatever kind.
pub fn is_checkpoint(folder: &Path) -> bool {
    const ENDS: [&str; 8] = [".safetensors", INDEX, ".bin", ".pth", ".pt", ".ckpt", ".h5", ".msgpack"];
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    names
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .any(|n| ENDS.iter().any(|end| n.ends_with(end)))
}

#[derive(serde::Deserialize)]
struct IndexFile {
    weight_map: BTreeMap<String, String>,
}

fn of_index(folder: &Path, name: &str) -> Result<Files> {
    let path = folder.join(name);
    let bytes = files::read_regular(&path, MOST_INDEX, OP)?;
    let refuse = |got: String| {
        Error::file(OP, &path, "an index of shards (weight_map: names of tensors and files)", got)
            .fix("download or copy it again, or name the file of weights itself")
    };
    let IndexFile { weight_map } = serde_json::from_slice(&bytes).map_err(|e| refuse(e.to_string()))?;
    let shards: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
    for shard in &shards {
        if shard.is_empty() || shard.contains(['/', '\\', '\0']) || *shard == ".." {
            return Err(refuse(format!("the file name {shard:?}")));
        }
        present(folder, shard, name)?;
    }
    if shards.is_empty() {
        return Err(refuse("no tensor".into()));
    }
    let number: HashMap<&str, usize> = shards.iter().enumerate().map(|(i, shard)| (*shard, i)).collect();
    let place = |(tensor, shard): (&String, &String)| Some((tensor.clone(), *number.get(shard.as_str())?));
    let places = weight_map.iter().filter_map(place).collect();
    let paths: Vec<PathBuf> = shards.iter().map(|shard| folder.join(shard)).collect();
    Ok(Files { index: Some(Index { name: name.into(), places, shards: paths.len() }), paths })
}

/// An error that names the shard, if it is not there.
fn present(folder: &Path, shard: &str, named_by: &str) -> Result<()> {
    let path = folder.join(shard);
    match std::fs::metadata(&path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::file(OP, path, format!("the shard that {named_by} names"), "no such file").fix(FETCH))
        }
        Err(e) => Err(Error::io(OP, path, &e)),
    }
}

/// Shards that count themselves, without an index: those of the one series that is there.
fn counted(folder: &Path, names: &BTreeSet<String>) -> Result<Vec<PathBuf>> {
    let mut series: BTreeMap<(&str, usize, &str), BTreeSet<usize>> = BTreeMap::new();
    for name in names {
        if let Some((begin, number, total, end)) = shard(name) {
            series.entry((begin, total, end)).or_default().insert(number);
        }
    }
    let whole = |((_, total, _), numbers): &(&(&str, usize, &str), &BTreeSet<usize>)| numbers.len() == *total;
    let complete: Vec<_> = series.iter().filter(whole).collect();
    let chosen = match (&complete[..], series.iter().next()) {
        ([one], _) => *one,
        ([], Some(first)) => first,
        ([], None) => return Ok(Vec::new()),
        _ => {
            let got = format!("shards of {} checkpoints", complete.len());
            return Err(Error::file(OP, folder, "those of one", got)
                .fix("keep the files of one checkpoint, or its index (*.index.json), in the folder"));
        }
    };
    let ((begin, total, end), _) = chosen;
    let shards: Vec<String> = (1..=*total).map(|n| format!("{begin}-{n:05}-of-{total:05}{end}")).collect();
    shards.iter().try_for_each(|shard| present(folder, shard, "its neighbours' names count: it"))?;
    Ok(shards.iter().map(|shard| folder.join(shard)).collect())
}

/// `BEGIN-00002-of-00003END`: (begin, 2, 3, end), where the numbers make sense and the end is that of weights.
fn shard(name: &str) -> Option<(&str, usize, usize, &str)> {
    let (head, tail) = name.split_once("-of-")?;
    let (begin, number) = head.rsplit_once('-')?;
    let end = [".safetensors", ".bin", ".pth", ".pt"].into_iter().find(|end| tail.ends_with(end))?;
    let total = tail.strip_suffix(end)?;
    let digits =
        |n: &str| (n.len() == 5 && n.bytes().all(|b| b.is_ascii_digit())).then(|| n.parse().ok()).flatten();
    let (number, total) = (digits(number)?, digits(total)?);
    (1..=total).contains(&number).then_some((begin, number, total, end))
}
