//! JPEG: the segments are walked here, libjpeg decodes row by row, and CMYK is converted as Pillow does it.
//!
//! The walk finds size, kind and orientation before anything is decoded, insists on the end marker (a file cut off anywhere
//! is an error, as in Pillow) and bounds the scans and the data of each picture. libjpeg gets the file up to that marker, so
//! nothing behind it (a second picture, a film) is looked at. Everything about the pixels is its own: colour spaces,
//! upsampling, the inverse transform.
//!
//! Pillow takes CMYK files as inverted, always:   rgb = k - round(k * (255 - c) / 255) for stored c, k.

use super::c::Jpeg;
use super::decode::{Facts as Kind, Header, MAX_MEMORY, Rows};
use super::exif::{self, Orientation};
use super::source::Source;
use crate::{Error, Result};

/// More scans than this only slow a decoder down; encoders write about ten.
const MOST_SCANS: usize = 100;

/// What the segments say.
#[derive(Default)]
pub struct Facts {
    width: usize,
    height: usize,
    /// Horizontal and vertical sampling of each component; empty before the frame header.
    components: Vec<(usize, usize)>,
    /// Their names, until a scan has data of them.
    missing: Vec<u8>,
    progressive: bool,
    /// Arithmetic coding may spend less than a bit on a block.
    arithmetic: bool,
    /// A scan without all components, so that coefficients must be kept.
    partial_scans: bool,
    scans: usize,
    /// Bytes of all scans' data.
    coded: usize,
    exif: Option<Orientation>,
    xmp: Option<Orientation>,
    /// Where the picture ends.
    end: usize,
}

pub fn look(source: &Source) -> Result<Header> {
    let facts = walk(source)?;
    Ok(Header {
        width: facts.width,
        height: facts.height,
        orientation: facts.exif.or(facts.xmp).unwrap_or(Orientation::UPRIGHT),
        kept: facts.kept_per_pixel(),
        facts: Kind::Jpeg(facts),
    })
}

pub struct JpegRows<'a> {
    source: &'a Source<'a>,
    reader: Jpeg<'a>,
    channels: usize,
    /// A row of one or four values a pixel.
    line: Vec<u8>,
}

pub fn rows<'a>(source: &'a Source, facts: &Facts) -> Result<JpegRows<'a>> {
    let channels = facts.components.len();
    let file = source.bytes.get(..facts.end).unwrap_or(source.bytes);
    let reader = Jpeg::open(file, (facts.width, facts.height), channels, MAX_MEMORY)
        .map_err(|why| source.broken("JPEG", why))?;
    let line = if channels == 3 { Vec::new() } else { vec![0; facts.width * channels] };
    Ok(JpegRows { source, reader, channels, line })
}

impl Rows for JpegRows<'_> {
    fn next(&mut self, row: &mut [u8]) -> Result<()> {
        let line = if self.channels == 3 { &mut *row } else { &mut self.line[..] };
        self.reader.row(line).map_err(|why| self.source.broken("JPEG", why))?;
        match self.channels {
            1 => row.as_chunks_mut::<3>().0.iter_mut().zip(&self.line).for_each(|(out, v)| *out = [*v; 3]),
            4 => {
                let stored = self.line.as_chunks::<4>().0;
                for (out, &[c, m, y, k]) in row.as_chunks_mut::<3>().0.iter_mut().zip(stored) {
                    *out = [c, m, y].map(|v| darken(255 - v, k));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// k - round(k * ink / 255), with Pillow's division by 255.
fn darken(ink: u8, k: u8) -> u8 {
    let product = u32::from(ink) * u32::from(k) + 128;
    k.saturating_sub((((product >> 8) + product) >> 8) as u8)
}

fn broken(source: &Source, why: impl std::fmt::Display) -> Error {
    source.broken("JPEG", why)
}

fn cut_off(source: &Source) -> Error {
    source.refuse("a whole JPEG file", format!("one cut off after {} bytes", source.bytes.len()))
}

/// From marker to marker, up to the end of the picture.
fn walk(source: &Source) -> Result<Facts> {
    let bytes = source.bytes;
    let mut facts = Facts::default();
    let mut at = 2;
    loop {
        let (marker, start) = next_marker(bytes, at).ok_or_else(|| cut_off(source))?;
        at = start;
        match marker {
            0xD9 if facts.scans == 0 => return Err(broken(source, "it ends before the picture starts")),
            0xD9 => break,
            0x01 | 0xD0..=0xD8 => continue, // markers without a body
            _ => {}
        }
        let length = be16(bytes, at).ok_or_else(|| cut_off(source))?;
        if length < 2 {
            return Err(broken(source, format!("a segment FF{marker:02X} of length {length}")));
        }
        let body = bytes.get(at + 2..at + length).ok_or_else(|| cut_off(source))?;
        at += length;
        facts.note(source, marker, body)?;
        if marker == 0xDA {
            let end = entropy_coded(bytes, at).ok_or_else(|| cut_off(source))?;
            facts.coded += end - at;
            at = end;
        }
    }
    facts.end = at;
    if !facts.missing.is_empty() {
        let got = format!("data of {} components is missing", facts.missing.len());
        return Err(broken(source, got));
    }
    if facts.coded < facts.least_coded() {
        return Err(broken(source, format!("no more than {} bytes of pixel data", facts.coded)));
    }
    Ok(facts)
}

/// The next marker at or after `at`, and where its body starts.
fn next_marker(bytes: &[u8], at: usize) -> Option<(u8, usize)> {
    let mut at = at + bytes.get(at..)?.iter().position(|&b| b == 0xFF)?;
    loop {
        match *bytes.get(at)? {
            0xFF => at += 1,
            0 => at += 1 + bytes.get(at..)?.iter().position(|&b| b == 0xFF)?,
            marker => return Some((marker, at + 1)),
        }
    }
}

/// Where a scan's data ends: at the first marker that is not a restart.
fn entropy_coded(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += bytes.get(at..)?.iter().position(|&b| b == 0xFF)?;
        match *bytes.get(at + 1)? {
            0 | 0xD0..=0xD7 => at += 2,
            0xFF => at += 1,
            _ => return Some(at),
        }
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<usize> {
    let b = bytes.get(at..at + 2)?;
    Some(usize::from(u16::from_be_bytes([b[0], b[1]])))
}

impl Facts {
    /// A block of 8 x 8 takes at least a bit for its DC coefficient and, unless progressive, one for the others: fewer bytes
    /// mean missing pixels.
    fn least_coded(&self) -> usize {
        if self.arithmetic {
            return 1;
        }
        let most = self.most_sampling();
        let blocks = |c: &(usize, usize)| {
            let (w, h) = ((self.width * c.0).div_ceil(most.0), (self.height * c.1).div_ceil(most.1));
            w.div_ceil(8) * h.div_ceil(8)
        };
        let bits = if self.progressive { 1 } else { 2 };
        self.components.iter().map(blocks).sum::<usize>() * bits / 8
    }

    fn most_sampling(&self) -> (usize, usize) {
        self.components.iter().fold((1, 1), |m, c| (m.0.max(c.0), m.1.max(c.1)))
    }

    fn note(&mut self, source: &Source, marker: u8, body: &[u8]) -> Result<()> {
        match marker {
            0xC0..=0xC2 | 0xC9 | 0xCA => self.frame(source, marker, body)?,
            0xC3 | 0xC5..=0xC8 | 0xCB | 0xCD..=0xCF => {
                let got = format!("one of a kind nobody uses (lossless or hierarchical, FF{marker:02X})");
                return Err(source.refuse("a baseline or progressive JPEG", got));
            }
            0xDA => {
                let named = body.first().map_or(0, |&n| usize::from(n));
                self.partial_scans |= named != self.components.len();
                self.scans += 1;
                let listed = body.get(1..).unwrap_or_default().chunks_exact(2).take(named);
                listed.for_each(|c| self.missing.retain(|name| *name != c[0]));
                if self.scans > MOST_SCANS {
                    let got = format!("more than {MOST_SCANS}");
                    return Err(source.refuse(format!("a JPEG of at most {MOST_SCANS} scans"), got));
                }
            }
            0xE1 if body.starts_with(b"Exif\0\0") => self.exif = self.exif.or(exif::of_exif(body)),
            0xE1 if body.starts_with(b"http://ns.adobe.com/xap/1.0/\0") => {
                self.xmp = self.xmp.or(exif::of_xmp(body));
            }
            _ => {}
        }
        Ok(())
    }

    /// The frame header: bits, height, width, count, then name, sampling and table of each component.
    fn frame(&mut self, source: &Source, marker: u8, body: &[u8]) -> Result<()> {
        let (Some(&bits), Some(height), Some(width), Some(&count), Some(list)) =
            (body.first(), be16(body, 1), be16(body, 3), body.get(5), body.get(6..))
        else {
            return Err(broken(source, "a frame header too short"));
        };
        if !self.components.is_empty() {
            return Err(broken(source, "two frame headers"));
        }
        if bits != 8 {
            return Err(source.refuse("a JPEG of 8 bits a sample", format!("{bits} bits")));
        }
        if !matches!(count, 1 | 3 | 4) || list.len() != usize::from(count) * 3 {
            return Err(source.refuse("a JPEG of 1, 3 or 4 components", format!("{count} components")));
        }
        source.check_size(width, height, 0.0)?;
        for c in list.chunks_exact(3) {
            let (across, down) = (usize::from(c[1] >> 4), usize::from(c[1] & 15));
            if !(1..=4).contains(&across) || !(1..=4).contains(&down) {
                return Err(broken(source, format!("a sampling of {across} x {down}")));
            }
            self.components.push((across, down));
            self.missing.push(c[0]);
        }
        (self.width, self.height) = (width, height);
        self.progressive = matches!(marker, 0xC2 | 0xCA);
        self.arithmetic = matches!(marker, 0xC9 | 0xCA);
        Ok(())
    }

    /// Where a picture comes in several scans, the coefficients of all components, two bytes each.
    fn kept_per_pixel(&self) -> f64 {
        if !self.progressive && !self.partial_scans {
            return 0.0;
        }
        let most = self.most_sampling();
        let kept: usize = self.components.iter().map(|c| c.0 * c.1).sum();
        2.0 * kept as f64 / (most.0 * most.1) as f64
    }
}
