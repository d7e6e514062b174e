//! A language model's folder as Hugging Face publishes it, and what a second stage's folder says of the one it reads.
//!
//! | files | |
//! |---|---|
//! | `config.json` | sizes and family, [`LlmConfig`] |
//! | `model.safetensors`, shards with their index, or `pytorch_model.bin` | the tensors, in the dtype they were published in |
//! | `tokenizer.json`, `tokenizer.model`, ... | the tokenizer, [`LlmTokenizer`] |
//!
//! The model is never stored again: a folder of a second stage names it by path, and by what its tensors are.

use crate::files;
use crate::model::llm::{Family, LlmConfig};
use crate::nn::{Spec, Value};
use crate::tensor::{HalfMatrix, Storage, Tensor};
use crate::text::llm::LlmTokenizer;
use crate::weights::{Dtype, Info, Set};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const OP: &str = "language model";
const CONFIG: &str = "config.json";
const MOST_CONFIG: u64 = 1 << 20;

/// A language model in a folder: sizes, tokenizer and open files; no tensor is read yet.
pub struct LlmFolder {
    pub path: PathBuf,
    pub config: LlmConfig,
    pub tokenizer: LlmTokenizer,
    weights: Set,
}

/// What `config.json` of a second stage says, under `llm`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlmPart {
    /// Where the language model is.
    pub path: PathBuf,
    /// Of its tensors: [`LlmFolder::hash`].
    pub blake3: String,
    /// What stood before every caption in training.
    #[serde(default)]
    pub prompt: String,
}

/// What a second stage has beside its parameters.
pub struct Second {
    pub part: LlmPart,
    pub tokenizer: LlmTokenizer,
}

impl LlmFolder {
    /// Opens a folder and checks that its files hold the model that its `config.json` describes.
    pub fn open(path: &Path) -> Result<LlmFolder> {
        let file = path.join(CONFIG);
        if !file.is_file() {
            return Err(Error::file(OP, path, "the folder of a language model, config.json in it", "none")
                .fix("give the folder with --llm DIR"));
        }
        let text = String::from_utf8_lossy(&files::read_regular(&file, MOST_CONFIG, OP)?).into_owned();
        let config = LlmConfig::from_json(&text).map_err(|e| e.in_file(&file))?;
        let tokenizer = LlmTokenizer::open(path)?;
        tokenizer.check_fits(config.vocab).map_err(|e| e.in_file(path))?;
        // LAVIS ends OPT's captions with a line feed.
        let tokenizer = match config.family {
            Family::Opt => tokenizer.ending_with_line_feed().map_err(|e| e.in_file(path))?,
            _ => tokenizer,
        };
        let weights = Set::open(path)?;
        let folder = LlmFolder { path: path.to_path_buf(), config, tokenizer, weights };
        let specs = folder.specs()?;
        specs.iter().try_for_each(|spec| folder.check(spec))?;
        folder.check_unread(&specs)?;
        Ok(folder)
    }

    /// The model's parameters, under their names in a second stage.
    fn specs(&self) -> Result<Vec<Spec>> {
        let (_, specs) =
            crate::model::Model::with_llm(crate::model::Config::tiny(), self.config.clone(), 0, false)?;
        Ok(specs.into_iter().filter(|s| is_llm(&s.name)).collect())
    }

    /// What the names of all tensors but the head's begin with; files may lack it.
    fn front(&self) -> &'static str {
        if self.config.family == Family::GptNeox { "gpt_neox." } else { "model." }
    }

    fn info(&self, spec: &Spec) -> Result<&Info> {
        let own = own_name(spec);
        let found = self.weights.get(own).or_else(|| self.weights.get(own.strip_prefix(self.front())?));
        found.ok_or_else(|| {
            Error::file(OP, &self.path, format!("a tensor {own}, as its config.json says"), "none")
                .fix("the files are of another model, or not all of them are here: download the folder again")
        })
    }

    /// Refuses tensors beside those that are read - more layers, biases, norms: of another model than `config.json` describes,
    /// whose numbers would be others.
    fn check_unread(&self, specs: &[Spec]) -> Result<()> {
        let read =
            specs.iter().map(|spec| Ok(self.info(spec)?.name.as_str())).collect::<Result<HashSet<_>>>()?;
        let own = |name: &'_ str| name.strip_prefix(self.front()).unwrap_or(name).to_owned();
        let part = |name: &str| own(name).split('.').next().unwrap_or_default().to_owned();
        // A twin of tied embeddings, a head for something else: no part of this model.
        let parts: HashSet<String> = read.iter().map(|name| part(name)).collect();
        let unread = |info: &&Info| {
            let name = info.name.as_str();
            !read.contains(name) && parts.contains(&part(name)) && !MADE.iter().any(|end| name.ends_with(end))
        };
        match self.weights.tensors().find(unread) {
            None => Ok(()),
            Some(info) => {
                Err(Error::file(OP, &self.path, "the tensors of its config.json alone", &info.name)
                    .fix("config.json and the weights are of two models: download the folder again"))
            }
        }
    }

    fn check(&self, spec: &Spec) -> Result<()> {
        let info = self.info(spec)?;
        if info.shape == spec.shape {
            return Ok(());
        }
        let want = format!("{} of {:?}, as its config.json says", info.name, spec.shape);
        Err(Error::file(OP, &self.path, want, format!("{:?}", info.shape))
            .fix("config.json and the weights are of two models: download the folder again"))
    }

    /// The numbers of a parameter, as the decoder wants them: in f32, or for a device that stores 16 bits a matrix in the 16 bits that
    /// its file has.
    pub fn value(&self, spec: &Spec, in_16_bits: bool) -> Result<Value> {
        self.check(spec)?;
        let info = self.info(spec)?;
        let storage = match info.dtype {
            Dtype::F16 => Some(Storage::F16),
            Dtype::Bf16 => Some(Storage::BF16),
            _ => None,
        };
        if let (true, Some(storage), &[rows, columns]) = (in_16_bits, storage, &spec.shape[..]) {
            let bits = self.weights.holder(&info.name)?.halves(&info.name)?;
            let bits = self.config.rows_arranged(&spec.name, &bits)?.unwrap_or(bits);
            return Ok(Value::Half(HalfMatrix::stored(storage, Arc::new(Bits(bits)), rows, columns)?));
        }
        let values = self.weights.f32(&info.name)?;
        self.config.arranged(&spec.name, Tensor::new(values, &spec.shape)?).map(Value::Tensor)
    }

    /// Its tensors under Hugging Face's names, as the files have them.
    pub fn tensors(&self) -> Result<Vec<(String, &Info)>> {
        let specs = self.specs()?;
        specs.iter().map(|spec| Ok((own_name(spec).to_owned(), self.info(spec)?))).collect()
    }

    /// The bytes of a tensor of the files.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        self.weights.bytes(name)
    }

    /// Its `config.json`.
    pub fn config_json(&self) -> Result<serde_json::Value> {
        let file = self.path.join(CONFIG);
        let text = files::read_regular(&file, MOST_CONFIG, OP)?;
        serde_json::from_slice(&text).map_err(|e| Error::file(OP, &file, "JSON", e))
    }

    /// blake3 over names and bytes of the tensors, in the order of the parameters.
    pub fn hash(&self) -> Result<String> {
        let mut all = blake3::Hasher::new();
        for spec in self.specs()? {
            let name = &self.info(&spec)?.name;
            let own = self.weights.holder(name)?.hash(name)?;
            all.update(spec.name.as_bytes()).update(own.as_bytes());
        }
        Ok(all.finalize().to_hex().to_string())
    }

    /// Where a second stage's folder says its language model is, or where the user says.
    pub fn of_part(part: &LlmPart, given: Option<&Path>, model: &Path) -> Result<LlmFolder> {
        let path = given.unwrap_or(&part.path);
        if !path.is_dir() {
            let want = format!("its language model at {}", path.display());
            return Err(Error::file(OP, model, want, "none").fix("say where it is: --llm DIR"));
        }
        let folder = LlmFolder::open(path)?;
        let found = folder.hash()?;
        if found != part.blake3 {
            let want = format!("the language model it was trained with (blake3 {})", part.blake3);
            return Err(Error::file(OP, model, want, format!("another, {} ({found})", path.display()))
                .fix("give the folder of the right one with --llm DIR"));
        }
        Ok(folder)
    }
}

/// Ends of names whose numbers follow from `config.json`: masks, angles, a version.
const MADE: [&str; 6] = [
    ".attention.bias",
    ".attention.masked_bias",
    ".rotary_emb.inv_freq",
    ".rotary_emb.cos_cached",
    ".rotary_emb.sin_cached",
    "decoder.version",
];

/// A matrix of 16 bits in memory, as bytes.
pub(super) struct Bits(pub Vec<u16>);

impl AsRef<[u8]> for Bits {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// Hugging Face's name of a parameter.
fn own_name(spec: &Spec) -> &str {
    spec.name.split_once('.').map_or(spec.name.as_str(), |(_, own)| own)
}

/// Whether a parameter belongs to a language model.
pub fn is_llm(name: &str) -> bool {
    name.starts_with("opt_model.") || name.starts_with("llm_model.")
}
