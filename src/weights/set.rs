//! Several files as one: a model folder, a checkpoint in shards, or a single file.

use super::folder::{self, Files};
use super::{Info, Weights, source};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::Path;

/// Open files, and which of them has a tensor.
pub struct Set {
    files: Vec<Weights>,
    index: HashMap<String, usize>,
}

impl Set {
    /// A file, the weights of a folder (see `folder.rs`), or those that an index (`*.index.json`) names.
    pub fn open(path: &Path) -> Result<Set> {
        let Files { paths, index } = folder::files(path)?;
        let files = paths.iter().map(|f| Weights::open(f)).collect::<Result<Vec<_>>>()?;
        match index {
            None => Set::of(files),
            Some(index) => Set::indexed(files, index),
        }
    }

    /// Of shards, the index of which says what to take from which; of files behind them, everything.
    fn indexed(files: Vec<Weights>, index: folder::Index) -> Result<Set> {
        for (name, i) in &index.places {
            if files.get(*i).is_none_or(|f| f.get(name).is_none()) {
                let path = files.get(*i).map(|f| f.path().to_path_buf()).unwrap_or_default();
                let expected = format!("a tensor {name}, as {} says", index.name);
                return Err(Error::file(source::OP, path, expected, "none")
                    .fix("the files are of two checkpoints: download or copy all of them again"));
            }
        }
        let mut set = Set { files, index: index.places };
        let beyond: Vec<(String, usize)> = (index.shards..set.files.len())
            .filter_map(|i| Some((i, set.files.get(i)?)))
            .flat_map(|(i, f)| f.tensors().iter().map(move |t| (t.name.clone(), i)))
            .collect();
        for (name, i) in beyond {
            set.add(name, i)?;
        }
        Ok(set)
    }

    fn add(&mut self, name: String, file: usize) -> Result<()> {
        let Some(first) = self.index.insert(name.clone(), file) else { return Ok(()) };
        let path = |i: usize| self.files.get(i).map(|f| f.path().to_path_buf()).unwrap_or_default();
        let got = format!("{name:?}, which is in {}, too", path(first).display());
        Err(Error::file(source::OP, path(file), "names of its own", got))
    }

    /// Of files that are open; an error if two have a tensor of one name.
    pub fn of(files: Vec<Weights>) -> Result<Set> {
        let name = |(i, file): (usize, &Weights)| -> Vec<(String, usize)> {
            file.tensors().iter().map(|t| (t.name.clone(), i)).collect()
        };
        let names: Vec<(String, usize)> = files.iter().enumerate().flat_map(name).collect();
        let mut set = Set { files, index: HashMap::with_capacity(names.len()) };
        names.into_iter().try_for_each(|(name, i)| set.add(name, i))?;
        Ok(set)
    }

    /// The files it is made of.
    pub fn files(&self) -> &[Weights] {
        &self.files
    }

    /// All tensors, file by file.
    pub fn tensors(&self) -> impl Iterator<Item = &Info> {
        let here = |i: usize, t: &&Info| self.index.get(&t.name) == Some(&i);
        self.files.iter().enumerate().flat_map(move |(i, f)| f.tensors().iter().filter(move |t| here(i, t)))
    }

    /// A tensor by its name.
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

    /// The bytes of a tensor.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        self.holder(name)?.bytes(name)
    }

    /// The numbers of a tensor.
    pub fn f32(&self, name: &str) -> Result<Vec<f32>> {
        self.holder(name)?.f32(name)
    }
}
