//! Where a training begins: a model and its tokenizer, from nothing or from a model directory.

use super::config::Config;
use super::corpus::Corpus;
use super::loading::Tokenize;
use crate::model::Model;
use crate::nn::{self, Params, Spec};
use crate::pretrained::llm::{LlmFolder, LlmPart};
use crate::pretrained::{self, Opening, Pretrained};
use crate::tensor::{DType, Device};
use crate::text::{Settings, Tokenizer, clean_caption, train_vocabulary};
use crate::{Error, Result};
use std::path::Path;
use std::sync::Arc;

/// A model laid out but not filled: what a plan needs.
pub struct Start {
    /// Of a second stage: the language model, and how many tokens of every caption are its prompt's.
    pub llm: Option<Arc<LlmFolder>>,
    pub prompt: usize,
    seed: u64,
    pub tokenizer: Arc<Tokenizer>,
    pub model: Model,
    pub specs: Vec<Spec>,
}

impl Start {
    /// As the configuration says. `kept` is where a run that goes on has its own copy of its vocabulary.
    pub fn new(config: &Config, corpus: &Corpus, kept: Option<&Path>) -> Result<Start> {
        let directory = config.start.as_deref();
        let kept = kept.filter(|k| k.join("vocab.txt").is_file());
        let sizes = directory
            .map(pretrained::read_config)
            .transpose()
            .map_err(|e| e.fix("give a model directory, as qformer train and qformer convert make them"))?;
        let tokenizer = match directory.or(kept).or(config.vocab.as_deref()) {
            Some(directory) => Tokenizer::open(directory)?,
            None => {
                let captions: Vec<&str> = corpus.captions().collect();
                Tokenizer::new(train_vocabulary(captions, config.vocab_size)?, Settings::default())?
            }
        };
        let mut sizes = sizes.map_or_else(|| config.model_sizes(tokenizer.len()), Ok)?;
        sizes.exif_orientation = config.exif_orientation.unwrap_or(sizes.exif_orientation);
        let folder = directory.or(kept).or(config.vocab.as_deref()).unwrap_or(Path::new(""));
        pretrained::parts::check_vocabulary(folder, &sizes, tokenizer.len())?;
        config.check_sizes(&sizes)?;
        let Some(path) = &config.llm else {
            let (model, specs) = Model::new(sizes, config.trains_vit())?;
            return Ok(Start {
                llm: None,
                prompt: 0,
                seed: config.seed,
                tokenizer: Arc::new(tokenizer),
                model,
                specs,
            });
        };
        let mut llm = LlmFolder::open(path)?;
        llm.config.dropout[0] = config.llm_dropout.unwrap_or(llm.config.dropout[0]);
        sizes.max_txt_len = config.sizes.get("max_txt_len").copied().unwrap_or(sizes.max_txt_len);
        sizes.check()?;
        let most = llm.config.positions.saturating_sub(sizes.num_query);
        if sizes.max_txt_len > most {
            let want = format!(
                "at most {most}: of the language model's {} positions {} are the queries'",
                llm.config.positions, sizes.num_query
            );
            return Err(Error::argument("train", "max_txt_len", want, sizes.max_txt_len)
                .fix(format!("--set max_txt_len={most}")));
        }
        let prompt = llm.tokenizer.row(&config.prompt, "", sizes.max_txt_len)?.prompt;
        let (model, specs) = Model::with_llm(sizes, llm.config.clone(), prompt, config.trains_vit())?;
        Ok(Start {
            llm: Some(Arc::new(llm)),
            prompt,
            seed: config.seed,
            tokenizer: Arc::new(tokenizer),
            model,
            specs,
        })
    }

    /// What a second stage's folder says of its language model.
    pub fn part(&self, config: &Config) -> Result<Option<LlmPart>> {
        let part = |llm: &Arc<LlmFolder>| -> Result<LlmPart> {
            let failed = |e: std::io::Error| Error::io("train", &llm.path, &e);
            let path = llm.path.canonicalize().map_err(failed)?;
            Ok(LlmPart { path, blake3: llm.hash()?, prompt: config.prompt.clone() })
        };
        self.llm.as_ref().map(part).transpose()
    }

    /// Captions to ids; `prompt` stands before each that a language model reads.
    pub fn tokenize(&self, prompt: &str) -> Tokenize {
        let prompt = prompt.to_owned();
        let (tokenizer, length) = (Arc::clone(&self.tokenizer), self.model.config.max_txt_len);
        if let Some(llm) = self.llm.clone() {
            // A caption that cannot be read is refused as one without tokens.
            let row = move |caption: &str| llm.tokenizer.row(&prompt, &clean_caption(caption), length);
            return Arc::new(move |caption| row(caption).map_or_else(|_| Vec::new(), |row| row.ids));
        }
        Arc::new(move |caption| tokenizer.caption(caption, length))
    }

    /// The model with the numbers it begins with, in the host's memory, for a device.
    pub fn fill(self, config: &Config, device: &Device) -> Result<(Model, Params, Arc<Tokenizer>)> {
        match &config.start {
            Some(directory) if self.llm.is_some() => {
                let params = self.second(directory, device)?;
                Ok((self.model, params, self.tokenizer))
            }
            Some(directory) => {
                let opening = Opening { train_vit: config.trains_vit(), ..Opening::default() };
                let Pretrained { model, params, .. } = Pretrained::open_with(directory, &opening)?;
                Ok((model, params, self.tokenizer))
            }
            None => {
                let specs = nn::from_nothing(self.specs);
                Ok((self.model, Params::random(specs, DType::F32, config.seed)?, self.tokenizer))
            }
        }
    }

    /// The numbers of a second stage: the query side of a first stage's folder (or all of a second's), a projection that begins
    /// fresh unless it is there, and the language model.
    fn second(&self, directory: &Path, device: &Device) -> Result<Params> {
        let llm = self.llm.as_deref().ok_or_else(|| Error::argument("train", "llm", "a folder", "none"))?;
        pretrained::second_stage(directory, self.specs.clone(), (llm, device.keeps_storages()), self.seed)
    }
}

/// Writes the model directory of a run. A frozen image encoder stays where it is, named in the directory.
pub fn export(
    directory: &Path,
    config: &Config,
    model: &Model,
    params: &Params,
    own: (&Tokenizer, Option<&LlmPart>),
) -> Result<()> {
    let frozen = config.start.as_deref().filter(|_| !config.trains_vit());
    let vit = frozen.map(pretrained::vit_file).transpose()?.flatten();
    Pretrained::save_stage(directory, model, params, own, vit.as_deref())
}
