//! The optimizer: AdamW ([`crate::ops::adamw`]) with its moments, and which parameters it takes.
//!
//! No weight decay on parameters of fewer than two axes (LAVIS's groups; `nn::Spec` says it of each parameter).
//! Of an image encoder of L blocks that is trained with layer decay d, block i learns at lr d^(L - i), what stands before
//! the blocks at lr d^(L + 1); everything else at lr.

use crate::nn::{Id, Params};
use crate::ops::{AdamWStep, AdamWTables, Parameter, Squares};
use crate::tensor::{Buffer, Gradients, Tensor};
use crate::{Error, Result};

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

/// First and second moments of one parameter; in the order of the trained parameters.
pub struct Moments {
    pub id: Id,
    pub exp_avg: Buffer,
    pub exp_avg_sq: Buffer,
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
    tables: AdamWTables,
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
        let last = params.specs().iter().filter_map(|s| vit_block(&s.name)).max().unwrap_or(0);
        let moments = trained.map(|(id, spec, value)| {
            let below = vit_block(&spec.name).map_or(0, |block| last + 1 - block);
            let scale = hyper.vit_layer_decay.powf(below as f64);
            let zeros = || value.zeros_beside("AdamW");
            Ok(Moments { id, exp_avg: zeros()?, exp_avg_sq: zeros()?, scale })
        });
        Ok(AdamW {
            hyper,
            steps: 0,
            moments: moments.collect::<Result<_>>()?,
            tables: AdamWTables::default(),
        })
    }

    /// The squares of gradients, and on a GPU whether the loss is finite ([`AdamWTables::squares`]).
    pub fn squares(&mut self, grads: &Gradients, loss: Option<&Tensor>) -> Result<Squares> {
        let all: Vec<&Buffer> = grads.keys().filter_map(|key| grads.get(key)).collect();
        self.tables.squares(&all, loss)
    }

    /// One step with gradients multiplied by `unscale`; parameters without a gradient stay as they are.
    /// The gradients are consumed.
    pub fn step(&mut self, params: &mut Params, grads: &mut Gradients, lr: f64, unscale: f64) -> Result<()> {
        self.step_if(params, grads, (lr, unscale), None)?;
        grads.clear();
        Ok(())
    }

    /// [`AdamW::step`]; but nothing changes where the squares are on a GPU and turn out not to be finite. Then call [`AdamW::undo`].
    pub fn step_if(
        &mut self,
        params: &mut Params,
        grads: &Gradients,
        (lr, unscale): (f64, f64),
        squares: Option<&Squares>,
    ) -> Result<()> {
        if !(lr.is_finite() && lr >= 0.0) {
            return Err(Error::argument("AdamW", "learning rate", "a finite number, at least 0", lr));
        }
        self.steps += 1;
        let Hyper { betas, eps, weight_decay, .. } = self.hyper;
        let by = AdamWStep { lr, betas, eps, weight_decay, step: self.steps, unscale };
        let with_moments = params.trained_mut().zip(&mut self.moments);
        let mut all: Vec<Parameter> = with_moments
            .filter_map(|(p, m)| {
                Some(Parameter {
                    name: &p.spec.name,
                    value: p.value,
                    copy: p.copy,
                    gradient: grads.get(m.id.0)?,
                    exp_avg: &mut m.exp_avg,
                    exp_avg_sq: &mut m.exp_avg_sq,
                    decays: p.spec.decays,
                    scale: m.scale,
                })
            })
            .collect();
        self.tables.step(&mut all, &by, squares)
    }

    /// A step that changed nothing is none.
    pub fn undo(&mut self) {
        self.steps -= 1;
    }
}
