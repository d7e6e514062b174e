//! What a run writes down about itself: `log.jsonl`, one JSON object a line, and TensorBoard events.
//!
//! A line holds what follows from the settings and the data, and under `time` what follows from the clock: two runs of
//! the same settings have equal lines but for `time`. When a run goes on from step s, lines of later steps are cut off
//! first, so a resumed run's file equals the uninterrupted one's.
//!
//! A disk that is full is no reason to stop training: the line is dropped whole, and the first time this is said.

use super::tensorboard::Events;
use super::trainer::StepReport;
use crate::{Error, Result, files};
use serde::Serialize;
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The file of a run's lines.
pub const LOG: &str = "log.jsonl";

/// One optimizer step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepLine {
    /// Tells lines of steps from those of evaluations.
    pub kind: &'static str,
    /// Steps done, this one included.
    pub step: u64,
    /// From 0 on.
    pub epoch: u64,
    /// Of this step.
    pub learning_rate: f64,
    /// The sum of the three.
    pub loss: f64,
    /// The contrastive loss.
    pub itc: f64,
    /// The matching loss.
    pub itm: f64,
    /// The captioning loss.
    pub lm: f64,
    /// Share of captions whose picture is the most similar.
    pub accuracy_text_to_image: f64,
    /// Share of pictures whose caption is the most similar.
    pub accuracy_image_to_text: f64,
    /// Share of pairs that are told right.
    pub accuracy_matching: f64,
    /// Share of tokens that are foretold.
    pub accuracy_next_token: f64,
    /// Of the contrastive loss.
    pub temperature: f64,
    /// Of all gradients together.
    pub gradient_norm: f64,
    /// False where gradients overflowed and the loss scale was halved instead.
    pub applied: bool,
    /// What follows from the clock.
    pub time: Time,
}

/// What follows from the clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Time {
    /// Seconds since 1970.
    pub at: f64,
    /// Captions a second.
    pub samples_per_second: f64,
    /// Share of this step's time spent waiting for data.
    pub waiting: f64,
}

/// An evaluation on the validation data.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvaluationLine {
    /// Tells lines of steps from those of evaluations.
    pub kind: &'static str,
    /// Steps done, this one included.
    pub step: u64,
    /// The sum of the three.
    pub loss: f64,
    /// The contrastive loss.
    pub itc: f64,
    /// The matching loss.
    pub itm: f64,
    /// The captioning loss.
    pub lm: f64,
    /// Share of captions whose picture is found first.
    pub recall_text_to_image: f64,
    /// Share of pictures of which a caption is found first.
    pub recall_image_to_text: f64,
    /// How many were looked at.
    pub pictures: usize,
    /// What follows from the clock.
    pub time: Time,
}

impl StepLine {
    /// The line of a step.
    pub fn new(report: &StepReport, epoch: u64, time: Time) -> StepLine {
        let ([loss, itc, itm, lm], accuracy) = (report.losses.losses, report.losses.accuracy);
        StepLine {
            kind: "step",
            step: report.step,
            epoch,
            learning_rate: report.lr,
            loss,
            itc,
            itm,
            lm,
            accuracy_text_to_image: accuracy[0],
            accuracy_image_to_text: accuracy[1],
            accuracy_matching: accuracy[2],
            accuracy_next_token: accuracy[3],
            temperature: report.temperature,
            gradient_norm: report.gradient_norm,
            applied: report.applied,
            time,
        }
    }

    fn scalars(&self) -> [(&'static str, f64); 12] {
        [
            ("loss/total", self.loss),
            ("loss/itc", self.itc),
            ("loss/itm", self.itm),
            ("loss/lm", self.lm),
            ("accuracy/text_to_image", self.accuracy_text_to_image),
            ("accuracy/image_to_text", self.accuracy_image_to_text),
            ("accuracy/matching", self.accuracy_matching),
            ("accuracy/next_token", self.accuracy_next_token),
            ("train/learning_rate", self.learning_rate),
            ("train/temperature", self.temperature),
            ("train/gradient_norm", self.gradient_norm),
            ("train/samples_per_second", self.time.samples_per_second),
        ]
    }
}

impl EvaluationLine {
    fn scalars(&self) -> [(&'static str, f64); 6] {
        [
            ("validation/loss", self.loss),
            ("validation/itc", self.itc),
            ("validation/itm", self.itm),
            ("validation/lm", self.lm),
            ("validation/recall_text_to_image", self.recall_text_to_image),
            ("validation/recall_image_to_text", self.recall_image_to_text),
        ]
    }
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// The log of a run being written.
pub struct Log {
    path: PathBuf,
    file: File,
    /// Length of the file up to the last whole line.
    whole: u64,
    events: Option<Events>,
    warned: bool,
}

impl Log {
    /// Opens the log of a run that stands at `step`; lines of later steps and half lines are cut off.
    pub fn open(folder: &Path, step: u64) -> Result<Log> {
        let path = folder.join(LOG);
        let failed = |e: io::Error| files::write_error("open the log", &path, &e);
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(failed)?;
        let whole = length_until(&file, step).map_err(failed)?;
        file.set_len(whole).map_err(failed)?;
        let events = Events::create(folder, step + 1, now()).map_err(failed)?;
        Ok(Log { path, file, whole, events: Some(events), warned: false })
    }

    /// Writes a step; the returned warning is to be shown.
    pub fn step(&mut self, line: &StepLine) -> Option<Error> {
        self.write(line, line.step, line.time.at, &line.scalars())
    }

    /// Writes a line of an evaluation; an error that is to be said once.
    pub fn evaluation(&mut self, line: &EvaluationLine) -> Option<Error> {
        self.write(line, line.step, line.time.at, &line.scalars())
    }

    fn write(&mut self, line: &impl Serialize, step: u64, at: f64, scalars: &[(&str, f64)]) -> Option<Error> {
        let written = self.append(line);
        let events = self.events.as_mut().map_or(Ok(()), |e| e.scalars(step, at, scalars));
        let error = written.and(events).err()?;
        if std::mem::replace(&mut self.warned, true) {
            return None;
        }
        Some(
            files::write_error("write the log", &self.path, &error)
                .fix("training goes on without these lines; free some space to have the next ones"),
        )
    }

    /// A line that does not fit is taken back, so that the file holds whole lines only.
    fn append(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let written = self.file.write_all(&text);
        match written {
            Ok(()) => self.whole += text.len() as u64,
            Err(_) => self.file.set_len(self.whole)?,
        }
        written
    }

    /// Before a checkpoint is saved: no line up to it may be lost to a power cut.
    pub fn sync(&mut self) {
        // Best effort: a log that cannot be synced is no reason to lose the checkpoint.
        let _ = self.file.sync_data();
    }
}

/// Bytes of the whole lines of steps up to this one, which stand at the front.
fn length_until(file: &File, step: u64) -> io::Result<u64> {
    let (mut reader, mut line, mut length) = (BufReader::new(file), Vec::new(), 0);
    loop {
        line.clear();
        let n = reader.read_until(b'\n', &mut line)?;
        let known = line.ends_with(b"\n").then(|| serde_json::from_slice::<Value>(&line).ok()).flatten();
        let of = known.as_ref().and_then(|v| v.get("step")).and_then(Value::as_u64);
        match of {
            Some(of) if of <= step => length += n as u64,
            _ => return Ok(length),
        }
    }
}
