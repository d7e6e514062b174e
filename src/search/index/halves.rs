//! The features of a part once more, in 16 bits: what a search goes through. Half the bytes, mapped into memory, so that an index need
//! not fit into it; the features in 32 bits beside it decide the order of the best.
//!
//! `half-N.f16` is a line of JSON, [`Head`], and behind its line feed [R,Q,E] f16 (little-endian), each the nearest to that of part N.
//! It follows from the part: where it is missing the part itself is searched.

use crate::files::{self, Disk};
use crate::{Error, Kind, Result};
use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Bytes of the longest head.
const MOST_HEAD: u64 = 4096;
/// Numbers read at a time while they are checked.
const PIECE: usize = 1 << 19;

#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    shape: Vec<usize>,
    /// The key of the part.
    part: String,
    /// blake3 of the numbers here.
    key: String,
}

/// The numbers of a part in 16 bits.
pub struct Halves {
    map: files::Map,
    /// Where they begin, in bytes.
    at: usize,
    /// Numbers of a row.
    size: usize,
    /// Rows of all pictures.
    pub rows: usize,
    /// The largest L2 norm of a query's features `[E]`, in 16 bits.
    pub norm: f64,
}

impl Halves {
    /// An error if the file was cut short since it was opened.
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        self.map.check().map_err(|e| Error::io("read index", path, &e))
    }

    /// The numbers `[n,Q,E]` of some rows, little-endian; those of rows that there are not are missing.
    pub fn of(&self, rows: Range<usize>) -> &[[u8; 2]] {
        let [from, to] = [rows.start, rows.end.min(self.rows)].map(|row| self.at + 2 * row * self.size);
        self.map.bytes().get(from..to).unwrap_or_default().as_chunks().0
    }
}

pub(super) fn path_of(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("half-{number:06}.f16"))
}

/// The number in the name of such a file.
pub(super) fn number_of(name: &str) -> Option<u32> {
    name.strip_prefix("half-")?.strip_suffix(".f16")?.parse().ok()
}

/// Writes the features of the part of this key in 16 bits.
pub(super) fn write(
    disk: &dyn Disk,
    path: &Path,
    shape: &[usize],
    features: &[f32],
    key: &str,
) -> Result<()> {
    let mut halves = vec![f16::ZERO; features.len()];
    halves.convert_from_f32_slice(features);
    let bytes: Vec<u8> = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
    let own = blake3::hash(&bytes).to_hex().to_string();
    let head = Head { shape: shape.to_vec(), part: key.to_owned(), key: own };
    let failed = |e: serde_json::Error| Error::new(Kind::Write, "write index").got(e);
    let mut text = serde_json::to_vec(&head).map_err(failed)?;
    text.push(b'\n');
    files::write_atomic(disk, path, (text.len() + bytes.len()) as u64, |to| {
        to.write_all(&text)?;
        to.write_all(&bytes)
    })
}

/// Opens and checks them: of this shape, of the part of this key, and as they were written. `None` if there are none.
pub(super) fn open(path: &Path, shape: &[usize], part: &str) -> Result<Option<Halves>> {
    let failed = |e| Error::io("read index", path, &e);
    let wrong = |got: String| {
        Error::file("read index", path, format!("features {shape:?} in f16"), got)
            .fix("the file was damaged or changed: remove it, and the index is searched without it")
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut line = Vec::new();
    BufReader::new((&file).take(MOST_HEAD)).read_until(b'\n', &mut line).map_err(failed)?;
    let head: Head = serde_json::from_slice(&line).map_err(|e| wrong(e.to_string()))?;
    if head.shape != shape || head.part != part {
        return Err(wrong(format!("{:?}, or those of another part", head.shape)));
    }
    let (at, count) = (line.len(), shape.iter().product::<usize>());
    let length = file.metadata().map_err(failed)?.len();
    if length != (at + 2 * count) as u64 {
        return Err(wrong(format!("{length} bytes")));
    }
    let width = shape.last().copied().unwrap_or(1).max(1);
    let rows = shape.first().copied().unwrap_or(0);
    let map = files::Map::open(file, at + 2 * count).map_err(failed)?;
    let mut halves = Halves { map, at, size: count / rows.max(1), rows, norm: 0.0 };
    let mut hash = blake3::Hasher::new();
    let mut largest: f64 = 0.0;
    // Piece by piece: the numbers are still in the cache when their norms are taken.
    for some in halves.of(0..rows).chunks((PIECE / width).max(1) * width) {
        hash.update(some.as_flattened());
        let square =
            |row: &[[u8; 2]]| row.iter().map(|x| f16::from_le_bytes(*x).to_f64().powi(2)).sum::<f64>();
        largest = some.chunks(width).map(square).fold(largest, |a, b| if b <= a { a } else { b });
    }
    if hash.finalize().to_hex().as_str() != head.key {
        return Err(wrong("other numbers than were written".into()));
    }
    if !largest.is_finite() {
        return Err(wrong("a number that is not finite".into()));
    }
    halves.norm = largest.sqrt();
    Ok(Some(halves))
}
