//! LAVIS's training crop: torchvision's RandomResizedCrop and RandomHorizontalFlip, as a decision apart from the pixels.
//!
//! Ten tries: area = U(scale) of the picture's, ratio = exp(U(ln ratio)), width = sqrt(area * ratio),
//! height = sqrt(area / ratio), both rounded half to even; the first that fits is placed at random. Otherwise the
//! largest centred box whose ratio is allowed. Then flipped with probability `flip`.
//!
//! The caller gives the random numbers, one 32-bit word a draw, used as PyTorch uses those of its generator: with
//! PyTorch's words the crops are torchvision's, exactly. 3 to 23 words are drawn.

use super::Crop;
use crate::{Error, Result};

/// The ranges of the random crop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Augment {
    /// Share of the picture's area.
    pub scale: (f64, f64),
    /// Width over height.
    pub ratio: (f64, f64),
    /// Probability of mirroring.
    pub flip: f64,
}

impl Default for Augment {
    /// LAVIS's `blip_image_train`.
    fn default() -> Self {
        Augment { scale: (0.5, 1.0), ratio: (3.0 / 4.0, 4.0 / 3.0), flip: 0.5 }
    }
}

impl Augment {
    /// Refuses ranges that cannot be drawn from.
    pub fn check(&self) -> Result<()> {
        let range = |name: &str, (low, high): (f64, f64), most: f64| {
            if low > 0.0 && low <= high && high <= most {
                return Ok(());
            }
            let expected = format!("two numbers, the smaller first, above 0 and at most {most}");
            Err(Error::argument("random crop", name, expected, format!("({low}, {high})")))
        };
        range("scale", self.scale, 1.0)?;
        range("ratio", self.ratio, 100.0)?;
        if !(0.0..=1.0).contains(&self.flip) {
            return Err(Error::argument("random crop", "flip", "a probability of 0 to 1", self.flip));
        }
        Ok(())
    }
}

/// Where to cut a picture of this size, and whether to flip it.
pub fn random_crop(
    width: usize,
    height: usize,
    augment: &Augment,
    mut random: impl FnMut() -> u32,
) -> Result<Crop> {
    augment.check()?;
    if width == 0 || height == 0 {
        return Err(Error::argument("random crop", "size", "at least 1 x 1", format!("{width} x {height}")));
    }
    let mut crop = centred(width, height, augment.ratio);
    let logs = ((augment.ratio.0 as f32).ln(), (augment.ratio.1 as f32).ln());
    for _ in 0..10 {
        let share = uniform(random(), augment.scale.0, augment.scale.1);
        let area = (width * height) as f64 * f64::from(share);
        let ratio = f64::from(uniform(random(), logs.0.into(), logs.1.into()).exp());
        let w = (area * ratio).sqrt().round_ties_even() as usize;
        let h = (area / ratio).sqrt().round_ties_even() as usize;
        if 0 < w && w <= width && 0 < h && h <= height {
            let top = random() as usize % (height - h + 1);
            let left = random() as usize % (width - w + 1);
            crop = Crop { top, left, height: h, width: w, flip: false };
            break;
        }
    }
    crop.flip = f64::from(uniform(random(), 0.0, 1.0)) < augment.flip;
    Ok(crop)
}

/// PyTorch's uniform float: the low 24 bits of a word.
fn uniform(word: u32, from: f64, to: f64) -> f32 {
    let share = f64::from(word & 0xFF_FFFF) / f64::from(1 << 24);
    (share * (to - from) + from) as f32
}

/// The largest box of an allowed ratio, in the middle.
fn centred(width: usize, height: usize, ratio: (f64, f64)) -> Crop {
    let ours = width as f64 / height as f64;
    let (w, h) = if ours < ratio.0 {
        (width, (width as f64 / ratio.0).round_ties_even() as usize)
    } else if ours > ratio.1 {
        ((height as f64 * ratio.1).round_ties_even() as usize, height)
    } else {
        (width, height)
    };
    let (w, h) = (w.clamp(1, width), h.clamp(1, height));
    Crop { top: (height - h) / 2, left: (width - w) / 2, height: h, width: w, flip: false }
}
