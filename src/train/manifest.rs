//! What a checkpoint says about its run, and whether a run may be resumed from it.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Where a run stands. Numbers that must return bit for bit and may be infinite or NaN belong into a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// From 0 on.
    pub epoch: u64,
    /// Of the run.
    pub seed: u64,
    /// Every setting that changes the numbers; a run is only resumed under the same ones.
    pub config: Value,
    /// blake3 of the frozen image encoder's file, which is not saved again.
    pub vit_blake3: String,
    /// What "best" is judged by, if this step was evaluated.
    pub metric: Option<Metric>,
    /// The trainer's own: loss scale, position in the data, tail of the losses.
    pub state: Value,
}

/// What a checkpoint is judged by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// What it measures.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Which way is better.
    pub higher_is_better: bool,
}

/// What a checkpoint says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Of the file.
    pub format: u64,
    /// Where its run stands.
    pub progress: Progress,
    /// blake3 of every tensor's bytes, in hexadecimal.
    pub tensors: BTreeMap<String, String>,
}

impl Progress {
    /// Refuses to resume `self` under another configuration, seed or image encoder, and names each difference.
    pub fn check_same_run(&self, now: &Progress) -> Result<()> {
        let (saved, now) = (self.settings(), now.settings());
        let keys: BTreeSet<&String> = saved.keys().chain(now.keys()).collect();
        let of = |m: &BTreeMap<String, String>, k: &String| m.get(k).cloned().unwrap_or("nothing".into());
        let differences: Vec<String> = keys
            .into_iter()
            .filter(|k| saved.get(*k) != now.get(*k))
            .map(|k| format!("{k}: saved with {}, now {}", of(&saved, k), of(&now, k)))
            .collect();
        if differences.is_empty() {
            return Ok(());
        }
        let shown = differences.iter().take(12).cloned().collect::<Vec<_>>().join("; ");
        let more = differences.len().saturating_sub(12);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        Err(Error::argument("resume", "configuration", "the one of the checkpoint", format!("{shown}{more}"))
            .fix("restore these settings, or start a new run in another folder"))
    }

    /// All settings, one line each, under dotted names.
    fn settings(&self) -> BTreeMap<String, String> {
        let mut lines = BTreeMap::new();
        flatten("", &self.config, &mut lines);
        lines.insert("(seed)".into(), self.seed.to_string());
        lines.insert("(image encoder)".into(), self.vit_blake3.clone());
        lines
    }
}

fn flatten(name: &str, value: &Value, lines: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, v) in map {
                let dot = if name.is_empty() { "" } else { "." };
                flatten(&format!("{name}{dot}{key}"), v, lines);
            }
        }
        leaf => {
            lines.insert(name.to_string(), leaf.to_string());
        }
    }
}
