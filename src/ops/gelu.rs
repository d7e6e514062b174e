//! Exact GELU.     x, y [any]
//!   y = x F(x),   F(x) = (1 + erf(x / sqrt 2)) / 2
//!   dx = dy (F(x) + x f(x)),   f(x) = e^(-x^2/2) / sqrt(2 pi)

use crate::device::cpu;
use crate::tensor::{Real, Tensor, record};
use crate::{Result, on};

const SQRT_2_PI: f64 = 2.506_628_274_631_000_5;

pub fn gelu(x: &Tensor) -> Result<Tensor> {
    on!(x.dtype(), T => {
        let half = T::of(0.5);
        let y = cpu::map(x.data::<T>(), #[inline(always)] |x| x * cdf(x, half));
        let x2 = x.detach();
        record("gelu", [x], y, x.shape().sizes(), move |dy, grads| {
            let density = T::of(1.0 / SQRT_2_PI);
            let dx = cpu::map2(dy.data::<T>(), x2.data::<T>(), #[inline(always)] |d, x| {
                d * (cdf(x, half) + x * density * Real::exp(-(x * x) * half))
            });
            grads.add(0, dx)
        })
    })
}

#[inline(always)]
fn cdf<T: Real>(x: T, half: T) -> T {
    half * (T::ONE + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf())
}
