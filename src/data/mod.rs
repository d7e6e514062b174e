//! Captioned pictures: annotation files, the order of training, a threaded loader, and checks.
//!
//! Whatever the file's form, the result is one [`Sample`] per picture with all its captions, and a
//! [`Report`] of what was left out and why. Training walks over [`Dataset::pairs`], one entry per
//! caption, as LAVIS does.
//!
//! Refused as a whole (an error): text that is not UTF-8, broken JSON or CSV, ids that are not whole
//! numbers or strings, names that leave the folder of pictures, an annotation id used for two different
//! captions, more missing pictures than allowed, no caption at all. Skipped and counted: empty captions,
//! missing pictures, repetitions. Cut and counted: captions above 64 KiB.

mod doctor;
mod files;
mod folder;
mod json;
mod loader;
mod order;
pub mod random;
mod table;

pub use doctor::{Checks, Diagnosis, Finding, Tokens, doctor};
pub(crate) use files::{quoted, read_text};
pub use folder::{pictures, walk};
pub use loader::{Bad, Batch, Loader, Options};
pub use order::Order;

use crate::{Error, Kind, Result};
use files::Root;
use serde::Serialize;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

const OPERATION: &str = "read captions";
/// Bounds of one annotation file; larger collections are several files.
const MAX_FILE: u64 = 1 << 30;
const MAX_ENTRIES: usize = 10_000_000;
/// A longer caption is cut here (at a whole character): far above any text the model reads.
const MAX_CAPTION: usize = 64 << 10;
const EXAMPLES: usize = 5;

/// One picture and what is said of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The name as the annotation file has it, relative to the folder of pictures.
    pub name: String,
    /// The file itself, links followed.
    pub image: PathBuf,
    /// The file's id of the picture; its name where the file gives none.
    pub image_id: String,
    /// At least one, none of them blank.
    pub captions: Vec<String>,
    /// The annotation id of each caption; empty where the file gives none.
    pub annotation_ids: Vec<String>,
}

/// What reading found, in numbers, with the first few examples of what was left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    pub source: String,
    pub pictures: usize,
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
    pub examples: Vec<String>,
}

impl Report {
    fn note(&mut self, example: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(example());
        }
    }

    /// True where something was skipped or cut: the caller should show the line as a warning.
    pub fn has_warnings(&self) -> bool {
        self.empty + self.cut + self.missing + self.repeated + self.unlisted + self.uncaptioned > 0
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
        )
    }
}

/// A picture and one of its captions: places in `samples` and in its `captions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub sample: u32,
    pub caption: u32,
}

/// The usable part of one annotation file.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    pub samples: Vec<Sample>,
    pub report: Report,
}

impl Dataset {
    /// Reads captions: a LAVIS list or COCO/STAIR file (.json), a table (.csv, .tsv) or a folder of pictures
    /// with a .txt beside each. `images` is the folder that names are relative to (a folder of captions is its own).
    /// More than `missing_share` of the pictures missing (0.01 is usual) is an error.
    pub fn read(captions: &Path, images: &Path, missing_share: f64) -> Result<Dataset> {
        if captions.is_dir() {
            return folder::read(captions, missing_share);
        }
        read_file(captions, Builder::new(captions, Root::new(OPERATION, images)?), missing_share)
    }

    /// The same of captions alone, to compare others with: whether the pictures are there does not matter.
    pub fn read_captions(captions: &Path) -> Result<Dataset> {
        if captions.is_dir() {
            return folder::read(captions, 1.0);
        }
        read_file(captions, Builder::new(captions, Root::of_names(OPERATION)), 1.0)
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
        let mut numbers = HashMap::new();
        let number = |s: &Sample| -> u32 {
            let next = numbers.len() as u32;
            *numbers.entry(s.image_id.clone()).or_insert(next)
        };
        self.samples.iter().map(number).collect()
    }
}

fn read_file(captions: &Path, mut builder: Builder, missing_share: f64) -> Result<Dataset> {
    let text = files::read_text(OPERATION, captions, MAX_FILE)?;
    let extension = captions.extension().map(|e| e.to_string_lossy().to_lowercase());
    match extension.as_deref() {
        Some("csv") => table::read(&text, b',', &mut builder)?,
        Some("tsv") => table::read(&text, b'\t', &mut builder)?,
        _ => json::read(&text, &mut builder)?,
    }
    drop(text);
    builder.finish(missing_share)
}

/// Collects entries of any form of file into samples.
struct Builder<'a> {
    source: &'a Path,
    root: Root,
    samples: Vec<Sample>,
    /// By name and image id; `None` for a picture that is missing.
    known: HashMap<(String, String), Option<usize>>,
    report: Report,
}

impl<'a> Builder<'a> {
    fn new(source: &'a Path, root: Root) -> Self {
        let report = Report { source: source.display().to_string(), ..Report::default() };
        Builder { source, root, samples: Vec::new(), known: HashMap::new(), report }
    }

    /// The sample of this picture, made on first sight; `None` if the file is missing.
    fn sample(&mut self, name: &str, image_id: &str) -> Result<Option<usize>> {
        let key = (name.to_owned(), image_id.to_owned());
        if let Some(known) = self.known.get(&key) {
            return Ok(*known);
        }
        let image = self.root.find(self.source, name)?;
        Ok(self.found(key, image))
    }

    /// Notes where a picture lies, or that it lies nowhere.
    fn found(&mut self, key: (String, String), image: Option<PathBuf>) -> Option<usize> {
        let (name, image_id) = key.clone();
        let place = match image {
            Some(image) => {
                let (captions, annotation_ids) = (Vec::new(), Vec::new());
                self.samples.push(Sample { name, image, image_id, captions, annotation_ids });
                Some(self.samples.len() - 1)
            }
            None => {
                self.report.missing += 1;
                self.report.note(|| format!("missing picture {}", quoted(&name)));
                None
            }
        };
        self.known.insert(key, place);
        place
    }

    /// Adds a caption to a sample, unless it is blank.
    fn caption(&mut self, sample: usize, caption: &str, annotation_id: Option<&str>) {
        let Some(sample) = self.samples.get_mut(sample) else { return };
        if caption.trim().is_empty() {
            self.report.empty += 1;
            self.report.note(|| format!("empty caption of {}", quoted(&sample.name)));
            return;
        }
        let kept = &caption[..caption.floor_char_boundary(MAX_CAPTION)];
        if kept.len() < caption.len() {
            self.report.cut += 1;
            self.report.note(|| format!("caption of {} bytes of {}", caption.len(), quoted(&sample.name)));
        }
        sample.captions.push(kept.to_owned());
        sample.annotation_ids.extend(annotation_id.map(str::to_owned));
        self.report.captions += 1;
    }

    /// The last checks: too much missing, nothing left.
    fn finish(mut self, missing_share: f64) -> Result<Dataset> {
        let listed = self.samples.len() + self.report.missing;
        if self.report.missing as f64 > missing_share * listed as f64 {
            let expected = format!("at most {} % of the pictures missing", missing_share * 100.0);
            let got = format!("{} of {listed}: {}", self.report.missing, self.report.examples.join(", "));
            return Err(Error::new(Kind::Data, OPERATION)
                .about(self.report.source)
                .expected(expected)
                .got(got)
                .fix(format!("check that the names are relative to {}", self.root.folder().display())));
        }
        let before = self.samples.len();
        self.samples.retain(|s| !s.captions.is_empty());
        self.report.uncaptioned += before - self.samples.len();
        self.report.pictures = self.samples.len();
        if self.samples.is_empty() {
            return Err(Error::new(Kind::Data, OPERATION).expected("at least one caption").got(&self.report));
        }
        Ok(Dataset { samples: self.samples, report: self.report })
    }
}
