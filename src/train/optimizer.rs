//! AdamW as torch.optim.AdamW: decoupled weight decay, bias-corrected moments in f32 (or f64).
//!   p -= lr wd p;   m = b1 m + (1-b1) g;   v = b2 v + (1-b2) g^2
//!   p -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)
//! No weight decay on parameters of fewer than two axes or with "bias" in their name (LAVIS's groups).

use crate::device::cpu;
use crate::nn::{Id, Params};
use crate::tensor::{Buffer, Gradients, Real};
use crate::{Error, Result, on};
use rayon::prelude::*;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    pub betas: [f64; 2],
    pub eps: f64,
    pub weight_decay: f64,
}

impl Default for Hyper {
    fn default() -> Hyper {
        Hyper { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.05 }
    }
}

/// First and second moments of one parameter.
pub struct Moments {
    pub id: Id,
    pub exp_avg: Buffer,
    pub exp_avg_sq: Buffer,
    decay: bool,
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
        let trained = params.iter().filter(|(_, spec, _)| spec.trained);
        let moments = trained.map(|(id, spec, value)| Moments {
            id,
            exp_avg: Buffer::zeros(value.dtype(), value.len()),
            exp_avg_sq: Buffer::zeros(value.dtype(), value.len()),
            decay: spec.shape.len() >= 2 && !spec.name.contains("bias"),
        });
        Ok(AdamW { hyper, steps: 0, moments: moments.collect() })
    }

    /// One step with gradients multiplied by `unscale`; parameters without a gradient stay as they are.
    /// The gradients are consumed.
    pub fn step(&mut self, params: &mut Params, grads: &mut Gradients, lr: f64, unscale: f64) -> Result<()> {
        if !(lr.is_finite() && lr >= 0.0) {
            return Err(Error::argument("AdamW", "learning rate", "a finite number, at least 0", lr));
        }
        self.steps += 1;
        let [b1, b2] = self.hyper.betas;
        let t = self.steps as f64;
        let (step_size, root) = (lr / (1.0 - b1.powf(t)), (1.0 - b2.powf(t)).sqrt());
        for m in &mut self.moments {
            let Some(g) = grads.get(m.id.0) else { continue };
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
