//! Reading what strangers wrote: text files under a size limit, and picture names that may not leave their folder.
//!
//! A text file is UTF-8, with or without a byte order mark; anything else is an error that names the
//! first bad byte. A picture name is relative and has no `..`; a link in the folder of pictures is its owner's, and is followed
//! wherever it leads. Memory is bounded by the limit, whatever the file is.

use crate::files::composed;
use crate::{Error, Result};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Text from outside in an error: quoted, control characters escaped, cut to a readable length.
pub(crate) fn quoted(text: &str) -> String {
    let cut: String = text.chars().take(120).collect();
    if cut.len() < text.len() { format!("{cut:?}...") } else { format!("{cut:?}") }
}

/// A library's message, which may carry a whole hostile string: cut to a readable length.
pub(crate) fn shortened(message: &impl std::fmt::Display) -> String {
    let text = message.to_string();
    if text.chars().count() <= 300 {
        return text;
    }
    let head: String = text.chars().take(200).collect();
    let tail: Vec<char> = text.chars().rev().take(80).collect();
    format!("{head} ... {}", tail.into_iter().rev().collect::<String>())
}

/// The whole text of a file of at most `limit` bytes.
pub(crate) fn read_text(operation: &str, path: &Path, limit: u64) -> Result<String> {
    let file = File::open(path).map_err(|e| Error::io(operation, path, &e))?;
    let mut bytes = Vec::new();
    // One byte more than allowed: also stops at files that have no length, such as devices.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io(operation, path, &e))?;
    if bytes.len() as u64 > limit {
        let expected = format!("at most {limit} bytes");
        return Err(
            Error::file(operation, path, expected, "a larger file").fix("split it into several files")
        );
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let byte = e.as_bytes().get(at).copied().unwrap_or_default();
        Error::file(operation, path, "UTF-8 text", format!("byte 0x{byte:02x} at offset {at}"))
            .fix("save the file as UTF-8")
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

/// A folder of pictures, and the door to it.
#[derive(Debug)]
pub(crate) struct Root {
    operation: &'static str,
    folder: PathBuf,
    /// Of each folder that was looked into: its names that are not ASCII, by their composed form.
    spellings: Mutex<HashMap<PathBuf, HashMap<String, OsString>>>,
}

impl Root {
    pub(crate) fn new(operation: &'static str, folder: &Path) -> Result<Self> {
        let folder = folder.canonicalize().map_err(|e| Error::io(operation, folder, &e))?;
        if !folder.is_dir() {
            return Err(Error::file(operation, &folder, "a folder of pictures", "something else"));
        }
        Ok(Root { operation, folder, spellings: Mutex::default() })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file of this name, links followed; `None` if there is none. A name that points outside is an error.
    pub(crate) fn find(&self, listed_in: &Path, name: &str) -> Result<Option<PathBuf>> {
        let refuse = |what: &str| {
            Error::file(self.operation, listed_in, "a picture inside the folder of pictures", what)
                .fix(format!("name it relative to {}, or choose another folder", self.folder.display()))
        };
        if name.is_empty() || name.contains('\0') {
            return Err(refuse(&format!("the unusable name {}", quoted(name))));
        }
        if Path::new(name).is_absolute() {
            return Err(refuse(&format!("the absolute path {}", quoted(name))));
        }
        if !Path::new(name).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
            return Err(refuse(&format!("{}, which climbs out of it", quoted(name))));
        }
        Ok(self.spelled(&self.folder.join(name)).and_then(|path| path.canonicalize().ok()))
    }

    /// A regular file under the folder as the disk spells its name: letters composed or taken apart (NFC, NFD) are the same.
    pub(crate) fn spelled(&self, path: &Path) -> Option<PathBuf> {
        if path.is_file() {
            return Some(path.to_owned());
        }
        let inside = path.strip_prefix(&self.folder).ok()?;
        if inside.as_os_str().is_ascii() {
            return None;
        }
        let mut at = self.folder.clone();
        for part in inside.components() {
            let there = at.join(part);
            at =
                if there.exists() { there } else { at.join(self.spelling(&at, part.as_os_str().to_str()?)?) };
        }
        at.is_file().then_some(at)
    }

    fn spelling(&self, folder: &Path, name: &str) -> Option<OsString> {
        let mut known = self.spellings.lock().unwrap_or_else(PoisonError::into_inner);
        let names = known.entry(folder.to_owned()).or_insert_with(|| {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let names = entries.map(|e| e.file_name()).filter(|n| !n.is_ascii());
            names.filter_map(|n| Some((composed(n.to_str()?).into_owned(), n.clone()))).collect()
        });
        names.get(composed(name).as_ref()).cloned()
    }
}
