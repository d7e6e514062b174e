//! SiLU of one tensor times another: the gate of a SwiGLU feed-forward.     g, u, y [any]
//!   y = g s u,   s = 1 / (1 + e^(-g));     dg = dy u s (1 + g (1 - s)),   du = dy g s

use super::check::{check_dtype, check_shape};
use super::gpu::{arrays, gradient, same_storage};
use crate::device::cpu;
use crate::tensor::{Array, Real, Tensor, record, record_tensor};
use crate::{Result, on};

const OP: &str = "silu_mul";

/// y = silu(gate) up, silu(g) = g / (1 + e^(-g)); with s = 1 / (1 + e^(-g)): dgate = dy up s (1 + gate (1 - s)),
/// dup = dy gate s.
///
/// Any shape, the same of both; stored alike, arithmetic is in f32 on a GPU.
///
/// Source: `torch.nn.functional.silu`; Shazeer, "GLU Variants Improve Transformer" (2020).
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    check_shape(OP, "up", up, gate.shape().sizes())?;
    check_dtype(OP, gate, &[("up", up)])?;
    if let Some(both) = arrays(OP, [gate, up])? {
        return on_gpu([gate, up], both);
    }
    on!(gate.dtype(), T => {
        let y = cpu::map2(gate.data::<T>(), up.data::<T>(), #[inline(always)] |g, u| g * share(g) * u);
        let (g2, u2) = (gate.detach(), up.detach());
        record(OP, [gate, up], y, gate.shape().sizes(), move |dy, grads| {
            let (dy, g, u) = (dy.data::<T>(), g2.data::<T>(), u2.data::<T>());
            if grads.wants(0) {
                let slopes = cpu::map2(g, u, #[inline(always)] |g, u| {
                    let s = share(g);
                    u * s * (T::ONE + g * (T::ONE - s))
                });
                grads.add(0, cpu::map2(dy, &slopes, |d, s| d * s))?;
            }
            if grads.wants(1) {
                grads.add(1, cpu::map2(dy, g, #[inline(always)] |d, g| d * g * share(g)))?;
            }
            Ok(())
        })
    })
}

#[inline(always)]
fn share<T: Real>(g: T) -> T {
    T::ONE / (T::ONE + Real::exp(-g))
}

fn on_gpu(tensors: [&Tensor; 2], [gate, up]: [Array; 2]) -> Result<Tensor> {
    let (storage, n) = (gate.storage(), gate.len());
    same_storage(OP, "up", &up, storage)?;
    let y = gate.gpu().array(OP, storage, n)?;
    let name = move |pass: &str| format!("silu_mul_{pass}_{}", storage.name());
    // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
    unsafe { gate.gpu().launch_each(&name("fwd"), n, crate::args![&gate, &up, &y, n as u64]) }?;
    record_tensor(OP, &tensors, Tensor::of_array(y, tensors[0].shape().sizes())?, move |dy, grads| {
        let dy = gradient(OP, dy)?.cast(OP, storage)?;
        let both = [dy.gpu().array(OP, storage, n)?, dy.gpu().array(OP, storage, n)?];
        let args = crate::args![&gate, &up, &dy, &both[0], &both[1], n as u64];
        // SAFETY: as above.
        unsafe { dy.gpu().launch_each(&name("bwd"), n, args) }?;
        both.into_iter().enumerate().try_for_each(|(i, d)| grads.add_array(i, d))
    })
}
