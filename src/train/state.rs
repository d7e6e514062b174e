//! A trainer as a checkpoint, and back: trained parameters, both running means, the step.
//!
//! Frozen parameters are not saved; their hash is, and a run is resumed with the same ones only. The settings that
//! change numbers are saved as JSON and compared, so that a run is never resumed under others unnoticed.

use super::checkpoint::{self, Checkpoint, EXP_AVG, EXP_AVG_SQ, Loaded, Metric, Progress, Stored};
use super::config::{self, Config, Length};
use super::corpus::Corpus;
use super::trainer::Trainer;
use crate::model;
use crate::nn::{self, Gelu, Params, Precision};
use crate::pretrained::llm::is_llm;
use crate::tensor::{Buffer, DType, Device, Real, Tensor};
use crate::weights;
use crate::{Error, Result, on};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// What a checkpoint holds beside tensors and settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Steps AdamW has taken; fewer than the run's where loss scaling left some out.
    pub optimizer_steps: u64,
    pub loss_scale: f64,
    pub clean_steps: u32,
    /// Entries of the data whose pictures could not be used.
    pub bad: BTreeSet<usize>,
    /// The lowest validation loss so far.
    pub best: Option<f64>,
    /// What the processor computed with; none on a GPU, and in checkpoints of earlier versions.
    #[serde(default)]
    pub instructions: Option<String>,
    /// The GPU, driver and libraries that computed; none on the CPU, and in checkpoints of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
    /// Steps in a row that loss scaling left out.
    #[serde(default, skip_serializing_if = "none")]
    pub skipped: u32,
}

fn none(n: &u32) -> bool {
    *n == 0
}

/// Every setting that changes the numbers.
pub fn settings(
    config: &Config,
    corpus: &Corpus,
    model: &model::Config,
    length: Length,
    vocab: &str,
    precision: Precision,
) -> Value {
    let (sizes, mut data) = (corpus.sizes(), serde_json::Map::new());
    for (i, captions) in sizes.iter().enumerate() {
        let ratio = config.data.get(i).and_then(|d| d.ratio);
        let set = json!({ "captions": captions, "blake3": corpus.fingerprint(i), "ratio": ratio });
        data.insert(i.to_string(), set);
    }
    let mut all = json!({
        "model": model,
        "data": data,
        "vocabulary": vocab,
        "train_vit": config.trains_vit(),
        "device": config.device.split(':').next(),
        "dtype": precision.name(),
        "warmup_steps": length.warmup_steps,
        "epochs": length.max_epoch,
        "betas": config.hyper.betas,
    });
    for (name, value) in config::of_run(config) {
        all[name] = value;
    }
    if let Some(c) = config.cache() {
        all["cache"] = json!({ "views": c.views, "dtype": c.storage.name() });
    }
    // Only where they are others than those of all runs that do not speak of them.
    if precision.vit_gelu != Gelu::Exact {
        all["vit_gelu"] = precision.vit_gelu.name().into();
    }
    all
}

/// blake3 over the frozen parameters, which checkpoints do not hold: over all of them, and over those in front of a language
/// model's, the image encoder's.
pub fn frozen_hashes(params: &Params) -> Result<[String; 2]> {
    let (mut hash, mut encoder) = (blake3::Hasher::new(), None);
    for (id, spec, _) in params.iter().filter(|(_, spec, _)| !spec.trained) {
        if encoder.is_none() && is_llm(&spec.name) {
            encoder = Some(hash.finalize());
        }
        hash.update(spec.name.as_bytes());
        match params.stored(id)? {
            nn::Value::Half(half) => hash.update(half.bytes()),
            nn::Value::Tensor(t) => hash.update(bytes_of(&t)),
        };
    }
    let all = hash.finalize();
    Ok([all, encoder.unwrap_or(all)].map(|hash| hash.to_hex().to_string()))
}

fn bytes_of(t: &Tensor) -> &[u8] {
    on!(t.dtype(), T => bytemuck::cast_slice(t.data::<T>()))
}

/// The bytes of a buffer, wherever it is.
fn buffer_bytes(b: &Buffer) -> Result<Cow<'_, [u8]>> {
    Ok(match b.to_cpu()? {
        Cow::Borrowed(b) => Cow::Borrowed(on!(b.dtype(), T => bytemuck::cast_slice(b.slice::<T>()))),
        Cow::Owned(b) => Cow::Owned(on!(b.dtype(), T => bytemuck::cast_slice(b.slice::<T>()).to_vec())),
    })
}

fn tensor_bytes(t: &Tensor) -> Result<Cow<'_, [u8]>> {
    if t.array().is_none() {
        Ok(Cow::Borrowed(bytes_of(t)))
    } else {
        Ok(Cow::Owned(bytes_of(&t.to_cpu()?).to_vec()))
    }
}

/// What all processes of a group must have in common before they begin.
pub fn to_compare(trainer: &Trainer, identity: &Identity, length: Length) -> Result<Value> {
    let mut hash = blake3::Hasher::new();
    for t in tensors(trainer)? {
        hash.update(t.name.as_bytes()).update(&t.bytes);
    }
    Ok(json!({
        "settings": identity.settings,
        "seed": trainer.options.seed,
        "frozen weights": identity.frozen,
        "step": trainer.step,
        "steps": length.steps,
        "weights and moments": hash.finalize().to_hex().as_str(),
    }))
}

/// What stays the same from checkpoint to checkpoint.
pub struct Identity {
    pub settings: Value,
    pub frozen: String,
    /// Of the image encoder alone, which image tokens follow from.
    pub encoder: String,
}

impl Identity {
    /// Of these settings and the frozen ones of these parameters.
    pub fn new(settings: Value, params: &Params) -> Result<Identity> {
        let [frozen, encoder] = frozen_hashes(params)?;
        Ok(Identity { settings, frozen, encoder })
    }

    /// Of a run that has done nothing, to compare others with.
    pub fn at_start(&self, seed: u64) -> Progress {
        Progress {
            step: 0,
            epoch: 0,
            seed,
            config: self.settings.clone(),
            vit_blake3: self.frozen.clone(),
            metric: None,
            state: Value::Null,
        }
    }

    pub fn progress(&self, trainer: &Trainer, mut state: State, metric: Option<Metric>) -> Result<Progress> {
        state.optimizer_steps = trainer.optimizer.steps;
        (state.loss_scale, state.clean_steps) = (trainer.scale.scale, trainer.scale.clean_steps);
        state.skipped = trainer.scale.skipped;
        let device = trainer.params.device();
        let on_gpu = device.keeps_storages();
        state.gpu = on_gpu.then(|| device.identity());
        state.instructions = (!on_gpu).then(|| device.identity());
        let broken = |e| Error::argument("save checkpoint", "state", "numbers", e);
        Ok(Progress {
            step: trainer.step,
            epoch: trainer.step / trainer.options.steps_per_epoch.max(1),
            seed: trainer.options.seed,
            config: self.settings.clone(),
            vit_blake3: self.frozen.clone(),
            metric,
            state: serde_json::to_value(state).map_err(broken)?,
        })
    }
}

/// The trainer's tensors in a fixed order: every trained parameter, then its two running means.
fn tensors(trainer: &Trainer) -> Result<Vec<checkpoint::Tensor<'_>>> {
    let mut found = Vec::new();
    for m in &trainer.optimizer.moments {
        let (spec, value) = (&trainer.params.specs()[m.id.0], trainer.params.get(m.id));
        let parts = [
            ("", tensor_bytes(value)?),
            (EXP_AVG, buffer_bytes(&m.exp_avg)?),
            (EXP_AVG_SQ, buffer_bytes(&m.exp_avg_sq)?),
        ];
        found.extend(parts.map(|(prefix, bytes)| checkpoint::Tensor {
            name: format!("{prefix}{}", spec.name),
            dtype: stored_dtype(value.dtype()),
            shape: spec.shape.clone(),
            bytes,
        }));
    }
    Ok(found)
}

pub fn checkpoint(trainer: &Trainer, progress: Progress) -> Result<Checkpoint<'_>> {
    Ok(Checkpoint { progress, tensors: tensors(trainer)? })
}

fn stored_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
    }
}

/// What computed a checkpoint and what would now, where they are not the same: the last bits may differ. None where nothing is
/// known.
pub fn other_machine(loaded: &Loaded, device: &Device) -> Option<String> {
    let on_gpu = device.keeps_storages();
    let (key, what) = if on_gpu { ("gpu", "GPU") } else { ("instructions", "instruction set") };
    let now = device.identity();
    let saved = loaded.progress.state.get(key)?.as_str().filter(|saved| *saved != now)?;
    Some(format!("{what}: saved with {saved}, now {now}"))
}

/// Refuses a checkpoint whose parameters are not finite. Running means may overflow and do no harm.
pub fn check_finite(loaded: &Loaded) -> Result<()> {
    for (name, t) in &loaded.tensors {
        let dtype = match t.dtype {
            Dtype::F32 => weights::Dtype::F32,
            Dtype::F64 => weights::Dtype::F64,
            _ => continue,
        };
        let mean = name.starts_with(EXP_AVG) || name.starts_with(EXP_AVG_SQ);
        if let Some(element) = weights::first_non_finite(dtype, &t.bytes).filter(|_| !mean) {
            let step = loaded.progress.step;
            return Err(weights::non_finite(checkpoint::file_name(step).as_ref(), name, element)
                .also("move it away to resume from the checkpoint before it"));
        }
    }
    Ok(())
}

/// Puts a checkpoint's numbers into a trainer that was made from the same settings.
pub fn restore(trainer: &mut Trainer, loaded: Loaded) -> Result<State> {
    let Loaded { progress, mut tensors } = loaded;
    let state: State = serde_json::from_value(progress.state)
        .map_err(|e| Error::argument("resume", "state", "the state of a training run", e))?;
    for m in &mut trainer.optimizer.moments {
        let spec = &trainer.params.specs()[m.id.0];
        let (name, shape) = (spec.name.clone(), spec.shape.clone());
        let dtype = trainer.params.get(m.id).dtype();
        let mut take = |prefix: &str| take(&mut tensors, &format!("{prefix}{name}"), dtype, &shape);
        let (bytes, avg, avg_sq) = (take("")?, take(EXP_AVG)?, take(EXP_AVG_SQ)?);
        on!(dtype, T => {
            trainer.params.set(m.id, &Tensor::new(values::<T>(&bytes), &shape)?)?;
            for (to, from) in [(&mut m.exp_avg, &avg), (&mut m.exp_avg_sq, &avg_sq)] {
                match to {
                    Buffer::Gpu(a) => a.write(from)?,
                    own => *own = Buffer::of(values::<T>(from)),
                }
            }
        });
    }
    if let Some(name) = tensors.keys().next() {
        return Err(other_model(name, "no such parameter".into(), "one".into()));
    }
    trainer.step = progress.step;
    trainer.optimizer.steps = state.optimizer_steps;
    (trainer.scale.scale, trainer.scale.clean_steps) = (state.loss_scale, state.clean_steps);
    trainer.scale.skipped = state.skipped;
    Ok(state)
}

fn values<T: Real>(bytes: &[u8]) -> Vec<T> {
    bytemuck::pod_collect_to_vec(bytes)
}

/// A tensor's bytes, of exactly the length that the shape says.
fn take(
    tensors: &mut BTreeMap<String, Stored>,
    name: &str,
    dtype: DType,
    shape: &[usize],
) -> Result<Vec<u8>> {
    let want = format!("{:?} {shape:?}", stored_dtype(dtype));
    let Some(t) = tensors.remove(name) else { return Err(other_model(name, want, "nothing".into())) };
    if t.shape != shape || t.dtype != stored_dtype(dtype) {
        return Err(other_model(name, want, format!("{:?} {:?}", t.dtype, t.shape)));
    }
    Ok(t.bytes)
}

fn other_model(name: &str, want: String, got: String) -> Error {
    Error::argument("resume", name, want, got).fix("resume with the settings the run began with")
}
