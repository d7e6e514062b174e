//! The similarity of pictures and captions: the largest product over a picture's queries.
//!   a [A*Q,E] (Q rows a picture)   b [T,E]   y [A,T]
//!   y[i,j] = max_q a[i*Q+q] . b[j];     with q* the first largest: da[i*Q+q*] += dy[i,j] b[j],   db[j] += dy[i,j] a[i*Q+q*]

use super::check::check_dtype;
use super::gpu::{arrays, gradient, int, same_storage};
use crate::device::{cpu, gemm::View, gemm::gemm};
use crate::tensor::{Array, Real, Storage, Tensor, record, record_tensor};
use crate::{Error, Result, on};

const OP: &str = "max_similarity";

pub fn max_similarity(a: &Tensor, b: &Tensor, q: usize) -> Result<Tensor> {
    let ((ra, e), (t, eb)) = (a.rows(), b.rows());
    if q == 0 || !ra.is_multiple_of(q) {
        return Err(Error::argument(OP, "q", format!("a divisor of {ra} rows"), q));
    }
    if e != eb {
        return Err(Error::argument(OP, "b", format!("{e} columns"), b.shape()));
    }
    check_dtype(OP, a, &[("b", b)])?;
    if let Some(arrays) = arrays(OP, [a, b])? {
        return on_gpu([a, b], arrays, (ra / q, q, t, e));
    }
    on!(a.dtype(), T => {
        let (y, best) = forward::<T>(a.data(), b.data(), (ra / q, q, t, e));
        let (a2, b2) = (a.detach(), b.detach());
        record(OP, [a, b], y, &[ra / q, t], move |dy, grads| {
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
                    for i in 0..ra / q {
                        axpy(row, dy[i * t + j], &a[(i * q + best[i * t + j] as usize) * e..][..e]);
                    }
                });
                Ok(())
            })
        })
    })
}

fn on_gpu(
    tensors: [&Tensor; 2],
    [a, b]: [Array; 2],
    (n, q, t, e): (usize, usize, usize, usize),
) -> Result<Tensor> {
    same_storage(OP, "b", &b, a.storage())?;
    let (gpu, storage) = (a.gpu().clone(), a.storage());
    let y = gpu.array(OP, Storage::F32, n * t)?;
    let best = gpu.array(OP, Storage::I32, n * t)?;
    let [ti, ei, qi] = [t, e, q].map(int);
    let name = move |pass: &str| format!("max_similarity_{pass}_{}", storage.name());
    let args = crate::args![&a, &b, &y, &best, qi, ti, ei];
    gpu.launch(&name("fwd"), (t.div_ceil(64), n), (128, 1), 0, args)?;
    record_tensor(OP, &tensors, Tensor::of_array(y, &[n, t])?, move |dy, grads| {
        let dy = gradient(OP, dy)?;
        if grads.wants(0) {
            let da = gpu.array(OP, storage, a.len())?;
            let args = crate::args![&dy, &best, &b, &da, ti, ei];
            gpu.launch(&name("bwd_a"), (q, n), (128, 1), 0, args)?;
            grads.add_array(0, da)?;
        }
        if grads.wants(1) {
            let db = gpu.array(OP, storage, b.len())?;
            let args = crate::args![&dy, &best, &a, &db, int(n), qi, ti, ei];
            gpu.launch(&name("bwd_b"), (t, 1), (128, 1), 0, args)?;
            grads.add_array(1, db)?;
        }
        Ok(())
    })
}

fn forward<T: Real>(a: &[T], b: &[T], (n, q, t, e): (usize, usize, usize, usize)) -> (Vec<T>, Vec<u32>) {
    let mut all = vec![T::ZERO; n * q * t];
    gemm((n * q, t, e), T::ONE, View::rows(a, e), View::rows(b, e).transposed(), T::ZERO, &mut all, t, true);
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
