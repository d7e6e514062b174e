//! Captions beside their pictures: `a/b.jpg` gets `a/b.txt`, each line a caption - the form that a folder of pictures
//! is read in for training.

use crate::files::{self, Disk};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const OPERATION: &str = "write captions";

/// Where the texts go: beside the pictures, or under another folder by the pictures' names.
pub struct SideCars {
    folder: Option<PathBuf>,
    overwrite: bool,
}

impl SideCars {
    pub fn new(folder: Option<PathBuf>, overwrite: bool) -> SideCars {
        SideCars { folder, overwrite }
    }

    /// The text file of a picture.
    pub fn path(&self, name: &str, picture: &Path) -> Result<PathBuf> {
        let Some(folder) = &self.folder else { return Ok(picture.with_extension("txt")) };
        let name = Path::new(name);
        if !name.components().all(|c| matches!(c, std::path::Component::Normal(_))) {
            return Err(Error::argument(
                OPERATION,
                "txt-dir",
                "pictures named by their place in a folder",
                name.display(),
            )
            .fix("name the folder they lie in with --relative-to"));
        }
        Ok(folder.join(name).with_extension("txt"))
    }

    /// Two pictures must not write one file.
    pub fn check<'a>(&self, pictures: impl Iterator<Item = (&'a str, &'a Path)>) -> Result<()> {
        let mut known: HashMap<PathBuf, &str> = HashMap::new();
        for (name, picture) in pictures {
            let path = self.path(name, picture)?;
            if let Some(other) = known.get(&path) {
                let got = format!("{} for {other:?} and for {name:?}", path.display());
                return Err(Error::argument(OPERATION, "txt", "a text file for each picture", got)
                    .fix("rename one of the pictures, or write to one file with --out"));
            }
            known.insert(path, name);
        }
        Ok(())
    }

    /// Whether a picture has its text already: anyone's, unless it is to be overwritten.
    pub fn has(&self, name: &str, picture: &Path) -> bool {
        let written = |path: PathBuf| path.metadata().is_ok_and(|m| m.len() > 0);
        !self.overwrite && self.path(name, picture).is_ok_and(written)
    }

    pub fn write<'a>(
        &self,
        disk: &dyn Disk,
        name: &str,
        picture: &Path,
        captions: impl Iterator<Item = &'a str>,
    ) -> Result<()> {
        let path = self.path(name, picture)?;
        if self.folder.is_some() {
            files::make_folders(disk, files::folder_of(&path))?;
        }
        let text: String = captions.map(|c| c.replace(['\n', '\r'], " ") + "\n").collect();
        files::write_atomic(disk, &path, text.len() as u64, |to| to.write_all(text.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::RealDisk;

    #[test]
    fn texts_lie_beside_their_pictures_and_are_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let picture = dir.path().join("a.b.jpg");
        let beside = SideCars::new(None, false);
        assert!(!beside.has("a.b.jpg", &picture));
        beside.write(&RealDisk, "a.b.jpg", &picture, ["二 匹\nの 犬", "猫"].into_iter()).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("a.b.txt")).unwrap(), "二 匹 の 犬\n猫\n");
        assert!(beside.has("a.b.jpg", &picture));
        assert!(!SideCars::new(None, true).has("a.b.jpg", &picture));
        let twice = [("a.jpg", Path::new("a.jpg")), ("a.png", Path::new("a.png"))];
        let e = beside.check(twice.into_iter()).unwrap_err().to_string();
        assert!(e.contains("\"a.jpg\"") && e.contains("\"a.png\""), "{e}");
    }

    #[test]
    fn another_folder_keeps_the_places_and_is_not_left() {
        let dir = tempfile::tempdir().unwrap();
        let away = SideCars::new(Some(dir.path().join("txt")), false);
        away.write(&RealDisk, "x/y.jpg", Path::new("/p/x/y.jpg"), ["犬"].into_iter()).unwrap();
        assert!(dir.path().join("txt/x/y.txt").is_file());
        for name in ["../y.jpg", "/y.jpg", "a/../../y.jpg"] {
            assert!(away.path(name, Path::new("/p/y.jpg")).is_err(), "{name}");
        }
    }
}
