//! GELU in its tanh form, with a gradient.     x, y [any]
//!   y = x s,   s = 1 / (1 + e^(-2u)),   u = sqrt(2/pi) (x + 0.044715 x^3)
//!   dx = dy (s + 2 x s (1 - s) u'),   u' = sqrt(2/pi) (1 + 0.134145 x^2)

use super::gpu::{arrays, gradient};
use crate::device::cpu;
use crate::tensor::{Array, Real, Tensor, record, record_tensor};
use crate::{Result, on};

const OP: &str = "gelu_tanh";
const ROOT: f64 = 0.797_884_560_802_865_4;

/// GELU in its tanh form: y = x s, s = 1 / (1 + e^(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3);
/// dx = dy (s + 2 x s (1 - s) u'), u' = sqrt(2/pi) (1 + 3 * 0.044715 x^2).
///
/// Any shape; y is stored as x is, arithmetic is in f32 on a GPU.
///
/// Source: `torch.nn.functional.gelu(approximate="tanh")`; transformers' `gelu_new` and `gelu_fast`.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    if let Some([data]) = arrays(OP, [x])? {
        return on_gpu(x, data);
    }
    on!(x.dtype(), T => {
        let y = cpu::map(x.data::<T>(), cpu::gelu_tanh);
        let x2 = x.detach();
        record(OP, [x], y, x.shape().sizes(), move |dy, grads| {
            grads.add(0, cpu::map2(dy.data::<T>(), x2.data::<T>(), #[inline(always)] |d, x| d * slope(x)))
        })
    })
}

#[inline(always)]
fn slope<T: Real>(x: T) -> T {
    let u = T::of(ROOT) * (x + T::of(0.044_715) * x * x * x);
    let s = T::ONE / (T::ONE + Real::exp(T::of(-2.0) * u));
    s + x * s * (T::ONE - s) * T::of(2.0 * ROOT) * (T::ONE + T::of(0.134_145) * x * x)
}

fn on_gpu(x: &Tensor, data: Array) -> Result<Tensor> {
    let (storage, n) = (data.storage(), data.len());
    let y = data.gpu().array(OP, storage, n)?;
    let name = move |pass: &str| format!("gelu_tanh_{pass}_{}", storage.name());
    // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
    unsafe { data.gpu().launch_each(&name("fwd"), n, crate::args![&data, &y, n as u64]) }?;
    record_tensor(OP, &[x], Tensor::of_array(y, x.shape().sizes())?, move |dy, grads| {
        let dy = gradient(OP, dy)?.cast(OP, storage)?;
        let dx = dy.gpu().array(OP, storage, n)?;
        // SAFETY: as above.
        unsafe { dy.gpu().launch_each(&name("bwd"), n, crate::args![&data, &dy, &dx, n as u64]) }?;
        grads.add_array(0, dx)
    })
}
