//! One layer of a decoder, over rows.     x [R,D]
//!   y = out(attention(q, k, v)),  q, k, v of n = norm1 x;   m = down(act(up n2)),  n2 = norm2
//!   before:   x = x + y;  x = x + m(norm2 x)          after: x = norm1(x + y);  x = norm2(x + m(x))
//!   parallel: x = x + y + m(norm2 x)
//!
//! A layer is declared with ids and bound to their tensors, which a backward may keep.

use super::config::{Activation, LlmConfig, Residual};
use crate::Result;
use crate::nn::{Id, Pass};
use crate::ops::{self, Grouped, Heads, Options, Rotary, Segments, Weight};
use crate::tensor::{Dropout, Tensor};
use std::sync::Arc;

/// A dense layer; P is a parameter's id, or its tensor.
pub struct Dense<P> {
    pub weight: P,
    pub bias: Option<P>,
}

pub enum Norm<P> {
    Layer { weight: P, bias: P, eps: f64 },
    Rms { weight: P, eps: f64 },
}

pub enum Qkv<P> {
    /// Rows of all queries, then of all keys, then of all values.
    One(Dense<P>),
    Three([Dense<P>; 3]),
}

pub struct Layer<P> {
    pub norms: [Norm<P>; 2],
    pub qkv: Qkv<P>,
    /// Weights of RMSNorm for each head of q and of k.
    pub head_norms: Option<[P; 2]>,
    pub out: Dense<P>,
    pub gate: Option<Dense<P>>,
    pub up: Dense<P>,
    pub down: Dense<P>,
    pub kind: Kind,
}

/// What the layers of a decoder have in common.
#[derive(Clone, Copy)]
pub struct Kind {
    pub grouped: Grouped,
    pub residual: Residual,
    pub activation: Activation,
    pub eps: f64,
}

impl Kind {
    pub fn of(c: &LlmConfig) -> Kind {
        let grouped = Grouped { heads: c.heads, key_heads: c.key_heads, size: c.head_size };
        Kind { grouped, residual: c.residual, activation: c.activation, eps: c.eps }
    }

    pub fn scale(&self) -> f64 {
        (self.grouped.size as f64).powf(-0.5)
    }
}

/// Dropout of a layer: of attention's probabilities, of its end, of the feed-forward's.
#[derive(Clone, Copy, Default)]
pub struct Drops {
    pub attention: Option<Dropout>,
    pub out: Option<Dropout>,
    pub down: Option<Dropout>,
}

/// How dense layers are computed: by matmuls, or row by row in an order of their own, for decoding.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sums {
    Matmul,
    BatchInvariant,
}

impl Dense<Id> {
    fn bind(&self, pass: &Pass) -> Dense<Tensor> {
        Dense { weight: pass.param(self.weight), bias: self.bias.map(|id| pass.param(id)) }
    }
}

impl Dense<Tensor> {
    pub fn forward(&self, x: &Tensor, sums: Sums) -> Result<Tensor> {
        let options = Options { batch_invariant: sums == Sums::BatchInvariant, ..Options::default() };
        ops::linear(x, Weight::Dense(&self.weight, self.bias.as_ref()), options)
    }

    /// Output rows from one on.
    fn part(&self, from: usize, rows: usize) -> Result<Dense<Tensor>> {
        let bias = self
            .bias
            .as_ref()
            .map(|b| b.reshape(&[b.len(), 1])?.slice_rows(from..from + rows)?.reshape(&[rows]));
        Ok(Dense { weight: self.weight.slice_rows(from..from + rows)?, bias: bias.transpose()? })
    }
}

impl Norm<Id> {
    pub fn bind(&self, pass: &Pass) -> Norm<Tensor> {
        match *self {
            Norm::Layer { weight, bias, eps } => {
                Norm::Layer { weight: pass.param(weight), bias: pass.param(bias), eps }
            }
            Norm::Rms { weight, eps } => Norm::Rms { weight: pass.param(weight), eps },
        }
    }
}

impl Norm<Tensor> {
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Norm::Layer { weight, bias, eps } => ops::layer_norm(x, weight, bias, *eps),
            Norm::Rms { weight, eps } => ops::rms_norm(x, weight, *eps),
        }
    }
}

impl Layer<Id> {
    /// This layer's tensors. `split`: q, k and v apart, as caches want them.
    pub fn bind(&self, pass: &Pass, split: bool) -> Result<Layer<Tensor>> {
        let qkv = match &self.qkv {
            Qkv::One(all) if split => {
                let (all, g) = (all.bind(pass), self.kind.grouped);
                let (queries, keys) = (g.heads * g.size, g.key_heads * g.size);
                Qkv::Three([all.part(0, queries)?, all.part(queries, keys)?, all.part(queries + keys, keys)?])
            }
            Qkv::One(all) => Qkv::One(all.bind(pass)),
            Qkv::Three(each) => Qkv::Three(each.each_ref().map(|d| d.bind(pass))),
        };
        Ok(Layer {
            norms: self.norms.each_ref().map(|n| n.bind(pass)),
            qkv,
            head_norms: self.head_norms.map(|ids| ids.map(|id| pass.param(id))),
            out: self.out.bind(pass),
            gate: self.gate.as_ref().map(|d| d.bind(pass)),
            up: self.up.bind(pass),
            down: self.down.bind(pass),
            kind: self.kind,
        })
    }
}

impl Layer<Tensor> {
    /// What q, k and v are made of.
    pub fn input(&self, x: &Tensor) -> Result<Tensor> {
        if self.kind.residual == Residual::After { Ok(x.clone()) } else { self.norms[0].forward(x) }
    }

    /// Tensors of q, k and v of all rows, normed and turned, and the column where each begins.
    pub fn heads(
        &self,
        n: &Tensor,
        rotary: Option<&Arc<Rotary>>,
        sums: Sums,
    ) -> Result<[(Tensor, usize); 3]> {
        let g = self.kind.grouped;
        match &self.qkv {
            Qkv::One(all) => {
                let y = turned(all.forward(n, sums)?, g.heads + g.key_heads, g.size, rotary)?;
                let queries = g.heads * g.size;
                Ok([(y.clone(), 0), (y.clone(), queries), (y, queries + g.key_heads * g.size)])
            }
            Qkv::Three([_, _, value]) => {
                let q = self.queries(n, rotary, sums)?;
                let k = self.keys(n, rotary, sums)?;
                Ok([(q, 0), (k, 0), (value.forward(n, sums)?, 0)])
            }
        }
    }

    /// q of rows, where it is a matrix of its own.
    fn queries(&self, n: &Tensor, rotary: Option<&Arc<Rotary>>, sums: Sums) -> Result<Tensor> {
        self.one(0, self.kind.grouped.heads, n, rotary, sums)
    }

    fn keys(&self, n: &Tensor, rotary: Option<&Arc<Rotary>>, sums: Sums) -> Result<Tensor> {
        self.one(1, self.kind.grouped.key_heads, n, rotary, sums)
    }

    fn one(
        &self,
        which: usize,
        heads: usize,
        n: &Tensor,
        rotary: Option<&Arc<Rotary>>,
        sums: Sums,
    ) -> Result<Tensor> {
        let dense = match &self.qkv {
            Qkv::One(all) => all,
            Qkv::Three(each) => &each[which],
        };
        let (y, size) = (dense.forward(n, sums)?, self.kind.grouped.size);
        let y = match &self.head_norms {
            None => y,
            Some(weights) => {
                let sizes = y.shape();
                let rows = y.reshape(&[y.rows().0 * heads, size])?;
                ops::rms_norm(&rows, &weights[which], self.kind.eps)?.reshape(sizes.sizes())?
            }
        };
        turned(y, heads, size, rotary)
    }

    /// Attention over segments; of the rows `keep` alone, whose table and positions are their own, if they are given.
    pub fn attend(
        &self,
        n: &Tensor,
        (segments, rotary): (&Arc<Segments>, Option<&Arc<Rotary>>),
        keep: Option<&Kept>,
        drop: Option<Dropout>,
    ) -> Result<Tensor> {
        let (sums, scale) = (Sums::Matmul, self.kind.scale());
        let (qkv, segments) = match (keep, &self.qkv) {
            (None, _) => (self.heads(n, rotary, sums)?, segments),
            (Some(keep), Qkv::One(_)) => {
                let [(all, at), k, v] = self.heads(n, rotary, sums)?;
                ([(ops::gather_rows(&all, &keep.rows)?, at), k, v], &keep.segments)
            }
            (Some(keep), Qkv::Three([_, _, value])) => {
                let q = self.queries(&ops::gather_rows(n, &keep.rows)?, keep.rotary.as_ref(), sums)?;
                let v = value.forward(n, sums)?;
                ([(q, 0), (self.keys(n, rotary, sums)?, 0), (v, 0)], &keep.segments)
            }
        };
        let heads = qkv.each_ref().map(|(tensor, column)| Heads { tensor, column: *column });
        ops::grouped_attention(heads, segments, self.kind.grouped, scale, drop)
    }

    /// From the stream's rows to those of the next layer; of the rows `keep` alone, if they are given.
    pub fn forward(
        &self,
        x: &Tensor,
        segments: &Arc<Segments>,
        rotary: Option<&Arc<Rotary>>,
        keep: Option<&Kept>,
        drops: Drops,
    ) -> Result<Tensor> {
        let y = self.attend(&self.input(x)?, (segments, rotary), keep, drops.attention)?;
        match keep {
            Some(keep) => self.finish(&ops::gather_rows(x, &keep.rows)?, &y, Sums::Matmul, drops),
            None => self.finish(x, &y, Sums::Matmul, drops),
        }
    }

    /// From attention's result y to the layer's.
    pub fn finish(&self, x: &Tensor, y: &Tensor, sums: Sums, drops: Drops) -> Result<Tensor> {
        let y = ops::dropout(&self.out.forward(y, sums)?, drops.out)?;
        let sum = ops::add(x, &y)?;
        match self.kind.residual {
            Residual::Before => ops::add(&sum, &self.feed(&self.norms[1].forward(&sum)?, sums, drops.down)?),
            Residual::Parallel => ops::add(&sum, &self.feed(&self.norms[1].forward(x)?, sums, drops.down)?),
            Residual::After => {
                let x = self.norms[0].forward(&sum)?;
                self.norms[1].forward(&ops::add(&x, &self.feed(&x, sums, drops.down)?)?)
            }
        }
    }

    fn feed(&self, n: &Tensor, sums: Sums, drop: Option<Dropout>) -> Result<Tensor> {
        let up = self.up.forward(n, sums)?;
        let middle = match (self.kind.activation, &self.gate) {
            (Activation::Gate, Some(gate)) => ops::silu_mul(&gate.forward(n, sums)?, &up),
            (Activation::Gelu, _) => ops::gelu(&up),
            (Activation::GeluTanh, _) => ops::gelu_tanh(&up),
            _ => ops::relu(&up),
        }?;
        ops::dropout(&self.down.forward(&middle, sums)?, drop)
    }
}

/// Rows that are kept of the last layer: those that somebody reads.
#[derive(Clone)]
pub struct Kept {
    pub rows: Vec<u32>,
    pub segments: Arc<Segments>,
    pub rotary: Option<Arc<Rotary>>,
}

fn turned(x: Tensor, heads: usize, size: usize, rotary: Option<&Arc<Rotary>>) -> Result<Tensor> {
    match rotary {
        Some(rotary) => ops::rotary(&x, (heads, size), rotary),
        None => Ok(x),
    }
}
