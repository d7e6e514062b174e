//! PNG, BMP, WebP and GIF (its first frame) to 8-bit RGB. The `image` and `gif` crates decode; here are the limits they
//! are called under and the reductions to RGB that Pillow 11 makes.
//!
//! Contract: sizes are checked before a decoder allocates pixels - for WebP also the size each frame claims for itself.

use super::Picture;
use super::decode::{Decoded, Source};
use crate::Result;
use image::codecs::{bmp::BmpDecoder, png::PngDecoder, webp::WebPDecoder};
use image::metadata::Orientation;
use image::{ColorType, ImageDecoder, Limits};
use std::io::Cursor;

/// What a PNG may spend on everything but pixels (an embedded colour profile may be a compression bomb).
const PNG_EXTRAS: u64 = 32 << 20;

pub(super) fn png(source: &Source) -> Result<Decoded> {
    // The first chunk: length, name, width, height, depth, colour kind.
    let (Some(width), Some(height), Some(&kind)) =
        (be32(source.bytes, 16), be32(source.bytes, 20), source.bytes.get(25))
    else {
        return Err(source.refuse("a whole PNG file", "a file that ends in its header"));
    };
    source.check_size(width, height, 1.0)?;
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(PNG_EXTRAS);
    let mut decoder = PngDecoder::with_limits(Cursor::new(source.bytes), limits)
        .map_err(|e| undecodable(source, "PNG", e))?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let grey = kind == 0;
    read(source, "PNG", decoder, orientation, 0.0, grey)
}

pub(super) fn bmp(source: &Source) -> Result<Decoded> {
    let decoder = BmpDecoder::new(Cursor::new(source.bytes)).map_err(|e| undecodable(source, "BMP", e))?;
    let mut decoded = read(source, "BMP", decoder, Orientation::NoTransforms, 0.0, false)?;
    if let Some(green) = sixteen_bits(source) {
        for pixel in decoded.picture.rgb.as_chunks_mut::<3>().0 {
            for (v, bits) in pixel.iter_mut().zip([5, green, 5]) {
                *v = truncated(*v, bits);
            }
        }
    }
    Ok(decoded)
}

/// How many bits of green a BMP of 16 bits a pixel has: 5, or 6 if its masks say so.
fn sixteen_bits(source: &Source) -> Option<u32> {
    let [bits, packing] = [le(source.bytes, 28, 2)?, le(source.bytes, 30, 4)?];
    let mask = if packing == 3 { le(source.bytes, 58, 4)? } else { 0x3E0 };
    (bits == 16).then_some(if mask == 0x7E0 { 6 } else { 5 })
}

/// Pillow widens n bits by v * 255 / (2^n - 1) rounded down; the decoder rounds to nearest.
fn truncated(widened: u8, bits: u32) -> u8 {
    let most = (1u32 << bits) - 1;
    let v = (u32::from(widened) * most + 127) / 255;
    (v * 255 / most) as u8
}

pub(super) fn webp(source: &Source) -> Result<Decoded> {
    if le(source.bytes, 4, 4).is_none_or(|size| source.bytes.len() < size + 8) {
        return Err(
            source.refuse("a whole WebP file", format!("one cut off after {} bytes", source.bytes.len()))
        );
    }
    check_webp(source, source.bytes.get(12..).unwrap_or_default(), 0)?;
    let mut decoder =
        WebPDecoder::new(Cursor::new(source.bytes)).map_err(|e| undecodable(source, "WebP", e))?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    // Beside the pixels: planes of luma and chroma (1.5) and of alpha (5), or a copy with alpha (4).
    let extra = if decoder.color_type().has_alpha() { 6.5 } else { 4.0 };
    read(source, "WebP", decoder, orientation, extra, false)
}

/// Walks the chunks of a WebP file: every frame inside must itself be within the limits, whatever the file says it is.
fn check_webp(source: &Source, mut chunks: &[u8], depth: usize) -> Result<()> {
    while let (Some(name), Some(length)) = (chunks.get(..4), le(chunks, 4, 4)) {
        let data = chunks.get(8..).unwrap_or_default();
        let bits = |n: usize| le(data, n, 4).unwrap_or(0);
        match name {
            b"VP8 " if data.len() >= 10 => {
                source.check_size((bits(6) & 0x3FFF).max(1), (bits(6) >> 16 & 0x3FFF).max(1), 4.5)?;
            }
            b"VP8L" if data.len() >= 5 => {
                source.check_size((bits(1) & 0x3FFF) + 1, (bits(1) >> 14 & 0x3FFF) + 1, 4.0)?;
            }
            b"VP8X" | b"ANMF" if data.len() >= 12 => {
                let at = if name == b"VP8X" { 4 } else { 6 };
                source.check_size((bits(at) & 0xFF_FFFF) + 1, (bits(at + 3) & 0xFF_FFFF) + 1, 4.0)?;
                if name == b"ANMF" && depth == 0 {
                    check_webp(source, data.get(16..length.min(data.len())).unwrap_or_default(), 1)?;
                }
            }
            _ => {}
        }
        chunks = data.get(length + length % 2..).unwrap_or_default();
    }
    Ok(())
}

/// Decodes and reduces to RGB. `extra` is what the decoder holds for each pixel beside its output.
fn read(
    source: &Source,
    format: &str,
    decoder: impl ImageDecoder,
    orientation: Orientation,
    extra: f64,
    grey: bool,
) -> Result<Decoded> {
    let (width, height) = (decoder.dimensions().0 as usize, decoder.dimensions().1 as usize);
    let color = decoder.color_type();
    let depth = usize::from(color.bytes_per_pixel());
    source.check_size(width, height, depth as f64 + extra)?;
    source.check_size(width, height, depth.max(3) as f64)?;
    let mut pixels = vec![0; width * height * depth];
    decoder.read_image(&mut pixels).map_err(|e| undecodable(source, format, e))?;
    let rgb = match color {
        ColorType::L8 => spread(&pixels, 1, |p| p[0]),
        ColorType::La8 => spread(&pixels, 2, |p| p[0]),
        ColorType::L16 => spread(&pixels, 2, clipped),
        ColorType::La16 if grey => spread(&pixels, 4, clipped), // grey with one transparent value
        ColorType::La16 => spread(&pixels, 4, high),
        ColorType::Rgb8 => pixels,
        ColorType::Rgba8 => keep(pixels, 4, |p| [p[0], p[1], p[2]]),
        ColorType::Rgb16 => keep(pixels, 6, |p| [high(p), high(&p[2..]), high(&p[4..])]),
        ColorType::Rgba16 => keep(pixels, 8, |p| [high(p), high(&p[2..]), high(&p[4..])]),
        other => return Err(source.refuse("8 or 16 bits a sample", format!("{other:?} samples"))),
    };
    Ok(Decoded { picture: Picture::new(width, height, rgb)?, orientation })
}

/// The high byte of a 16-bit sample: Pillow's rule wherever it keeps 8 bits of 16.
fn high(sample: &[u8]) -> u8 {
    (u16::from_ne_bytes([sample[0], sample[1]]) >> 8) as u8
}

/// Pillow keeps 16-bit grey as such and clips it on the way to RGB.
fn clipped(sample: &[u8]) -> u8 {
    u16::from_ne_bytes([sample[0], sample[1]]).min(255) as u8
}

/// Grey to RGB: one value from each pixel of `step` bytes, three times.
fn spread(pixels: &[u8], step: usize, value: impl Fn(&[u8]) -> u8) -> Vec<u8> {
    pixels.chunks_exact(step).flat_map(|p| [value(p); 3]).collect()
}

/// Colours to RGB in place: three values from each pixel of `step` bytes, `step > 3`.
fn keep(mut pixels: Vec<u8>, step: usize, value: impl Fn(&[u8]) -> [u8; 3]) -> Vec<u8> {
    let count = pixels.len() / step;
    for i in 0..count {
        let rgb = value(&pixels[i * step..(i + 1) * step]);
        pixels[i * 3..i * 3 + 3].copy_from_slice(&rgb);
    }
    pixels.truncate(count * 3);
    pixels
}

/// The first frame on a canvas, as Pillow composes it: the canvas is filled with the transparent index if the frame has
/// one and with index 0 otherwise, and grows if the frame reaches over its edge. Transparent pixels keep their colour.
pub(super) fn gif(source: &Source) -> Result<Decoded> {
    let refuse = |e: gif::DecodingError| undecodable(source, "GIF", e);
    let mut options = gif::DecodeOptions::new();
    options.set_memory_limit(gif::MemoryLimit::Unlimited); // ours are checked below, before the frame is allocated
    let mut decoder = options.read_info(source.bytes).map_err(refuse)?;
    let screen = (usize::from(decoder.width()), usize::from(decoder.height()));
    let Some(frame) = decoder.next_frame_info().map_err(refuse)? else {
        return Err(source.refuse("a GIF picture", "a GIF file without a frame"));
    };
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (width, height) = (usize::from(frame.width), usize::from(frame.height));
    let fill = frame.transparent.unwrap_or(0);
    let (full_width, full_height) = (screen.0.max(left + width), screen.1.max(top + height));
    source.check_size(width, height, 1.0)?;
    source.check_size(full_width, full_height, 4.0)?; // the frame's indices and the canvas
    let mut indices = vec![0; width * height];
    decoder.read_into_buffer(&mut indices).map_err(refuse)?;
    let palette = decoder.palette().map_err(refuse)?;
    let colour = |index: u8| match palette.get(usize::from(index) * 3..usize::from(index) * 3 + 3) {
        Some(c) => [c[0], c[1], c[2]],
        None => [0; 3],
    };
    let colours: Vec<[u8; 3]> = (0..=255).map(colour).collect();
    let mut rgb = colours[usize::from(fill)].repeat(full_width * full_height);
    for (y, row) in indices.chunks_exact(width).enumerate() {
        let start = ((top + y) * full_width + left) * 3;
        for (out, &index) in rgb[start..start + width * 3].chunks_exact_mut(3).zip(row) {
            out.copy_from_slice(&colours[usize::from(index)]);
        }
    }
    Ok(Decoded {
        picture: Picture::new(full_width, full_height, rgb)?,
        orientation: Orientation::NoTransforms,
    })
}

fn undecodable(source: &Source, format: &str, error: impl std::fmt::Display) -> crate::Error {
    source.refuse(format!("a whole, valid {format} file"), format!("a broken one ({error})"))
}

fn be32(bytes: &[u8], at: usize) -> Option<usize> {
    let b = bytes.get(at..at + 4)?;
    Some(u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize)
}

/// Up to `count` bytes, the lowest first; those past the end count as 0, but one must be there.
fn le(bytes: &[u8], at: usize, count: usize) -> Option<usize> {
    let b = bytes.get(at..)?;
    (!b.is_empty()).then(|| b.iter().take(count).rev().fold(0, |n, &b| n << 8 | usize::from(b)))
}
