//! Rows of length one.     x, y [R,C]
//!   y = x / s,   s = max(|x|, 1e-12)   (as torch.nn.functional.normalize)
//!   dx = (dy - y (dy . y)) / s;   where |x| < 1e-12: dy / 1e-12

use super::gpu::{arrays, gradient, int, row_threads};
use crate::device::cpu;
use crate::tensor::{Real, Storage, Tensor, record, record_tensor};
use crate::{Result, on};

const EPS: f64 = 1e-12;

/// Rows of length one: y = x / s, s = max(|x|, 1e-12), row by row of `[R,C]`.
///
/// dx = (dy - y (dy . y)) / s; where |x| < 1e-12 it is dy / 1e-12. Sums are in f32 on a GPU.
///
/// Source: `torch.nn.functional.normalize`.
pub fn l2_normalize(x: &Tensor) -> Result<Tensor> {
    let (r, c) = x.rows();
    if let Some([data]) = arrays("l2_normalize", [x])? {
        let (gpu, storage) = (data.gpu().clone(), data.storage());
        let y = gpu.array("l2_normalize", storage, r * c)?;
        let length = gpu.array("l2_normalize", Storage::F32, r)?;
        let name = move |pass: &str| format!("l2_normalize_{pass}_{}", storage.name());
        let args = crate::args![&data, &y, &length, int(c)];
        // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
        unsafe { gpu.launch(&name("fwd"), (r, 1), row_threads(c), 0, args) }?;
        let kept = y.clone();
        let y = Tensor::of_array(y, x.shape().sizes())?;
        return record_tensor("l2_normalize", &[x], y, move |dy, grads| {
            let dy = gradient("l2_normalize", dy)?.cast("l2_normalize", storage)?;
            let dx = gpu.array("l2_normalize", storage, r * c)?;
            let args = crate::args![&dy, &kept, &length, &dx, int(c)];
            // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
            unsafe { gpu.launch(&name("bwd"), (r, 1), row_threads(c), 0, args) }?;
            grads.add_array(0, dx)
        });
    }
    on!(x.dtype(), T => {
        let mut y = x.data::<T>().to_vec();
        let mut lengths = vec![T::ZERO; r];
        cpu::each_row2((&mut y, c), (&mut lengths, 1), #[inline(always)] |_, row, length| {
            length[0] = cpu::sum(row.len(), |i| row[i] * row[i]).sqrt();
            let s = at_least(length[0]);
            for v in row.iter_mut() {
                *v /= s;
            }
        });
        let kept = y.clone();
        record("l2_normalize", [x], y, x.shape().sizes(), move |dy, grads| {
            let mut dx = dy.data::<T>().to_vec();
            cpu::each_row(&mut dx, c, #[inline(always)] |i, row| {
                let (y, s) = (&kept[i * c..][..c], at_least(lengths[i]));
                let along = if lengths[i] < T::of(EPS) { T::ZERO } else { cpu::sum(c, |j| row[j] * y[j]) };
                for (d, y) in row.iter_mut().zip(y) {
                    *d = (*d - *y * along) / s;
                }
            });
            grads.add(0, dx)
        })
    })
}

/// max(s, EPS), but NaN stays NaN.
fn at_least<T: Real>(s: T) -> T {
    if s < T::of(EPS) { T::of(EPS) } else { s }
}
