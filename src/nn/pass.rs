//! One use of the parameters, and the layers made of them.

use super::{Gelu, Id, Params};
use crate::Result;
use crate::ops;
use crate::tensor::{Device, Dropout, Storage, Stream, Tape, Tensor};
use std::cell::RefCell;
use std::collections::HashSet;

/// Dropout of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutPlan {
    pub p: f32,
    pub seed: u64,
    pub step: u32,
}

/// One use of the parameters: with a tape (training) or without.
pub struct Pass<'a> {
    params: &'a Params,
    tape: Option<&'a Tape>,
    /// Of the values, and of their copies.
    leaves: RefCell<[Vec<Option<Tensor>>; 2]>,
    drop: Option<DropoutPlan>,
    /// Added to every site, so that the micro-batches of a step draw different masks.
    site: u32,
    /// The sites that dropouts have drawn from.
    drawn: RefCell<HashSet<u32>>,
    exact: bool,
}

impl<'a> Pass<'a> {
    pub fn inference(params: &'a Params) -> Pass<'a> {
        let (leaves, drawn) = (RefCell::default(), RefCell::default());
        Pass { params, tape: None, leaves, drop: None, site: 0, drawn, exact: false }
    }

    pub fn training(params: &'a Params, tape: &'a Tape, drop: Option<DropoutPlan>) -> Pass<'a> {
        Pass {
            tape: Some(tape),
            drop,
            leaves: RefCell::new([vec![None; params.len()], vec![None; params.len()]]),
            ..Pass::inference(params)
        }
    }

    /// The same numbers without a tape: as `training` draws them, but nothing is recorded.
    pub fn untracked(params: &'a Params, drop: Option<DropoutPlan>) -> Pass<'a> {
        Pass { drop, ..Pass::inference(params) }
    }

    /// For decoding: dense layers whose sums do not depend on the number of rows (see [`ops::linear_exact`]).
    #[must_use]
    pub fn exact(mut self) -> Self {
        self.exact = true;
        self
    }

    #[must_use]
    pub fn at_site(mut self, site: u32) -> Self {
        self.site = site;
        self
    }

    pub fn params(&self) -> &Params {
        self.params
    }

    pub fn tracks(&self) -> bool {
        self.tape.is_some()
    }

    /// The parameter, tracked if it is trained and a tape records.
    pub fn param(&self, id: Id) -> Tensor {
        match self.params.copy(id) {
            Some(copy) => self.leaf(id, copy, 1),
            None => self.master(id),
        }
    }

    /// The same in f32 also where products use less.
    pub fn master(&self, id: Id) -> Tensor {
        self.leaf(id, self.params.get(id), 0)
    }

    fn leaf(&self, id: Id, value: &Tensor, which: usize) -> Tensor {
        match self.tape {
            Some(tape) if self.params.specs()[id.0].trained => {
                let mut leaves = self.leaves.borrow_mut();
                leaves[which][id.0].get_or_insert_with(|| tape.leaf(value, id.0)).clone()
            }
            _ => value.clone(),
        }
    }

    /// A constant where the parameters are: in f32 if it has to be moved there.
    pub fn here(&self, t: &Tensor) -> Result<Tensor> {
        match self.params.device() {
            Device::Gpu(_) if t.array().is_none() => t.to(self.params.device(), Storage::F32),
            _ => Ok(t.clone()),
        }
    }

    /// How the part of the model to which a parameter belongs stores its activations on a GPU.
    pub fn storage(&self, id: Id) -> Option<Storage> {
        match self.params.device() {
            Device::Gpu(_) => Some(self.params.precision().storage(&self.params.specs()[id.0].name)),
            Device::Cpu => None,
        }
    }

    /// A dense layer with these parameters.
    pub fn linear(&self, x: &Tensor, weight: Id, bias: Id) -> Result<Tensor> {
        self.linear_with(x, weight, &self.param(bias))
    }

    /// Three dense layers of one input: results, and the column where each begins. On a GPU's tape they are one matrix.
    pub fn linears(&self, x: &Tensor, layers: [&Linear; 3]) -> Result<[(Tensor, usize); 3]> {
        let n = self.params.specs()[layers[0].weight.0].shape[0];
        if !self.tracks() || self.exact || x.array().is_none() {
            let [a, b, c] = layers.map(|l| l.forward(self, x));
            return Ok([(a?, 0), (b?, 0), (c?, 0)]);
        }
        let own = layers.map(|l| [self.param(l.weight), self.param(l.bias)]);
        let y = ops::linear_beside(x, own.each_ref().map(|[w, b]| [w, b]))?;
        Ok([(y.clone(), 0), (y.clone(), n), (y, 2 * n)])
    }

    /// A dense layer for a loss that takes padded columns (see [`ops::linear_padded`]), where there are any.
    pub fn linear_padded(&self, x: &Tensor, weight: Id, bias: Id) -> Result<Tensor> {
        match (self.params.padded(weight), self.params.padded(bias)) {
            (Some(w), Some(b)) if !self.exact => {
                ops::linear_padded(x, &self.param(weight), &self.param(bias), [w, b])
            }
            _ => self.linear(x, weight, bias),
        }
    }

    /// A dense layer whose bias is computed.
    pub fn linear_with(&self, x: &Tensor, weight: Id, bias: &Tensor) -> Result<Tensor> {
        if let Some(weight) = self.params.half(weight) {
            return ops::linear_half(x, weight, Some(bias));
        }
        let product = if self.exact { ops::linear_exact } else { ops::linear };
        product(x, &self.param(weight), Some(bias))
    }

    /// GELU of a dense layer. One kernel where decoding runs on a GPU.
    pub fn linear_gelu(&self, x: &Tensor, layer: &Linear) -> Result<Tensor> {
        if self.exact && x.array().is_some() {
            return ops::linear_exact_gelu(x, &self.param(layer.weight), &self.param(layer.bias));
        }
        ops::gelu(&layer.forward(self, x)?)
    }

    /// The same in the image encoder, in the form that the precision says.
    pub fn vit_gelu(&self, x: &Tensor, layer: &Linear) -> Result<Tensor> {
        match self.params.precision().vit_gelu {
            Gelu::Exact => ops::gelu(&layer.forward(self, x)?),
            Gelu::Tanh => ops::linear_gelu_tanh(x, &self.param(layer.weight), Some(&self.param(layer.bias))),
        }
    }

    /// Queries of rows x; their keys and values become rows of two caches (see [`ops::linear_exact_cached`]).
    pub fn linear_cached(
        &self,
        x: &Tensor,
        layers: [&Linear; 3],
        caches: [&mut Tensor; 2],
        at: usize,
    ) -> Result<Tensor> {
        let layers = layers.map(|l| (self.param(l.weight), self.param(l.bias)));
        ops::linear_exact_cached(x, layers.each_ref().map(|(w, b)| (w, b)), caches, at)
    }

    /// Tracks an input under a key behind the parameters' (gradients with respect to activations).
    pub fn input(&self, t: &Tensor, nth: usize) -> Tensor {
        self.tape.map_or_else(|| t.clone(), |tape| tape.leaf(t, self.params.len() + nth))
    }

    /// The dropout of a site in this step, if there is any.
    pub fn dropout(&self, site: u32) -> Option<Dropout> {
        let plan = self.drop.filter(|d| d.p > 0.0)?;
        let stream = Stream { seed: plan.seed, step: plan.step, site: self.site.wrapping_add(site) };
        debug_assert!(self.drawn.borrow_mut().insert(stream.site), "two dropouts draw from site {site}");
        Some(Dropout { p: plan.p, stream })
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Linear {
    pub weight: Id,
    pub bias: Id,
}

impl Linear {
    pub fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        pass.linear(x, self.weight, self.bias)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    pub weight: Id,
    pub bias: Id,
    pub eps: f64,
}

impl LayerNorm {
    pub fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let (w, b) = (pass.param(self.weight), pass.param(self.bias));
        ops::layer_norm_as(x, &w, &b, self.eps, pass.storage(self.weight))
    }

    /// LayerNorm(stream + drop(branch)): the end of a sublayer that is normalised behind the sum. One kernel on a GPU.
    pub fn after(
        &self,
        pass: &Pass,
        branch: &Tensor,
        stream: &Tensor,
        drop: Option<Dropout>,
    ) -> Result<Tensor> {
        if branch.array().is_some() {
            let (w, b) = (pass.param(self.weight), pass.param(self.bias));
            return Ok(ops::residual_norm(branch, stream, &w, &b, self.eps, drop)?.0);
        }
        self.forward(pass, &ops::add(&ops::dropout(branch, drop)?, stream)?)
    }

    /// stream + branch, and its LayerNorm: between two sublayers that are normalised in front.
    pub fn between(&self, pass: &Pass, branch: &Tensor, stream: &Tensor) -> Result<(Tensor, Tensor)> {
        if branch.array().is_some() && !branch.tracked() && !stream.tracked() {
            let (w, b) = (pass.param(self.weight), pass.param(self.bias));
            let (y, sum) = ops::residual_norm(branch, stream, &w, &b, self.eps, None)?;
            return Ok((sum, y));
        }
        let sum = ops::add(stream, branch)?;
        let y = self.forward(pass, &sum)?;
        Ok((sum, y))
    }
}
