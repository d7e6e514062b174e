//! Captions in JSON, in the forms that the field writes:
//!
//!   a list      [{"image": "a.jpg", "caption": "..." or ["...", ..], "image_id": ..}, ..]     LAVIS; results: image_id alone
//!   lines       the same objects one after the other                                           ours; Hugging Face: file_name, text
//!   COCO        {"images": [{"id": .., "file_name": "a.jpg"}, ..],
//!                "annotations": [{"id": .., "image_id": .., "caption": "..."}, ..]}             STAIR, LAVIS's ground truth
//!   Karpathy    {"images": [{"filepath": "val2014", "filename": "a.jpg", "sentences": [{"raw": "..."}, ..], "split": ..}, ..]}
//!   by name     {"a.jpg": "..." or ["...", ..] or {"caption": "..."}, ..}

use super::super::files::quoted;
use super::builder::Builder;
use super::entry::{CAPTIONS, Captions, Entry, IDS, Id, NAMES};
use super::ids::Ids;
use super::text::Text;
use super::{MAX_ENTRIES, OPERATION};
use crate::{Error, Result};

pub fn list(text: &mut Text, builder: &mut Builder) -> Result<()> {
    let mut entries = 0;
    text.list(|text| entry(text, builder, &mut entries))?;
    at_end(text)
}

pub fn lines(text: &mut Text, builder: &mut Builder) -> Result<()> {
    let mut entries = 0;
    while text.peek()?.is_some() {
        entry(text, builder, &mut entries)?;
    }
    Ok(())
}

pub fn by_name(text: &mut Text, builder: &mut Builder) -> Result<()> {
    let mut entries = 0;
    text.object(|text, name| {
        count(text, &mut entries)?;
        let captions: Captions = text.value()?;
        let sample = builder.sample(Some(&name), None)?;
        builder.captions(sample, captions, None)
    })?;
    at_end(text)
}

/// Nothing may follow the list or object that a file is.
fn at_end(text: &mut Text) -> Result<()> {
    match text.peek()? {
        None => Ok(()),
        Some(b) => Err(text.wrong(&format!("the end of the file expected, {:?} found", char::from(b)))),
    }
}

fn count(text: &Text, entries: &mut usize) -> Result<()> {
    *entries += 1;
    if *entries > MAX_ENTRIES {
        let expected = format!("at most {MAX_ENTRIES} entries");
        return Err(Error::file(OPERATION, &text.path, expected, "more").fix("split it into several files"));
    }
    Ok(())
}

fn entry(text: &mut Text, builder: &mut Builder, entries: &mut usize) -> Result<()> {
    count(text, entries)?;
    let entry: Entry = text.value()?;
    take(builder, entry).map_err(|e| match e {
        Wrong::Entry(got) => text.wrong_value(&got),
        Wrong::Error(e) => e,
    })
}

enum Wrong {
    Entry(String),
    Error(Error),
}

fn take(builder: &mut Builder, entry: Entry) -> Result<(), Wrong> {
    let Some(captions) = entry.captions else {
        return Err(Wrong::Entry(format!("an entry without any of the keys {}", CAPTIONS.join(", "))));
    };
    if entry.name.is_none() && entry.image_id.is_none() {
        let keys = NAMES.iter().chain(&IDS).copied().collect::<Vec<_>>().join(", ");
        return Err(Wrong::Entry(format!("an entry without any of the keys {keys}")));
    }
    if !builder.wants(entry.split.as_deref()) {
        return Ok(());
    }
    let sample = builder.sample(entry.name.as_deref(), entry.image_id.as_ref()).map_err(Wrong::Error)?;
    builder.captions(sample, captions, None).map_err(Wrong::Error)
}

/// COCO's object, or Karpathy's: annotations may stand before the images they speak of.
pub fn object(text: &mut Text, builder: &mut Builder) -> Result<()> {
    let mut coco = Coco::default();
    let mut entries = 0;
    let mut lists = 0;
    text.object(|text, key| match (key.as_str(), text.peek()?) {
        ("images", Some(b'[')) => {
            lists += 1;
            text.list(|text| {
                count(text, &mut entries)?;
                let image: Entry = text.value()?;
                coco.image(image, builder, text)
            })
        }
        ("annotations", Some(b'[')) => {
            lists += 1;
            text.list(|text| {
                count(text, &mut entries)?;
                let a: Entry = text.value()?;
                let Some(image) = a.image_id else {
                    return Err(text.wrong_value("an annotation without image_id"));
                };
                let Some(captions) = a.captions else {
                    return Err(
                        text.wrong_value("an annotation without a caption (instances, not captions?)")
                    );
                };
                coco.annotations.push((image, a.id, captions));
                Ok(())
            })
        }
        _ => text.skip(),
    })?;
    if lists == 0 {
        return Err(text.wrong("an object with neither images nor annotations as a list"));
    }
    coco.join(builder)?;
    at_end(text)
}

#[derive(Default)]
struct Coco {
    /// The sample of each image.
    images: Ids<u32>,
    annotations: Vec<(Id, Option<Id>, Captions)>,
}

impl Coco {
    fn image(&mut self, image: Entry, builder: &mut Builder, text: &Text) -> Result<()> {
        // Karpathy's own: an image that brings its captions along.
        let id = image.image_id.or(image.id);
        if image.name.is_none() && id.is_none() {
            return Err(text.wrong_value("an image with neither id nor file_name"));
        }
        if !builder.wants(image.split.as_deref()) {
            return Ok(());
        }
        let sample = builder.sample(image.name.as_deref(), id.as_ref())?;
        if let Some(captions) = image.captions {
            builder.captions(sample, captions, None)?;
        }
        let Some(id) = id else { return Ok(()) };
        let Some(known) = self.images.get(&id) else {
            self.images.insert(id, sample as u32);
            return Ok(());
        };
        let name = |sample: usize| builder.name(sample).to_owned();
        same(builder, "image", &id, &name(known as usize), &name(sample))?;
        builder.report.repeated += 1;
        Ok(())
    }

    fn join(self, builder: &mut Builder) -> Result<()> {
        // Of every annotation id the caption it is known for: its sample and its place there.
        let mut seen: Ids<(u32, u32)> = Ids::default();
        // A list of annotations alone (LAVIS's ground truth may lack images): every image is listed by its mention.
        let listed = !self.images.is_empty();
        for (image, id, captions) in self.annotations {
            let sample = match self.images.get(&image) {
                Some(sample) => sample as usize,
                None if listed => {
                    builder.report.unlisted += 1;
                    builder.note(|| format!("caption of unlisted image {}", quoted(&image.to_string())));
                    continue;
                }
                None => builder.sample(None, Some(&image))?,
            };
            // An annotation that carries its image's id has none of its own: LAVIS's ground truth.
            let id = id.filter(|id| *id != image);
            if let Some(known) = id.as_ref().and_then(|id| seen.get(id)) {
                let first = builder.stored(known);
                let given = captions.into_iter().next().flatten().unwrap_or_default();
                let second = format!("image {image}: {}", given.trim());
                same(builder, "annotation", id.as_ref().unwrap_or(&image), &first, &second)?;
                builder.report.repeated += 1;
                continue;
            }
            let before = builder.count(sample);
            builder.captions(sample, captions, Some(&image))?;
            if let Some(id) = id.filter(|_| builder.count(sample) > before) {
                seen.insert(id, (sample as u32, before as u32));
            }
        }
        Ok(())
    }
}

/// An id that comes twice must mean the same thing twice.
fn same(builder: &Builder, what: &str, id: &Id, first: &str, second: &str) -> Result<()> {
    if first == second {
        return Ok(());
    }
    let id = quoted(&id.to_string());
    let got = format!("{what} id {id} for {} and for {}", quoted(first), quoted(second));
    Err(Error::file(OPERATION, builder.source, format!("each {what} id once"), got)
        .fix("give one of them another id"))
}
