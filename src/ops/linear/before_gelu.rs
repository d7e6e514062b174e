//! A dense layer and the exact GELU of it.     x [R,K]   weight [N,K]   bias [N]   h, y [R,N]
//!   h = x weight^T + bias,   y = gelu(h)
//!   dh = dy gelu'(h);   dbias = sum_R(dh);   dx and dweight from dh as in `linear`
//! On a GPU one kernel makes dh and adds up its rows.

use super::{check_linear, dense, dense_gradients, multiply};
use crate::Result;
use crate::ops::gelu;
use crate::ops::gpu::{arrays, gradient, gradients_beside, int, shares_of_columns};
use crate::tensor::{Array, Tensor, record_tensor};

const OP: &str = "linear";

pub(super) fn before_gelu(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (r, n, k) = check_linear(x, weight, bias)?;
    let apart = || gelu::gelu(&dense(x, weight, bias, None)?);
    let Some(bias) = bias else { return apart() };
    let Some([x2, w2, b2]) = arrays(OP, [x, weight, bias])? else { return apart() };
    let (gpu, storage) = (x2.gpu().clone(), x2.storage());
    let h = gpu.array(OP, storage, r * n)?;
    multiply([&x2, &w2, &h], Some(&b2), (r, n, k), false)?;
    let y = gpu.array(OP, storage, r * n)?;
    gelu::launch("fwd", &h, None, &y)?;
    // A frozen weight needs no dweight, and so no x.
    let kept = weight.tracked().then_some(x2);
    record_tensor(OP, &[x, weight, bias], Tensor::of_array(y, &[r, n])?, move |dy, grads| {
        let dy = gradient(OP, dy)?.cast(OP, storage)?;
        let dh = gpu.array(OP, storage, r * n)?;
        if grads.wants(2) {
            gradients_beside(OP, &gpu, grads, (&[2], n), |to, add| {
                backward([&h, &dy, &dh], (r, n), to, add)
            })?;
        } else {
            gelu::launch("bwd", &h, Some(&dy), &dh)?;
        }
        dense_gradients(grads, &dh, (&w2, n), kept.as_ref(), (r, n, k))
    })
}

/// dh from h and dy; `sums` = the sums of its rows, or they are added there.
fn backward([h, dy, dh]: [&Array; 3], (r, n): (usize, usize), sums: &Array, add: bool) -> Result<()> {
    let gpu = h.gpu();
    let (grid, partial, counters) = shares_of_columns(OP, gpu, (r, n))?;
    let args = crate::args![h, dy, dh, sums, &partial, counters, int(r), int(n), i32::from(add)];
    let kernel = format!("gelu_bwd_sum_{}", h.storage().name());
    // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
    unsafe { gpu.launch(&kernel, grid, (32, 8), 0, args) }
}
