//! A second stage for Hugging Face's transformers: a folder that `Blip2ForConditionalGeneration.from_pretrained` and
//! `Blip2Processor.from_pretrained` open.
//!
//! | file | what is in it |
//! |---|---|
//! | `model.safetensors` | image encoder, Q-Former's query side, projection, and the language model under `language_model.` |
//! | `config.json` | the sizes, the language model's own config as `text_config` |
//! | `preprocessor_config.json`, `processor_config.json` | LAVIS's resizing and normalisation, how many queries |
//! | `tokenizer.json`, ... | the language model's tokenizer |
//!
//! transformers marks the places of queries by a token, `<image>`, which its processor adds behind the tokenizer's own. Where the
//! language model has no row left for it, embedding and head grow by one, a copy of the unknown token's: as no logit of `<image>`
//! is above that one, greedy and beam search write what they wrote before.

use super::OP;
use super::hf::{put_json, sizes};
use super::write::{Job, Piece, Pieces, file};
use crate::files;
use crate::pretrained::llm::LlmFolder;
use crate::terminal::note;
use crate::weights::Info;
use crate::weights::names::PROJECTION;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::Arc;

/// Files of a tokenizer and of generation, copied where they are.
const COPIED: [&str; 9] = [
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
];
const SETTINGS: &str = "tokenizer_config.json";
const MOST_SETTINGS: u64 = 16 << 20;
const MOST_FILE: u64 = 256 << 20;

impl Job {
    pub fn hugging_face_second(&self, out: &Path, llm: Arc<LlmFolder>) -> Result<()> {
        let (id, grown) = image_token(&llm);
        let pieces = self.second_pieces(&llm, grown)?;
        let mut config = sizes(&self.config);
        config["architectures"] = json!(["Blip2ForConditionalGeneration"]);
        config["image_token_index"] = id.into();
        config["use_decoder_only_language_model"] = true.into();
        config["qformer_config"]["use_qformer_text_input"] = false.into();
        config["text_config"] = llm.config_json()?;
        if grown.is_some() {
            config["text_config"]["vocab_size"] = (llm.config.vocab + 1).into();
        }
        let files: Vec<&str> = COPIED.into_iter().filter(|name| llm.path.join(name).is_file()).collect();
        let queries = Some(self.config.num_query);
        let whole = self
            .transformers(out, &pieces, &files, (&config, queries), |to| copy_tokenizer(&llm, &files, to))?;
        if whole && grown.is_some() {
            note!(
                "note: no row of the language model was left for <image>: embedding and head have one more"
            );
        }
        Ok(())
    }

    fn second_pieces(&self, llm: &Arc<LlmFolder>, grown: Option<usize>) -> Result<Pieces> {
        let mut pieces = Pieces::new();
        for (i, spec) in self.specs.iter().enumerate() {
            if let Some(part) = spec.name.strip_prefix(llm.config.projection()) {
                let name = format!("{PROJECTION}{part}");
                let dtype = self.plan.dtype(i).unwrap_or(crate::weights::Dtype::F32);
                let info = Info { name: name.clone(), dtype, shape: spec.shape.clone() };
                pieces.insert(name, (info, Piece::Parameter(i)));
            }
        }
        let projection = |name: &str| name.starts_with(llm.config.projection());
        pieces.extend(self.hugging_face_pieces(projection)?);
        for (own, info) in llm.tensors()? {
            let name = format!("language_model.{own}");
            let words = info.shape.len() == 2 && info.shape[0] == llm.config.vocab && is_of_words(&own);
            let again = grown.filter(|_| words);
            let mut shape = info.shape.clone();
            shape[0] += usize::from(again.is_some());
            let piece = Piece::Language(Arc::clone(llm), info.name.clone(), again);
            pieces.insert(name.clone(), (Info { name, shape, ..info.clone() }, piece));
        }
        Ok(pieces)
    }
}

/// Whether a tensor of a language model has a row for every token.
fn is_of_words(name: &str) -> bool {
    ["embed_tokens.weight", "embed_in.weight", "lm_head.weight", "embed_out.weight"]
        .iter()
        .any(|n| name.ends_with(n))
}

/// The id of `<image>`, and where there is no row for it, the row that it copies.
fn image_token(llm: &LlmFolder) -> (usize, Option<usize>) {
    let (tokens, rows) = (llm.tokenizer.len(), llm.config.vocab);
    if let Some(id) = llm.tokenizer.id("<image>") {
        return (id as usize, None);
    }
    let unknown = llm.tokenizer.unknown().map_or(0, |id| id as usize);
    (tokens, (tokens >= rows).then_some(unknown.min(rows.saturating_sub(1))))
}

fn settings(llm: &LlmFolder) -> Result<Map<String, Value>> {
    let path = llm.path.join(SETTINGS);
    if !path.is_file() {
        return Ok(Map::new());
    }
    serde_json::from_slice(&files::read_regular(&path, MOST_SETTINGS, OP)?)
        .map_err(|e| Error::file(OP, &path, "the settings of a tokenizer", e))
}

fn copy_tokenizer(llm: &LlmFolder, names: &[&str], to: &Path) -> Result<()> {
    for name in names {
        file(&to.join(name), &files::read_regular(&llm.path.join(name), MOST_FILE, OP)?)?;
    }
    let mut settings = settings(llm)?;
    settings.insert("processor_class".into(), json!("Blip2Processor"));
    put_json(&to.join(SETTINGS), &Value::Object(settings))
}
