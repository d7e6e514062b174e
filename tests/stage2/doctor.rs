//! `doctor --llm`: what the tokenizer of a language model makes of captions, beside what sentencepiece recorded of them.

use super::{Place, world};
use qformer::text::clean_caption;
use serde_json::{Value, json};

/// Recorded lines whose text is as LAVIS cleans it, and their ids by sentencepiece.
fn recorded() -> Vec<(String, Vec<u64>)> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/text/llm/unigram-nfkc.model.jsonl");
    let lines = std::fs::read_to_string(file).unwrap();
    let line = |line: &str| {
        let v: Value = serde_json::from_str(line).unwrap();
        let ids = v["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        (v["text"].as_str().unwrap().to_owned(), ids)
    };
    let usable = |(text, ids): &(String, Vec<u64>)| {
        let plain = text.chars().all(|c| !c.is_control()) && text.trim() == text;
        plain && !ids.is_empty() && clean_caption(text) == *text
    };
    lines.lines().map(line).filter(usable).collect()
}

/// A tokenizer without byte fallback, which opens every text.
fn tokenizer(place: &Place, name: &str) {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/text/llm/unigram-nfkc.model");
    place.write(&format!("{name}/tokenizer.model"), std::fs::read(file).unwrap());
    let settings = r#"{"tokenizer_class":"LlamaTokenizer","bos_token":"<s>","eos_token":"</s>","unk_token":"<unk>","add_bos_token":true}"#;
    place.write(&format!("{name}/tokenizer_config.json"), settings);
}

fn finding(seen: &Value, what: &str) -> u64 {
    let all = seen["findings"].as_array().unwrap();
    all.iter().find(|f| f["what"] == what).unwrap_or_else(|| panic!("no {what} in {seen}"))["count"]
        .as_u64()
        .unwrap()
}

#[test]
fn captions_that_are_cut_and_pieces_that_are_unknown() {
    let place = Place { dir: tempfile::tempdir().unwrap() };
    tokenizer(&place, "llm");
    place.pictures("photos", 4);
    let lines = recorded();
    assert!(lines.len() > 40, "{}", lines.len());
    let entries: Vec<Value> = (lines.iter().enumerate())
        .map(|(i, (text, _))| json!({ "image": format!("p{:02}.png", i % 4), "caption": text, "image_id": i % 4 }))
        // Nothing but what LAVIS takes away.
        .chain([json!({ "image": "p00.png", "caption": "!!", "image_id": 0 })])
        .collect();
    place.write("captions.json", serde_json::to_string(&entries).unwrap());
    let ask = |more: &[&str]| -> Value {
        let base = ["doctor", "--images", "photos", "--captions", "captions.json", "--llm", "llm", "--json"];
        let ran = place.run(&[&base[..], more].concat());
        assert_eq!(ran.code, 3, "{}", ran.err);
        serde_json::from_str(&ran.out).unwrap()
    };
    let (tokens, unknown): (usize, usize) = lines
        .iter()
        .fold((0, 0), |(n, u), (_, ids)| (n + ids.len(), u + ids.iter().filter(|id| **id == 0).count()));
    let with_unknown = lines.iter().filter(|(_, ids)| ids.contains(&0)).count() as u64;
    assert!(with_unknown > 0, "nothing unknown in the recorded lines");
    for most in [8, 16, 40] {
        let seen = ask(&["--max-txt-len", &most.to_string()]);
        assert_eq!(
            (seen["tokens"].as_u64(), seen["unknown_tokens"].as_u64()),
            (Some(tokens as u64), Some(unknown as u64))
        );
        // An opening token and an end are read, too.
        let cut = lines.iter().filter(|(_, ids)| ids.len() + 2 > most).count() as u64;
        assert!(cut > 0);
        assert_eq!(finding(&seen, "captions longer than the model reads"), cut, "{most}");
        assert_eq!(finding(&seen, "captions with [UNK]"), with_unknown);
        assert_eq!(finding(&seen, "captions without any token"), 1);
    }
    // A prompt of n tokens takes n of them; 犬 as a prompt is ▁ and 犬, and the caption's own ▁ is gone.
    let seen = ask(&["--max-txt-len", "16", "--prompt", "犬"]);
    let behind = |ids: &[u64]| ids.len() - usize::from(ids[0] == 4) + 2 + 2 > 16;
    let cut = lines.iter().filter(|(text, ids)| !text.starts_with([' ', '▁']) && behind(ids)).count() as u64;
    let found = finding(&seen, "captions longer than the model reads");
    assert!(found.abs_diff(cut) <= lines.len() as u64 / 20, "{found} and {cut}");
}

/// One with byte fallback knows every character: what it lacks is three pieces of a byte each.
#[test]
fn a_tokenizer_with_bytes_knows_everything() {
    let place = world();
    let ask = [
        "doctor",
        "--images",
        "photos",
        "--captions",
        "captions.json",
        "--llm",
        "llm",
        "--json",
        "--batch",
        "2",
    ];
    let seen: Value = serde_json::from_str(&place.run(&ask).out).unwrap();
    assert_eq!(seen["unknown_tokens"].as_u64(), Some(0));
    let lines = place.ok(&["doctor", "--llm", "llm"]);
    assert!(lines.starts_with("llm: a whole language model, Llama: 2 layers"), "{lines}");
}
