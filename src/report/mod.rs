//! A run as one HTML page that needs nothing else: curves as SVG, settings, unusable pictures, sample captions.
//!
//! No script, nothing fetched. Names and captions are strangers' text: everything is escaped, and the page forbids itself
//! (by its content security policy) to load or run anything that is not in it.

mod chart;
mod curves;
mod page;
mod samples;

pub use chart::Look;
pub use curves::curves;
pub use page::page;
pub use samples::{Group, Sample, read as read_samples};

use crate::train::log::LOG;
use crate::train::run_folder::VOCABULARY;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

const OPERATION: &str = "report";
/// Bytes of a log read at a time.
const PIECE: usize = 1 << 20;

/// A text of the page in the reader's language, by its English.
pub type Words = fn(&'static str) -> &'static str;

/// Numbers of one kind of line (`step` or `evaluation`) by name, in the order of steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curves {
    pub of: BTreeMap<String, Vec<(f64, f64)>>,
    /// Of a curve that was thinned: how many lines a point is the mean of, and its last one so far.
    thinned: BTreeMap<String, (f64, f64)>,
}

impl Curves {
    pub fn get(&self, name: &str) -> &[(f64, f64)] {
        self.of.get(name).map_or(&[], Vec::as_slice)
    }

    pub fn last(&self, name: &str) -> Option<(f64, f64)> {
        self.get(name).last().copied()
    }

    /// A line of the log. One of a step that was there already means that the run was resumed before it.
    fn add(&mut self, line: &Value) {
        let Some(step) = line.get("step").and_then(Value::as_f64) else { return };
        if self.last("step").is_some_and(|(last, _)| last >= step) {
            self.of.values_mut().for_each(|points| points.retain(|p| p.0 < step));
            self.thinned.values_mut().for_each(|(each, last)| *last = *each);
        }
        let time = line.get("time").and_then(Value::as_object).into_iter().flatten();
        let numbers = line.as_object().into_iter().flatten().chain(time);
        for (name, value) in numbers.filter_map(|(n, v)| Some((n, v.as_f64()?))) {
            let points = self.of.entry(name.clone()).or_default();
            match (points.last_mut(), self.thinned.get_mut(name)) {
                (Some(point), Some((each, last))) if *last < *each => {
                    *last += 1.0;
                    *point = (point.0 + (step - point.0) / *last, point.1 + (value - point.1) / *last);
                }
                (_, thinned) => {
                    points.push((step, value));
                    thinned.into_iter().for_each(|(_, last)| *last = 1.0);
                }
            }
        }
    }

    /// Halves curves of more than `most` points: each two become their mean. All but the last point are means of as many lines.
    fn thin(&mut self, most: usize) {
        for (name, points) in self.of.iter_mut().filter(|(_, p)| p.len() > most.max(2)) {
            let (each, last) = self.thinned.entry(name.clone()).or_insert((1.0, 1.0));
            let whole = points.len().is_multiple_of(2);
            let (count, share) = (points.len(), *last / (*each + *last));
            let mean = |(i, p): (usize, &[(f64, f64)])| match p {
                [a, b] => {
                    let share = if 2 * i + 2 == count { share } else { 0.5 };
                    (a.0 + (b.0 - a.0) * share, a.1 + (b.1 - a.1) * share)
                }
                _ => p.first().copied().unwrap_or_default(),
            };
            *points = points.chunks(2).enumerate().map(mean).collect();
            if whole {
                *last += *each;
            }
            *each *= 2.0;
        }
    }
}

/// What a run's folder says about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Story {
    pub name: String,
    pub steps: Curves,
    pub evaluations: Curves,
    pub settings: String,
    /// Unusable pictures and why.
    pub bad: Vec<(String, String)>,
    /// Captions of a micro-batch, and words of the vocabulary, where the run's folder says them.
    pub batch: Option<f64>,
    pub vocabulary: Option<f64>,
}

impl Story {
    pub fn read(run: &Path) -> Result<Story> {
        let mut log = Log::open(run, usize::MAX)?;
        log.read()?;
        if log.story.steps.of.is_empty() {
            return Err(Error::file(OPERATION, run.join(LOG), "a log with at least one step", "none"));
        }
        Ok(log.story)
    }

    fn about(run: &Path) -> Story {
        let settings = std::fs::read_to_string(run.join("config.yaml")).unwrap_or_default();
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|n| *n >= 2.0);
        let batch = settings.lines().find_map(|line| number(line.strip_prefix("batch:")?));
        let vocabulary = vocabulary(run, &settings).filter(|n| *n >= 2.0);
        let bad = crate::train::run::read_bad(&run.join(crate::train::run::BAD)).into_iter().collect();
        let name = run.display().to_string();
        Story { name, settings, bad, batch, vocabulary, ..Story::default() }
    }
}

/// How many words captions are made of: those of the language model of a second stage, or of the run's own vocabulary, and [DEC].
fn vocabulary(run: &Path, settings: &str) -> Option<f64> {
    let llm = settings.lines().find_map(|line| line.strip_prefix("llm:")).map(str::trim);
    if let Some(llm) = llm.filter(|l| !["", "null", "~"].contains(l)) {
        // A path as it is, or between quotation marks as JSON has it.
        let path = serde_json::from_str(llm).unwrap_or_else(|_| llm.to_owned());
        let config = std::fs::read(Path::new(&path).join("config.json")).ok()?;
        let config: Value = serde_json::from_slice(&config).ok()?;
        return config.get("vocab_size")?.as_f64();
    }
    let words = std::fs::read_to_string(run.join(VOCABULARY).join("vocab.txt"));
    if let Ok(words) = words {
        return Some(words.lines().count() as f64 + 1.0);
    }
    let config: Value = serde_json::from_slice(&std::fs::read(run.join("model/config.json")).ok()?).ok()?;
    config.get("vocab")?.as_f64()
}

/// The log of a run, read as far as it goes, and on when more was written.
pub struct Log {
    run: PathBuf,
    file: File,
    /// Bytes read: all of them are whole lines.
    read: u64,
    /// Points kept of a curve, about.
    most: usize,
    pub story: Story,
}

impl Log {
    pub fn open(run: &Path, most: usize) -> Result<Log> {
        let path = run.join(LOG);
        let failed = |e: std::io::Error| {
            Error::io(OPERATION, &path, &e).fix("give the folder of a run, the --out of qformer train")
        };
        let file = File::open(&path).map_err(failed)?;
        Ok(Log { run: run.to_owned(), file, read: 0, most, story: Story::about(run) })
    }

    /// Reads what is new; false if nothing is.
    pub fn read(&mut self) -> Result<bool> {
        let path = self.run.join(LOG);
        let failed = |e: std::io::Error| Error::io(OPERATION, &path, &e);
        let before = self.read;
        let mut rest = Vec::new();
        loop {
            let length = self.file.metadata().map_err(failed)?.len();
            if length < self.read {
                // Cut off, as the run was resumed: from the beginning.
                (self.read, self.story) = (0, Story::about(&self.run));
                rest.clear();
            }
            let start = self.read + rest.len() as u64;
            self.file.seek(SeekFrom::Start(start)).map_err(failed)?;
            let n = (&self.file).take(PIECE as u64).read_to_end(&mut rest).map_err(failed)?;
            let whole = rest.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            rest[..whole].split(|b| *b == b'\n').for_each(|line| self.line(line));
            rest.drain(..whole);
            self.read += whole as u64;
            if n == 0 {
                return Ok(self.read != before);
            }
        }
    }

    /// A line that was cut off by a crash says nothing.
    fn line(&mut self, line: &[u8]) {
        let Ok(line) = serde_json::from_slice::<Value>(line) else { return };
        let curves = match line.get("kind").and_then(Value::as_str) {
            Some("step") => &mut self.story.steps,
            Some("evaluation") => &mut self.story.evaluations,
            _ => return,
        };
        curves.add(&line);
        curves.thin(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn step(n: u32, loss: f64) -> String {
        format!("{{\"kind\":\"step\",\"step\":{n},\"loss\":{loss},\"time\":{{\"waiting\":0.5}}}}\n")
    }

    #[test]
    fn a_log_is_read_while_it_grows_and_again_after_it_was_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOG);
        std::fs::write(&path, step(1, 4.0) + "{\"kind\":\"st").unwrap();
        std::fs::write(dir.path().join("config.yaml"), "seed: 1\nbatch: 8\n").unwrap();
        let mut log = Log::open(dir.path(), 100).unwrap();
        assert!(log.read().unwrap() && !log.read().unwrap());
        assert_eq!(log.story.steps.get("loss"), [(1.0, 4.0)]);
        assert_eq!((log.story.batch, log.story.vocabulary), (Some(8.0), None));
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(format!("ep\",\"step\":2,\"loss\":3}}\n{}", step(3, 2.0)).as_bytes()).unwrap();
        assert!(log.read().unwrap());
        assert_eq!(log.story.steps.get("loss"), [(1.0, 4.0), (2.0, 3.0), (3.0, 2.0)]);
        // Resumed from step 1.
        std::fs::write(&path, step(1, 4.0) + &step(2, 9.0)).unwrap();
        log.read().unwrap();
        assert_eq!(log.story.steps.get("loss"), [(1.0, 4.0), (2.0, 9.0)]);
        // Written over between two looks, and longer than before.
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all((step(2, 7.0) + &step(3, 6.0)).as_bytes()).unwrap();
        log.read().unwrap();
        assert_eq!(log.story.steps.get("loss"), [(1.0, 4.0), (2.0, 7.0), (3.0, 6.0)]);
    }

    #[test]
    fn long_curves_are_halved_and_not_lost() {
        let mut curves = Curves::default();
        for n in 1..=1000 {
            curves.add(&serde_json::json!({"step": n, "loss": 3.0}));
            curves.thin(100);
        }
        let loss = curves.get("loss");
        assert!((50..=100).contains(&loss.len()) && loss.iter().all(|p| p.1 == 3.0), "{}", loss.len());
        assert!(loss[0].0 < 20.0 && loss[loss.len() - 1].0 > 980.0, "{loss:?}");
        // Evenly, and of a line each as many times as any other.
        let apart: Vec<f64> = loss.windows(2).map(|p| p[1].0 - p[0].0).collect();
        assert!(apart[..apart.len() - 1].iter().all(|d| (d - apart[0]).abs() < 1e-6), "{apart:?}");
    }
}
