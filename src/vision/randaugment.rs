//! LAVIS's RandAugment: operations on 8-bit RGB, equal to OpenCV 4.5 to the byte, and which of them a picture gets.
//!
//! Of `operations` as many as `count` are drawn (one may come twice), each is applied with probability 1/2, all at the same
//! level of 10:   brightness, sharpness: factor 0.18 level + 0.1;   shear: 0.03 level;   translation: level pixels;
//! rotation: 3 level degrees - the last three in a direction that is drawn. LAVIS's level is 5, where both factors are 1 and
//! change nothing.
//!
//! Moved pictures are `cv::warpAffine`'s: positions of 1/32 pixel by whole numbers of 1/1024, weights of 1/1024, grey
//! (128, 128, 128) beyond the edge. Only what LAVIS's `blip_image_train` names is here.

use super::Picture;

const FILL: i32 = 128;

/// One of LAVIS's operations, by its name there.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Identity,
    AutoContrast,
    Brightness,
    Sharpness,
    Equalize,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
}

impl Operation {
    /// All that `blip_image_train` draws from, in its order.
    pub const ALL: [Operation; 10] = [
        Operation::Identity,
        Operation::AutoContrast,
        Operation::Brightness,
        Operation::Sharpness,
        Operation::Equalize,
        Operation::ShearX,
        Operation::ShearY,
        Operation::TranslateX,
        Operation::TranslateY,
        Operation::Rotate,
    ];

    /// As torchvision and LAVIS call it.
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// What a level of 10 means to this operation, before a direction is drawn.
    fn magnitude(self, level: f64) -> f64 {
        let share = level / 10.0;
        match self {
            Operation::Brightness | Operation::Sharpness => share * 1.8 + 0.1,
            Operation::ShearX | Operation::ShearY => share * 0.3,
            Operation::TranslateX | Operation::TranslateY => share * 10.0,
            Operation::Rotate => share * 30.0,
            Operation::Identity | Operation::AutoContrast | Operation::Equalize => 0.0,
        }
    }

    fn has_direction(self) -> bool {
        use Operation::*;
        matches!(self, ShearX | ShearY | TranslateX | TranslateY | Rotate)
    }

    /// Changes a picture; `magnitude` is a factor, a shear, pixels or degrees.
    pub fn apply(self, picture: &mut Picture, magnitude: f64) {
        let shift = f64::from(magnitude as f32);
        match self {
            Operation::Identity => {}
            Operation::AutoContrast => each_channel(picture, stretched),
            Operation::Equalize => each_channel(picture, equalized),
            Operation::Brightness => {
                let factor = magnitude as f32;
                each_channel(picture, |_| {
                    std::array::from_fn(|v| (v as f32 * factor).clamp(0.0, 255.0) as u8)
                });
            }
            Operation::Sharpness => sharpen(picture, magnitude),
            Operation::ShearX => warp(picture, [1.0, shift, 0.0, 0.0, 1.0, 0.0]),
            Operation::ShearY => warp(picture, [1.0, 0.0, 0.0, shift, 1.0, 0.0]),
            Operation::TranslateX => warp(picture, [1.0, 0.0, -shift, 0.0, 1.0, 0.0]),
            Operation::TranslateY => warp(picture, [1.0, 0.0, 0.0, 0.0, 1.0, -shift]),
            Operation::Rotate => {
                let (x, y) = (picture.width as f32 / 2.0, picture.height as f32 / 2.0);
                let (sin, cos) = magnitude.to_radians().sin_cos();
                let (x, y) = (f64::from(x), f64::from(y));
                warp(picture, [cos, sin, (1.0 - cos) * x - sin * y, -sin, cos, sin * x + (1.0 - cos) * y]);
            }
        }
    }
}

/// How many operations of which level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandAugment {
    /// Operations of a picture.
    pub count: usize,
    /// 0 to 10.
    pub level: f64,
}

impl Default for RandAugment {
    /// LAVIS's `blip_image_train`.
    fn default() -> Self {
        RandAugment { count: 2, level: 5.0 }
    }
}

impl RandAugment {
    /// Draws operations and changes a picture; `random` gives numbers in [0, 1), three for each operation.
    pub fn apply(&self, picture: &mut Picture, mut random: impl FnMut() -> f64) {
        for _ in 0..self.count {
            let [which, whether, direction] = [random(), random(), random()];
            let all = Operation::ALL;
            let operation = all[((which * all.len() as f64) as usize).min(all.len() - 1)];
            if whether < 0.5 {
                let magnitude = operation.magnitude(self.level);
                let back = operation.has_direction() && direction < 0.5;
                operation.apply(picture, if back { -magnitude } else { magnitude });
            }
        }
    }
}

/// A table for each channel, made from how often each value occurs in it.
fn each_channel(picture: &mut Picture, table: impl Fn(&[u32; 256]) -> [u8; 256]) {
    for c in 0..3 {
        let mut counts = [0u32; 256];
        picture.rgb.iter().skip(c).step_by(3).for_each(|v| counts[usize::from(*v)] += 1);
        let table = table(&counts);
        picture.rgb.iter_mut().skip(c).step_by(3).for_each(|v| *v = table[usize::from(*v)]);
    }
}

/// From the lowest value that occurs to the highest, to 0..255.
fn stretched(counts: &[u32; 256]) -> [u8; 256] {
    let low = counts.iter().position(|n| *n > 0).unwrap_or(0);
    let high = counts.iter().rposition(|n| *n > 0).unwrap_or(0);
    if high <= low {
        return std::array::from_fn(|v| v as u8);
    }
    let scale = 255.0 / (high - low) as f64;
    let offset = -(low as f64) * scale;
    std::array::from_fn(|v| (v as f64 * scale + offset).clamp(0.0, 255.0) as u8)
}

/// Pillow's way: a value becomes the number of pixels below it, in steps of 1/255 of all but those of the highest value. LAVIS
/// computes it in f32.
fn equalized(counts: &[u32; 256]) -> [u8; 256] {
    let highest = counts.iter().rposition(|n| *n > 0).unwrap_or(0);
    let below: u32 = counts[..highest].iter().sum();
    let step = (below as f32 / 255.0).floor();
    if step == 0.0 {
        return std::array::from_fn(|v| v as u8);
    }
    let mut sum = (step / 2.0).floor();
    std::array::from_fn(|v| {
        if v > 0 {
            sum += counts[v - 1] as f32;
        }
        (sum / step).floor().clamp(0.0, 255.0) as u8
    })
}

/// Away from a picture smoothed by 3 x 3 (1, the middle 5, of 13), inside the edge; what leaves 0..255 wraps, as in NumPy.
fn sharpen(picture: &mut Picture, factor: f64) {
    if factor == 1.0 {
        return;
    }
    let (width, height, from) = (picture.width, picture.height, picture.rgb.clone());
    // OpenCV's reflection at the edge: -1 is 1.
    let mirrored = |at: isize, size: usize| match at {
        _ if size == 1 => 0,
        -1 => 1,
        at if at as usize == size => size - 2,
        at => at as usize,
    };
    for (y, row) in picture.rgb.chunks_exact_mut(width * 3).enumerate() {
        for (i, out) in row.iter_mut().enumerate() {
            let (x, c) = (i / 3, i % 3);
            let edge = x == 0 || y == 0 || x + 1 == width || y + 1 == height;
            if edge && factor != 0.0 {
                continue;
            }
            let mut sum = 4 * u32::from(*out);
            for dy in -1..=1 {
                let line = mirrored(y as isize + dy, height) * width;
                for dx in -1..=1 {
                    sum += u32::from(from[(line + mirrored(x as isize + dx, width)) * 3 + c]);
                }
            }
            let smooth = (2 * sum + 13) / 26; // to nearest; 13 is odd, so there is no middle
            *out = if factor == 0.0 {
                smooth as u8
            } else {
                let smooth = smooth as f32;
                (smooth + factor as f32 * (f32::from(*out) - smooth)) as i32 as u8
            };
        }
    }
}

/// `cv::warpAffine` with bilinear interpolation and a constant border, `m` from the old picture to the new one.
fn warp(picture: &mut Picture, m: [f64; 6]) {
    let (width, height, from) = (picture.width, picture.height, picture.rgb.clone());
    let determinant = m[0] * m[4] - m[1] * m[3];
    let d = if determinant == 0.0 { 0.0 } else { 1.0 / determinant };
    let (a, b, c, e) = (m[4] * d, m[1] * -d, m[3] * -d, m[0] * d);
    let (left, top) = (-a * m[2] - b * m[5], -c * m[2] - e * m[5]);
    let whole = |v: f64| (v * 1024.0).round_ties_even() as i32;
    let pixel = |x: i32, y: i32| -> Option<&[u8]> {
        let (x, y) = (usize::try_from(x).ok()?, usize::try_from(y).ok()?);
        (x < width && y < height).then(|| &from[(y * width + x) * 3..][..3])
    };
    for (y, row) in picture.rgb.chunks_exact_mut(width * 3).enumerate() {
        let (x0, y0) = (whole(b * y as f64 + left) + 16, whole(e * y as f64 + top) + 16);
        for (x, out) in row.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let (at_x, at_y) = ((x0 + whole(a * x as f64)) >> 5, (y0 + whole(c * x as f64)) >> 5);
            let (sx, sy, fx, fy) = (at_x >> 5, at_y >> 5, at_x & 31, at_y & 31);
            let four = [pixel(sx, sy), pixel(sx + 1, sy), pixel(sx, sy + 1), pixel(sx + 1, sy + 1)];
            let weights = [(32 - fx) * (32 - fy), fx * (32 - fy), (32 - fx) * fy, fx * fy];
            for (channel, v) in out.iter_mut().enumerate() {
                let value = |p: Option<&[u8]>| p.map_or(FILL, |p| i32::from(p[channel]));
                let sum: i32 = four.iter().zip(weights).map(|(p, w)| value(*p) * w).sum();
                *v = ((sum + 512) >> 10) as u8;
            }
        }
    }
}
