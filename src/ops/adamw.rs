//! AdamW as torch.optim.AdamW, over all parameters at once: decoupled weight decay, bias-corrected moments in f32 (or f64).
//!   g' = unscale g;   m = m + (g' - m) (1-b1);   v = b2 v + (1-b2) g'^2
//!   p = p (1 - lr wd) - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)
//! and the l2 norm of all gradients.

use super::gpu::int;
use crate::device::cpu;
use crate::device::launch::Arg;
use crate::tensor::{Array, Buffer, Gpu, Real, Storage, Tensor};
use crate::{Error, Result, on};
use rayon::prelude::*;

const OP: &str = "AdamW";
/// Elements of a chunk, which a block of the kernels takes.
const CHUNK: usize = 2048;

/// A parameter with what a step changes and reads.
pub struct Parameter<'a> {
    /// What messages call it.
    pub name: &'a str,
    /// In f32 on a GPU.
    pub value: &'a mut Tensor,
    /// What matmuls use in place of the value on a GPU; written, too.
    pub copy: Option<&'a Tensor>,
    /// In the value's dtype.
    pub gradient: &'a Buffer,
    /// The first moment.
    pub exp_avg: &'a mut Buffer,
    /// The second moment.
    pub exp_avg_sq: &'a mut Buffer,
    /// Whether weight decay shrinks it.
    pub decays: bool,
    /// What the learning rate is multiplied by.
    pub scale: f64,
}

/// What all parameters of a step share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// The learning rate.
    pub lr: f64,
    /// Of the moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled: a share lr x this of a value.
    pub weight_decay: f64,
    /// Which step it is, from 1 on.
    pub step: u64,
    /// Gradients are multiplied by it (loss scaling).
    pub unscale: f64,
}

impl AdamWStep {
    /// lr / (1 - b1^t), sqrt(1 - b2^t), 1 - b1, b2, 1 - b2, eps, 1 - lr wd, unscale
    ///
    /// 1 - beta is rounded once, as PyTorch has it: in f32, 1 - 0.999f is off by 1.3e-5.
    fn numbers(&self, scale: f64) -> [f64; 8] {
        let ([b1, b2], t, lr) = (self.betas, self.step as f64, self.lr * scale);
        let (size, root) = (lr / (1.0 - b1.powf(t)), (1.0 - b2.powf(t)).sqrt());
        let keep = 1.0 - lr * self.weight_decay;
        [size, root, 1.0 - b1, b2, 1.0 - b2, self.eps, keep, self.unscale]
    }
}

/// One step of AdamW on all of these parameters, in place; one launch for each scale and storage of their copies on a GPU.
///
/// Values, moments and copies are those of the parameters' devices, all of them on one. An error where another tensor shares
/// the memory of a value on the CPU.
///
/// Source: `torch.optim.AdamW`.
pub fn adamw(parameters: &mut [Parameter], by: &AdamWStep) -> Result<()> {
    if let Some(gpu) = parameters.first().and_then(|p| p.value.array()).map(|a| a.gpu().clone()) {
        return on_gpu(&gpu, parameters, by);
    }
    for p in parameters {
        let [size, root, c1, b2, c2, eps, keep, unscale] = by.numbers(p.scale);
        let keep = if p.decays { keep } else { 1.0 };
        on!(p.value.dtype(), T => {
            let value = p.value.data_mut::<T>().ok_or_else(|| {
                Error::argument(OP, p.name, "a parameter nothing else uses", "one that a tape still holds")
            })?;
            let by = [keep, unscale, c1, b2, c2, size, root, eps].map(T::of);
            update(value, p.gradient.slice(), p.exp_avg.slice_mut(), p.exp_avg_sq.slice_mut(), by);
        });
    }
    Ok(())
}

/// The l2 norm of all these gradients, of one device; not finite if one of them is not.
pub fn gradient_norm(gradients: &[&Buffer]) -> Result<f64> {
    if let Some(gpu) = gradients.first().and_then(|g| g.array()).map(|a| a.gpu().clone()) {
        return norm_on_gpu(&gpu, gradients);
    }
    const PIECE: usize = 1 << 16;
    let squares = |g: &&Buffer| -> f64 {
        on!(g.dtype(), T => {
            let pieces: Vec<f64> = g.slice::<T>().par_chunks(PIECE)
                .map(|p| cpu::simd(#[inline(always)] || cpu::sum(p.len(), |i| p[i] * p[i])).to_f64()).collect();
            pieces.iter().sum()
        })
    };
    Ok(gradients.iter().map(squares).sum::<f64>().sqrt())
}

fn on_gpu(gpu: &Gpu, parameters: &[Parameter], by: &AdamWStep) -> Result<()> {
    let storage = |p: &Parameter| p.copy.and_then(Tensor::array).map_or(Storage::F32, |a| a.storage());
    let mut scales: Vec<f64> = parameters.iter().map(|p| p.scale).collect();
    scales.sort_by(f64::total_cmp);
    scales.dedup();
    let kinds = [Storage::F32, Storage::F16, Storage::BF16];
    for (scale, kind) in scales.iter().flat_map(|scale| kinds.map(|kind| (*scale, kind))) {
        let mut table = Table::default();
        for p in parameters.iter().filter(|p| p.scale == scale && storage(p) == kind) {
            let arrays = [p.value.array(), p.exp_avg.array().cloned(), p.exp_avg_sq.array().cloned()];
            let [Some(value), Some(m), Some(v)] = arrays else { return Err(apart(p.name)) };
            let g = p.gradient.array().ok_or_else(|| apart(p.name))?;
            table.add(
                [Some(&value), Some(&m), Some(&v), Some(g), p.copy.and_then(Tensor::array).as_ref()],
                p.decays,
            );
        }
        let (pieces, elements) = (table.chunks.len() / 2, table.elements);
        let (slots, chunks) = table.upload(gpu)?;
        // p, m and v are read and written, g is read, the copy written.
        let bytes = elements * (7 * 4 + if kind == Storage::F32 { 0 } else { kind.bytes() });
        let own = crate::args![Arg::Memory(slots.pointer(), bytes), &chunks];
        let args = [own, &by.numbers(scale).map(|x| Arg::F32(x as f32))[..]].concat();
        // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
        unsafe { gpu.launch(&format!("adamw_{}", kind.name()), (pieces, 1), (256, 1), 0, &args) }?;
    }
    Ok(())
}

fn apart(name: &str) -> Error {
    Error::argument(OP, name, "value, moments and gradient on one device", "some on another")
}

fn norm_on_gpu(gpu: &Gpu, gradients: &[&Buffer]) -> Result<f64> {
    let mut table = Table::default();
    for g in gradients {
        let g = g.array().ok_or_else(|| apart("gradients"))?;
        table.add([None, None, None, Some(g), None], false);
    }
    let (pieces, elements) = (table.chunks.len() / 2, table.elements);
    let (slots, chunks) = table.upload(gpu)?;
    if pieces == 0 {
        return Ok(0.0);
    }
    let partial = gpu.array(OP, Storage::F32, pieces)?;
    let args = crate::args![Arg::Memory(slots.pointer(), 4 * elements), &chunks, &partial];
    // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
    unsafe { gpu.launch("adamw_norm", (pieces, 1), (256, 1), 0, args) }?;
    let total = gpu.array(OP, Storage::F32, 1)?;
    let args = crate::args![&partial, &total, int(pieces)];
    // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
    unsafe { gpu.launch("adamw_norm_sum", (1, 1), (256, 1), 0, args) }?;
    let squares = total.read_f32()?.first().copied().unwrap_or(f32::NAN);
    Ok(f64::from(squares).sqrt())
}

/// The kernels' tables of parameters (see `kernels/adamw.cu`).
#[derive(Default)]
struct Table {
    slots: Vec<u64>,
    chunks: Vec<i32>,
    elements: usize,
}

impl Table {
    /// p, m, v, g and the copy.
    fn add(&mut self, [p, m, v, g, copy]: [Option<&Array>; 5], decays: bool) {
        let number = int(self.slots.len() / 7);
        let n = g.map_or(0, Array::len);
        self.chunks.extend((0..n.div_ceil(CHUNK)).flat_map(|piece| [number, int(piece)]));
        self.slots.extend([p, m, v, g, copy].map(|a| a.map_or(0, |a| a.pointer() as u64)));
        self.slots.extend([n as u64, u64::from(decays)]);
        self.elements += n;
    }

    fn upload(self, gpu: &Gpu) -> Result<(Array, Array)> {
        let slots = gpu.upload(OP, Storage::I32, &self.slots)?;
        Ok((slots, gpu.upload(OP, Storage::I32, &self.chunks)?))
    }
}

fn update<T: Real>(p: &mut [T], g: &[T], m: &mut [T], v: &mut [T], by: [T; 8]) {
    const PIECE: usize = 1 << 14;
    let [keep, unscale, c1, b2, c2, size, root, eps] = by;
    let pieces = p.par_chunks_mut(PIECE).zip(g.par_chunks(PIECE));
    let moments = m.par_chunks_mut(PIECE).zip(v.par_chunks_mut(PIECE));
    pieces.zip(moments).for_each(|((p, g), (m, v))| {
        cpu::simd(
            #[inline(always)]
            || {
                for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                    let g = *g * unscale;
                    *m += (g - *m) * c1;
                    *v = *v * b2 + g * g * c2;
                    *p = *p * keep - size * (*m / (v.sqrt() / root + eps));
                }
            },
        );
    });
}
