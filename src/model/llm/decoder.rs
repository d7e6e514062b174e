//! The decoder: what parameters it has, and its pass over packed rows.     rows [R,E] -> hidden [R,E] -> logits [R,V]

use super::config::{Activation, LlmConfig};
use super::layer::{Dense, Drops, Kept, Kind, Layer, Norm, Qkv, Sums};
use crate::model::sites;
use crate::nn::{Builder, Id, Init, Pass};
use crate::ops::{self, Rotary, Segments};
use crate::tensor::Tensor;
use crate::{Error, Result, on};
use std::sync::Arc;

pub struct Decoder {
    pub config: LlmConfig,
    embed: Id,
    places: Option<Id>,
    project: Option<[Dense<Id>; 2]>,
    pub layers: Vec<Layer<Id>>,
    norm: Option<Norm<Id>>,
    head: Id,
    /// Results inside a layer are computed again for its backward, not kept.
    pub recompute: bool,
}

/// Which packed rows see which, and where they stand.
#[derive(Clone)]
pub struct Pack {
    pub segments: Arc<Segments>,
    pub positions: Vec<u32>,
    pub rotary: Option<Arc<Rotary>>,
    /// The rows of the last layer that are read; all, if none are named.
    pub last: Option<Kept>,
}

/// OPT's table of positions begins with two rows of its own.
const OPT_OFFSET: u32 = 2;

/// Declares the parameters of one prefix.
struct Declared<'a> {
    b: &'a mut Builder,
    prefix: &'static str,
}

impl Declared<'_> {
    fn table(&mut self, name: &str, rows: usize, columns: usize) -> Id {
        let init = Init::Normal(0.02);
        self.b.dense(format!("{}.{name}.weight", self.prefix), &[rows, columns], init)
    }

    fn dense(&mut self, name: &str, input: usize, output: usize, bias: bool) -> Dense<Id> {
        let weight = self.table(name, output, input);
        let zeros = Init::Constant(0.0);
        let bias = bias.then(|| self.b.dense(format!("{}.{name}.bias", self.prefix), &[output], zeros));
        Dense { weight, bias }
    }

    fn norm(&mut self, name: &str, width: usize, c: &LlmConfig) -> Norm<Id> {
        let name = format!("{}.{name}", self.prefix);
        if c.activation == Activation::Gate {
            let weight = self.b.param(format!("{name}.weight"), &[width], Init::Constant(1.0));
            return Norm::Rms { weight, eps: c.eps };
        }
        let norm = self.b.norm(&name, width, c.eps);
        Norm::Layer { weight: norm.weight, bias: norm.bias, eps: norm.eps }
    }

    fn layer(&mut self, i: usize, c: &LlmConfig) -> Layer<Id> {
        let names = c.family.names();
        let at = |name: &str| format!("{}.{i}.{name}", names.layers);
        let (queries, keys) = (c.heads * c.head_size, c.key_heads * c.head_size);
        let [bias, out_bias] = c.biases;
        let qkv = match names.qkv {
            [q, k, v] => Qkv::Three([
                self.dense(&at(q), c.width, queries, bias),
                self.dense(&at(k), c.width, keys, bias),
                self.dense(&at(v), c.width, keys, bias),
            ]),
            names => Qkv::One(self.dense(&at(&names.concat()), c.width, queries + 2 * keys, bias)),
        };
        let head_norm = |d: &mut Self, name: &str| {
            d.b.param(format!("{}.{}.weight", d.prefix, at(name)), &[c.head_size], Init::Constant(1.0))
        };
        let plain = c.activation != Activation::Gate;
        Layer {
            norms: [self.norm(&at(names.norms[0]), c.width, c), self.norm(&at(names.norms[1]), c.width, c)],
            head_norms: c.head_norms.then(|| names.head_norms.map(|name| head_norm(self, name))),
            out: self.dense(&at(names.out), queries, c.width, out_bias),
            gate: (!plain).then(|| self.dense(&at(names.gate), c.width, c.ffn, false)),
            up: self.dense(&at(names.up), c.width, c.ffn, plain),
            down: self.dense(&at(names.down), c.ffn, c.width, plain),
            qkv,
            kind: Kind::of(c),
        }
    }
}

impl Decoder {
    pub fn new(b: &mut Builder, config: LlmConfig) -> Decoder {
        let (c, names) = (&config, config.family.names());
        let mut d = Declared { b, prefix: c.prefix() };
        let embed = d.table(names.embed, c.vocab, c.embed_width);
        let places = names.places.map(|name| d.table(name, c.positions + OPT_OFFSET as usize, c.width));
        let [into, back] = names.project;
        let project = (c.embed_width != c.width).then(|| {
            [d.dense(into, c.embed_width, c.width, false), d.dense(back, c.width, c.embed_width, false)]
        });
        let layers = (0..c.layers).map(|i| d.layer(i, c)).collect();
        let norm = c.final_norm.then(|| d.norm(names.norm, c.width, c));
        let head = if c.tied { embed } else { d.table(names.head, c.vocab, c.width) };
        Decoder { embed, places, project, layers, norm, head, recompute: false, config }
    }

    /// Rows of the table of tokens.
    pub fn embed(&self, pass: &Pass, ids: &[u32]) -> Result<Tensor> {
        ops::embedding(&pass.param(self.embed), ids, None)
    }

    /// Where the pack's rows stand, as its layers want to know it.
    pub fn rotary(&self, positions: &[u32]) -> Option<Arc<Rotary>> {
        let f = &self.config.frequencies;
        (!f.is_empty()).then(|| Arc::new(Rotary::new(positions.to_vec(), f)))
    }

    /// Input rows to the stream of the layers.
    pub fn enter(&self, pass: &Pass, x: &Tensor, positions: &[u32], sums: Sums) -> Result<Tensor> {
        let x = match &self.project {
            Some([into, _]) => bound(pass, into).forward(x, sums)?,
            None => x.clone(),
        };
        let Some(places) = self.places else { return Ok(x) };
        let rows: Vec<u32> = positions.iter().map(|p| p + OPT_OFFSET).collect();
        ops::add(&x, &ops::embedding(&pass.param(places), &rows, None)?)
    }

    /// The stream's rows to what the head reads.
    pub fn leave(&self, pass: &Pass, x: &Tensor, sums: Sums) -> Result<Tensor> {
        let x = match &self.norm {
            Some(norm) => norm.bind(pass).forward(x)?,
            None => x.clone(),
        };
        match &self.project {
            Some([_, back]) => bound(pass, back).forward(&x, sums),
            None => Ok(x),
        }
    }

    /// Logits of rows.     hidden [R,E] -> [R,V]
    pub fn logits(&self, pass: &Pass, hidden: &Tensor, sums: Sums) -> Result<Tensor> {
        bound(pass, &Dense { weight: self.head, bias: None }).forward(hidden, sums)
    }

    /// The head's weight [V,E].
    pub fn head(&self, pass: &Pass) -> Tensor {
        pass.param(self.head)
    }

    /// All layers over packed rows x [R,E]; `each` sees every layer's result, `past` its keys and values.
    pub fn forward(
        &self,
        pass: &Pass,
        x: &Tensor,
        pack: &Pack,
        mut each: impl FnMut(&Tensor),
        mut past: Option<&mut Vec<[Tensor; 2]>>,
    ) -> Result<Tensor> {
        let (sums, rotary) = (Sums::Matmul, pack.rotary.as_ref());
        let mut x = self.enter(pass, x, &pack.positions, sums)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let layer = layer.bind(pass, past.is_some())?;
            let keep = pack.last.as_ref().filter(|_| i + 1 == self.layers.len());
            let drops = self.drops(pass, i);
            if self.recompute && past.is_none() {
                let (pack, keep) = (Pack { last: None, ..pack.clone() }, keep.cloned());
                x = ops::recompute(&x, move |x| {
                    layer.forward(x, &pack.segments, pack.rotary.as_ref(), keep.as_ref(), drops)
                })?;
                each(&x);
                continue;
            }
            let Some(past) = &mut past else {
                x = layer.forward(&x, &pack.segments, rotary, keep, drops)?;
                each(&x);
                continue;
            };
            let n = layer.input(&x)?;
            let qkv = layer.heads(&n, rotary, sums)?;
            past.push([qkv[1].0.clone(), qkv[2].0.clone()]);
            let heads = qkv.each_ref().map(|(tensor, column)| ops::Heads { tensor, column: *column });
            let kind = layer.kind;
            let y = ops::grouped_attention(heads, &pack.segments, kind.grouped, kind.scale(), None)?;
            x = layer.finish(&x, &y, sums, drops)?;
            each(&x);
        }
        self.leave(pass, &x, sums)
    }

    fn drops(&self, pass: &Pass, i: usize) -> Drops {
        let site = sites::llm(i);
        let at = |site: u32, p: f64| pass.dropout_of(site, p as f32);
        let [branch, attention] = self.config.dropout;
        Drops { attention: at(site, attention), out: at(site + 1, branch), down: at(site + 2, branch) }
    }
}

fn bound(pass: &Pass, dense: &Dense<Id>) -> Dense<Tensor> {
    Dense { weight: pass.param(dense.weight), bias: dense.bias.map(|id| pass.param(id)) }
}

impl LlmConfig {
    /// A parameter as its file has it, as the decoder wants it: rows of q, k and v of each head become all of q, all of k, all of v.
    pub fn arranged(&self, name: &str, value: Tensor) -> Result<Tensor> {
        on!(value.dtype(), T => match self.rows_arranged(name, value.data::<T>())? {
            Some(rows) => Tensor::new(rows, value.shape().sizes()),
            None => Ok(value),
        })
    }

    /// The rows of a parameter as the decoder wants them, from its numbers row by row; None where they stay as they are.
    pub fn rows_arranged<T: Copy>(&self, name: &str, all: &[T]) -> Result<Option<Vec<T>>> {
        let [qkv] = self.family.names().qkv else { return Ok(None) };
        if !name.contains(qkv) {
            return Ok(None);
        }
        let (h, d) = (self.heads, self.head_size);
        let columns = all.len().checked_div(3 * h * d).unwrap_or(0);
        if columns * 3 * h * d != all.len() {
            let want = format!("{} rows", 3 * h * d);
            return Err(Error::argument("language model", name, want, format!("{} numbers", all.len())));
        }
        let moved = move |row: usize| ((row / d % h) * 3 + row / (h * d)) * d + row % d;
        let rows = (0..3 * h * d).flat_map(|row| &all[moved(row) * columns..][..columns]);
        Ok(Some(rows.copied().collect()))
    }
}
