//! The best pictures of an index for a query, by `itc`, exactly, without reading all features in 32 bits.
//!
//! Every picture is compared in 16 bits: s~ = mean over the query's rows b of max over the picture's rows h of h . b, where h is the
//! picture's row a rounded to f16. How far s~ may be from the score s in 32 bits is bounded (E numbers in a row, T rows of the query,
//! norms at most A and B, u = 2^-24, g(n) = n u / (1 - n u)):
//!
//!   rounding    |h_e - a_e| <= 2^-11 |a_e| + 2^-25, so by Cauchy and Schwarz |h . b - a . b| <= 2^-11 A B + 2^-25 sqrt(E) B
//!   sums        in f32, in any order, with or without fused products: at most g(E) A B (1 + 2^-11) in each of the two
//!   max, mean   the largest of numbers moves no farther than they do; the mean of T adds g(T + 1) A B in each
//!
//! eps is the sum of these. If tau is the n-th largest s~, the n pictures that reach it have s >= tau - eps, so every picture among the n
//! best by s has s~ >= tau - 2 eps. Those are scored again from 32 bits, each alone, and sorted: the order is that of s.

use super::index::{Halves, Index};
use crate::device::cpu::simd;
use crate::model::Model;
use crate::tensor::Tensor;
use crate::{Error, Result};
use rayon::prelude::*;

/// Pictures of a piece of work.
const PIECE: usize = 64;
/// Partial sums of a product.
const LANES: usize = 16;

/// A picture of the index and its score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// Its place in the index.
    pub picture: usize,
    /// The largest cosine of its queries.
    pub itc: f32,
}

/// Score in 16 bits, part, row there, place of the picture.
type Near = (f32, u32, usize, usize);

/// The `wanted` best pictures for the rows of a query `[T,E]`, best first, equals in the order of the index.
pub fn best(model: &Model, index: &Index, rows: &Tensor, wanted: usize) -> Result<Vec<Scored>> {
    let (count, width) = rows.rows();
    let queries = model.config.num_query;
    if width != model.config.embed_dim || count == 0 {
        let want = format!("rows of {}", model.config.embed_dim);
        return Err(Error::argument("search", "query", want, rows.shape()));
    }
    let numbers = rows.to_f32()?;
    let mut near: Vec<Near> = Vec::with_capacity(index.len());
    let mut norm: f64 = 0.0;
    for (number, pictures) in index.places() {
        let of_rows = match index.halves(number)? {
            Some(halves) => {
                norm = norm.max(halves.norm);
                compare(&halves, &numbers, width, queries)
            }
            None => {
                let features = index.part(number)?.features;
                norm = norm.max(largest_norm(&features, width));
                let height = features.len() / width;
                let features = Tensor::new(features, &[height, width])?;
                means(&model.itc_scores(&features, rows)?.to_f32()?, count)
            }
        };
        near.extend(
            pictures.iter().filter_map(|(row, picture)| Some((*of_rows.get(*row)?, number, *row, *picture))),
        );
    }
    let eps = bound(norm, largest_norm(&numbers, width), width, count);
    let kept = candidates(&mut near, wanted, eps);
    let mut found = Vec::with_capacity(kept.len());
    for (_, number, row, picture) in kept {
        let features = index.row(number, row)?;
        let features = Tensor::new(features, &[queries, width])?;
        let itc = means(&model.itc_scores(&features, rows)?.to_f32()?, count);
        found.push(Scored { picture, itc: itc.first().copied().unwrap_or(f32::NAN) });
    }
    found.sort_by(|a, b| b.itc.total_cmp(&a.itc).then(a.picture.cmp(&b.picture)));
    found.truncate(wanted);
    Ok(found)
}

/// The mean of each picture's scores [R,T].
fn means(scores: &[f32], count: usize) -> Vec<f32> {
    scores.chunks(count).map(|s| s.iter().sum::<f32>() / count as f32).collect()
}

fn largest_norm(rows: &[f32], width: usize) -> f64 {
    let square = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    rows.par_chunks(width).map(square).reduce(|| 0.0, f64::max).sqrt()
}

/// The bound of the header. `stored` is the largest norm of rows in 16 bits, or in 32: that of the rows before rounding is at most
/// (stored + 2^-25 sqrt(E)) / (1 - 2^-11).
fn bound(stored: f64, query: f64, width: usize, count: usize) -> f64 {
    let (half, tiny, u) = (2f64.powi(-11), 2f64.powi(-25), 2f64.powi(-24));
    let g = |n: usize| n as f64 * u / (1.0 - n as f64 * u);
    let root = (width as f64).sqrt();
    let a = (stored + tiny * root) / (1.0 - half);
    half * a * query + tiny * root * query + 2.0 * (g(width) * (1.0 + half) + g(count + 1)) * a * query
}

/// Those that may be among the best: within twice the bound of the last of them.
fn candidates(near: &mut [Near], wanted: usize, eps: f64) -> Vec<Near> {
    if wanted == 0 || near.is_empty() {
        return Vec::new();
    }
    let last = wanted.min(near.len()) - 1;
    let (_, (tau, ..), _) = near.select_nth_unstable_by(last, |a, b| b.0.total_cmp(&a.0));
    let least = f64::from(*tau) - 2.0 * eps;
    near.iter().filter(|n| f64::from(n.0) >= least).copied().collect()
}

/// The score of every picture of a part in 16 bits.
fn compare(halves: &Halves, query: &[f32], width: usize, queries: usize) -> Vec<f32> {
    let mut scores = vec![0f32; halves.rows];
    scores.par_chunks_mut(PIECE).enumerate().for_each(|(i, out)| {
        compare_some(halves.of(i * PIECE..i * PIECE + out.len()), query, (width, width * queries), out);
    });
    scores
}

/// The scores of some pictures.
fn compare_some(halves: &[[u8; 2]], query: &[f32], (width, size): (usize, usize), out: &mut [f32]) {
    let count = query.len() / width;
    simd(
        #[inline(always)]
        || {
            let mut row = vec![0f32; size];
            for (out, picture) in out.iter_mut().zip(halves.chunks_exact(size)) {
                if count == 1 {
                    *out = picture.chunks_exact(width).map(|h| dot_half(h, query)).fold(f32::MIN, f32::max);
                    continue;
                }
                row.iter_mut().zip(picture).for_each(|(to, h)| *to = widen(*h));
                let largest = |b: &[f32]| row.chunks_exact(width).map(|a| dot(a, b)).fold(f32::MIN, f32::max);
                *out = query.chunks_exact(width).map(largest).sum::<f32>() / count as f32;
            }
        },
    );
}

/// A finite f16 as f32, exactly: sign, exponent and fraction move to where f32 has them, and the exponent is 112 lower there.
#[inline(always)]
fn widen(h: [u8; 2]) -> f32 {
    let bits = ((i32::from(i16::from_le_bytes(h)) << 13) as u32) & 0x8fff_e000;
    f32::from_bits(bits) * f32::from_bits((127 + 112) << 23)
}

#[inline(always)]
fn dot_half(h: &[[u8; 2]], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    for (h, b) in h.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for i in 0..LANES {
            sums[i] += widen(h[i]) * b[i];
        }
    }
    let rest = h.len() / LANES * LANES;
    let rest = h[rest..].iter().zip(&b[rest..]).map(|(h, b)| widen(*h) * b).sum::<f32>();
    sums.iter().sum::<f32>() + rest
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    let rest = a.len() / LANES * LANES;
    sums.iter().sum::<f32>() + a[rest..].iter().zip(&b[rest..]).map(|(a, b)| a * b).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;
    use half::slice::HalfFloatSliceExt;

    #[test]
    fn every_finite_half_widens_exactly() {
        for h in (0..=u16::MAX).filter(|h| f16::from_bits(*h).is_finite()) {
            assert_eq!(widen(h.to_le_bytes()).to_bits(), f16::from_bits(h).to_f32().to_bits(), "{h:04x}");
        }
    }

    /// A row [E] of numbers between -1 and 1, of a generator of its own; normalised unless told otherwise.
    fn row(seed: u64, width: usize, scale: f32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let row: Vec<f32> = (0..width).map(|_| next()).collect();
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        row.into_iter().map(|x| x / norm * scale).collect()
    }

    /// Scores in 16 bits stay within the bound of those in f64, and the candidates hold all of the best, on pictures so alike that
    /// rounding does change their order.
    #[test]
    fn the_bound_holds_and_the_best_are_among_the_candidates() {
        for (width, queries, count, scale, spread) in
            [(64, 4, 1, 1.0, 1e-4), (40, 3, 5, 1.0, 3e-4), (16, 1, 1, 1e-6, 1e-3), (256, 8, 2, 1.0, 1e-5)]
        {
            let pictures = 600;
            let centre: Vec<f32> = (0..queries).flat_map(|q| row(90 + q, width, scale)).collect();
            let features: Vec<f32> = (0..pictures)
                .flat_map(|i| {
                    let own: Vec<f32> = (0..queries)
                        .flat_map(|q| row(1000 + i * queries + q, width, scale * spread))
                        .collect();
                    centre.iter().zip(own).map(|(c, o)| c + o).collect::<Vec<_>>()
                })
                .collect();
            let query: Vec<f32> = (0..count).flat_map(|t| row(7 + t, width, 1.0)).collect();
            let mut halves = vec![f16::ZERO; features.len()];
            halves.convert_from_f32_slice(&features);
            let bits: Vec<[u8; 2]> = halves.iter().map(|h| h.to_le_bytes()).collect();
            let size = width * queries as usize;
            let mut near = vec![0f32; pictures as usize];
            compare_some(&bits, &query, (width, size), &mut near);
            let exact: Vec<f64> = features
                .chunks(size)
                .map(|picture| {
                    let largest = |b: &[f32]| {
                        let product =
                            |a: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
                        picture.chunks(width).map(product).fold(f64::MIN, f64::max)
                    };
                    query.chunks(width).map(largest).sum::<f64>() / f64::from(count as u32)
                })
                .collect();
            let wide: Vec<f32> = halves.iter().map(|h| h.to_f32()).collect();
            let eps = bound(largest_norm(&wide, width), largest_norm(&query, width), width, count as usize);
            let worst = near.iter().zip(&exact).map(|(n, e)| (f64::from(*n) - e).abs()).fold(0.0, f64::max);
            assert!(worst <= eps, "{worst} above {eps}");
            assert!(eps < 6e-4, "of rows of norm 1 the bound is near 2^-11, not {eps}");
            let mut order: Vec<usize> = (0..pictures as usize).collect();
            order.sort_by(|a, b| exact[*b].total_cmp(&exact[*a]));
            let mut rounded = order.clone();
            rounded.sort_by(|a, b| near[*b].total_cmp(&near[*a]));
            let mut all: Vec<Near> = near.iter().enumerate().map(|(i, s)| (*s, 0, i, i)).collect();
            let kept: Vec<usize> = candidates(&mut all, 10, eps).iter().map(|c| c.3).collect();
            assert!(order[..10].iter().all(|best| kept.contains(best)), "{width}");
            if spread < 1e-3 {
                assert_ne!(order[..10], rounded[..10], "the case does not tell the orders apart");
            }
        }
    }
}
