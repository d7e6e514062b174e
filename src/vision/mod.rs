//! Pictures: from files to model input, as Pillow 11 and torchvision make it for LAVIS. Plain buffers in and out.
//!
//! | file | what is in it |
//! |---|---|
//! | `decode` | the door: limits, format by content, orientation; `jpeg` and `raster` decode |
//! | `resize` | Pillow's bicubic resize to the byte, and a fast one within 2/255 |
//! | `augment` | torchvision's random crop and flip, as a decision apart from the pixels |
//! | `normalise` | 8-bit pixels to float planes |
//! | `encode` | PNG and thumbnails |

mod augment;
mod decode;
mod encode;
mod jpeg;
mod normalise;
mod raster;
mod resize;

use crate::{Error, Result};

pub use augment::{Augment, random_crop};
pub use decode::{MAX_FILE, MAX_MEMORY, MAX_PIXELS, MAX_SIDE, Turn, decode, load, load_hashed};
pub use encode::{encode_png, thumbnail};
pub use normalise::Normalise;
pub use resize::{Resampling, resize, resize_crop};

/// A decoded picture: 8-bit RGB, row by row, no padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    pub width: usize,
    pub height: usize,
    /// `[height, width, 3]`
    pub rgb: Vec<u8>,
}

/// A box of a picture in pixels; `flip` mirrors it left to right after resizing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    pub top: usize,
    pub left: usize,
    pub height: usize,
    pub width: usize,
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
