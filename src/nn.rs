//! Parameters under their LAVIS names, and the pass that uses them.
//!
//! A model holds ids; the numbers live in [`Params`]. A [`Pass`] hands them out: tracked on its tape if they are trained,
//! constants otherwise. So frozen parameters never get a gradient buffer.

use crate::ops;
use crate::tensor::{DType, Device, Dropout, HalfMatrix, Storage, Stream, Tape, Tensor};
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
    /// It is an operand of products (or a table of rows): on a GPU they run in the storage that a [`Precision`] says.
    pub dense: bool,
}

/// How a GPU stores what dense layers work on: weights and activations of the image encoder, and of everything behind it.
/// The image encoder's residual stream, norms, statistics, losses, master weights and moments are in f32 always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Precision {
    pub vit: Storage,
    pub rest: Storage,
}

impl Precision {
    /// The oracle.
    pub const F32: Precision = Precision { vit: Storage::F32, rest: Storage::F32 };
    /// As LAVIS trains; needs loss scaling.
    pub const F16: Precision = Precision { vit: Storage::F16, rest: Storage::F16 };
    /// EVA's weights are published in f16, which bf16 would round.
    pub const BF16: Precision = Precision { vit: Storage::F16, rest: Storage::BF16 };

    pub fn named(name: &str) -> Result<Precision> {
        match name {
            "f32" => Ok(Precision::F32),
            "f16" => Ok(Precision::F16),
            "bf16" => Ok(Precision::BF16),
            _ => Err(Error::argument("precision", "name", "f32, f16 or bf16", name)),
        }
    }

    /// What a command is told: a name, or nothing - then f32 on the CPU and bf16 on a GPU.
    pub fn on(device: &Device, name: Option<&str>) -> Result<Precision> {
        match (device, name) {
            (Device::Cpu, None | Some("f32")) => Ok(Precision::F32),
            (Device::Cpu, Some(other)) => Err(Error::argument("precision", "dtype", "f32 on the CPU", other)
                .fix("16 bits run on a GPU: --device cuda")),
            (Device::Gpu(_), name) => Precision::named(name.unwrap_or("bf16")),
        }
    }

    pub fn name(self) -> &'static str {
        self.rest.name()
    }

    fn of(self, name: &str) -> Storage {
        if name.starts_with("visual_encoder.") { self.vit } else { self.rest }
    }
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
        let (name, shape) = (name.into(), shape.to_vec());
        self.specs.push(Spec { name, shape, init, trained: self.trained, dense: false });
        Id(self.specs.len() - 1)
    }

    /// An operand of products.
    pub fn dense(&mut self, name: impl Into<String>, shape: &[usize], init: Init) -> Id {
        let id = self.param(name, shape, init);
        self.specs[id.0].dense = true;
        id
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
            (_, [_, rest @ ..]) => Init::Normal((rest.iter().product::<usize>().max(1) as f64).sqrt().recip()),
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
    /// On a GPU in less than f32: what products use in place of trained values, which are their masters.
    copies: Vec<Option<Tensor>>,
    /// On a GPU: frozen values that are stored there in fewer bits than they came in.
    originals: Vec<Option<Value>>,
    device: Device,
    precision: Precision,
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
        let copies = specs.iter().map(|_| None).collect();
        let originals = specs.iter().map(|_| None).collect();
        let (device, precision) = (Device::Cpu, Precision::F32);
        Ok(Params { specs, values, halves, copies, originals, device, precision })
    }

    /// The same parameters on a device.
    pub fn to(mut self, device: &Device, precision: Precision) -> Result<Params> {
        let Device::Gpu(gpu) = device else {
            for i in 0..self.specs.len() {
                match self.stored(Id(i))? {
                    Value::Half(half) => self.halves[i] = Some(half),
                    Value::Tensor(t) => self.values[i] = t,
                }
            }
            self.copies.fill(None);
            self.device = Device::Cpu;
            return Ok(self);
        };
        if self.values.iter().any(|v| v.dtype() != DType::F32) {
            return Err(Error::argument("model weights", "dtype", "f32 for a GPU", "f64"));
        }
        for (i, spec) in self.specs.iter().enumerate() {
            let storage = if spec.dense { precision.of(&spec.name) } else { Storage::F32 };
            if let Some(half) = self.halves[i].take() {
                let bytes = gpu.upload("load weights", Storage::F16, half.bytes())?;
                // From one 16-bit storage to another by way of f32.
                let bytes =
                    if storage == Storage::F16 { bytes } else { bytes.cast("load weights", Storage::F32)? };
                self.values[i] = Tensor::of_array(bytes.cast("load weights", storage)?, &spec.shape)?;
                self.originals[i] = Some(Value::Half(half));
                continue;
            }
            let frozen = if spec.trained { Storage::F32 } else { storage };
            let there = self.values[i].to(device, frozen)?;
            let original = std::mem::replace(&mut self.values[i], there);
            self.originals[i] = (frozen != Storage::F32).then_some(Value::Tensor(original));
            self.copies[i] = match spec.trained && storage != Storage::F32 {
                true => Some(self.values[i].to(device, storage)?),
                false => None,
            };
        }
        (self.device, self.precision) = (device.clone(), precision);
        Ok(self)
    }

    /// The parameter as it is to be kept, in the host's memory: a frozen one exactly as it came.
    pub fn stored(&self, id: Id) -> Result<Value> {
        Ok(match (&self.originals[id.0], &self.halves[id.0]) {
            (Some(Value::Half(half)), _) | (None, Some(half)) => Value::Half(half.clone()),
            (Some(Value::Tensor(t)), _) => Value::Tensor(t.clone()),
            (None, None) => Value::Tensor(self.values[id.0].to_cpu()?),
        })
    }

    /// Whether what is kept of a parameter is in half precision.
    pub fn comes_in_half(&self, id: Id) -> bool {
        self.halves[id.0].is_some() || matches!(self.originals[id.0], Some(Value::Half(_)))
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// What products use in place of a trained value on a GPU, if that is something else.
    pub fn copy(&self, id: Id) -> Option<&Tensor> {
        self.copies[id.0].as_ref()
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

    /// Puts in another value of the same shape, on whatever device the parameters are.
    pub fn set(&mut self, id: Id, value: &Tensor) -> Result<()> {
        let own = &self.values[id.0];
        if value.shape() != own.shape() {
            let name = &self.specs[id.0].name;
            return Err(Error::argument("model weights", name, own.shape(), value.shape()));
        }
        let storage = own.array().map_or(Storage::F32, |a| a.storage());
        self.values[id.0] = value.to(&self.device, storage)?;
        if let Some(copy) = &mut self.copies[id.0] {
            *copy = self.values[id.0].to(&self.device, copy.array().map_or(storage, |a| a.storage()))?;
        }
        Ok(())
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
    /// Of the values, and of their copies.
    leaves: RefCell<[Vec<Option<Tensor>>; 2]>,
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
            Some(tape) if self.params.specs[id.0].trained => {
                let mut leaves = self.leaves.borrow_mut();
                leaves[which][id.0].get_or_insert_with(|| tape.leaf(value, id.0)).clone()
            }
            _ => value.clone(),
        }
    }

    /// A constant where the parameters are: in f32 if it has to be moved there.
    pub fn here(&self, t: &Tensor) -> Result<Tensor> {
        match &self.params.device {
            Device::Gpu(_) if t.array().is_none() => t.to(&self.params.device, Storage::F32),
            _ => Ok(t.clone()),
        }
    }

    /// How the part of the model to which a parameter belongs stores its activations on a GPU.
    pub fn storage(&self, id: Id) -> Option<Storage> {
        match self.params.device {
            Device::Gpu(_) => Some(self.params.precision.of(&self.params.specs[id.0].name)),
            Device::Cpu => None,
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
