//! Parameters under their LAVIS names, and the pass that uses them.
//!
//! A model holds ids; the numbers live in [`Params`]. A [`Pass`] hands them out: tracked on its tape if they are trained,
//! constants otherwise. So frozen parameters never get a gradient buffer.

use crate::ops;
use crate::tensor::{DType, Dropout, HalfMatrix, Stream, Tape, Tensor};
use crate::{Error, Result};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// How a parameter begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// The deviation.
    Normal(f64),
    /// From minus this to this.
    Uniform(f64),
    Constant(f64),
}

#[derive(Clone, Debug)]
pub struct Spec {
    pub name: String,
    pub shape: Vec<usize>,
    pub init: Init,
    pub trained: bool,
}

/// Index of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(pub usize);

/// Collects specifications while a model is laid out.
#[derive(Default)]
pub struct Builder {
    pub specs: Vec<Spec>,
    trained: bool,
}

impl Builder {
    /// Parameters declared from here on are trained, or frozen.
    pub fn trained(&mut self, trained: bool) {
        self.trained = trained;
    }

    pub fn param(&mut self, name: impl Into<String>, shape: &[usize], init: Init) -> Id {
        self.specs.push(Spec { name: name.into(), shape: shape.to_vec(), init, trained: self.trained });
        Id(self.specs.len() - 1)
    }

    /// As BERT begins a dense layer.
    pub fn linear(&mut self, name: &str, input: usize, output: usize) -> Linear {
        Linear {
            weight: self.param(format!("{name}.weight"), &[output, input], Init::Normal(0.02)),
            bias: self.param(format!("{name}.bias"), &[output], Init::Constant(0.0)),
        }
    }

    /// As PyTorch begins a dense layer that nobody initialises: LAVIS's projections and its matching head.
    pub fn plain_linear(&mut self, name: &str, input: usize, output: usize) -> Linear {
        let init = Init::Uniform((input as f64).sqrt().recip());
        Linear {
            weight: self.param(format!("{name}.weight"), &[output, input], init),
            bias: self.param(format!("{name}.bias"), &[output], init),
        }
    }

    pub fn norm(&mut self, name: &str, width: usize, eps: f64) -> LayerNorm {
        LayerNorm {
            weight: self.param(format!("{name}.weight"), &[width], Init::Constant(1.0)),
            bias: self.param(format!("{name}.bias"), &[width], Init::Constant(0.0)),
            eps,
        }
    }
}

/// The same parameters for a model that starts from nothing. BERT's deviation of 0.02 suits rows that are added to trained
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

/// The numbers of a parameter.
pub enum Value {
    Tensor(Tensor),
    /// A frozen weight of dense layers.
    Half(HalfMatrix),
}

/// All parameters of a model, in the order they were declared.
pub struct Params {
    specs: Vec<Spec>,
    values: Vec<Tensor>,
    /// Instead of the value, which is then an empty tensor.
    halves: Vec<Option<HalfMatrix>>,
}

impl Params {
    /// Values from `source`, which is asked once per parameter.
    pub fn new(specs: Vec<Spec>, mut source: impl FnMut(&Spec) -> Result<Tensor>) -> Result<Params> {
        Params::of_values(specs, |spec| source(spec).map(Value::Tensor))
    }

    /// The same, frozen weights in half precision among them.
    pub fn of_values(specs: Vec<Spec>, mut source: impl FnMut(&Spec) -> Result<Value>) -> Result<Params> {
        let (mut values, mut halves) = (Vec::with_capacity(specs.len()), Vec::with_capacity(specs.len()));
        let mut dtype = None;
        for spec in &specs {
            let value = source(spec)?;
            let sizes = match &value {
                Value::Tensor(t) => t.shape().sizes().to_vec(),
                Value::Half(h) => h.sizes().to_vec(),
            };
            let wrong = |expected: String, got: String| {
                Err(Error::argument("model weights", &spec.name, expected, got))
            };
            if sizes != spec.shape {
                return wrong(format!("{:?}", spec.shape), format!("{sizes:?}"));
            }
            match value {
                Value::Tensor(t) => {
                    let first: DType = *dtype.get_or_insert(t.dtype());
                    if t.dtype() != first {
                        return wrong(first.to_string(), t.dtype().to_string());
                    }
                    values.push(t.detach());
                    halves.push(None);
                }
                Value::Half(_) if spec.trained => {
                    return wrong("f32 or f64, since it is trained".into(), "half precision".into());
                }
                Value::Half(h) => {
                    values.push(Tensor::zeros(DType::F32, &[0]));
                    halves.push(Some(h));
                }
            }
        }
        Ok(Params { specs, values, halves })
    }

    /// Random values as a model's training begins, from a seed.
    pub fn random(specs: Vec<Spec>, dtype: DType, seed: u64) -> Result<Params> {
        let mut index = 0;
        Params::new(specs, |spec| {
            let each = |i: usize| initial(spec, index, seed, i..i + 1).sum::<f64>();
            let values: Vec<f64> = (0..spec.shape.iter().product()).into_par_iter().map(each).collect();
            index += 1;
            Tensor::of(dtype, &values, &spec.shape)
        })
    }

    pub fn len(&self) -> usize {
        self.specs.len()
    }

    pub fn is_empty(&self) -> bool {
        self.specs.is_empty()
    }

    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// An empty tensor for one in half precision.
    pub fn get(&self, id: Id) -> &Tensor {
        &self.values[id.0]
    }

    pub fn half(&self, id: Id) -> Option<&HalfMatrix> {
        self.halves[id.0].as_ref()
    }

    pub fn get_mut(&mut self, id: Id) -> &mut Tensor {
        &mut self.values[id.0]
    }

    pub fn find(&self, name: &str) -> Option<Id> {
        self.specs.iter().position(|s| s.name == name).map(Id)
    }

    pub fn iter(&self) -> impl Iterator<Item = (Id, &Spec, &Tensor)> {
        self.specs.iter().zip(&self.values).enumerate().map(|(i, (s, v))| (Id(i), s, v))
    }
}

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
    leaves: RefCell<Vec<Option<Tensor>>>,
    drop: Option<DropoutPlan>,
    /// Added to every site, so that the micro-batches of a step draw different masks.
    site: u32,
    exact: bool,
}

impl<'a> Pass<'a> {
    pub fn inference(params: &'a Params) -> Pass<'a> {
        Pass { params, tape: None, leaves: RefCell::default(), drop: None, site: 0, exact: false }
    }

    pub fn training(params: &'a Params, tape: &'a Tape, drop: Option<DropoutPlan>) -> Pass<'a> {
        Pass {
            tape: Some(tape),
            drop,
            leaves: RefCell::new(vec![None; params.len()]),
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
        let value = self.params.get(id);
        match self.tape {
            Some(tape) if self.params.specs[id.0].trained => {
                let mut leaves = self.leaves.borrow_mut();
                leaves[id.0].get_or_insert_with(|| tape.leaf(value, id.0)).clone()
            }
            _ => value.clone(),
        }
    }

    /// A dense layer with these parameters.
    pub fn linear(&self, x: &Tensor, weight: Id, bias: Id) -> Result<Tensor> {
        self.linear_with(x, weight, &self.param(bias))
    }

    /// A dense layer whose bias is computed.
    pub fn linear_with(&self, x: &Tensor, weight: Id, bias: &Tensor) -> Result<Tensor> {
        if let Some(weight) = self.params.half(weight) {
            return ops::linear_half(x, weight, Some(bias));
        }
        let product = if self.exact { ops::linear_exact } else { ops::linear };
        product(x, &self.param(weight), Some(bias))
    }

    /// Tracks an input under a key behind the parameters' (gradients with respect to activations).
    pub fn input(&self, t: &Tensor, nth: usize) -> Tensor {
        self.tape.map_or_else(|| t.clone(), |tape| tape.leaf(t, self.params.len() + nth))
    }

    /// The dropout of a site in this step, if there is any.
    pub fn dropout(&self, site: u32) -> Option<Dropout> {
        let plan = self.drop.filter(|d| d.p > 0.0)?;
        let stream = Stream { seed: plan.seed, step: plan.step, site: self.site.wrapping_add(site) };
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
        ops::layer_norm(x, &pass.param(self.weight), &pass.param(self.bias), self.eps)
    }
}
