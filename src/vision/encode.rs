//! Pictures to PNG and to the small JPEGs that a report embeds.

use super::{Crop, Picture, Resampling, check_pixels, resize_crop};
use crate::{Error, Result};
use image::codecs::{jpeg::JpegEncoder, png::PngEncoder};
use image::{ExtendedColorType, ImageEncoder};

/// A PNG file of 8-bit RGB pixels.
pub fn encode_png(width: usize, height: usize, rgb: &[u8]) -> Result<Vec<u8>> {
    let mut file = Vec::new();
    encode("encode PNG", width, height, rgb, PngEncoder::new(&mut file))?;
    Ok(file)
}

/// A JPEG file of a picture made so small that neither side is above `side`.
pub fn thumbnail(picture: &Picture, side: usize) -> Result<Vec<u8>> {
    let operation = "make thumbnail";
    check_pixels(operation, picture.width, picture.height, &picture.rgb)?;
    if side == 0 {
        return Err(Error::argument(operation, "side", "at least 1", side));
    }
    let longest = picture.width.max(picture.height);
    let fit = |n: usize| if longest <= side { n } else { (n * side).div_ceil(longest) };
    let (width, height) = (fit(picture.width), fit(picture.height));
    let small = resize_crop(picture, &Crop::whole(picture), width, height, Resampling::Fast)?;
    let mut file = Vec::new();
    encode(operation, width, height, &small.rgb, JpegEncoder::new_with_quality(&mut file, 80))?;
    Ok(file)
}

fn encode(
    operation: &str,
    width: usize,
    height: usize,
    rgb: &[u8],
    encoder: impl ImageEncoder,
) -> Result<()> {
    check_pixels(operation, width, height, rgb)?;
    let (Ok(w), Ok(h)) = (u32::try_from(width), u32::try_from(height)) else {
        return Err(Error::argument(operation, "size", "sides below 2^32", format!("{width} x {height}")));
    };
    encoder
        .write_image(rgb, w, h, ExtendedColorType::Rgb8)
        .map_err(|e| Error::argument(operation, "rgb", "pixels that can be encoded", e))
}
