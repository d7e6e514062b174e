//! One use of the parameters, and the layers made of them.

use super::{Id, Params};
use crate::ops::{self, Cache, Gelu, Normed, Options, Weight};
use crate::tensor::{Dropout, Storage, Stream, Tape, Tensor};
use crate::{Error, Result};
use std::cell::RefCell;
use std::collections::HashSet;

/// Dropout of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutPlan {
    /// The probability that an element is dropped.
    pub p: f32,
    /// Of the run.
    pub seed: u64,
    /// Of the run.
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
    batch_invariant: bool,
    /// The parameters are constants: only inputs are tracked.
    inputs_only: bool,
}

impl<'a> Pass<'a> {
    /// Without a tape and without dropout.
    pub fn inference(params: &'a Params) -> Pass<'a> {
        let (leaves, drawn) = (RefCell::default(), RefCell::default());
        Pass {
            params,
            tape: None,
            leaves,
            drop: None,
            site: 0,
            drawn,
            batch_invariant: false,
            inputs_only: false,
        }
    }

    /// Recorded on a tape, so that gradients find their way back.
    pub fn training(params: &'a Params, tape: &'a Tape, drop: Option<DropoutPlan>) -> Pass<'a> {
        Pass {
            tape: Some(tape),
            drop,
            leaves: RefCell::new([vec![None; params.len()], vec![None; params.len()]]),
            ..Pass::inference(params)
        }
    }

    /// An inference pass that tracks inputs ([`Pass::input`]), and no parameter.
    pub fn observing(params: &'a Params, tape: &'a Tape) -> Pass<'a> {
        Pass { tape: Some(tape), inputs_only: true, ..Pass::inference(params) }
    }

    /// A training pass without a tape: it draws the same numbers, but records nothing.
    pub fn untracked(params: &'a Params, drop: Option<DropoutPlan>) -> Pass<'a> {
        Pass { drop, ..Pass::inference(params) }
    }

    /// For decoding: dense layers whose sums do not depend on the number of rows ([`Options::batch_invariant`]). Layers in half
    /// precision, the image encoder's, are not: they are given chunks of one size.
    #[must_use]
    pub fn batch_invariant(mut self) -> Self {
        self.batch_invariant = true;
        self
    }

    /// Draws its random numbers from this site on.
    #[must_use]
    pub fn at_site(mut self, site: u32) -> Self {
        self.site = site;
        self
    }

    /// The parameters it reads.
    pub fn params(&self) -> &Params {
        self.params
    }

    /// Whether gradients of parameters are recorded.
    pub fn tracks(&self) -> bool {
        self.tape.is_some() && !self.inputs_only
    }

    /// The parameter, tracked if it is trained and a tape records.
    pub fn param(&self, id: Id) -> Tensor {
        match self.params.copy(id) {
            Some(copy) => self.leaf(id, copy, 1),
            None => self.master(id),
        }
    }

    /// The parameter in f32, also where matmuls use less.
    pub fn master(&self, id: Id) -> Tensor {
        self.leaf(id, self.params.get(id), 0)
    }

    fn leaf(&self, id: Id, value: &Tensor, which: usize) -> Tensor {
        match self.tape {
            Some(tape) if !self.inputs_only && self.params.specs()[id.0].trained => {
                let mut leaves = self.leaves.borrow_mut();
                leaves[which][id.0].get_or_insert_with(|| tape.leaf(value, id.0)).clone()
            }
            _ => value.clone(),
        }
    }

    /// A constant where the parameters are: in f32 if it has to be moved there.
    pub fn here(&self, t: &Tensor) -> Result<Tensor> {
        t.at(self.params.device())
    }

    /// How a GPU stores the activations of the part of the model to which a parameter belongs.
    pub fn storage(&self, id: Id) -> Storage {
        self.params.precision().storage(self.params.specs()[id.0].part)
    }

    /// A dense layer with these parameters.
    pub fn linear(&self, x: &Tensor, weight: Id, bias: Id) -> Result<Tensor> {
        self.linear_with(x, weight, &self.param(bias))
    }

    /// Three dense layers of one input: results, and the column where each begins. Where they lie side by side, their results
    /// are one matrix on a tape.
    pub fn linears(&self, x: &Tensor, layers: [&Linear; 3]) -> Result<[(Tensor, usize); 3]> {
        if !self.tracks() || self.batch_invariant || !self.params.are_beside(layers[0].weight) {
            let [a, b, c] = layers.map(|l| l.forward(self, x));
            return Ok([(a?, 0), (b?, 0), (c?, 0)]);
        }
        let n = self.params.specs()[layers[0].weight.0].shape[0];
        let own = layers.map(|l| [self.param(l.weight), self.param(l.bias)]);
        let weight = Weight::Beside(own.each_ref().map(|[w, b]| [w, b]));
        let y = ops::linear(x, weight, Options::default())?;
        Ok([(y.clone(), 0), (y.clone(), n), (y, 2 * n)])
    }

    /// A dense layer for a loss that takes padded columns ([`Weight::Padded`]), where there are any.
    pub fn linear_padded(&self, x: &Tensor, weight: Id, bias: Id) -> Result<Tensor> {
        match (self.params.padded(weight), self.params.padded(bias)) {
            (Some(w), Some(b)) if !self.batch_invariant => {
                let layer = [weight, bias].map(|id| self.param(id));
                let weight = Weight::Padded { layer: layer.each_ref(), wide: [w, b] };
                ops::linear(x, weight, Options::default())
            }
            _ => self.linear(x, weight, bias),
        }
    }

    /// The dense layer of queries, keys and values, whose keys have no bias: from what was made once where it is frozen.
    pub fn linear_qkv(&self, x: &Tensor, weight: Id) -> Result<Tensor> {
        if let Some(bias) = self.params.qkv_bias(weight) {
            return self.linear_with(x, weight, bias);
        }
        let Some([q, v]) = self.params.specs()[weight.0].qkv else {
            return Err(Error::argument("linear", "bias", "those of queries and values", "none"));
        };
        self.linear_with(x, weight, &with_keys(&self.param(q), &self.param(v))?)
    }

    /// A dense layer whose bias is computed.
    pub fn linear_with(&self, x: &Tensor, weight: Id, bias: &Tensor) -> Result<Tensor> {
        if let Some(weight) = self.params.half(weight) {
            return ops::linear(x, Weight::Half(weight, Some(bias)), Options::default());
        }
        let options = Options { batch_invariant: self.batch_invariant, ..Options::default() };
        ops::linear(x, Weight::Dense(&self.param(weight), Some(bias)), options)
    }

    /// GELU of a dense layer; where it is batch-invariant, in one kernel.
    pub fn linear_gelu(&self, x: &Tensor, layer: &Linear) -> Result<Tensor> {
        self.with_gelu(x, layer, Gelu::Exact)
    }

    /// GELU of a dense layer of the image encoder, in the form that the precision says.
    pub fn vit_gelu(&self, x: &Tensor, layer: &Linear) -> Result<Tensor> {
        self.with_gelu(x, layer, self.params.precision().vit_gelu)
    }

    fn with_gelu(&self, x: &Tensor, layer: &Linear, gelu: Gelu) -> Result<Tensor> {
        if gelu == Gelu::Exact && self.params.half(layer.weight).is_some() {
            return ops::gelu(&layer.forward(self, x)?);
        }
        let batch_invariant = self.batch_invariant && gelu == Gelu::Exact;
        let options = Options { gelu: Some(gelu), batch_invariant, ..Options::default() };
        let [weight, bias] = [layer.weight, layer.bias].map(|id| self.param(id));
        ops::linear(x, Weight::Dense(&weight, Some(&bias)), options)
    }

    /// A batch-invariant dense layer of rows that are normalised on the way, or GELU of it; the normalised rows, and its result.
    pub fn linear_of(
        &self,
        rows: &Unnormed,
        [weight, bias]: [Id; 2],
        gelu: Option<Gelu>,
    ) -> Result<(Tensor, Tensor)> {
        let [weight, bias] = [weight, bias].map(|id| self.param(id));
        let options = Options { gelu, ..Options::batch_invariant() };
        rows.then(self, Weight::Dense(&weight, Some(&bias)), options)
    }

    /// Of rows that are normalised on the way queries; their keys and values become rows of two caches, from row `at` on. The
    /// normalised rows, and the queries.
    pub fn linear_cached(
        &self,
        rows: &Unnormed,
        layers: [&Linear; 3],
        caches: [&mut Tensor; 2],
        at: usize,
    ) -> Result<(Tensor, Tensor)> {
        let layers = layers.map(|l| [self.param(l.weight), self.param(l.bias)]);
        let weight = Weight::Beside(layers.each_ref().map(|[w, b]| [w, b]));
        let cache = Some(Cache { tensors: caches, at });
        rows.then(self, weight, Options { cache, ..Options::batch_invariant() })
    }

    /// Tracks an input under a key behind the parameters' (gradients with respect to activations).
    pub fn input(&self, t: &Tensor, nth: usize) -> Tensor {
        self.tape.map_or_else(|| t.clone(), |tape| tape.leaf(t, self.params.len() + nth))
    }

    /// The dropout of a site in this step, if there is any.
    pub fn dropout(&self, site: u32) -> Option<Dropout> {
        self.dropout_of(site, self.drop?.p)
    }

    /// The dropout of a site with a probability of its own, in a pass that drops anything.
    pub fn dropout_of(&self, site: u32, p: f32) -> Option<Dropout> {
        let plan = self.drop.filter(|_| p > 0.0)?;
        let stream = Stream { seed: plan.seed, step: plan.step, site: self.site.wrapping_add(site) };
        debug_assert!(self.drawn.borrow_mut().insert(stream.site), "two dropouts draw from site {site}");
        Some(Dropout { p, stream })
    }
}

/// Biases of queries and values with the keys', which is 0, between them [3W].
pub(super) fn with_keys(q: &Tensor, v: &Tensor) -> Result<Tensor> {
    let w = q.len();
    let (q, v) = (q.reshape(&[w, 1])?, v.reshape(&[w, 1])?);
    let none = ops::scale(&q.detach(), 0.0)?;
    ops::concat_rows(&[&q, &none, &v])?.reshape(&[3 * w])
}

/// A dense layer, y = x weight^T + bias.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// `[N,K]` of a dense layer, `[C]` of a norm.
    pub weight: Id,
    /// One per column of the result.
    pub bias: Id,
}

impl Linear {
    /// The layer's result.
    pub fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        pass.linear(x, self.weight, self.bias)
    }
}

/// LayerNorm over the last axis.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    /// `[N,K]` of a dense layer, `[C]` of a norm.
    pub weight: Id,
    /// One per column of the result.
    pub bias: Id,
    /// Added to the variance.
    pub eps: f64,
}

/// Rows that are normalised where the next layer reads them: LayerNorm(branch + stream). For decoding.
pub struct Unnormed<'a> {
    /// The norm.
    pub norm: &'a LayerNorm,
    /// `[R,C]`
    pub branch: Tensor,
    /// `[R,C]`, where there is one.
    pub stream: Option<Tensor>,
}

impl Unnormed<'_> {
    fn then(&self, pass: &Pass, weight: Weight, options: Options) -> Result<(Tensor, Tensor)> {
        let LayerNorm { weight: w, bias: b, eps } = *self.norm;
        let storage = self.stream.is_none().then(|| pass.storage(w));
        let [w, b] = [w, b].map(|id| pass.param(id));
        let (branch, stream) = (&self.branch, self.stream.as_ref());
        let norm = Normed { branch, stream, weight: &w, bias: &b, eps, storage };
        ops::linear_of_norm(norm, weight, options)
    }
}

impl LayerNorm {
    /// The layer's result.
    pub fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let (w, b) = (pass.param(self.weight), pass.param(self.bias));
        ops::layer_norm_as(x, &w, &b, self.eps, Some(pass.storage(self.weight)))
    }

    /// LayerNorm(stream + drop(branch)): the end of a sublayer that is normalised behind the sum. One kernel on a GPU.
    pub fn after(
        &self,
        pass: &Pass,
        branch: &Tensor,
        stream: &Tensor,
        drop: Option<Dropout>,
    ) -> Result<Tensor> {
        let (w, b) = (pass.param(self.weight), pass.param(self.bias));
        Ok(ops::residual_norm(branch, stream, &w, &b, self.eps, drop)?.0)
    }

    /// stream + branch, and its LayerNorm: between two sublayers that are normalised in front. Where no gradient is asked
    /// for, in one kernel on a GPU.
    pub fn between(&self, pass: &Pass, branch: &Tensor, stream: &Tensor) -> Result<(Tensor, Tensor)> {
        if branch.tracked() || stream.tracked() {
            let sum = ops::add(stream, branch)?;
            let y = self.forward(pass, &sum)?;
            return Ok((sum, y));
        }
        let (w, b) = (pass.param(self.weight), pass.param(self.bias));
        let (y, sum) = ops::residual_norm(branch, stream, &w, &b, self.eps, None)?;
        Ok((sum, y))
    }
}
