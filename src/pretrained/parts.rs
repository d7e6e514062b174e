//! The parts of a model's folder and how they know each other: `model.safetensors` carries in its metadata what the others
//! must be, and is compared with them whenever a model is opened.
//!
//! | key | of what |
//! |---|---|
//! | `qformer.tensors` | the tensors of `model.safetensors` itself ([`crate::weights::identity`]) |
//! | `qformer.config` | blake3 of what `config.json` says, however it is laid out |
//! | `qformer.vocabulary` | tokens and settings of the tokenizer ([`Tokenizer::fingerprint`]) |
//! | `qformer.dictionary` | blake3 of the dictionary's file, if it has one of its own |
//! | `vit_blake3` | the tensors of the image encoder; `vit.safetensors` carries the same key |
//! | `qformer.vit`, `qformer.vit_relative` | where the image encoder is, if it is not beside: absolute, and from the folder |
//!
//! Opening compares what is written there, and hashes nothing large; [`verify`] reads everything. A folder of an earlier
//! version has fewer keys: what is there is compared.

use super::{CONFIG_FILE, MODEL_FILE, OP};
use crate::model::Config;
use crate::text::{self, Tokenizer};
use crate::weights::identity::{Identity, Narrow, narrow_bytes};
use crate::weights::names::VIT_HASH;
use crate::weights::{Info, Report, Set, VIT_FILE, Weights};
use crate::{Error, Kind, Result};
use rayon::prelude::*;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// The files of a model's folder, in the order in which they are replaced where that is done one by one.
pub const PARTS: [&str; 5] = [CONFIG_FILE, "vocab.txt", "tokenizer_config.json", VIT_FILE, MODEL_FILE];
/// Of the tensors of the file itself.
pub const TENSORS: &str = "qformer.tensors";
const CONFIG: &str = "qformer.config";
const VOCABULARY: &str = "qformer.vocabulary";
const DICTIONARY: &str = "qformer.dictionary";
const VIT_PATH: &str = "qformer.vit";
const VIT_RELATIVE: &str = "qformer.vit_relative";
const TWO_MODELS: &str = "they are parts of two models: put back the one that belongs, or write the folder anew \
                          (qformer convert, or qformer train --export)";

/// What the parts beside `model.safetensors` are, for its metadata.
#[derive(Default)]
pub struct Beside {
    /// The tokenizer's fingerprint.
    pub vocabulary: Option<String>,
    /// The hash of its own dictionary.
    pub dictionary: Option<String>,
    /// Identity of the image encoder.
    pub vit: Option<String>,
    /// Where it is, if not beside, and the folder that names it.
    pub vit_path: Option<(PathBuf, PathBuf)>,
}

impl Beside {
    /// What `model.safetensors` says of them; `config`: the keys of `config.json`.
    pub fn metadata(self, config: &impl serde::Serialize) -> Result<BTreeMap<String, String>> {
        let json = serde_json::to_string(config)
            .map_err(|e| Error::new(Kind::Write, OP).about(CONFIG_FILE).got(e))?;
        let mut all = BTreeMap::from([("format".to_string(), "qformer".to_string())]);
        let mut add = |key: &str, value: Option<String>| {
            value.into_iter().for_each(|v| drop(all.insert(key.into(), v)));
        };
        add(CONFIG, config_hash(&json));
        add(VOCABULARY, self.vocabulary);
        add(DICTIONARY, self.dictionary);
        add(VIT_HASH, self.vit);
        if let Some((vit, folder)) = &self.vit_path {
            add(VIT_PATH, Some(vit.display().to_string()));
            add(VIT_RELATIVE, relative(folder, vit).map(|p| p.display().to_string()));
        }
        Ok(all)
    }
}

/// blake3 of the keys and values of a `config.json`; None if it is no object.
fn config_hash(text: &str) -> Option<String> {
    let Ok(Value::Object(object)) = serde_json::from_str(text) else { return None };
    let mut lines: Vec<String> = object.iter().map(|(k, v)| format!("{k}: {v}\n")).collect();
    lines.sort();
    Some(blake3::hash(lines.concat().as_bytes()).to_hex().to_string())
}

/// `to` as seen from a folder; None if they share nothing.
fn relative(folder: &Path, to: &Path) -> Option<PathBuf> {
    let (from, to): (Vec<_>, Vec<_>) = (folder.components().collect(), to.components().collect());
    let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = from.len().checked_sub(shared)?;
    let parts = std::iter::repeat_n(Component::ParentDir, up).chain(to.into_iter().skip(shared));
    (shared > 1).then(|| parts.collect())
}

/// Where the image encoder is: beside the model, or where the metadata says; None if `model.safetensors` holds it. An error
/// if it is nowhere.
pub fn find_vit(folder: &Path, weights: &Weights) -> Result<Option<PathBuf>> {
    let named = [VIT_PATH, VIT_RELATIVE].map(|key| weights.metadata().get(key).map(|p| folder.join(p)));
    let places = std::iter::once(folder.join(VIT_FILE)).chain(named.iter().flatten().cloned());
    let found = places.into_iter().find(|p| p.exists());
    if found.is_some() || weights.tensors().iter().any(|t| t.name.starts_with("visual_encoder.")) {
        return Ok(found);
    }
    let [absolute, _] = named;
    let else_where = absolute.map(|p| format!(" or {}", p.display())).unwrap_or_default();
    Err(Error::file(OP, folder, format!("its image encoder, {VIT_FILE} in the folder{else_where}"), "none")
        .fix(format!("copy the {VIT_FILE} that the model was trained with into {}", folder.display())))
}

/// Refuses `config.json` and tokenizer of another model than the one of `model.safetensors`.
pub fn check_beside(folder: &Path, config: &str, tokenizer: &Tokenizer, model: &Weights) -> Result<()> {
    let dictionary = || tokenizer.dictionary_name().unwrap_or("dictionary").to_string();
    for (key, part, found) in [
        (CONFIG, CONFIG_FILE.to_string(), config_hash(config)),
        (VOCABULARY, "vocab.txt or tokenizer_config.json".to_string(), Some(tokenizer.fingerprint())),
        (DICTIONARY, dictionary(), tokenizer.dictionary_hash()),
    ] {
        if model.metadata().get(key).is_some_and(|said| Some(said) != found.as_ref()) {
            let want = format!("the {part} that {MODEL_FILE} was written with");
            return Err(Error::file(OP, folder, want, "another").fix(TWO_MODELS));
        }
    }
    Ok(())
}

/// Refuses a model whose parameters do not lie in its files as `config.json` says, or whose files hold more.
pub fn check_tensors(folder: &Path, report: &Report) -> Result<()> {
    let path = folder.join(MODEL_FILE);
    let more = |n: usize| if n > 1 { format!(" (and {} more)", n - 1) } else { String::new() };
    let wrong = |want: String, got: String| {
        Err(Error::file(OP, &path, want, got).fix(format!("{CONFIG_FILE} and {MODEL_FILE}: {TWO_MODELS}")))
    };
    if let Some((name, want, got)) = report.misshapen.first() {
        let more = more(report.misshapen.len());
        return wrong(format!("{name} of {want:?}, as {CONFIG_FILE} says"), format!("{got:?}{more}"));
    }
    let lists = [&report.missing, &report.lacking, &report.fresh, &report.copied];
    let missing: Vec<&String> = lists.into_iter().flatten().collect();
    if let Some(name) = missing.first() {
        return wrong(format!("a tensor {name}"), format!("none{}", more(missing.len())));
    }
    if let Some(name) = report.extra.first() {
        let got = format!("{name}{}", more(report.extra.len()));
        return wrong(format!("tensors of a model as in {CONFIG_FILE}"), got);
    }
    Ok(())
}

/// One identity of the whole model, from those of its parts; None for a folder of an earlier version.
pub fn whole(metadata: &BTreeMap<String, String>, vit: Option<&str>) -> Option<String> {
    let parts =
        [metadata.get(TENSORS)?.as_str(), metadata.get(VOCABULARY)?.as_str(), vit.unwrap_or_default()];
    Some(blake3::hash(parts.join("\n").as_bytes()).to_hex().to_string())
}

/// Reads all tensors of a file or folder and compares them with the identities that its files carry. What was compared:
/// none for files of others.
pub fn verify(path: &Path) -> Result<Vec<PathBuf>> {
    let mut compared = Vec::new();
    for file in Set::open(path)?.files() {
        let vit = file.path().file_name().is_some_and(|n| n == VIT_FILE);
        let Some(said) = file.metadata().get(if vit { VIT_HASH } else { TENSORS }) else { continue };
        let narrow = |t: &Info| {
            let bytes = file.bytes(&t.name)?;
            let wrong = || Error::file(OP, file.path(), format!("numbers in {}", t.name), t.dtype);
            narrow_bytes(t.dtype, &bytes).ok_or_else(wrong)
        };
        let all: Vec<Narrow> = file.tensors().par_iter().map(narrow).collect::<Result<_>>()?;
        let mut identity = Identity::default();
        file.tensors().iter().zip(all).for_each(|(t, narrow)| identity.add(&t.name, &t.shape, narrow));
        if identity.finish().as_ref() != Some(said) {
            let fix = "the file was damaged or changed: copy it again, or write the folder anew";
            return Err(Error::file(OP, file.path(), "the numbers that were written", "others").fix(fix));
        }
        compared.push(file.path().to_path_buf());
    }
    Ok(compared)
}

/// What convert and training know of a tokenizer's files in a folder: None without a vocabulary. Refuses one of another size.
pub fn vocabulary_in(folder: &Path, config: &Config) -> Result<Option<String>> {
    if !folder.join("vocab.txt").is_file() {
        return Ok(None);
    }
    let (fingerprint, tokens) = text::fingerprint_of(folder)?;
    check_vocabulary(folder, config, tokens)?;
    Ok(Some(fingerprint))
}

/// Refuses a vocabulary of another size than `config.json` says.
pub fn check_vocabulary(folder: &Path, config: &Config, tokens: usize) -> Result<()> {
    if tokens == config.vocab {
        return Ok(());
    }
    let want = format!("a vocabulary of {} tokens, as {CONFIG_FILE} says", config.vocab);
    let fix = "take the vocab.txt that the model was trained with";
    Err(Error::file(OP, folder.join("vocab.txt"), want, format!("{tokens} with [DEC]")).fix(fix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_found_from_a_folder_beside_it() {
        let seen = |a: &str, b: &str| relative(Path::new(a), Path::new(b)).map(|p| p.display().to_string());
        assert_eq!(seen("/a/run/model", "/a/start/vit").as_deref(), Some("../../start/vit"));
        assert_eq!(seen("/a/run", "/a/run/vit").as_deref(), Some("vit"));
        assert_eq!(seen("/a/run", "/b/vit"), None);
    }

    #[test]
    fn a_configuration_is_known_by_what_it_says() {
        let known = |text: &str| config_hash(text);
        assert_eq!(known("{\"a\": 1, \"b\": 2}"), known("{\n  \"b\": 2,\n  \"a\": 1\n}\n"));
        assert_ne!(known("{\"a\": 1, \"b\": 2}"), known("{\"a\": 1, \"b\": 3}"));
        assert_eq!(known("[]"), None);
    }
}
