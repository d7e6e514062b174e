//! A folder of pictures with captions beside them: `a/b.jpg` and `a/b.txt` (or `a/b.caption`), each line a caption; or with
//! Hugging Face's `metadata.jsonl` or `metadata.csv` in it, which then says it all.
//!
//! Folders inside are walked too (links to folders are not; links to files are files, as caches of data sets have them), names
//! starting with a dot are passed over, and so are the folders that NAS systems make for themselves. The order is that of the
//! sorted names, so it does not depend on the file system. What cannot be read is reported, and the rest is read.

use super::Unread;
use super::captions::{self, Builder, Door, Want};
use super::files::{Root, read_text};
use super::image::Place;
use super::{Dataset, MAX_ENTRIES, OPERATION};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

const EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "jfif", "jpe", "png", "webp", "gif", "bmp"];
/// Bounds of one file of captions and of the walk.
const MAX_TEXT: u64 = 1 << 20;
const MAX_DEPTH: usize = 64;
/// Entries of a folder that are looked at for an example.
const MAX_LOOK: usize = 10_000;

/// What NAS systems, desktops and archives put into folders of pictures: thumbnails, bins, snapshots.
const NOT_OURS: [&str; 11] = [
    "@eaDir",
    "@tmp",
    "@Recycle",
    "@Recently-Snapshot",
    "#recycle",
    "#snapshot",
    "$RECYCLE.BIN",
    "RECYCLER",
    "System Volume Information",
    "__MACOSX",
    "lost+found",
];

/// What a walk over a folder finds.
#[derive(Debug, Default)]
pub struct Walked {
    /// Files that are named like pictures, sorted by path.
    pub pictures: Vec<PathBuf>,
    /// Folders that cannot be read, and what is named like a picture and is no file.
    pub failed: Vec<Error>,
}

/// Every file under a folder that is named like a picture, wherever links to files lead; `unread` counts those of kinds that
/// are not read.
pub fn walk(top: &Path, unread: &mut Unread) -> Result<Walked> {
    let mut found = Walked::default();
    let mut open = vec![(top.to_owned(), 0)];
    while let Some((folder, depth)) = open.pop() {
        let entries = std::fs::read_dir(&folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
        let entries = match entries.map_err(|e| Error::io("find pictures", &folder, &e)) {
            Ok(entries) => entries,
            Err(e) if depth == 0 => return Err(e),
            Err(e) => {
                found.failed.push(e);
                continue;
            }
        };
        for entry in entries {
            let (path, name) = (entry.path(), entry.file_name());
            if name.as_encoded_bytes().starts_with(b".") || NOT_OURS.iter().any(|n| name == *n) {
                continue;
            }
            let kind = entry.file_type().map_err(|e| Error::io("find pictures", &path, &e))?;
            if kind.is_dir() {
                if depth == MAX_DEPTH {
                    let expected = format!("at most {MAX_DEPTH} folders inside each other");
                    return Err(Error::file("find pictures", &path, expected, "more"));
                }
                open.push((path, depth + 1));
            } else if is_picture(&path) {
                // A link to nowhere is met later, as a picture that is gone.
                let file = kind.is_file() || path.metadata().map_or(kind.is_symlink(), |m| m.is_file());
                match file {
                    true => found.pictures.push(path),
                    false => found.failed.push(Error::file("find pictures", &path, "a picture", "no file")),
                }
            } else {
                unread.note(&path);
            }
        }
        if found.pictures.len() > MAX_ENTRIES {
            let expected = format!("at most {MAX_ENTRIES} pictures");
            return Err(Error::file("find pictures", top, expected, "more"));
        }
    }
    found.pictures.sort();
    found.failed.sort_by_key(Error::to_string);
    Ok(found)
}

/// Whether a file is named like a picture.
pub(super) fn is_picture(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str()))
}

/// A picture of a folder that is found without going through all of it.
pub(super) fn first_picture(folder: &Path) -> Option<PathBuf> {
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let mut inside: Vec<PathBuf> =
            std::fs::read_dir(&folder).ok()?.take(MAX_LOOK).filter_map(|e| Some(e.ok()?.path())).collect();
        inside.sort();
        if let Some(picture) = inside.iter().find(|p| is_picture(p) && p.is_file()) {
            return Some(picture.clone());
        }
        let below = inside.into_iter().rev().filter(|p| depth < 2 && p.is_dir());
        folders.extend(below.map(|p| (p, depth + 1)));
    }
    None
}

/// Hugging Face's file of captions in a folder of pictures.
const METADATA: [&str; 2] = ["metadata.jsonl", "metadata.csv"];

pub(super) fn read(folder: &Path, missing_share: f64) -> Result<Dataset> {
    let root = Root::new(OPERATION, folder)?;
    let metadata = METADATA.iter().map(|name| root.folder().join(name)).find(|file| file.is_file());
    if let Some(file) = metadata {
        let given = root.folder().to_owned();
        return captions::read(&file, Door::Folder { root, given }, Want::All(None), missing_share);
    }
    let top = root.folder().to_owned();
    let names = Root::new(OPERATION, folder)?;
    let mut builder = Builder::new(folder, Door::Folder { given: top.clone(), root }, Want::All(None));
    let mut unread = Unread::default();
    let walked = walk(&top, &mut unread)?;
    walked.failed.into_iter().for_each(|e| builder.report.unread(e));
    for path in walked.pictures {
        let name = path.strip_prefix(&top).unwrap_or(&path).to_string_lossy().into_owned();
        let text = match beside(&names, &path) {
            Ok(Some(text)) => read_text(OPERATION, &text, MAX_TEXT),
            Ok(None) => {
                builder.report.uncaptioned += 1;
                builder.note(|| format!("no {} beside its picture", path.with_extension("txt").display()));
                continue;
            }
            Err(e) => Err(e),
        };
        let text = match text {
            Ok(text) => text,
            Err(e) => {
                builder.report.unread(e);
                continue;
            }
        };
        // The path itself, not the name: on the disk a name need not be UTF-8.
        let place = if path.is_file() { Place::At(path.into()) } else { Place::Nowhere };
        let sample = builder.found(&name, place)?;
        for caption in text.lines() {
            builder.caption(sample, caption.to_owned());
        }
    }
    builder.report.notes.extend(unread.told());
    builder.finish(missing_share).map_err(|e| match metadata_below(&top) {
        Some(folder) => e.fix(format!("{} has Hugging Face's captions: name that folder", folder.display())),
        None => e,
    })
}

/// The first folder just below that has Hugging Face's captions.
fn metadata_below(folder: &Path) -> Option<PathBuf> {
    let mut below: Vec<PathBuf> =
        std::fs::read_dir(folder).ok()?.take(MAX_LOOK).filter_map(|e| Some(e.ok()?.path())).collect();
    below.sort();
    below.into_iter().find(|f| METADATA.iter().any(|name| f.join(name).is_file()))
}

/// The file of captions beside a picture. Two of them are an error: they are never the same.
fn beside(names: &Root, picture: &Path) -> Result<Option<PathBuf>> {
    let [txt, caption] = ["txt", "caption"].map(|e| names.spelled(&picture.with_extension(e)));
    if txt.is_some() && caption.is_some() {
        return Err(Error::file(OPERATION, picture, "a .txt or a .caption beside it", "both")
            .fix("move the ones away that are not its captions"));
    }
    Ok(txt.or(caption))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, create_dir_all};
    use std::os::unix::fs::symlink;

    fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) {
        let path = folder.join(name);
        create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn a_name_is_found_composed_or_not() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "か\u{3099}/は\u{309a}.png", "x");
        write(dir.path(), "が.png", "x");
        write(dir.path(), "s/か\u{3099}.png", "x");
        write(dir.path(), "s/が.txt", "犬\n");
        let list = dir.path().join("c.json");
        let names = ["が/ぱ.png", "か\u{3099}/ぱ.png", "か\u{3099}.png", "が.png"];
        let entries = names.map(|n| format!(r#"{{"image": "{n}", "caption": "犬"}}"#)).join(", ");
        fs::write(&list, format!("[{entries}]")).unwrap();
        let data = Dataset::read(&list, dir.path(), 0.0).unwrap();
        assert_eq!((data.samples.len(), data.report.captions), (2, 4), "two files, each in two spellings");
        assert_eq!(Dataset::read(&dir.path().join("s"), dir.path(), 0.0).unwrap().report.captions, 1);
        fs::write(&list, r#"[{"image": "か.png", "caption": "犬"}, {"image": "が.png", "caption": "犬"}]"#)
            .unwrap();
        assert_eq!(Dataset::read(&list, dir.path(), 1.0).unwrap().report.missing, 1);
    }

    #[test]
    fn a_link_is_a_picture_and_a_text() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "blobs/0", "x");
        write(dir.path(), "blobs/1", "犬\n");
        create_dir_all(dir.path().join("p")).unwrap();
        for (link, to) in [
            ("p/0.png", "../blobs/0"),
            ("p/0.txt", "../blobs/1"),
            ("p/1.png", "/dev/zero"),
            ("p/2.png", "0.png"),
            ("p/2.txt", "/dev/zero"),
        ] {
            symlink(to, dir.path().join(link)).unwrap();
        }
        let data = Dataset::read(&dir.path().join("p"), dir.path(), 1.0).unwrap();
        assert_eq!(
            (data.samples.len(), data.report.uncaptioned, data.report.unreadable),
            (1, 1, 1),
            "{:?}",
            data.report
        );
        write(dir.path(), "c.json", r#"[{"image": "0.png", "caption": "犬"}]"#);
        let data = Dataset::read(&dir.path().join("c.json"), &dir.path().join("p"), 0.0).unwrap();
        assert!(data.samples[0].image().path().ends_with("blobs/0"));
        write(dir.path(), "c.json", r#"[{"image": "../blobs/0", "caption": "犬"}]"#);
        assert!(Dataset::read(&dir.path().join("c.json"), &dir.path().join("p"), 0.0).is_err());
    }

    #[test]
    fn texts_that_cannot_be_read_are_all_named_and_the_rest_is_read() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..9 {
            write(dir.path(), &format!("{i}.png"), "x");
            let text: &[u8] = if i < 7 { b"\x90\xd4\x82\xa2\n" } else { "犬\n".as_bytes() };
            write(dir.path(), &format!("{i}.txt"), text);
        }
        let data = Dataset::read(dir.path(), dir.path(), 1.0).unwrap();
        assert_eq!((data.report.pictures, data.report.unreadable, data.report.unread.len()), (2, 7, 7));
        assert!(
            (0..7).all(|i| data.report.unread[i].contains(&format!("{i}.txt"))) && data.report.has_warnings()
        );
        let e = Dataset::read(dir.path(), dir.path(), 0.5).unwrap_err();
        assert!(e.to_string().contains("7 of 9: ") && e.to_string().contains("and 2 more"), "{e}");
    }

    #[test]
    fn folders_that_systems_make_for_themselves_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "a.png",
            "2024/b.JPG",
            "@eaDir/a.png/THUMB.png",
            "2024/@eaDir/x.png",
            "#recycle/x.png",
            ".hidden/x.png",
            "lost+found/x.png",
        ] {
            write(dir.path(), name, "x");
        }
        let found = walk(dir.path(), &mut Unread::default()).unwrap();
        let names: Vec<_> =
            found.pictures.iter().map(|p| p.strip_prefix(dir.path()).unwrap().to_str().unwrap()).collect();
        assert_eq!((names, found.failed.len()), (vec!["2024/b.JPG", "a.png"], 0));
    }
}
