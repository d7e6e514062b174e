//! The configuration of a training run: what it is made of, its defaults, and the checks across settings.
//!
//! Settings come from a YAML file (our flat keys, or LAVIS's `model` / `datasets` / `run` sections as its users have
//! them), then from `--set`, then from the command line's own flags; later ones win. The table in `settings` is the
//! one place that knows their names. An unknown name is an error that names the line and the nearest known name.

mod keys;
mod lavis;
mod length;
mod settings;
mod sources;
mod values;
pub mod yaml;

pub use keys::{describe, resolved};
use lavis::LavisWeights;
pub use lavis::lavis_device;
pub use length::Length;
pub use settings::{Flag, FlagKind, flags, of_run};
pub use sources::DataSource;

use super::optimizer::Hyper;
use super::trainer::Contrast;
use crate::data;
use crate::model::{self, Profile};
use crate::nn::Gelu;
use crate::tensor::Storage;
use crate::vision::{Augment, RandAugment, Resampling};
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use yaml::Entry;

const OPERATION: &str = "training configuration";

/// The settings of a training. Each is a row in `config/settings.rs`; `qformer train --keys` says what it means.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Pictures and captions to train on.
    pub data: Vec<DataSource>,
    /// Pictures and captions to evaluate on while training.
    pub validation: Option<DataSource>,
    /// Shares of pictures that may be missing from a data set, and unusable while training.
    pub missing_share: f64,
    /// Share of captions whose pictures may turn out unusable while training.
    pub bad_share: f64,
    /// The folder of the run.
    pub out: Option<PathBuf>,
    /// A model directory to start from.
    pub start: Option<PathBuf>,
    /// The folder of a language model that reads the Q-Former: a second stage.
    pub llm: Option<PathBuf>,
    /// What stands before every caption; no target.
    pub prompt: String,
    /// Of the language model; none: as its config.json says.
    pub llm_dropout: Option<f64>,
    /// Compute inside the language model's layers twice instead of keeping it; none: where it would not fit otherwise.
    pub recompute: Option<bool>,
    /// A language model that LAVIS's settings name.
    pub(super) llm_named: Option<String>,
    /// A folder with a vocabulary; without one and without `start` it is trained from the captions.
    pub vocab: Option<PathBuf>,
    /// Of a vocabulary that is trained from the captions, at most.
    pub vocab_size: usize,
    /// A named set of model sizes, and single sizes in place of its own.
    pub size: String,
    /// Single sizes in place of the named ones.
    pub sizes: BTreeMap<String, usize>,
    /// Whether the image encoder is trained, too.
    pub train_vit: Option<bool>,
    /// Whether captions of one picture are each other's negatives.
    pub profile: Profile,
    /// Whose captions are negatives.
    pub contrast: Contrast,
    /// Of the Q-Former.
    pub dropout: f64,
    /// How often training drops a branch of a trained image encoder's last block for a picture.
    pub vit_drop_path: f64,
    /// Of everything that is drawn.
    pub seed: u64,
    /// Times over the data.
    pub epochs: Option<u64>,
    /// Steps of the run, instead of epochs.
    pub steps: Option<u64>,
    /// Where this process stops, however long the run is: not a setting of the run.
    pub stop_after: Option<u64>,
    /// Captions of a micro-batch, and micro-batches of a step.
    pub batch: usize,
    /// Micro-batches of a step.
    pub accumulate: usize,
    /// Learning rate after warm-up.
    pub init_lr: f64,
    /// Learning rate the cosine ends at.
    pub min_lr: f64,
    /// Learning rate of the first step.
    pub warmup_lr: f64,
    /// Steps of warm-up.
    pub warmup_steps: Option<u64>,
    /// LAVIS counts micro-batches.
    warmup_iterations: Option<u64>,
    /// Of AdamW.
    pub hyper: Hyper,
    /// As the command line names them; no dtype: f32 on the CPU, bf16 on a GPU.
    pub device: String,
    /// How a GPU stores what dense layers work on.
    pub dtype: Option<String>,
    /// Image tokens that are kept.
    pub cache: Option<PathBuf>,
    /// Random crops of a picture that are kept.
    pub cache_views: usize,
    /// How kept tokens are stored.
    pub cache_dtype: Storage,
    /// Whether all of them are kept in a GPU's memory, too.
    pub cache_on_gpu: bool,
    /// Of a frozen image encoder on a GPU.
    pub vit_gelu: Gelu,
    /// Random crops and mirroring.
    pub augment: Augment,
    /// RandAugment, if it is asked for.
    pub rand_augment: Option<RandAugment>,
    /// How pictures are resized.
    pub resize: Resampling,
    /// Turn pictures upright; none: as the model it starts from does.
    pub exif_orientation: Option<bool>,
    /// Threads that load pictures.
    pub workers: Option<usize>,
    /// Micro-batches prefetched.
    pub prefetch: usize,
    /// Steps between checkpoints; 0: by time only.
    pub save_every: u64,
    /// Minutes between checkpoints; 0: by steps only.
    pub save_minutes: f64,
    /// Newest checkpoints to keep.
    pub keep_last: usize,
    /// Best checkpoints to keep.
    pub keep_best: usize,
    /// Steps between evaluations; 0: at the end of each epoch.
    pub eval_every: u64,
    /// Pictures to evaluate on, at most.
    pub eval_pictures: usize,
    /// What was said of LAVIS settings that mean nothing here.
    pub notes: Vec<String>,
    weights: LavisWeights,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            data: Vec::new(),
            validation: None,
            missing_share: 0.01,
            bad_share: 0.005,
            out: None,
            start: None,
            llm: None,
            prompt: String::new(),
            llm_dropout: None,
            recompute: None,
            llm_named: None,
            vocab: None,
            vocab_size: VOCABULARY_SIZE,
            size: "small".into(),
            sizes: BTreeMap::new(),
            train_vit: None,
            profile: Profile::LavisDiagonal,
            contrast: Contrast::MicroBatch,
            dropout: 0.1,
            vit_drop_path: 0.0,
            seed: 42,
            epochs: None,
            steps: None,
            stop_after: None,
            batch: 25,
            accumulate: 1,
            init_lr: 1e-4,
            min_lr: 1e-5,
            warmup_lr: 1e-6,
            warmup_steps: None,
            warmup_iterations: None,
            hyper: Hyper::default(),
            device: "auto".into(),
            dtype: None,
            cache: None,
            cache_views: 1,
            cache_dtype: Storage::F16,
            cache_on_gpu: false,
            vit_gelu: Gelu::Exact,
            augment: Augment::default(),
            rand_augment: None,
            resize: Resampling::Fast,
            exif_orientation: None,
            workers: None,
            prefetch: 2,
            save_every: 0,
            save_minutes: 10.0,
            keep_last: super::checkpoint::KEEP_LAST,
            keep_best: 1,
            eval_every: 0,
            eval_pictures: 1000,
            notes: Vec::new(),
            weights: LavisWeights::default(),
        }
    }
}

/// What of pictures is kept ([`super::cache`]).
#[derive(Clone, Debug, PartialEq)]
pub struct CacheSettings {
    /// Where it is kept.
    pub folder: PathBuf,
    /// Of each picture.
    pub views: usize,
    /// How tokens are stored.
    pub storage: Storage,
}

impl Config {
    /// The settings of a file (if there is one) and of the command line, checked.
    pub fn read(file: Option<&Path>, assignments: &[Entry]) -> Result<Config> {
        let mut all = Vec::new();
        if let Some(file) = file {
            let text = crate::data::read_text(OPERATION, file, 1 << 20)?;
            all = yaml::entries(file, &text)?;
        }
        all.extend(assignments.iter().cloned());
        Config::from_entries(&all)
    }

    /// The settings of these entries, checked.
    pub fn from_entries(entries: &[Entry]) -> Result<Config> {
        let mut config = Config::default();
        let mut refused: Vec<Error> =
            entries.iter().filter_map(|entry| keys::apply(&mut config, entry).err()).collect();
        config.begin();
        refused.extend(config.wrong_together());
        let sources = config.data.iter_mut().chain(&mut config.validation);
        refused.extend(sources.filter_map(|source| source.check().err()));
        match refused.as_slice() {
            [] => Ok(config),
            [one] => Err(one.clone()),
            several => Err(all_of(several)),
        }
    }

    /// Settles where a training begins that LAVIS's settings speak of.
    fn begin(&mut self) {
        if self.llm.is_none() {
            self.llm = self.llm_named.as_deref().and_then(sources::published);
        }
        let Some(wanted) = self.weights.wanted() else { return };
        let wanted = wanted.to_owned();
        match &self.start {
            Some(start) => {
                let note = format!("{wanted}: the training begins with {} instead", start.display());
                self.notes.push(note);
            }
            None if Path::new(&wanted).is_dir() => self.start = Some(wanted.into()),
            None => {}
        }
    }

    /// Settings that do not go together.
    fn wrong_together(&self) -> Vec<Error> {
        let mut refused = Vec::new();
        let mut wrong = |key: &str, want: &str, got: String, fix: &str| {
            let error = Error::argument(OPERATION, key, want, got);
            refused.push(if fix.is_empty() { error } else { error.fix(fix) });
        };
        if self.min_lr > self.init_lr {
            let got = format!("{} above init_lr {}", self.min_lr, self.init_lr);
            wrong("min_lr", "at most init_lr", got, "");
        }
        if self.contrast != Contrast::MicroBatch && self.trains_vit() {
            let fix = "set train_vit: false (with a start directory), or contrast: micro-batch";
            wrong(
                "contrast",
                "micro-batch where the image encoder is trained",
                self.contrast.name().into(),
                fix,
            );
        }
        if self.cache.is_some() && self.trains_vit() {
            let fix = "start from a model directory (start) and leave train_vit out, or leave cache out";
            wrong("cache", "a frozen image encoder", "one that is trained".into(), fix);
        }
        if self.cache_on_gpu && self.cache.is_none() {
            wrong("cache_on_gpu", "a cache", "none".into(), "name its folder (cache)");
        }
        if self.vit_gelu == Gelu::Tanh && self.trains_vit() {
            let fix = "set train_vit: false (with a start directory), or vit_gelu: exact";
            wrong("vit_gelu", "exact where the image encoder is trained", "tanh".into(), fix);
        }
        if self.hyper.vit_layer_decay < 1.0 && !self.trains_vit() {
            let got = self.hyper.vit_layer_decay.to_string();
            let fix = "set train_vit: true (LAVIS: freeze_vit: False), or leave it out";
            wrong("vit_layer_decay", "1 where the image encoder is frozen", got, fix);
        }
        if self.vit_drop_path > 0.0 && !self.trains_vit() {
            let fix = "set train_vit: true (LAVIS: freeze_vit: False), or leave it out";
            wrong(
                "vit_drop_path",
                "0 where the image encoder is frozen",
                self.vit_drop_path.to_string(),
                fix,
            );
        }
        if let (None, Some(weights)) = (&self.start, self.weights.wanted()) {
            let file = if values::is_url(weights) { "the downloaded file" } else { weights };
            let fix = format!("convert {file} with qformer convert, and give --start DIR");
            wrong("start", "a model directory to begin with", format!("LAVIS's {weights}"), &fix);
        } else if self.start.is_none() && self.train_vit == Some(false) {
            let fix = "convert the image encoder and the text model into a directory (qformer convert) and give it as start, \
                       or train the encoder too: train_vit: true (LAVIS: freeze_vit: False)";
            wrong("train_vit", "a start directory, whose image encoder is frozen", "none".into(), fix);
        }
        if let (None, Some(name)) = (&self.llm, &self.llm_named) {
            let (want, got) = ("the folder of the language model", format!("LAVIS's name {name}"));
            wrong("llm", want, got, "download it, and give its folder with --llm DIR");
        }
        if self.llm.is_some() && self.start.is_none() {
            let fix = "give the model directory of a first stage with --start DIR";
            wrong("llm", "a start directory, whose Q-Former the language model reads", "none".into(), fix);
        }
        if self.llm.is_some() && self.contrast != Contrast::MicroBatch {
            let fix = "leave contrast out: a second stage has no contrastive loss";
            wrong("contrast", "micro-batch with a language model", self.contrast.name().into(), fix);
        }
        let with_llm = [
            ("prompt", !self.prompt.is_empty()),
            ("llm_dropout", self.llm_dropout.is_some()),
            ("recompute", self.recompute == Some(true)),
        ];
        for (key, _) in with_llm.iter().filter(|(_, given)| self.llm.is_none() && *given) {
            let fix = "give the folder of a language model with --llm DIR, or leave it out";
            wrong(key, "a language model (llm)", "none".into(), fix);
        }
        if self.start.is_some() && self.vocab.is_some() {
            let fix = "leave vocab out, or leave start out";
            wrong("vocab", "the start directory's own", "another".into(), fix);
        }
        let ratios = self.data.iter().filter(|d| d.ratio.is_some()).count();
        if ratios > 0 && ratios < self.data.len() {
            wrong("ratio", "one for each data set, or none", format!("{ratios} of {}", self.data.len()), "");
        }
        refused
    }

    /// What decides how a picture is cropped and changed, besides the seed.
    pub fn crops(&self) -> Vec<(&'static str, Value)> {
        const CROPS: [&str; 5] = ["crop_scale", "crop_ratio", "flip", "resize", "rand_augment"];
        of_run(self).filter(|(name, _)| CROPS.contains(name)).collect()
    }

    /// How samples are loaded ahead.
    pub fn loading(&self) -> data::Options {
        let default = data::Options::default();
        let workers = self.workers.unwrap_or(default.workers);
        data::Options { workers, prefetch: self.prefetch, bad_share: self.bad_share, ..default }
    }

    /// What is kept of pictures, if anything is.
    pub fn cache(&self) -> Option<CacheSettings> {
        let (views, storage) = (self.cache_views, self.cache_dtype);
        self.cache.clone().map(|folder| CacheSettings { folder, views, storage })
    }

    /// From nothing everything is trained; from a directory its image encoder is frozen unless asked otherwise.
    pub fn trains_vit(&self) -> bool {
        self.train_vit.unwrap_or(self.start.is_none())
    }

    /// The sizes of a model that starts from nothing, for a vocabulary of `vocab` ids.
    pub fn model_sizes(&self, vocab: usize) -> Result<model::Config> {
        let known = "small, tiny, heads, base or full";
        let named = if self.size == "small" { Some(small()) } else { model::Config::named(&self.size) };
        let mut sizes = named.ok_or_else(|| Error::argument(OPERATION, "size", known, &self.size))?;
        sizes.vocab = vocab;
        for (key, value) in &self.sizes {
            *values::size_mut(&mut sizes, key)
                .ok_or_else(|| Error::argument(OPERATION, key, "a model size", value))? = *value;
        }
        sizes.check()?;
        Ok(sizes)
    }

    /// Refuses a start directory of other sizes than those asked for.
    pub fn check_sizes(&self, model: &model::Config) -> Result<()> {
        let mut have = model.clone();
        // A language model reads as much of a caption as it is told to.
        for (key, want) in self.sizes.iter().filter(|(key, _)| self.llm.is_none() || *key != "max_txt_len") {
            if let Some(size) = values::size_mut(&mut have, key).filter(|size| *size != want) {
                return Err(Error::argument(OPERATION, key, format!("{size}, as the model has it"), want)
                    .fix("leave it out, or start from another model"));
            }
        }
        for d in &self.data {
            if let Some(size) = d.image_size.filter(|size| *size != model.image_size) {
                let about = format!("image_size of data set {} ({})", d.name, d.place);
                return Err(Error::argument(OPERATION, about, model.image_size, size)
                    .fix("give all the model's size, or set model.image_size"));
            }
        }
        Ok(())
    }

    /// The data sets' ratios, if they have any.
    pub fn ratios(&self) -> Option<Vec<f64>> {
        self.data.iter().map(|d| d.ratio).collect()
    }
}

/// All refusals of a configuration as one error.
fn all_of(refused: &[Error]) -> Error {
    let lines = refused.iter().map(|e| {
        let text = e.to_string();
        let text = text.strip_prefix(OPERATION).map_or(text.as_str(), |rest| rest.trim_start_matches(": "));
        format!("\n  {text}")
    });
    let text: String = lines.collect();
    Error::new(crate::Kind::Argument, OPERATION)
        .got(format!("{} settings cannot be used:{text}", refused.len()))
}

/// Entries of a vocabulary that is trained from the captions, at most.
pub const VOCABULARY_SIZE: usize = 8000;

/// Sizes for a model that a CPU can train from nothing.
fn small() -> model::Config {
    model::Config {
        image_size: 112,
        patch_size: 16,
        vit_width: 256,
        vit_depth: 4,
        vit_heads: 4,
        vit_mlp: 1024,
        hidden: 256,
        layers: 4,
        heads: 4,
        ffn: 1024,
        num_query: 16,
        cross_freq: 2,
        vocab: 8001,
        max_txt_len: 32,
        embed_dim: 128,
        max_pos: 64,
        exif_orientation: false,
    }
}
