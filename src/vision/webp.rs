//! WebP: libwebp decodes the first frame, as Pillow shows it: put on a canvas of zeros and not blended, alpha dropped.
//!
//! Contract: before libwebp allocates, the size that each part of the file claims for itself is checked, and the tables that
//! its lossless parts ask for.

use super::c::WebP;
use super::decode::{Facts as Kind, Header, Rows};
use super::exif::{self, Orientation};
use super::source::Source;
use super::vp8l;
use crate::Result;

pub struct Facts {
    width: usize,
    height: usize,
}

/// The most that libwebp keeps for a group of prefix codes: a table of 5,004 entries and an index to it.
const GROUP: usize = 4 * 5004 + 640;

/// What a file's chunks say.
#[derive(Default)]
struct Found {
    exif: Option<Orientation>,
    xmp: Option<Orientation>,
    /// The most bytes that a picture inside takes for each of its pixels.
    kept: f64,
    /// Bytes of tables, whatever the size.
    tables: usize,
}

pub fn look(source: &Source) -> Result<Header> {
    let whole = le(source.bytes, 4, 4).and_then(|size| source.bytes.get(12..size.checked_add(8)?));
    let Some(chunks) = whole else {
        let got = format!("one cut off after {} bytes", source.bytes.len());
        return Err(source.refuse("a whole WebP file", got));
    };
    let mut found = Found::default();
    walk(source, chunks, None, &mut found)?;
    let Some(first) = WebP::first(source.bytes) else {
        return Err(source.broken("WebP", "no picture in it"));
    };
    let (width, height) = first.canvas;
    // Beside what libwebp takes, the canvas.
    Ok(Header {
        facts: Kind::WebP(Facts { width, height }),
        width,
        height,
        orientation: found.exif.or(found.xmp).unwrap_or(Orientation::UPRIGHT),
        kept: found.kept + 3.0 + found.tables as f64 / (width * height).max(1) as f64,
    })
}

/// Sizes and notes of the chunks, and of the `frame` of this size that they belong to, if it is one of an animation.
fn walk(source: &Source, mut chunks: &[u8], frame: Option<(usize, usize)>, found: &mut Found) -> Result<()> {
    // Of what a chunk of alpha belongs to.
    let mut whole = frame;
    while let (Some(name), Some(length)) = (chunks.get(..4), le(chunks, 4, 4)) {
        let data = chunks.get(8..).unwrap_or_default();
        let data = &data[..length.min(data.len())];
        let bits = |n: usize| le(data, n, 4).unwrap_or(0);
        match name {
            // A few rows of luma and chroma.
            b"VP8 " if data.len() >= 10 => {
                found.note(source, (bits(6) & 0x3FFF, bits(6) >> 16 & 0x3FFF), 0.5, 0)?;
            }
            // All pixels as 32 bits, and what a transform keeps.
            b"VP8L" if data.len() >= 5 => {
                let size = ((bits(1) & 0x3FFF) + 1, (bits(1) >> 14 & 0x3FFF) + 1);
                found.note(source, size, 4.5, 0)?;
                found.note(source, size, 4.5, groups(source, &data[5..], size)?)?;
            }
            b"VP8X" | b"ANMF" if data.len() >= 10 => {
                let at = if name == b"VP8X" { 4 } else { 6 };
                let size = ((bits(at) & 0xFF_FFFF) + 1, (bits(at + 3) & 0xFF_FFFF) + 1);
                found.note(source, size, 0.0, 0)?;
                match name == b"VP8X" {
                    true => whole = whole.or(Some(size)),
                    false if frame.is_none() => {
                        walk(source, data.get(16..).unwrap_or_default(), Some(size), found)?;
                    }
                    false => {}
                }
            }
            b"ALPH" => {
                let size = whole.unwrap_or((1, 1));
                found.note(source, size, 5.5, 0)?;
                if data.first().is_some_and(|kind| kind & 3 == 1) {
                    found.note(source, size, 5.5, groups(source, &data[1..], size)?)?;
                }
            }
            b"EXIF" => found.exif = found.exif.or(exif::of_exif(data)),
            b"XMP " => found.xmp = found.xmp.or(exif::of_xmp(data)),
            _ => {}
        }
        chunks = chunks.get(8 + length + length % 2..).unwrap_or_default();
    }
    Ok(())
}

fn groups(source: &Source, stream: &[u8], (width, height): (usize, usize)) -> Result<usize> {
    vp8l::groups(stream, width, height)
        .ok_or_else(|| source.broken("WebP", "its prefix codes cannot be read"))
}

impl Found {
    /// A part of this size, of which libwebp keeps `kept` bytes a pixel and so many groups of codes.
    fn note(
        &mut self,
        source: &Source,
        (width, height): (usize, usize),
        kept: f64,
        groups: usize,
    ) -> Result<()> {
        let pixels = (width * height).max(1) as f64;
        source.check_size(width, height, kept + 3.0 + (groups * GROUP) as f64 / pixels)?;
        self.kept = self.kept.max(kept);
        self.tables = self.tables.max(groups * GROUP);
        Ok(())
    }
}

pub struct WebPRows {
    rgb: Vec<u8>,
    at: usize,
}

pub fn rows(source: &Source, facts: &Facts) -> Result<WebPRows> {
    let mut rgb = vec![0; facts.width * facts.height * 3];
    match WebP::first(source.bytes) {
        Some(first) if first.paint(&mut rgb) => Ok(WebPRows { rgb, at: 0 }),
        _ => Err(source.broken("WebP", "its pixels cannot be decoded")),
    }
}

impl Rows for WebPRows {
    fn next(&mut self, row: &mut [u8]) -> Result<()> {
        row.copy_from_slice(&self.rgb[self.at..self.at + row.len()]);
        self.at += row.len();
        Ok(())
    }
}

/// Up to `count` bytes, the lowest first; those past the end count as 0, but one must be there.
fn le(bytes: &[u8], at: usize, count: usize) -> Option<usize> {
    let b = bytes.get(at..)?;
    (!b.is_empty()).then(|| b.iter().take(count).rev().fold(0, |n, &b| n << 8 | usize::from(b)))
}
