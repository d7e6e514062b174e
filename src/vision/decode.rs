//! The door for picture files: tells the format by content (never by name), refuses what is too large before anything is
//! decoded, and gives 8-bit RGB - whole, or row by row into a resized crop, so that a large picture is never held.
//!
//! What comes out is `Image.open(file).convert("RGB")` of Pillow 11, to the byte: alpha is dropped, not blended; grey and
//! palette are expanded; CMYK is converted by Pillow's arithmetic; of an animation there is the first frame. 16-bit samples
//! keep their high byte - but 16-bit grey without alpha is *clipped* at 255, because that is what Pillow does. A truncated
//! file is an error, as in Pillow; so is damage that Pillow would paint over.
//!
//! Contract: no file, however hostile, panics or makes us hold more than `MAX_MEMORY`: the file, what its decoder keeps, and
//! the rows that are asked for.

use super::exif::Orientation;
use super::resize::Squeeze;
use super::source::Source;
use super::{Crop, Picture, Resampling, bmp, gif, jpeg, png, webp};
use crate::{Error, Result};
use std::borrow::Cow;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// The largest file read, in bytes.
pub const MAX_FILE: u64 = 128 << 20;
/// The longest side accepted, in pixels: libjpeg's.
pub const MAX_SIDE: usize = 65_500;
/// The most pixels accepted: Pillow's.
pub const MAX_PIXELS: usize = 178_956_970;
/// The most bytes a picture may need at a time while it is decoded.
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

impl Turn {
    /// Upright, if that is asked for.
    pub fn upright(asked: bool) -> Turn {
        if asked { Turn::Upright } else { Turn::AsStored }
    }
}

/// What a file says of itself, as its format's file read it; enough to decode it.
pub(super) enum Facts {
    Jpeg(jpeg::Facts),
    Png(png::Facts),
    Gif(gif::Facts),
    Bmp(bmp::Facts),
    WebP(webp::Facts),
}

/// The pixels of a file from top to bottom.
pub(super) trait Rows {
    /// The next row of RGB, `width * 3` bytes. After the last one the rest of the picture's data was checked.
    fn next(&mut self, row: &mut [u8]) -> Result<()>;
}

/// The size of a picture and what its decoder keeps of it for each pixel, beside the row that it gives.
pub(super) struct Header {
    pub facts: Facts,
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    pub orientation: Orientation,
    pub kept: f64,
}

/// A picture file that was looked at, but not decoded.
pub struct Photo<'a> {
    path: PathBuf,
    bytes: Cow<'a, [u8]>,
    header: Header,
}

/// Reads and decodes a picture file.
pub fn load(path: impl AsRef<Path>, turn: Turn) -> Result<Picture> {
    Photo::open(path, turn)?.picture()
}

/// Decodes the bytes of a picture file; `name` is only for errors.
pub fn decode(bytes: &[u8], name: impl AsRef<Path>, turn: Turn) -> Result<Picture> {
    Photo::new(bytes, name, turn)?.picture()
}

impl Photo<'static> {
    /// Reads a picture file, whole, and looks at its header.
    pub fn open(path: impl AsRef<Path>, turn: Turn) -> Result<Photo<'static>> {
        let path = path.as_ref();
        Photo::owned(read(path)?, path, turn)
    }

    /// Looks at the header of a picture file's bytes and keeps them; `name` is only for errors.
    pub fn owned(bytes: Vec<u8>, name: impl AsRef<Path>, turn: Turn) -> Result<Photo<'static>> {
        Photo::of(bytes.into(), name.as_ref(), turn)
    }
}

impl<'a> Photo<'a> {
    /// Looks at the header of a picture file's bytes; `name` is only for errors.
    pub fn new(bytes: &'a [u8], name: impl AsRef<Path>, turn: Turn) -> Result<Photo<'a>> {
        Photo::of(bytes.into(), name.as_ref(), turn)
    }

    fn of(bytes: Cow<'a, [u8]>, path: &Path, turn: Turn) -> Result<Photo<'a>> {
        let source = Source { path, bytes: &bytes };
        source.check_file(bytes.len() as u64)?;
        let mut header = match &*bytes {
            [0xFF, 0xD8, ..] => jpeg::look(&source)?,
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => png::look(&source)?,
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => gif::look(&source)?,
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => webp::look(&source)?,
            [b'B', b'M', ..] => bmp::look(&source)?,
            _ => return Err(source.refuse("a JPEG, PNG, WebP, GIF or BMP picture", looks_like(&bytes))),
        };
        source.check_size(header.width, header.height, header.kept)?;
        if turn == Turn::AsStored {
            header.orientation = Orientation::UPRIGHT;
        }
        Ok(Photo { path: path.to_path_buf(), bytes, header })
    }

    /// Of the picture as it will be seen: turned, if it is to be.
    pub fn size(&self) -> (usize, usize) {
        self.header.orientation.turned(self.header.width, self.header.height)
    }

    /// The whole picture as a box.
    pub fn whole(&self) -> Crop {
        let (width, height) = self.size();
        Crop { top: 0, left: 0, height, width, flip: false }
    }

    /// blake3 of the file.
    pub fn hash(&self) -> blake3::Hash {
        blake3::hash(&self.bytes)
    }

    /// All pixels.
    pub fn picture(&self) -> Result<Picture> {
        self.source().check_size(self.header.width, self.header.height, self.header.kept + 3.0)?;
        let (width, height) = self.size();
        let mut rgb = vec![0; width * height * 3];
        if self.header.orientation == Orientation::UPRIGHT {
            let source = self.source();
            let mut rows = self.rows(&source)?;
            rgb.chunks_exact_mut(width * 3).try_for_each(|row| rows.next(row))?;
        } else {
            self.each_row(|y, row| self.header.orientation.place(y, row, &mut rgb, self.header.height))?;
        }
        Picture::new(width, height, rgb)
    }

    /// A crop at another size, mirrored afterwards if the crop says so: equal to `resize_crop` of the whole picture, which is
    /// not held unless it must be turned.
    pub fn resized(&self, crop: &Crop, width: usize, height: usize, how: Resampling) -> Result<Picture> {
        if self.header.orientation != Orientation::UPRIGHT {
            return super::resize_crop(&self.picture()?, crop, width, height, how);
        }
        self.squeezed(Squeeze::new(self.size(), crop, width, height, how)?)
    }

    fn squeezed(&self, mut squeeze: Squeeze) -> Result<Picture> {
        self.source().check_memory(&self.header, squeeze.bytes())?;
        let mut failed = Ok(());
        self.each_row(|y, row| {
            if failed.is_ok() {
                failed = squeeze.row(y, row);
            }
        })?;
        failed?;
        squeeze.finish()
    }

    /// The whole picture, so small that neither side is above `side`; turned afterwards, where it costs nothing.
    pub fn small(&self, side: usize) -> Result<Picture> {
        let (width, height) = super::encode::fit(self.header.width, self.header.height, side);
        let whole =
            Crop { top: 0, left: 0, height: self.header.height, width: self.header.width, flip: false };
        let squeeze = Squeeze::new((whole.width, whole.height), &whole, width, height, Resampling::Fast)?;
        Ok(self.header.orientation.apply(self.squeezed(squeeze)?))
    }

    /// This photo with its pixels left as they are stored.
    #[must_use]
    pub fn as_stored(mut self) -> Self {
        self.header.orientation = Orientation::UPRIGHT;
        self
    }

    /// How its pixels are turned: upright by a photo that was opened so, else not at all.
    pub fn orientation(&self) -> Orientation {
        self.header.orientation
    }

    /// Decodes everything and keeps nothing: whether the file is sound.
    pub fn check(&self) -> Result<()> {
        self.each_row(|_, _| ())
    }

    fn source(&self) -> Source<'_> {
        Source { path: &self.path, bytes: &self.bytes }
    }

    /// The rows as they are stored.
    fn rows<'b>(&'b self, source: &'b Source) -> Result<Box<dyn Rows + 'b>> {
        Ok(match &self.header.facts {
            Facts::Jpeg(facts) => Box::new(jpeg::rows(source, facts)?),
            Facts::Png(facts) => png::rows(source, facts)?,
            Facts::Gif(facts) => Box::new(gif::rows(source, facts)?),
            Facts::Bmp(facts) => Box::new(bmp::rows(source, facts)?),
            Facts::WebP(facts) => Box::new(webp::rows(source, facts)?),
        })
    }

    fn each_row(&self, mut take: impl FnMut(usize, &[u8])) -> Result<()> {
        let source = self.source();
        let mut rows = self.rows(&source)?;
        let mut row = vec![0; self.header.width * 3];
        for y in 0..self.header.height {
            rows.next(&mut row)?;
            take(y, &row);
        }
        Ok(())
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

    /// A file that its decoder cannot read.
    pub fn broken(&self, format: &str, why: impl std::fmt::Display) -> Error {
        self.refuse(format!("a whole, valid {format} file"), format!("a broken one ({why})"))
    }

    fn check_file(&self, length: u64) -> Result<()> {
        match length {
            0 => Err(self.refuse("a picture file", "an empty file")),
            n if n > MAX_FILE => {
                let expected = format!("at most {} MiB", MAX_FILE >> 20);
                Err(self.refuse(expected, mib(n)).fix("make the picture smaller and save it again"))
            }
            _ => Ok(()),
        }
    }

    /// The limits, before anything is allocated. `bytes_per_pixel` is all that will be held at a time, beside the file.
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
            return Err(smaller(self.refuse(format!("at most {MAX_PIXELS} pixels"), size)));
        }
        let needed = (width * height) as f64 * bytes_per_pixel + self.bytes.len() as f64;
        if needed > MAX_MEMORY as f64 {
            let got = format!("{size} of a kind that takes {} to decode", mib(needed as u64));
            return Err(smaller(self.refuse(format!("at most {} MiB to decode", MAX_MEMORY >> 20), got)));
        }
        Ok(())
    }

    /// [`Source::check_size`] of a picture's decoder and `bytes` beside it.
    fn check_memory(&self, header: &Header, bytes: usize) -> Result<()> {
        let pixels = (header.width * header.height) as f64;
        self.check_size(header.width, header.height, header.kept + bytes as f64 / pixels)
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
