//! What parameters a model has: names, shapes, how they begin.

use super::{Id, LayerNorm, Linear, Part};
use crate::tensor::Stream;
use std::ops::Range;

/// How a parameter begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// The deviation.
    Normal(f64),
    /// From minus this to this.
    Uniform(f64),
    /// Everywhere the same.
    Constant(f64),
}

/// What a parameter is: name, shape, how it begins, whether it is trained.
#[derive(Clone, Debug)]
pub struct Spec {
    /// As LAVIS calls it.
    pub name: String,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// How it begins where no file has it.
    pub init: Init,
    /// Whether training changes it.
    pub trained: bool,
    /// It is an operand of matmuls (or a table of rows): on a GPU they run in the storage that a [`super::Precision`] says.
    pub dense: bool,
    /// The part of the model it belongs to.
    pub part: Part,
    /// Whether weight decay shrinks it: not what has fewer than two axes (LAVIS's groups).
    pub decays: bool,
    /// The first of three, declared to lie side by side on a GPU: all of them.
    pub beside: Option<[Id; 3]>,
    /// Of a weight of queries, keys and values: the biases of queries and of values.
    pub qkv: Option<[Id; 2]>,
}

/// Collects specifications while a model is laid out.
#[derive(Default)]
pub struct Builder {
    /// What was declared so far.
    pub specs: Vec<Spec>,
    trained: bool,
    part: Part,
}

impl Builder {
    /// Parameters declared from here on are trained, or frozen.
    pub fn trained(&mut self, trained: bool) {
        self.trained = trained;
    }

    /// Parameters declared from here on belong to this part.
    pub fn part(&mut self, part: Part) {
        self.part = part;
    }

    /// Declares a parameter.
    pub fn param(&mut self, name: impl Into<String>, shape: &[usize], init: Init) -> Id {
        let (name, shape) = (name.into(), shape.to_vec());
        let (trained, part, decays) = (self.trained, self.part, shape.len() >= 2);
        self.specs.push(Spec {
            name,
            shape,
            init,
            trained,
            dense: false,
            part,
            decays,
            beside: None,
            qkv: None,
        });
        Id(self.specs.len() - 1)
    }

    /// An operand of matmuls.
    pub fn dense(&mut self, name: impl Into<String>, shape: &[usize], init: Init) -> Id {
        let id = self.param(name, shape, init);
        self.specs[id.0].dense = true;
        id
    }

    /// Three layers of one input and one size, which a GPU computes as one.
    pub fn beside(&mut self, layers: [Linear; 3]) {
        for ids in [layers.map(|l| l.weight), layers.map(|l| l.bias)] {
            self.specs[ids[0].0].beside = Some(ids);
        }
    }

    /// Queries, keys and values in one layer, whose keys have no bias: its weight.
    pub fn qkv(&mut self, weight: Id, biases: [Id; 2]) -> Id {
        self.specs[weight.0].qkv = Some(biases);
        weight
    }

    /// As BERT begins a dense layer.
    pub fn linear(&mut self, name: &str, input: usize, output: usize) -> Linear {
        Linear {
            weight: self.dense(format!("{name}.weight"), &[output, input], Init::Normal(0.02)),
            bias: self.dense(format!("{name}.bias"), &[output], Init::Constant(0.0)),
        }
    }

    /// As PyTorch begins a dense layer that nobody initialises: LAVIS's projections and its matching head.
    pub fn plain_linear(&mut self, name: &str, input: usize, output: usize) -> Linear {
        let init = Init::Uniform((input as f64).sqrt().recip());
        Linear {
            weight: self.dense(format!("{name}.weight"), &[output, input], init),
            bias: self.dense(format!("{name}.bias"), &[output], init),
        }
    }

    /// Declares a norm's weight and bias.
    pub fn norm(&mut self, name: &str, width: usize, eps: f64) -> LayerNorm {
        LayerNorm {
            weight: self.param(format!("{name}.weight"), &[width], Init::Constant(1.0)),
            bias: self.param(format!("{name}.bias"), &[width], Init::Constant(0.0)),
            eps,
        }
    }
}

/// Specifications for a model that starts from nothing. BERT's deviation of 0.02 suits rows that are added to trained
/// ones; where nothing is trained yet, a signal should keep its size through narrow layers, too:
///   weights [out, in..] and tables [rows, C]: 1 / sqrt(in), 1 / sqrt(C);   tokens and places [1, N, C]: 0.5;   biases: 0
pub fn from_nothing(mut specs: Vec<Spec>) -> Vec<Spec> {
    for spec in &mut specs {
        spec.init = match (spec.init, &spec.shape[..]) {
            (Init::Constant(c), _) => Init::Constant(c),
            (_, [] | [_]) => Init::Constant(0.0),
            (_, [1, ..]) => Init::Normal(0.5),
            (_, [_, rest @ ..]) => {
                Init::Normal((rest.iter().product::<usize>().max(1) as f64).sqrt().recip())
            }
        };
    }
    specs
}

/// Element by element, how a parameter begins from a seed; `index` is its place among the specifications.
pub fn initial(spec: &Spec, index: usize, seed: u64, range: Range<usize>) -> impl Iterator<Item = f64> {
    let stream = Stream { seed, step: u32::MAX, site: index as u32 + 1 };
    let init = spec.init;
    range.map(move |i| match init {
        Init::Constant(c) => c,
        Init::Normal(std) => std * stream.normal(i as u64),
        Init::Uniform(bound) => bound * (2.0 * stream.uniform(i as u64) - 1.0),
    })
}
