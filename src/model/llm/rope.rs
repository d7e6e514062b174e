//! The angles by which rotary positions turn pairs of a head's columns, from the keys of a `config.json`.
//!
//!   f_j = base^(-2j/n), j < n/2;   row p turns pair j by p f_j
//!
//! | written by | where base, turned part and scaling stand |
//! |---|---|
//! | transformers 4 | `rope_theta`, `rope_scaling` |
//! | transformers 4, GPT-NeoX | `rotary_emb_base`, `rotary_pct` |
//! | transformers 5 | `rope_parameters`: `rope_theta`, `partial_rotary_factor`, `rope_type` and its numbers |

use super::config::Keys;
use crate::Result;
use serde_json::{Map, Value};

/// What a file says of rotary positions.
struct Rope<'a> {
    keys: &'a Keys<'a>,
    /// The object of all that is said, and its name; empty where the file has none.
    own: (&'static str, Keys<'a>),
}

impl<'a> Rope<'a> {
    fn read(keys: &'a Keys<'a>, none: &'a Map<String, Value>) -> Result<Rope<'a>> {
        // As transformers 5 reads them: where both are there, the older name counts.
        let mut own = ("rope_parameters", Keys(none));
        for name in ["rope_parameters", "rope_scaling"] {
            match keys.get(name) {
                None => {}
                Some(Value::Object(map)) if map.is_empty() => {}
                Some(Value::Object(map)) => own = (name, Keys(map)),
                Some(other) => return Keys::wrong(name, "an object", other),
            }
        }
        if let Some(inner) = own.1.0.values().find(|v| v.is_object()) {
            return Keys::wrong(own.0, "the same for all layers", inner);
        }
        Ok(Rope { keys, own })
    }

    /// A number by its new name among what is said, or by its old one beside it.
    fn number(&self, name: &str, old: &str, default: f64) -> Result<f64> {
        let default = self.keys.number(old, default)?;
        self.own.1.number(name, default)
    }

    /// The kind of scaling, none where there is none.
    fn kind(&self) -> Result<Option<&str>> {
        let (name, own) = &self.own;
        let kind = match own.text("rope_type")? {
            Some(kind) => Some(kind),
            None => own.text("type")?,
        };
        match kind {
            None if *name == "rope_scaling" => Keys::wrong(name, "llama3 or none", "one without rope_type"),
            Some("default") => Ok(None),
            other => Ok(other),
        }
    }
}

/// Of heads that turn as a whole.
pub(super) fn of_all(keys: &Keys, head_size: usize) -> Result<Vec<f64>> {
    let none = Map::new();
    let rope = Rope::read(keys, &none)?;
    let part = rope.number("partial_rotary_factor", "partial_rotary_factor", 1.0)?;
    if part != 1.0 {
        return Keys::wrong("partial_rotary_factor", "1", part);
    }
    if !head_size.is_multiple_of(2) {
        return Keys::wrong("head_dim", "an even number", head_size);
    }
    scaled(&rope, frequencies(rope.number("rope_theta", "rope_theta", 10000.0)?, head_size))
}

/// Of GPT-NeoX's heads, of which a part turns.
pub(super) fn of_a_part(keys: &Keys, head_size: usize) -> Result<Vec<f64>> {
    let none = Map::new();
    let rope = Rope::read(keys, &none)?;
    if let Some(kind) = rope.kind()? {
        return Keys::wrong(rope.own.0, "none with gpt_neox", kind);
    }
    let turned = (head_size as f64 * rope.number("partial_rotary_factor", "rotary_pct", 0.25)?) as usize;
    if turned > head_size || !turned.is_multiple_of(2) {
        let want = format!("a part of {head_size} columns that is an even number of them");
        return Keys::wrong("rotary_pct", &want, turned);
    }
    Ok(frequencies(rope.number("rope_theta", "rotary_emb_base", 10000.0)?, turned))
}

/// base^(-2j/n), j < n/2
fn frequencies(base: f64, n: usize) -> Vec<f64> {
    (0..n / 2).map(|j| base.powf(-2.0 * j as f64 / n as f64)).collect()
}

/// Llama 3's: long waves slower, short ones as they are, between them a mix.
fn scaled(rope: &Rope, frequencies: Vec<f64>) -> Result<Vec<f64>> {
    let (name, own) = &rope.own;
    match rope.kind()? {
        None => return Ok(frequencies),
        Some("llama3") => {}
        Some(other) => return Keys::wrong(name, "llama3 or none", other),
    }
    let need = |key: &str| match own.number(key, f64::NAN)? {
        x if x > 0.0 => Ok(x),
        _ => Keys::wrong(&format!("{name}.{key}"), "a number above 0", "none"),
    };
    let (factor, low, high) = (need("factor")?, need("low_freq_factor")?, need("high_freq_factor")?);
    let old = need("original_max_position_embeddings")?;
    if high <= low {
        let want = format!("above low_freq_factor {low}");
        return Keys::wrong(&format!("{name}.high_freq_factor"), &want, high);
    }
    let mixed = |f: f64| {
        let s = ((old * f / std::f64::consts::TAU - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 - s) * f / factor + s * f
    };
    Ok(frequencies.into_iter().map(mixed).collect())
}

#[cfg(test)]
mod tests {
    use super::super::LlmConfig;
    use super::*;

    fn object(text: &str) -> Map<String, Value> {
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => map,
            other => panic!("{text}: {other:?}"),
        }
    }

    /// Llama 3.1: a wave of old / 2 positions is between low 1 and high 4: s = (2 - 1) / 3.
    #[test]
    fn llama3_mixes_by_wavelength() {
        let map = object(
            r#"{"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,
            "original_max_position_embeddings":64}}"#,
        );
        let (tau, none, keys) = (std::f64::consts::TAU, Map::new(), Keys(&map));
        let rope = Rope::read(&keys, &none).unwrap();
        let f = scaled(&rope, vec![tau / 8.0, tau / 32.0, tau / 128.0]).unwrap();
        let middle = (2.0 / 3.0 / 8.0 + 1.0 / 3.0) * tau / 32.0;
        let want = [tau / 8.0, middle, tau / 128.0 / 8.0];
        assert!(f.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-15), "{f:?}");
    }

    /// A model saved by transformers 5 says the same in other keys.
    #[test]
    fn old_and_new_keys_say_the_same() {
        let read = |family: &str, keys: &str| {
            let base = r#""vocab_size":97,"hidden_size":64,"num_hidden_layers":2,"num_attention_heads":4,"intermediate_size":80"#;
            let text = format!(r#"{{"model_type":"{family}",{base}{keys}}}"#);
            LlmConfig::from_map(&object(&text)).unwrap()
        };
        let llama3 = r#""factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":64"#;
        for (family, old, new) in [
            (
                "llama",
                r#","rope_theta":5e5"#,
                r#","rope_parameters":{"rope_theta":5e5,"rope_type":"default"}"#,
            ),
            (
                "qwen2",
                r#","rope_theta":1e6"#,
                r#","rope_parameters":{"rope_theta":1e6},"layer_types":["full_attention"]"#,
            ),
            ("llama", "", r#","rope_scaling":{},"rope_parameters":{"rope_type":"default"}"#),
            (
                "llama",
                &format!(r#","rope_theta":5e5,"rope_scaling":{{"rope_type":"llama3",{llama3}}}"#),
                &format!(r#","rope_parameters":{{"rope_theta":5e5,"rope_type":"llama3",{llama3}}}"#),
            ),
            (
                "gpt_neox",
                r#","rotary_pct":1.0,"rotary_emb_base":5000"#,
                r#","rope_parameters":{"partial_rotary_factor":1.0,"rope_theta":5000,"rope_type":"default"}"#,
            ),
            ("gpt_neox", "", r#","rope_parameters":{"partial_rotary_factor":0.25,"rope_theta":10000.0}"#),
        ] {
            assert_eq!(read(family, old), read(family, new), "{family} {new}");
        }
        assert_ne!(read("llama", ""), read("llama", r#","rope_parameters":{"rope_theta":5e5}"#));
        assert_ne!(
            read("gpt_neox", ""),
            read("gpt_neox", r#","rope_parameters":{"partial_rotary_factor":1.0}"#)
        );
    }
}
