//! One value of a configuration: its type and range, or what was expected instead.

use crate::model;
use crate::vision::RandAugment;
use serde_json::Value;
use std::path::PathBuf;

/// The value, or what was expected.
pub type Read<T> = Result<T, String>;

pub fn number(v: &Value, least: f64, most: f64) -> Read<f64> {
    let range = if most.is_finite() { format!("{least} to {most}") } else { format!("{least} or more") };
    v.as_f64().filter(|x| (least..=most).contains(x) && x.is_finite()).ok_or(format!("a number, {range}"))
}

/// A learning rate or another number that may not be negative.
pub fn rate(v: &Value) -> Read<f64> {
    number(v, 0.0, f64::INFINITY)
}

pub fn share(v: &Value) -> Read<f64> {
    number(v, 0.0, 1.0)
}

pub fn whole(v: &Value, least: u64) -> Read<u64> {
    v.as_u64().filter(|n| *n >= least && *n < 1 << 53).ok_or(format!("a whole number, {least} or more"))
}

/// A number of things that are held in memory or counted together: products of two stay far below 2^64.
pub fn count(v: &Value, least: u64) -> Read<usize> {
    const MOST: u64 = 1 << 20;
    let wrong = || format!("a whole number, {least} to {MOST}");
    v.as_u64().filter(|n| (least..=MOST).contains(n)).map(|n| n as usize).ok_or_else(wrong)
}

pub fn flag(v: &Value) -> Read<bool> {
    v.as_bool().ok_or("true or false".to_string())
}

pub fn text(v: &Value) -> Read<String> {
    match v {
        Value::String(s) if !s.is_empty() => Ok(s.clone()),
        Value::Number(n) => Ok(n.to_string()),
        _ => Err(quotes("a text", v)),
    }
}

/// A text that is kept as it is written; it may be empty.
pub fn written(v: &Value) -> Read<String> {
    v.as_str().map(str::to_owned).ok_or_else(|| quotes("a text", v))
}

/// What was wanted, in quotes where YAML makes a truth value or a number of a bare word such as no.
fn quotes(want: &str, v: &Value) -> String {
    let bare = v.is_boolean() || v.is_number();
    format!("{want}{}", if bare { " in quotes (with --set 'name=\"text\"')" } else { "" })
}

pub fn path(v: &Value) -> Read<PathBuf> {
    let text = text(v).map_err(|_| quotes("a path", v))?;
    if is_url(&text) {
        return Err("a path on this machine (download it first)".to_string());
    }
    Ok(PathBuf::from(text))
}

pub fn is_url(text: &str) -> bool {
    ["http://", "https://", "s3://", "gs://"].iter().any(|p| text.starts_with(p))
}

pub fn pair(v: &Value) -> Read<(f64, f64)> {
    let wrong = || "two numbers: [smallest, largest]".to_string();
    match v.as_array().map(Vec::as_slice) {
        Some([a, b]) => Ok((a.as_f64().ok_or_else(wrong)?, b.as_f64().ok_or_else(wrong)?)),
        _ => Err(wrong()),
    }
}

/// RandAugment's number of operations and their level.
pub fn rand_augment(v: &Value) -> Read<Option<RandAugment>> {
    let wrong = || "[operations, level of 0 to 10]; [0, 0] for none".to_string();
    let Some([count, level]) = v.as_array().map(Vec::as_slice) else { return Err(wrong()) };
    let count = count.as_u64().filter(|n| *n <= 10).ok_or_else(wrong)? as usize;
    let level = level.as_f64().filter(|l| (0.0..=10.0).contains(l)).ok_or_else(wrong)?;
    Ok((count > 0).then_some(RandAugment { count, level }))
}

/// One of several names. YAML makes true and false of a bare on and off.
pub fn choice<T: Copy>(v: &Value, names: &[(&str, T)]) -> Read<T> {
    let name = match v {
        Value::Bool(on) => Some(if *on { "on" } else { "off" }),
        _ => v.as_str(),
    };
    let found = name.and_then(|s| names.iter().find(|(n, _)| *n == s));
    let list = || names.iter().map(|(n, _)| *n).collect::<Vec<_>>().join(" or ");
    found.map(|(_, t)| *t).ok_or_else(list)
}

/// The size of this name; the vocabulary's follows from the captions.
pub fn size_mut<'a>(c: &'a mut model::Config, key: &str) -> Option<&'a mut usize> {
    Some(match key {
        "image_size" => &mut c.image_size,
        "patch_size" => &mut c.patch_size,
        "vit_width" => &mut c.vit_width,
        "vit_depth" => &mut c.vit_depth,
        "vit_heads" => &mut c.vit_heads,
        "vit_mlp" => &mut c.vit_mlp,
        "hidden" => &mut c.hidden,
        "layers" => &mut c.layers,
        "heads" => &mut c.heads,
        "ffn" => &mut c.ffn,
        "num_query" => &mut c.num_query,
        "cross_freq" => &mut c.cross_freq,
        "max_txt_len" => &mut c.max_txt_len,
        "embed_dim" => &mut c.embed_dim,
        "max_pos" => &mut c.max_pos,
        _ => return None,
    })
}
