//! JPEG: the segments are walked here, the picture is decoded by zune-jpeg in strict mode, and CMYK is converted as
//! libjpeg and Pillow do it.
//!
//! The walk finds size, kind and colour space before anything is decoded, insists on the end marker (a file cut off
//! anywhere is an error, as in Pillow), and hands the decoder only what pixels need: no profiles, thumbnails, comments
//! or second pictures, so nothing in those can do harm.
//!
//! Colour space, by libjpeg's rules: three components are RGB if an Adobe marker says so and no JFIF marker contradicts,
//! or if they are named R, G, B; otherwise YCbCr. Four are YCCK if an Adobe marker says so, otherwise CMYK.
//! Pillow takes CMYK files as inverted, always:   rgb = k - round(k * (255 - c) / 255) for stored c, k.

use super::Picture;
use super::decode::{Decoded, Source};
use crate::{Error, Result};
use image::metadata::Orientation;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// What the segments say.
#[derive(Default)]
struct Facts {
    width: usize,
    height: usize,
    /// Name, horizontal and vertical sampling of each component; empty before the frame header.
    components: Vec<(u8, usize, usize)>,
    progressive: bool,
    /// A scan without all components, so that coefficients must be kept.
    partial_scans: bool,
    scans: usize,
    /// Bytes of all scans' data.
    coded: usize,
    jfif: bool,
    /// The colour transform an Adobe marker names.
    adobe: Option<u8>,
    orientation: Option<Orientation>,
    /// The file without what pixels do not need.
    lean: Vec<u8>,
}

pub(super) fn decode(source: &Source) -> Result<Decoded> {
    let facts = walk(source)?;
    let count = facts.components.len();
    source.check_size(facts.width, facts.height, facts.bytes_per_pixel())?;
    let options = DecoderOptions::default().set_strict_mode(true);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&facts.lean[..]), options);
    let broken = |e: &dyn std::fmt::Debug| broken(source, format!("{e:?}"));
    decoder.decode_headers().map_err(|e| broken(&e))?;
    // Asking for the file's own colour space gives the components as they are.
    let asked = match (count, decoder.input_colorspace()) {
        (4, _) => ColorSpace::CMYK,
        (3, Some(own)) if facts.is_rgb() => own,
        _ => ColorSpace::RGB,
    };
    decoder.set_options(options.jpeg_set_out_colorspace(asked));
    let mut pixels = decoder.decode().map_err(|e| broken(&e))?;
    if count == 4 {
        let ycck = facts.adobe.is_some_and(|transform| transform != 0);
        pixels = cmyk_to_rgb(pixels, ycck);
    }
    let picture = Picture::new(facts.width, facts.height, pixels)
        .map_err(|_| self::broken(source, "the header names another size than the picture"))?;
    Ok(Decoded { picture, orientation: facts.orientation.unwrap_or(Orientation::NoTransforms) })
}

fn broken(source: &Source, why: impl std::fmt::Display) -> Error {
    source.refuse("a whole, valid JPEG file", format!("a broken one ({why})"))
}

fn cut_off(source: &Source) -> Error {
    source.refuse("a whole JPEG file", format!("one cut off after {} bytes", source.bytes.len()))
}

/// From marker to marker, up to the end of the picture.
fn walk(source: &Source) -> Result<Facts> {
    let bytes = source.bytes;
    let mut facts = Facts { lean: Vec::with_capacity(bytes.len()), ..Facts::default() };
    facts.lean.extend([0xFF, 0xD8]);
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
        if !facts.note(source, marker, body)? {
            continue;
        }
        facts.lean.extend([0xFF, marker]);
        facts.lean.extend(&bytes[at - length..at]);
        if marker == 0xDA {
            let end = entropy_coded(bytes, at).ok_or_else(|| cut_off(source))?;
            facts.lean.extend(&bytes[at..end]);
            facts.coded += end - at;
            at = end;
        }
    }
    facts.lean.extend([0xFF, 0xD9]);
    if facts.coded < facts.least_coded() {
        let got = format!("a broken one (no more than {} bytes of pixel data)", facts.coded);
        return Err(source.refuse("a whole, valid JPEG file", got));
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
    /// mean missing pixels, which the decoder would fill with grey.
    fn least_coded(&self) -> usize {
        let most = self.components.iter().fold((1, 1), |m, c| (m.0.max(c.1), m.1.max(c.2)));
        let blocks = |c: &(u8, usize, usize)| {
            let (w, h) = ((self.width * c.1).div_ceil(most.0), (self.height * c.2).div_ceil(most.1));
            w.div_ceil(8) * h.div_ceil(8)
        };
        let bits = if self.progressive { 1 } else { 2 };
        self.components.iter().map(blocks).sum::<usize>() * bits / 8
    }

    /// Takes note of a segment; true if the decoder needs it.
    fn note(&mut self, source: &Source, marker: u8, body: &[u8]) -> Result<bool> {
        match marker {
            0xC0..=0xC2 => self.frame(source, marker, body)?,
            0xC3 | 0xC5..=0xC7 | 0xC8..=0xCB | 0xCC..=0xCF => {
                let got = format!("one of a kind nobody uses (lossless or arithmetic, FF{marker:02X})");
                return Err(source.refuse("a baseline or progressive JPEG", got));
            }
            0xDA => {
                let named = body.first().map_or(0, |&n| usize::from(n));
                self.partial_scans |= named != self.components.len();
                self.scans += 1;
            }
            0xC4 | 0xDB | 0xDD => {}
            0xE0 => {
                self.jfif |= body.starts_with(b"JFIF\0");
                return Ok(body.starts_with(b"AVI1")); // a film's frame: leaves out its tables
            }
            0xE1 => {
                if let Some(exif) = body.strip_prefix(b"Exif\0\0") {
                    self.orientation = self.orientation.or(Orientation::from_exif_chunk(exif));
                }
                return Ok(false);
            }
            0xEE => {
                if body.starts_with(b"Adobe") && body.len() >= 12 {
                    self.adobe = Some(body[11]);
                }
                return Ok(false);
            }
            _ => return Ok(false),
        }
        Ok(true)
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
        source.check_size(width, height, 3.0)?;
        for c in list.chunks_exact(3) {
            let (across, down) = (usize::from(c[1] >> 4), usize::from(c[1] & 15));
            if !(1..=4).contains(&across) || !(1..=4).contains(&down) {
                return Err(broken(source, format!("a sampling of {across} x {down}")));
            }
            self.components.push((c[0], across, down));
        }
        (self.width, self.height, self.progressive) = (width, height, marker == 0xC2);
        Ok(())
    }

    /// Output, and where needed the coefficients of all components, two bytes each.
    fn bytes_per_pixel(&self) -> f64 {
        let output = if self.components.len() == 4 { 4.0 } else { 3.0 };
        if !self.progressive && !self.partial_scans {
            return output;
        }
        let most =
            |side: fn(&(u8, usize, usize)) -> usize| self.components.iter().map(side).max().unwrap_or(1);
        let full = most(|c| c.1) * most(|c| c.2);
        let kept: usize = self.components.iter().map(|c| c.1 * c.2).sum();
        output + 2.0 * kept as f64 / full as f64
    }

    fn is_rgb(&self) -> bool {
        let named = self.components.iter().map(|c| c.0).eq(*b"RGB");
        match (self.jfif, self.adobe) {
            (true, _) => false,
            (false, Some(transform)) => transform == 0,
            (false, None) => named,
        }
    }
}

/// Four stored components to RGB, in place. YCCK first becomes CMYK by libjpeg's tables.
fn cmyk_to_rgb(mut pixels: Vec<u8>, ycck: bool) -> Vec<u8> {
    let count = pixels.len() / 4;
    for i in 0..count {
        let [a, b, c, k] = [pixels[i * 4], pixels[i * 4 + 1], pixels[i * 4 + 2], pixels[i * 4 + 3]];
        let stored = if ycck { ycc_to_rgb(a, b, c).map(|v| 255 - v) } else { [a, b, c] };
        pixels[i * 3..i * 3 + 3].copy_from_slice(&stored.map(|v| darken(255 - v, k)));
    }
    pixels.truncate(count * 3);
    pixels
}

/// k - round(k * ink / 255), with Pillow's division by 255.
fn darken(ink: u8, k: u8) -> u8 {
    let product = u32::from(ink) * u32::from(k) + 128;
    k.saturating_sub((((product >> 8) + product) >> 8) as u8)
}

/// libjpeg's conversion with 16 fractional bits.
fn ycc_to_rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let r = y + ((91_881 * cr + HALF) >> 16);
    let g = y + ((-22_554 * cb - 46_802 * cr + HALF) >> 16);
    let b = y + ((116_130 * cb + HALF) >> 16);
    [r, g, b].map(|v| v.clamp(0, 255) as u8)
}
