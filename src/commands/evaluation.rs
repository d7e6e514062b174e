//! `qformer evaluate CONFIG`: LAVIS's files for evaluation. What they say becomes the command's own flags, in front of those
//! that were given, so that the latter win.

use crate::train::config::{lavis_device, yaml};
use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

const OPERATION: &str = "evaluation configuration";

/// A setting: the flag it becomes (none if it means nothing here), or what is possible instead.
type Flag = Result<Option<(&'static str, String)>, &'static str>;

/// What a file asks for.
#[derive(Debug, Default)]
pub struct Asked {
    pub flags: Vec<String>,
    /// What was passed over.
    pub notes: Vec<String>,
    /// The size that pictures are to be seen at.
    pub image_size: Option<usize>,
}

pub fn read(file: &Path) -> Result<Asked> {
    let text = crate::data::read_text(OPERATION, file, 1 << 20)?;
    let entries = yaml::entries(file, &text)?;
    let (mut asked, mut refused) = (Asked::default(), Vec::new());
    let (mut names, mut splits) = (Vec::new(), None);
    for yaml::Entry { path, value, .. } in &entries {
        if let Some((name, _)) = path.strip_prefix("datasets.").and_then(|rest| rest.split_once('.'))
            && !names.contains(&name)
        {
            names.push(name);
        }
        if let ("run.test_splits", Some([Value::String(split), ..])) =
            (path.as_str(), value.as_array().map(Vec::as_slice))
        {
            splits = Some(split.clone());
        }
    }
    let split = splits.as_deref().unwrap_or("test");
    for yaml::Entry { path, value, place } in &entries {
        let shown = || crate::data::quoted(&value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        match flag(path, value, split) {
            _ if value.is_null() => {}
            Ok(Some((IMAGE_SIZE, size))) => asked.image_size = size.parse().ok(),
            Ok(Some((name, value))) => asked.flags.push(format!("--{name}={value}")),
            Ok(None) if path.starts_with("run.output_dir") => {
                asked
                    .notes
                    .push("run.output_dir: results are printed; send them to a file with > FILE".to_owned());
            }
            Ok(None) => {}
            Err(want) => refused.push(format!("{path} ({place}): expected {want}, got {}", shown())),
        }
    }
    if names.len() > 1 {
        refused.push(format!("datasets: expected one to evaluate on, got {}", names.join(", ")));
    }
    match refused.as_slice() {
        [] => Ok(asked),
        [one] => Err(Error::new(crate::Kind::Argument, OPERATION).got(one)),
        several => {
            let lines: String = several.iter().map(|line| format!("\n  {line}")).collect();
            let got = format!("{} settings cannot be used:{lines}", several.len());
            Err(Error::new(crate::Kind::Argument, OPERATION).got(got))
        }
    }
}

fn flag(path: &str, value: &Value, split: &str) -> Flag {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let one_of = |names: &[&str]| names.contains(&text.as_str());
    let number = |name| if value.is_u64() { Ok(Some((name, text.clone()))) } else { Err("a whole number") };
    let as_path = |name| match (value, value.as_array().map(Vec::as_slice)) {
        (Value::String(path), _) | (_, Some([Value::String(path)])) => Ok(Some((name, path.clone()))),
        _ => Err("one path"),
    };
    let parts: Vec<&str> = path.split('.').collect();
    match parts.as_slice() {
        ["model", "arch"]
            if one_of(&["blip2", "blip2_qformer", "blip2_Japanese", "pretrain", "coco", "finetune"]) =>
        {
            Ok(None)
        }
        ["model", "arch"] => Err(
            "blip2, blip2_qformer or blip2_Japanese (others need a language model or are another network)",
        ),
        ["model", "model_type"] if one_of(&["pretrain", "finetune", "coco"]) => Ok(None),
        ["model", "model_type"] => Err("pretrain, finetune or coco"),
        // Which weights are evaluated says --model.
        ["model", _] | ["preprocess", ..] => Ok(None),
        ["run", "task"] if text == "retrieval" => Ok(Some(("only", "retrieval".into()))),
        ["run", "task"] if text == "captioning" => Ok(Some(("only", "captions".into()))),
        ["run", "task"] => Err("retrieval or captioning"),
        ["run", "k_test"] => number("k-test"),
        ["run", "batch_size_eval"] => number("batch"),
        ["run", "num_beams"] => number("num-beams"),
        ["run", "max_len"] => number("max-length"),
        ["run", "min_len"] => number("min-length"),
        ["run", "device"] => {
            lavis_device(value).map(|name| Some(("device", name))).map_err(|_| "cuda or cpu")
        }
        ["run", "evaluate"] if *value == Value::Bool(false) => Err("True (qformer train CONFIG trains)"),
        ["run", "world_size"] if value.as_u64().is_none_or(|n| n > 1) => Err("1"),
        ["run", known] if RUN.contains(known) => Ok(None),
        ["datasets", _, "build_info", "images", "storage"] => as_path("images"),
        ["datasets", _, "build_info", "annotations", part, "storage"] if *part == split => {
            as_path("captions")
        }
        ["datasets", _, "vis_processor", "eval", "image_size"] => number(IMAGE_SIZE),
        ["datasets", _, "text_processor", "eval", "prompt"] if !text.is_empty() => Err("no prompt: \"\""),
        ["datasets", ..] => Ok(None),
        _ => Err("a setting of LAVIS's evaluation"),
    }
}

/// No flag: the model has its own, which must be this.
const IMAGE_SIZE: &str = "image_size";

/// Of `run`: what decides nothing here.
const RUN: [&str; 18] = [
    "evaluate",
    "seed",
    "output_dir",
    "num_workers",
    "batch_size_train",
    "train_splits",
    "valid_splits",
    "test_splits",
    "world_size",
    "dist_url",
    "distributed",
    "use_dist_eval_sampler",
    "amp",
    "log_freq",
    "resume_ckpt_path",
    "gpu",
    "rank",
    "runner",
];
