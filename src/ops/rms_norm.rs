//! RMSNorm over the last axis.     x, y [R,C]   weight [C]   rstd [R]
//!   y  = weight n,   n = x rstd,   rstd = 1 / sqrt(mean(x^2) + eps)
//!   dx = rstd (g - n mean(g n)),   g = dy weight;     dweight = sum_R(dy n)

use super::check::{check_dtype, check_shape};
use super::gpu::{arrays, column_sum_into, gradient, int, row_threads, same_storage};
use crate::device::cpu;
use crate::tensor::{Array, Real, Storage, Tensor, record, record_tensor};
use crate::{Error, Result, on};

const OP: &str = "rms_norm";
/// Columns that a block of the kernels has threads for.
const MAX_COLUMNS: usize = 8192;

/// RMSNorm over the last axis: y `[R,C]` = weight x / sqrt(mean(x^2) + eps), weight `[C]`.
///
/// With n = x rstd and g = dy weight: dx = rstd (g - n mean(g n)), dweight = the sums of dy n over rows. Statistics and sums
/// are in f32 on a GPU, where the weight is stored in f32 and a row has at most 8192 columns. Errors name the argument whose
/// shape, dtype or storage does not fit.
///
/// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019), with eps as Llama has it.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let (r, c) = x.rows();
    check_shape(OP, "weight", weight, &[c])?;
    check_dtype(OP, x, &[("weight", weight)])?;
    if !(eps.is_finite() && eps >= 0.0) {
        return Err(Error::argument(OP, "eps", "a finite number, at least 0", eps));
    }
    if let Some(arrays) = arrays(OP, [x, weight])? {
        return on_gpu([x, weight], arrays, (r, c), eps);
    }
    on!(x.dtype(), T => {
        let (mut y, mut scales) = (x.data::<T>().to_vec(), vec![T::ZERO; r]);
        let w = weight.data::<T>();
        cpu::each_row2((&mut y, c), (&mut scales, 1), #[inline(always)] |_, row, scale| {
            let mean = cpu::sum(c, |j| row[j] * row[j]) * T::of(1.0 / c as f64);
            scale[0] = T::ONE / (mean + T::of(eps)).sqrt();
            for (v, w) in row.iter_mut().zip(w) {
                *v *= scale[0] * *w;
            }
        });
        let (x2, w2) = (x.detach(), weight.detach());
        record(OP, [x, weight], y, x.shape().sizes(), move |dy, grads| {
            let (dy, x, w) = (dy.data::<T>(), x2.data::<T>(), w2.data::<T>());
            if grads.wants(0) {
                grads.add(0, backward_x(dy, x, w, &scales))?;
            }
            if grads.wants(1) {
                let sums = cpu::sum_rows(r, c, #[inline(always)] |i, sums: &mut [T]| {
                    for ((s, d), x) in sums.iter_mut().zip(&dy[i * c..]).zip(&x[i * c..]) {
                        *s += *d * (*x * scales[i]);
                    }
                });
                grads.add(1, sums)?;
            }
            Ok(())
        })
    })
}

fn on_gpu(tensors: [&Tensor; 2], [x, w]: [Array; 2], (r, c): (usize, usize), eps: f64) -> Result<Tensor> {
    same_storage(OP, "weight", &w, Storage::F32)?;
    if c > MAX_COLUMNS {
        return Err(Error::argument(OP, "x", format!("at most {MAX_COLUMNS} columns on a GPU"), c));
    }
    let (gpu, storage) = (x.gpu().clone(), x.storage());
    let name = move |pass: &str| format!("rms_norm_{pass}_{}", storage.name());
    let y = gpu.array(OP, storage, r * c)?;
    let scales = gpu.array(OP, Storage::F32, r)?;
    let args = crate::args![&x, &w, &y, &scales, int(c), eps as f32];
    // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
    unsafe { gpu.launch(&name("fwd"), (r, 1), row_threads(c), 0, args) }?;
    let y = Tensor::of_array(y, tensors[0].shape().sizes())?;
    record_tensor(OP, &tensors, y, move |dy, grads| {
        let dy = gradient(OP, dy)?.cast(OP, storage)?;
        let dx = gpu.array(OP, storage, r * c)?;
        let products = if grads.wants(1) { Some(gpu.array(OP, Storage::F32, r * c)?) } else { None };
        let args = crate::args![&dy, &x, &scales, &w, &dx, products.as_ref(), int(c)];
        // SAFETY: as above.
        unsafe { gpu.launch(&name("bwd"), (r, 1), row_threads(c), 0, args) }?;
        grads.add_array(0, dx)?;
        products.map_or(Ok(()), |all| column_sum_into(OP, grads, 1, &all, (r, c), 0))
    })
}

fn backward_x<T: Real>(dy: &[T], x: &[T], w: &[T], scales: &[T]) -> Vec<T> {
    let (c, mut dx) = (w.len(), dy.to_vec());
    cpu::each_row(
        &mut dx,
        c,
        #[inline(always)]
        |i, d| {
            let (x, scale) = (&x[i * c..][..c], scales[i]);
            let mean = cpu::sum(c, |j| d[j] * w[j] * x[j]) * scale * T::of(1.0 / c as f64);
            for j in 0..c {
                d[j] = scale * (d[j] * w[j] - x[j] * scale * mean);
            }
        },
    );
    dx
}
