//! The position embedding of the image encoder for another number of patches, as LAVIS makes it.     [1,1+g*g,W] -> [1,1+s*s,W]
//!
//! The class token's row stays; the g x g grid is resized by PyTorch's bicubic interpolation without aligned corners and
//! without antialiasing: row y of s comes from x = (y + 1/2) g/s - 1/2, the four rows around it weighted by the cubic
//! kernel of a = -3/4, rows beyond the border being the border's.

/// `from` is [1 + g*g, width]; the result [1 + s*s, width]. None unless `from` is such a grid.
pub fn pos_embed(from: &[f32], width: usize, s: usize) -> Option<Vec<f32>> {
    let rows = from.len().checked_div(width).filter(|n| n * width == from.len())?;
    let g = rows.checked_sub(1)?.isqrt();
    if g == 0 || g * g + 1 != rows {
        return None;
    }
    let (class, grid) = from.split_at(width);
    let mut out = class.to_vec();
    if g == s {
        out.extend_from_slice(grid);
        return Some(out);
    }
    let taps: Vec<[(usize, f64); 4]> = (0..s).map(|y| taps(y, g, s)).collect();
    let mut sum = vec![0.0f64; width];
    for down in &taps {
        for across in &taps {
            sum.fill(0.0);
            for (row, wy) in down {
                for (column, wx) in across {
                    let cell = &grid[(row * g + column) * width..][..width];
                    for (s, x) in sum.iter_mut().zip(cell) {
                        *s += wy * wx * f64::from(*x);
                    }
                }
            }
            out.extend(sum.iter().map(|x| *x as f32));
        }
    }
    Some(out)
}

/// The four rows of g that row y of s is made of, and their weights.
fn taps(y: usize, g: usize, s: usize) -> [(usize, f64); 4] {
    let x = (y as f64 + 0.5) * g as f64 / s as f64 - 0.5;
    let t = x - x.floor();
    [-1.0, 0.0, 1.0, 2.0].map(|k| {
        let row = (x.floor() + k).clamp(0.0, g as f64 - 1.0);
        (row as usize, cubic((t - k).abs()))
    })
}

/// The cubic convolution kernel with a = -3/4.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.75;
    if x <= 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
    } else {
        0.0
    }
}
