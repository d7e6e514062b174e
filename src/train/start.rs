//! Where a training begins: a model and its tokenizer, from nothing or from a model directory.

use super::config::Config;
use super::corpus::{Corpus, Tokenize};
use crate::Result;
use crate::model::Model;
use crate::nn::{self, Params, Spec};
use crate::pretrained::{self, Opening, Pretrained};
use crate::tensor::DType;
use crate::text::{Settings, Tokenizer, vocabulary};
use std::path::Path;
use std::sync::Arc;

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
        let sizes = directory
            .map(pretrained::read_config)
            .transpose()
            .map_err(|e| e.fix("give a model directory, as qformer train and qformer convert make them"))?;
        let tokenizer = match directory.or(kept).or(config.vocab.as_deref()) {
            Some(directory) => Tokenizer::open(directory)?,
            None => {
                let captions: Vec<&str> = corpus.captions().collect();
                Tokenizer::new(vocabulary::train(captions, config.vocab_size)?, Settings::default())?
            }
        };
        let mut sizes = sizes.map_or_else(|| config.model_sizes(tokenizer.len()), Ok)?;
        sizes.exif_orientation = config.exif_orientation.unwrap_or(sizes.exif_orientation);
        let folder = directory.or(kept).or(config.vocab.as_deref()).unwrap_or(Path::new(""));
        pretrained::parts::check_vocabulary(folder, &sizes, tokenizer.len())?;
        config.check_sizes(&sizes)?;
        let (model, specs) = Model::new(sizes, config.trains_vit())?;
        Ok(Start { tokenizer: Arc::new(tokenizer), model, specs })
    }

    pub fn tokenize(&self) -> Tokenize {
        let (tokenizer, length) = (Arc::clone(&self.tokenizer), self.model.config.max_txt_len);
        Arc::new(move |caption| tokenizer.caption(caption, length))
    }

    /// The model with the numbers it begins with.
    pub fn fill(self, config: &Config) -> Result<(Model, Params, Arc<Tokenizer>)> {
        match &config.start {
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
}

/// Writes the model directory of a run. A frozen image encoder stays where it is, named in the directory.
pub fn export(
    directory: &Path,
    config: &Config,
    model: &Model,
    params: &Params,
    tokenizer: &Tokenizer,
) -> Result<()> {
    let frozen = config.start.as_deref().filter(|_| !config.trains_vit());
    let vit = frozen.map(pretrained::vit_file).transpose()?.flatten();
    Pretrained::save(directory, model, params, tokenizer, vit.as_deref())
}
