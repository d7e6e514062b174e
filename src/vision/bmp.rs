//! BMP, as Pillow 11 reads it: 1, 4 and 8 bits with a palette, 16, 24 and 32 bits, masks of the usual layouts, runs.
//!
//! Runs (RLE4, RLE8) are read the way Pillow reads them, where it is lenient and where it errs: what a run leaves out is
//! index 0, a delta takes the two bytes *behind* its own, absolute runs of RLE4 count whole bytes. The pixels it makes of
//! such files are the ones that LAVIS sees.

use super::decode::{Facts as Kind, Header, Rows};
use super::exif::Orientation;
use super::source::Source;
use crate::Result;

/// How the samples of a pixel lie.
#[derive(Clone, Copy)]
enum Layout {
    /// Indices of so many bits.
    Palette(usize),
    /// Indices in runs; whether of 4 bits.
    Runs(bool),
    /// 16 bits with so many of green.
    Words(u32),
    /// So many bytes a pixel, and which of them are red, green and blue.
    Bytes(usize, [usize; 3]),
}

pub struct Facts {
    width: usize,
    height: usize,
    top_down: bool,
    layout: Layout,
    palette: Vec<[u8; 3]>,
    /// Where the pixels start.
    start: usize,
}

pub fn look(source: &Source) -> Result<Header> {
    let b = source.bytes;
    let cut = || source.refuse("a whole BMP file", "a file that ends in its header");
    let number = |at: usize, count: usize| le(b, at, count).ok_or_else(cut);
    let (offset, header) = (number(10, 4)?, number(14, 4)?);
    let old = header == 12;
    if !old && ![40, 52, 56, 64, 108, 124].contains(&header) {
        return Err(source.refuse("a BMP of a known kind", format!("a header of {header} bytes")));
    }
    let (width, stored, bits) = match old {
        true => (number(18, 2)?, number(20, 2)?, number(24, 2)?),
        false => (number(18, 4)?, number(22, 4)?, number(28, 2)?),
    };
    let top_down = !old && stored >> 24 == 0xFF;
    let height = if top_down { (1 << 32) - stored } else { stored };
    let packing = if old { 0 } else { number(30, 4)? };
    source.check_size(width, height, 0.0)?;
    let layout = layout(source, header, bits, packing)?;
    // Masks of the shortest header stand behind it.
    let mut palette_at = 14 + header + if header == 40 && packing == 3 { 12 } else { 0 };
    let listed = if old { 0 } else { number(46, 4)? };
    let colours = if listed == 0 { 1 << bits.min(16) } else { listed };
    let mut palette = Vec::new();
    let mut start = if offset == 14 + header && bits <= 8 { offset + 4 * colours } else { offset };
    if bits <= 8 {
        if colours > 65_536 {
            return Err(source.refuse("a palette of at most 65536 colours", colours));
        }
        let step = if old { 3 } else { 4 };
        palette = vec![[0; 3]; 256];
        for (i, colour) in palette.iter_mut().enumerate().take(colours) {
            let at = palette_at + i * step;
            let stored = b.get(at..at + 3).ok_or_else(cut)?;
            *colour = [stored[2], stored[1], stored[0]];
        }
        palette_at += step * colours;
    }
    if offset == 0 {
        start = palette_at;
    }
    let kept = if matches!(layout, Layout::Runs(_)) { 1.0 } else { 0.0 };
    let facts = Facts { width, height, top_down, layout, palette, start };
    Ok(Header { facts: Kind::Bmp(facts), width, height, orientation: Orientation::UPRIGHT, kept })
}

fn layout(source: &Source, header: usize, bits: usize, packing: usize) -> Result<Layout> {
    let other = |what: String| source.refuse("a BMP of a known kind", what);
    Ok(match (packing, bits) {
        (0, 1 | 4 | 8) => Layout::Palette(bits),
        (1 | 2, 8 | 4) => Layout::Runs(packing == 2),
        (0, 16) => Layout::Words(5),
        (0, 24) => Layout::Bytes(3, [2, 1, 0]),
        (0, 32) => Layout::Bytes(4, [2, 1, 0]),
        (3, 16 | 24 | 32) => {
            let mask = |i: usize| le(source.bytes, 54 + 4 * i, 4).unwrap_or(0);
            let alpha = if header >= 56 { mask(3) } else { 0 };
            match (bits, [mask(0), mask(1), mask(2)], alpha) {
                (16, [0xF800, 0x7E0, 0x1F], _) => Layout::Words(6),
                (16, [0x7C00, 0x3E0, 0x1F], _) => Layout::Words(5),
                (24, [0xFF_0000, 0xFF00, 0xFF], _) => Layout::Bytes(3, [2, 1, 0]),
                (32, [0xFF_0000, 0xFF00, 0xFF], 0 | 0xFF00_0000) | (32, [0, 0, 0], 0) => {
                    Layout::Bytes(4, [2, 1, 0])
                }
                (32, [0xFF00_0000, 0xFF_0000, 0xFF00], 0 | 0xFF) => Layout::Bytes(4, [3, 2, 1]),
                (32, [0xFF00_0000, 0xFF00, 0xFF], 0 | 0xFF_0000) => Layout::Bytes(4, [3, 1, 0]),
                (32, [0xFF, 0xFF00, 0xFF_0000], 0xFF00_0000) => Layout::Bytes(4, [0, 1, 2]),
                (_, masks, alpha) => return Err(other(format!("masks {masks:X?} and {alpha:X}"))),
            }
        }
        _ => return Err(other(format!("{bits} bits a pixel, compression {packing}"))),
    })
}

pub struct BmpRows<'a> {
    source: &'a Source<'a>,
    facts: &'a Facts,
    /// Of runs.
    indices: Vec<u8>,
    y: usize,
}

pub fn rows<'a>(source: &'a Source, facts: &'a Facts) -> Result<BmpRows<'a>> {
    let indices = match facts.layout {
        Layout::Runs(four) => runs(source, facts, four)?,
        _ => Vec::new(),
    };
    Ok(BmpRows { source, facts, indices, y: 0 })
}

impl Rows for BmpRows<'_> {
    fn next(&mut self, row: &mut [u8]) -> Result<()> {
        let facts = self.facts;
        let y = if facts.top_down { self.y } else { facts.height - 1 - self.y };
        self.y += 1;
        let pixels = row.as_chunks_mut::<3>().0;
        let bits = match facts.layout {
            Layout::Palette(bits) => bits,
            Layout::Runs(_) => {
                let line = &self.indices[y * facts.width..][..facts.width];
                pixels.iter_mut().zip(line).for_each(|(p, i)| *p = facts.palette[usize::from(*i)]);
                return Ok(());
            }
            Layout::Words(_) => 16,
            Layout::Bytes(bytes, _) => bytes * 8,
        };
        let stride = (facts.width * bits).div_ceil(32) * 4;
        let start = facts.start + y * stride;
        let line = self.source.bytes.get(start..start + (facts.width * bits).div_ceil(8));
        let Some(line) = line else {
            let got = format!("one cut off after {} bytes", self.source.bytes.len());
            return Err(self.source.refuse("a whole BMP file", got));
        };
        match facts.layout {
            Layout::Words(green) => {
                for (out, [low, high]) in pixels.iter_mut().zip(line.as_chunks::<2>().0) {
                    *out = widened(u16::from_le_bytes([*low, *high]), green);
                }
            }
            Layout::Bytes(bytes, [r, g, b]) => {
                for (out, p) in pixels.iter_mut().zip(line.chunks_exact(bytes)) {
                    *out = [p[r], p[g], p[b]];
                }
            }
            _ => {
                for (x, out) in pixels.iter_mut().enumerate() {
                    let shift = 8 - bits - x * bits % 8;
                    let index = line[x * bits / 8] >> shift & ((1u16 << bits) - 1) as u8;
                    *out = facts.palette[usize::from(index)];
                }
            }
        }
        Ok(())
    }
}

/// 5, 5 or 6, and 5 bits: Pillow widens n bits by v * 255 / (2^n - 1), rounded down.
fn widened(word: u16, green: u32) -> [u8; 3] {
    let wide = |v: u16, bits: u32| {
        let most = (1u32 << bits) - 1;
        ((u32::from(v) & most) * 255 / most) as u8
    };
    [wide(word >> (5 + green), 5), wide(word >> 5, green), wide(word, 5)]
}

/// The indices of a picture in runs, in the order of the file, filled up and cut as Pillow does it.
fn runs(source: &Source, facts: &Facts, four: bool) -> Result<Vec<u8>> {
    let (width, total) = (facts.width, facts.width * facts.height);
    let mut file = Bytes { bytes: source.bytes, at: facts.start };
    let mut out: Vec<u8> = Vec::with_capacity(total);
    let mut x = 0;
    while out.len() < total {
        let Some(&[count, value]) = file.take(2) else { break };
        let pair = |out: &mut Vec<u8>, n: usize| {
            let both = if four { [value >> 4, value & 15] } else { [value; 2] };
            out.extend(both.into_iter().cycle().take(n));
        };
        match (count, value) {
            (1.., _) => {
                let n = usize::from(count).min(width.saturating_sub(x));
                pair(&mut out, n);
                x += n;
            }
            (0, 0) => {
                out.resize(out.len().next_multiple_of(width), 0);
                x = 0;
            }
            (0, 1) => break,
            (0, 2) => {
                let (Some(_), Some(&[right, up])) = (file.take(2), file.take(2)) else { break };
                let skipped = usize::from(right) + usize::from(up) * width;
                out.resize((out.len() + skipped).min(total), 0);
                x = out.len() % width;
            }
            (0, n) => {
                let bytes = usize::from(if four { n / 2 } else { n });
                let Some(data) = file.take(bytes) else { break };
                match four {
                    true => out.extend(data.iter().flat_map(|b| [b >> 4, b & 15])),
                    false => out.extend(data),
                }
                x += usize::from(n);
                file.at += file.at % 2;
            }
        }
    }
    if out.len() < total {
        let got = format!("one whose runs end after {} of {total} pixels", out.len());
        return Err(source.refuse("a whole BMP file", got));
    }
    out.truncate(total);
    Ok(out)
}

struct Bytes<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..)?.get(..count)?;
        self.at += count;
        Some(taken)
    }
}

fn le(bytes: &[u8], at: usize, count: usize) -> Option<usize> {
    let b = bytes.get(at..at + count)?;
    Some(b.iter().rev().fold(0, |n, &b| n << 8 | usize::from(b)))
}
