//! Collects entries of any form of file into samples: one for each picture, found once, with all its captions.
//!
//! Whether the pictures are there is asked at the end, of all of them on all cores.

use super::super::files::{Root, quoted};
use super::super::image::Place;
use super::super::{Dataset, MAX_CAPTION, Report, Sample, some};
use super::entry::{Captions, Id};
use super::{OPERATION, coco};
use crate::files::composed;
use crate::{Error, Kind, Result};
use rayon::prelude::*;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is wanted of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want<'a> {
    /// All captions of every picture; of Karpathy's file those of one split, if one is named.
    All(Option<&'a str>),
    /// One caption of each picture, the best: what a model wrote, to be judged.
    Best,
}

/// Where pictures are looked for.
pub enum Door {
    /// Nobody will open them.
    Names,
    /// In a folder, as it was given.
    Folder { root: Root, given: PathBuf },
    /// In shards, by name.
    Members(HashMap<String, Place>),
}

pub struct Builder<'a> {
    pub source: &'a Path,
    pub report: Report,
    door: Door,
    want: Want<'a>,
    samples: Vec<Sample>,
    known: Known,
    /// Captions by split, where the file has splits and none was asked for.
    splits: std::collections::BTreeMap<String, usize>,
}

/// Samples by name and id: the first of each hash, and of each sample the next of the same hash.
#[derive(Default)]
struct Known {
    hasher: RandomState,
    first: HashMap<u64, u32>,
    next: Vec<u32>,
}

const NONE: u32 = u32::MAX;

impl<'a> Builder<'a> {
    pub fn new(source: &'a Path, door: Door, want: Want<'a>) -> Self {
        let report = Report { source: source.display().to_string(), ..Report::default() };
        let (samples, known, splits) = (Vec::new(), Known::default(), Default::default());
        Builder { source, report, door, want, samples, known, splits }
    }

    pub fn note(&mut self, example: impl FnOnce() -> String) {
        self.report.note(example);
    }

    /// True for what judges one caption of each picture.
    pub fn best(&self) -> bool {
        self.want == Want::Best
    }

    /// Whether entries of this split are asked for.
    pub fn wants(&mut self, split: Option<&str>) -> bool {
        let (Some(split), Want::All(wanted)) = (split, self.want) else { return true };
        match self.splits.get_mut(split) {
            Some(n) => *n += 1,
            None => drop(self.splits.insert(split.to_owned(), 1)),
        }
        // Karpathy's training data is train and the rest of COCO's validation data.
        wanted.is_none_or(|w| w == split || w == "train" && split == "restval")
    }

    /// The name of a sample's picture.
    pub fn name(&self, sample: usize) -> &str {
        self.samples.get(sample).map_or("", |s| s.name.as_str())
    }

    /// Captions of a sample so far.
    pub fn count(&self, sample: usize) -> usize {
        self.samples.get(sample).map_or(0, |s| s.captions.len())
    }

    /// A caption that was kept, as an annotation of its image.
    pub fn stored(&self, (sample, caption): (u32, u32)) -> String {
        let sample = self.samples.get(sample as usize);
        let caption = sample.and_then(|s| s.captions.get(caption as usize)).map_or("", |c| c.trim());
        format!("image {}: {caption}", sample.map_or("", |s| s.image_id.as_str()))
    }

    /// The sample of this picture, made on first sight. Without a name it is known, and looked for, by its id.
    pub fn sample(&mut self, name: Option<&str>, id: Option<&Id>) -> Result<usize> {
        let id = id.map(Id::to_string);
        let name = match (name, &id) {
            (Some(name), _) => self.relative(name),
            (None, Some(id)) => id,
            (None, None) => "",
        };
        // As names are compared: a Mac's file system takes letters apart.
        let name = composed(name);
        let name = name.as_ref();
        let id = id.as_deref().unwrap_or(name);
        let hash = self.known.hasher.hash_one((name, id));
        let first = self.known.first.get(&hash).copied().unwrap_or(NONE);
        let mut at = first;
        while let Some(sample) = self.samples.get(at as usize) {
            if sample.name == name && sample.image_id == id {
                return Ok(at as usize);
            }
            at = self.known.next.get(at as usize).copied().unwrap_or(NONE);
        }
        let sample = Sample::new(name.to_owned(), id.to_owned());
        let place = self.samples.len();
        self.samples.push(sample);
        self.known.first.insert(hash, place as u32);
        self.known.next.push(first);
        Ok(place)
    }

    /// A sample whose picture is found already.
    pub fn found(&mut self, name: &str, place: Place) -> Result<usize> {
        self.placed(name, None, place)
    }

    pub fn placed(&mut self, name: &str, id: Option<&Id>, place: Place) -> Result<usize> {
        let at = self.sample(Some(name), id)?;
        if let Some(sample) = self.samples.get_mut(at) {
            sample.place = place;
        }
        Ok(at)
    }

    /// An absolute path below the folder of pictures, as it is named inside.
    fn relative<'n>(&self, name: &'n str) -> &'n str {
        let Door::Folder { root, given } = &self.door else { return name };
        let path = Path::new(name);
        if !path.is_absolute() {
            return name;
        }
        let inside = path.strip_prefix(root.folder()).or_else(|_| path.strip_prefix(given));
        inside.ok().and_then(Path::to_str).filter(|n| !n.is_empty()).unwrap_or(name)
    }

    /// Adds the captions of one entry to a sample.
    pub fn captions(&mut self, sample: usize, captions: Captions, _of: Option<&Id>) -> Result<()> {
        if self.best() {
            return match captions.into_iter().next() {
                Some(Some(caption)) => self.only(sample, caption),
                _ => {
                    self.empty(sample, "no caption");
                    Ok(())
                }
            };
        }
        for caption in captions.into_iter() {
            match caption {
                Some(caption) => self.caption(sample, caption),
                None => self.empty(sample, "null caption"),
            }
        }
        Ok(())
    }

    /// Counts a caption that says nothing.
    pub fn empty(&mut self, sample: usize, what: &str) {
        self.report.empty += 1;
        let name = self.samples.get(sample).map_or("", |s| s.name.as_str());
        self.report.note(|| format!("{what} of {}", quoted(name)));
    }

    /// Adds a caption to a sample, unless it is blank.
    pub fn caption(&mut self, sample: usize, mut caption: String) {
        if caption.trim().is_empty() {
            return self.empty(sample, "empty caption");
        }
        let Some(sample) = self.samples.get_mut(sample) else { return };
        let kept = caption.floor_char_boundary(MAX_CAPTION);
        if kept < caption.len() {
            self.report.cut += 1;
            self.report.note(|| format!("caption of {} bytes of {}", caption.len(), quoted(&sample.name)));
            caption.truncate(kept);
        }
        caption.shrink_to_fit();
        sample.captions.reserve_exact(if sample.captions.is_empty() { 1 } else { 0 });
        sample.captions.push(caption);
        self.report.captions += 1;
    }

    /// The one caption of a picture that is judged; an empty one, too. Two that differ are an error: which is meant?
    fn only(&mut self, sample: usize, caption: String) -> Result<()> {
        let Some(sample) = self.samples.get_mut(sample) else { return Ok(()) };
        match sample.captions.first() {
            None => {
                sample.captions.push(caption);
                self.report.captions += 1;
                Ok(())
            }
            Some(first) if *first == caption => {
                self.report.repeated += 1;
                Ok(())
            }
            Some(first) => Err(twice(self.source, &sample.name, first, &caption)),
        }
    }

    /// The last checks: where the pictures are, too much missing, nothing left.
    pub fn finish(mut self, missing_share: f64) -> Result<Dataset> {
        self.known = Known::default();
        self.find()?;
        let listed = self.samples.len();
        for sample in self.samples.iter().filter(|s| matches!(s.place, Place::Nowhere)) {
            self.report.missing += 1;
            self.report.captions -= sample.captions.len();
            self.report.note(|| format!("missing picture {}", quoted(&sample.name)));
        }
        if self.report.missing as f64 > missing_share * listed as f64 {
            return Err(self.too_many_missing(missing_share, listed));
        }
        let texts = listed + self.report.unreadable;
        if self.report.unreadable as f64 > missing_share * texts as f64 {
            let expected = format!("at most {} % of the texts unreadable", missing_share * 100.0);
            let got = format!("{} of {texts}: {}", self.report.unreadable, some(&self.report.unread));
            return Err(Error::new(Kind::Data, OPERATION)
                .about(self.report.source)
                .expected(expected)
                .got(got)
                .fix("save them as UTF-8; `qformer doctor` lists them all"));
        }
        self.samples.retain(|s| !matches!(s.place, Place::Nowhere));
        let before = self.samples.len();
        self.samples.retain(|s| !s.captions.is_empty());
        self.report.uncaptioned += before - self.samples.len();
        self.report.pictures = self.samples.len();
        if self.splits.len() > 1 {
            let counts: Vec<String> = self.splits.iter().map(|(name, n)| format!("{name} {n}")).collect();
            let file = &self.report.source;
            if self.want == Want::All(None) {
                let note = format!("all splits ({}); name one as {file}#train", counts.join(", "));
                self.report.notes.push(note);
            }
        }
        if self.samples.is_empty() {
            let missing = self.report.examples.iter().find(|e| e.starts_with("missing"));
            let missing = missing.map(|m| format!("; the first is a {m}")).unwrap_or_default();
            let e = Error::new(Kind::Data, OPERATION)
                .expected("at least one caption")
                .got(format!("{}{missing}", self.report));
            return Err(match (&self.want, self.splits.keys().cloned().collect::<Vec<_>>()) {
                (Want::All(Some(_)), known) => e.fix(format!("its splits are: {}", known.join(", "))),
                _ => e.fix(self.missing_advice()),
            });
        }
        self.samples.shrink_to_fit();
        Ok(Dataset { samples: self.samples, report: self.report })
    }

    /// Finds every picture that is not found yet.
    fn find(&mut self) -> Result<()> {
        let (source, door) = (self.source, &self.door);
        match door {
            Door::Names => {
                for sample in self.samples.iter_mut().filter(|s| matches!(s.place, Place::Nowhere)) {
                    sample.place = Place::At(Box::from(Path::new("")));
                }
            }
            Door::Members(members) => {
                for sample in self.samples.iter_mut().filter(|s| matches!(s.place, Place::Nowhere)) {
                    if let Some(place) = members.get(&sample.name) {
                        sample.place = place.clone();
                    }
                }
            }
            Door::Folder { root, .. } => {
                let folder: Arc<Path> = Arc::from(root.folder());
                let folders = self.plain_folders(root);
                let look = |s: &Sample| -> Result<(Place, bool)> {
                    let folder_of_name = s.name.rsplit_once('/').map_or("", |(folder, _)| folder);
                    if folders.get(folder_of_name) == Some(&true) && plain_name(&s.name) {
                        let about = folder.join(&s.name).symlink_metadata();
                        if about.is_ok_and(|about| about.is_file()) {
                            return Ok((Place::Under(Arc::clone(&folder)), false));
                        }
                    }
                    // An absolute path that leads inside by way of a link.
                    if Path::new(&s.name).is_absolute()
                        && let Ok(path) = Path::new(&s.name).canonicalize()
                        && path.starts_with(root.folder())
                        && path.is_file()
                    {
                        return Ok((Place::At(path.into()), false));
                    }
                    if let Some(path) = root.find(source, &s.name)? {
                        return Ok((Place::At(path.into()), false));
                    }
                    let by_number = coco::other_names(&s.name, &s.image_id)
                        .into_iter()
                        .find_map(|name| root.find(source, &name).ok().flatten());
                    Ok(by_number.map_or((Place::Nowhere, false), |path| (Place::At(path.into()), true)))
                };
                let open = |s: &Sample| matches!(s.place, Place::Nowhere);
                let places: Vec<Result<Option<(Place, bool)>>> = self
                    .samples
                    .par_iter()
                    .map(|s| if open(s) { look(s).map(Some) } else { Ok(None) })
                    .collect();
                for (sample, place) in self.samples.iter_mut().zip(places) {
                    let Some((place, renamed)) = place? else { continue };
                    if renamed {
                        self.report.renamed += 1;
                        let there = place.image(&sample.name).path();
                        let there = quoted(&there.to_string_lossy());
                        self.report.note(|| format!("{there} is taken for {}", quoted(&sample.name)));
                    }
                    sample.place = place;
                }
            }
        }
        Ok(())
    }

    /// Of every folder that names speak of, whether it is a real one, without links on the way.
    fn plain_folders(&self, root: &Root) -> HashMap<String, bool> {
        let mut folders = HashMap::new();
        for sample in &self.samples {
            let name = sample.name.rsplit_once('/').map_or("", |(folder, _)| folder);
            if !folders.contains_key(name) {
                let path = root.folder().join(name);
                let plain = plain_name(name) || name.is_empty();
                // Joining an empty name adds a slash, which canonical paths do not have; paths compare by their parts.
                let plain = plain && path.canonicalize().is_ok_and(|real| real == path);
                folders.insert(name.to_owned(), plain);
            }
        }
        folders
    }

    fn too_many_missing(self, missing_share: f64, listed: usize) -> Error {
        let expected = format!("at most {} % of the pictures missing", missing_share * 100.0);
        let got = format!("{} of {listed}: {}", self.report.missing, self.report.examples.join(", "));
        let advice = self.missing_advice();
        Error::new(Kind::Data, OPERATION).about(self.report.source).expected(expected).got(got).fix(advice)
    }

    /// What to do about missing pictures, with one that is there.
    fn missing_advice(&self) -> String {
        match &self.door {
            Door::Folder { root, .. } if self.report.missing > 0 => {
                let folder = root.folder().display();
                let there = super::super::folder::first_picture(root.folder());
                let there = there.map(|p| p.strip_prefix(root.folder()).map(Path::to_owned).unwrap_or(p));
                let example = there.map_or("no picture lies there".into(), |p| {
                    format!("a picture that lies there is {}", quoted(&p.to_string_lossy()))
                });
                format!("check that the names are relative to {folder}: {example}")
            }
            Door::Members(members) if self.report.missing > 0 => {
                let first = members.keys().min().map(String::as_str).unwrap_or_default();
                format!("name pictures as they are named inside, such as {}", quoted(first))
            }
            _ => "add captions".into(),
        }
    }
}

/// The error of a picture with two captions of which one is to be judged.
pub fn twice(source: &Path, name: &str, first: &str, second: &str) -> Error {
    let got = format!("{} of {}, {} and {}", "two", quoted(name), quoted(first), quoted(second));
    Error::file(OPERATION, source, "one caption of each picture", got)
        .fix("remove the ones that are not to be judged")
}

/// A relative name of plain parts only.
fn plain_name(name: &str) -> bool {
    !name.is_empty()
        && !name.contains('\0')
        && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}
