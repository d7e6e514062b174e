//! The similarity of pictures and captions: the largest dot product over a picture's queries.
//!   a [A*Q,E] (Q rows a picture)   b [T,E]   y [A,T]
//!   y[i,j] = max_q a[i*Q+q] . b[j];     with q* the first largest: da[i*Q+q*] += dy[i,j] b[j],   db[j] += dy[i,j] a[i*Q+q*]
//!   Or q* is given [A,T]: then y[i,j] = a[i*Q+q*] . b[j].

use super::check::check_dtype;
use super::gpu::{arrays, gradient, int, same_storage};
use crate::device::{cpu, gemm::View, gemm::gemm};
use crate::tensor::{Array, Real, Storage, Tensor, record, record_tensor};
use crate::{Error, Result, on};

const OP: &str = "max_similarity";

/// The similarity of pictures and captions: the largest dot product over a picture's queries.
///
/// a `[A*Q,E]` (Q rows a picture), b `[T,E]`, y `[A,T]`: `y[i,j]` = max_q a[i*Q+q] . `b[j]`. With q* the first largest,
/// da[i*Q+q*] += `dy[i,j]` `b[j]` and `db[j]` += `dy[i,j]` a[i*Q+q*]. y is in f32 on a GPU. Errors: `q` that does not divide the rows,
/// other widths or dtypes.
///
/// Source: LAVIS, `Blip2Qformer.forward` (the similarities of the contrastive loss).
pub fn max_similarity(a: &Tensor, b: &Tensor, q: usize) -> Result<Tensor> {
    max_similarity_of(a, b, q, None)
}

/// Pictures, queries of each, captions, and the width of their features.
fn sizes(a: &Tensor, b: &Tensor, q: usize) -> Result<(usize, usize, usize, usize)> {
    let ((ra, e), (t, eb)) = (a.rows(), b.rows());
    if q == 0 || !ra.is_multiple_of(q) {
        return Err(Error::argument(OP, "q", format!("a divisor of {ra} rows"), q));
    }
    if e != eb {
        return Err(Error::argument(OP, "b", format!("{e} columns"), b.shape()));
    }
    check_dtype(OP, a, &[("b", b)])?;
    Ok((ra / q, q, t, e))
}

/// The query of every picture and caption whose dot product is the largest, the first of equals: `[A,T]`.
pub fn best_queries(a: &Tensor, b: &Tensor, q: usize) -> Result<Vec<u32>> {
    let sizes = sizes(a, b, q)?;
    if let Some(arrays) = arrays(OP, [a, b])? {
        let [_, best] = forward_on_gpu(&arrays, sizes, None)?;
        return Ok(best.read::<i32>()?.into_iter().map(|q| q.max(0) as u32).collect());
    }
    on!(a.dtype(), T => Ok(forward::<T>(a.data(), b.data(), sizes, None).1))
}

/// With the query of every picture and caption, if it is given.
pub fn max_similarity_of(a: &Tensor, b: &Tensor, q: usize, queries: Option<&[u32]>) -> Result<Tensor> {
    let sizes = sizes(a, b, q)?;
    let (n, _, t, e) = sizes;
    if let Some(given) = queries {
        let (all, wrong) = (n * t, given.iter().find(|g| **g as usize >= q));
        if given.len() != all || wrong.is_some() {
            let got = wrong.map_or(format!("{} of them", given.len()), |g| format!("query {g}"));
            return Err(Error::argument(OP, "queries", format!("{all} of them, each below {q}"), got));
        }
    }
    if let Some(arrays) = arrays(OP, [a, b])? {
        return on_gpu([a, b], arrays, sizes, queries);
    }
    on!(a.dtype(), T => {
        let (y, best) = forward::<T>(a.data(), b.data(), sizes, queries);
        let (a2, b2) = (a.detach(), b.detach());
        record(OP, [a, b], y, &[n, t], move |dy, grads| {
            let (dy, a, b) = (dy.data::<T>(), a2.data::<T>(), b2.data::<T>());
            grads.accumulate::<T>(0, |da, _| {
                cpu::each_row(da, q * e, |i, rows| {
                    for j in 0..t {
                        let to = &mut rows[best[i * t + j] as usize * e..][..e];
                        axpy(to, dy[i * t + j], &b[j * e..][..e]);
                    }
                });
                Ok(())
            })?;
            grads.accumulate::<T>(1, |db, _| {
                cpu::each_row(db, e, |j, row| {
                    for i in 0..n {
                        axpy(row, dy[i * t + j], &a[(i * q + best[i * t + j] as usize) * e..][..e]);
                    }
                });
                Ok(())
            })
        })
    })
}

/// The similarities, and which query each is of.
fn forward_on_gpu(
    [a, b]: &[Array; 2],
    (n, q, t, e): (usize, usize, usize, usize),
    queries: Option<&[u32]>,
) -> Result<[Array; 2]> {
    same_storage(OP, "b", b, a.storage())?;
    let gpu = a.gpu();
    let [y, best] = [gpu.array(OP, Storage::F32, n * t)?, gpu.array(OP, Storage::I32, n * t)?];
    let given = queries.map(|all| all.iter().map(|q| *q as i32).collect::<Vec<_>>());
    let given = given.map(|all| gpu.upload(OP, Storage::I32, &all)).transpose()?;
    let args = crate::args![a, b, given.as_ref(), &y, &best, int(q), int(t), int(e)];
    let name = format!("max_similarity_fwd_{}", a.storage().name());
    // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
    unsafe { gpu.launch(&name, (t.div_ceil(64), n), (128, 1), 0, args) }?;
    Ok([y, best])
}

fn on_gpu(
    tensors: [&Tensor; 2],
    arrays: [Array; 2],
    sizes: (usize, usize, usize, usize),
    queries: Option<&[u32]>,
) -> Result<Tensor> {
    let [y, best] = forward_on_gpu(&arrays, sizes, queries)?;
    let ((n, q, t, e), [a, b]) = (sizes, arrays);
    let (gpu, storage) = (a.gpu().clone(), a.storage());
    let [ti, ei, qi] = [t, e, q].map(int);
    let name = move |pass: &str| format!("max_similarity_{pass}_{}", storage.name());
    record_tensor(OP, &tensors, Tensor::of_array(y, &[n, t])?, move |dy, grads| {
        let dy = gradient(OP, dy)?;
        if grads.wants(0) {
            let da = gpu.array(OP, storage, a.len())?;
            let args = crate::args![&dy, &best, &b, &da, ti, ei];
            // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
            unsafe { gpu.launch(&name("bwd_a"), (q, n), (128, 1), 0, args) }?;
            grads.add_array(0, da)?;
        }
        if grads.wants(1) {
            let db = gpu.array(OP, storage, b.len())?;
            let args = crate::args![&dy, &best, &a, &db, int(n), qi, ti, ei];
            // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
            unsafe { gpu.launch(&name("bwd_b"), (t, 1), (128, 1), 0, args) }?;
            grads.add_array(1, db)?;
        }
        Ok(())
    })
}

fn forward<T: Real>(
    a: &[T],
    b: &[T],
    (n, q, t, e): (usize, usize, usize, usize),
    queries: Option<&[u32]>,
) -> (Vec<T>, Vec<u32>) {
    let mut all = vec![T::ZERO; n * q * t];
    gemm((n * q, t, e), T::ONE, View::rows(a, e), View::rows(b, e).transposed(), T::ZERO, &mut all, t, true);
    if let Some(given) = queries {
        let y = given.iter().enumerate().map(|(at, k)| all[(at / t * q + *k as usize) * t + at % t]);
        return (y.collect(), given.to_vec());
    }
    let mut best = vec![0u32; n * t];
    let mut y = vec![T::ZERO; n * t];
    for (i, (y, best)) in y.chunks_mut(t.max(1)).zip(best.chunks_mut(t.max(1))).enumerate() {
        y.copy_from_slice(&all[i * q * t..][..t]);
        for k in 1..q {
            for (j, v) in all[(i * q + k) * t..][..t].iter().enumerate() {
                if *v > y[j] || (v.is_nan() && !y[j].is_nan()) {
                    (y[j], best[j]) = (*v, k as u32);
                }
            }
        }
    }
    (y, best)
}

#[inline(always)]
fn axpy<T: Real>(to: &mut [T], by: T, x: &[T]) {
    for (t, x) in to.iter_mut().zip(x) {
        *t = by.mul_add(*x, *t);
    }
}
