//! Japanese text as transformers' `BertJapaneseTokenizer` has it, with LAVIS's `[DEC]`.
//!
//! Special tokens are cut out of the raw text and the text beside them loses its white space there; each piece
//! becomes NFKC and is cut into words by MeCab ([`segment`]), each word into tokens of the vocabulary: the longest
//! that fit, or characters. Nothing is lower-cased or left out.

mod check;
mod clean;
mod cursor;
#[cfg(test)]
mod hostile;
pub mod llm;
mod mecab;
pub mod segment;
mod settings;
mod subword;
mod train;
pub mod vocabulary;

pub use clean::{clean_caption, clean_text};
pub use settings::{Dictionary, Settings, Subwords};
pub use train::train as train_vocabulary;
pub use vocabulary::Special;

use crate::files::{RealDisk, folder_of, read_most, read_regular, write_atomic};
use crate::{Error, Result};
use clean::{clean_up_spaces, is_white};
use segment::Segmenter;
use std::path::{Component, Path};
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

const OPERATION: &str = "open the tokenizer";
const VOCABULARY: &str = "vocab.txt";
const SETTINGS: &str = "tokenizer_config.json";
/// The most bytes of each.
const MOST_VOCABULARY: u64 = 64 << 20;
const MOST_SETTINGS: u64 = 1 << 20;

/// A part of a raw text.
enum Part<'a> {
    Special(&'static str),
    Text(&'a str),
}

impl Tokenizer {
    /// The tokenizer of a model's directory: `vocab.txt`, and `tokenizer_config.json` if it is there. Models come from
    /// strangers: their files are regular ones, or links to such, and the dictionary that the settings name lies in the directory.
    pub fn open(directory: &Path) -> Result<Tokenizer> {
        let path = directory.join(VOCABULARY);
        Tokenizer::of_file(&path, &read_regular(&path, MOST_VOCABULARY, OPERATION)?)
    }

    /// The tokenizer of a `vocab.txt` by whatever name, and of a `tokenizer_config.json` if one lies beside it.
    pub fn open_vocabulary(path: &Path) -> Result<Tokenizer> {
        Tokenizer::of_file(path, &read_most(path, MOST_VOCABULARY, OPERATION)?)
    }

    fn of_file(path: &Path, vocabulary: &[u8]) -> Result<Tokenizer> {
        let (vocabulary, settings) = parse(path, vocabulary)?;
        Tokenizer::of(vocabulary, settings, folder_of(path))
    }

    /// A tokenizer of these tokens; `[DEC]` comes after them. A dictionary file is looked for from where the program
    /// runs.
    pub fn new(vocabulary: Vec<String>, settings: Settings) -> Result<Tokenizer> {
        Tokenizer::of(Vocabulary::new(vocabulary)?, settings, Path::new(""))
    }

    fn of(vocabulary: Vocabulary, settings: Settings, directory: &Path) -> Result<Tokenizer> {
        let segmenter = match &settings.dictionary {
            Dictionary::Ipadic => Segmenter::ipadic()?,
            Dictionary::File(file) => Arc::new(Segmenter::open(&directory.join(file))?),
        };
        let subword = Subword::new(settings.subwords, &vocabulary);
        Ok(Tokenizer { vocabulary, settings, segmenter, subword })
    }

    /// Writes `vocab.txt`, `tokenizer_config.json` and, if it is not IPADIC, the dictionary into a directory.
    pub fn save(&self, directory: &Path) -> Result<()> {
        if let Some(name) = self.dictionary_name() {
            write(&directory.join(name), self.segmenter.file())?;
        }
        write(&directory.join(SETTINGS), self.settings.beside().to_text().as_bytes())?;
        write(&directory.join(VOCABULARY), self.vocabulary.to_text().as_bytes())
    }

    /// blake3 of the tokens and of how text is cut into them; of a dictionary, its name counts.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.vocabulary, &self.settings)
    }

    /// blake3 of the dictionary's file; None of the one that is part of the program.
    pub fn dictionary_hash(&self) -> Option<String> {
        let own = matches!(self.settings.dictionary, Dictionary::File(_));
        own.then(|| blake3::hash(self.segmenter.file()).to_hex().to_string())
    }

    /// The name of the dictionary's file in a directory that this tokenizer is saved to.
    pub fn dictionary_name(&self) -> Option<&str> {
        self.settings.dictionary_name()
    }

    /// Tokens, `[DEC]` with them.
    #[expect(clippy::len_without_is_empty, reason = "a vocabulary has at least its special tokens")]
    pub fn len(&self) -> usize {
        self.vocabulary.len()
    }

    /// How it was made.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The ids of the special tokens.
    pub fn special(&self) -> Special {
        self.vocabulary.special()
    }

    /// The token of an id.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.vocabulary.token(id)
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.vocabulary.id(token)
    }

    /// The words of a text, special tokens not looked for.
    pub fn words(&self, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        each_word(&self.segmenter, text, |word| words.push(word.to_string()));
        words
    }

    /// Appends the ids of one word, special tokens not looked for.
    pub fn push_word(&self, word: &str, ids: &mut Vec<u32>) {
        self.subword.push(word, &self.vocabulary, ids);
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
        self.cut(self.encode(&clean_caption(caption)), max_txt_len)
    }

    /// Shortens the ids of a text to `most` (at least 2), with `[SEP]` as the last of them.
    pub fn cut(&self, mut ids: Vec<u32>, most: usize) -> Vec<u32> {
        if ids.len() > most.max(2) {
            ids.truncate(most.max(2) - 1);
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
        clean_up_spaces(joined.trim_matches(is_white))
    }

    fn push_ids(&self, text: &str, ids: &mut Vec<u32>) {
        for part in parts(text) {
            match part {
                Part::Special(token) => ids.extend(self.id(token)),
                Part::Text(text) => {
                    each_word(&self.segmenter, text, |word| self.push_word(word, ids));
                }
            }
        }
    }
}

/// The fingerprint of a directory's tokenizer and its number of tokens; its dictionary need not be there.
pub fn fingerprint_of(directory: &Path) -> Result<(String, usize)> {
    let path = directory.join(VOCABULARY);
    let (vocabulary, settings) = parse(&path, &read_regular(&path, MOST_VOCABULARY, OPERATION)?)?;
    Ok((fingerprint(&vocabulary, &settings), vocabulary.len()))
}

fn fingerprint(vocabulary: &Vocabulary, settings: &Settings) -> String {
    let mut hash = blake3::Hasher::new();
    let tokens = (0..vocabulary.len() as u32).filter_map(|id| vocabulary.token(id));
    for text in tokens.chain([settings.beside().to_text().as_str()]) {
        hash.update(text.as_bytes());
        hash.update(b"\n");
    }
    hash.finalize().to_hex().to_string()
}

/// The vocabulary in these bytes, and the settings that lie beside its file.
fn parse(path: &Path, vocabulary: &[u8]) -> Result<(Vocabulary, Settings)> {
    let beside = folder_of(path).join(SETTINGS);
    let settings = match beside.symlink_metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Settings::default(),
        _ => {
            let bytes = read_regular(&beside, MOST_SETTINGS, OPERATION)?;
            let text = String::from_utf8(bytes).map_err(|e| Error::file(OPERATION, &beside, "UTF-8", e))?;
            Settings::parse(&text, &beside)?
        }
    };
    if let Dictionary::File(file) = &settings.dictionary {
        let inside = |part: Component| matches!(part, Component::Normal(_));
        if file.is_empty() || file.contains('\0') || !Path::new(file).components().all(inside) {
            let expected = "mecab_dic: ipadic, or a dictionary file in the same folder";
            return Err(Error::file(OPERATION, &beside, expected, file)
                .fix("put the file beside vocab.txt and give its name alone"));
        }
    }
    let name = path.display().to_string();
    let vocabulary = Vocabulary::parse(vocabulary).and_then(Vocabulary::new).map_err(|e| e.about(name))?;
    Ok((vocabulary, settings))
}

/// The words of a text by IPADIC, special tokens not looked for.
pub fn ipadic_words(text: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    each_word(&*Segmenter::ipadic()?, text, |word| words.push(word.to_string()));
    Ok(words)
}

/// The words of a text that holds no special token, in order.
fn each_word(segmenter: &Segmenter, text: &str, word: impl FnMut(&str)) {
    if is_nfkc_quick(text.chars()) == IsNormalized::Yes {
        segmenter.words(text, word);
    } else {
        segmenter.words(&text.nfkc().collect::<String>(), word);
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
