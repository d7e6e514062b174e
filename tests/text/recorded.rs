//! Lines recorded from transformers, every field of every line.

use qformer::text::{Settings, Tokenizer, clean_caption, vocabulary::Vocabulary};
use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Line {
    text: String,
    words: Option<Vec<String>>,
    tokens: Option<Vec<String>>,
    ids: Vec<u32>,
    decoded: Option<String>,
    pre: Option<String>,
    ids32: Option<Vec<u32>>,
    mask32: Option<Vec<u32>>,
}

fn check(tokenizer: &Tokenizer, line: &Line) {
    let text = &line.text;
    let input = match &line.pre {
        Some(pre) => {
            assert_eq!(&clean_caption(text), pre, "cleaned {text:?}");
            pre
        }
        None => text,
    };
    assert_eq!(tokenizer.encode(input), line.ids, "ids of {text:?}");
    if let Some(words) = &line.words {
        assert_eq!(&tokenizer.words(text), words, "words of {text:?}");
    }
    if let Some(tokens) = &line.tokens {
        assert_eq!(&tokenizer.tokens(text), tokens, "tokens of {text:?}");
    }
    if let Some(decoded) = &line.decoded {
        assert_eq!(&tokenizer.decode(&line.ids), decoded, "decoded {text:?}");
    }
    if let (Some(ids), Some(mask)) = (&line.ids32, &line.mask32) {
        let ours = tokenizer.caption(text, 32);
        let kept: Vec<u32> = ids.iter().zip(mask).filter(|&(_, &m)| m == 1).map(|(&id, _)| id).collect();
        assert_eq!(ours, kept, "cut ids of {text:?}");
    }
}

fn check_file(tokenizer: &Tokenizer, path: &Path) -> usize {
    let text = std::fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = text.strip_suffix('\n').unwrap_or(&text).split('\n').collect();
    for line in &lines {
        check(tokenizer, &serde_json::from_str(line).unwrap());
    }
    lines.len()
}

#[test]
fn equals_every_shared_line() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/tokenizer");
    if !shared.exists() {
        println!("SKIPPED: no {}", shared.display());
        return;
    }
    let vocabulary = Vocabulary::parse(&std::fs::read(shared.join("vocab.txt")).unwrap()).unwrap();
    let tokenizer = Tokenizer::new(vocabulary, Settings::default()).unwrap();
    let names = ["reference.jsonl", "hard.jsonl", "captions.jsonl", "hard_captions.jsonl"];
    let files: Vec<PathBuf> = names.iter().map(|n| shared.join(n)).collect();
    let lines: usize = files.iter().map(|f| check_file(&tokenizer, f)).sum();
    assert_eq!(lines, 2 * 1552 + 2 * 296);
}
