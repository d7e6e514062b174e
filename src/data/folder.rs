//! A folder of pictures with captions beside them: `a/b.jpg` and `a/b.txt`, each line a caption.
//!
//! Folders inside are walked too (links to folders are not), names starting with a dot are passed over,
//! and the order is that of the sorted names, so it does not depend on the file system.

use super::files::{Root, read_text};
use super::{Builder, Dataset, MAX_ENTRIES, OPERATION};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

const EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "gif", "bmp"];
/// Bounds of one file of captions and of the walk.
const MAX_TEXT: u64 = 1 << 20;
const MAX_DEPTH: usize = 64;

/// Every picture under a folder, links followed but never out of it, sorted by path.
pub fn pictures(folder: &Path) -> Result<Vec<PathBuf>> {
    let root = Root::new(OPERATION, folder)?;
    let found = walk(root.folder())?;
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

/// Every file under a folder that is named like a picture, wherever links to files lead, sorted by path.
pub fn walk(top: &Path) -> Result<Vec<PathBuf>> {
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

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str()))
}

pub(super) fn read(folder: &Path, missing_share: f64) -> Result<Dataset> {
    let mut builder = Builder::new(folder, Root::new(OPERATION, folder)?);
    for path in pictures(folder)? {
        let name = path.strip_prefix(builder.root.folder()).unwrap_or(&path).to_string_lossy().into_owned();
        let text = path.with_extension("txt");
        if !text.is_file() {
            builder.report.uncaptioned += 1;
            builder.report.note(|| format!("no {} beside its picture", text.display()));
            continue;
        }
        let text = read_text(OPERATION, &text, MAX_TEXT)?;
        // The path itself, not the name: on the disk a name need not be UTF-8.
        let image = path.is_file().then_some(path);
        if let Some(sample) = builder.found((name.clone(), name), image) {
            for caption in text.lines() {
                builder.caption(sample, caption, None);
            }
        }
    }
    builder.finish(missing_share)
}
