//! What `tokenizer_config.json` and `special_tokens_map.json` of a language model say: its opening, end and padding
//! token, whether a text is opened at all, and tokens that were added to the vocabulary.
//!
//! As transformers reads them: `special_tokens_map.json` counts only where `tokenizer_config.json` has no
//! `added_tokens_decoder`, and is then the stronger.

use crate::{Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const OPERATION: &str = "open the tokenizer";
const CONFIG: &str = "tokenizer_config.json";
const MAP: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";

/// The settings of one folder.
pub struct Settings {
    path: PathBuf,
    pub opening: Option<String>,
    pub end: Option<String>,
    pub padding: Option<String>,
    pub add_bos_token: Option<bool>,
    pub add_prefix_space: bool,
    /// Whether decoded text loses its spaces before English punctuation: the transformers that LAVIS runs on (4.26 to
    /// 4.33) does that unless the file or the class says no.
    pub clean_up: bool,
    pub class: Option<String>,
    /// Tokens beside the vocabulary's own, by id.
    pub added: BTreeMap<u32, String>,
}

impl Settings {
    pub fn read(directory: &Path) -> Result<Settings> {
        let path = directory.join(CONFIG);
        let config = object(&path)?.unwrap_or_default();
        let map = match config.contains_key("added_tokens_decoder") {
            true => Map::new(),
            false => object(&directory.join(MAP))?.unwrap_or_default(),
        };
        let token = |key: &str| -> Result<Option<String>> {
            match token(&map, key, &directory.join(MAP))? {
                None => token(&config, key, &path),
                found => Ok(found),
            }
        };
        let flag = |key: &str| match config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(wrong(&path, key, "true or false", other)),
        };
        let class = match config.get("tokenizer_class") {
            None | Some(Value::Null) => None,
            Some(Value::String(class)) => Some(class.trim_end_matches("Fast").to_string()),
            Some(other) => return Err(wrong(&path, "tokenizer_class", "a name", other)),
        };
        let kept = matches!(class.as_deref(), Some("LlamaTokenizer" | "CodeLlamaTokenizer"));
        Ok(Settings {
            clean_up: flag("clean_up_tokenization_spaces")?.unwrap_or(!kept),
            opening: token("bos_token")?,
            end: token("eos_token")?,
            padding: token("pad_token")?,
            add_bos_token: flag("add_bos_token")?,
            add_prefix_space: flag("add_prefix_space")?.unwrap_or(false),
            class,
            added: added(&config, &path, directory)?,
            path,
        })
    }

    /// Whether a text is opened: by `add_bos_token`, or as the class does it by itself.
    pub fn opens(&self) -> Option<bool> {
        self.add_bos_token.or_else(|| match self.class.as_deref()? {
            "LlamaTokenizer" | "CodeLlamaTokenizer" | "GemmaTokenizer" => Some(true),
            "T5Tokenizer" | "GPT2Tokenizer" | "Qwen2Tokenizer" | "GPTNeoXTokenizer" => Some(false),
            _ => None,
        })
    }

    /// An error about a key that is not there.
    pub fn lacks(&self, key: &str, expected: &str) -> Error {
        Error::file(OPERATION, &self.path, format!("{key}, {expected}"), "none")
            .fix("take the whole folder of the language model, its tokenizer_config.json and special_tokens_map.json with it")
    }
}

/// The keys of a file; none if it is not there.
fn object(path: &Path) -> Result<Option<Map<String, Value>>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(OPERATION, path, &e)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| Error::file(OPERATION, path, "a JSON object", e))
}

fn wrong(path: &Path, key: &str, expected: &str, got: &Value) -> Error {
    Error::file(OPERATION, path, format!("{key}: {expected}"), got)
}

/// A token is written as its text or as an object around it.
fn token(keys: &Map<String, Value>, key: &str, path: &Path) -> Result<Option<String>> {
    match keys.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(token)) => Ok(Some(token.clone())),
        Some(other) => match other.get("content") {
            Some(Value::String(token)) => Ok(Some(token.clone())),
            _ => Err(wrong(path, key, "a token", other)),
        },
    }
}

fn added(config: &Map<String, Value>, path: &Path, directory: &Path) -> Result<BTreeMap<u32, String>> {
    let mut added = BTreeMap::new();
    match config.get("added_tokens_decoder") {
        Some(Value::Object(tokens)) => {
            for (id, _) in tokens {
                let text = token(tokens, id, path)?;
                let number = id.parse().ok().zip(text);
                let Some((number, text)) = number else {
                    return Err(wrong(
                        path,
                        "added_tokens_decoder",
                        "tokens by their ids",
                        &Value::from(id.as_str()),
                    ));
                };
                added.insert(number, text);
            }
        }
        None | Some(Value::Null) => {
            let path = directory.join(ADDED);
            for (text, id) in object(&path)?.unwrap_or_default() {
                let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
                added.insert(number.ok_or_else(|| wrong(&path, &text, "an id", &id))?, text);
            }
        }
        Some(other) => return Err(wrong(path, "added_tokens_decoder", "an object", other)),
    }
    Ok(added)
}
