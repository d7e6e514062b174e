//! A model for Hugging Face's transformers: a folder that `Blip2ForImageTextRetrieval.from_pretrained` and
//! `Blip2Processor.from_pretrained` open.
//!
//! | file | what is in it |
//! |---|---|
//! | `model.safetensors` | the weights under its names; queries' and values' biases joined, as it has them |
//! | `config.json` | the sizes |
//! | `preprocessor_config.json`, `processor_config.json` | LAVIS's resizing and normalisation |
//! | `vocab.txt`, `tokenizer_config.json` | BertJapaneseTokenizer with `[DEC]` |
//!
//! Its class has no captioning head and no temperature: those are left out by name. It computes `ln_vision` with eps 1e-6, where
//! LAVIS has 1e-5.

use super::OP;
use super::write::{Job, Piece, Pieces, file};
use crate::files;
use crate::model::Config;
use crate::terminal::note;
use crate::vision::Normalise;
use crate::weights::names;
use crate::weights::{Dtype, Info};
use crate::{Error, Kind, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The folder's files, beside those of its tokenizer.
const PARTS: [&str; 4] =
    ["config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json"];
/// The last that is written makes it whole.
const WEIGHTS: &str = "model.safetensors";
const DEC: &str = "[DEC]";
const MOST_VOCABULARY: u64 = 64 << 20;
const MOST_SETTINGS: u64 = 1 << 20;

impl Job {
    /// The folder; or, if `out` ends in .safetensors, its weights alone. `tokenizer` is a folder with a vocabulary.
    pub fn hugging_face(&self, out: &Path, tokenizer: Option<&Path>) -> Result<()> {
        let pieces = self.hugging_face_pieces(|_| false)?;
        let whole =
            self.transformers(out, &pieces, &["vocab.txt"], (&sizes(&self.config), None), |staged| {
                tokenizer.map_or(Ok(()), |from| put_tokenizer(from, staged, &self.config))
            })?;
        if whole && tokenizer.is_none() {
            note!(
                "note: no vocab.txt beside the weights: the folder has no tokenizer; convert again with --bert DIR"
            );
        }
        Ok(())
    }

    /// Writes these weights: with a `config.json`, a processor that makes room for so many queries, and a `tokenizer`, whose files are
    /// `others` beside its settings; or, if `out` ends in .safetensors, alone. Whether it was a folder.
    pub(super) fn transformers(
        &self,
        out: &Path,
        pieces: &Pieces,
        others: &[&str],
        (config, queries): (&Value, Option<usize>),
        tokenizer: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<bool> {
        let metadata = BTreeMap::from([("format".into(), "pt".into())]);
        let folder = out.extension().is_none_or(|e| e != "safetensors");
        if !folder {
            self.write(out, pieces, &metadata, None)?;
        } else if !self.specs.iter().any(super::is_vit) {
            let want = "one: transformers loads the whole model";
            return Err(Error::argument(OP, "image encoder", want, "none").fix("give its file with --vit"));
        } else {
            files::write_folder(out, &[&PARTS[..], others, &[WEIGHTS]].concat(), |staged| {
                tokenizer(staged)?;
                put_json(&staged.join("preprocessor_config.json"), &pictures(&self.config))?;
                let processor = json!({"processor_class": "Blip2Processor", "num_query_tokens": queries});
                put_json(&staged.join("processor_config.json"), &processor)?;
                put_json(&staged.join("config.json"), config)?;
                self.write(&staged.join(WEIGHTS), pieces, &metadata, None).map(drop)
            })?;
        }
        note!("wrote {}: {} tensors", out.display(), pieces.len());
        Ok(folder)
    }

    /// The weights under transformers' names, but for those that are `known` to be elsewhere.
    pub(super) fn hugging_face_pieces(&self, known: impl Fn(&str) -> bool) -> Result<Pieces> {
        let mut pieces = Pieces::new();
        let mut left_out = Vec::new();
        for (i, spec) in self.specs.iter().enumerate() {
            let dtype = self.plan.dtype(i).unwrap_or(Dtype::F32);
            if let Some((v_bias, name)) = names::hugging_face_qkv_bias(&spec.name) {
                let v = self.specs.iter().position(|s| s.name == v_bias);
                let v = v.ok_or_else(|| Error::argument(OP, &v_bias, "a parameter", "none"))?;
                let info = Info { name: name.clone(), dtype: Dtype::F32, shape: vec![3 * spec.shape[0]] };
                pieces.insert(name, (info, Piece::Joined(i, v)));
            } else if let Some(name) = names::to_hugging_face(&spec.name) {
                let info = Info { name: name.clone(), dtype, shape: spec.shape.clone() };
                pieces.insert(name, (info, Piece::Parameter(i)));
            } else if !spec.name.ends_with(".attn.v_bias") && !known(&spec.name) {
                left_out.push(spec.name.as_str());
            }
        }
        if !left_out.is_empty() {
            note!("left out, since Hugging Face's BLIP-2 has no such parameters: {}", left_out.join(", "));
        }
        Ok(pieces)
    }
}

/// Heads of the Q-Former and of the image encoder, where a folder's `config.json` is Blip2Config's and says them.
pub(super) fn heads(folder: &Path) -> Result<[Option<u64>; 2]> {
    let path = folder.join("config.json");
    if !path.is_file() {
        return Ok([None; 2]);
    }
    let json: Value = serde_json::from_slice(&files::read_regular(&path, MOST_SETTINGS, OP)?)
        .map_err(|e| Error::file(OP, &path, "JSON", e))?;
    let of = |part: &str| match json[part].get("num_attention_heads") {
        None | Some(Value::Null) => Ok(None),
        Some(n) => n
            .as_u64()
            .filter(|n| *n > 0)
            .map(Some)
            .ok_or_else(|| Error::file(OP, &path, format!("{part}.num_attention_heads: a number"), n)),
    };
    Ok([of("qformer_config")?, of("vision_config")?])
}

/// `config.json` of transformers' Blip2Config. Names of keys are its own.
pub(super) fn sizes(c: &Config) -> Value {
    json!({
        "architectures": ["Blip2ForImageTextRetrieval"],
        "model_type": "blip-2",
        "num_query_tokens": c.num_query,
        "image_text_hidden_size": c.embed_dim,
        "image_token_index": null,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
        "vision_config": {
            "model_type": "blip_2_vision_model",
            "hidden_size": c.vit_width, "intermediate_size": c.vit_mlp, "num_hidden_layers": c.vit_depth,
            "num_attention_heads": c.vit_heads, "image_size": c.image_size, "patch_size": c.patch_size,
            "hidden_act": "gelu", "layer_norm_eps": 1e-6, "attention_dropout": 0.0, "qkv_bias": true,
        },
        "qformer_config": {
            "model_type": "blip_2_qformer",
            "vocab_size": c.vocab, "hidden_size": c.hidden, "num_hidden_layers": c.layers,
            "num_attention_heads": c.heads, "intermediate_size": c.ffn, "max_position_embeddings": c.max_pos,
            "cross_attention_frequency": c.cross_freq, "encoder_hidden_size": c.vit_width,
            "hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0,
            "use_qformer_text_input": true,
        },
    })
}

/// `preprocessor_config.json`: what [`crate::pretrained::Pretrained::pixels`] does.
fn pictures(c: &Config) -> Value {
    let Normalise { mean, std } = Normalise::default();
    // As decimal numbers, not as the nearest f32 with all its digits.
    let decimal = |x: [f32; 3]| x.map(|x| x.to_string().parse::<f64>().unwrap_or(f64::from(x)));
    json!({
        "image_processor_type": "BlipImageProcessor",
        "processor_class": "Blip2Processor",
        "do_convert_rgb": true,
        "do_resize": true, "size": {"height": c.image_size, "width": c.image_size}, "resample": 3,
        "do_rescale": true, "rescale_factor": 1.0 / 255.0,
        "do_normalize": true, "image_mean": decimal(mean), "image_std": decimal(std),
    })
}

/// The vocabulary without `[DEC]`, and the settings with it as a token of its own, whose id is the last.
fn put_tokenizer(from: &Path, out: &Path, config: &Config) -> Result<()> {
    let path = from.join("vocab.txt");
    let text = files::read_regular(&path, MOST_VOCABULARY, OP)?;
    let text = String::from_utf8(text).map_err(|e| Error::file(OP, &path, "UTF-8", e))?;
    let tokens: Vec<&str> = text.lines().filter(|line| *line != DEC).collect();
    if tokens.len() + 1 != config.vocab {
        let got = format!("{} tokens and {DEC} in {}", tokens.len(), path.display());
        return Err(Error::argument(OP, "vocab.txt", format!("{} of the model", config.vocab), got)
            .fix("give the folder of the vocabulary that the model was trained with as --bert"));
    }
    let path = from.join("tokenizer_config.json");
    let mut settings: Map<String, Value> = match path.exists() {
        false => Map::new(),
        true => serde_json::from_slice(&files::read_regular(&path, MOST_SETTINGS, OP)?)
            .map_err(|e| Error::file(OP, &path, "the settings of a tokenizer", e))?,
    };
    let given = json!({
        "do_lower_case": false, "word_tokenizer_type": "mecab", "subword_tokenizer_type": "wordpiece",
        "mecab_kwargs": {"mecab_dic": "ipadic"}, "model_max_length": config.max_pos,
        "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
    });
    for (key, value) in given.as_object().into_iter().flatten() {
        settings.entry(key.clone()).or_insert_with(|| value.clone());
    }
    let dec = json!({
        "content": DEC, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true,
    });
    settings.insert("tokenizer_class".into(), json!("BertJapaneseTokenizer"));
    settings.insert("processor_class".into(), json!("Blip2Processor"));
    settings.insert("bos_token".into(), json!(DEC));
    settings.insert("added_tokens_decoder".into(), json!({(config.vocab - 1).to_string(): dec}));
    file(&out.join("vocab.txt"), (tokens.join("\n") + "\n").as_bytes())?;
    put_json(&out.join("tokenizer_config.json"), &Value::Object(settings))
}

pub(super) fn put_json(path: &Path, value: &Value) -> Result<()> {
    let failed = |e: serde_json::Error| Error::new(Kind::Write, OP).about(path.display().to_string()).got(e);
    let text = serde_json::to_string_pretty(value).map_err(failed)?;
    file(path, (text + "\n").as_bytes())
}
