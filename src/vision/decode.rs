//! The door for picture files: reads one whole, refuses what is too large before anything is decoded, tells the format
//! by content (never by name), decodes to 8-bit RGB, and turns the picture upright if asked to.
//!
//! What comes out is `Image.open(file).convert("RGB")` of Pillow 11: alpha is dropped, not blended; grey and palette are
//! expanded; CMYK is converted by Pillow's arithmetic. 16-bit samples keep their high byte - but 16-bit grey without
//! alpha is *clipped* at 255, because that is what Pillow does. PNG, BMP and GIF are equal to the byte; JPEG differs by
//! rounding. A truncated file is an error, as in Pillow.
//!
//! Contract: no file, however hostile, panics or makes us hold more than `MAX_MEMORY` of pixels and coefficients.

use super::{Picture, jpeg, raster};
use crate::{Error, Result};
use image::DynamicImage;
use image::metadata::Orientation;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// The largest file read, in bytes.
pub const MAX_FILE: u64 = 32 << 20;
/// The longest side accepted, in pixels.
pub const MAX_SIDE: usize = 16_384;
/// The most pixels accepted.
pub const MAX_PIXELS: usize = 50_000_000;
/// The most bytes a decoder may need for pixels and coefficients at a time.
pub const MAX_MEMORY: usize = 256 << 20;

const OPERATION: &str = "decode picture";

/// What to do about the orientation a camera wrote into the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Turn {
    /// Leave the pixels as they are stored, as LAVIS does.
    #[default]
    AsStored,
    /// Turn the picture upright.
    Upright,
}

/// The bytes of a file under its name: what the decoders work on and whose errors they report.
pub(super) struct Source<'a> {
    pub path: &'a Path,
    pub bytes: &'a [u8],
}

/// A decoded file before it is turned.
pub(super) struct Decoded {
    pub picture: Picture,
    pub orientation: Orientation,
}

/// Reads and decodes a picture file.
pub fn load(path: impl AsRef<Path>, turn: Turn) -> Result<Picture> {
    let path = path.as_ref();
    decode(&read(path)?, path, turn)
}

/// The same, with the blake3 of the bytes that were decoded.
pub fn load_hashed(path: impl AsRef<Path>, turn: Turn) -> Result<(Picture, blake3::Hash)> {
    let path = path.as_ref();
    let bytes = read(path)?;
    Ok((decode(&bytes, path, turn)?, blake3::hash(&bytes)))
}

/// Decodes the bytes of a picture file; `name` is only for errors.
pub fn decode(bytes: &[u8], name: impl AsRef<Path>, turn: Turn) -> Result<Picture> {
    let source = Source { path: name.as_ref(), bytes };
    source.check_file(bytes.len() as u64)?;
    let decoded = match bytes {
        [0xFF, 0xD8, ..] => jpeg::decode(&source)?,
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => raster::png(&source)?,
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => raster::gif(&source)?,
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => raster::webp(&source)?,
        [b'B', b'M', ..] => raster::bmp(&source)?,
        _ => return Err(source.refuse("a JPEG, PNG, WebP, GIF or BMP picture", looks_like(bytes))),
    };
    match turn {
        Turn::AsStored => Ok(decoded.picture),
        Turn::Upright => turned(&source, decoded),
    }
}

/// A regular file, whole, of at most `MAX_FILE` bytes.
fn read(path: &Path) -> Result<Vec<u8>> {
    let io = |e: std::io::Error| unreadable(path, &e);
    let about = std::fs::metadata(path).map_err(io)?;
    let source = Source { path, bytes: &[] };
    if !about.is_file() {
        return Err(source.refuse("a picture file", if about.is_dir() { "a folder" } else { "a device" }));
    }
    source.check_file(about.len())?;
    let mut bytes = Vec::with_capacity(about.len() as usize);
    // One byte more than allowed: a file that grows while it is read is caught by the second check.
    std::fs::File::open(path).map_err(io)?.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

/// A picture that may not be read is as unusable as one that is not there: no reason to speak of writing.
fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::PermissionDenied => Error::file(OPERATION, path, "a picture that may be read", error)
            .fix("give yourself the right to read it, or take it out of the list of pictures"),
        _ => Error::io(OPERATION, path, error),
    }
}

impl Source<'_> {
    pub fn refuse(&self, expected: impl std::fmt::Display, got: impl std::fmt::Display) -> Error {
        Error::file(OPERATION, self.path, expected, got)
            .fix("replace the file or take it out of the list of pictures")
    }

    fn check_file(&self, length: u64) -> Result<()> {
        match length {
            0 => Err(self.refuse("a picture file", "an empty file")),
            n if n > MAX_FILE => Err(self.refuse(format!("at most {} MiB", MAX_FILE >> 20), mib(n))),
            _ => Ok(()),
        }
    }

    /// The limits, before anything is allocated. `bytes_per_pixel` is all a decoder will hold at a time.
    pub fn check_size(&self, width: usize, height: usize, bytes_per_pixel: f64) -> Result<()> {
        let size = format!("{width} x {height} pixels");
        let smaller = |e: Error| e.fix("make the picture smaller and save it again");
        if width == 0 || height == 0 {
            return Err(self.refuse("at least one pixel", size));
        }
        if width > MAX_SIDE || height > MAX_SIDE {
            return Err(smaller(self.refuse(format!("sides of at most {MAX_SIDE} pixels"), size)));
        }
        if width * height > MAX_PIXELS {
            return Err(smaller(self.refuse(format!("at most {} megapixels", MAX_PIXELS / 1_000_000), size)));
        }
        let needed = (width * height) as f64 * bytes_per_pixel;
        if needed > MAX_MEMORY as f64 {
            let got = format!("{size} of a kind that takes {} to decode", mib(needed as u64));
            return Err(smaller(self.refuse(format!("at most {} MiB to decode", MAX_MEMORY >> 20), got)));
        }
        Ok(())
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}

/// What a file that is no picture of ours seems to be: the name often says `.jpg` when a download went wrong.
fn looks_like(bytes: &[u8]) -> &'static str {
    let text = bytes.trim_ascii_start();
    let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
    let starts = |word: &str| text.get(..word.len()).is_some_and(|t| t.eq_ignore_ascii_case(word.as_bytes()));
    match bytes {
        _ if starts("<!doctype html") || starts("<html") => "an HTML page (a failed download?)",
        _ if starts("<?xml") || starts("<svg") => "an XML or SVG file",
        _ if starts("{") || starts("[") => "a JSON file",
        _ if starts("%PDF") => "a PDF file",
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => "a TIFF or camera raw file",
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => "a HEIC, AVIF or video file",
        _ if bytes.iter().all(|&b| b == 0) => "a file of zeros",
        _ => "a file of another kind",
    }
}

fn turned(source: &Source, decoded: Decoded) -> Result<Picture> {
    let Decoded { picture, orientation } = decoded;
    if orientation == Orientation::NoTransforms {
        return Ok(picture);
    }
    source.check_size(picture.width, picture.height, 6.0)?; // the picture and its turned copy
    let (width, height) = (picture.width as u32, picture.height as u32);
    let Some(pixels) = image::RgbImage::from_raw(width, height, picture.rgb) else {
        return Err(source.refuse("a whole picture", "too few pixels"));
    };
    let mut image = DynamicImage::ImageRgb8(pixels);
    image.apply_orientation(orientation);
    let (width, height) = (image.width() as usize, image.height() as usize);
    Picture::new(width, height, image.into_rgb8().into_raw())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    /// A kind of error that makes a training list the picture and go on.
    #[test]
    fn whatever_keeps_a_picture_from_being_read_is_said_of_the_file() {
        for kind in [ErrorKind::PermissionDenied, ErrorKind::NotFound, ErrorKind::Other] {
            let error = unreadable(Path::new("photos/1.jpg"), &kind.into());
            assert_eq!(error.kind(), Kind::File, "{error}");
            assert!(error.to_string().contains("photos/1.jpg"), "{error}");
        }
    }
}
