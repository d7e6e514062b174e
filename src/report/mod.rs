//! A run as one HTML page that needs nothing else: curves as SVG, settings, unusable pictures, sample captions.
//!
//! No script, nothing fetched. Names and captions are strangers' text: everything is escaped, and the page forbids itself
//! (by its content security policy) to load or run anything that is not in it.

mod chart;
mod page;
mod samples;

pub use page::page;
pub use samples::{Group, Sample, read as read_samples};

use crate::train::log::LOG;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;

const OPERATION: &str = "report";

/// Numbers of one kind of line (`step` or `evaluation`) by name, in the order of steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curves {
    pub of: BTreeMap<String, Vec<(f64, f64)>>,
}

impl Curves {
    pub fn get(&self, name: &str) -> &[(f64, f64)] {
        self.of.get(name).map_or(&[], Vec::as_slice)
    }

    pub fn last(&self, name: &str) -> Option<(f64, f64)> {
        self.get(name).last().copied()
    }

    fn add(&mut self, line: &Value) {
        let Some(step) = line.get("step").and_then(Value::as_f64) else { return };
        let time = line.get("time").and_then(Value::as_object).into_iter().flatten();
        let numbers = line.as_object().into_iter().flatten().chain(time);
        for (name, value) in numbers.filter_map(|(n, v)| Some((n, v.as_f64()?))) {
            self.of.entry(name.clone()).or_default().push((step, value));
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
}

impl Story {
    pub fn read(run: &Path) -> Result<Story> {
        let path = run.join(LOG);
        let failed = |e: std::io::Error| {
            Error::io(OPERATION, &path, &e).fix("give the folder of a run, the --out of qformer train")
        };
        let file = std::fs::File::open(&path).map_err(failed)?;
        let mut story = Story { name: run.display().to_string(), ..Story::default() };
        for line in BufReader::new(file).lines() {
            // A line that was cut off by a crash says nothing.
            let Ok(line) = serde_json::from_str::<Value>(&line.map_err(failed)?) else { continue };
            match line.get("kind").and_then(Value::as_str) {
                Some("step") => story.steps.add(&line),
                Some("evaluation") => story.evaluations.add(&line),
                _ => {}
            }
        }
        if story.steps.of.is_empty() {
            return Err(Error::file(OPERATION, &path, "a log with at least one step", "none"));
        }
        story.settings = std::fs::read_to_string(run.join("config.yaml")).unwrap_or_default();
        story.bad = crate::train::run::read_bad(&run.join(crate::train::run::BAD)).into_iter().collect();
        Ok(story)
    }
}
