//! AdamW as torch.optim.AdamW: decoupled weight decay, bias-corrected moments in f32 (or f64).
//!   p -= lr wd p;   m = b1 m + (1-b1) g;   v = b2 v + (1-b2) g^2
//!   p -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)
//! No weight decay on parameters of fewer than two axes or with "bias" in their name (LAVIS's groups).
//! Of an image encoder of L blocks that is trained with layer decay d, block i learns at lr d^(L - i), what stands before
//! the blocks at lr d^(L + 1); everything else at lr.

use crate::device::cpu;
use crate::device::launch::Arg;
use crate::nn::{Id, Params};
use crate::tensor::{Array, Buffer, Device, Gpu, Gradients, Real, Storage};
use crate::{Error, Result, on};
use rayon::prelude::*;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    pub betas: [f64; 2],
    pub eps: f64,
    pub weight_decay: f64,
    pub vit_layer_decay: f64,
}

impl Default for Hyper {
    fn default() -> Hyper {
        Hyper { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.05, vit_layer_decay: 1.0 }
    }
}

/// First and second moments of one parameter.
pub struct Moments {
    pub id: Id,
    pub exp_avg: Buffer,
    pub exp_avg_sq: Buffer,
    decay: bool,
    /// What the learning rate is multiplied by.
    scale: f64,
}

/// The block of the image encoder that a parameter belongs to, counted from 1; 0 is what stands before the blocks.
fn vit_block(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("visual_encoder.")?;
    let number = rest.strip_prefix("blocks.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
    Some(number.map_or(0, |n| n + 1))
}

pub struct AdamW {
    hyper: Hyper,
    /// Steps taken.
    pub steps: u64,
    pub moments: Vec<Moments>,
}

impl AdamW {
    pub fn new(params: &Params, hyper: Hyper) -> Result<AdamW> {
        let wrong = |what: &str, want: &str, got: f64| Err(Error::argument("AdamW", what, want, got));
        for b in hyper.betas {
            if !(0.0..1.0).contains(&b) {
                return wrong("betas", "0 <= beta < 1", b);
            }
        }
        if !(hyper.eps.is_finite() && hyper.eps >= 0.0) {
            return wrong("eps", "a finite number, at least 0", hyper.eps);
        }
        if !(hyper.weight_decay.is_finite() && hyper.weight_decay >= 0.0) {
            return wrong("weight_decay", "a finite number, at least 0", hyper.weight_decay);
        }
        if !(hyper.vit_layer_decay > 0.0 && hyper.vit_layer_decay <= 1.0) {
            return wrong("vit_layer_decay", "a number above 0, at most 1", hyper.vit_layer_decay);
        }
        let trained = params.iter().filter(|(_, spec, _)| spec.trained);
        let zeros = |value: &crate::tensor::Tensor| match params.device() {
            Device::Gpu(gpu) => gpu.zeros("AdamW", Storage::F32, value.len()).map(Buffer::Gpu),
            Device::Cpu => Ok(Buffer::zeros(value.dtype(), value.len())),
        };
        let last = params.specs().iter().filter_map(|s| vit_block(&s.name)).max().unwrap_or(0);
        let moments = trained.map(|(id, spec, value)| {
            let decay = spec.shape.len() >= 2 && !spec.name.contains("bias");
            let below = vit_block(&spec.name).map_or(0, |block| last + 1 - block);
            let scale = hyper.vit_layer_decay.powf(below as f64);
            Ok(Moments { id, exp_avg: zeros(value)?, exp_avg_sq: zeros(value)?, decay, scale })
        });
        Ok(AdamW { hyper, steps: 0, moments: moments.collect::<Result<_>>()? })
    }

    /// One step with gradients multiplied by `unscale`; parameters without a gradient stay as they are.
    /// The gradients are consumed.
    pub fn step(&mut self, params: &mut Params, grads: &mut Gradients, lr: f64, unscale: f64) -> Result<()> {
        if !(lr.is_finite() && lr >= 0.0) {
            return Err(Error::argument("AdamW", "learning rate", "a finite number, at least 0", lr));
        }
        self.steps += 1;
        if let Device::Gpu(gpu) = params.device().clone() {
            self.step_on_gpu(&gpu, params, grads, lr, unscale)?;
            grads.clear();
            return Ok(());
        }
        let [b1, b2] = self.hyper.betas;
        let t = self.steps as f64;
        let root = (1.0 - b2.powf(t)).sqrt();
        for m in &mut self.moments {
            let Some(g) = grads.get(m.id.0) else { continue };
            let lr = lr * m.scale;
            let step_size = lr / (1.0 - b1.powf(t));
            let keep = if m.decay { 1.0 - lr * self.hyper.weight_decay } else { 1.0 };
            let name = params.specs()[m.id.0].name.clone();
            let value = params.get_mut(m.id);
            on!(value.dtype(), T => {
                let p = value.data_mut::<T>().ok_or_else(|| {
                    Error::argument("AdamW", name, "a parameter nothing else uses", "one that a tape still holds")
                })?;
                // 1 - beta is rounded once, as PyTorch has it: in f32, 1 - 0.999f is off by 1.3e-5.
                let by = [keep, unscale, 1.0 - b1, b2, 1.0 - b2, step_size, root, self.hyper.eps].map(T::of);
                update(p, g.slice::<T>(), m.exp_avg.slice_mut::<T>(), m.exp_avg_sq.slice_mut::<T>(), by);
            });
        }
        grads.clear();
        Ok(())
    }

    fn step_on_gpu(
        &self,
        gpu: &Gpu,
        params: &Params,
        grads: &Gradients,
        lr: f64,
        unscale: f64,
    ) -> Result<()> {
        let [b1, b2] = self.hyper.betas;
        let t = self.steps as f64;
        // A launch for each learning rate, and each storage of the copies that products use.
        let storage = |m: &Moments| {
            params.copy(m.id).and_then(crate::tensor::Tensor::array).map_or(Storage::F32, |a| a.storage())
        };
        let mut scales: Vec<f64> = self.moments.iter().map(|m| m.scale).collect();
        scales.sort_by(f64::total_cmp);
        scales.dedup();
        let launches =
            scales.iter().flat_map(|s| [Storage::F32, Storage::F16, Storage::BF16].map(|kind| (*s, kind)));
        for (scale, kind) in launches {
            let lr = lr * scale;
            let by = [
                lr / (1.0 - b1.powf(t)),
                (1.0 - b2.powf(t)).sqrt(),
                1.0 - b1,
                b2,
                1.0 - b2,
                self.hyper.eps,
                1.0 - lr * self.hyper.weight_decay,
                unscale,
            ];
            let own = self.moments.iter().filter(|m| m.scale == scale && storage(m) == kind);
            let table = Slots::new(gpu, params, grads, own)?;
            // p, m and v are read and written, g is read, the copy written.
            let bytes = table.elements * (7 * 4 + if kind == Storage::F32 { 0 } else { kind.bytes() });
            let own = crate::args![table.memory(bytes), &table.chunks];
            let args = [own, &by.map(|x| Arg::F32(x as f32)), &[Arg::NULL]].concat();
            gpu.launch(&format!("adamw_{}", kind.name()), (table.pieces, 1), (256, 1), 0, &args)?;
        }
        Ok(())
    }
}

/// The l2 norm of all gradients on a GPU, as `adamw_norm` computes it; not finite if one of them is not.
pub fn norm_on_gpu(gpu: &Gpu, params: &Params, grads: &Gradients, moments: &[Moments]) -> Result<f64> {
    let table = Slots::new(gpu, params, grads, moments.iter())?;
    if table.pieces == 0 {
        return Ok(0.0);
    }
    let partial = gpu.array("AdamW", Storage::F32, table.pieces)?;
    let bad = gpu.array("AdamW", Storage::I32, table.pieces)?;
    let args = crate::args![table.memory(4 * table.elements), &table.chunks, &partial, &bad, 1f32];
    gpu.launch("adamw_norm", (table.pieces, 1), (256, 1), 0, args)?;
    let total = gpu.array("AdamW", Storage::F32, 1)?;
    let flag = gpu.array("AdamW", Storage::I32, 1)?;
    let pieces = i32::try_from(table.pieces).unwrap_or(i32::MAX);
    let args = crate::args![&partial, &bad, &total, &flag, pieces];
    gpu.launch("adamw_norm_sum", (1, 1), (256, 1), 0, args)?;
    let squares = total.read_f32()?.first().copied().unwrap_or(f32::NAN);
    Ok(f64::from(squares).sqrt())
}

/// The kernels' tables of all parameters that have a gradient.
struct Slots {
    slots: Array,
    chunks: Array,
    pieces: usize,
    elements: usize,
}

/// Elements of a chunk.
const CHUNK: usize = 2048;

impl Slots {
    fn new<'a>(
        gpu: &Gpu,
        params: &Params,
        grads: &Gradients,
        moments: impl Iterator<Item = &'a Moments>,
    ) -> Result<Slots> {
        let (mut slots, mut chunks, mut elements) = (Vec::<u64>::new(), Vec::<i32>::new(), 0);
        for m in moments {
            let Some(g) = grads.get(m.id.0).and_then(Buffer::array) else { continue };
            let place = |a: Option<Array>| a.map_or(0, |a| a.pointer() as u64);
            let value = params.get(m.id);
            elements += value.len();
            let number = i32::try_from(slots.len() / 7).unwrap_or(i32::MAX);
            chunks.extend(
                (0..value.len().div_ceil(CHUNK))
                    .flat_map(|piece| [number, i32::try_from(piece).unwrap_or(i32::MAX)]),
            );
            slots.extend([
                place(value.array()),
                place(m.exp_avg.array().cloned()),
                place(m.exp_avg_sq.array().cloned()),
                g.pointer() as u64,
                place(params.copy(m.id).and_then(crate::tensor::Tensor::array)),
                value.len() as u64,
                u64::from(m.decay),
            ]);
        }
        let pieces = chunks.len() / 2;
        let slots = gpu.upload("AdamW", Storage::I32, &slots)?;
        Ok(Slots { slots, chunks: gpu.upload("AdamW", Storage::I32, &chunks)?, pieces, elements })
    }

    /// The table, as an argument that stands for the bytes it points to.
    fn memory(&self, bytes: usize) -> Arg {
        Arg::Memory(self.slots.pointer(), bytes)
    }
}

fn update<T: Real>(p: &mut [T], g: &[T], m: &mut [T], v: &mut [T], by: [T; 8]) {
    const PIECE: usize = 1 << 14;
    let [keep, unscale, fresh1, b2, fresh2, step_size, root, eps] = by;
    let pieces = p.par_chunks_mut(PIECE).zip(g.par_chunks(PIECE));
    let moments = m.par_chunks_mut(PIECE).zip(v.par_chunks_mut(PIECE));
    pieces.zip(moments).for_each(|((p, g), (m, v))| {
        cpu::simd(
            #[inline(always)]
            || {
                for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                    let g = *g * unscale;
                    *m += (g - *m) * fresh1;
                    *v = *v * b2 + g * g * fresh2;
                    *p = *p * keep - step_size * (*m / (v.sqrt() / root + eps));
                }
            },
        );
    });
}
