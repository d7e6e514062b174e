//! 8-bit pixels to the float planes a model takes:   out[c, y, x] = (rgb[y, x, c] / 255 - mean[c]) / std[c]
//! in f32 and in this order, as torchvision's ToTensor and Normalize compute it - equal to the bit.

use super::{Picture, check_pixels};
use crate::{Error, Result};

/// Mean and standard deviation of each channel, of pixels in 0..1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalise {
    /// Of red, green and blue.
    pub mean: [f32; 3],
    /// Of red, green and blue.
    pub std: [f32; 3],
}

impl Default for Normalise {
    /// CLIP's, which LAVIS uses.
    fn default() -> Self {
        Normalise {
            mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
        }
    }
}

impl Normalise {
    /// Writes the planes `[3, height, width]` of a picture.
    pub fn write(&self, picture: &Picture, out: &mut [f32]) -> Result<()> {
        let operation = "normalise picture";
        check_pixels(operation, picture.width, picture.height, &picture.rgb)?;
        if out.len() != picture.rgb.len() {
            return Err(Error::argument(operation, "out", picture.rgb.len(), out.len()));
        }
        let plane = picture.width * picture.height;
        for (c, out) in out.chunks_exact_mut(plane).enumerate() {
            // Only 256 values can occur.
            let table: Vec<f32> =
                (0..=255u8).map(|v| (f32::from(v) / 255.0 - self.mean[c]) / self.std[c]).collect();
            for (out, pixel) in out.iter_mut().zip(picture.rgb.chunks_exact(3)) {
                *out = table[usize::from(pixel[c])];
            }
        }
        Ok(())
    }

    /// The planes `[3, height, width]` of a picture.
    pub fn planes(&self, picture: &Picture) -> Result<Vec<f32>> {
        let mut out = vec![0.0; picture.rgb.len()];
        self.write(picture, &mut out)?;
        Ok(out)
    }
}
