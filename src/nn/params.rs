//! The numbers of a model's parameters, on whatever device they are.

use super::pass::with_keys;
use super::{Id, Precision, Spec, initial};
use crate::tensor::{DType, Device, HalfMatrix, Storage, Tensor};
use crate::{Error, Result};
use rayon::prelude::*;

/// The numbers of a parameter.
pub enum Value {
    /// In the device's precision.
    Tensor(Tensor),
    /// A frozen weight of dense layers.
    Half(HalfMatrix),
}

/// All parameters of a model, in the order they were declared.
pub struct Params {
    specs: Vec<Spec>,
    slots: Vec<Slot>,
    device: Device,
    precision: Precision,
}

/// Where the numbers of one parameter are.
struct Slot {
    /// Empty for one in half precision.
    value: Tensor,
    half: Option<HalfMatrix>,
    /// On a GPU in less than f32: what matmuls use in place of a trained value, which is its master.
    copy: Option<Tensor>,
    /// Of a copy whose rows are no multiple of 8, as a vocabulary's: the same memory with rows of zeros up to one.
    padded: Option<Tensor>,
    /// On a GPU, of a frozen weight of queries, keys and values: the bias of all three.
    qkv_bias: Option<Tensor>,
    /// Of a frozen value that is stored on a GPU in fewer bits than it came in.
    original: Option<Value>,
}

/// What changes when a trained parameter does.
pub struct Trained<'a> {
    /// What it is.
    pub spec: &'a Spec,
    /// Its numbers.
    pub value: &'a mut Tensor,
    /// What matmuls use in its place.
    pub copy: Option<&'a Tensor>,
}

impl Slot {
    fn of(value: Value) -> Slot {
        let (value, half) = match value {
            Value::Tensor(t) => (t.detach(), None),
            Value::Half(half) => (Tensor::zeros(DType::F32, &[0]), Some(half)),
        };
        Slot { value, half, copy: None, padded: None, qkv_bias: None, original: None }
    }

    /// A value on a device, with what matmuls use there.
    fn on(value: Value, spec: &Spec, device: &Device, precision: Precision) -> Result<Slot> {
        if !device.keeps_storages() {
            return Ok(Slot::of(value));
        }
        let (storage, copy) = precision.stores(spec);
        match value {
            Value::Half(half) => match half.to(device, storage)? {
                Some(there) => {
                    Ok(Slot { original: Some(Value::Half(half)), ..Slot::of(Value::Tensor(there)) })
                }
                None => Ok(Slot::of(Value::Half(half))),
            },
            Value::Tensor(t) => {
                let there = t.to(device, storage)?;
                let original = (storage != Storage::F32).then_some(Value::Tensor(t));
                let copy = copy.map(|storage| there.to(device, storage)).transpose()?;
                Slot { original, ..Slot::of(Value::Tensor(there)) }.with_copy(copy)
            }
        }
    }

    fn with_copy(self, copy: Option<Tensor>) -> Result<Slot> {
        let Some(copy) = copy else { return Ok(self) };
        Ok(match copy.padded_rows()? {
            Some([own, wide]) => Slot { copy: Some(own), padded: Some(wide), ..self },
            None => Slot { copy: Some(copy), ..self },
        })
    }

    /// As it is to be kept, in the host's memory: a frozen one exactly as it came.
    fn stored(&self) -> Result<Value> {
        Ok(match (&self.original, &self.half) {
            (Some(Value::Half(half)), _) | (None, Some(half)) => Value::Half(half.clone()),
            (Some(Value::Tensor(t)), _) => Value::Tensor(t.clone()),
            (None, None) => Value::Tensor(self.value.to_cpu()?),
        })
    }
}

impl Params {
    /// Values from `source`, which is asked once per parameter.
    pub fn new(specs: Vec<Spec>, mut source: impl FnMut(&Spec) -> Result<Tensor>) -> Result<Params> {
        Params::of_values(specs, |spec| source(spec).map(Value::Tensor))
    }

    /// Values from `source`, frozen weights in half precision among them.
    pub fn of_values(specs: Vec<Spec>, mut source: impl FnMut(&Spec) -> Result<Value>) -> Result<Params> {
        let mut slots = Vec::with_capacity(specs.len());
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
            match &value {
                Value::Tensor(t) => {
                    let first: DType = *dtype.get_or_insert(t.dtype());
                    if t.dtype() != first {
                        return wrong(first.to_string(), t.dtype().to_string());
                    }
                }
                Value::Half(_) if spec.trained => {
                    return wrong("f32 or f64, since it is trained".into(), "half precision".into());
                }
                Value::Half(_) => {}
            }
            slots.push(Slot::of(value));
        }
        Ok(Params { specs, slots, device: Device::default(), precision: Precision::F32 })
    }

    /// These parameters on a device.
    pub fn to(mut self, device: &Device, precision: Precision) -> Result<Params> {
        if device.keeps_storages() {
            precision.check(&self.specs)?;
            if self.slots.iter().any(|s| s.value.dtype() != DType::F32) {
                return Err(Error::argument("model weights", "dtype", "f32 for a GPU", "f64"));
            }
        }
        for (spec, slot) in self.specs.iter().zip(&mut self.slots) {
            *slot = Slot::on(slot.stored()?, spec, device, precision)?;
        }
        self.precision = if device.keeps_storages() { precision } else { Precision::F32 };
        self.device = device.clone();
        self.put_beside()?;
        self.join_biases()?;
        Ok(self)
    }

    /// Puts the copies of layers that were declared beside one another into memory one after the other: one matmul takes
    /// them all ([`crate::ops::Weight::Beside`]).
    fn put_beside(&mut self) -> Result<()> {
        for ids in self.specs.iter().filter_map(|spec| spec.beside) {
            let [Some(a), Some(b), Some(c)] = ids.map(|id| self.copy(id).cloned()) else { continue };
            for (id, own) in ids.into_iter().zip(Tensor::side_by_side([&a, &b, &c])?.into_iter().flatten()) {
                self.slots[id.0].copy = Some(own);
            }
        }
        Ok(())
    }

    /// Makes the biases of frozen layers of queries, keys and values, once for all passes.
    fn join_biases(&mut self) -> Result<()> {
        if !self.device.keeps_storages() {
            return Ok(());
        }
        for i in 0..self.specs.len() {
            let Some(biases) = self.specs[i].qkv else { continue };
            if biases.iter().any(|id| self.specs[id.0].trained) {
                continue;
            }
            let [q, v] = biases.map(|id| &self.slots[id.0].value);
            self.slots[i].qkv_bias = Some(with_keys(q, v)?);
        }
        Ok(())
    }

    /// The bias of a frozen layer of queries, keys and values, where there is one that was made once.
    pub fn qkv_bias(&self, weight: Id) -> Option<&Tensor> {
        self.slots[weight.0].qkv_bias.as_ref()
    }

    /// These parameters, on their memory, for another stream of the device. Of use where nothing is trained, since what trains works on its own.
    pub fn on(&self, device: &Device) -> Params {
        let slot = |s: &Slot| Slot {
            qkv_bias: s.qkv_bias.as_ref().map(|bias| bias.on(device)),
            ..Slot::of(Value::Tensor(s.value.on(device)))
        };
        Params {
            specs: self.specs.clone(),
            slots: self.slots.iter().map(slot).collect(),
            device: device.clone(),
            precision: self.precision,
        }
    }

    /// Whether layers lie side by side, declared so, on a device where one matmul takes them.
    pub fn are_beside(&self, first: Id) -> bool {
        self.device.keeps_storages() && self.specs[first.0].beside.is_some()
    }

    /// Zeros on a device: what a plan of a step needs, which is about sizes alone.
    pub fn zeros(specs: Vec<Spec>, device: &Device, precision: Precision) -> Result<Params> {
        precision.check(&specs)?;
        let mut slots = Vec::with_capacity(specs.len());
        for spec in &specs {
            let (storage, copy) = precision.stores(spec);
            let zeros = |storage| Tensor::zeros_on(device, storage, &spec.shape);
            let slot = Slot::of(Value::Tensor(zeros(storage)?));
            let copy = copy.filter(|_| device.keeps_storages()).map(zeros).transpose()?;
            slots.push(slot.with_copy(copy)?);
        }
        let precision = if device.keeps_storages() { precision } else { Precision::F32 };
        let mut all = Params { specs, slots, device: device.clone(), precision };
        all.put_beside()?;
        all.join_biases()?;
        Ok(all)
    }

    /// The parameter as it is to be kept, in the host's memory: a frozen one exactly as it came.
    pub fn stored(&self, id: Id) -> Result<Value> {
        self.slots[id.0].stored()
    }

    /// Whether what is kept of a parameter is in half precision.
    pub fn comes_in_half(&self, id: Id) -> bool {
        let slot = &self.slots[id.0];
        slot.half.is_some() || matches!(slot.original, Some(Value::Half(_)))
    }

    /// Where they are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How they are stored there.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// What matmuls use in place of a trained value on a GPU, if that is something else.
    pub fn copy(&self, id: Id) -> Option<&Tensor> {
        self.slots[id.0].copy.as_ref()
    }

    /// That copy with rows of zeros up to a multiple of 8, if it needs any.
    pub fn padded(&self, id: Id) -> Option<&Tensor> {
        self.slots[id.0].padded.as_ref()
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

    /// How many parameters there are.
    pub fn len(&self) -> usize {
        self.specs.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.specs.is_empty()
    }

    /// What each of them is.
    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// An empty tensor for one in half precision.
    pub fn get(&self, id: Id) -> &Tensor {
        &self.slots[id.0].value
    }

    /// A frozen matrix that the CPU keeps in f16.
    pub fn half(&self, id: Id) -> Option<&HalfMatrix> {
        self.slots[id.0].half.as_ref()
    }

    /// A parameter's numbers, to be changed.
    pub fn get_mut(&mut self, id: Id) -> &mut Tensor {
        &mut self.slots[id.0].value
    }

    /// Puts in another value of the same shape, on whatever device the parameters are.
    pub fn set(&mut self, id: Id, value: &Tensor) -> Result<()> {
        let slot = &mut self.slots[id.0];
        if value.shape() != slot.value.shape() {
            let name = &self.specs[id.0].name;
            return Err(Error::argument("model weights", name, slot.value.shape(), value.shape()));
        }
        slot.value = value.like(&slot.value)?;
        if let Some(copy) = &slot.copy {
            // In its place, which may be beside others.
            copy.overwrite(&slot.value.like(copy)?)?;
        }
        let joined = |spec: &Spec| spec.qkv.is_some_and(|biases| biases.contains(&id));
        if self.specs.iter().any(joined) { self.join_biases() } else { Ok(()) }
    }

    /// The trained parameters, for a step of the optimizer.
    pub fn trained_mut(&mut self) -> impl Iterator<Item = Trained<'_>> {
        let all = self.specs.iter().zip(&mut self.slots).filter(|(spec, _)| spec.trained);
        all.map(|(spec, slot)| Trained { spec, value: &mut slot.value, copy: slot.copy.as_ref() })
    }

    /// The parameter of a name.
    pub fn find(&self, name: &str) -> Option<Id> {
        self.specs.iter().position(|s| s.name == name).map(Id)
    }

    /// All of them, in the order in which they were declared.
    pub fn iter(&self) -> impl Iterator<Item = (Id, &Spec, &Tensor)> {
        self.specs.iter().zip(&self.slots).enumerate().map(|(i, (spec, slot))| (Id(i), spec, &slot.value))
    }
}
