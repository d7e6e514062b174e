//! Several files as one: a model folder, a checkpoint in shards, or a single file.

use super::{Info, Weights, source};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Open files whose names are disjoint.
pub struct Set {
    files: Vec<Weights>,
    index: HashMap<String, usize>,
}

/// What the main file of a folder may be called, the first that is there counts.
const SINGLE: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
/// Beginning and end of the names of shards.
const SHARDS: [(&str, &str); 2] = [("model-", ".safetensors"), ("pytorch_model-", ".bin")];
/// The frozen image encoder of our folders.
pub const VIT_FILE: &str = "vit.safetensors";

impl Set {
    /// A file, or the weights of a folder: `model.safetensors` or `pytorch_model.bin`, or their shards, and
    /// `vit.safetensors` beside them.
    pub fn open(path: &Path) -> Result<Set> {
        let files: Vec<PathBuf> = if path.is_dir() { files_of(path)? } else { vec![path.to_path_buf()] };
        Set::of(files.iter().map(|f| Weights::open(f)).collect::<Result<_>>()?)
    }

    /// Of files that are open; an error if two have a tensor of one name.
    pub fn of(files: Vec<Weights>) -> Result<Set> {
        let mut index = HashMap::new();
        for (i, file) in files.iter().enumerate() {
            for t in file.tensors() {
                if let Some(first) = index.insert(t.name.clone(), i) {
                    let first = files.get(first).map(|f| f.path().display().to_string()).unwrap_or_default();
                    let got = format!("{:?}, which is in {first}, too", t.name);
                    return Err(Error::file(source::OP, file.path(), "names of its own", got));
                }
            }
        }
        Ok(Set { files, index })
    }

    pub fn files(&self) -> &[Weights] {
        &self.files
    }

    pub fn tensors(&self) -> impl Iterator<Item = &Info> {
        self.files.iter().flat_map(Weights::tensors)
    }

    pub fn get(&self, name: &str) -> Option<&Info> {
        self.file(name)?.get(name)
    }

    fn file(&self, name: &str) -> Option<&Weights> {
        self.files.get(*self.index.get(name)?)
    }

    /// A value of the metadata of the first file that has it.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.files.iter().find_map(|f| f.metadata().get(key)).map(String::as_str)
    }

    /// The file that holds a tensor.
    pub fn holder(&self, name: &str) -> Result<&Weights> {
        let path = || self.files.first().map(|f| f.path().to_path_buf()).unwrap_or_default();
        self.file(name).ok_or_else(|| Error::file(source::OP, path(), format!("a tensor {name}"), "none"))
    }

    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        self.holder(name)?.bytes(name)
    }

    pub fn f32(&self, name: &str) -> Result<Vec<f32>> {
        self.holder(name)?.f32(name)
    }
}

fn files_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(source::OP, folder, &e))? {
        let entry = entry.map_err(|e| Error::io(source::OP, folder, &e))?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort();
    let single = SINGLE.iter().find(|s| names.iter().any(|n| n == *s)).map(|s| vec![s.to_string()]);
    let shards = || {
        SHARDS.iter().find_map(|(begin, end)| {
            let fits = |n: &&String| n.starts_with(begin) && n.ends_with(end);
            let found: Vec<String> = names.iter().filter(fits).cloned().collect();
            (!found.is_empty()).then_some(found)
        })
    };
    let mut chosen = single.or_else(shards).unwrap_or_default();
    chosen.extend(names.iter().filter(|n| *n == VIT_FILE).cloned());
    if chosen.is_empty() {
        let expected = format!("a folder with {} or {}", SINGLE[0], SINGLE[1]);
        return Err(
            Error::file(source::OP, folder, expected, "neither").fix("name the file of weights itself")
        );
    }
    Ok(chosen.iter().map(|n| folder.join(n)).collect())
}
