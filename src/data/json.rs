//! The two JSON forms of captions, told apart by their first character.
//!
//!   LAVIS       [{"image": "a.jpg", "caption": "..." or ["...", ...], "image_id": ...}, ...]
//!   COCO/STAIR  {"images": [{"id": ..., "file_name": "a.jpg"}, ...],
//!                "annotations": [{"id": ..., "image_id": ..., "caption": "..."}, ...]}
//!
//! Ids are whole numbers or strings; other keys are ignored. Entries are counted while parsing, nesting
//! is bounded by serde_json, a key given twice is an error: no input can take more than a few times its own size.

use super::files::{quoted, shortened};
use super::{Builder, MAX_ENTRIES, OPERATION};
use crate::{Error, Result};
use serde::de::{DeserializeOwned, Deserializer, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, de};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::marker::PhantomData;

/// An id as text: 9 and "9" are the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Id(String);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Id;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an id: a whole number or a string")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Id, E> {
                Ok(Id(v.to_owned()))
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Id, E> {
                Ok(Id(v.to_string()))
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Id, E> {
                Ok(Id(v.to_string()))
            }
        }
        d.deserialize_any(V)
    }
}

/// A list of at most `MAX_ENTRIES`.
struct Entries<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for V<T> {
            type Value = Entries<T>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Entries<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = list.next_element()? {
                    if entries.len() == MAX_ENTRIES {
                        return Err(A::Error::custom(format!("more than {MAX_ENTRIES} entries")));
                    }
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        d.deserialize_seq(V(PhantomData))
    }
}

/// One caption or a list of them.
struct Captions(Vec<String>);

impl<'de> Deserialize<'de> for Captions {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Captions;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a caption or a list of captions")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Captions, E> {
                Ok(Captions(vec![v.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Captions, A::Error> {
                let list = de::value::SeqAccessDeserializer::new(list);
                Ok(Captions(Entries::<String>::deserialize(list)?.0))
            }
        }
        d.deserialize_any(V)
    }
}

#[derive(Deserialize)]
struct LavisEntry {
    image: String,
    caption: Captions,
    image_id: Option<Id>,
}

#[derive(Deserialize)]
struct Coco {
    images: Entries<CocoImage>,
    annotations: Entries<CocoAnnotation>,
}

#[derive(Deserialize)]
struct CocoImage {
    id: Id,
    file_name: String,
}

#[derive(Deserialize)]
struct CocoAnnotation {
    id: Option<Id>,
    image_id: Id,
    caption: String,
}

pub(super) fn read(text: &str, builder: &mut Builder) -> Result<()> {
    match text.trim_start().bytes().next() {
        Some(b'[') => lavis(parse(text, builder)?, builder),
        Some(b'{') => coco(parse(text, builder)?, builder),
        first => {
            let got = match first {
                None => "an empty file".to_owned(),
                Some(_) => format!("a file that starts with {}", quoted(&first_word(text))),
            };
            Err(Error::file(OPERATION, builder.source, "a JSON list or object", got))
        }
    }
}

fn first_word(text: &str) -> String {
    text.split_whitespace().next().unwrap_or_default().chars().take(20).collect()
}

fn parse<T: DeserializeOwned>(text: &str, builder: &Builder) -> Result<T> {
    serde_json::from_str(text).map_err(|e| {
        let expected = "a LAVIS list or a COCO object of captions";
        Error::file(OPERATION, builder.source, expected, shortened(&e))
            .fix("repair the file at that line and column")
    })
}

fn lavis(entries: Entries<LavisEntry>, builder: &mut Builder) -> Result<()> {
    for entry in entries.0 {
        let id = entry.image_id.map_or_else(|| entry.image.clone(), |id| id.0);
        if let Some(sample) = builder.sample(&entry.image, &id)? {
            for caption in &entry.caption.0 {
                builder.caption(sample, caption, None);
            }
        }
    }
    Ok(())
}

fn coco(file: Coco, builder: &mut Builder) -> Result<()> {
    let mut images: HashMap<Id, (String, Option<usize>)> = HashMap::new();
    for image in file.images.0 {
        let sample = builder.sample(&image.file_name, &image.id.0)?;
        match images.entry(image.id) {
            Entry::Vacant(slot) => {
                slot.insert((image.file_name, sample));
            }
            Entry::Occupied(known) => {
                same(builder, "image", &known.key().0, &known.get().0, &image.file_name)?;
                builder.report.repeated += 1;
            }
        }
    }
    let mut seen: HashMap<Id, (Id, String)> = HashMap::new();
    for a in file.annotations.0 {
        let Some((_, sample)) = images.get(&a.image_id) else {
            builder.report.unlisted += 1;
            builder.report.note(|| format!("caption of unlisted image {}", quoted(&a.image_id.0)));
            continue;
        };
        if let Some(id) = &a.id {
            if let Some((image, caption)) = seen.get(id) {
                let (first, second) = (content(image, caption), content(&a.image_id, &a.caption));
                same(builder, "annotation", &id.0, &first, &second)?;
                builder.report.repeated += 1;
                continue;
            }
            seen.insert(id.clone(), (a.image_id.clone(), a.caption.clone()));
        }
        if let Some(sample) = *sample {
            builder.caption(sample, &a.caption, a.id.as_ref().map(|id| id.0.as_str()));
        }
    }
    Ok(())
}

fn content(image: &Id, caption: &str) -> String {
    format!("image {}: {caption}", image.0)
}

/// An id that comes twice must mean the same thing twice.
fn same(builder: &Builder, what: &str, id: &str, first: &str, second: &str) -> Result<()> {
    if first == second {
        return Ok(());
    }
    let got = format!("{what} id {} for {} and for {}", quoted(id), quoted(first), quoted(second));
    Err(Error::file(OPERATION, builder.source, format!("each {what} id once"), got)
        .fix("give one of them another id"))
}
