//! The caption files of all shards as one, in the order in which a single command would have written it.

use super::caption_file::read;
use super::captions::{Format, begin, end, escaped, parse, write_entry};
use super::shard::{self, Placed};
use crate::files::{self, Disk, composed};
use crate::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const OPERATION: &str = "merge";

/// What was merged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Pictures.
    pub pictures: usize,
    /// Pictures of the set that no part has.
    pub missing: usize,
}

/// Writes the captions of all shards into one file. `partial` allows gaps; `ascii` as of `caption`.
pub fn merge_captions(
    disk: &dyn Disk,
    parts: &[PathBuf],
    out: &Path,
    (partial, ascii): (bool, bool),
) -> Result<Merged> {
    let format = format_of(out)?;
    let records = shard::records(parts)?;
    let mut placed = Placed::default();
    for (part, record) in parts.iter().zip(&records) {
        if format_of(part)? != format {
            let want = format!("the form of {}", out.display());
            return Err(Error::argument(OPERATION, part.display().to_string(), want, "another ending"));
        }
        let entries = entries(part, format)?;
        if let Some(name) = entries.keys().find(|name| !record.shard().has(name)) {
            let got = format!("{name:?}, which belongs to another");
            return Err(Error::file(OPERATION, part, format!("pictures of shard {}", record.shard()), got)
                .fix("run that shard again into a file of its own"));
        }
        placed.take(part, record, entries);
    }
    let (all, missing) = placed.in_turn(partial)?;
    let pictures = all.len();
    let texts = all.concat();
    let texts: Vec<String> = match ascii && format != Format::Csv {
        true => texts.iter().map(|t| escaped(t)).collect(),
        false => texts,
    };
    let bytes: usize = texts.iter().map(|t| t.len() + 2).sum();
    files::make_folders(disk, files::folder_of(out))?;
    files::write_atomic(disk, out, bytes as u64 + 64, |to| {
        to.write_all(begin(format).as_bytes())?;
        texts.iter().enumerate().try_for_each(|(i, text)| write_entry(format, i == 0, text, to))?;
        to.write_all(end(format).as_bytes())
    })?;
    Ok(Merged { pictures, missing })
}

fn format_of(path: &Path) -> Result<Format> {
    Format::of(path).ok_or_else(|| {
        let want = "a name ending in .json, .jsonl or .csv, or the folder of an index";
        Error::argument(OPERATION, path.display().to_string(), want, "another")
    })
}

/// The texts of every picture of a file, by its composed name. A picture that stands in a file of objects twice is refused.
fn entries(part: &Path, format: Format) -> Result<BTreeMap<String, Vec<String>>> {
    let mut entries: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (image, text) in parse(&read(part)?, format, part)? {
        let name = composed(&image).into_owned();
        let texts = entries.entry(name).or_default();
        if !texts.is_empty() && format != Format::Csv {
            return Err(Error::new(Kind::Data, OPERATION)
                .about(part.display().to_string())
                .expected("each picture once")
                .got(format!("{image:?} twice"))
                .fix("remove one of them"));
        }
        texts.push(text);
    }
    Ok(entries)
}
