//! Batch-invariant dense layers of few rows, for decoding, where reading the weights is the cost.     x [R,K]   weight [N,K]   bias [N]   y [R,N]
//!   y = x weight^T + bias
//! Each row is summed in an order that does not depend on how many rows there are: an image's result is then the same bits
//! in any batch. Inference only.
//! A LayerNorm in front, x = LayerNorm(branch + stream), goes into the same kernel on a GPU where there is one tile of rows: every
//! block makes x again, with the bits of the norm's own kernel.

use super::{Cache, Normed, check_linear};
use crate::device::launch::Arg;
use crate::device::{cpu, gemm};
use crate::ops::check::{check_dtype, check_shape};
use crate::ops::gpu::{arrays, int, same_storage};
use crate::tensor::{Array, Real, Storage, Tensor, constant, constant_tensor};
use crate::{Error, Result, on};
use rayon::prelude::*;

const OP: &str = "linear";

/// Sizes of a layer: R, N, K.
type Sizes = (usize, usize, usize);

/// Rows of a tile, and the columns that a warp normalises.
const TILE: usize = 16;
const NORMED: usize = 768;

/// What a kernel normalises in front of a layer: LayerNorm(branch + stream), and where it goes.
pub(super) struct Before {
    branch: Array,
    stream: Option<Array>,
    affine: [Array; 2],
    eps: f32,
    /// The rows that the kernel writes.
    pub x: Tensor,
}

impl Before {
    /// None where the norm has a kernel of its own.
    pub(super) fn of(norm: &Normed) -> Result<Option<Before>> {
        let (r, k) = norm.branch.rows();
        let Some(branch) = norm.branch.array() else { return Ok(None) };
        let storage = branch.storage();
        let tracked = norm.branch.tracked() || norm.stream.is_some_and(Tensor::tracked);
        let same = norm.storage.is_none_or(|s| s == storage);
        if tracked || !same || !(1..=TILE).contains(&r) || k > NORMED {
            return Ok(None);
        }
        let Some(affine) = arrays(OP, [norm.branch, norm.weight, norm.bias])? else { return Ok(None) };
        let [_, weight, bias] = affine;
        for (name, array) in [("weight", &weight), ("bias", &bias)] {
            same_storage("layer_norm", name, array, Storage::F32)?;
        }
        let stream = norm.stream.map(|s| arrays(OP, [norm.branch, s])).transpose()?.flatten();
        let stream = stream.map(|[_, stream]| stream);
        if let Some(stream) = &stream {
            same_storage("layer_norm", "stream", stream, storage)?;
        }
        let x = Tensor::of_array(branch.gpu().array(OP, storage, r * k)?, norm.branch.shape().sizes())?;
        Ok(Some(Before { branch, stream, affine: [weight, bias], eps: norm.eps as f32, x }))
    }
}

/// A layer, or GELU of it, in one kernel; with `before`, whose rows x are, in the same.
pub(super) fn few_rows(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    gelu: bool,
    before: Option<&Before>,
) -> Result<Tensor> {
    let sizes = check_linear(x, weight, bias)?;
    let inputs = [x, weight, bias.unwrap_or(weight)];
    if let Some(arrays) = arrays(OP, inputs)? {
        let (r, n, _) = sizes;
        let [x, weight, b] = &arrays;
        let y = x.gpu().array(OP, x.storage(), r * n)?;
        launch(x, before, &[(weight, bias.map(|_| b), &y)], sizes, gelu)?;
        return constant_tensor(OP, &inputs, Tensor::of_array(y, &[r, n])?);
    }
    on!(x.dtype(), T => {
        let y = forward::<T>(x.data(), weight.data(), bias.map(Tensor::data), sizes);
        let y = if gelu { cpu::map(&y, cpu::gelu) } else { y };
        constant(OP, &inputs, y, &[sizes.0, sizes.1])
    })
}

/// Queries of the rows x, and their keys and values, which become rows of two caches. One kernel on a GPU.
pub(super) fn cached(
    x: &Tensor,
    layers: [[&Tensor; 2]; 3],
    cache: Cache,
    before: Option<&Before>,
) -> Result<Tensor> {
    let Cache { tensors: caches, at } = cache;
    let (r, n, k) = check_linear(x, layers[0][0], Some(layers[0][1]))?;
    for [weight, bias] in &layers[1..] {
        check_shape(OP, "weight", weight, &[n, k])?;
        check_linear(x, weight, Some(bias))?;
    }
    for cache in &caches {
        let (rows, columns) = cache.rows();
        check_dtype(OP, x, &[("cache", &**cache)])?;
        if columns != n || at + r > rows {
            return Err(Error::argument(OP, "cache", format!("[at least {}, {n}]", at + r), cache.shape()));
        }
    }
    let [[wq, bq], own @ ..] = layers;
    let [[wk, bk], [wv, bv]] = own;
    let inputs = [x, wq, bq, wk, bk, wv, bv];
    let [keys, values] = caches;
    if let Some([x2, wq, bq, wk, bk, wv, bv, all_keys, all_values]) =
        arrays(OP, [x, wq, bq, wk, bk, wv, bv, keys, values])?
    {
        let y = x2.gpu().array(OP, x2.storage(), r * n)?;
        let rows = at * n..(at + r) * n;
        let (keys, values) = (all_keys.part(rows.clone())?, all_values.part(rows)?);
        let parts = [(&wq, Some(&bq), &y), (&wk, Some(&bk), &keys), (&wv, Some(&bv), &values)];
        launch(&x2, before, &parts, (r, n, k), false)?;
        return constant_tensor(OP, &inputs, Tensor::of_array(y, &[r, n])?);
    }
    for ([weight, bias], cache) in own.into_iter().zip([keys, values]) {
        let y = few_rows(x, weight, Some(bias), false, None)?;
        on!(x.dtype(), T => match cache.data_mut::<T>() {
            Some(rows) => rows[at * n..][..r * n].copy_from_slice(y.data()),
            None => return Err(Error::argument(OP, "cache", "one that nobody shares", "a shared one")),
        });
    }
    few_rows(x, wq, Some(bq), false, None)
}

/// (weight, bias, y) of up to three layers of the same x.
fn launch(
    x: &Array,
    before: Option<&Before>,
    parts: &[(&Array, Option<&Array>, &Array)],
    (r, n, k): Sizes,
    gelu: bool,
) -> Result<()> {
    let mut args = [Arg::NULL; 14];
    for (i, (weight, bias, y)) in parts.iter().enumerate() {
        same_storage(OP, "weight", weight, x.storage())?;
        same_storage(OP, "cache", y, x.storage())?;
        if let Some(bias) = bias {
            same_storage(OP, "bias", bias, x.storage())?;
        }
        (args[i], args[3 + i], args[6 + i]) = ((*weight).into(), (*bias).into(), (*y).into());
    }
    let numbers = [r, n, k, parts.len(), usize::from(gelu)];
    args[9..].iter_mut().zip(numbers).for_each(|(arg, number)| *arg = int(number).into());
    let grid = (n.div_ceil(8), parts.len() * r.div_ceil(TILE));
    let storage = x.storage();
    let (kernel, rows, shared) = match before {
        None => (format!("linear_exact_{}", storage.name()), crate::args![x].to_vec(), 0),
        Some(Before { branch, stream, affine: [weight, bias], eps, .. }) => {
            let rows = crate::args![branch, stream.as_ref(), weight, bias, x, *eps].to_vec();
            let shared = u32::try_from(TILE * (NORMED + 8) * storage.bytes()).unwrap_or(u32::MAX);
            (format!("linear_exact_norm_{}", storage.name()), rows, shared)
        }
    };
    let threads = if k > 1536 { 384 } else { 256 };
    let args = [&rows[..], &args].concat();
    let flops = 2 * r * n * k * parts.len();
    // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
    unsafe { x.gpu().multiply(&kernel, grid, ((threads, 1), shared), flops, &args) }
}

/// Output columns a task computes for all rows, so that a weight row is read from memory once.
const COLUMNS: usize = 64;

fn forward<T: Real>(x: &[T], w: &[T], b: Option<&[T]>, (r, n, k): Sizes) -> Vec<T> {
    gemm::count((r, n, k));
    let mut yt = vec![T::ZERO; n * r]; // [N,R]: a task's part is contiguous
    yt.par_chunks_mut(COLUMNS * r.max(1)).enumerate().for_each(|(c, part)| {
        cpu::simd(
            #[inline(always)]
            || {
                for (j, out) in part.chunks_exact_mut(r).enumerate() {
                    let col = c * COLUMNS + j;
                    let wj = &w[col * k..(col + 1) * k];
                    let bias = b.map_or(T::ZERO, |b| b[col]);
                    for (i, o) in (0..r).step_by(4).zip(out.chunks_mut(4)) {
                        let x = &x[i * k..(i + o.len()) * k];
                        match o.len() {
                            4 => write_dots::<T, 4>(o, x, wj, bias),
                            3 => write_dots::<T, 3>(o, x, wj, bias),
                            2 => write_dots::<T, 2>(o, x, wj, bias),
                            _ => write_dots::<T, 1>(o, x, wj, bias),
                        }
                    }
                }
            },
        );
    });
    let mut y = vec![T::ZERO; r * n];
    cpu::each_row(&mut y, n, |i, row| {
        for (j, y) in row.iter_mut().enumerate() {
            *y = yt[j * r + i];
        }
    });
    y
}

/// out[i] = x_i w + bias for M rows x: the weights are read once for all of them.
#[inline(always)]
fn write_dots<T: Real, const M: usize>(out: &mut [T], x: &[T], w: &[T], bias: T) {
    let k = w.len();
    let rows = std::array::from_fn::<_, M, _>(
        #[inline(always)]
        |i| &x[i * k..(i + 1) * k],
    );
    for (o, d) in out.iter_mut().zip(dots(rows, w)) {
        *o = d + bias;
    }
}

/// The dot products of M rows with one, each summed in 32 lanes and then lane by lane in a fixed tree.
#[inline(always)]
fn dots<T: Real, const M: usize>(x: [&[T]; M], w: &[T]) -> [T; M] {
    const LANES: usize = 32;
    let mut acc = [[T::ZERO; LANES]; M];
    let whole = w.len() - w.len() % LANES;
    let mut at = 0;
    while at < whole {
        let wv = &w[at..at + LANES];
        for (a, x) in acc.iter_mut().zip(&x) {
            let xv = &x[at..at + LANES];
            for l in 0..LANES {
                a[l] = wv[l].mul_add(xv[l], a[l]);
            }
        }
        at += LANES;
    }
    let mut out = [T::ZERO; M];
    // A copy: lanes with an index that is not known would keep the sums above in memory, and them from being vectors.
    let mut sums = acc;
    for ((o, a), x) in out.iter_mut().zip(&mut sums).zip(&x) {
        for l in 0..w.len() - whole {
            a[l] = w[whole + l].mul_add(x[whole + l], a[l]);
        }
        let mut width = LANES / 2;
        while width > 0 {
            for l in 0..width {
                a[l] += a[l + width];
            }
            width /= 2;
        }
        *o = a[0];
    }
    out
}
