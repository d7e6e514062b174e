//! Stands for `json.rs` in a build without the feature `tokenizer-json`: its files are refused by name.

use crate::{Error, Result};
use std::path::Path;

pub enum Json {}

fn refused(path: &Path) -> Error {
    Error::file("open the tokenizer", path, "a build with the feature tokenizer-json", "one without it")
        .fix("build with it, or use a folder with tokenizer.model or spiece.model")
}

impl Json {
    pub fn open(path: &Path) -> Result<Json> {
        Err(refused(path))
    }

    pub fn open_merges(directory: &Path, _: bool, _: &[String]) -> Result<Json> {
        Err(refused(&directory.join("merges.txt")))
    }

    pub fn len(&self) -> usize {
        match *self {}
    }

    pub fn id(&self, _: &str) -> Option<u32> {
        match *self {}
    }

    pub fn unknown(&self) -> Option<u32> {
        match *self {}
    }

    pub fn is_byte(&self, _: u32) -> bool {
        match *self {}
    }

    pub fn normalize(&self, _: &str) -> Result<String> {
        match *self {}
    }

    pub fn encode(&self, _: &str, _: bool) -> Result<Vec<u32>> {
        match *self {}
    }

    pub fn decode(&self, _: &[u32]) -> Result<String> {
        match *self {}
    }

    pub fn before(&self) -> Result<Vec<u32>> {
        match *self {}
    }
}
