//! Text as a language model reads it: the tokenizer of a Hugging Face folder.
//!
//! | files | read by |
//! |---|---|
//! | `tokenizer.json` | the crate `tokenizers` (`json`) |
//! | `tokenizer.model` or `spiece.model` | [`sentencepiece`], whose ids are sentencepiece's; the crate's Unigram adds scores up in another precision and composes no half-width kana |
//! | `vocab.json` with `merges.txt` | the crate `tokenizers`, as byte-level BPE (OPT) |
//!
//! The first of these that is there counts, as in transformers; the opening, end and padding token are those that
//! `tokenizer_config.json` and `special_tokens_map.json` name. No text becomes an opening or end token unless
//! `tokenizer.json` lists it among its added tokens.

mod charsmap;
#[cfg_attr(not(feature = "tokenizer-json"), path = "without_json.rs")]
mod json;
mod merges;
mod model_file;
mod normalize;
mod pieces;
mod protobuf;
pub mod sentencepiece;
mod settings;
mod viterbi;

use crate::text::clean::clean_up_spaces;
use crate::{Error, Result};
use json::Json;
use sentencepiece::SentencePiece;
use settings::Settings;
use std::collections::BTreeMap;
use std::path::Path;

const OPERATION: &str = "open the tokenizer";

/// Text to ids and back. Every method works from many threads at once.
pub struct LlmTokenizer {
    engine: Engine,
    added: BTreeMap<u32, String>,
    clean_up: bool,
    opening: Option<u32>,
    end: Option<u32>,
    padding: Option<u32>,
}

enum Engine {
    SentencePiece(Box<SentencePiece>),
    Json(Box<Json>),
}

/// The ids of a prompt and a caption, as training sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// `[opening]` prompt and caption, end; no padding.
    pub ids: Vec<u32>,
    /// Ids of the prompt, the opening token among them; none without a prompt. They are no targets.
    pub prompt: usize,
    /// Ids before they were cut.
    pub total: usize,
    /// Ids of what the tokenizer does not know.
    pub unknown: usize,
    /// Ids that are one byte of a character.
    pub bytes: usize,
}

impl Row {
    /// Whether `max_txt_len` took its end.
    pub fn is_cut(&self) -> bool {
        self.ids.len() < self.total
    }
}

impl LlmTokenizer {
    /// The tokenizer of a language model's folder.
    pub fn open(directory: &Path) -> Result<LlmTokenizer> {
        let settings = Settings::read(directory)?;
        let there = |name: &str| Some(directory.join(name)).filter(|path| path.is_file());
        let engine = if let Some(path) = there("tokenizer.json") {
            Engine::Json(Box::new(Json::open(&path)?))
        } else if let Some(path) = there("tokenizer.model").or_else(|| there("spiece.model")) {
            Engine::SentencePiece(Box::new(SentencePiece::open(&path)?))
        } else if there("vocab.json").is_some() && there("merges.txt").is_some() {
            let special: Vec<String> = [&settings.opening, &settings.end, &settings.padding]
                .into_iter()
                .flatten()
                .cloned()
                .collect();
            Engine::Json(Box::new(Json::open_merges(directory, settings.add_prefix_space, &special)?))
        } else {
            let expected = "tokenizer.json, tokenizer.model, spiece.model, or vocab.json with merges.txt";
            return Err(Error::file(OPERATION, directory, expected, "none of them")
                .fix("name the folder of the language model, its tokenizer's files with it"));
        };
        let mut tokenizer = LlmTokenizer::of(engine);
        tokenizer.added = settings.added.clone();
        tokenizer.clean_up = settings.clean_up;
        tokenizer.set_roles(&settings)?;
        Ok(tokenizer)
    }

    /// A `tokenizer.json` or a model of sentencepiece by whatever name, without the settings beside it: no opening, end
    /// and padding token.
    pub fn open_file(path: &Path) -> Result<LlmTokenizer> {
        let engine = match path.extension().is_some_and(|e| e == "json") {
            true => Engine::Json(Box::new(Json::open(path)?)),
            false => Engine::SentencePiece(Box::new(SentencePiece::open(path)?)),
        };
        Ok(LlmTokenizer::of(engine))
    }

    /// A folder, or a file of it.
    pub fn open_any(path: &Path) -> Result<LlmTokenizer> {
        if path.is_dir() { LlmTokenizer::open(path) } else { LlmTokenizer::open_file(path) }
    }

    fn of(engine: Engine) -> LlmTokenizer {
        LlmTokenizer {
            engine,
            added: BTreeMap::new(),
            clean_up: false,
            opening: None,
            end: None,
            padding: None,
        }
    }

    fn set_roles(&mut self, settings: &Settings) -> Result<()> {
        let id = |key: &str, token: &Option<String>| match token {
            None => Ok(None),
            Some(token) => self.id(token).map(Some).ok_or_else(|| {
                settings
                    .lacks(key, "a token of the vocabulary")
                    .got(format!("{token:?}, which is none of its tokens"))
            }),
        };
        // A model of sentencepiece names its own, too.
        let own = |name: fn(&sentencepiece::SentencePiece) -> Option<u32>| match &self.engine {
            Engine::SentencePiece(model) => name(model),
            Engine::Json(_) => None,
        };
        let end = id("eos_token", &settings.end)?.or_else(|| own(|m| m.control(&m.names().last)));
        let end = end.ok_or_else(|| settings.lacks("eos_token", "which ends a caption"))?;
        let bos = id("bos_token", &settings.opening)?.or_else(|| own(|m| m.control(&m.names().first)));
        let padding = id("pad_token", &settings.padding)?.or_else(|| own(|m| m.control(&m.names().padding)));
        let opening = match (&self.engine, settings.opens()) {
            (_, Some(true)) => Some(
                bos.ok_or_else(|| settings.lacks("bos_token", "which add_bos_token puts before a text"))?,
            ),
            // Files of the crate say it in their post-processor, whatever the class.
            (Engine::Json(json), _) if settings.add_bos_token.is_none() => match json.before()?[..] {
                [] => None,
                [first] => Some(first),
                ref more => {
                    let got = format!("{} that tokenizer.json puts there", more.len());
                    return Err(settings.lacks("add_bos_token", "one token before a text at most").got(got));
                }
            },
            (_, Some(false)) => None,
            (Engine::SentencePiece(_), None) | (Engine::Json(_), None) => {
                return Err(settings.lacks("add_bos_token", "true or false: whether bos_token opens a text"));
            }
        };
        (self.opening, self.end, self.padding) = (opening, Some(end), padding);
        Ok(())
    }

    /// LAVIS ends captions for OPT with a line feed, not with its end token.
    pub fn ending_with_line_feed(mut self) -> Result<LlmTokenizer> {
        let ids = self.encode("\n")?;
        let [id] = ids[..] else {
            let got = format!("{} of them", ids.len());
            return Err(Error::argument(OPERATION, "end", "one token for a line feed", got)
                .fix("only OPT's tokenizer is known to have one: end captions with eos_token"));
        };
        self.end = Some(id);
        Ok(self)
    }

    /// One more than the largest id.
    #[expect(clippy::len_without_is_empty, reason = "no tokenizer is empty")]
    pub fn len(&self) -> usize {
        let own = match &self.engine {
            Engine::SentencePiece(model) => model.len(),
            Engine::Json(json) => json.len(),
        };
        self.added.last_key_value().map_or(own, |(&id, _)| own.max(id as usize + 1))
    }

    /// Refuses a language model with fewer rows of its embedding than there are tokens.
    pub fn check_fits(&self, vocab_size: usize) -> Result<()> {
        if self.len() <= vocab_size {
            return Ok(());
        }
        let got = format!("a tokenizer with ids up to {}", self.len() - 1);
        Err(Error::argument("read the language model", "vocab_size", format!("ids below {vocab_size}"), got)
            .fix("take config.json and the tokenizer from the same folder"))
    }

    /// What opens a text, if the tokenizer opens texts at all.
    pub fn opening(&self) -> Option<u32> {
        self.opening
    }

    /// What ends a caption; none only of a file without settings.
    pub fn end(&self) -> Option<u32> {
        self.end
    }

    /// What stands where nothing is; the end token where the files name none. It is never looked at.
    pub fn padding(&self) -> Option<u32> {
        self.padding.or(self.end)
    }

    /// The id of what no token stands for.
    pub fn unknown(&self) -> Option<u32> {
        match &self.engine {
            Engine::SentencePiece(model) => model.unknown(),
            Engine::Json(json) => json.unknown(),
        }
    }

    /// The id of a token by its name in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        let own = match &self.engine {
            Engine::SentencePiece(model) => model.id(token),
            Engine::Json(json) => json.id(token),
        };
        own.or_else(|| self.added.iter().find(|(_, text)| *text == token).map(|(&id, _)| id))
    }

    /// The text as it is cut into tokens.
    pub fn normalize(&self, text: &str) -> Result<String> {
        match &self.engine {
            Engine::SentencePiece(model) => Ok(model.normalize(text)),
            Engine::Json(json) => json.normalize(text),
        }
    }

    /// The ids of a text, nothing put before or behind it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.engine {
            Engine::SentencePiece(model) => Ok(model.encode(text)),
            Engine::Json(json) => json.encode(text, false),
        }
    }

    /// The ids of a text with what the post-processor of a `tokenizer.json` puts around it.
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        match &self.engine {
            Engine::SentencePiece(model) => Ok(model.encode(text)),
            Engine::Json(json) => json.encode(text, true),
        }
    }

    /// The text of ids, without opening, end, padding and what else has a meaning; ids without a token are left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let special = [self.opening, self.end, self.padding];
        let kept: Vec<u32> = ids.iter().copied().filter(|&id| !special.contains(&Some(id))).collect();
        let text = match &self.engine {
            Engine::SentencePiece(model) => model.decode(&kept),
            Engine::Json(json) => json.decode(&kept)?,
        };
        Ok(if self.clean_up { clean_up_spaces(&text) } else { text })
    }

    /// What a search starts from: the opening token and a prompt.
    pub fn prompt(&self, prompt: &str) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = self.opening.into_iter().collect();
        ids.extend(self.encode(prompt)?);
        Ok(ids)
    }

    /// Opening token, prompt and caption as one text, end token; cut on the right to `max_txt_len`, as LAVIS cuts.
    pub fn row(&self, prompt: &str, caption: &str, max_txt_len: usize) -> Result<Row> {
        let mut ids = self.prompt(&format!("{prompt}{caption}"))?;
        let (unknown, bytes) = self.count(ids.get(usize::from(self.opening.is_some())..).unwrap_or_default());
        ids.extend(self.end);
        let total = ids.len();
        ids.truncate(max_txt_len);
        let of_prompt = if prompt.is_empty() { 0 } else { self.prompt(prompt)?.len() };
        if of_prompt >= max_txt_len {
            let got = format!("{of_prompt} of {prompt:?}");
            let expected = format!("fewer tokens than the {max_txt_len} of max_txt_len");
            return Err(Error::argument("tokenize", "prompt", expected, got)
                .fix("shorten the prompt or raise max_txt_len"));
        }
        Ok(Row { ids, prompt: of_prompt, total, unknown, bytes })
    }

    /// How many ids stand for something unknown, and how many are one byte of a character.
    fn count(&self, ids: &[u32]) -> (usize, usize) {
        let unknown = ids.iter().filter(|&&id| Some(id) == self.unknown()).count();
        let is_byte = |id: u32| match &self.engine {
            Engine::SentencePiece(model) => {
                model.piece(id).is_some_and(|p| p.kind == pieces::PieceKind::Byte)
            }
            Engine::Json(json) => json.is_byte(id),
        };
        (unknown, ids.iter().filter(|&&id| is_byte(id)).count())
    }
}
