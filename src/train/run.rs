//! A training run from its first step, or from its newest whole checkpoint, to its end or until it is told to stop.
//!
//! Micro-batch m of a run is batch m of the data's order, and step s takes micro-batches s*k .. (s+1)*k. So where a run
//! stands is one number, and a run that goes on from any checkpoint ends with the bytes of one that was never stopped.
//!
//! The folder of a run:
//!   checkpoints/      one file each, see [`checkpoint`]
//!   log.jsonl, events.out.tfevents.*      see [`super::log`]
//!   bad.jsonl         pictures that could not be used, and why

use super::checkpoint::{self, Folder, Metric};
use super::config::{Config, Length};
use super::corpus::Corpus;
use super::loading::{Item, Loading};
use super::log::{Log, StepLine, Time, now};
use super::state::{self, Identity, State};
use super::together::Together;
use super::trainer::{LossScale, Micro, SKIPPED_STOPS, SKIPPED_WARNS, StepReport, Trainer};
use super::validate::{Validation, evaluate};
use super::watch::Watch;
use crate::data::{self, Loader};
use crate::files::{self, RealDisk};
use crate::{Error, Kind, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const CHECKPOINTS: &str = "checkpoints";
pub const BAD: &str = "bad.jsonl";

/// Everything a run is made of.
pub struct Run<'a> {
    pub config: &'a Config,
    pub length: Length,
    pub loading: Arc<Loading>,
    pub validation: Option<Validation>,
    pub identity: Identity,
    pub out: &'a Path,
    pub resume: bool,
    pub together: Together,
}

/// How a run ended; the trainer holds the model.
pub struct Outcome {
    pub trainer: Trainer,
    /// Asked to stop.
    pub stopped: bool,
    /// Pictures that could not be used.
    pub bad: usize,
}

/// The parts that change as a run goes on.
struct Going<'a> {
    run: &'a Run<'a>,
    trainer: Trainer,
    state: State,
    /// Only the process that leads writes.
    folder: Option<Folder<'static>>,
    log: Option<Log>,
    bad: BTreeMap<String, String>,
    saved: Option<u64>,
    last_save: Instant,
}

/// Trains. The trainer and its state stand where the newest checkpoint of the folder does, if there is one.
pub fn run(
    run: &Run,
    (trainer, state): (Trainer, State),
    folder: Option<Folder<'static>>,
    watch: &mut dyn Watch,
) -> Result<Outcome> {
    if run.resume {
        watch.say(&match trainer.step {
            0 => "no checkpoint yet: beginning with step 1".to_string(),
            step => where_it_stands(step, run.length),
        });
    }
    let saved = (trainer.step > 0).then_some(trainer.step);
    let log = folder.is_some().then(|| Log::open(run.out, trainer.step)).transpose()?;
    let bad = read_bad(&run.out.join(BAD));
    let mut going = Going { run, trainer, state, folder, log, bad, saved, last_save: Instant::now() };
    watch.count("step", going.trainer.step, run.length.steps);
    match going.steps(watch) {
        Ok(stopped) => {
            watch.finish();
            Ok(Outcome { bad: going.bad.len(), stopped, trainer: going.trainer })
        }
        Err(e) if of_gpu(&e) => Err(going.after_gpu(e)),
        Err(e) => Err(e),
    }
}

/// Whether it is a GPU that ends a run: it failed, or has no memory left.
fn of_gpu(e: &Error) -> bool {
    matches!(e.kind(), Kind::Device | Kind::Memory)
}

/// The newest whole checkpoint of a run, and what to say about torn ones.
pub fn newest(out: &Path, mut torn: impl FnMut(&Error)) -> Result<Option<checkpoint::Loaded>> {
    match checkpoint::latest(&RealDisk, &out.join(CHECKPOINTS), &mut torn)? {
        Some(path) => checkpoint::load(&RealDisk, &path).map(Some),
        None => Ok(None),
    }
}

impl Going<'_> {
    /// All steps, or those until a signal asks to stop; the last one is saved.
    fn steps(&mut self, watch: &mut dyn Watch) -> Result<bool> {
        let last = self.run.length.steps;
        let mut loader = self.loader()?;
        let (mut coming, mut stop) = (None, self.run.together.stop(watch)?);
        while self.trainer.step < last && !stop {
            let begun = Instant::now();
            let micro = match coming.take().unwrap_or_else(|| self.next(&mut loader, watch)) {
                Ok(micro) => micro,
                Err(e) => return Err(self.after_bad_data(e, &loader, watch)),
            };
            if let Some(cache) = &self.run.loading.cache {
                cache.settle()?;
            }
            // A GPU prefetches the next step's image tokens while it trains on these.
            let ahead = self.trainer.params.device().has_streams();
            if ahead && self.trainer.step + 1 < last {
                coming = Some(self.next(&mut loader, watch));
            }
            let next = coming.as_ref().and_then(|c| c.as_deref().ok()).unwrap_or_default();
            let report = self.trainer.step_ahead(&micro, next)?;
            if let Err(e) = self.note_bad(&loader, watch) {
                return Err(self.after_bad_data(e, &loader, watch));
            }
            stop = self.run.together.stop(watch)?;
            let waiting = loader.waited_share();
            self.log_step(&report, waiting, begun.elapsed(), watch);
            self.check_scale(watch)?;
            let metric = self.evaluate_if_due(watch)?;
            self.save_if_due(metric)?;
            // Alone it may come until the next step begins.
            stop |= self.run.together.alone() && watch.stop();
        }
        self.save(None)?;
        Ok(stop)
    }

    /// Loss scaling that leaves out step after step trains nothing: a warning first, then the end.
    fn check_scale(&self, watch: &dyn Watch) -> Result<()> {
        let LossScale { skipped, scale, .. } = self.trainer.scale;
        let found = format!("gradients in f16 were not finite in {skipped} steps in a row");
        if skipped == SKIPPED_WARNS {
            watch.warn(&format!("warning: {found}, which were left out; the loss scale is now {scale}"));
        }
        if skipped < SKIPPED_STOPS {
            return Ok(());
        }
        let out = self.run.out.display();
        let begin = match self.saved {
            Some(step) => format!(
                "step {step} is saved: a new run may begin with its model (qformer train --export --out {out}, then --start \
                 {out}/model)"
            ),
            None => "begin again in another folder".to_string(),
        };
        let error = Error::new(Kind::NonFinite, format!("train: step {}", self.trainer.step));
        Err(error
            .expected("finite gradients")
            .got(format!("{found}, down to a loss scale of {scale}"))
            .fix(format!("train with --dtype bf16, whose range is that of f32; {begin}")))
    }

    /// A GPU ended the run: says which step is saved and how to resume. What a GPU without memory holds is whole, and is saved
    /// first.
    fn after_gpu(&mut self, error: Error) -> Error {
        let out = self.run.out.display().to_string();
        let memory = error.kind() == Kind::Memory;
        if memory && self.trainer.is_whole() {
            self.trainer.forget_ahead();
            // The first error is the one to report, whatever becomes of this.
            let _ = self.save(None);
        }
        let Some(step) = self.saved else {
            return error.also("no step is saved yet: the same command begins again");
        };
        let resume = format!("step {step} is saved: resume with qformer train --resume --out {out}");
        if !memory {
            return error.also(resume);
        }
        error.also(format!(
            "{resume} where more memory is free; another batch is a new run: qformer train --export --out {out}, then --start \
             {out}/model --batch N"
        ))
    }

    fn loader(&self) -> Result<Loader<Item>> {
        let (config, corpus) = (self.run.config, &self.run.loading.corpus);
        let own = self.run.together.own(config.accumulate);
        let options = data::Options {
            first: self.trainer.step * own as u64,
            end: self.run.length.steps.max(self.trainer.step) * own as u64,
            ..config.loading()
        };
        let loading = Arc::clone(&self.run.loading);
        let order = Arc::new(self.run.together.share(corpus.order(config)?, config.accumulate));
        let among = Arc::clone(&order);
        Loader::start(order, options, move |index, micro| loading.load(index, among.among_all(micro)))
    }

    /// The micro-batches of the next step.
    fn next(&self, loader: &mut Loader<Item>, watch: &dyn Watch) -> Result<Vec<Micro>> {
        let own = self.run.together.own(self.run.config.accumulate);
        let mut micro = Vec::with_capacity(own);
        for _ in 0..own {
            let mut batch = loader.next_batch()?.ok_or_else(|| {
                Error::new(Kind::Data, "train").expected("another batch").got("the end of the data")
            })?;
            let encoder = (&self.trainer.model, &self.trainer.params);
            for name in self.run.loading.repair(&mut batch, encoder)? {
                watch.warn(&format!("warning: damaged tokens of {name} in the cache: computed again"));
            }
            micro.push(self.run.loading.micro(batch)?);
        }
        Ok(micro)
    }

    fn log_step(&mut self, report: &StepReport, waiting: f64, took: Duration, watch: &mut dyn Watch) {
        let samples = self.run.config.batch * self.run.config.accumulate;
        let seconds = took.as_secs_f64();
        let samples_per_second = samples as f64 / seconds.max(1e-9);
        let time = Time { at: now(), samples_per_second, waiting };
        let epoch = (report.step - 1) / self.run.length.steps_per_epoch;
        let line = StepLine::new(report, epoch, time);
        if let Some(warning) = self.log.as_mut().and_then(|log| log.step(&line)) {
            watch.warn(&format!("warning: {warning}"));
        }
        watch.step(&line, samples, seconds);
    }

    /// The validation loss, where it is time for it; the best so far is saved at once.
    fn evaluate_if_due(&mut self, watch: &mut dyn Watch) -> Result<Option<Metric>> {
        let Some(validation) = &self.run.validation else { return Ok(None) };
        let (step, length) = (self.trainer.step, self.run.length);
        let every = self.run.config.eval_every;
        let every = if every > 0 { every } else { length.steps_per_epoch };
        if !step.is_multiple_of(every) && step != length.whole {
            return Ok(None);
        }
        let line = evaluate(&self.trainer, validation)?;
        if let Some(warning) = self.log.as_mut().and_then(|log| log.evaluation(&line)) {
            watch.warn(&format!("warning: {warning}"));
        }
        watch.evaluation(&line);
        let better = line.loss.is_finite() && self.state.best.is_none_or(|best| line.loss < best);
        let metric = line.loss.is_finite().then(|| Metric {
            name: "validation loss".into(),
            value: line.loss,
            higher_is_better: false,
        });
        if better {
            self.state.best = Some(line.loss);
        }
        if better && self.run.config.keep_best > 0 {
            self.save(metric.clone())?;
        }
        Ok(metric)
    }

    fn save_if_due(&mut self, metric: Option<Metric>) -> Result<()> {
        let config = self.run.config;
        let by_steps = config.save_every > 0 && self.trainer.step.is_multiple_of(config.save_every);
        let minutes = self.last_save.elapsed().as_secs_f64() / 60.0;
        let by_time = config.save_minutes > 0.0 && minutes >= config.save_minutes;
        let last = self.trainer.step >= self.run.length.steps;
        if by_steps || by_time || last { self.save(metric) } else { Ok(()) }
    }

    /// Saves, unless this step is saved already, and removes what is not to be kept.
    fn save(&mut self, metric: Option<Metric>) -> Result<()> {
        if self.saved == Some(self.trainer.step) || self.trainer.step == 0 {
            return Ok(());
        }
        let Some(folder) = &mut self.folder else {
            self.saved = Some(self.trainer.step);
            return Ok(());
        };
        self.log.iter_mut().for_each(Log::sync);
        let progress = self.run.identity.progress(&self.trainer, self.state.clone(), metric)?;
        folder.save(&state::checkpoint(&self.trainer, progress)?)?;
        (self.saved, self.last_save) = (Some(self.trainer.step), Instant::now());
        folder.prune(self.run.config.keep_last, self.run.config.keep_best).map(drop)
    }

    /// Lists pictures that turned out unusable, and stops when there are too many in all.
    fn note_bad(&mut self, loader: &Loader<Item>, watch: &dyn Watch) -> Result<()> {
        let mut own = loader.bad();
        own.retain(|b| !self.state.bad.contains(&b.index));
        let fresh = self.run.together.bad(own)?;
        if fresh.is_empty() {
            return Ok(());
        }
        let corpus: &Corpus = &self.run.loading.corpus;
        for b in fresh {
            self.state.bad.insert(b.index);
            let picture = corpus
                .get(b.index)
                .map_or_else(String::new, |e| e.sample.image().path().display().to_string());
            self.bad.insert(picture, b.reason);
        }
        let path = self.run.out.join(BAD);
        watch.warn(&format!(
            "warning: {} pictures could not be used so far ({})",
            self.bad.len(),
            path.display()
        ));
        if self.folder.is_none() {
            // The process that leads lists them.
        } else if let Err(e) = write_bad(&path, &self.bad) {
            watch.warn(&format!("warning: {e}")); // the list is no reason to stop training
        }
        let (count, total) = (self.state.bad.len(), corpus.sizes().iter().sum::<usize>());
        if count as f64 <= self.run.config.bad_share * total as f64 {
            return Ok(());
        }
        let first: Vec<&str> = self.bad.values().take(3).map(String::as_str).collect();
        let share = self.run.config.bad_share * 100.0;
        Err(Error::new(Kind::Data, "train")
            .about("pictures")
            .expected(format!("at most {share} % of the captions without a usable picture"))
            .got(format!("{count} of {total}; {}", first.join("; "))))
    }

    /// Training cannot continue with this data: what was trained is saved, what is bad is listed.
    fn after_bad_data(&mut self, error: Error, loader: &Loader<Item>, watch: &dyn Watch) -> Error {
        if of_gpu(&error) {
            return error; // while pictures were uploaded
        }
        // The first error is the one to report, whatever becomes of these.
        let _ = self.note_bad(loader, watch);
        let _ = self.save(None);
        let bad = self.run.out.join(BAD);
        let list =
            if self.bad.is_empty() { String::new() } else { format!(" (listed in {})", bad.display()) };
        error.fix(match self.saved {
            Some(step) => {
                format!("step {step} is saved: repair the data{list} or raise bad_share, and --resume")
            }
            None => format!("repair the data{list} or raise bad_share; qformer doctor finds what is wrong"),
        })
    }
}

/// What a resumed run has before it.
fn where_it_stands(step: u64, length: Length) -> String {
    let whole = length.whole;
    match step {
        _ if step < length.steps => format!("going on after step {step} of {whole}"),
        _ if step < whole => {
            format!("nothing to do: step {step} of {whole} is done, and --steps asks for no more")
        }
        _ => format!(
            "nothing to do: all {whole} steps are done; a longer run begins with --start and this one's model"
        ),
    }
}

/// Pictures and reasons of an earlier part of the run; none if there is no such file.
pub fn read_bad(path: &Path) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = |line: &str| -> Option<(String, String)> {
        let v: Value = serde_json::from_str(line).ok()?;
        Some((v.get("picture")?.as_str()?.to_string(), v.get("reason")?.as_str()?.to_string()))
    };
    text.lines().filter_map(line).collect()
}

fn write_bad(path: &Path, bad: &BTreeMap<String, String>) -> Result<()> {
    let text: String = bad
        .iter()
        .map(|(picture, reason)| format!("{}\n", json!({ "picture": picture, "reason": reason })))
        .collect();
    files::write_atomic(&RealDisk, path, text.len() as u64, |w| w.write_all(text.as_bytes()))
}
