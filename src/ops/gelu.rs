//! Exact GELU.     x, y [any]
//!   y = x F(x),   F(x) = (1 + erf(x / sqrt 2)) / 2
//!   dx = dy (F(x) + x f(x)),   f(x) = e^(-x^2/2) / sqrt(2 pi)

use super::gpu::{arrays, gradient};
use crate::device::cpu;
use crate::tensor::{Array, Real, Tensor, record, record_tensor};
use crate::{Result, on};

const SQRT_2_PI: f64 = 2.506_628_274_631_000_5;

/// Exact GELU: y = x F(x), F(x) = (1 + erf(x / sqrt 2)) / 2; dx = dy (F(x) + x f(x)), f(x) = e^(-x^2/2) / sqrt(2 pi).
///
/// Any shape; y is stored as x is, arithmetic is in f32 on a GPU. NaN and infinities propagate.
///
/// Source: `torch.nn.functional.gelu`.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if let Some([u]) = arrays("gelu", [x])? {
        let y = u.gpu().array("gelu", u.storage(), u.len())?;
        launch("fwd", &u, None, &y)?;
        return record_tensor("gelu", &[x], Tensor::of_array(y, x.shape().sizes())?, move |dy, grads| {
            let dy = gradient("gelu", dy)?.cast("gelu", u.storage())?;
            let dx = u.gpu().array("gelu", u.storage(), u.len())?;
            launch("bwd", &u, Some(&dy), &dx)?;
            grads.add_array(0, dx)
        });
    }
    on!(x.dtype(), T => {
        let y = cpu::map(x.data::<T>(), cpu::gelu);
        let x2 = x.detach();
        record("gelu", [x], y, x.shape().sizes(), move |dy, grads| {
            let dx = cpu::map2(dy.data::<T>(), x2.data::<T>(), #[inline(always)] |d, x| {
                d * (cpu::normal_cdf(x) + x * T::of(1.0 / SQRT_2_PI) * Real::exp(-(x * x) * T::of(0.5)))
            });
            grads.add(0, dx)
        })
    })
}

/// fwd: out = y;   bwd, from dy: out = dx.
pub(super) fn launch(pass: &str, x: &Array, dy: Option<&Array>, out: &Array) -> Result<()> {
    let n = x.len();
    let args = match dy {
        None => crate::args![x, out, n as u64].to_vec(),
        Some(dy) => crate::args![x, dy, out, n as u64].to_vec(),
    };
    let kernel = format!("gelu_{pass}_{}", x.storage().name());
    // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
    unsafe { x.gpu().launch(&kernel, (n.div_ceil(4096), 1), (256, 1), 0, &args) }
}
