//! Japanese text as transformers' `BertJapaneseTokenizer` has it, with LAVIS's `[DEC]`.
//!
//! Special tokens are cut out of the raw text and the text beside them loses its white space there; each piece
//! becomes NFKC and is cut into words by MeCab ([`segment`]), each word into tokens of the vocabulary: the longest
//! that fit, or characters. Nothing is lower-cased or left out.

mod check;
mod clean;
mod cursor;
mod mecab;
pub mod segment;
mod settings;
mod subword;
pub mod vocabulary;

pub use clean::clean_caption;
pub use settings::{Dictionary, Settings, Subwords};
pub use vocabulary::Special;

use crate::files::{RealDisk, write_atomic};
use crate::{Error, Result};
use clean::is_white;
use segment::Segmenter;
use std::path::Path;
use std::sync::Arc;
use subword::Subword;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfkc_quick};
use vocabulary::{DEC, SPECIAL, Vocabulary};

/// Text to ids and back. Cheap to share by reference; every method works from many threads at once.
pub struct Tokenizer {
    vocabulary: Vocabulary,
    settings: Settings,
    segmenter: Arc<Segmenter>,
    subword: Subword,
}

const VOCABULARY: &str = "vocab.txt";
const SETTINGS: &str = "tokenizer_config.json";

/// A part of a raw text.
enum Part<'a> {
    Special(&'static str),
    Text(&'a str),
}

impl Tokenizer {
    /// The tokenizer of a model's directory: `vocab.txt`, and `tokenizer_config.json` if it is there.
    pub fn open(directory: &Path) -> Result<Tokenizer> {
        const OPERATION: &str = "open the tokenizer";
        let path = directory.join(SETTINGS);
        let settings = match std::fs::read_to_string(&path) {
            Ok(text) => Settings::parse(&text, &path)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Settings::default(),
            Err(e) => return Err(Error::io(OPERATION, &path, &e)),
        };
        let path = directory.join(VOCABULARY);
        let bytes = std::fs::read(&path).map_err(|e| Error::io(OPERATION, &path, &e))?;
        let name = path.display().to_string();
        let vocabulary = Vocabulary::parse(&bytes).and_then(Vocabulary::new).map_err(|e| e.about(name))?;
        let segmenter = match &settings.dictionary {
            Dictionary::Ipadic => Segmenter::ipadic()?,
            Dictionary::File(file) => Arc::new(Segmenter::open(&directory.join(file))?),
        };
        Tokenizer::of(vocabulary, settings, segmenter)
    }

    /// A tokenizer of these tokens; `[DEC]` comes after them. A dictionary file is looked for from where the program
    /// runs.
    pub fn new(vocabulary: Vec<String>, settings: Settings) -> Result<Tokenizer> {
        let segmenter = match &settings.dictionary {
            Dictionary::Ipadic => Segmenter::ipadic()?,
            Dictionary::File(file) => Arc::new(Segmenter::open(Path::new(file))?),
        };
        Tokenizer::of(Vocabulary::new(vocabulary)?, settings, segmenter)
    }

    fn of(vocabulary: Vocabulary, settings: Settings, segmenter: Arc<Segmenter>) -> Result<Tokenizer> {
        let subword = Subword::new(settings.subwords, &vocabulary);
        Ok(Tokenizer { vocabulary, settings, segmenter, subword })
    }

    /// Writes `vocab.txt`, `tokenizer_config.json` and, if it is not IPADIC, the dictionary into a directory.
    pub fn save(&self, directory: &Path) -> Result<()> {
        let mut settings = self.settings.clone();
        if let Dictionary::File(file) = &mut settings.dictionary {
            let name = Path::new(file.as_str()).file_name().and_then(|n| n.to_str());
            *file = name.unwrap_or("dictionary.zst").to_string();
            write(&directory.join(file.as_str()), self.segmenter.file())?;
        }
        write(&directory.join(SETTINGS), settings.to_text().as_bytes())?;
        write(&directory.join(VOCABULARY), self.vocabulary.to_text().as_bytes())
    }

    /// Tokens, `[DEC]` with them.
    #[expect(clippy::len_without_is_empty, reason = "a vocabulary has at least its special tokens")]
    pub fn len(&self) -> usize {
        self.vocabulary.len()
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn special(&self) -> Special {
        self.vocabulary.special()
    }

    pub fn token(&self, id: u32) -> Option<&str> {
        self.vocabulary.token(id)
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        self.vocabulary.id(token)
    }

    /// The words of a text, special tokens not looked for.
    pub fn words(&self, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        self.each_word(text, |word| words.push(word.to_string()));
        words
    }

    /// The tokens of a text, without `[CLS]` and `[SEP]` around them.
    pub fn tokens(&self, text: &str) -> Vec<String> {
        let mut ids = Vec::new();
        self.push_ids(text, &mut ids);
        ids.iter().filter_map(|&id| self.token(id)).map(String::from).collect()
    }

    /// `[CLS]`, the ids of a text, `[SEP]`.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let special = self.special();
        let mut ids = vec![special.cls];
        self.push_ids(text, &mut ids);
        ids.push(special.sep);
        ids
    }

    /// The ids of a caption as training sees them: cleaned, at most `max_txt_len` with `[CLS]` and `[SEP]`, no padding.
    pub fn caption(&self, caption: &str, max_txt_len: usize) -> Vec<u32> {
        let mut ids = self.encode(&clean_caption(caption));
        if ids.len() > max_txt_len.max(2) {
            ids.truncate(max_txt_len.max(2) - 1);
            ids.push(self.special().sep);
        }
        ids
    }

    /// Text of ids: special tokens (`[UNK]` too) dropped, tokens joined by spaces, continuations attached, and spaces
    /// before English punctuation removed.
    pub fn decode(&self, ids: &[u32]) -> String {
        let special = self.special();
        let kept = ids.iter().filter(|id| !special.contains(**id));
        // Like Python, which knows no token of an id beyond the last.
        let tokens: Vec<&str> = kept.map(|&id| self.token(id).unwrap_or("[UNK]")).collect();
        let joined = tokens.join(" ").replace(" ##", "");
        let mut text = joined.trim_matches(is_white).to_string();
        for (from, to) in [
            (" .", "."),
            (" ?", "?"),
            (" !", "!"),
            (" ,", ","),
            (" ' ", "'"),
            (" n't", "n't"),
            (" 'm", "'m"),
            (" 's", "'s"),
            (" 've", "'ve"),
            (" 're", "'re"),
        ] {
            if text.contains(from) {
                text = text.replace(from, to);
            }
        }
        text
    }

    fn push_ids(&self, text: &str, ids: &mut Vec<u32>) {
        for part in parts(text) {
            match part {
                Part::Special(token) => ids.extend(self.id(token)),
                Part::Text(text) => {
                    self.each_word(text, |word| self.subword.push(word, &self.vocabulary, ids))
                }
            }
        }
    }

    fn each_word(&self, text: &str, word: impl FnMut(&str)) {
        if is_nfkc_quick(text.chars()) == IsNormalized::Yes {
            self.segmenter.words(text, word);
        } else {
            self.segmenter.words(&text.nfkc().collect::<String>(), word);
        }
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(&RealDisk, path, bytes.len() as u64, |file| file.write_all(bytes))
}

/// Cuts the special tokens out of a text.
fn parts(text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut after_special = false;
    let mut rest = text;
    loop {
        let next = find_special(rest);
        let mut piece = next.map_or(rest, |(at, _)| rest.get(..at).unwrap_or_default());
        if after_special {
            piece = piece.trim_start_matches(is_white);
        }
        if next.is_some() {
            piece = piece.trim_end_matches(is_white);
        }
        if !piece.is_empty() {
            parts.push(Part::Text(piece));
        }
        let Some((at, token)) = next else { return parts };
        parts.push(Part::Special(token));
        after_special = true;
        rest = rest.get(at + token.len()..).unwrap_or_default();
    }
}

fn find_special(text: &str) -> Option<(usize, &'static str)> {
    text.match_indices('[').find_map(|(at, _)| {
        let here = text.get(at..)?;
        SPECIAL.into_iter().chain([DEC]).find(|token| here.starts_with(token)).map(|token| (at, token))
    })
}
