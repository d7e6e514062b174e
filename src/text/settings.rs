//! The keys of `tokenizer_config.json` that decide how text is cut.

use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::Path;

const OPERATION: &str = "read the tokenizer's settings";
/// The tokenizer of transformers that this is.
const CLASS: &str = "BertJapaneseTokenizer";

/// What words are cut into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Subwords {
    /// By the longest piece that the vocabulary has.
    #[default]
    WordPiece,
    /// Into single characters.
    Character,
}

/// How text is cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// How words are cut further.
    pub subwords: Subwords,
    /// What words are found with.
    pub dictionary: Dictionary,
}

/// The dictionary that words are found with (`mecab_kwargs.mecab_dic`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Dictionary {
    /// The one that is part of the program.
    #[default]
    Ipadic,
    /// Another MeCab dictionary, as `qformer dictionary` makes it: a file, relative to the model's directory.
    File(String),
}

impl Dictionary {
    fn named(name: &str) -> Dictionary {
        match name {
            "ipadic" => Dictionary::Ipadic,
            "unidic_lite" | "unidic" => Dictionary::File(format!("{name}.zst")),
            path => Dictionary::File(path.into()),
        }
    }
}

// Keys beyond these are Python's business.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Keys {
    tokenizer_class: Option<String>,
    word_tokenizer_type: Option<String>,
    subword_tokenizer_type: Option<String>,
    do_lower_case: Option<bool>,
    do_word_tokenize: Option<bool>,
    do_subword_tokenize: Option<bool>,
    mecab_kwargs: Option<Mecab>,
    unk_token: Value,
    sep_token: Value,
    pad_token: Value,
    cls_token: Value,
    mask_token: Value,
    bos_token: Value,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Mecab {
    mecab_dic: Option<String>,
    mecab_option: Option<String>,
    do_lower_case: Option<bool>,
    normalize_text: Option<bool>,
}

impl Settings {
    /// The settings in the text of a `tokenizer_config.json`.
    pub fn parse(text: &str, path: &Path) -> Result<Settings> {
        // By way of an object, since serde would take a list for the keys in order.
        let keys: Keys = serde_json::from_str::<serde_json::Map<_, _>>(text)
            .and_then(|object| serde_json::from_value(Value::Object(object)))
            .map_err(|e| Error::file(OPERATION, path, "tokenizer_config.json of BertJapaneseTokenizer", e))?;
        let refuse = |key: &str, expected: &str, got: &str| {
            Err(Error::file(OPERATION, path, format!("{key} {expected}"), got).fix(
                "only MeCab's words with their case kept are known: use a model that was trained on them",
            ))
        };
        let mecab = keys.mecab_kwargs.unwrap_or_default();
        match keys.tokenizer_class.as_deref() {
            None | Some(CLASS) => {}
            Some(other) => return refuse("tokenizer_class", CLASS, other),
        }
        match keys.word_tokenizer_type.as_deref() {
            None | Some("mecab") => {}
            Some(other) => return refuse("word_tokenizer_type", "mecab", other),
        }
        let subwords = match keys.subword_tokenizer_type.as_deref() {
            None | Some("wordpiece") => Subwords::WordPiece,
            Some("character") => Subwords::Character,
            Some(other) => return refuse("subword_tokenizer_type", "wordpiece or character", other),
        };
        if keys.do_lower_case == Some(true) || mecab.do_lower_case == Some(true) {
            return refuse("do_lower_case", "false", "true");
        }
        for (key, value) in [
            ("do_word_tokenize", keys.do_word_tokenize),
            ("do_subword_tokenize", keys.do_subword_tokenize),
            ("normalize_text", mecab.normalize_text),
        ] {
            if value == Some(false) {
                return refuse(key, "true", "false");
            }
        }
        if let Some(option) = mecab.mecab_option.filter(|o| !o.trim().is_empty()) {
            return refuse("mecab_option", "none", &option);
        }
        for (key, value, token) in [
            ("unk_token", keys.unk_token, "[UNK]"),
            ("sep_token", keys.sep_token, "[SEP]"),
            ("pad_token", keys.pad_token, "[PAD]"),
            ("cls_token", keys.cls_token, "[CLS]"),
            ("mask_token", keys.mask_token, "[MASK]"),
            ("bos_token", keys.bos_token, "[DEC]"),
        ] {
            // Python writes a token as its text or as an object around it.
            let text = value.get("content").unwrap_or(&value);
            if !text.is_null() && text != token {
                return refuse(key, token, &text.to_string());
            }
        }
        if keys.word_tokenizer_type.is_none() {
            return refuse("word_tokenizer_type", "mecab", "none, which transformers takes for basic");
        }
        let dictionary = mecab.mecab_dic.as_deref().map(Dictionary::named).unwrap_or_default();
        Ok(Settings { subwords, dictionary })
    }

    /// What the dictionary's file is called where it lies beside the vocabulary.
    pub fn dictionary_name(&self) -> Option<&str> {
        let Dictionary::File(file) = &self.dictionary else { return None };
        Some(Path::new(file).file_name().and_then(|n| n.to_str()).unwrap_or("dictionary.zst"))
    }

    /// These settings, with the dictionary's file beside the vocabulary.
    pub fn beside(&self) -> Settings {
        let dictionary = self.dictionary_name().map(|name| Dictionary::File(name.into()));
        Settings { dictionary: dictionary.unwrap_or_default(), ..self.clone() }
    }

    /// The text of a `tokenizer_config.json`.
    pub fn to_text(&self) -> String {
        let subwords = match self.subwords {
            Subwords::WordPiece => "wordpiece",
            Subwords::Character => "character",
        };
        let dictionary = match &self.dictionary {
            Dictionary::Ipadic => "ipadic",
            Dictionary::File(path) => path,
        };
        let keys = json!({
            "tokenizer_class": CLASS,
            "do_lower_case": false,
            "word_tokenizer_type": "mecab",
            "subword_tokenizer_type": subwords,
            "mecab_kwargs": { "mecab_dic": dictionary },
        });
        format!("{keys:#}\n")
    }
}
