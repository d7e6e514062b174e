//! A training as a program asks for it: [`Training`].

use super::config::{Config, yaml};
use super::session::{Aim, CONFIG, Job, Outcome};
use super::watch::Watch;
use crate::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A training to be run: settings from a YAML file, ours or LAVIS's, and single ones; the later wins. `qformer train --keys`
/// lists the settings.
///
/// ```no_run
/// use qformer::train::{StepLine, Training};
///
/// let outcome = Training::new()
///     .set("images", "photos")
///     .set("captions", "captions.json")
///     .set("out", "run")
///     .set("epochs", 3)
///     .run(&mut |step: &StepLine| println!("{} {:.3}", step.step, step.loss))?;
/// println!("the model is in {}", outcome.model.display());
/// # Ok::<(), qformer::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Training {
    file: Option<PathBuf>,
    entries: Vec<yaml::Entry>,
    resumed: bool,
    stop_after: Option<u64>,
    /// What cannot be set, said when the settings are read.
    refused: Option<Error>,
}

impl Training {
    /// With the default settings.
    pub fn new() -> Training {
        Training::default()
    }

    /// With the settings of a YAML file.
    pub fn from_yaml(file: impl Into<PathBuf>) -> Training {
        Training { file: Some(file.into()), ..Training::default() }
    }

    /// The run in a folder, to be resumed from its newest whole checkpoint with the settings it was begun with. Ends with the
    /// bytes of a run that was never stopped.
    pub fn resume(out: impl AsRef<Path>) -> Training {
        let out = out.as_ref();
        let resumed = Training { file: Some(out.join(CONFIG)), resumed: true, ..Training::default() };
        resumed.path("out", out)
    }

    /// Sets one setting, such as `init_lr` or `model.hidden`.
    pub fn set(mut self, name: &str, value: impl Into<Value>) -> Training {
        let (path, value, place) = (name.into(), value.into(), "Training::set".into());
        self.entries.push(yaml::Entry { path, value, place });
        self
    }

    /// Sets a setting that is a path.
    pub fn path(self, name: &str, path: impl AsRef<Path>) -> Training {
        match path.as_ref().to_str() {
            Some(text) => self.set(name, text),
            None => {
                let got = path.as_ref().display();
                Training { refused: Some(Error::argument("train", name, "a path in UTF-8", got)), ..self }
            }
        }
    }

    /// Stops after this step for now, however long the run is; it can be resumed.
    pub fn stop_after(self, step: u64) -> Training {
        Training { stop_after: Some(step), ..self }
    }

    /// The settings, read and checked.
    pub fn config(&self) -> Result<Config> {
        if let Some(refused) = &self.refused {
            return Err(refused.clone());
        }
        let mut config = Config::read(self.file.as_deref(), &self.entries)?;
        self.stop_after.into_iter().for_each(|step| config.set_steps(step));
        Ok(config)
    }

    /// Trains to the end, or until `watch` asks to stop. Everything that can be refused is refused before a file is written.
    pub fn run(self, watch: &mut dyn Watch) -> Result<Outcome> {
        let config = self.config()?;
        let out = config
            .out
            .clone()
            .ok_or_else(|| Error::argument("train", "out", "a folder for the run", "none").fix("set out"))?;
        let aim = if self.resumed { Aim::Resume } else { Aim::Begin };
        Job::prepare(config, aim, watch)?.train(&out, watch)
    }
}
