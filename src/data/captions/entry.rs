//! One entry of a file of captions, whoever wrote it: a picture's name, its id, its captions, under the names that the
//! field has for them. Of several keys that could be meant the first in the lists below is; other keys are ignored.
//!
//! An id is a whole number or a string; 9, "9" and Python's 9.0 are the same. A caption that is null or NaN is no caption:
//! it is counted, not an error.

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// Keys and column names of a picture's name, of its captions, of its id.
pub const NAMES: [&str; 11] = [
    "image",
    "file_name",
    "filename",
    "image_path",
    "img_path",
    "image_name",
    "image_file",
    "filepath",
    "path",
    "file",
    "img",
];
pub const CAPTIONS: [&str; 9] =
    ["caption", "captions", "text", "title", "comment", "sentences", "sentence", "description", "raw"];
pub const IDS: [&str; 4] = ["image_id", "cocoid", "img_id", "imgid"];

/// The place of a name in one of these lists.
pub fn rank(list: &[&str], key: &str) -> Option<usize> {
    list.iter().position(|name| *name == key)
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Id {
    Number(i64),
    Text(Box<str>),
}

impl Id {
    pub fn of_text(text: &str) -> Id {
        match text.parse::<i64>() {
            Ok(n) if n.to_string() == text => Id::Number(n),
            _ => Id::Text(text.into()),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Id::Number(n) => n.fmt(f),
            Id::Text(text) => text.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Id;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an id: a whole number or a string")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Id, E> {
                Ok(Id::of_text(v))
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Id, E> {
                Ok(i64::try_from(v).map_or_else(|_| Id::Text(v.to_string().into()), Id::Number))
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Id, E> {
                Ok(Id::Number(v))
            }
            /// Python turns whole numbers of a column with a gap into floats: exact up to 2^53.
            fn visit_f64<E: de::Error>(self, v: f64) -> Result<Id, E> {
                if v.fract() == 0.0 && v.abs() < (1u64 << 53) as f64 {
                    return Ok(Id::Number(v as i64));
                }
                Err(E::invalid_value(de::Unexpected::Float(v), &self))
            }
        }
        d.deserialize_any(V)
    }
}

/// A text, or something that is none.
enum Loose {
    Text(String),
    Other,
}

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Loose;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_str<E>(self, v: &str) -> Result<Loose, E> {
                Ok(Loose::Text(v.to_owned()))
            }
            fn visit_string<E>(self, v: String) -> Result<Loose, E> {
                Ok(Loose::Text(v))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Loose, E> {
                Ok(Loose::Other)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Loose, E> {
                Ok(Loose::Other)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Loose, E> {
                Ok(Loose::Other)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Loose, E> {
                Ok(Loose::Other)
            }
            fn visit_unit<E>(self) -> Result<Loose, E> {
                Ok(Loose::Other)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Loose, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Loose::Other)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Loose, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Loose::Other)
            }
        }
        d.deserialize_any(V)
    }
}

/// What is said of a picture; `None` stands for a caption that is null.
#[derive(Clone, Debug, PartialEq)]
pub enum Captions {
    One(Option<String>),
    Several(Vec<Option<String>>),
}

impl Captions {
    pub fn into_iter(self) -> impl Iterator<Item = Option<String>> {
        let (one, several) = match self {
            Captions::One(caption) => (Some(caption), Vec::new()),
            Captions::Several(captions) => (None, captions),
        };
        one.into_iter().chain(several)
    }
}

impl<'de> Deserialize<'de> for Captions {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Captions;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a caption or a list of captions")
            }
            fn visit_str<E>(self, v: &str) -> Result<Captions, E> {
                Ok(Captions::One(Some(v.to_owned())))
            }
            fn visit_unit<E>(self) -> Result<Captions, E> {
                Ok(Captions::One(None))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Captions, A::Error> {
                let mut all = Vec::new();
                while let Some(Caption(caption)) = list.next_element()? {
                    all.push(caption);
                }
                Ok(Captions::Several(all))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Captions, A::Error> {
                Ok(Captions::One(inside(map)?))
            }
        }
        d.deserialize_any(V)
    }
}

/// One of a list of captions: a text, null, or an object that holds the text (Karpathy's `{"raw": "..", "tokens": [..]}`).
struct Caption(Option<String>);

impl<'de> Deserialize<'de> for Caption {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Caption;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a caption")
            }
            fn visit_str<E>(self, v: &str) -> Result<Caption, E> {
                Ok(Caption(Some(v.to_owned())))
            }
            fn visit_unit<E>(self) -> Result<Caption, E> {
                Ok(Caption(None))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Caption, A::Error> {
                Ok(Caption(inside(map)?))
            }
        }
        d.deserialize_any(V)
    }
}

/// The text in an object around a caption.
fn inside<'de, A: MapAccess<'de>>(mut map: A) -> Result<Option<String>, A::Error> {
    let mut best = Best::default();
    while let Some(key) = map.next_key::<std::borrow::Cow<str>>()? {
        match rank(&CAPTIONS, &key) {
            Some(rank) => best.put(rank, map.next_value::<Loose>()?),
            // A list of entries under some key, not captions of a picture of that name.
            None if rank(&NAMES, &key).is_some() => {
                return Err(de::Error::custom(format!(
                    "an entry of its own ({key:?}) where a caption is expected"
                )));
            }
            None => drop(map.next_value::<IgnoredAny>()?),
        }
    }
    Ok(match best.0 {
        Some((_, Loose::Text(text))) => Some(text),
        _ => None,
    })
}

/// The value of the first key of a list.
struct Best<T>(Option<(usize, T)>);

impl<T> Default for Best<T> {
    fn default() -> Self {
        Best(None)
    }
}

impl<T> Best<T> {
    fn put(&mut self, rank: usize, value: T) {
        if self.0.as_ref().is_none_or(|(best, _)| rank < *best) {
            self.0 = Some((rank, value));
        }
    }

    fn value(self) -> Option<T> {
        self.0.map(|(_, value)| value)
    }
}

/// An entry of a list, a line, or one of COCO's images and annotations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    pub name: Option<String>,
    /// Of the picture.
    pub image_id: Option<Id>,
    /// Of the entry itself.
    pub id: Option<Id>,
    pub captions: Option<Captions>,
    /// Karpathy's part of the data.
    pub split: Option<String>,
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Entry;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object with a picture's name and its caption")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Entry, A::Error> {
                fields(map)
            }
        }
        d.deserialize_map(V)
    }
}

fn fields<'de, A: MapAccess<'de>>(mut map: A) -> Result<Entry, A::Error> {
    let mut entry = Entry::default();
    let (mut name, mut image_id, mut captions) = (Best::default(), Best::default(), Best::default());
    let mut folder = None;
    // Of the keys that are read, which were there: twice the same is an error, as it hides one of them.
    let mut seen: u64 = 0;
    let mut first = |bit: usize, key: &str| {
        let again = seen & (1 << bit) != 0;
        seen |= 1 << bit;
        if again { Err(de::Error::custom(format!("the key {key:?} twice"))) } else { Ok(()) }
    };
    while let Some(key) = map.next_key::<std::borrow::Cow<str>>()? {
        let key = key.as_ref();
        if let Some(rank) = rank(&NAMES, key) {
            first(rank, key)?;
            match map.next_value()? {
                Loose::Text(text) if key == "filepath" => {
                    folder = Some(text.clone());
                    name.put(rank, text);
                }
                Loose::Text(text) => name.put(rank, text),
                Loose::Other => {}
            }
        } else if let Some(rank) = rank(&CAPTIONS, key) {
            first(NAMES.len() + rank, key)?;
            captions.put(rank, map.next_value::<Captions>()?);
        } else if let Some(rank) = rank(&IDS, key) {
            first(NAMES.len() + CAPTIONS.len() + rank, key)?;
            if let Some(id) = map.next_value::<Option<Id>>()? {
                image_id.put(rank, id);
            }
        } else if key == "id" {
            first(60, key)?;
            entry.id = map.next_value()?;
        } else if key == "split" {
            first(61, key)?;
            entry.split = match map.next_value()? {
                Loose::Text(text) => Some(text),
                Loose::Other => None,
            };
        } else {
            map.next_value::<IgnoredAny>()?;
        }
    }
    // Karpathy has the folder under `filepath` where others have the whole path.
    let whole = rank(&NAMES, "filepath");
    entry.name = match (name.0, folder) {
        (Some((rank, name)), Some(folder)) if Some(rank) != whole && NAMES[rank] == "filename" => {
            Some(format!("{folder}/{name}"))
        }
        (name, _) => name.map(|(_, name)| name),
    };
    entry.image_id = image_id.value();
    entry.captions = captions.value();
    Ok(entry)
}
