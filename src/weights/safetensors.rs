//! The guard before safetensors files: 8 bytes of header length, a JSON header, the tensors' bytes.
//!
//! The format allows more than any honest file needs; here a header of at most 16 MiB holds at most 65,536 tensors of at
//! most 8 axes and names of at most 512 bytes, no key twice, and the tensors tile the data from its first byte to the end
//! of the file: no hole, no overlap, nothing behind. All of it is checked while the header is parsed, before a byte of a
//! tensor is read.

use super::source::Source;
use super::{Dtype, Info, Refusal};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use std::collections::{BTreeMap, HashSet};
use std::fmt;

pub(super) const MOST_HEADER: u64 = 16 << 20;
pub(super) const MOST_TENSORS: usize = 65_536;
pub(super) const MOST_NAME: usize = 512;
const MOST_AXES: usize = 8;
const MOST_METADATA: usize = 1024;
/// Numbers of the format that are not read here, and their bits.
const OTHERS: [(&str, u64); 12] = [
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("F8_E5M2", 8),
    ("F8_E4M3", 8),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
    ("U16", 16),
    ("U32", 32),
    ("U64", 64),
    ("C64", 64),
];
const DAMAGED: &str = "the file is damaged or built to deceive";

pub(super) struct Header {
    pub metadata: BTreeMap<String, String>,
    /// Tensors of numbers that are not read here.
    pub others: Vec<String>,
    /// Where each tensor's bytes begin in the file, in the order of the infos.
    starts: Vec<u64>,
}

/// The tensors in the order of their bytes, and where they lie.
pub(super) fn read_header(source: &Source) -> Result<(Vec<Info>, Header), Refusal> {
    let mut eight = [0; 8];
    source.read_at(0, &mut eight)?;
    let n = u64::from_le_bytes(eight);
    if n > MOST_HEADER {
        let got = format!("a header of {n} bytes (at most {MOST_HEADER})");
        return Err(Refusal::at(0, "the file", got).fix(DAMAGED));
    }
    let json = source.read(8, n)?;
    let parsed: Parsed = serde_json::from_slice(&json).map_err(|e| {
        let message = e.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        Refusal::at(8 + offset_of(&json, &e), "the file", format!("a header with {message}")).fix(DAMAGED)
    })?;
    let Parsed { metadata, mut tensors } = parsed;
    tensors.sort_by_key(|t| (t.begin, t.end));
    let data = 8 + n;
    let held = source.length() - data;
    let mut at = 0;
    for t in &tensors {
        if t.begin != at {
            let what = if t.begin < at { "overlaps the one before it" } else { "leaves a hole before it" };
            let got = format!("tensor {:?} {what}: it begins at {} instead of {at}", t.name, t.begin);
            return Err(Refusal::at(data + t.begin, "the file", got).fix(DAMAGED));
        }
        if t.end > held {
            let got = format!("tensor {:?} ends at {} of {held} bytes of data", t.name, t.end);
            return Err(Refusal::at(source.length(), "the file", got).fix(Refusal::FETCH_AGAIN));
        }
        at = t.end;
    }
    if at != held {
        let got = format!("{} bytes behind the last tensor", held - at);
        return Err(Refusal::at(data + at, "the file", got).fix(DAMAGED));
    }
    let (mut infos, mut starts, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for Entry { name, kind, shape, begin, .. } in tensors {
        match kind {
            Ok(dtype) => {
                infos.push(Info { name, dtype, shape });
                starts.push(data + begin);
            }
            Err(kind) => others.push(format!("{name} (a tensor of {kind})")),
        }
    }
    Ok((infos, Header { metadata, others, starts }))
}

/// Where in the header serde_json stopped, from the line and column it gives.
fn offset_of(json: &[u8], e: &serde_json::Error) -> u64 {
    let lines = json.split_inclusive(|b| *b == b'\n').take(e.line().saturating_sub(1));
    (lines.map(<[u8]>::len).sum::<usize>() + e.column().saturating_sub(1)).min(json.len()) as u64
}

impl Header {
    fn start(&self, i: usize, info: &Info) -> Result<u64, Refusal> {
        let start = self.starts.get(i).copied();
        start.ok_or_else(|| Refusal::whole(format!("no place for tensor {:?}", info.name)))
    }

    pub fn read(&self, source: &Source, i: usize, info: &Info) -> Result<Vec<u8>, Refusal> {
        source.read(self.start(i, info)?, info.bytes() as u64)
    }

    /// Fills `to` with the tensor's bytes from `at` on.
    pub fn read_into(
        &self,
        source: &Source,
        (i, info): (usize, &Info),
        at: usize,
        to: &mut [u8],
    ) -> Result<(), Refusal> {
        source.read_at(self.start(i, info)? + at as u64, to)
    }

    /// Hands the tensor's bytes to `take`, piece by piece.
    pub fn each_piece(
        &self,
        source: &Source,
        i: usize,
        info: &Info,
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), Refusal> {
        const PIECE: usize = 1 << 20;
        let (start, bytes) = (self.start(i, info)?, info.bytes());
        let mut piece = vec![0; PIECE.min(bytes)];
        for at in (0..bytes).step_by(PIECE) {
            let part = piece.get_mut(..PIECE.min(bytes - at)).unwrap_or_default();
            source.read_at(start + at as u64, part)?;
            take(part);
        }
        Ok(())
    }
}

struct Entry {
    name: String,
    /// A dtype, or the name of one that is not read here.
    kind: Result<Dtype, &'static str>,
    shape: Vec<usize>,
    begin: u64,
    end: u64,
}

struct Parsed {
    metadata: BTreeMap<String, String>,
    tensors: Vec<Entry>,
}

impl<'de> Deserialize<'de> for Parsed {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Parsed, D::Error> {
        d.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Parsed;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parsed, A::Error> {
        let mut parsed = Parsed { metadata: BTreeMap::new(), tensors: Vec::new() };
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if name.len() > MOST_NAME {
                return Err(A::Error::custom(format!(
                    "a name of {} bytes (at most {MOST_NAME})",
                    name.len()
                )));
            }
            if name.is_empty() || name.chars().any(char::is_control) {
                return Err(A::Error::custom(format!("the name {name:?}, empty or with control characters")));
            }
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("the key {name:?} twice")));
            }
            if name == "__metadata__" {
                parsed.metadata = map.next_value_seed(MetadataSeed)?;
                continue;
            }
            if parsed.tensors.len() >= MOST_TENSORS {
                return Err(A::Error::custom(format!("more than {MOST_TENSORS} tensors")));
            }
            let raw: Raw = map.next_value()?;
            let entry =
                raw.checked(&name).map_err(|got| A::Error::custom(format!("tensor {name:?} {got}")))?;
            parsed.tensors.push(entry);
        }
        Ok(parsed)
    }
}

/// Texts by texts, no key twice.
struct MetadataSeed;

impl<'de> DeserializeSeed<'de> for MetadataSeed {
    type Value = BTreeMap<String, String>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MetadataSeed {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("__metadata__ of texts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut out = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            if out.len() >= MOST_METADATA {
                return Err(A::Error::custom(format!("more than {MOST_METADATA} entries of metadata")));
            }
            if out.contains_key(&key) {
                let shown: String = key.chars().take(80).collect();
                return Err(A::Error::custom(format!("the metadata {shown:?} twice")));
            }
            out.insert(key, map.next_value()?);
        }
        Ok(out)
    }
}

/// A tensor as the header describes it.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    dtype: Short,
    shape: Few<MOST_AXES>,
    data_offsets: Few<2>,
}

impl Raw {
    fn checked(self, name: &str) -> Result<Entry, String> {
        let name = name.to_string();
        let other = || OTHERS.into_iter().find(|(other, _)| *other == self.dtype.0);
        let (kind, bits) = match (Dtype::named(&self.dtype.0), other()) {
            (Some(dtype), _) => (Ok(dtype), 8 * dtype.size() as u64),
            (None, Some((other, bits))) => (Err(other), bits),
            (None, None) => return Err(format!("of dtype {:?}", self.dtype.0)),
        };
        let shape: Vec<usize> = self.shape.0.iter().map(|n| *n as usize).collect();
        let bits = self.shape.0.iter().try_fold(bits, |n, s| n.checked_mul(*s));
        let bytes = bits.map(|n| n.div_ceil(8));
        let bytes = bytes.ok_or_else(|| format!("of shape {shape:?}, which no memory holds"))?;
        let &[begin, end] = &self.data_offsets.0[..] else {
            return Err("without a begin and an end".into());
        };
        if begin.checked_add(bytes) != Some(end) {
            let dtype = &self.dtype.0;
            return Err(format!("of {bytes} bytes ({dtype} {shape:?}) at {begin} to {end}"));
        }
        Ok(Entry { name, kind, shape, begin, end })
    }
}

/// A text of a few bytes.
struct Short(String);

impl<'de> Deserialize<'de> for Short {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Short, D::Error> {
        let text = String::deserialize(d)?;
        if text.len() > 16 { Err(D::Error::custom("a dtype of too many letters")) } else { Ok(Short(text)) }
    }
}

/// At most N numbers.
struct Few<const N: usize>(Vec<u64>);

impl<'de, const N: usize> Deserialize<'de> for Few<N> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Few<N>, D::Error> {
        d.deserialize_seq(FewVisitor::<N>)
    }
}

struct FewVisitor<const N: usize>;

impl<'de, const N: usize> Visitor<'de> for FewVisitor<N> {
    type Value = Few<N>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "at most {N} numbers of 0 or more")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Few<N>, A::Error> {
        let mut out = Vec::new();
        while let Some(n) = seq.next_element()? {
            if out.len() >= N {
                return Err(A::Error::custom(format!("more than {N} numbers where at most {N} may be")));
            }
            out.push(n);
        }
        Ok(Few(out))
    }
}
