//! The tokens of a model: `vocab.txt`, one a line, its line number the id.

use crate::{Error, Result};
use std::collections::HashMap;

/// Ids of the tokens with a meaning of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Special {
    /// `[PAD]`
    pub pad: u32,
    /// `[UNK]`
    pub unk: u32,
    /// `[CLS]`
    pub cls: u32,
    /// `[SEP]`
    pub sep: u32,
    /// `[MASK]`
    pub mask: u32,
    /// Where a generated caption begins; always the last id.
    pub dec: u32,
}

/// The special tokens that a vocabulary must hold, in the order of a new one.
pub const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
/// LAVIS adds it to BERT's tokens, where it is the last.
pub const DEC: &str = "[DEC]";

const OPERATION: &str = "read a vocabulary";
const FILE: &str = "one token a line, vocab.txt of the BERT that the model starts from";

/// Tokens and their ids.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    tokens: Vec<String>,
    ids: HashMap<String, u32>,
    special: Special,
}

impl Vocabulary {
    /// A vocabulary of these tokens, and `[DEC]` after them unless it is the last of them.
    pub fn new(mut tokens: Vec<String>) -> Result<Vocabulary> {
        let refuse = |why: String| Error::argument(OPERATION, "vocabulary", "distinct tokens", why);
        if tokens.last().is_none_or(|last| last != DEC) {
            tokens.push(DEC.into());
        }
        let mut ids = HashMap::with_capacity(tokens.len());
        for (token, id) in tokens.iter().zip(0u32..) {
            if token.is_empty() || token.contains(['\n', '\r']) {
                return Err(refuse(format!("{token:?} in line {}", id + 1)).fix("remove that line"));
            }
            if let Some(before) = ids.insert(token.clone(), id) {
                let got = format!("'{token}' in lines {} and {}", before + 1, id + 1);
                return Err(refuse(got)
                    .fix("every id needs a token of its own: is it the file the model was trained with?"));
            }
        }
        let id = |token: &str| {
            ids.get(token).copied().ok_or_else(|| {
                let expected = format!("the special tokens {}", SPECIAL.join(" "));
                Error::argument(OPERATION, "vocabulary", expected, format!("none {token}")).fix(FILE)
            })
        };
        let [pad, unk, cls, sep, mask] = SPECIAL.map(id);
        let special = Special { pad: pad?, unk: unk?, cls: cls?, sep: sep?, mask: mask?, dec: id(DEC)? };
        Ok(Vocabulary { tokens, ids, special })
    }

    /// The tokens of a `vocab.txt`. Lines end as Python sees them: by LF, CR LF or CR.
    pub fn parse(bytes: &[u8]) -> Result<Vec<String>> {
        let text = std::str::from_utf8(bytes).map_err(|e| {
            let line = bytes.iter().take(e.valid_up_to()).filter(|&&b| b == b'\n').count() + 1;
            let got = format!("bytes that are none in line {line}");
            Error::argument(OPERATION, "vocabulary", "UTF-8", got).fix("save it as UTF-8 again")
        })?;
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let text = text.strip_suffix('\n').unwrap_or(&text);
        if text.is_empty() {
            return Err(Error::argument(OPERATION, "vocabulary", FILE, "an empty file"));
        }
        Ok(text.split('\n').map(String::from).collect())
    }

    /// The tokens as `vocab.txt` holds them: without `[DEC]`, which the reader adds.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for token in self.tokens.iter().filter(|t| *t != DEC) {
            text.push_str(token);
            text.push('\n');
        }
        text
    }

    /// How many tokens it has.
    #[expect(clippy::len_without_is_empty, reason = "it has at least its special tokens")]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The ids of the special tokens.
    pub fn special(&self) -> Special {
        self.special
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// The token of an id.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(usize::try_from(id).ok()?).map(String::as_str)
    }
}

impl Special {
    /// Whether an id has a token.
    pub fn contains(&self, id: u32) -> bool {
        [self.pad, self.unk, self.cls, self.sep, self.mask, self.dec].contains(&id)
    }
}
