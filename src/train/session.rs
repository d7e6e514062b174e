//! A training that is worked out, checked and then begun. Everything that can be refused is refused before a byte is written:
//! settings, data, the model it starts from, the run that stands in its folder, another process that trains there. A dry run is
//! these checks alone.

mod describe;

use super::cache::Cache;
use super::checkpoint::{self, Loaded};
use super::config::{self, Config, Length};
use super::corpus::Corpus;
use super::loading::Loading;
use super::plan::Plan;
use super::rehearsal;
use super::run::{self, Run};
pub use super::run_folder::{CONFIG, MODEL, VOCABULARY};
use super::run_folder::{keep, own, write_settings};
use super::start::{self, Start};
use super::state::{self, Identity, State};
use super::together::Together;
use super::trainer::Trainer;
use super::validate::Validation;
use super::watch::Watch;
use crate::files::{self, RealDisk, bytes};
use crate::group::Group;
use crate::model::Model;
use crate::model::Profile;
use crate::nn::{self, Params, Precision};
use crate::pretrained::llm::LlmPart;
use crate::tensor::Device;
use crate::text::Tokenizer;
use crate::vision::Turn;
use crate::{Error, Kind, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is to become of the run in the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    Begin,
    Resume,
    Export,
}

/// How a training ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Why it ended.
    pub ending: Ending,
    /// The steps that are done, of how many in all.
    pub step: u64,
    /// All steps of the run.
    pub whole: u64,
    /// The trained model's folder; not written where the training was stopped.
    pub model: PathBuf,
}

/// Why a training ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The last step, or the one to stop after, is done, and the model written.
    Trained,
    /// Asked to stop: this step is saved, and the run can be resumed.
    Stopped,
    /// Asked to stop while image tokens were computed, of which this folder keeps what is done.
    StoppedInCache(PathBuf),
}

/// A run that is worked out, but has not begun.
pub struct Job {
    aim: Aim,
    config: Config,
    corpus: Arc<Corpus>,
    validation: Option<Arc<Corpus>>,
    start: Start,
    length: Length,
    plan: Plan,
    device: Device,
    precision: Precision,
    /// The longest caption in tokens.
    longest: usize,
    /// Layers of a language model are computed twice.
    recompute: bool,
    together: Together,
}

/// What a job begins with: numbers of its model, what it is compared by, and where its run stands.
struct Beginning {
    llm: Option<LlmPart>,
    model: Model,
    params: Params,
    tokenizer: Arc<Tokenizer>,
    identity: Identity,
    newest: Option<Loaded>,
}

impl Job {
    pub fn prepare(config: Config, aim: Aim, watch: &dyn Watch) -> Result<Job> {
        Job::prepare_in(&Group::alone(), config, aim, watch)
    }

    /// [`Job::prepare`] as one of the processes of a group, each of which computes its share of every step.
    pub fn prepare_in(group: &Group, mut config: Config, aim: Aim, watch: &dyn Watch) -> Result<Job> {
        let together = Together { group: group.clone() };
        together.check(&config)?;
        let say = |line: String| watch.say(&line);
        let name = group.device(&config.device);
        let (device, precision) = nn::place(&name, config.dtype.as_deref(), config.vit_gelu, say)?;
        if config.device == "auto" {
            // A run that is resumed computes where it began.
            config.device = device.gpu().map_or("cpu", |_| "cuda").into();
        }
        config.notes.iter().for_each(|note| watch.say(&format!("note: {note}")));
        let again = aim != Aim::Begin;
        let own = config.out.as_ref().filter(|_| again).map(|out| out.join(CONFIG));
        let read = |sources: &[config::DataSource]| {
            let corpus = Corpus::read(sources, config.missing_share).map_err(|e| match &own {
                Some(own) if e.kind() == Kind::File => e.also(format!(
                    "{} says where the data was: where it is now is given with --images and --captions",
                    own.display()
                )),
                _ => e,
            })?;
            for report in corpus.sets.iter().map(|s| &s.report).filter(|r| r.has_warnings()) {
                watch.warn(&format!("warning: {report}"));
            }
            Ok::<_, Error>(Arc::new(corpus))
        };
        let corpus = read(&config.data)?;
        let validation = config.validation.clone().map(|v| read(&[v])).transpose()?;
        let kept = config.out.as_ref().filter(|_| again).map(|out| out.join(VOCABULARY));
        let start = Start::new(&config, &corpus, kept.as_deref())?;
        let length = config.length(corpus.order(&config)?.steps_per_epoch());
        check_length(&config, length, again)?;
        let tokenize = start.tokenize(&config.prompt);
        let longest = corpus.captions().map(|c| tokenize(c).len()).max().unwrap_or(2);
        let on_cpu = device.gpu().is_none();
        let plan = Plan::new(&config, &start.model.config, &start.specs, longest, length, on_cpu);
        let job = Job {
            aim,
            config,
            corpus,
            validation,
            start,
            length,
            plan,
            device,
            precision,
            longest,
            recompute: false,
            together,
        };
        job.note_repeats(watch)?;
        job.recompute()
    }

    /// Settles whether layers of a language model are computed twice: as it was said, or where a GPU would not hold them.
    fn recompute(mut self) -> Result<Job> {
        self.recompute = self.config.recompute == Some(true) && self.start.llm.is_some();
        let (Some(gpu), None, true) = (self.device.gpu(), self.config.recompute, self.start.llm.is_some())
        else {
            return Ok(self);
        };
        if let Some(memory) = gpu.memory().map(|m| m.usable) {
            self.recompute = self.steps(&self.config).rehearse(None, false)?.peak > memory;
        }
        Ok(self)
    }

    /// What doctor finds in such a data set: right captions that count as wrong ones.
    fn note_repeats(&self, watch: &dyn Watch) -> Result<()> {
        let no_contrast = self.start.llm.is_some();
        if self.config.profile != Profile::LavisDiagonal || self.aim == Aim::Export || no_contrast {
            return Ok(());
        }
        let order = self.corpus.order(&self.config)?;
        let steps = order.steps_per_epoch();
        let repeats = |step: &u64| {
            let mut pictures: Vec<usize> =
                order.batch(*step).into_iter().filter_map(|i| Some(self.corpus.get(i)?.picture)).collect();
            pictures.sort_unstable();
            pictures.windows(2).any(|w| w[0] == w[1])
        };
        let count = (0..steps).filter(repeats).count();
        if count > 0 {
            watch.say(&format!(
                "note: {count} of {steps} batches of the first epoch repeat a picture: in the profile lavis-diagonal its right \
                 captions count as wrong there, with --set profile=lavis-image-id they do not"
            ));
        }
        Ok(())
    }

    /// Refuses what a run would refuse, and writes nothing.
    pub fn dry_run(self, out: &Path, watch: &dyn Watch) -> Result<String> {
        let text = self.describe()?;
        // Numbers that a training begins with from nothing are large, and cannot be wrong.
        let reads = self.config.start.is_some() || self.aim != Aim::Begin;
        self.check_folder(out)?;
        if reads {
            let (settings, corpus) = (self.config.cache(), Arc::clone(&self.corpus));
            let config = self.config.clone();
            let begin = self.begin(out, watch)?;
            if let Some(cache) = settings {
                Cache::check(&cache, &config, &corpus, &begin.model.config, &begin.identity.encoder)?;
            }
        }
        Ok(text)
    }

    /// What is rehearsed of a run on a GPU.
    fn steps<'a>(&'a self, config: &'a Config) -> rehearsal::Run<'a> {
        let (sizes, length) = (&self.start.model.config, self.length);
        let llm = self.start.llm.as_ref().map(|llm| (&llm.config, self.start.prompt, self.recompute));
        rehearsal::Run { llm, config, sizes, length, precision: self.precision, text: self.longest }
    }

    /// Asks a GPU for the memory of a step of the longest captions, so that none will ask for more; says so if that may not
    /// fit. What the second stream is to have.
    fn reserve(&self, watch: &dyn Watch) -> Result<[usize; 2]> {
        let Some(gpu) = self.device.gpu() else { return Ok([0; 2]) };
        let Some(memory) = gpu.memory().map(|m| m.usable) else { return Ok([0; 2]) };
        let step = self.steps(&self.config).rehearse(Some(memory), false)?;
        let [held, ahead] = step.held;
        if step.peak > memory || !gpu.reserve(held)? {
            watch.warn(&format!("warning: this may not fit:\n{step}"));
            return Ok([0; 2]);
        }
        Ok(ahead)
    }

    fn loading(&self, corpus: &Arc<Corpus>, train: bool) -> Loading {
        Loading {
            device: self.device.clone(),
            corpus: Arc::clone(corpus),
            tokenize: self.start.tokenize(&self.config.prompt),
            image_size: self.start.model.config.image_size,
            turn: Turn::upright(self.start.model.config.exif_orientation),
            seed: self.config.seed,
            augment: train.then_some((self.config.augment, self.config.resize, self.config.rand_augment)),
            cache: None,
        }
    }

    /// Refuses a folder that cannot be written to, is trained in by another process, or holds what would be lost.
    fn check_folder(&self, out: &Path) -> Result<()> {
        files::check_writable(out)?;
        checkpoint::refuse_locked(&out.join(run::CHECKPOINTS))?;
        let model = out.join(MODEL);
        let begun = checkpoint::steps(&RealDisk, &out.join(run::CHECKPOINTS))?.first().cloned();
        match (self.aim, begun) {
            (Aim::Begin, Some((step, _))) => Err(Error::argument(
                "train",
                out.display().to_string(),
                "a folder without checkpoints",
                format!("a run that stands at step {step}"),
            )
            .fix("resume it (--resume), or choose another folder (--out)")),
            (Aim::Begin | Aim::Resume, None) if model.join("model.safetensors").exists() => {
                let got = format!("{}, a trained model without checkpoints", model.display());
                Err(Error::argument("train", out.display().to_string(), "a folder without a model", got)
                    .fix("choose another folder (--out); a run may begin with this model (--start)"))
            }
            _ => Ok(()),
        }
    }

    /// Reads the numbers that the job begins with, and refuses a run in the folder that is another's.
    fn begin(self, out: &Path, watch: &dyn Watch) -> Result<Beginning> {
        let Job { config, corpus, start, length, precision, aim, device: at, .. } = self;
        let llm = start.part(&config)?;
        let (model, params, tokenizer) = start.fill(&config, &at)?;
        let vocabulary = tokenizer.fingerprint();
        let settings = state::settings(&config, &corpus, &model.config, length, &vocabulary, precision);
        let mut identity = Identity::new(settings, &params)?;
        let newest = run::newest(out, |e| watch.warn(&format!("warning: passed over: {e}")))?;
        if let Some(loaded) = &newest {
            let device = loaded.progress.config.get("device").cloned();
            if aim == Aim::Export {
                // Nothing is computed: a model may be exported anywhere.
                for key in ["device", "dtype"] {
                    identity.settings[key] = loaded.progress.config.get(key).cloned().unwrap_or_default();
                }
            }
            let elsewhere = device.as_ref() != identity.settings.get("device");
            loaded.progress.check_same_run(&identity.at_start(config.seed)).map_err(|e| match elsewhere {
                true => e.also(format!(
                    "on another kind of device, a new run may begin with its model: qformer train --export --out {out} \
                     --device {}, then --start {out}/model",
                    config.device,
                    out = out.display()
                )),
                false => e,
            })?;
            state::check_finite(loaded)?;
            if let Some(other) = state::other_machine(loaded, &at) {
                watch.warn(&format!(
                    "warning: {other}: the last bits of what is computed may differ from those of a run on one machine"
                ));
            }
        }
        Ok(Beginning { llm, model, params, tokenizer, identity, newest })
    }

    pub fn train(self, out: &Path, watch: &mut dyn Watch) -> Result<Outcome> {
        self.device.check_computes("train")?;
        self.check_folder(out)?;
        watch.begin()?;
        let ahead = self.reserve(watch)?;
        if let (Some(free), None) = (self.plan.available, self.plan.largest_batch) {
            let (free, plan) = (bytes(free), &self.plan);
            watch.warn(&format!("warning: {free} are free; this may not fit:\n{plan}"));
        }
        let mut loading = Arc::new(self.loading(&self.corpus, true));
        let validation = self.validation.as_ref().map(|corpus| Validation {
            loading: self.loading(corpus, false),
            entries: corpus.first_captions(self.config.eval_pictures),
            batch: self.config.batch,
        });
        let resume = self.aim == Aim::Resume;
        let (config, length, device, precision) =
            (self.config.clone(), self.length, self.device.clone(), self.precision);
        let corpus = Arc::clone(&self.corpus);
        let before = checkpoint::steps(&RealDisk, &out.join(run::CHECKPOINTS))?;
        let (recompute, together) = (self.recompute, self.together.clone());
        let Beginning { llm, model: mut laid_out, params, tokenizer, identity, newest } =
            self.begin(out, watch)?;
        laid_out.set_recompute(recompute);
        laid_out.set_drop_path(config.vit_drop_path);
        let params = params.to(&device, precision)?;
        let mut trainer = Trainer::new(laid_out, params, config.options(length))?;
        let model = out.join(MODEL);
        let ended = |ending, step| Outcome { ending, step, whole: length.whole, model: model.clone() };
        let state = newest.map_or_else(|| Ok(State::default()), |l| state::restore(&mut trainer, l))?;
        if ahead != [0; 2] {
            trainer.open_ahead(ahead)?;
        }
        if config.cache_on_gpu && !device.has_streams() {
            return Err(Error::argument("train", "cache_on_gpu", "a GPU", "the CPU").fix("leave it out"));
        }
        let cache = config.cache().map(|settings| {
            Cache::open(&settings, &config, &corpus, &trainer.model.config, &identity.encoder)
        });
        let cache = cache.transpose()?;
        trainer.group = together.group.clone();
        together.compare(|| state::to_compare(&trainer, &identity, length))?;
        // From here on the folder is this process's, and is written to.
        let (leads, alone) = (together.group.leads(), together.alone());
        let folder = leads.then(|| own(out, &before)).transpose()?;
        if leads {
            keep(out, &config, &tokenizer, resume)?;
        }
        if let Some(cache) = cache {
            let kept = cache.folder().to_owned();
            loading = cached(cache, &config, loading, &trainer, watch)?;
            if watch.stop() {
                return Ok(ended(Ending::StoppedInCache(kept), trainer.step));
            }
        }
        let job = Run { config: &config, length, loading, validation, identity, out, resume, together };
        let outcome = run::run(&job, (trainer, state), folder, watch)?;
        let step = outcome.trainer.step;
        if outcome.stopped || alone && watch.stop() {
            return Ok(ended(Ending::Stopped, step));
        }
        if !leads {
            return Ok(ended(Ending::Trained, step));
        }
        if resume {
            write_settings(out, &config)?; // they may ask for more steps than before
        }
        let own = (&*tokenizer, llm.as_ref());
        start::export(&model, &config, &outcome.trainer.model, &outcome.trainer.params, own)?;
        if outcome.bad > 0 {
            let list = out.join(run::BAD);
            let list = list.display();
            watch.warn(&format!("warning: {} pictures could not be used; see {list}", outcome.bad));
        }
        Ok(ended(Ending::Trained, step))
    }

    /// Writes the model of the newest checkpoint.
    pub fn export(self, out: &Path, watch: &dyn Watch) -> Result<Outcome> {
        let (config, length) = (self.config.clone(), self.length);
        let Beginning { llm, model, params, tokenizer, newest, .. } = self.begin(out, watch)?;
        let newest = newest.ok_or_else(|| {
            Error::argument("export", out.display().to_string(), "a run with a checkpoint", "none")
                .fix("train first")
        })?;
        let mut trainer = Trainer::new(model, params, config.options(length))?;
        state::restore(&mut trainer, newest)?;
        let directory = out.join(MODEL);
        let own = (&*tokenizer, llm.as_ref());
        start::export(&directory, &config, &trainer.model, &trainer.params, own)?;
        let (step, whole) = (trainer.step, length.whole);
        Ok(Outcome { ending: Ending::Trained, step, whole, model: directory })
    }
}

/// Refuses to stop behind the end of the run, where there is no learning rate of its schedule.
fn check_length(config: &Config, length: Length, again: bool) -> Result<()> {
    if length.steps <= length.whole {
        return Ok(());
    }
    let want = format!("at most {}, where the run and its schedule end", length.whole);
    let longer = match again {
        true => "start a new run from its model (--start)",
        false => "give more --epochs",
    };
    let steps = length.steps;
    let hold = format!("to continue at min_lr give --set steps={steps} in place of --steps");
    let rate = format!("min_lr is {:e}", config.min_lr);
    Err(Error::argument("train", "--steps", want, steps).fix(format!("{longer}, or {hold} ({rate})")))
}

/// Fills a cache, from which training then loads.
fn cached(
    mut cache: Cache,
    config: &Config,
    loading: Arc<Loading>,
    trainer: &Trainer,
    watch: &mut dyn Watch,
) -> Result<Arc<Loading>> {
    let views = format!("{} view{} of a picture", cache.views(), if cache.views() == 1 { "" } else { "s" });
    let (all, missing) = (cache.len(), cache.missing().len());
    let folder = cache.folder().display();
    let changed = match cache.changed() {
        0 => String::new(),
        n => format!("; {n} pictures have changed since and are computed again"),
    };
    watch.say(&format!(
        "training on {views}, kept in {folder}: {} of {all} are there{changed}",
        all - missing
    ));
    let how = (config.batch, config.loading());
    let encoder = (&trainer.model, &trainer.params);
    cache.fill(&loading, encoder, how, watch)?;
    if cache.missing().is_empty() {
        cache.attach(&loading.device, config.cache_on_gpu, |cache, record| {
            let view = loading.view(record / cache.views(), record % cache.views())?;
            cache.repair(record, &view, &loading, encoder)
        })?;
    }
    Ok(Arc::new(Loading { cache: Some(Arc::new(cache)), ..Loading::clone(&loading) }))
}
