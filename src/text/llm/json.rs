//! `tokenizer.json`, and GPT-2's `vocab.json` with `merges.txt`, by the crate `tokenizers`.
//!
//! What a file says of padding and truncation is left out: rows are cut by whoever makes them.

use crate::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, NormalizedString, Normalizer, Tokenizer};

const OPERATION: &str = "open the tokenizer";
/// Bytes of the largest file; that of 256,000 tokens has 35 million.
const LARGEST: u64 = 1 << 28;

pub struct Json {
    tokenizer: Tokenizer,
    unknown: Option<u32>,
    bytes: bool,
}

/// What the crate keeps to itself.
#[derive(Deserialize)]
struct File {
    model: Model,
}

#[derive(Deserialize, Default)]
struct Model {
    unk_token: Option<String>,
    unk_id: Option<u32>,
    dropout: Option<f32>,
    byte_fallback: Option<bool>,
}

impl Json {
    pub fn open(path: &Path) -> Result<Json> {
        let wrong = |why: String| Error::file(OPERATION, path, "a tokenizer.json of Hugging Face", why);
        let bytes = read(path)?;
        let file: File = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        let tokenizer = guarded(|| Tokenizer::from_bytes(&bytes)).map_err(wrong)?;
        Json::of(tokenizer, &file.model).map_err(wrong)
    }

    /// The byte-level BPE of GPT-2 and OPT: `vocab.json` and `merges.txt` of a folder.
    pub fn open_merges(directory: &Path, add_prefix_space: bool, special: &[String]) -> Result<Json> {
        let (vocabulary, merges) = (directory.join("vocab.json"), directory.join("merges.txt"));
        let wrong = |why: String| Error::file(OPERATION, &merges, "merges of the tokens in vocab.json", why);
        let not_ids =
            |why: String| Error::file(OPERATION, &vocabulary, "an object of tokens and their ids", why);
        let ids: BTreeMap<String, u32> =
            serde_json::from_slice(&read(&vocabulary)?).map_err(|e| not_ids(e.to_string()))?;
        let text = String::from_utf8(read(&merges)?).map_err(|e| wrong(e.to_string()))?;
        let mut pairs = Vec::new();
        for (line, number) in text.lines().zip(1..).filter(|(l, n)| !(*n == 1 && l.starts_with("#version"))) {
            let pair = line.split_once(' ').filter(|(_, second)| !second.contains(' '));
            let Some((first, second)) = pair else {
                if line.is_empty() {
                    continue;
                }
                return Err(wrong(format!("{line:?} in line {number}")));
            };
            pairs.push((first.to_string(), second.to_string()));
        }
        let ids: Vocab = ids.into_iter().collect();
        let build = || {
            let model = BPE::builder().vocab_and_merges(ids, pairs).build()?;
            let mut tokenizer = Tokenizer::new(model);
            tokenizer.with_pre_tokenizer(Some(ByteLevel::new(add_prefix_space, false, true)));
            tokenizer.with_decoder(Some(ByteLevel::default()));
            tokenizer
                .add_special_tokens(special.iter().map(|token| AddedToken::from(token.as_str(), true)))?;
            Ok(tokenizer)
        };
        Json::of(guarded(build).map_err(wrong)?, &Model::default()).map_err(wrong)
    }

    fn of(mut tokenizer: Tokenizer, model: &Model) -> Result<Json, String> {
        tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
        tokenizer.with_padding(None);
        if model.dropout.is_some_and(|share| share > 0.0) {
            return Err("a BPE with dropout, which cuts the same text differently each time".into());
        }
        let unknown = model.unk_token.as_ref().and_then(|token| tokenizer.token_to_id(token));
        Ok(Json { tokenizer, unknown: unknown.or(model.unk_id), bytes: model.byte_fallback.unwrap_or(false) })
    }

    /// One more than the largest id.
    pub fn len(&self) -> usize {
        let largest = self.tokenizer.get_vocab(true).into_values().max();
        largest.map_or(0, |id| id as usize + 1)
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    pub fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// Whether an id is one byte of a character that no token has.
    pub fn is_byte(&self, id: u32) -> bool {
        self.bytes && self.tokenizer.id_to_token(id).is_some_and(|t| super::pieces::byte_of(&t).is_some())
    }

    pub fn normalize(&self, text: &str) -> Result<String> {
        let Some(normalizer) = self.tokenizer.get_normalizer() else { return Ok(text.into()) };
        let mut normalized = NormalizedString::from(text);
        let done = guarded(|| normalizer.normalize(&mut normalized).map(|()| normalized));
        done.map(|n| n.get().to_string()).map_err(|why| failed("normalise", text, &why))
    }

    /// The ids of a text; with `special`, with the tokens that the file's post-processor puts around it.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoded = guarded(|| self.tokenizer.encode_fast(text, special));
        encoded.map(|e| e.get_ids().to_vec()).map_err(|why| failed("tokenize", text, &why))
    }

    /// The text of ids, tokens with a meaning left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.tokenizer.decode(ids, true)).map_err(|why| failed("decode", "", &why))
    }

    /// The ids that the post-processor puts before a text.
    pub fn before(&self) -> Result<Vec<u32>> {
        let (plain, mut whole) = (self.encode("a", false)?, self.encode("a", true)?);
        let at = whole.windows(plain.len().max(1)).position(|w| w == plain).unwrap_or(0);
        whole.truncate(at);
        Ok(whole)
    }
}

fn failed(operation: &str, text: &str, why: &str) -> Error {
    let start: String = text.chars().take(40).collect();
    Error::argument(operation, "text", "one that the tokenizer takes", format!("{start:?}: {why}"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let fail = |e: std::io::Error| Error::io(OPERATION, path, &e);
    let size = std::fs::metadata(path).map_err(fail)?.len();
    if size > LARGEST {
        return Err(Error::file(OPERATION, path, format!("at most {LARGEST} bytes"), size));
    }
    std::fs::read(path).map_err(fail)
}

/// A file that the crate trusts too much ends in an error, not in the end of the program.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(_) => Err("numbers in it that do not fit together".into()),
    }
}
