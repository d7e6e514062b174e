//! Captioned pictures: annotation files, the order of training, a threaded loader, and checks.
//!
//! Whatever the file's form, the result is one [`Sample`] per picture with all its captions, and a
//! [`Report`] of what was left out and why. Training walks over [`Dataset::pairs`], one entry per
//! caption, as LAVIS does.
//!
//! Refused as a whole (an error): text that is not UTF-8, broken JSON or CSV, ids that are not whole
//! numbers or strings, names that leave the folder of pictures, an annotation id used for two different
//! captions, more missing pictures than allowed, no caption at all. Skipped and counted: empty and null captions,
//! missing pictures, repetitions. Cut and counted: captions above 64 KiB. Found under another name and counted: COCO's
//! numbered pictures.

mod captions;
mod doctor;
mod files;
mod folder;
mod image;
mod loader;
mod order;
#[cfg(feature = "parquet")]
mod parquet;
pub mod random;
mod shards;
mod sources;
mod unread;

pub use doctor::{Checks, Diagnosis, Finding, Tokens, doctor};
pub(crate) use files::{quoted, read_text};
pub use folder::{Walked, walk};
pub use image::Image;
pub use loader::{Bad, Batch, Loader, Options};
pub use order::Order;
pub use unread::Unread;

use crate::{Error, Result};
use captions::{Door, Want};
use files::Root;
use image::Place;
use serde::Serialize;
use sources::Source;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

const OPERATION: &str = "read captions";
/// Bounds of one annotation file; larger collections are several files.
const MAX_ENTRIES: usize = 10_000_000;
/// A longer caption is cut here (at a whole character): far above any text the model reads.
const MAX_CAPTION: usize = 64 << 10;
const EXAMPLES: usize = 5;
/// Files that cannot be read are all named, up to these.
const UNREAD: usize = 1000;

/// One picture and what is said of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The name as the annotation file has it, composed (NFC), relative to the folder of pictures.
    pub name: String,
    pub(crate) place: Place,
    /// The file's id of the picture; its name where the file gives none.
    pub image_id: String,
    /// At least one, none of them blank.
    pub captions: Vec<String>,
}

impl Sample {
    fn new(name: String, image_id: String) -> Sample {
        Sample { name, place: Place::Nowhere, image_id, captions: Vec::new() }
    }

    /// The picture itself.
    pub fn image(&self) -> Image {
        self.place.image(&self.name)
    }
}

/// What reading found, in numbers, with the first few examples of what was left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Where it was read from.
    pub source: String,
    /// How many there are.
    pub pictures: usize,
    /// How many there are.
    pub captions: usize,
    /// Blank captions, skipped.
    pub empty: usize,
    /// Captions cut to 64 KiB.
    pub cut: usize,
    /// Pictures listed but not on the disk, skipped.
    pub missing: usize,
    /// Annotations listed twice with the same content, skipped.
    pub repeated: usize,
    /// Annotations of a picture that the file does not list, skipped.
    pub unlisted: usize,
    /// Pictures without any caption, skipped.
    pub uncaptioned: usize,
    /// Pictures found under another of COCO's names.
    pub renamed: usize,
    /// Texts and folders that cannot be read, skipped.
    pub unreadable: usize,
    /// What else there is to know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The first few.
    pub examples: Vec<String>,
    /// The reasons of those that cannot be read.
    pub unread: Vec<String>,
}

impl Report {
    fn note(&mut self, example: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(example());
        }
    }

    fn unread(&mut self, reason: Error) {
        self.unreadable += 1;
        if self.unread.len() < UNREAD {
            self.unread.push(reason.to_string());
        }
    }

    /// True where something was skipped or cut: the caller should show the line as a warning.
    pub fn has_warnings(&self) -> bool {
        let skipped = self.empty + self.missing + self.repeated + self.unlisted + self.uncaptioned;
        skipped + self.cut + self.renamed + self.unreadable > 0 || !self.notes.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} pictures, {} captions; skipped: {} empty captions, {} missing pictures, {} repeated annotations, \
             {} captions of unlisted pictures, {} pictures without a caption; cut: {} captions",
            self.source,
            self.pictures,
            self.captions,
            self.empty,
            self.missing,
            self.repeated,
            self.unlisted,
            self.uncaptioned,
            self.cut
        )?;
        if self.renamed > 0 {
            write!(f, "; found under another COCO name: {} pictures", self.renamed)?;
        }
        if self.unreadable > 0 {
            write!(f, "; unreadable: {} ({})", self.unreadable, some(&self.unread))?;
        }
        self.notes.iter().try_for_each(|note| write!(f, "; {note}"))
    }
}

/// The first few of a list, and how many more there are.
fn some(all: &[String]) -> String {
    let more = all.len().saturating_sub(EXAMPLES);
    let shown = all[..all.len() - more].join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

/// A picture and one of its captions: places in `samples` and in its `captions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Which sample.
    pub sample: u32,
    /// Which of its captions.
    pub caption: u32,
}

/// The usable part of one annotation file.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// Pictures with their captions.
    pub samples: Vec<Sample>,
    /// What reading them met.
    pub report: Report,
}

impl Dataset {
    /// Reads captions: a file in one of the forms of `captions::formats`, a folder of pictures with a .txt or .caption
    /// beside each or with Hugging Face's metadata file in it, or tar shards that hold both. `images` is the folder that names
    /// are relative to (a folder of captions is its own), or shards. FILE#train is one split of Karpathy's file. More than
    /// `missing_share` of the pictures missing (0.01 is usual) is an error.
    pub fn read(captions: &Path, images: &Path, missing_share: f64) -> Result<Dataset> {
        match Source::of(captions)? {
            Some(Source::Folder(folder)) => return folder::read(&folder, missing_share),
            Some(Source::Shards(shards)) => return shards::read(captions, &shards, missing_share),
            Some(Source::Tables(tables)) => {
                return read_tables(captions, &tables, Some(images), missing_share);
            }
            None => {}
        }
        let (file, split) = with_split(captions);
        let door = match Source::of(images)? {
            Some(Source::Shards(shards)) => Door::Members(shards::members(&shards)?),
            _ => Door::Folder { root: Root::new(OPERATION, images)?, given: absolute(images) },
        };
        captions::read(&file, door, Want::All(split.as_deref()), missing_share)
    }

    /// Reads captions alone, to compare others with: whether the pictures are there does not matter.
    pub fn read_captions(captions: &Path) -> Result<Dataset> {
        match Source::of(captions)? {
            Some(Source::Folder(folder)) => return folder::read(&folder, 1.0),
            Some(Source::Shards(shards)) => return shards::read(captions, &shards, 1.0),
            Some(Source::Tables(tables)) => return read_tables(captions, &tables, None, 1.0),
            None => {}
        }
        let (file, split) = with_split(captions);
        captions::read(&file, Door::Names, Want::All(split.as_deref()), 1.0)
    }

    /// What a model wrote, to be judged: the first caption of each picture. Two different ones are an error.
    pub fn read_results(results: &Path) -> Result<Dataset> {
        let data = captions::read(results, Door::Names, Want::Best, 1.0)?;
        let mut known: HashMap<&str, &Sample> = HashMap::new();
        for sample in &data.samples {
            if let Some(first) = known.insert(&sample.name, sample)
                && first.captions != sample.captions
            {
                let caption = |s: &Sample| s.captions.first().cloned().unwrap_or_default();
                return Err(captions::twice(results, &sample.name, &caption(first), &caption(sample)));
            }
        }
        Ok(data)
    }

    /// What training walks over: every caption with its picture, in the file's order of pictures.
    pub fn pairs(&self) -> Vec<Pair> {
        let of = |(s, sample): (usize, &Sample)| {
            (0..sample.captions.len()).map(move |c| Pair { sample: s as u32, caption: c as u32 })
        };
        self.samples.iter().enumerate().flat_map(of).collect()
    }

    /// A number for each sample's image id, counted in order of first appearance as LAVIS does: samples
    /// with the same id have the same number.
    pub fn image_numbers(&self) -> Vec<u32> {
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        let number = |s| {
            let next = numbers.len() as u32;
            *numbers.entry(s).or_insert(next)
        };
        self.samples.iter().map(|s| s.image_id.as_str()).map(number).collect()
    }
}

#[cfg(feature = "parquet")]
use parquet::{pictures as table_pictures, read as read_tables};

#[cfg(not(feature = "parquet"))]
fn table_pictures(tables: &[PathBuf]) -> Result<Vec<(String, Place)>> {
    let first = tables.first().cloned().unwrap_or_default();
    Err(crate::Error::file(OPERATION, first, "tar shards", "a parquet file")
        .fix("build qformer with the feature parquet"))
}

#[cfg(not(feature = "parquet"))]
fn read_tables(captions: &Path, _: &[PathBuf], _: Option<&Path>, _: f64) -> Result<Dataset> {
    let fix = "build qformer with the feature parquet, or write its captions as JSON lines";
    Err(Error::file(OPERATION, captions, "captions as text", "a parquet file").fix(fix))
}

/// Whether captions bring their pictures along: a folder of both, or shards.
pub fn holds_pictures(captions: &Path) -> bool {
    matches!(Source::of(captions), Ok(Some(_)))
}

/// The pictures in a file that holds many, or in the files of a pattern, with their names; `None` for all other paths.
pub fn inside(path: &Path) -> Result<Option<Vec<(String, Image)>>> {
    let name = path.to_string_lossy().to_lowercase();
    // A pattern of pictures is another matter.
    if ![".tar", ".parquet", ".tgz", ".gz", ".zst", ".bz2", ".xz"].iter().any(|end| name.ends_with(end)) {
        return Ok(None);
    }
    let places = match Source::of(path)? {
        Some(Source::Shards(shards)) => shards::pictures(&shards)?,
        Some(Source::Tables(tables)) => table_pictures(&tables)?,
        _ => return Ok(None),
    };
    let image = |(name, place): (String, Place)| {
        let image = place.image(&name);
        (name, image)
    };
    Ok(Some(places.into_iter().map(image).collect()))
}

/// A file of captions and the split that is asked for behind a `#`, unless that is part of the file's name.
fn with_split(captions: &Path) -> (PathBuf, Option<String>) {
    let whole = (captions.to_owned(), None);
    match captions.to_str().and_then(|text| text.rsplit_once('#')) {
        Some((file, split)) if !captions.exists() && !split.contains('/') && Path::new(file).is_file() => {
            (file.into(), Some(split.to_owned()))
        }
        _ => whole,
    }
}

/// As a path of a list of captions would have it: links are left as they are.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
