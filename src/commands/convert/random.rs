//! A tokenizer for a model of random numbers: special tokens, then single characters until the vocabulary is full.

use super::write::file;
use crate::Result;
use std::path::Path;

const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// `vocab.txt` of `vocab - 1` lines ([DEC] is added when it is opened) and `tokenizer_config.json`.
pub fn tokenizer(folder: &Path, vocab: usize) -> Result<()> {
    // hiragana, katakana, then ideographs; and each of them as a continuation
    let characters =
        || ('\u{3041}'..='\u{3096}').chain('\u{30a1}'..='\u{30fa}').chain('\u{4e00}'..='\u{9fff}');
    let whole = characters().map(String::from);
    let continued = characters().map(|c| format!("##{c}"));
    let unused = (0..).map(|i| format!("[unused{i}]"));
    let tokens = SPECIAL.into_iter().map(String::from).chain(whole.chain(continued)).chain(unused);
    let lines: Vec<String> = tokens.take(vocab.saturating_sub(1)).collect();
    file(&folder.join("vocab.txt"), (lines.join("\n") + "\n").as_bytes())?;
    let settings =
        r#"{"do_lower_case": false, "word_tokenizer_type": "mecab", "subword_tokenizer_type": "wordpiece"}"#;
    file(&folder.join("tokenizer_config.json"), settings.as_bytes())
}
