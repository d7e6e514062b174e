//! Exact GELU.     x, y [any]
//!   y = x F(x),   F(x) = (1 + erf(x / sqrt 2)) / 2
//!   dx = dy (F(x) + x f(x)),   f(x) = e^(-x^2/2) / sqrt(2 pi)

use super::gpu::{arrays, gradient};
use crate::device::cpu;
use crate::tensor::{Array, Real, Tensor, record, record_tensor};
use crate::{Result, on};

const SQRT_2_PI: f64 = 2.506_628_274_631_000_5;

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
        let y = cpu::map(x.data::<T>(), #[inline(always)] |x| x * cdf(x));
        let x2 = x.detach();
        record("gelu", [x], y, x.shape().sizes(), move |dy, grads| {
            let dx = cpu::map2(dy.data::<T>(), x2.data::<T>(), #[inline(always)] |d, x| {
                d * (cdf(x) + x * T::of(1.0 / SQRT_2_PI) * Real::exp(-(x * x) * T::of(0.5)))
            });
            grads.add(0, dx)
        })
    })
}

/// fwd: out = y;   bwd, from dy: out = dx.
fn launch(pass: &str, x: &Array, dy: Option<&Array>, out: &Array) -> Result<()> {
    let n = x.len();
    let args = match dy {
        None => crate::args![x, out, n as u64].to_vec(),
        Some(dy) => crate::args![x, dy, out, n as u64].to_vec(),
    };
    let kernel = format!("gelu_{pass}_{}", x.storage().name());
    x.gpu().launch(&kernel, (n.div_ceil(4096), 1), (256, 1), 0, &args)
}

// Constants stand where they are used: captured by a closure, they would be loaded for every element, and the loop would
// not be vectorised.
#[inline(always)]
fn cdf<T: Real>(x: T) -> T {
    T::of(0.5) * (T::ONE + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf())
}
