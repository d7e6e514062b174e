//! Pillow's bicubic resize, to the byte.
//!
//!   out[x] = clip8((2^21 + sum_i in[first + i] * w[x, i]) >> 22),   w = integers of 22 fractional bits
//!   w[x, i] ~ f((first + i + 1/2 - center) / s),  center = (x + 1/2) * in/out,  s = max(in/out, 1), summing to 1
//!   f(t) = 3/2 t^3 - 5/2 t^2 + 1 for t < 1,  -1/2 t^3 + 5/2 t^2 - 4t + 2 for t < 2,  else 0     (a = -1/2)
//!
//! Along rows first, then along columns, as Pillow 11 does for every shape; 8 bits are kept in between. The crop is cut
//! out first: nothing outside it is ever looked at. Rows may come one by one: rows of the new width are all that is kept. `Fast` is the same filter with coarser weights, within 2/255.
//! Numerics: sum |w| < 1.4 * 2^22, so sums stay below 2^31.

use super::{Crop, Picture, check_pixels};
use crate::{Error, Result};
use fast_image_resize::{self as fast, images::TypedImage, pixels::U8x3};

const OPERATION: &str = "resize picture";
const BITS: u32 = 22;
/// The longest side of what comes out.
const MAX_OUT: usize = 16_384;

/// How exactly to follow Pillow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resampling {
    /// Equal to Pillow to the byte.
    #[default]
    Exact,
    /// Within 2/255 of Pillow, several times as fast: for training.
    Fast,
}

/// The whole picture at another size, equal to Pillow's `resize((width, height), BICUBIC)`.
pub fn resize(picture: &Picture, width: usize, height: usize) -> Result<Picture> {
    resize_crop(picture, &Crop::whole(picture), width, height, Resampling::Exact)
}

/// A crop of a picture at another size, mirrored afterwards if the crop says so.
pub fn resize_crop(
    picture: &Picture,
    crop: &Crop,
    width: usize,
    height: usize,
    how: Resampling,
) -> Result<Picture> {
    check_pixels(OPERATION, picture.width, picture.height, &picture.rgb)?;
    let mut squeeze = Squeeze::new((picture.width, picture.height), crop, width, height, how)?;
    for (y, row) in picture.rgb.chunks_exact(picture.width * 3).enumerate() {
        squeeze.row(y, row)?;
    }
    squeeze.finish()
}

/// A crop on its way to another size, given row by row: only rows of the new width are kept.
pub(super) struct Squeeze {
    crop: Crop,
    width: usize,
    height: usize,
    how: How,
    /// Rows of the crop that were given, of the new width.     [crop.height, width, 3]
    middle: Vec<u8>,
    /// How many of them are done.
    done: usize,
}

enum How {
    Exact(Taps),
    /// `fast_image_resize`, and the rows that wait for it.     [up to BAND, crop.width, 3]
    Fast(fast::Resizer, Vec<u8>),
}

/// Rows that `fast_image_resize` gets at a time: enough that computing its weights does not count.
const BAND: usize = 128;

impl Squeeze {
    pub fn new(
        (across, down): (usize, usize),
        crop: &Crop,
        width: usize,
        height: usize,
        how: Resampling,
    ) -> Result<Squeeze> {
        let within = |start: usize, length: usize, size: usize| {
            length > 0 && start.checked_add(length).is_some_and(|end| end <= size)
        };
        if !within(crop.top, crop.height, down) || !within(crop.left, crop.width, across) {
            let inside = format!("a box inside {across} x {down} pixels");
            return Err(Error::argument(OPERATION, "crop", inside, format!("{crop:?}")));
        }
        if width == 0 || height == 0 || width > MAX_OUT || height > MAX_OUT {
            let expected = format!("sides of 1 to {MAX_OUT}");
            return Err(Error::argument(OPERATION, "size", expected, format!("{width} x {height}")));
        }
        let how = match how {
            Resampling::Exact => How::Exact(Taps::new(crop.width, width)),
            Resampling::Fast => How::Fast(fast::Resizer::new(), Vec::new()),
        };
        Ok(Squeeze { crop: *crop, width, height, how, middle: Vec::new(), done: 0 })
    }

    /// What will be held at a time.
    pub fn bytes(&self) -> usize {
        let band = if matches!(self.how, How::Fast(..)) { BAND.min(self.crop.height) } else { 0 };
        3 * (self.crop.height * self.width + self.width * self.height + band * self.crop.width)
    }

    /// Takes row `y` of the whole picture; they come from top to bottom.
    pub fn row(&mut self, y: usize, row: &[u8]) -> Result<()> {
        let Crop { top, left, height, width, .. } = self.crop;
        if y < top || y >= top + height {
            return Ok(());
        }
        let part = &row[left * 3..(left + width) * 3];
        if self.middle.is_empty() {
            self.middle.resize(height * self.width * 3, 0);
        }
        let to = self.done * self.width * 3;
        match &mut self.how {
            _ if width == self.width => {
                self.middle[to..to + width * 3].copy_from_slice(part);
                self.done += 1;
            }
            How::Exact(taps) => {
                along_row(part, taps, &mut self.middle[to..to + self.width * 3]);
                self.done += 1;
            }
            How::Fast(resizer, band) => {
                band.extend_from_slice(part);
                let rows = band.len() / (width * 3);
                if rows == BAND || self.done + rows == height {
                    let out = &mut self.middle[to..to + rows * self.width * 3];
                    quick(resizer, band, (width, rows), out, (self.width, rows))?;
                    band.clear();
                    self.done += rows;
                }
            }
        }
        Ok(())
    }

    /// Along columns, when all rows were given.
    pub fn finish(self) -> Result<Picture> {
        let Squeeze { crop, width, height, how, mut middle, done } = self;
        if done != crop.height {
            return Err(Error::argument(OPERATION, "rows", crop.height, done));
        }
        let mut rgb = match how {
            _ if crop.height == height => middle,
            How::Exact(_) => {
                let taps = Taps::new(crop.height, height);
                let mut rgb = vec![0; height * width * 3];
                let mut sums = vec![0; width * 3];
                for (y, out) in rgb.chunks_exact_mut(width * 3).enumerate() {
                    let (first, weights) = taps.of(y);
                    along_columns(&middle[first * width * 3..], weights, &mut sums, out);
                }
                rgb
            }
            How::Fast(mut resizer, _) => {
                let mut rgb = vec![0; height * width * 3];
                quick(&mut resizer, &mut middle, (width, crop.height), &mut rgb, (width, height))?;
                rgb
            }
        };
        if crop.flip {
            for row in rgb.chunks_exact_mut(width * 3) {
                row.as_chunks_mut::<3>().0.reverse();
            }
        }
        Ok(Picture { width, height, rgb })
    }
}

/// One direction of the fast way: in two calls, so that rows come first here too. Its images all have one type here: the
/// crate is generic over pixels and views, and every combination is compiled anew.
fn quick(
    resizer: &mut fast::Resizer,
    from: &mut [u8],
    from_size: (usize, usize),
    to: &mut [u8],
    to_size: (usize, usize),
) -> Result<()> {
    let failed = |e: String| Error::argument(OPERATION, "picture", "one that can be resized", e);
    let from = view(from, from_size).map_err(failed)?;
    let mut to = view(to, to_size).map_err(failed)?;
    let filter = fast::ResizeAlg::Convolution(fast::FilterType::CatmullRom); // a = -1/2
    let options = fast::ResizeOptions::new().resize_alg(filter).use_alpha(false);
    resizer.resize_typed(&from, &mut to, &options).map_err(|e| failed(e.to_string()))
}

/// For every output position the input positions it is made of, and their integer weights.
struct Taps {
    /// First input position, and how many.
    spans: Vec<(usize, usize)>,
    /// `[out, stride]`
    weights: Vec<i32>,
    stride: usize,
}

impl Taps {
    fn new(input: usize, output: usize) -> Taps {
        let scale = input as f64 / output as f64;
        let spread = scale.max(1.0);
        let support = 2.0 * spread;
        let stride = support.ceil() as usize * 2 + 1;
        let mut taps = Taps { spans: Vec::with_capacity(output), weights: vec![0; output * stride], stride };
        for (x, row) in taps.weights.chunks_exact_mut(stride).enumerate() {
            let center = (x as f64 + 0.5) * scale;
            let first = ((center - support + 0.5) as i64).max(0);
            let end = ((center + support + 0.5) as i64).min(input as i64);
            let narrow = 1.0 / spread;
            let raw: Vec<f64> = (first..end).map(|i| bicubic((i as f64 - center + 0.5) * narrow)).collect();
            let sum: f64 = raw.iter().sum();
            for (w, &r) in row.iter_mut().zip(&raw) {
                let share = if sum == 0.0 { r } else { r / sum };
                // Half away from zero, then the fraction cut off.
                *w = (share * f64::from(1 << BITS) + 0.5f64.copysign(share)) as i32;
            }
            taps.spans.push((first as usize, raw.len()));
        }
        taps
    }

    fn of(&self, x: usize) -> (usize, &[i32]) {
        let (first, count) = self.spans[x];
        (first, &self.weights[x * self.stride..x * self.stride + count])
    }
}

fn bicubic(t: f64) -> f64 {
    const A: f64 = -0.5;
    let t = t.abs();
    if t < 1.0 {
        ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0
    } else if t < 2.0 {
        (((t - 5.0) * t + 8.0) * t - 4.0) * A
    } else {
        0.0
    }
}

/// One row of pixels to one row of the new width.
fn along_row(row: &[u8], taps: &Taps, out: &mut [u8]) {
    let pixels = row.as_chunks::<3>().0;
    for (x, out) in out.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        let (first, weights) = taps.of(x);
        let (mut r, mut g, mut b) = (HALF, HALF, HALF);
        for (p, &w) in pixels[first..first + weights.len()].iter().zip(weights) {
            r += i32::from(p[0]) * w;
            g += i32::from(p[1]) * w;
            b += i32::from(p[2]) * w;
        }
        *out = [clip8(r), clip8(g), clip8(b)];
    }
}

/// One new row out of the rows that start at `rows`, a weight each.
fn along_columns(rows: &[u8], weights: &[i32], sums: &mut [i32], out: &mut [u8]) {
    sums.fill(HALF);
    for (row, &w) in rows.chunks_exact(out.len()).zip(weights) {
        for (sum, &v) in sums.iter_mut().zip(row) {
            *sum += i32::from(v) * w;
        }
    }
    for (out, &sum) in out.iter_mut().zip(&*sums) {
        *out = clip8(sum);
    }
}

const HALF: i32 = 1 << (BITS - 1);

fn clip8(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

fn view(rgb: &mut [u8], (width, height): (usize, usize)) -> Result<TypedImage<'_, U8x3>, String> {
    let size = |n: usize| u32::try_from(n).map_err(|e| e.to_string());
    TypedImage::from_buffer(size(width)?, size(height)?, rgb).map_err(|e| e.to_string())
}
