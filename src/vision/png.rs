//! PNG: the `png` crate decodes row by row (interlaced files whole), the reductions to RGB are Pillow's.

use super::decode::{Facts as Kind, Header, Rows};
use super::exif;
use super::source::Source;
use crate::Result;
use png::{BitDepth, ColorType, Decoder, Limits, Transformations};
use std::io::Cursor;

/// What a PNG may spend on everything but pixels (an embedded colour profile may be a compression bomb).
const EXTRAS: usize = 32 << 20;

/// What the first chunk says.
pub struct Facts {
    /// Grey without a channel of alpha.
    grey: bool,
    interlaced: bool,
}

pub fn look(source: &Source) -> Result<Header> {
    // Behind the signature: length, name, width, height, depth, colour kind, two methods, interlacing.
    let (Some(width), Some(height), Some(&[depth, kind, .., interlacing])) =
        (be32(source.bytes, 16), be32(source.bytes, 20), source.bytes.get(24..29))
    else {
        return Err(source.refuse("a whole PNG file", "a file that ends in its header"));
    };
    let channels = if matches!(kind, 0 | 4) { 2 } else { 4 };
    let kept = if interlacing == 0 { 0 } else { channels * usize::from(depth.max(8) / 8) };
    Ok(Header {
        facts: Kind::Png(Facts { grey: kind == 0, interlaced: interlacing != 0 }),
        width,
        height,
        orientation: exif::of_png(source),
        kept: kept as f64,
    })
}

struct PngRows<'a> {
    source: &'a Source<'a>,
    reader: png::Reader<Cursor<&'a [u8]>>,
    reduce: fn(&[u8], &mut [u8]),
}

/// An interlaced picture, decoded.
struct WholePng {
    pixels: Vec<u8>,
    line: usize,
    at: usize,
    reduce: fn(&[u8], &mut [u8]),
}

pub fn rows<'a>(source: &'a Source, facts: &Facts) -> Result<Box<dyn Rows + 'a>> {
    let broken = |e: png::DecodingError| source.broken("PNG", e);
    let mut decoder = Decoder::new_with_limits(Cursor::new(source.bytes), Limits { bytes: EXTRAS });
    decoder.set_transformations(Transformations::EXPAND);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let mut reader = decoder.read_info().map_err(broken)?;
    let reduce = reduction(reader.output_color_type(), facts.grey);
    if !facts.interlaced {
        return Ok(Box::new(PngRows { source, reader, reduce }));
    }
    let width = reader.info().width;
    let (Some(bytes), Some(line)) = (reader.output_buffer_size(), reader.output_line_size(width)) else {
        return Err(source.broken("PNG", "too many bytes"));
    };
    let mut pixels = vec![0; bytes];
    reader.next_frame(&mut pixels).map_err(broken)?;
    Ok(Box::new(WholePng { pixels, line, at: 0, reduce }))
}

impl Rows for PngRows<'_> {
    fn next(&mut self, row: &mut [u8]) -> Result<()> {
        match self.reader.next_row() {
            Ok(Some(line)) => (self.reduce)(line.data(), row),
            Ok(None) => return Err(self.source.broken("PNG", "too few rows")),
            Err(e) => return Err(self.source.broken("PNG", e)),
        }
        Ok(())
    }
}

impl Rows for WholePng {
    fn next(&mut self, row: &mut [u8]) -> Result<()> {
        (self.reduce)(&self.pixels[self.at..self.at + self.line], row);
        self.at += self.line;
        Ok(())
    }
}

/// Pillow's way from samples to RGB. It keeps the high byte of 16 bits, but keeps 16-bit grey as such, also with one
/// transparent value, and clips it on the way to RGB.
fn reduction((color, depth): (ColorType, BitDepth), grey: bool) -> fn(&[u8], &mut [u8]) {
    fn each<const N: usize>(line: &[u8], row: &mut [u8], pixel: impl Fn(&[u8; N]) -> [u8; 3]) {
        let pixels = line.as_chunks::<N>().0;
        row.as_chunks_mut::<3>().0.iter_mut().zip(pixels).for_each(|(out, p)| *out = pixel(p));
    }
    match (color, depth == BitDepth::Sixteen) {
        (ColorType::Grayscale | ColorType::Indexed, false) => |l, r| each::<1>(l, r, |p| [p[0]; 3]),
        (ColorType::GrayscaleAlpha, false) => |l, r| each::<2>(l, r, |p| [p[0]; 3]),
        (ColorType::Rgb, false) => |l, r| r.copy_from_slice(l),
        (ColorType::Rgba, false) => |l, r| each::<4>(l, r, |p| [p[0], p[1], p[2]]),
        (ColorType::Grayscale | ColorType::Indexed, true) => |l, r| each::<2>(l, r, |p| clip(p[0], p[1])),
        (ColorType::GrayscaleAlpha, true) if grey => |l, r| each::<4>(l, r, |p| clip(p[0], p[1])),
        (ColorType::GrayscaleAlpha, true) => |l, r| each::<4>(l, r, |p| [p[0]; 3]),
        (ColorType::Rgb, true) => |l, r| each::<6>(l, r, |p| [p[0], p[2], p[4]]),
        (ColorType::Rgba, true) => |l, r| each::<8>(l, r, |p| [p[0], p[2], p[4]]),
    }
}

/// A 16-bit sample, at most 255.
fn clip(high: u8, low: u8) -> [u8; 3] {
    [if high > 0 { 255 } else { low }; 3]
}

fn be32(bytes: &[u8], at: usize) -> Option<usize> {
    let b = bytes.get(at..at + 4)?;
    Some(u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize)
}
