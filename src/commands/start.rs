//! Where a training begins and what it leaves: a model and its tokenizer, from nothing or from a directory.

use crate::files::{self, RealDisk};
use crate::model::{self, Model};
use crate::nn::{Params, Spec};
use crate::tensor::{DType, Tensor};
use crate::text::{Settings, Tokenizer, vocabulary};
use crate::train::config::Config;
use crate::train::corpus::{Corpus, Tokenize};
use crate::{Error, Kind, Result};
use std::path::Path;
use std::sync::Arc;

const OPERATION: &str = "open model";

/// A model laid out but not filled: what a plan needs.
pub struct Start {
    pub tokenizer: Arc<Tokenizer>,
    pub model: Model,
    pub specs: Vec<Spec>,
}

impl Start {
    /// As the configuration says. `kept` is where a run that goes on has its own copy of its vocabulary.
    pub fn new(config: &Config, corpus: &Corpus, kept: Option<&Path>) -> Result<Start> {
        let directory = config.start.as_deref();
        let kept = kept.filter(|k| k.join("vocab.txt").is_file());
        let tokenizer = match directory.or(kept).or(config.vocab.as_deref()) {
            Some(directory) => Tokenizer::open(directory)?,
            None => {
                let captions: Vec<&str> = corpus.captions().collect();
                Tokenizer::new(vocabulary::train(captions, config.vocab_size)?, Settings::default())?
            }
        };
        let sizes = match directory {
            Some(directory) => sizes(directory)?,
            None => config.model_sizes(tokenizer.len())?,
        };
        if sizes.vocab != tokenizer.len() {
            let got = format!("{} tokens in the vocabulary", tokenizer.len());
            return Err(
                Error::argument(OPERATION, "vocab", sizes.vocab, got).fix("use the model's own vocab.txt")
            );
        }
        config.check_sizes(&sizes)?;
        let (model, specs) = Model::new(sizes, config.trains_vit())?;
        Ok(Start { tokenizer: Arc::new(tokenizer), model, specs })
    }

    pub fn tokenize(&self) -> Tokenize {
        let (tokenizer, length) = (Arc::clone(&self.tokenizer), self.model.config.max_txt_len);
        Arc::new(move |caption| tokenizer.caption(caption, length))
    }

    /// The numbers it begins with.
    pub fn params(specs: Vec<Spec>, config: &Config) -> Result<Params> {
        match &config.start {
            Some(directory) => read(directory, specs),
            None => Params::random(specs, DType::F32, config.seed),
        }
    }
}

fn sizes(directory: &Path) -> Result<model::Config> {
    let path = directory.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(|e| {
        Error::io(OPERATION, &path, &e)
            .fix("give a model directory, as qformer train and qformer convert make them")
    })?;
    model::Config::from_json(&text)
}

/// Parameters from `model.safetensors`, and the image encoder's from `vit.safetensors` where it lies apart.
fn read(directory: &Path, specs: Vec<Spec>) -> Result<Params> {
    let open = |name: &str| {
        let path = directory.join(name);
        std::fs::read(&path).map_err(|e| Error::io(OPERATION, &path, &e))
    };
    let path = directory.join("model.safetensors");
    let wrong = |e: safetensors::SafeTensorError| Error::file(OPERATION, &path, "a safetensors file", e);
    let main = open("model.safetensors")?;
    let vit = if directory.join("vit.safetensors").is_file() { Some(open("vit.safetensors")?) } else { None };
    let main = safetensors::SafeTensors::deserialize(&main).map_err(wrong)?;
    let vit = vit.as_deref().map(safetensors::SafeTensors::deserialize).transpose().map_err(wrong)?;
    Params::new(specs, |spec| {
        let found = main.tensor(&spec.name).ok().or_else(|| vit.as_ref()?.tensor(&spec.name).ok());
        let want = format!("{} {:?} in f32", spec.name, spec.shape);
        let view = found.filter(|v| v.shape() == spec.shape && v.dtype() == safetensors::Dtype::F32);
        let view = view.ok_or_else(|| Error::file(OPERATION, &path, want, "no such tensor"))?;
        let numbers = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Tensor::new::<f32>(numbers, &spec.shape)
    })
}

/// Writes a model directory.
pub fn export(directory: &Path, model: &Model, params: &Params, tokenizer: &Tokenizer) -> Result<()> {
    files::make_folders(&RealDisk, directory)?;
    let failed = |e: &dyn std::fmt::Display| Error::new(Kind::Write, "export model").got(e);
    let config = serde_json::to_string_pretty(&model.config).map_err(|e| failed(&e))?;
    write(&directory.join("config.json"), config.as_bytes())?;
    let part = |trained: bool| {
        let mine = params.iter().filter(move |(_, s, _)| s.trained == trained);
        mine.map(|(_, s, v)| (s.name.clone(), s.shape.clone(), v.to_f32())).collect::<Vec<_>>()
    };
    for (name, tensors) in [("model.safetensors", part(true)), ("vit.safetensors", part(false))] {
        if tensors.is_empty() {
            continue;
        }
        let mut views = Vec::new();
        for (name, shape, numbers) in &tensors {
            let bytes = bytemuck::cast_slice(numbers);
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
            views.push((name.clone(), view.map_err(|e| failed(&e))?));
        }
        let bytes = safetensors::serialize(views, None).map_err(|e| failed(&e))?;
        write(&directory.join(name), &bytes)?;
    }
    tokenizer.save(directory)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    files::write_atomic(&RealDisk, path, bytes.len() as u64, |w| w.write_all(bytes))
}
