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
    AdamWTables::default().step(parameters, by, None)
}

/// The l2 norm of all these gradients, of one device; not finite if one of them is not.
pub fn gradient_norm(gradients: &[&Buffer]) -> Result<f64> {
    AdamWTables::default().squares(gradients, None)?.norm()
}

/// The sum of the squares of all gradients; on a GPU it is read when it is asked for.
pub enum Squares {
    /// On the CPU.
    Sum(f64),
    /// One number on a GPU, and infinite where the loss is not finite.
    OnGpu(Tensor),
}

impl Squares {
    /// The norm of the gradients.
    pub fn norm(&self) -> Result<f64> {
        match self {
            Squares::Sum(sum) => Ok(sum.sqrt()),
            Squares::OnGpu(sum) => Ok(sum.item()?.sqrt()),
        }
    }
}

/// The tables of pointers that the kernels of a GPU work from, kept from step to step: parameters and moments stay where they
/// are, and gradients mostly come to lie where they were.
#[derive(Default)]
pub struct AdamWTables(Vec<Kept>);

/// A table on a GPU.
struct Kept {
    kind: Kind,
    slots: Vec<u64>,
    /// As on the device, and the pieces.
    arrays: [Array; 2],
    chunks: usize,
}

/// Which launch a table is for: the norm's, or that of a scale (its bits) and a storage.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Norm,
    Step(u64, Storage),
}

/// Numbers of a slot (see `kernels/adamw.cu`), and which of them is its length.
const SLOT: usize = 7;
const LENGTH: usize = 5;

impl AdamWTables {
    /// The sum of the squares of gradients; on a GPU nobody waits, and it is infinite where the loss is not finite.
    pub fn squares(&mut self, gradients: &[&Buffer], loss: Option<&Tensor>) -> Result<Squares> {
        if let Some(gpu) = gradients.first().and_then(|g| g.array()).map(|a| a.gpu().clone()) {
            return self.squares_on_gpu(&gpu, gradients, loss);
        }
        const PIECE: usize = 1 << 16;
        let squares = |g: &&Buffer| -> f64 {
            on!(g.dtype(), T => {
                let pieces: Vec<f64> = g.slice::<T>().par_chunks(PIECE)
                    .map(|p| cpu::simd(#[inline(always)] || cpu::sum(p.len(), |i| p[i] * p[i])).to_f64()).collect();
                pieces.iter().sum()
            })
        };
        Ok(Squares::Sum(gradients.iter().map(squares).sum()))
    }

    /// [`adamw`]; where the squares are on a GPU and not finite, nothing changes.
    pub fn step(
        &mut self,
        parameters: &mut [Parameter],
        by: &AdamWStep,
        squares: Option<&Squares>,
    ) -> Result<()> {
        if let Some(gpu) = parameters.first().and_then(|p| p.value.array()).map(|a| a.gpu().clone()) {
            return self.step_on_gpu(&gpu, parameters, by, squares);
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

    fn step_on_gpu(
        &mut self,
        gpu: &Gpu,
        parameters: &[Parameter],
        by: &AdamWStep,
        squares: Option<&Squares>,
    ) -> Result<()> {
        let total = if let Some(Squares::OnGpu(sum)) = squares { sum.array() } else { None };
        let storage = |p: &Parameter| p.copy.and_then(Tensor::array).map_or(Storage::F32, |a| a.storage());
        let mut scales: Vec<f64> = parameters.iter().map(|p| p.scale).collect();
        scales.sort_by(f64::total_cmp);
        scales.dedup();
        let kinds = [Storage::F32, Storage::F16, Storage::BF16];
        for (scale, kind) in scales.iter().flat_map(|scale| kinds.map(|kind| (*scale, kind))) {
            let mut slots = Vec::new();
            for p in parameters.iter().filter(|p| p.scale == scale && storage(p) == kind) {
                let arrays = [p.value.array(), p.exp_avg.array().cloned(), p.exp_avg_sq.array().cloned()];
                let [Some(value), Some(m), Some(v)] = arrays else { return Err(apart(p.name)) };
                let g = p.gradient.array().ok_or_else(|| apart(p.name))?;
                let copy = p.copy.and_then(Tensor::array);
                let own = [Some(&value), Some(&m), Some(&v), Some(g), copy.as_ref()];
                slots.extend(slot(own, g.len(), p.decays));
            }
            if slots.is_empty() {
                continue;
            }
            let elements = elements(&slots);
            let (slots, chunks, pieces) = self.table(gpu, Kind::Step(scale.to_bits(), kind), slots)?;
            // p, m and v are read and written, g is read, the copy written.
            let bytes = elements * (7 * 4 + if kind == Storage::F32 { 0 } else { kind.bytes() });
            let own = crate::args![Arg::Memory(slots.pointer(), bytes), chunks];
            let numbers = by.numbers(scale).map(|x| Arg::F32(x as f32));
            let args = [own, &numbers, crate::args![total.as_ref()]].concat();
            // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
            unsafe { gpu.launch(&format!("adamw_{}", kind.name()), (pieces, 1), (256, 1), 0, &args) }?;
        }
        Ok(())
    }

    fn squares_on_gpu(&mut self, gpu: &Gpu, gradients: &[&Buffer], loss: Option<&Tensor>) -> Result<Squares> {
        let mut slots = Vec::with_capacity(gradients.len() * SLOT);
        for g in gradients {
            let g = g.array().ok_or_else(|| apart("gradients"))?;
            slots.extend(slot([None, None, None, Some(g), None], g.len(), false));
        }
        let elements = elements(&slots);
        if elements == 0 {
            return Ok(Squares::Sum(0.0));
        }
        let loss = loss.and_then(Tensor::array).map(|loss| loss.cast(OP, Storage::F32)).transpose()?;
        let (slots, chunks, pieces) = self.table(gpu, Kind::Norm, slots)?;
        let partial = gpu.array(OP, Storage::F32, pieces)?;
        let args = crate::args![Arg::Memory(slots.pointer(), 4 * elements), chunks, &partial];
        // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
        unsafe { gpu.launch("adamw_norm", (pieces, 1), (256, 1), 0, args) }?;
        let total = gpu.array(OP, Storage::F32, 1)?;
        let args = crate::args![&partial, &total, int(pieces), loss.as_ref()];
        // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
        unsafe { gpu.launch("adamw_norm_sum", (1, 1), (256, 1), 0, args) }?;
        Ok(Squares::OnGpu(Tensor::of_array(total, &[])?))
    }

    /// Slots and chunks on a GPU, and how many chunks: what is there already is not uploaded again.
    fn table(&mut self, gpu: &Gpu, kind: Kind, slots: Vec<u64>) -> Result<(&Array, &Array, usize)> {
        let lengths = |slots: &[u64]| slots.iter().skip(LENGTH).step_by(SLOT).copied().collect::<Vec<_>>();
        let place = self.0.iter().position(|k| k.kind == kind && k.arrays[0].gpu().same(gpu));
        let place = match place {
            Some(i) if lengths(&self.0[i].slots) == lengths(&slots) => {
                if self.0[i].slots != slots {
                    self.0[i].arrays[0].write(bytemuck::cast_slice(&slots))?;
                    self.0[i].slots = slots;
                }
                i
            }
            _ => {
                self.0.retain(|k| k.kind != kind);
                let mut chunks = Vec::new();
                for (number, n) in lengths(&slots).into_iter().enumerate() {
                    let pieces = (n as usize).div_ceil(CHUNK);
                    chunks.extend((0..pieces).flat_map(|piece| [int(number), int(piece)]));
                }
                let arrays = [gpu.upload(OP, Storage::I32, &slots)?, gpu.upload(OP, Storage::I32, &chunks)?];
                self.0.push(Kept { kind, slots, arrays, chunks: chunks.len() / 2 });
                self.0.len() - 1
            }
        };
        let kept = &self.0[place];
        Ok((&kept.arrays[0], &kept.arrays[1], kept.chunks))
    }
}

/// p, m, v, g, the copy, the length and whether it decays.
fn slot(arrays: [Option<&Array>; 5], n: usize, decays: bool) -> impl Iterator<Item = u64> {
    let pointers = arrays.map(|a| a.map_or(0, |a| a.pointer() as u64));
    pointers.into_iter().chain([n as u64, u64::from(decays)])
}

fn elements(slots: &[u64]) -> usize {
    slots.iter().skip(LENGTH).step_by(SLOT).map(|n| *n as usize).sum()
}

fn apart(name: &str) -> Error {
    Error::argument(OP, name, "value, moments and gradient on one device", "some on another")
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
