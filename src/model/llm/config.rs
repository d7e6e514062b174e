//! A language model's `config.json`: the keys of five families, and what they say of one decoder.
//!
//! | family | norm | positions | feed-forward | stream |
//! |---|---|---|---|---|
//! | `opt` | LayerNorm, in front or behind | learned | ReLU | one branch after the other |
//! | `gpt_neox` | LayerNorm | rotary on a part of each head | GELU, exact or in its tanh form | one after the other, or both of one input |
//! | `llama`, `mistral` | RMSNorm | rotary | SiLU gate | one after the other |
//! | `qwen2` | RMSNorm | rotary | SiLU gate | the same, with biases on q, k, v |
//! | `qwen3` | RMSNorm, of each head, too | rotary | SiLU gate | the same |
//!
//! What this crate does not compute is refused by its name.

use super::rope;
use crate::{Error, Result};
use serde_json::{Map, Value};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Opt,
    GptNeox,
    Llama,
    Qwen2,
    Qwen3,
}

/// Where a layer's norms stand, and what its branches read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// x += attention(norm x); x += feed_forward(norm x)
    Before,
    /// x = norm(x + attention x); x = norm(x + feed_forward x)
    After,
    /// x += attention(norm x) + feed_forward(norm x)
    Parallel,
}

/// What stands between the two matmuls of a feed-forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Relu,
    Gelu,
    GeluTanh,
    /// silu(gate) up
    Gate,
}

/// The sizes and kinds of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct LlmConfig {
    pub family: Family,
    pub vocab: usize,
    pub width: usize,
    /// Of token embeddings, where they are projected to `width` and back.
    pub embed_width: usize,
    pub layers: usize,
    pub heads: usize,
    pub key_heads: usize,
    pub head_size: usize,
    pub ffn: usize,
    /// Positions that the model was trained for.
    pub positions: usize,
    pub eps: f64,
    pub activation: Activation,
    pub residual: Residual,
    pub final_norm: bool,
    /// Of q, k, v; of the attention's end.
    pub biases: [bool; 2],
    /// RMSNorm of each head of q and k.
    pub head_norms: bool,
    /// Half the columns that turn in each head; none with learned positions.
    pub frequencies: Vec<f64>,
    /// The head's weight is the embeddings'.
    pub tied: bool,
    /// Of the branches, and of attention's probabilities.
    pub dropout: [f64; 2],
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub pad: Option<u32>,
}

const OP: &str = "language model";

/// Keys of a JSON object, each read by its type.
pub(super) struct Keys<'a>(pub &'a Map<String, Value>);

impl Keys<'_> {
    pub fn wrong<T>(key: &str, want: &str, got: impl std::fmt::Display) -> Result<T> {
        Err(Error::argument(OP, key, want, got))
    }

    /// None where the key is missing or null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    fn size_or(&self, key: &str, default: Option<usize>) -> Result<usize> {
        let most = 1 << 24;
        match (self.get(key), default) {
            (None, Some(default)) => Ok(default),
            (Some(v), _) => match v.as_u64().filter(|n| *n > 0 && *n <= most) {
                Some(n) => Ok(n as usize),
                None => Keys::wrong(key, &format!("a whole number from 1 to {most}"), v),
            },
            (None, None) => Keys::wrong(key, "a whole number", "none"),
        }
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.size_or(key, None)
    }

    pub fn number(&self, key: &str, default: f64) -> Result<f64> {
        let Some(v) = self.get(key) else { return Ok(default) };
        match v.as_f64().filter(|x| x.is_finite() && *x >= 0.0) {
            Some(x) => Ok(x),
            None => Keys::wrong(key, "a number, at least 0", v),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(v) => Keys::wrong(key, "true or false", v),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(v) => Keys::wrong(key, "a text", v),
        }
    }

    /// An id; of a list, the first.
    fn id(&self, key: &str, vocab: usize) -> Result<Option<u32>> {
        let Some(v) = self.get(key) else { return Ok(None) };
        let one = v.as_array().and_then(|list| list.first()).unwrap_or(v);
        match one.as_u64().filter(|id| *id < vocab as u64) {
            Some(id) => Ok(Some(id as u32)),
            // Some files name no id by -1.
            None if one.as_i64() == Some(-1) => Ok(None),
            None => Keys::wrong(key, &format!("an id below vocab_size {vocab}"), v),
        }
    }

    /// What the model does not have here, if the file has it.
    fn refuse(&self, key: &str, harmless: &[Value]) -> Result<()> {
        match self.get(key) {
            Some(v) if !harmless.contains(v) => Keys::wrong(key, "none: this crate does not compute it", v),
            _ => Ok(()),
        }
    }
}

impl LlmConfig {
    /// From the text of a `config.json`.
    pub fn from_json(text: &str) -> Result<LlmConfig> {
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => LlmConfig::from_map(&map),
            Ok(other) => Keys::wrong("", "an object", other),
            Err(e) => Keys::wrong("", "JSON", e),
        }
    }

    /// From the keys of a `config.json`.
    pub fn from_map(map: &Map<String, Value>) -> Result<LlmConfig> {
        let keys = Keys(map);
        keys.refuse("quantization_config", &[])?;
        let model = keys.text("model_type")?.unwrap_or("none");
        let config = match model {
            "opt" => opt(&keys),
            "gpt_neox" => gpt_neox(&keys),
            "llama" | "mistral" => llama(&keys, Family::Llama),
            "qwen2" => llama(&keys, Family::Qwen2),
            "qwen3" => llama(&keys, Family::Qwen3),
            other => Keys::wrong("model_type", "opt, gpt_neox, llama, mistral, qwen2 or qwen3", other),
        }?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        if !self.heads.is_multiple_of(self.key_heads) {
            let want = format!("a divisor of num_attention_heads {}", self.heads);
            return Keys::wrong("num_key_value_heads", &want, self.key_heads);
        }
        if self.head_size == 0 || self.head_size > 160 || self.head_size * self.heads > 1 << 16 {
            return Keys::wrong("head_dim", "1 to 160", self.head_size);
        }
        if self.layers > super::super::sites::MAX_LLM_LAYERS {
            let want = format!("at most {}", super::super::sites::MAX_LLM_LAYERS);
            return Keys::wrong("num_hidden_layers", &want, self.layers);
        }
        match self.dropout.iter().find(|p| !(0.0..1.0).contains(*p)) {
            Some(p) => Keys::wrong("dropout", "0 <= p < 1", p),
            None => Ok(()),
        }
    }

    /// What parameters' names begin with: LAVIS's for OPT, and for all others.
    pub fn prefix(&self) -> &'static str {
        if self.family == Family::Opt { "opt_model" } else { "llm_model" }
    }

    /// The name of the projection into the model.
    pub fn projection(&self) -> &'static str {
        if self.family == Family::Opt { "opt_proj" } else { "llm_proj" }
    }
}

fn opt(keys: &Keys) -> Result<LlmConfig> {
    let (vocab, width) = (keys.size("vocab_size")?, keys.size("hidden_size")?);
    let heads = keys.size("num_attention_heads")?;
    keys.refuse("activation_function", &["relu".into()])?;
    keys.refuse("enable_bias", &[true.into()])?;
    keys.refuse("layer_norm_elementwise_affine", &[true.into()])?;
    keys.refuse("tie_word_embeddings", &[true.into()])?;
    let before = keys.flag("do_layer_norm_before", true)?;
    Ok(LlmConfig {
        family: Family::Opt,
        vocab,
        width,
        embed_width: keys.size_or("word_embed_proj_dim", Some(width))?,
        layers: keys.size("num_hidden_layers")?,
        heads,
        key_heads: heads,
        head_size: divided(width, heads)?,
        ffn: keys.size("ffn_dim")?,
        positions: keys.size_or("max_position_embeddings", Some(2048))?,
        eps: 1e-5,
        activation: Activation::Relu,
        residual: if before { Residual::Before } else { Residual::After },
        final_norm: before && !keys.flag("_remove_final_layer_norm", false)?,
        biases: [true; 2],
        head_norms: false,
        frequencies: Vec::new(),
        tied: true,
        dropout: [keys.number("dropout", 0.1)?, keys.number("attention_dropout", 0.0)?],
        bos: keys.id("bos_token_id", vocab)?,
        eos: keys.id("eos_token_id", vocab)?,
        pad: keys.id("pad_token_id", vocab)?,
    })
}

fn gpt_neox(keys: &Keys) -> Result<LlmConfig> {
    let (vocab, width) = (keys.size("vocab_size")?, keys.size("hidden_size")?);
    let heads = keys.size("num_attention_heads")?;
    let head_size = divided(width, heads)?;
    keys.refuse("attention_bias", &[true.into()])?;
    let activation = match keys.text("hidden_act")?.unwrap_or("gelu") {
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        other => return Keys::wrong("hidden_act", "gelu, gelu_new, gelu_fast or relu", other),
    };
    let parallel = keys.flag("use_parallel_residual", true)?;
    Ok(LlmConfig {
        family: Family::GptNeox,
        vocab,
        width,
        embed_width: width,
        layers: keys.size("num_hidden_layers")?,
        heads,
        key_heads: heads,
        head_size,
        ffn: keys.size("intermediate_size")?,
        positions: keys.size_or("max_position_embeddings", Some(2048))?,
        eps: keys.number("layer_norm_eps", 1e-5)?,
        activation,
        residual: if parallel { Residual::Parallel } else { Residual::Before },
        final_norm: true,
        biases: [true; 2],
        head_norms: false,
        frequencies: rope::of_a_part(keys, head_size)?,
        tied: keys.flag("tie_word_embeddings", false)?,
        dropout: [keys.number("hidden_dropout", 0.0)?, keys.number("attention_dropout", 0.0)?],
        bos: keys.id("bos_token_id", vocab)?,
        eos: keys.id("eos_token_id", vocab)?,
        pad: keys.id("pad_token_id", vocab)?,
    })
}

fn llama(keys: &Keys, family: Family) -> Result<LlmConfig> {
    let (vocab, width) = (keys.size("vocab_size")?, keys.size("hidden_size")?);
    let heads = keys.size("num_attention_heads")?;
    let head_size = match keys.get("head_dim") {
        Some(_) => keys.size("head_dim")?,
        None if family == Family::Qwen3 => 128,
        None => divided(width, heads)?,
    };
    keys.refuse("hidden_act", &["silu".into()])?;
    keys.refuse("mlp_bias", &[false.into()])?;
    layer_types(keys)?;
    // Qwen's files name a window and then do not use it.
    if family == Family::Llama || keys.flag("use_sliding_window", false)? {
        keys.refuse("sliding_window", &[])?;
        keys.refuse("use_sliding_window", &[false.into()])?;
    }
    let bias = keys.flag("attention_bias", false)?;
    Ok(LlmConfig {
        family,
        vocab,
        width,
        embed_width: width,
        layers: keys.size("num_hidden_layers")?,
        heads,
        key_heads: keys.size_or("num_key_value_heads", Some(heads))?,
        head_size,
        ffn: keys.size("intermediate_size")?,
        positions: keys.size_or("max_position_embeddings", Some(2048))?,
        eps: keys.number("rms_norm_eps", 1e-6)?,
        activation: Activation::Gate,
        residual: Residual::Before,
        final_norm: true,
        biases: [bias || family == Family::Qwen2, bias && family != Family::Qwen2],
        head_norms: family == Family::Qwen3,
        frequencies: rope::of_all(keys, head_size)?,
        tied: keys.flag("tie_word_embeddings", false)?,
        dropout: [0.0, keys.number("attention_dropout", 0.0)?],
        bos: keys.id("bos_token_id", vocab)?,
        eos: keys.id("eos_token_id", vocab)?,
        pad: keys.id("pad_token_id", vocab)?,
    })
}

/// Files of transformers 5 name the kind of attention layer by layer.
fn layer_types(keys: &Keys) -> Result<()> {
    let full = Value::from("full_attention");
    match keys.get("layer_types") {
        None => Ok(()),
        Some(Value::Array(all)) => match all.iter().find(|kind| **kind != full) {
            Some(other) => Keys::wrong("layer_types", "full_attention in all layers", other),
            None => Ok(()),
        },
        Some(other) => Keys::wrong("layer_types", "a list", other),
    }
}

fn divided(width: usize, heads: usize) -> Result<usize> {
    if width.is_multiple_of(heads) {
        return Ok(width / heads);
    }
    Keys::wrong("num_attention_heads", &format!("a divisor of hidden_size {width}"), heads)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(change: &str) -> String {
        let base = r#"{"model_type":"llama","vocab_size":97,"hidden_size":48,"num_hidden_layers":2,
            "num_attention_heads":4,"intermediate_size":80}"#;
        let (Ok(Value::Object(mut map)), Ok(Value::Object(more))) =
            (serde_json::from_str(base), serde_json::from_str(change))
        else {
            panic!("{change}")
        };
        map.extend(more);
        LlmConfig::from_map(&map).map_or_else(|e| e.to_string(), |_| "no error".into())
    }

    #[test]
    fn what_is_not_computed_is_refused_by_its_name() {
        assert_eq!(said("{}"), "no error");
        for (change, word) in [
            (
                r#"{"rope_scaling":{"type":"linear","factor":2}}"#,
                "rope_scaling: expected llama3 or none, got linear",
            ),
            (r#"{"rope_scaling":{"rope_type":"yarn"}}"#, "got yarn"),
            (r#"{"sliding_window":4096}"#, "sliding_window"),
            (r#"{"quantization_config":{"bits":4}}"#, "quantization_config"),
            (r#"{"hidden_act":"gelu"}"#, "hidden_act"),
            (r#"{"mlp_bias":true}"#, "mlp_bias"),
            (r#"{"model_type":"gemma"}"#, "got gemma"),
            (r#"{"vocab_size":"97"}"#, "vocab_size: expected a whole number"),
            (r#"{"vocab_size":-3}"#, "vocab_size"),
            (r#"{"tie_word_embeddings":"yes"}"#, "tie_word_embeddings: expected true or false"),
            (r#"{"num_key_value_heads":3}"#, "num_key_value_heads: expected a divisor"),
            (r#"{"head_dim":7}"#, "head_dim: expected an even number"),
            (r#"{"rope_scaling":"llama3"}"#, "rope_scaling: expected an object"),
            (r#"{"rope_parameters":{"rope_type":"yarn","rope_theta":1e4}}"#, "rope_parameters: expected"),
            (r#"{"rope_parameters":{"full_attention":{"rope_theta":1e4}}}"#, "rope_parameters: expected"),
            (r#"{"rope_parameters":{"rope_theta":"1e6"}}"#, "rope_theta: expected a number"),
            (r#"{"partial_rotary_factor":0.5}"#, "partial_rotary_factor: expected 1"),
            (r#"{"layer_types":["full_attention","sliding_attention"]}"#, "layer_types"),
            (r#"{"layer_types":2}"#, "layer_types: expected a list"),
            (r#"{"model_type":7}"#, "model_type: expected a text"),
            (r#"{"rms_norm_eps":"1e-6"}"#, "rms_norm_eps: expected a number"),
            (r#"{"eos_token_id":"2"}"#, "eos_token_id: expected an id"),
            (r#"{"head_dim":200}"#, "head_dim: expected 1 to 160"),
            (r#"{"eos_token_id":97}"#, "eos_token_id: expected an id below"),
            (r#"{"num_attention_heads":5}"#, "num_attention_heads: expected a divisor"),
        ] {
            assert!(said(change).contains(word), "{change}: {}", said(change));
        }
        // Qwen names a window that it does not use.
        let qwen = r#"{"model_type":"qwen2","sliding_window":4096,"use_sliding_window":false}"#;
        assert_eq!(said(qwen), "no error");
        assert!(
            said(r#"{"model_type":"qwen2","sliding_window":4096,"use_sliding_window":true}"#)
                .contains("sliding_window")
        );
    }
}
