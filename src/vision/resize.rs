//! Pillow's bicubic resize, to the byte.
//!
//!   out[x] = clip8((2^21 + sum_i in[first + i] * w[x, i]) >> 22),   w = integers of 22 fractional bits
//!   w[x, i] ~ f((first + i + 1/2 - center) / s),  center = (x + 1/2) * in/out,  s = max(in/out, 1), summing to 1
//!   f(t) = 3/2 t^3 - 5/2 t^2 + 1 for t < 1,  -1/2 t^3 + 5/2 t^2 - 4t + 2 for t < 2,  else 0     (a = -1/2)
//!
//! Along rows first, then along columns, as Pillow 11 does for every shape; 8 bits are kept in between. The crop is cut
//! out first: nothing outside it is ever looked at. `Fast` is the same filter with coarser weights, within 2/255.
//! Numerics: sum |w| < 1.4 * 2^22, so sums stay below 2^31.

use super::{Crop, MAX_PIXELS, MAX_SIDE, Picture, check_pixels};
use crate::{Error, Result};
use fast_image_resize::{self as fast, images::TypedImage, pixels::U8x3};

const OPERATION: &str = "resize picture";
const BITS: u32 = 22;

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
    check(picture, crop, width, height)?;
    let mut rgb = match how {
        Resampling::Exact => exact(picture, crop, width, height),
        Resampling::Fast => quick(picture, crop, width, height)
            .map_err(|e| Error::argument(OPERATION, "picture", "one that can be resized", e))?,
    };
    if crop.flip {
        for row in rgb.chunks_exact_mut(width * 3) {
            row.as_chunks_mut::<3>().0.reverse();
        }
    }
    Ok(Picture { width, height, rgb })
}

fn check(picture: &Picture, crop: &Crop, width: usize, height: usize) -> Result<()> {
    check_pixels(OPERATION, picture.width, picture.height, &picture.rgb)?;
    let within = |start: usize, length: usize, size: usize| {
        length > 0 && start.checked_add(length).is_some_and(|end| end <= size)
    };
    if !within(crop.top, crop.height, picture.height) || !within(crop.left, crop.width, picture.width) {
        let inside = format!("a box inside {} x {} pixels", picture.width, picture.height);
        return Err(Error::argument(OPERATION, "crop", inside, format!("{crop:?}")));
    }
    if width == 0 || height == 0 || width > MAX_SIDE || height > MAX_SIDE || width * height > MAX_PIXELS {
        let expected = format!("sides of 1 to {MAX_SIDE}, at most {MAX_PIXELS} pixels");
        return Err(Error::argument(OPERATION, "size", expected, format!("{width} x {height}")));
    }
    Ok(())
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

fn exact(picture: &Picture, crop: &Crop, width: usize, height: usize) -> Vec<u8> {
    let rows = picture.rgb.chunks_exact(picture.width * 3).skip(crop.top).take(crop.height);
    let rows = rows.map(|row| &row[crop.left * 3..(crop.left + crop.width) * 3]);
    let taps = Taps::new(crop.width, width);
    let mut middle = vec![0; crop.height * width * 3]; // [crop.height, width, 3]
    for (row, out) in rows.zip(middle.chunks_exact_mut(width * 3)) {
        if crop.width == width { out.copy_from_slice(row) } else { along_row(row, &taps, out) }
    }
    if crop.height == height {
        return middle;
    }
    let taps = Taps::new(crop.height, height);
    let mut rgb = vec![0; height * width * 3];
    let mut sums = vec![0; width * 3];
    for (y, out) in rgb.chunks_exact_mut(width * 3).enumerate() {
        let (first, weights) = taps.of(y);
        along_columns(&middle[first * width * 3..], weights, &mut sums, out);
    }
    rgb
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

/// `fast_image_resize` in two calls, so that rows come first here too. Its images all have one type here: the crate is
/// generic over pixels and views, and every combination is compiled anew.
fn quick(picture: &Picture, crop: &Crop, width: usize, height: usize) -> Result<Vec<u8>, String> {
    let mut part = Vec::with_capacity(crop.width * crop.height * 3);
    for y in crop.top..crop.top + crop.height {
        let at = (y * picture.width + crop.left) * 3;
        part.extend_from_slice(&picture.rgb[at..at + crop.width * 3]);
    }
    let mut middle = vec![0; width * crop.height * 3];
    let mut out = vec![0; width * height * 3];
    let part = view(&mut part, crop.width, crop.height)?;
    let mut rows = view(&mut middle, width, crop.height)?;
    let filter = fast::ResizeAlg::Convolution(fast::FilterType::CatmullRom); // a = -1/2
    let options = fast::ResizeOptions::new().resize_alg(filter).use_alpha(false);
    let mut resizer = fast::Resizer::new();
    resizer.resize_typed(&part, &mut rows, &options).map_err(|e| e.to_string())?;
    let mut both = view(&mut out, width, height)?;
    resizer.resize_typed(&rows, &mut both, &options).map_err(|e| e.to_string())?;
    Ok(out)
}

fn view(rgb: &mut [u8], width: usize, height: usize) -> Result<TypedImage<'_, U8x3>, String> {
    let size = |n: usize| u32::try_from(n).map_err(|e| e.to_string());
    TypedImage::from_buffer(size(width)?, size(height)?, rgb).map_err(|e| e.to_string())
}
