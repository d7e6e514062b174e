//! Pictures: from files to model input, as Pillow 11 and torchvision make it for LAVIS. Plain buffers in and out.
//!
//! | file | what is in it |
//! |---|---|
//! | `decode` | the door: limits, format by content, rows; `jpeg`, `png`, `gif`, `bmp` and `webp` (with `vp8l`) decode |
//! | `exif` | the orientation that a camera wrote |
//! | `c`, `jpeg.c` | libjpeg and libwebp, and all of this room's `unsafe` |
//! | `resize` | Pillow's bicubic resize to the byte, and a fast one within 2/255 |
//! | `augment` | torchvision's random crop and flip, as a decision apart from the pixels |
//! | `randaugment` | LAVIS's RandAugment, equal to OpenCV's pixels |
//! | `normalise` | 8-bit pixels to float planes |
//! | `encode` | PNG and thumbnails |

mod augment;
mod bmp;
mod c;
mod decode;
mod encode;
mod exif;
mod gif;
mod jpeg;
mod normalise;
mod png;
mod randaugment;
mod resize;
mod source;
mod vp8l;
mod webp;

use crate::{Error, Result};

pub use augment::{Augment, random_crop};
pub use decode::{MAX_FILE, MAX_MEMORY, MAX_PIXELS, MAX_SIDE, Photo, Turn, decode, load};
pub use encode::{encode_png, thumbnail};
pub use exif::Orientation;
pub use normalise::Normalise;
pub use randaugment::{Operation, RandAugment};
pub use resize::{Resampling, resize, resize_crop};

/// A decoded picture: 8-bit RGB, row by row, no padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 3]`
    pub rgb: Vec<u8>,
}

/// A box of a picture in pixels; `flip` mirrors it left to right after resizing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// Its first row.
    pub top: usize,
    /// Its first column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
    /// Mirrored afterwards.
    pub flip: bool,
}

impl Picture {
    /// A picture of given pixels; the buffer must hold `height * width * 3` bytes of at least one pixel.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self> {
        check_pixels("make a picture", width, height, &rgb)?;
        Ok(Picture { width, height, rgb })
    }
}

impl Crop {
    /// The whole picture, not flipped.
    pub fn whole(picture: &Picture) -> Self {
        Crop { top: 0, left: 0, height: picture.height, width: picture.width, flip: false }
    }
}

/// The door of every operation on pixels: sizes of at least one, and a buffer of exactly that many bytes.
fn check_pixels(operation: &str, width: usize, height: usize, rgb: &[u8]) -> Result<()> {
    let expected = width.checked_mul(height).and_then(|n| n.checked_mul(3));
    if width == 0 || height == 0 || expected != Some(rgb.len()) {
        let got = format!("{width} x {height} pixels and {} bytes", rgb.len());
        return Err(Error::argument(operation, "rgb", "height * width * 3 bytes, at least one pixel", got));
    }
    Ok(())
}
