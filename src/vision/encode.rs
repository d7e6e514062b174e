//! Pictures to PNG and to the small JPEGs that a report embeds.

use super::{Photo, Picture, c, check_pixels};
use crate::{Error, Result};
use png::{BitDepth, ColorType, Compression, Encoder, Filter};

/// Of thumbnails.
const QUALITY: i32 = 80;

/// A PNG file of 8-bit RGB pixels.
pub fn encode_png(width: usize, height: usize, rgb: &[u8]) -> Result<Vec<u8>> {
    let operation = "encode PNG";
    check_pixels(operation, width, height, rgb)?;
    let (Ok(w), Ok(h)) = (u32::try_from(width), u32::try_from(height)) else {
        return Err(Error::argument(operation, "size", "sides below 2^32", format!("{width} x {height}")));
    };
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, w, h);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_compression(Compression::Fast);
    encoder.set_filter(Filter::Adaptive);
    let failed = |e| Error::argument(operation, "rgb", "pixels that can be encoded", e);
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(rgb).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(file)
}

/// A JPEG file of a picture made so small that neither side is above `side`, the way it is seen.
pub fn thumbnail(photo: &Photo, side: usize) -> Result<Vec<u8>> {
    let operation = "make thumbnail";
    if side == 0 {
        return Err(Error::argument(operation, "side", "at least 1", side));
    }
    let Picture { width, height, rgb } = photo.small(side)?;
    c::write_jpeg(&rgb, width, height, QUALITY)
        .map_err(|why| Error::argument(operation, "rgb", "pixels that can be encoded", why))
}

/// The size of a picture made so small that neither side is above `side`.
pub(super) fn fit(width: usize, height: usize, side: usize) -> (usize, usize) {
    let longest = width.max(height);
    let fit = |n: usize| if longest <= side { n } else { (n * side).div_ceil(longest) };
    (fit(width), fit(height))
}
