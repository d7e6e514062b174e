//! webdataset's shards: tar files whose members belong together by their names up to the first dot, `0001.jpg`, `0001.txt`,
//! `0001.json`. Nothing is unpacked: pictures are read from the shard by position.
//!
//! A shard is walked once, header by header; what was found - every picture's place, every caption - is kept beside it in
//! NAME.tar.offsets (JSON lines, the shard's size and time first) and read again as long as the shard is the same. A
//! picture's name is SHARD/MEMBER, so that shards may number their members alike.

use super::captions::{Builder, Caption, Door, Want, caption_of_json};
use super::files::quoted;
use super::folder::is_picture;
use super::image::{Member, Place};
use super::{Dataset, MAX_ENTRIES, OPERATION};
use crate::files::composed;
use crate::files::{RealDisk, write_atomic};
use crate::{Error, Kind, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A larger member is no caption.
const MAX_TEXT: u64 = 1 << 20;
/// Of the kept table's form.
const VERSION: u32 = 1;
const MAX_TABLE: u64 = 4 << 30;

/// Which shard a kept table is of.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Identity {
    version: u32,
    bytes: u64,
    modified: [i64; 2],
    /// The two blocks of zeros at its end are there.
    whole: bool,
}

/// A picture or captions in a shard.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Line {
    name: String,
    offset: u64,
    bytes: u64,
    /// What a member that is no picture says; null captions are `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<Vec<Option<String>>>,
}

struct Table {
    whole: bool,
    lines: Vec<Line>,
}

/// The captioned pictures of shards, their captions inside.
pub(super) fn read(source: &Path, shards: &[PathBuf], missing_share: f64) -> Result<Dataset> {
    let tables = tables(shards)?;
    let mut builder = Builder::new(source, Door::Names, Want::All(None));
    for (shard, table) in shards.iter().zip(tables) {
        if !table.whole {
            builder.report.notes.push(format!("{} lacks its end: it may be cut", shard.display()));
        }
        add(&mut builder, shard, table)?;
    }
    builder.finish(missing_share)
}

/// Every picture of shards, in their order.
pub(super) fn pictures(shards: &[PathBuf]) -> Result<Vec<(String, Place)>> {
    let mut all = Vec::new();
    for (shard, table) in shards.iter().zip(tables(shards)?) {
        let (path, stem): (Arc<Path>, String) = (Arc::from(shard.as_path()), file_name(shard));
        for line in table.lines.iter().filter(|l| l.text.is_none()) {
            all.push((format!("{stem}/{}", line.name), place(&path, line)));
        }
    }
    Ok(all)
}

/// The pictures of shards by name, for captions that stand elsewhere: SHARD/MEMBER, and MEMBER where that is one alone.
pub(super) fn members(shards: &[PathBuf]) -> Result<HashMap<String, Place>> {
    let all = pictures(shards)?;
    let mut count: HashMap<String, usize> = HashMap::new();
    let member = |name: &str| name.split_once('/').map_or(name, |(_, member)| member).to_owned();
    for (name, _) in &all {
        *count.entry(member(name)).or_default() += 1;
    }
    let mut members = HashMap::new();
    for (name, place) in all {
        let alone = member(&name);
        if count.get(&alone) == Some(&1) {
            members.insert(composed(&alone).into_owned(), place.clone());
        }
        members.insert(composed(&name).into_owned(), place);
    }
    Ok(members)
}

fn tables(shards: &[PathBuf]) -> Result<Vec<Table>> {
    let names: std::collections::HashSet<String> = shards.iter().map(|s| file_name(s)).collect();
    if names.len() < shards.len() {
        let got = format!("{} names for {} shards", names.len(), shards.len());
        return Err(Error::new(Kind::Data, OPERATION).expected("shards of different names").got(got));
    }
    shards.par_iter().map(|shard| table(shard)).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn place(shard: &Arc<Path>, line: &Line) -> Place {
    let member = Member {
        shard: Arc::clone(shard),
        name: line.name.as_str().into(),
        offset: line.offset,
        bytes: line.bytes,
    };
    Place::Inside(Box::new(member))
}

/// The name up to the first dot of its last part, which members of one sample share.
fn key(name: &str) -> &str {
    let file = name.rfind('/').map_or(0, |at| at + 1);
    let dot = name.get(file..).and_then(|file| file.find('.'));
    dot.and_then(|dot| name.get(..file + dot)).unwrap_or(name)
}

/// Puts a shard's samples together: a picture and what is said of it.
fn add(builder: &mut Builder, shard: &Path, table: Table) -> Result<()> {
    let (path, stem): (Arc<Path>, String) = (Arc::from(shard), file_name(shard));
    let mut texts: HashMap<String, Vec<Line>> = HashMap::new();
    let mut pictures = Vec::new();
    for line in table.lines {
        if line.text.is_some() {
            texts.entry(key(&line.name).to_owned()).or_default().push(line);
        } else {
            pictures.push(line);
        }
    }
    for picture in pictures {
        let sample = builder.found(&format!("{stem}/{}", picture.name), place(&path, &picture))?;
        // img2dataset writes a caption twice: as a text, and among what it knows of the picture.
        let mut said = texts.remove(key(&picture.name)).unwrap_or_default();
        said.sort_by_key(|line| line.name.ends_with(".json"));
        for caption in said.into_iter().next().and_then(|line| line.text).unwrap_or_default() {
            match caption {
                Some(caption) => builder.caption(sample, caption),
                None => builder.empty(sample, "null caption"),
            }
        }
    }
    Ok(())
}

/// What is in a shard: as it was kept, or found and kept.
fn table(shard: &Path) -> Result<Table> {
    let failed = |e| Error::io(OPERATION, shard, &e);
    let file = File::open(shard).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    let identity = |whole| Identity {
        version: VERSION,
        bytes: about.len(),
        modified: [about.mtime(), about.mtime_nsec()],
        whole,
    };
    let beside = shard.with_file_name(format!("{}.offsets", file_name(shard)));
    if let Some(table) = kept(&beside, identity) {
        return Ok(table);
    }
    let table = walk(shard, &file, about.len())?;
    let line = |value: serde_json::Result<String>| value.map(|text| text + "\n").unwrap_or_default();
    let mut text = line(serde_json::to_string(&identity(table.whole)));
    text.extend(table.lines.iter().map(|l| line(serde_json::to_string(l))));
    // Best effort: a folder that cannot be written to only means that the shard is walked again.
    let _ = write_atomic(&RealDisk, &beside, text.len() as u64, |w| w.write_all(text.as_bytes()));
    Ok(table)
}

/// A kept table, if it is whole and of this shard.
fn kept(path: &Path, identity: impl Fn(bool) -> Identity) -> Option<Table> {
    let file = File::open(path).ok()?;
    if file.metadata().ok()?.len() > MAX_TABLE {
        return None;
    }
    let mut text = String::new();
    { file }.take(MAX_TABLE).read_to_string(&mut text).ok()?;
    let (first, rest) = text.split_once('\n')?;
    let of: Identity = serde_json::from_str(first).ok()?;
    let lines: serde_json::Result<Vec<Line>> = rest.lines().map(serde_json::from_str).collect();
    (of == identity(of.whole)).then_some(Table { whole: of.whole, lines: lines.ok()? })
}

/// Goes through a shard's headers, and reads what is said of pictures.
fn walk(shard: &Path, file: &File, length: u64) -> Result<Table> {
    compressed(shard, file)?;
    let mut archive = tar::Archive::new(file);
    let (mut lines, mut end) = (Vec::new(), 0);
    let broken = |at: u64, got: String| {
        Error::file(OPERATION, shard, "a whole tar file", format!("{got} at offset {at}"))
            .fix("write or download the shard again")
    };
    let entries = archive.entries_with_seek().map_err(|e| broken(0, e.to_string()))?;
    for entry in entries {
        let mut entry = entry.map_err(|e| broken(end, e.to_string()))?;
        let (offset, bytes) = (entry.raw_file_position(), entry.size());
        let name = String::from_utf8(entry.path_bytes().into_owned())
            .map_err(|e| broken(offset, format!("a member's name that is not UTF-8 ({e})")))?;
        if is_sparse(&mut entry, &broken)? {
            let got = format!("the sparse member {}", quoted(&name));
            return Err(Error::file(
                OPERATION,
                shard,
                "members as they are",
                format!("{got} at offset {offset}"),
            )
            .fix("write the shard without --sparse"));
        }
        let after = offset.checked_add(bytes).filter(|after| *after <= length);
        let Some(after) = after else {
            let got = format!("the end of the file within {} ({bytes} bytes", quoted(&name));
            return Err(broken(offset, format!("{got}, {} are there)", length.saturating_sub(offset))));
        };
        end = after.next_multiple_of(512);
        if !matches!(entry.header().entry_type(), tar::EntryType::Regular | tar::EntryType::Continuous) {
            continue;
        }
        if lines.len() == MAX_ENTRIES {
            let expected = format!("at most {MAX_ENTRIES} members");
            return Err(Error::file(OPERATION, shard, expected, "more").fix("write several shards"));
        }
        let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
        let hidden = name.rsplit('/').next().is_some_and(|file| file.starts_with('.'));
        if hidden {
            continue;
        }
        if is_picture(Path::new(&name)) {
            lines.push(Line { name, offset, bytes, text: None });
        } else if let Some(text) = said(shard, file, &name, offset, bytes)? {
            lines.push(Line { name, offset, bytes, text: Some(text) });
        }
    }
    if lines.is_empty() && length > 0 && end == 0 && !is_tar(file) {
        return Err(broken(0, "no header of a tar file".into()));
    }
    let mut zeros = [1u8; 512];
    let whole = file.read_exact_at(&mut zeros, end).is_ok() && zeros.iter().all(|b| *b == 0);
    Ok(Table { whole, lines })
}

/// GNU tar's two ways to leave holes out.
fn is_sparse(entry: &mut tar::Entry<&File>, broken: &impl Fn(u64, String) -> Error) -> Result<bool> {
    let at = entry.raw_file_position();
    let wrong = |e: std::io::Error| broken(at, e.to_string());
    let mut sparse = entry.header().entry_type().is_gnu_sparse();
    for extension in entry.pax_extensions().map_err(wrong)?.into_iter().flatten() {
        sparse |= extension.map_err(wrong)?.key_bytes().starts_with(b"GNU.sparse");
    }
    Ok(sparse)
}

fn is_tar(file: &File) -> bool {
    let mut start = [0; 512];
    // An archive of nothing is zeros alone.
    file.read_exact_at(&mut start, 0).is_ok() && start.iter().all(|b| *b == 0)
}

/// What a .txt, .caption or .json member says, a caption a line; `None` for all other members.
fn said(shard: &Path, file: &File, name: &str, offset: u64, bytes: u64) -> Result<Option<Vec<Caption>>> {
    let kind = name.rsplit_once('.').map_or("", |(_, kind)| kind).to_ascii_lowercase();
    if !["txt", "caption", "json"].contains(&kind.as_str()) || bytes > MAX_TEXT {
        return Ok(None);
    }
    let mut text = vec![0; bytes as usize];
    file.read_exact_at(&mut text, offset).map_err(|e| Error::io(OPERATION, shard, &e))?;
    let inside = |got: String| {
        let about = format!("{}: {got} at offset {offset}", quoted(name));
        Error::file(OPERATION, shard, "captions in UTF-8", about).fix("write the shard again")
    };
    let text = String::from_utf8(text).map_err(|e| inside(e.utf8_error().to_string()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    if kind == "json" {
        let captions = caption_of_json(text).map_err(inside)?;
        return Ok(captions.map(|c| c.into_iter().collect()));
    }
    Ok(Some(text.lines().filter(|l| !l.trim().is_empty()).map(|l| Some(l.to_owned())).collect()))
}

/// Refuses a compressed shard by name: nothing in it can be read by position.
fn compressed(shard: &Path, file: &File) -> Result<()> {
    let mut start = [0; 6];
    let n = file.read_at(&mut start, 0).map_err(|e| Error::io(OPERATION, shard, &e))?;
    let kinds: [(&[u8], &str, &str); 4] = [
        (b"\x1f\x8b", "gzip", "gzip -d"),
        (b"\x28\xb5\x2f\xfd", "zstd", "zstd -d"),
        (b"BZh", "bzip2", "bzip2 -d"),
        (b"\xfd7zXZ", "xz", "xz -d"),
    ];
    match kinds.iter().find(|(magic, ..)| start.get(..n).unwrap_or_default().starts_with(magic)) {
        Some((_, kind, tool)) => {
            Err(Error::file(OPERATION, shard, "a tar file as it is", format!("one compressed with {kind}"))
                .fix(format!("decompress it ({tool}): pictures are read from it by position")))
        }
        None => Ok(()),
    }
}
