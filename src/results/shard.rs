//! One machine's share of a set of pictures, and the record of it that merging the shares needs.
//!
//! Of n shards, counted from 1, a picture belongs to number 1 + floor(x n / 2^64): x is the first 8 bytes (little-endian) of the
//! blake3 of its name in Unicode's composed form. Which one that is depends on no other picture: pictures that are added go to
//! their shards, and none moves.
//!
//! The record says what all shards must have in common (the set of pictures, the model, its options), and which pictures are this
//! one's. It lies beside a file of captions (`FILE.shard`) or in the folder of an index (`shard.json`).

use crate::files::{self, Disk, composed};
use crate::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

const OPERATION: &str = "merge";
/// Bounds of a record's file, and of the number of shards.
const MAX_RECORD: u64 = 4 << 30;
const MAX_SHARDS: u32 = 1_000_000;

/// A share of the pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// From 1.
    pub number: u32,
    /// How many there are.
    pub of: u32,
}

impl Shard {
    /// An error unless 1 <= number <= of.
    pub fn new(number: u32, of: u32) -> Result<Shard, String> {
        if (1..=of).contains(&number) && of <= MAX_SHARDS {
            return Ok(Shard { number, of });
        }
        Err(format!("expected i/n, i from 1 to n, got {number}/{of}"))
    }

    /// Whether a picture of this name is one of this share's.
    pub fn has(self, name: &str) -> bool {
        let hash = blake3::hash(composed(name).as_bytes());
        let x = hash.as_bytes().iter().take(8).rev().fold(0u128, |x, b| x << 8 | u128::from(*b));
        (x * u128::from(self.of)) >> 64 == u128::from(self.number - 1)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Shard, String> {
        let wrong = || format!("expected i/n, as 3/16, got {text:?}");
        let (number, of) = text.split_once('/').ok_or_else(wrong)?;
        let read = |s: &str| s.trim().parse::<u32>().map_err(|_| wrong());
        Shard::new(read(number)?, read(of)?)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

/// What made the results of a share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Maker {
    /// blake3 of the model.
    pub model: String,
    /// How it was asked.
    pub options: String,
}

/// See the file's header.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    shard: Shard,
    /// Of all shards together: how many pictures, and a hash of their names in turn.
    pictures: usize,
    names: String,
    /// None where nothing was made yet.
    maker: Option<Maker>,
    /// Each picture of this share by its place among all pictures, and its name, composed.
    own: Vec<(usize, String)>,
}

impl Record {
    /// The record of a share of these pictures, named in the order of the results.
    pub fn of<'a>(shard: Shard, names: impl Iterator<Item = &'a str>) -> Record {
        let (mut all, mut own, mut pictures) = (blake3::Hasher::new(), Vec::new(), 0);
        for (place, name) in names.enumerate() {
            let name = composed(name);
            all.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
            if shard.has(&name) {
                own.push((place, name.into_owned()));
            }
            pictures += 1;
        }
        Record { shard, pictures, names: all.finalize().to_hex().to_string(), maker: None, own }
    }

    /// Which share it is of.
    pub fn shard(&self) -> Shard {
        self.shard
    }

    /// Where the record of a file of captions, or of the folder of an index, lies.
    pub fn path(of: &Path) -> PathBuf {
        if of.is_dir() {
            return of.join("shard.json");
        }
        let mut path = of.as_os_str().to_owned();
        path.push(".shard");
        PathBuf::from(path)
    }

    /// The record of what lies at a path; `None` if there is none.
    pub fn read(of: &Path) -> Result<Option<Record>> {
        let path = Record::path(of);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = files::read_regular(&path, MAX_RECORD, "read a shard's record")?;
        let record: Record = serde_json::from_slice(&bytes).map_err(|e| {
            Error::file("read a shard's record", &path, "what --shard writes", e)
                .fix("remove it and run the shard again with --overwrite or --rebuild")
        })?;
        Shard::new(record.shard.number, record.shard.of)
            .map_err(|e| Error::file("read a shard's record", &path, "a shard", e))?;
        Ok(Some(record))
    }

    /// Removes the record of what is begun anew as no share.
    pub fn forget(of: &Path) -> Result<()> {
        let path = Record::path(of);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove a shard's record", path, &e))
            }
            _ => Ok(()),
        }
    }

    /// Refuses to add a share (or, where there is none, all pictures) to what lies at a path and is another's. `filled`: something
    /// does lie there.
    pub fn check(of: &Path, shard: Option<Shard>, filled: bool, again: &str) -> Result<()> {
        let there = Record::read(of)?.map(|r| r.shard);
        let got = match (there, shard) {
            (Some(there), Some(shard)) if there == shard => return Ok(()),
            (Some(there), _) => format!("shard {there}"),
            (None, Some(_)) if filled => "what was made without --shard".into(),
            (None, _) => return Ok(()),
        };
        let want = shard.map_or("results of no shard".into(), |s| format!("shard {s}"));
        let fix = there.map_or(String::new(), |there| format!("give --shard {there}, or "));
        Err(Error::new(Kind::Argument, "--shard")
            .about(of.display().to_string())
            .expected(want)
            .got(got)
            .fix(format!("{fix}choose another --out for each shard, or begin it anew with {again}")))
    }

    /// Writes the record beside what lies at a path. What another model or other options made there is refused, unless it is begun anew.
    pub fn write(
        mut self,
        disk: &dyn Disk,
        of: &Path,
        maker: Option<Maker>,
        (anew, again): (bool, &str),
    ) -> Result<()> {
        let before = Record::read(of)?.and_then(|r| r.maker).filter(|_| !anew);
        if let (Some(before), Some(now)) = (&before, &maker) {
            before
                .check(now, of)
                .map_err(|e| e.fix(format!("choose another --out, or begin it anew with {again}")))?;
        }
        self.maker = maker.or(before);
        let text = serde_json::to_vec(&self)
            .map_err(|e| Error::new(Kind::Write, "write a shard's record").got(e))?;
        files::write_atomic(disk, &Record::path(of), text.len() as u64, |to| to.write_all(&text))
    }
}

impl Maker {
    fn check(&self, other: &Maker, at: &Path) -> Result<()> {
        let short = |m: &Maker| m.model.get(..12).unwrap_or(&m.model).to_owned();
        let [want, got] = if self.model == other.model {
            [self.options.clone(), other.options.clone()]
        } else {
            [self, other].map(|m| format!("results of model {}", short(m)))
        };
        if want == got && self == other {
            return Ok(());
        }
        Err(Error::new(Kind::Data, OPERATION).about(at.display().to_string()).expected(want).got(got))
    }
}

/// What every part to be merged must have: the records of all shards of one set, each once, in the order of the parts.
pub fn records(parts: &[PathBuf]) -> Result<Vec<Record>> {
    let fail = |at: &Path, want: String, got: String| {
        Error::new(Kind::Data, OPERATION).about(at.display().to_string()).expected(want).got(got)
    };
    let record = |part: &PathBuf| {
        if !part.exists() {
            return Err(Error::file(OPERATION, part, "the results of a shard", "nothing of this name")
                .fix("check the path, or run that shard"));
        }
        Record::read(part)?.ok_or_else(|| {
            fail(
                part,
                "results of caption or search index with --shard".into(),
                "no record of a shard".into(),
            )
            .fix("make it with --shard i/n; its record lies beside it")
        })
    };
    let records: Vec<Record> = parts.iter().map(record).collect::<Result<_>>()?;
    let Some(first) = records.first() else { return Ok(records) };
    let mut made: Option<&Maker> = None;
    let mut seen: Vec<Option<&Path>> = vec![None; first.shard.of as usize];
    for (part, r) in parts.iter().zip(&records) {
        if r.shard.of != first.shard.of {
            let want = format!("one of {} shards, as {}", first.shard.of, parts[0].display());
            return Err(
                fail(part, want, format!("one of {}", r.shard.of)).fix("merge shards of one division")
            );
        }
        if (r.pictures, &r.names) != (first.pictures, &first.names) {
            let want = format!("the {} pictures of {}", first.pictures, parts[0].display());
            let got = format!("{} pictures, or others", r.pictures);
            return Err(fail(part, want, got)
                .fix("pictures came or went in between: run the same commands again; what is done is kept"));
        }
        if let (Some(made), Some(own)) = (made, &r.maker) {
            made.check(own, part)
                .map_err(|e| e.fix("run that shard again with the model and options of the others"))?;
        }
        made = made.or(r.maker.as_ref());
        let place = &mut seen[r.shard.number as usize - 1];
        if let Some(other) = place {
            let got = format!("{} and {}", other.display(), part.display());
            return Err(fail(part, format!("shard {} once", r.shard), got).fix("leave one of them out"));
        }
        *place = Some(part);
    }
    let absent: Vec<String> =
        (1..).zip(&seen).filter(|(_, p)| p.is_none()).map(|(i, _)| i.to_string()).collect();
    if !absent.is_empty() {
        let want = format!("all {} shards", first.shard.of);
        return Err(Error::new(Kind::Data, OPERATION)
            .expected(want)
            .got(format!("none of number {}", absent.join(", ")))
            .fix("name their results, too"));
    }
    Ok(records)
}

/// The results of all shards, which come in any order.
pub struct Placed<'a, T> {
    /// By the places of their pictures.
    all: BTreeMap<usize, T>,
    /// Of what is no longer among the pictures, by name.
    gone: BTreeMap<String, T>,
    missing: Vec<(&'a Path, &'a str)>,
}

impl<T> Default for Placed<'_, T> {
    fn default() -> Self {
        Placed { all: BTreeMap::new(), gone: BTreeMap::new(), missing: Vec::new() }
    }
}

impl<'a, T> Placed<'a, T> {
    /// Takes the results of a part, by the composed names of their pictures.
    pub fn take(&mut self, part: &'a Path, record: &'a Record, mut own: BTreeMap<String, T>) {
        for (place, name) in &record.own {
            match own.remove(name) {
                Some(result) => drop(self.all.insert(*place, result)),
                None => self.missing.push((part, name)),
            }
        }
        self.gone.extend(own);
    }

    /// In the order of the pictures, what is gone from them last; and how many pictures no part has, an error unless `partial`.
    pub fn in_turn(self, partial: bool) -> Result<(Vec<T>, usize)> {
        let Placed { all, gone, missing } = self;
        match missing.first() {
            Some((part, name)) if !partial => Err(Error::new(Kind::Data, OPERATION)
                .about(part.display().to_string())
                .expected("every picture of its shard")
                .got(format!("{} missing, the first {name:?}", missing.len()))
                .fix("run that shard's command again to its end, or merge what there is with --partial")),
            _ => Ok((all.into_values().chain(gone.into_values()).collect(), missing.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(text: &str) -> Shard {
        text.parse().unwrap()
    }

    #[test]
    fn a_shard_is_a_number_of_a_number() {
        assert_eq!(shard("3/16"), Shard { number: 3, of: 16 });
        for wrong in ["0/4", "5/4", "1/0", "3", "a/4", "1/", "-1/4", "1/4/4", "1/2000000"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_picture_is_in_one_shard_and_stays_there() {
        let names: Vec<String> = (0..4000).map(|i| format!("folder {}/picture {i}.jpg", i % 7)).collect();
        for of in [1, 2, 3, 16] {
            let count = |number| names.iter().filter(|n| Shard { number, of }.has(n)).count();
            let counts: Vec<usize> = (1..=of).map(count).collect();
            assert_eq!(counts.iter().sum::<usize>(), names.len(), "{counts:?}");
            // Binomial: five standard deviations.
            let share = names.len() as f64 / f64::from(of);
            let far = 5.0 * (share * (1.0 - 1.0 / f64::from(of))).sqrt() + 1e-9;
            assert!(counts.iter().all(|c| (*c as f64 - share).abs() <= far), "{counts:?}");
        }
        // Composed and decomposed are one name.
        let both = |s: Shard| (s.has("が.png"), s.has("か\u{3099}.png"));
        assert!((1..=16).map(|number| both(Shard { number, of: 16 })).all(|(a, b)| a == b));
        let few = Record::of(shard("2/3"), names[..100].iter().map(String::as_str));
        let more = Record::of(shard("2/3"), names.iter().rev().map(String::as_str));
        let kept: Vec<&String> = few.own.iter().map(|(_, n)| n).collect();
        assert!(kept.iter().all(|n| more.own.iter().any(|(_, m)| m == *n)));
    }
}
