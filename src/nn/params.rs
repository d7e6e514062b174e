//! The numbers of a model's parameters, on the CPU or on a GPU.

use super::{Id, Spec, initial};
use crate::tensor::{DType, Device, Gpu, HalfMatrix, Storage, Tensor};
use crate::{Error, Result};
use rayon::prelude::*;

/// GELU of the image encoder: exact, as LAVIS has it, or in its tanh form, which a GPU computes at the end of a product - of
/// a frozen encoder only. It is off by up to 5e-4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gelu {
    #[default]
    Exact,
    Tanh,
}

impl Gelu {
    pub fn named(name: &str) -> Result<Gelu> {
        match name {
            "exact" => Ok(Gelu::Exact),
            "tanh" => Ok(Gelu::Tanh),
            _ => Err(Error::argument("precision", "vit_gelu", "exact or tanh", name)),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Gelu::Exact => "exact",
            Gelu::Tanh => "tanh",
        }
    }
}

/// How a GPU stores what dense layers work on: weights and activations of the image encoder, and of everything behind it;
/// and which GELU the image encoder has.
/// The image encoder's residual stream, norms, statistics, losses, master weights and moments are in f32 always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Precision {
    pub vit: Storage,
    pub rest: Storage,
    pub vit_gelu: Gelu,
}

impl Precision {
    /// The oracle.
    pub const F32: Precision = Precision::of(Storage::F32, Storage::F32);
    /// As LAVIS trains; needs loss scaling.
    pub const F16: Precision = Precision::of(Storage::F16, Storage::F16);
    /// EVA's weights are published in f16, which bf16 would round.
    pub const BF16: Precision = Precision::of(Storage::F16, Storage::BF16);
    /// The image encoder, too.
    pub const BF16_VIT: Precision = Precision::of(Storage::BF16, Storage::BF16);

    const fn of(vit: Storage, rest: Storage) -> Precision {
        Precision { vit, rest, vit_gelu: Gelu::Exact }
    }

    pub fn named(name: &str) -> Result<Precision> {
        match name {
            "f32" => Ok(Precision::F32),
            "f16" => Ok(Precision::F16),
            "bf16" => Ok(Precision::BF16),
            "bf16-vit" => Ok(Precision::BF16_VIT),
            _ => Err(Error::argument("precision", "name", "f32, f16, bf16 or bf16-vit", name)),
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

    /// With this GELU on a device.
    pub fn with_gelu(self, device: &Device, vit_gelu: Gelu) -> Result<Precision> {
        match (device, vit_gelu) {
            (Device::Cpu, Gelu::Tanh) => {
                Err(Error::argument("precision", "vit_gelu", "exact on the CPU", "tanh")
                    .fix("it is a product's end on a GPU: --device cuda; leave --vit-gelu out"))
            }
            _ => Ok(Precision { vit_gelu, ..self }),
        }
    }

    /// Refuses GELU in a form that has no gradient where the image encoder is trained.
    fn check(self, specs: &[Spec]) -> Result<()> {
        let trained = specs.iter().any(|s| s.trained && of_vit(&s.name));
        if self.vit_gelu == Gelu::Tanh && trained {
            let want = "exact where the image encoder is trained";
            return Err(Error::argument("precision", "vit_gelu", want, "tanh")
                .fix("freeze the image encoder, or leave --vit-gelu out"));
        }
        Ok(())
    }

    /// Of the storages; their GELU has a name of its own.
    pub fn name(self) -> &'static str {
        if (self.vit, self.rest) == (Storage::BF16, Storage::BF16) { "bf16-vit" } else { self.rest.name() }
    }

    pub(super) fn storage(self, name: &str) -> Storage {
        if of_vit(name) { self.vit } else { self.rest }
    }

    /// How a GPU stores a parameter, and the copy that products use if that is another.
    fn stores(self, spec: &Spec) -> (Storage, Option<Storage>) {
        let products = if spec.dense { self.storage(&spec.name) } else { Storage::F32 };
        if spec.trained {
            (Storage::F32, Some(products).filter(|s| *s != Storage::F32))
        } else {
            (products, None)
        }
    }
}

fn of_vit(name: &str) -> bool {
    name.starts_with("visual_encoder.")
}

/// Nothing for each of `n` parameters.
fn none<T>(n: usize) -> Vec<Option<T>> {
    (0..n).map(|_| None).collect()
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
    /// Of copies whose rows are no multiple of 8, as a vocabulary's: the same memory with rows of zeros up to one.
    padded: Vec<Option<Tensor>>,
    /// On a GPU: frozen values that are stored there in fewer bits than they came in.
    originals: Vec<Option<Value>>,
    device: Device,
    precision: Precision,
}

/// A copy for products, and, where its rows are no multiple of 8, all of its memory: with rows of zeros up to one.
fn copy_of(gpu: &Gpu, value: &Tensor, storage: Storage) -> Result<(Tensor, Option<Tensor>)> {
    let shape = value.shape();
    let sizes = shape.sizes();
    let rows = sizes.first().copied().filter(|n| !n.is_multiple_of(8));
    let (Some(rows), Some(array)) = (rows, value.array()) else { return Ok((value.clone(), None)) };
    let padded = [&[rows.next_multiple_of(8)], &sizes[1..]].concat();
    let all = gpu.zeros("load weights", storage, padded.iter().product())?;
    let own = all.part(0..array.len())?;
    own.copy_from(&array)?;
    Ok((Tensor::of_array(own, sizes)?, Some(Tensor::of_array(all, &padded)?)))
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
        let n = specs.len();
        let (device, precision) = (Device::Cpu, Precision::F32);
        Ok(Params {
            specs,
            values,
            halves,
            copies: none(n),
            padded: none(n),
            originals: none(n),
            device,
            precision,
        })
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
            let n = self.specs.len();
            (self.copies, self.padded, self.originals) = (none(n), none(n), none(n));
            (self.device, self.precision) = (Device::Cpu, Precision::F32);
            return Ok(self);
        };
        precision.check(&self.specs)?;
        if self.values.iter().any(|v| v.dtype() != DType::F32) {
            return Err(Error::argument("model weights", "dtype", "f32 for a GPU", "f64"));
        }
        for (i, spec) in self.specs.iter().enumerate() {
            let (storage, copy) = precision.stores(spec);
            if let Some(half) = self.halves[i].take() {
                let bytes = gpu.upload("load weights", Storage::F16, half.bytes())?;
                // From one 16-bit storage to another by way of f32.
                let bytes =
                    if storage == Storage::F16 { bytes } else { bytes.cast("load weights", Storage::F32)? };
                self.values[i] = Tensor::of_array(bytes.cast("load weights", storage)?, &spec.shape)?;
                self.originals[i] = Some(Value::Half(half));
                continue;
            }
            let there = self.values[i].to(device, storage)?;
            let original = std::mem::replace(&mut self.values[i], there);
            self.originals[i] = (storage != Storage::F32).then_some(Value::Tensor(original));
            if let Some(storage) = copy {
                let (own, padded) = copy_of(gpu, &self.values[i].to(device, storage)?, storage)?;
                (self.copies[i], self.padded[i]) = (Some(own), padded);
            }
        }
        (self.device, self.precision) = (device.clone(), precision);
        self.put_beside()?;
        Ok(self)
    }

    /// Puts the copies of a self-attention's query, key and value one after the other, weights and biases: products take
    /// them as one ([`ops::linear_beside`]).
    fn put_beside(&mut self) -> Result<()> {
        let Device::Gpu(gpu) = &self.device else { return Ok(()) };
        for first in 0..self.specs.len() {
            let Some((prefix, kind)) = self.specs[first].name.split_once(".attention.self.query.") else {
                continue;
            };
            let named = |part| format!("{prefix}.attention.self.{part}.{kind}");
            let ids = [Some(Id(first)), self.find(&named("key")), self.find(&named("value"))];
            let [Some(a), Some(b), Some(c)] = ids else { continue };
            let copies = [a, b, c].map(|id| self.copy(id).and_then(Tensor::array));
            let [Some(a2), Some(b2), Some(c2)] = copies else { continue };
            let n = a2.len();
            if [&b2, &c2].iter().any(|o| o.len() != n || o.storage() != a2.storage()) {
                continue;
            }
            let all = gpu.array("load weights", a2.storage(), 3 * n)?;
            for (i, (id, own)) in [(a, a2), (b, b2), (c, c2)].into_iter().enumerate() {
                let part = all.part(i * n..(i + 1) * n)?;
                part.copy_from(&own)?;
                self.copies[id.0] = Some(Tensor::of_array(part, &self.specs[id.0].shape)?);
            }
        }
        Ok(())
    }

    /// The same memory for another queue of the GPU. Of use where nothing is trained, since what trains works on its own.
    pub fn on(&self, gpu: &Gpu) -> Params {
        let n = self.specs.len();
        Params {
            specs: self.specs.clone(),
            values: self.values.iter().map(|v| v.on(gpu)).collect(),
            halves: none(n),
            copies: none(n),
            padded: none(n),
            originals: none(n),
            device: Device::Gpu(gpu.clone()),
            precision: self.precision,
        }
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

    /// The same with rows of zeros up to a multiple of 8, if it needs any.
    pub fn padded(&self, id: Id) -> Option<&Tensor> {
        self.padded[id.0].as_ref()
    }

    /// Zeros on a device: what a plan of a step needs, which is about sizes alone.
    pub fn zeros(specs: Vec<Spec>, device: &Device, precision: Precision) -> Result<Params> {
        let Device::Gpu(gpu) = device else {
            return Params::new(specs, |spec| Ok(Tensor::zeros(DType::F32, &spec.shape)));
        };
        precision.check(&specs)?;
        let zeros = |spec: &Spec, storage: Storage| {
            let array = gpu.zeros("weights", storage, spec.shape.iter().product())?;
            Tensor::of_array(array, &spec.shape)
        };
        let (mut values, mut copies, mut padded) = (Vec::new(), Vec::new(), Vec::new());
        for spec in &specs {
            let (storage, copy) = precision.stores(spec);
            values.push(zeros(spec, storage)?);
            let both = copy.map(|storage| copy_of(gpu, &zeros(spec, storage)?, storage)).transpose()?;
            let (own, wide) = both.map_or((None, None), |(own, wide)| (Some(own), wide));
            copies.push(own);
            padded.push(wide);
        }
        let (halves, originals) = (none(specs.len()), none(specs.len()));
        let device = device.clone();
        let mut all = Params { values, copies, padded, halves, originals, device, precision, specs };
        all.put_beside()?;
        Ok(all)
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
        if let Some(copy) = self.copies[id.0].as_ref().and_then(Tensor::array) {
            // In its place, which may be beside others.
            let now = self.values[id.0].to(&self.device, copy.storage())?;
            now.array().map_or(Ok(()), |now| copy.copy_from(&now))?;
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
