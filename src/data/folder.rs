//! A folder of pictures with captions beside them: `a/b.jpg` and `a/b.txt` (or `a/b.caption`), each line a caption; or with
//! Hugging Face's `metadata.jsonl` or `metadata.csv` in it, which then says it all.
//!
//! Folders inside are walked too (links to folders are not), names starting with a dot are passed over,
//! and the order is that of the sorted names, so it does not depend on the file system.

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

/// Every picture under a folder, links followed but never out of it, sorted by path.
pub fn pictures(folder: &Path, unread: &mut Unread) -> Result<Vec<PathBuf>> {
    let root = Root::new(OPERATION, folder)?;
    let found = walk(root.folder(), unread)?;
    for path in &found {
        root.inside(path).map_err(|target| {
            Error::file(
                OPERATION,
                path,
                "a picture inside the folder",
                format!("a link to {}", target.display()),
            )
            .fix("copy the picture, or name the folder it lies in")
        })?;
    }
    Ok(found)
}

/// Every file under a folder that is named like a picture, wherever links to files lead, sorted by path; `unread` counts those
/// of kinds that are not read.
pub fn walk(top: &Path, unread: &mut Unread) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![(top.to_owned(), 0)];
    while let Some((folder, depth)) = open.pop() {
        let failed = |e| Error::io("find pictures", &folder, &e);
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if entry.file_type().map_err(failed)?.is_dir() {
                if depth == MAX_DEPTH {
                    let expected = format!("at most {MAX_DEPTH} folders inside each other");
                    return Err(Error::file("find pictures", &path, expected, "more"));
                }
                open.push((path, depth + 1));
            } else if is_picture(&path) {
                found.push(path);
            } else {
                unread.note(&path);
            }
        }
        if found.len() > MAX_ENTRIES {
            let expected = format!("at most {MAX_ENTRIES} pictures");
            return Err(Error::file("find pictures", top, expected, "more"));
        }
    }
    found.sort();
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
    let mut builder = Builder::new(folder, Door::Folder { given: top.clone(), root }, Want::All(None));
    let mut unread = Unread::default();
    for path in pictures(folder, &mut unread)? {
        let name = path.strip_prefix(&top).unwrap_or(&path).to_string_lossy().into_owned();
        let Some(text) = beside(&path)? else {
            builder.report.uncaptioned += 1;
            builder.note(|| format!("no {} beside its picture", path.with_extension("txt").display()));
            continue;
        };
        let text = read_text(OPERATION, &text, MAX_TEXT)?;
        // The path itself, not the name: on the disk a name need not be UTF-8.
        let place = if path.is_file() { Place::At(path.into()) } else { Place::Nowhere };
        let sample = builder.found(&name, place)?;
        for caption in text.lines() {
            builder.caption(sample, caption.to_owned());
        }
    }
    builder.report.notes.extend(unread.told());
    builder.finish(missing_share)
}

/// The file of captions beside a picture. Two of them are an error: they are never the same.
fn beside(picture: &Path) -> Result<Option<PathBuf>> {
    let [txt, caption] = ["txt", "caption"].map(|e| picture.with_extension(e));
    match (txt.is_file(), caption.is_file()) {
        (true, true) => Err(Error::file(OPERATION, picture, "a .txt or a .caption beside it", "both")
            .fix("move the ones away that are not its captions")),
        (true, false) => Ok(Some(txt)),
        (false, true) => Ok(Some(caption)),
        (false, false) => Ok(None),
    }
}
