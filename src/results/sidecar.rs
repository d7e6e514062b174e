//! Captions beside their pictures: `a/b.jpg` gets `a/b.txt`, each line a caption - the form that a folder of pictures
//! is read in for training.
//!
//! These names are ours, not the user's, so nothing is written through a link or over a picture: that picture's text is
//! refused, and the others are written.

use crate::files::{self, Disk};
use crate::{Error, Kind, Result};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

const OPERATION: &str = "write captions";

/// Where the texts go: beside the pictures, or under another folder by the pictures' names.
pub struct SideCars {
    folder: Option<PathBuf>,
    overwrite: bool,
}

impl SideCars {
    /// Texts beside the pictures, or in a folder.
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

    /// Whether a picture has its text already: anyone's, unless it is to be overwritten. A blank text is none. An error
    /// where a text must not be written: through a link, over a picture, into what is no file.
    pub fn has(&self, name: &str, picture: &Path) -> Result<bool> {
        let path = self.path(name, picture)?;
        let refuse = |got: &str, fix: &str| {
            Err(Error::new(Kind::Write, OPERATION).about(path.display().to_string()).got(got).fix(fix))
        };
        if path == picture {
            return refuse("the picture itself is called so", "rename it, or write to one file with --out");
        }
        if let Some(link) = self.link_inside(&path) {
            let got = format!("{} is a link, which texts are not written through", link.display());
            return refuse(&got, "remove the link, or choose another --txt-dir");
        }
        let about = match std::fs::symlink_metadata(&path) {
            Ok(about) => about,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(files::write_error(OPERATION, &path, &e)),
        };
        let (link, there) = (about.is_symlink(), path.is_file());
        if !link && !there {
            return refuse("neither a file nor free", "remove it, or write to one file with --out");
        }
        let holds = if there { Holds::of(&path)? } else { Holds::Nothing };
        match (holds, self.overwrite, link) {
            (Holds::Picture, ..) => refuse("a picture", "rename it, or write to one file with --out"),
            (Holds::Text | Holds::Other, false, _) => Ok(true),
            (_, _, true) => refuse(
                "a link, which texts are not written through",
                "remove it, or write to another folder with --txt-dir",
            ),
            (Holds::Other, true, _) => {
                refuse("a file that is no text", "remove it, or write to one file with --out")
            }
            (Holds::Nothing | Holds::Text, ..) => Ok(false),
        }
    }

    /// A link among the folders that we name ourselves.
    fn link_inside(&self, path: &Path) -> Option<PathBuf> {
        let inside = path.strip_prefix(self.folder.as_ref()?).ok()?.parent()?;
        let mut at = self.folder.clone()?;
        for part in inside.components() {
            at.push(part);
            if at.is_symlink() {
                return Some(at);
            }
        }
        None
    }

    /// The folders that texts of pictures go to and that are there.
    pub fn folders<'a>(&self, pictures: impl Iterator<Item = &'a Path>) -> BTreeSet<PathBuf> {
        match &self.folder {
            Some(folder) => BTreeSet::from([folder.clone()]),
            None => pictures.map(|p| files::folder_of(p).to_owned()).collect(),
        }
    }

    /// Writes the text of a picture.
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
        files::write_beside(disk, &path, text.len() as u64, |to| to.write_all(text.as_bytes()))
    }
}

/// What a file holds that stands where a text goes, by its beginning.
#[derive(Clone, Copy)]
enum Holds {
    /// Nothing to read: empty, white space, a byte order mark, the zeros of a file that was never filled.
    Nothing,
    Text,
    Picture,
    Other,
}

impl Holds {
    fn of(path: &Path) -> Result<Holds> {
        const HEAD: u64 = 64 << 10;
        let mut head = Vec::new();
        let read = File::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut head));
        read.map_err(|e| Error::io(OPERATION, path, &e))?;
        let picture = matches!(
            head[..],
            [0xff, 0xd8, 0xff, ..]
                | [0x89, b'P', b'N', b'G', ..]
                | [b'G', b'I', b'F', b'8', ..]
                | [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..]
                | [b'B', b'M', _, _, _, _, 0, 0, 0, 0, ..]
                | [b'I', b'I', b'*', 0, ..]
                | [b'M', b'M', 0, b'*', ..]
                | [_, _, _, _, b'f', b't', b'y', b'p', ..]
        );
        let text = String::from_utf8_lossy(&head);
        let blank = |c: char| c.is_whitespace() || c == '\u{feff}' || c == '\0';
        Ok(match () {
            () if picture => Holds::Picture,
            () if text.chars().all(blank) => Holds::Nothing,
            () if text.contains('\0') => Holds::Other,
            () => Holds::Text,
        })
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
        assert!(!beside.has("a.b.jpg", &picture).unwrap());
        beside.write(&RealDisk, "a.b.jpg", &picture, ["二 匹\nの 犬", "猫"].into_iter()).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("a.b.txt")).unwrap(), "二 匹 の 犬\n猫\n");
        assert!(beside.has("a.b.jpg", &picture).unwrap());
        assert!(!SideCars::new(None, true).has("a.b.jpg", &picture).unwrap());
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

    #[test]
    fn blank_is_no_caption() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("a.txt");
        let has = |bytes: &[u8]| {
            std::fs::write(&text, bytes).unwrap();
            SideCars::new(None, false).has("a.jpg", &dir.path().join("a.jpg")).unwrap()
        };
        let blank: [&[u8]; 6] =
            [b"", b"\n", b"\xef\xbb\xbf", "\u{feff}\u{3000}\r\n".as_bytes(), b" \t", &[0; 40]];
        blank.into_iter().for_each(|bytes| assert!(!has(bytes), "{bytes:?}"));
        // A person's, in whatever encoding.
        let texts: [&[u8]; 3] = ["犬".as_bytes(), b"\x90\xd4\x82\xa2\n", b"\xff\xfe\x0a\x4e\x0a\x00"];
        texts.into_iter().for_each(|bytes| assert!(has(bytes), "{bytes:?}"));
    }

    #[test]
    fn texts_are_not_written_through_links_or_over_pictures() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("secret"), "mine\n").unwrap();
        symlink("secret", at("link.txt")).unwrap();
        symlink("nowhere", at("dangling.txt")).unwrap();
        std::fs::write(at("pic.txt"), b"\x89PNG\r\n\x1a\n").unwrap();
        std::fs::write(at("other.txt"), b"\x7fELF\0\0").unwrap();
        std::fs::create_dir(at("folder.txt")).unwrap();
        let has = |overwrite, name: &str| SideCars::new(None, overwrite).has(name, &at(name));
        for (name, overwrite) in [
            ("link.jpg", true),
            ("dangling.jpg", false),
            ("dangling.jpg", true),
            ("pic.txt", true),
            ("pic.txt", false),
            ("pic.jpg", false),
            ("pic.jpg", true),
            ("other.jpg", true),
            ("folder.jpg", false),
        ] {
            let e = has(overwrite, name).unwrap_err();
            assert!(e.kind() == Kind::Write && e.to_string().contains("--"), "{name}: {e}");
        }
        // To be read, a link is as good as a file.
        assert!(has(false, "link.jpg").unwrap() && has(false, "other.jpg").unwrap());
        // In another folder, ours are the folders inside it, too; itself it may be a link.
        std::fs::create_dir_all(at("real/out")).unwrap();
        symlink("real/out", at("out")).unwrap();
        symlink(dir.path(), at("real/out/away")).unwrap();
        let out = SideCars::new(Some(at("out")), true);
        assert!(!out.has("b/c.jpg", &at("c.jpg")).unwrap());
        assert!(
            out.has("away/b/c.jpg", &at("c.jpg")).unwrap_err().to_string().contains("out/away is a link")
        );
    }
}
