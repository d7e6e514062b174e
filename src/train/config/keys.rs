//! The names of all settings: ours, LAVIS's for the same thing; how they are found, and shown.

use super::lavis::LAVIS;
use super::settings::{SETTINGS, single};
use super::sources::{self, DataSource};
use super::values::{Read, count};
use super::yaml::Entry;
use super::{Config, OPERATION};
use crate::{Error, Result};
use serde_json::{Value, json};

/// Sizes of a model from nothing, in `model:`; LAVIS's names of some.
const SIZES: [(&str, &str); 15] = [
    ("image_size", "model.image_size"),
    ("patch_size", ""),
    ("vit_width", ""),
    ("vit_depth", ""),
    ("vit_heads", ""),
    ("vit_mlp", ""),
    ("hidden", ""),
    ("layers", ""),
    ("heads", ""),
    ("ffn", ""),
    ("num_query", "model.num_query_token"),
    ("cross_freq", "model.cross_attention_freq"),
    ("max_txt_len", "model.max_txt_len"),
    ("embed_dim", "model.embed_dim"),
    ("max_pos", ""),
];

/// Applies one setting.
pub fn apply(c: &mut Config, entry: &Entry) -> Result<()> {
    let Entry { path, value, place } = entry;
    let done = find(c, path, value, place).ok_or_else(|| unknown(path, place))?;
    done.map_err(|want| {
        let got = crate::data::quoted(&value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        Error::argument(OPERATION, format!("{path} ({place})"), want, got)
    })
}

/// `None` if the name is not known.
fn find(c: &mut Config, path: &str, v: &Value, place: &str) -> Option<Read<()>> {
    if let Some(rest) = path.strip_prefix("datasets.") {
        let (name, inner) = rest.split_once('.').unwrap_or((rest, ""));
        return sources::set(c, name, inner, v, place);
    }
    if let Some(inner) = path.strip_prefix("validation.").filter(|_| !v.is_null()) {
        return sources::set_validation(c, inner, v, place);
    }
    if path.starts_with("preprocess.") || path.starts_with("model.preprocess.") {
        return Some(Ok(()));
    }
    let set = set_of(path)?;
    // null means "not given": the default stays
    Some(if v.is_null() { Ok(()) } else { set(c, v) })
}

type Set<'a> = Box<dyn Fn(&mut Config, &Value) -> Read<()> + 'a>;

fn set_of(path: &str) -> Option<Set<'_>> {
    if ["datasets", "validation", "run", "model"].contains(&path) {
        return Some(Box::new(|_, _| Err("settings below it".to_string())));
    }
    if let Some(key) = SETTINGS.iter().find(|k| k.name == path || (!k.lavis.is_empty() && k.lavis == path)) {
        return Some(Box::new(key.set));
    }
    if let Some((_, set)) = LAVIS.iter().find(|(name, _)| *name == path) {
        return Some(Box::new(set));
    }
    let bare = path.strip_prefix("model.").unwrap_or(path);
    let (name, _) =
        SIZES.iter().find(|(name, lavis)| *name == bare || (!lavis.is_empty() && *lavis == path))?;
    Some(Box::new(move |c, v| {
        c.sizes.insert((*name).to_string(), count(v, 1)?);
        Ok(())
    }))
}

fn unknown(path: &str, place: &str) -> Error {
    let error = Error::argument(OPERATION, format!("{path} ({place})"), "a known setting", "an unknown one");
    match nearest(path) {
        Some(name) => error.fix(format!("did you mean {name}? (qformer train --keys lists all settings)")),
        None => error.fix("qformer train --keys lists all settings"),
    }
}

/// The known name most like this one, by the whole path or its last word; ours first, then LAVIS's.
fn nearest(path: &str) -> Option<String> {
    const LONGEST: usize = 200;
    if path.len() > LONGEST {
        return None; // longer than any name, and comparing takes time
    }
    let last = |p: &str| p.rsplit('.').next().unwrap_or(p).to_string();
    let dataset = path.strip_prefix("datasets.").and_then(|rest| rest.split_once('.'));
    let names: Vec<String> = if let Some((name, _)) = dataset {
        sources::NAMES.iter().map(|n| format!("datasets.{name}.{n}")).collect()
    } else {
        let ours = SETTINGS.iter().map(|k| k.name).chain(SIZES.iter().map(|s| s.0));
        let theirs = SETTINGS
            .iter()
            .map(|k| k.lavis)
            .chain(LAVIS.iter().map(|l| l.0))
            .chain(SIZES.iter().map(|s| s.1));
        let sections = ["datasets.NAME.images", "validation.images", "validation.captions"];
        ours.chain(theirs).chain(sections).filter(|n| !n.is_empty()).map(str::to_string).collect()
    };
    let score = |name: &String| {
        let whole = strsim::normalized_damerau_levenshtein(path, name);
        let words = strsim::normalized_damerau_levenshtein(&last(path), &last(name));
        let start = strsim::jaro_winkler(&last(path), &last(name)) * 0.95;
        whole.max(
            (words * 0.99).max(start) * if path.contains('.') == name.contains('.') { 1.0 } else { 0.98 },
        )
    };
    let best = names.iter().max_by(|a, b| score(a).total_cmp(&score(b)))?;
    (score(best) > 0.7).then(|| best.clone())
}

/// All settings with what they mean, their defaults and LAVIS's names.
pub fn describe() -> String {
    let defaults = Config::default();
    let mut lines = Vec::new();
    for k in SETTINGS {
        let default = (k.get)(&defaults);
        let default = if default.is_null() { String::new() } else { format!(" [{default}]") };
        let lavis = if k.lavis.is_empty() { String::new() } else { format!(" (LAVIS: {})", k.lavis) };
        lines.push(format!("{:<14} {}{default}{lavis}", k.name, k.about));
    }
    lines.push("model:         of a model from nothing, in place of the size's own:".into());
    for row in SIZES.chunks(8) {
        lines.push(format!("                 {}", row.iter().map(|s| s.0).collect::<Vec<_>>().join(" ")));
    }
    lines.push("datasets:      NAME: {images: DIR, captions: FILE, ratio: NUMBER}, several of them".into());
    lines.push("validation:    {images: DIR, captions: FILE}".into());
    lines.join("\n")
}

/// The resolved settings as YAML that gives the same settings again.
pub fn resolved(c: &Config) -> String {
    let line = |indent: &str, name: &str, v: Value| format!("{indent}{name}: {v}\n");
    let mut text = String::new();
    for k in SETTINGS.iter().filter(|k| !(k.get)(c).is_null()) {
        text += &line("", k.name, (k.get)(c));
    }
    if let Some(n) = c.warmup_iterations.filter(|_| c.warmup_steps.is_none()) {
        text += &line("", "warmup_steps", json!(n.div_ceil(c.accumulate as u64)));
    }
    if !c.sizes.is_empty() {
        text += "model:\n";
        c.sizes.iter().for_each(|(name, n)| text += &line("  ", name, json!(n)));
    }
    let paths = |d: &DataSource, indent: &str| {
        line(indent, "images", json!(d.images)) + &line(indent, "captions", json!(d.captions))
    };
    if single(c).is_none() && !c.data.is_empty() {
        text += "datasets:\n";
        for d in &c.data {
            text += &format!("  {}:\n{}", json!(d.name), paths(d, "    "));
            text += &d.ratio.map_or(String::new(), |r| line("    ", "ratio", json!(r)));
        }
    }
    if let Some(v) = &c.validation {
        text += &format!("validation:\n{}", paths(v, "  "));
    }
    text
}
