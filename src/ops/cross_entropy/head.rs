//! The loss of rows through a frozen head, some rows at a time.     h [R,D]   weight [V,D]   loss []
//!   logits = h weight^T;   loss = mean of the cross-entropy of rows;   dh = dloss (p - onehot) weight / R
//! Logits of a few rows are in memory at once. Where a gradient will be asked for, theirs is computed with them, and dh without
//! dloss / R is kept.

use super::{Norm, OnGpu, Row, Targets, check_classes, row_gradient, row_loss};
use crate::device::gemm::{View, gemm};
use crate::device::gpu::{Matmul, Operand};
use crate::ops::check::check_dtype;
use crate::ops::gpu::{arrays, column_sum, gradient, same_storage};
use crate::tensor::{Array, Real, Storage, Tensor, record, record_tensor};
use crate::{Error, Result, on};

const OP: &str = "head_loss";
/// Logits that are in memory at once.
const LOGITS: usize = 1 << 25;

/// The mean cross-entropy of rows h `[R,D]` through a frozen head, logits = h weight^T, weight `[V,D]`, a class for each row.
///
/// dh = dloss (p - onehot) weight / R. What [`crate::ops::linear`] and [`crate::ops::cross_entropy`] give, but logits are never all in
/// memory, and nothing of their size is kept. An error if the weight is tracked: it would get no gradient.
pub fn head_loss(h: &Tensor, weight: &Tensor, classes: &[u32]) -> Result<Tensor> {
    let ((r, d), (v, width)) = (h.rows(), weight.rows());
    if width != d {
        return Err(Error::argument(OP, "weight", format!("[V, {d}]"), weight.shape()));
    }
    if weight.tracked() {
        return Err(Error::argument(OP, "weight", "a constant", "a tracked tensor")
            .fix("take a dense layer and cross_entropy where the head is trained"));
    }
    check_dtype(OP, h, &[("weight", weight)])?;
    let classes: Vec<Option<u32>> = classes.iter().map(|c| Some(*c)).collect();
    check_classes(&classes, 0.0, r, v)?;
    let some = (LOGITS / v.max(1)).clamp(16, 1 << 14);
    if let Some([rows, weight]) = arrays(OP, [h, weight])? {
        return on_gpu(h, (&rows, &weight), &classes, (r, v, d), some);
    }
    on!(h.dtype(), T => {
        let (loss, kept) = on_cpu::<T>(h, weight.data(), &classes, (v, d), some);
        record(OP, [h], vec![loss], &[], move |dy, grads| {
            let by = dy.data::<T>()[0] / T::of(r.max(1) as f64);
            grads.add(0, kept.into_iter().map(|x| x * by).collect::<Vec<T>>())
        })
    })
}

fn on_cpu<T: Real>(
    h: &Tensor,
    weight: &[T],
    classes: &[Option<u32>],
    (v, d): (usize, usize),
    some: usize,
) -> (T, Vec<T>) {
    let (data, r) = (h.data::<T>(), classes.len());
    let (mut losses, mut kept) = (Vec::with_capacity(r), Vec::new());
    for first in (0..r).step_by(some) {
        let n = some.min(r - first);
        let mut logits = vec![T::ZERO; n * v];
        let (a, b) = (View::rows(&data[first * d..], d), View::rows(weight, d).transposed());
        gemm((n, v, d), T::ONE, a, b, T::ZERO, &mut logits, v, true);
        for (row, class) in logits.chunks_exact_mut(v).zip(&classes[first..]) {
            let (norm, class) = (Norm::of(row), class.map_or(Row::Ignored, |c| Row::Class(c as usize)));
            losses.push(row_loss(row, norm, &class, T::ZERO));
            if h.tracked() {
                row_gradient(row, norm, &class, T::ZERO, T::ONE);
            }
        }
        if h.tracked() {
            let mut dh = vec![T::ZERO; n * d];
            gemm((n, d, v), T::ONE, View::rows(&logits, v), View::rows(weight, d), T::ZERO, &mut dh, d, true);
            kept.extend(dh);
        }
    }
    (losses.into_iter().sum::<T>() / T::of(r.max(1) as f64), kept)
}

fn on_gpu(
    h: &Tensor,
    (rows, weight): (&Array, &Array),
    classes: &[Option<u32>],
    (r, v, d): (usize, usize, usize),
    some: usize,
) -> Result<Tensor> {
    let (gpu, storage) = (rows.gpu().clone(), rows.storage());
    same_storage(OP, "weight", weight, storage)?;
    let losses = gpu.array(OP, Storage::F32, r)?;
    let one = gpu.row(OP, 1.0, 1)?;
    let kept = gpu.array(OP, storage, if h.tracked() { r * d } else { 0 })?;
    for first in (0..r).step_by(some) {
        let n = some.min(r - first);
        let logits = gpu.array(OP, storage, n * v)?;
        let h = rows.part(first * d..(first + n) * d)?;
        let (a, b) = (Operand::rows(&h, d), Operand::rows(weight, d).transposed());
        gpu.matmul(&Matmul::of((n, v, d), a, b, Operand::rows(&logits, v)))?;
        let kernel = OnGpu::new(&logits, &Targets::Classes(&classes[first..first + n], 0.0), (n, v))?;
        kernel.launch(&logits, None, None)?;
        losses.part(first..first + n)?.copy_from(&kernel.losses)?;
        if !kept.is_empty() {
            // Not yet divided by the number of rows: in 16 bits small numbers would vanish.
            OnGpu { counted: 1, ..kernel }.launch(&logits, None, Some(&one))?;
            let dh = kept.part(first * d..(first + n) * d)?;
            let (a, b) = (Operand::rows(&logits, v), Operand::rows(weight, d));
            gpu.matmul(&Matmul::of((n, d, v), a, b, Operand::rows(&dh, d)))?;
        }
    }
    let sum = if r == 0 { gpu.zeros(OP, Storage::F32, 1)? } else { column_sum(OP, &losses, r, 1)? };
    let (loss, count) = (gpu.array(OP, Storage::F32, 1)?, r.max(1) as f32);
    // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
    unsafe { gpu.launch_each("scale_fwd_f32", 1, crate::args![&sum, &loss, 1u64, 1.0 / count]) }?;
    record_tensor(OP, &[h], Tensor::of_array(loss, &[])?, move |dy, grads| {
        let dy = gradient(OP, dy)?;
        let gpu = dy.gpu();
        let (count, by) = (gpu.row(OP, count, 1)?, gpu.array(OP, Storage::F32, 1)?);
        let dh = gpu.array(OP, storage, kept.len())?;
        let name = format!("divide_fwd_{}", storage.name());
        // SAFETY: as above. R / dloss, by which the kept rows are divided.
        unsafe { gpu.launch_each("divide_fwd_f32", 1, crate::args![&count, &dy, &by, 1u64]) }?;
        let n = kept.len();
        if n > 0 {
            // SAFETY: as above.
            unsafe { gpu.launch_each(&name, n, crate::args![&kept, &by, &dh, n as u64]) }?;
        }
        grads.add_array(0, dh)
    })
}
