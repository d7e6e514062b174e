//! One negative for each row of similarities, drawn by its weight.     sim [n,n]   ids [n]   picks [n]
//!   without ids:  w[i,j] = softmax(sim[i])[j] + 1e-4,   w[i,i] = 0
//!   with ids:     sim is -10000 where ids are equal;   w = softmax(sim)
//!   pick[i] = the first j with w[i,0] + .. + w[i,j] > u_i sum(w[i]),   u_i: element i of a random stream
//! In f64 everywhere, so that all devices draw the same from the same similarities.

use super::gpu::{arrays, int};
use crate::device::cpu;
use crate::tensor::{Array, Storage, Stream, Tensor};
use crate::{Error, Kind, Result};

const OP: &str = "sample negatives";
/// The floor of a weight.
const FLOOR: f64 = 1e-4;
const SAME: f64 = -10000.0;

/// Which column each row of sim `[n,n]` is wrongly paired with, drawn from `stream`: by softmax of the row plus 1e-4 without
/// its own column; with `ids` (one per row and column), by softmax over the columns of other ids.
///
/// No gradient. An error where a row has nothing to draw from, or weights that are not finite.
///
/// Source: LAVIS, `Blip2Qformer.forward` (`torch.multinomial` draws there).
pub fn sample_negatives(sim: &Tensor, ids: Option<&[i64]>, stream: Stream) -> Result<Vec<u32>> {
    let [picked] = sample_all([sim], ids, [stream])?;
    Ok(picked)
}

/// [`sample_negatives`] of two matrices of the same ids, each by a stream of its own. A GPU is waited for once.
pub fn sample_negatives_twice(
    sims: [&Tensor; 2],
    ids: Option<&[i64]>,
    streams: [Stream; 2],
) -> Result<[Vec<u32>; 2]> {
    sample_all(sims, ids, streams)
}

fn sample_all<const N: usize>(
    sims: [&Tensor; N],
    ids: Option<&[i64]>,
    streams: [Stream; N],
) -> Result<[Vec<u32>; N]> {
    let picked = match arrays(OP, sims)? {
        Some(arrays) => on_gpu(&arrays, ids, streams)?,
        None => [const { None }; N],
    };
    let mut all = [const { Vec::new() }; N];
    for (((all, picked), sim), stream) in all.iter_mut().zip(picked).zip(sims).zip(streams) {
        let (n, computes) = (sim.rows().0, sim.array().is_none_or(|sim| sim.gpu().computes()));
        *all = match picked {
            Some(picked) => picked,
            None if !computes && n > 1 => evenly(n, stream),
            None => draw_rows(&negative_weights(sim, ids)?, n, stream)?,
        };
    }
    Ok(all)
}

/// A plan has no similarities: what equal ones would draw, in as many steps as there are rows.
fn evenly(n: usize, stream: Stream) -> Vec<u32> {
    let pick = |i: usize| {
        let other = ((stream.uniform(i as u64) * (n - 1) as f64) as usize).min(n - 2);
        (other + usize::from(other >= i)) as u32
    };
    (0..n).map(pick).collect()
}

/// None where a row has nothing to draw from - the loop below says why - and in a plan.
fn on_gpu<const N: usize>(
    sims: &[Array; N],
    ids: Option<&[i64]>,
    streams: [Stream; N],
) -> Result<[Option<Vec<u32>>; N]> {
    let mut found = [const { None }; N];
    let Some(gpu) = sims.first().map(|sim| sim.gpu().clone()) else { return Ok(found) };
    let ids = ids.map(|ids| gpu.upload(OP, Storage::I32, ids)).transpose()?;
    let mut drawn = Vec::with_capacity(N);
    for (sim, stream) in sims.iter().zip(streams) {
        let (array, n) = (sim.cast(OP, Storage::F32)?, sim.len().isqrt());
        let picked = gpu.array(OP, Storage::I32, n)?;
        let (seed, site, step) = (stream.seed, stream.site, stream.step);
        let args = crate::args![&array, ids.as_ref(), &picked, int(n), seed, site, step];
        // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
        unsafe { gpu.launch("sample_negatives_f32", (n, 1), (32, 1), 0, args) }?;
        drawn.push(picked);
    }
    // Indices are small enough for f32; -1 is where nothing can be drawn.
    for (found, picked) in found.iter_mut().zip(Array::read_together(&drawn)?) {
        let possible = gpu.computes() && picked.iter().all(|i| *i >= 0.0);
        *found = possible.then(|| picked.into_iter().map(|i| i as u32).collect());
    }
    Ok(found)
}

/// The weights of the draws `[n,n]`, row by row.
pub fn negative_weights(sim: &Tensor, ids: Option<&[i64]>) -> Result<Vec<f64>> {
    let n = sim.rows().0;
    let mut w = sim.to_f64()?;
    for (i, row) in w.chunks_mut(n.max(1)).enumerate() {
        if let Some(ids) = ids {
            for (x, _) in row.iter_mut().zip(ids).filter(|(_, id)| **id == ids[i]) {
                *x = SAME;
            }
        }
        cpu::simd(
            #[inline(always)]
            || {
                let top = cpu::max(row);
                let log_sum = cpu::sum(row.len(), |j| (row[j] - top).exp()).ln();
                row.iter_mut().for_each(|x| *x = (*x - top) - log_sum);
            },
        );
        for (j, x) in row.iter_mut().enumerate() {
            *x = match ids {
                Some(_) => x.exp(),
                None if i == j => 0.0,
                None => x.exp() + FLOOR,
            };
        }
    }
    Ok(w)
}

/// One index per row of n weights, by inverting their running sum.
fn draw_rows(weights: &[f64], n: usize, stream: Stream) -> Result<Vec<u32>> {
    let row = |(i, row): (usize, &[f64])| {
        let total: f64 = row.iter().sum();
        if !total.is_finite() {
            return Err(Error::new(Kind::NonFinite, "stage 1").expected("finite similarities").got(total));
        }
        if total == 0.0 {
            let got = "none to draw from";
            return Err(Error::argument("stage 1", "batch", "a negative for every caption", got)
                .fix("use a batch of at least 2 different images"));
        }
        let mut left = stream.uniform(i as u64) * total;
        let last = row.iter().rposition(|w| *w > 0.0).unwrap_or(0);
        let pick = row[..last].iter().position(|w| {
            left -= w;
            left < 0.0
        });
        Ok(pick.unwrap_or(last) as u32)
    };
    weights.chunks(n.max(1)).enumerate().map(row).collect()
}
