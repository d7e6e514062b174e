//! Tokenizers of language models, against lines that sentencepiece 0.2.3 and tokenizers 0.23.3 have cut
//! (`record_llm.py`); and folders of language models as users have them.

use qformer::parity::text::run_llm;
use qformer::text::llm::LlmTokenizer;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Compares every recorded file of a folder; how many tokenizers and lines that were.
fn all_equal(folder: &Path) -> (usize, usize) {
    let (mut tokenizers, mut lines) = (0, 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if !path.extension().is_some_and(|e| e == "model" || e == "json") {
            continue;
        }
        let tokenizer = LlmTokenizer::open_file(&path).unwrap();
        let named = |ending: &str| PathBuf::from(format!("{}{ending}", path.display()));
        let recorded = [named(".jsonl"), path.with_extension("jsonl")].into_iter().find(|p| p.exists());
        let report = run_llm(&recorded.unwrap(), &tokenizer).unwrap();
        assert!(report.pass, "{}: {report}", path.display());
        assert!(report.compared["normalized"] == report.lines && report.compared["decoded"] == report.lines);
        if let Ok(drawn) = std::fs::read_to_string(path.with_extension("ids.jsonl"))
            && path.extension().is_some_and(|e| e == "model")
        {
            for line in drawn.lines() {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                let ids: Vec<u32> = serde_json::from_value(line["ids"].clone()).unwrap();
                assert_eq!(tokenizer.decode(&ids).unwrap(), line["decoded"], "{}: {ids:?}", path.display());
            }
        }
        (tokenizers, lines) = (tokenizers + 1, lines + report.lines);
    }
    (tokenizers, lines)
}

#[test]
fn llm_equals_every_recorded_line() {
    let (tokenizers, lines) = all_equal(&folder("tests/text/llm"));
    assert_eq!(tokenizers, 17);
    assert!(lines >= 17 * 100, "{lines} lines");
    // A larger recording of one's own.
    if let Some(more) = std::env::var_os("QFORMER_TOKENIZERS") {
        let (tokenizers, lines) = all_equal(Path::new(&more));
        println!("{tokenizers} tokenizers, {lines} lines equal in {}", more.display());
        assert!(tokenizers > 0);
    }
}

#[test]
fn llm_equals_every_shared_line() {
    let shared = folder("../shared/tokenizer-llm");
    if !shared.exists() {
        println!("SKIPPED, nothing compared: no {}", shared.display());
        return;
    }
    assert_eq!(all_equal(&shared), (3, 3 * 1849));
}

#[test]
fn parity_sees_every_difference_of_an_llm_line() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("lines.jsonl");
    let tokenizer = LlmTokenizer::open_file(&folder("tests/text/llm/bpe-unused.model")).unwrap();
    let good = std::fs::read_to_string(folder("tests/text/llm/bpe-unused.model.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(good.lines().last().unwrap()).unwrap();
    for (key, wrong) in
        [("normalized", "x".into()), ("ids", vec![0].into()), ("decoded", serde_json::Value::from("x"))]
    {
        let mut changed = line.clone();
        changed[key] = wrong;
        std::fs::write(&file, format!("{line}\n{changed}\n")).unwrap();
        let report = run_llm(&file, &tokenizer).unwrap();
        assert!(!report.pass && report.lines_that_differ == 1, "{key}");
        assert!(report.differences.iter().any(|d| d.name == key && d.line == 2), "{key}");
    }
    for (broken, named) in [
        ("", "line 1: nothing"),
        (r#"{"text":"犬"}"#, "nothing to compare"),
        (r#"{"text":"犬","words":[]}"#, "unknown field `words`"),
        (r#"{"text":"犬","ids":[-1]}"#, "line 1"),
    ] {
        std::fs::write(&file, broken).unwrap();
        let error = run_llm(&file, &tokenizer).err().unwrap().to_string();
        assert!(error.contains(named), "{broken}: {error}");
    }
}

#[test]
fn parity_of_a_tokenizer_by_the_command() {
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_qformer"));
        command.arg("parity").args(arguments).current_dir(folder("tests/text/llm")).output().unwrap()
    };
    let output = run(&["--tokenizer", "char.model", "char.model.jsonl"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains("normalized") && said.contains("all equal"), "{said}");
    assert!(run(&["--quiet", "--tokenizer", "bytes-qwen.json", "bytes-qwen.json.jsonl"]).status.success());
    // Lines of another tokenizer differ; files that are no tokenizer are refused, and so is another's option.
    assert_eq!(run(&["--tokenizer", "char.model", "word.model.jsonl"]).status.code(), Some(5));
    assert_eq!(run(&["--tokenizer", "char.model.jsonl", "char.model.jsonl"]).status.code(), Some(3));
    assert_eq!(run(&["--tokenizer", "absent.model", "char.model.jsonl"]).status.code(), Some(3));
    assert_eq!(
        run(&["--tokenizer", "char.model", "--vocab", "../vocab.txt", "char.model.jsonl"]).status.code(),
        Some(2)
    );
}

/// A folder of a language model: a recorded tokenizer under the name that users have it by, and its settings.
fn model(tokenizer: &str, name: &str, config: &str) -> TempDir {
    let place = tempfile::tempdir().unwrap();
    std::fs::copy(folder("tests/text/llm").join(tokenizer), place.path().join(name)).unwrap();
    if !config.is_empty() {
        std::fs::write(place.path().join("tokenizer_config.json"), config).unwrap();
    }
    place
}

/// Names of the opening, end and padding token of a folder.
fn roles(place: &TempDir) -> (Option<u32>, Option<u32>, Option<u32>) {
    let t = LlmTokenizer::open(place.path()).unwrap();
    (t.opening(), t.end(), t.padding())
}

#[test]
fn opening_and_end_tokens_are_those_of_the_files() {
    // The trained models have <unk> 0, <s> 1, </s> 2; what transformers does with each configuration is in settings.rs.
    let spiece = |config: &str| model("bpe-llama.model", "tokenizer.model", config);
    assert_eq!(roles(&spiece(r#"{"add_bos_token": true}"#)), (Some(1), Some(2), Some(2)));
    assert_eq!(
        roles(&spiece(r#"{"add_bos_token": false, "tokenizer_class": "LlamaTokenizer"}"#)),
        (None, Some(2), Some(2))
    );
    assert_eq!(
        roles(&spiece(r#"{"tokenizer_class": "LlamaTokenizer", "pad_token": "<unk>"}"#)),
        (Some(1), Some(2), Some(0))
    );
    assert_eq!(
        roles(&model("unigram-nfkc.model", "spiece.model", r#"{"tokenizer_class": "T5Tokenizer"}"#)).0,
        None
    );
    assert_eq!(
        roles(&spiece(r#"{"add_bos_token": true, "bos_token": "</s>", "eos_token": {"content": "<s>"}}"#)),
        (Some(2), Some(1), Some(1))
    );

    // special_tokens_map.json is the stronger, unless the configuration lists the added tokens itself.
    let place = spiece(r#"{"add_bos_token": false, "eos_token": "</s>"}"#);
    std::fs::write(place.path().join("special_tokens_map.json"), r#"{"eos_token": "<s>"}"#).unwrap();
    assert_eq!(roles(&place).1, Some(1));
    let config = r#"{"add_bos_token": false, "eos_token": "</s>", "pad_token": "<PAD>", "added_tokens_decoder": {"600": {"content": "<PAD>"}}}"#;
    std::fs::write(place.path().join("tokenizer_config.json"), config).unwrap();
    assert_eq!(roles(&place), (None, Some(2), Some(600)));
    let tokenizer = LlmTokenizer::open(place.path()).unwrap();
    assert_eq!(tokenizer.len(), 601);
    assert!(tokenizer.check_fits(601).is_ok());
    assert!(tokenizer.check_fits(600).unwrap_err().to_string().contains("vocab_size"));
    assert_eq!(tokenizer.decode(&[2, 600, 700]).unwrap(), "");

    // Spaces before punctuation go, but for Llama.
    let ids = tokenizer.encode("a dog . it 's").unwrap();
    assert_eq!(tokenizer.decode(&ids).unwrap(), "a dog. it's");
    let llama = LlmTokenizer::open(spiece(r#"{"tokenizer_class": "LlamaTokenizer"}"#).path()).unwrap();
    assert_eq!(llama.decode(&ids).unwrap(), "a dog . it 's");

    // A tokenizer.json says it in its post-processor; add_bos_token is the stronger.
    let end = r#""eos_token": "<|endoftext|>""#;
    let json = |name: &str, more: &str| model(name, "tokenizer.json", &format!("{{{end}{more}}}"));
    assert_eq!(roles(&json("bytes-llama3-template.json", "")).0, Some(0));
    assert_eq!(roles(&json("bytes-llama3-template.json", r#", "add_bos_token": false"#)).0, None);
    assert_eq!(roles(&json("bytes-qwen.json", "")).0, None);
    assert_eq!(
        roles(&json("bytes-qwen.json", r#", "add_bos_token": true, "bos_token": "<|endoftext|>""#)).0,
        Some(0)
    );
}

#[test]
fn what_a_folder_lacks_is_named() {
    let error = |place: &TempDir| LlmTokenizer::open(place.path()).err().unwrap();
    let empty = tempfile::tempdir().unwrap();
    let said = error(&empty);
    assert!(said.exit_code() == 3 && said.to_string().contains("tokenizer.model"), "{said}");
    for (tokenizer, name, config, named) in [
        ("bytes-qwen.json", "tokenizer.json", "", "eos_token"),
        ("bytes-qwen.json", "tokenizer.json", r#"{"eos_token": "</s>"}"#, "\"</s>\""),
        ("bytes-qwen.json", "tokenizer.json", r#"{"eos_token": 3}"#, "eos_token: a token"),
        (
            "bytes-qwen.json",
            "tokenizer.json",
            r#"{"eos_token": "<|endoftext|>", "add_bos_token": true}"#,
            "bos_token",
        ),
        ("bytes-qwen.json", "tokenizer.json", r#"{"add_bos_token": "yes"}"#, "true or false"),
        ("bytes-qwen.json", "tokenizer.json", "[]", "tokenizer_config.json"),
        ("bytes-qwen.json", "tokenizer.model", r#"{"add_bos_token": true}"#, "tokenizer.model"),
        ("char.model", "tokenizer.json", r#"{"add_bos_token": true}"#, "tokenizer.json"),
        ("char.model", "tokenizer.model", "", "add_bos_token"),
        ("char.model", "tokenizer.model", r#"{"tokenizer_class": "OtherTokenizer"}"#, "add_bos_token"),
        ("char.model", "tokenizer.model", r#"{"add_bos_token": true, "bos_token": "<bos>"}"#, "\"<bos>\""),
        ("char.model", "tokenizer.model", r#"{"added_tokens_decoder": {"x": "y"}}"#, "added_tokens_decoder"),
    ] {
        let said = error(&model(tokenizer, name, config));
        assert!(said.exit_code() == 3 && said.to_string().contains(named), "{config}: {said}");
    }
    let place = model("char.model", "tokenizer.model", r#"{"add_bos_token": true}"#);
    std::fs::write(place.path().join("added_tokens.json"), r#"{"<x>": -1}"#).unwrap();
    assert!(error(&place).to_string().contains("added_tokens.json"));
}

#[test]
fn vocabulary_and_merges_of_gpt2() {
    // The same vocabulary and merges as in the recorded tokenizer.json, as OPT's folder has them.
    let text = std::fs::read_to_string(folder("tests/text/llm/bytes-gpt2.json")).unwrap();
    let whole: serde_json::Value = serde_json::from_str(&text).unwrap();
    let place = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(place.path().join(name), text).unwrap();
    write("vocab.json", whole["model"]["vocab"].to_string());
    let merges = whole["model"]["merges"].as_array().unwrap().iter();
    let merges: Vec<String> =
        merges.map(|m| format!("{} {}\n", m[0].as_str().unwrap(), m[1].as_str().unwrap())).collect();
    write("merges.txt", format!("#version: 0.2\n{}", merges.concat()));
    let token = r#""<|endoftext|>""#;
    let config = format!(
        r#"{{"tokenizer_class": "GPT2Tokenizer", "add_bos_token": true, "bos_token": {token}, "eos_token": {token}}}"#
    );
    write("tokenizer_config.json", config);
    let tokenizer = LlmTokenizer::open(place.path()).unwrap();
    assert_eq!((tokenizer.opening(), tokenizer.end()), (Some(0), Some(0)));
    let recorded = std::fs::read_to_string(folder("tests/text/llm/bytes-gpt2.json.jsonl")).unwrap();
    let mut compared = 0;
    for line in recorded.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()) {
        let text = line["text"].as_str().unwrap();
        if text.contains("<cap>") {
            continue; // added to the other file by hand
        }
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(serde_json::to_value(&ids).unwrap(), line["ids"], "{text:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), line["decoded"].as_str().unwrap());
        compared += 1;
    }
    assert!(compared > 90);
    let end = tokenizer.encode("\n").unwrap();
    let newline = tokenizer.ending_with_line_feed().unwrap();
    assert_eq!(newline.end().into_iter().collect::<Vec<_>>(), end);
    assert_eq!(newline.row("", "犬", 99).unwrap().ids.last(), end.last());

    for (name, text, named) in [
        ("merges.txt", "a b c\n", "line 1"),
        ("merges.txt", "犬 猫\n", "merges"),
        ("vocab.json", "[]", "vocab.json"),
    ] {
        let before = std::fs::read(place.path().join(name)).unwrap();
        write(name, text.into());
        let said = LlmTokenizer::open(place.path()).err().unwrap().to_string();
        assert!(said.contains(named), "{said}");
        std::fs::write(place.path().join(name), before).unwrap();
    }
}

#[test]
fn rows_are_cut_on_the_right_and_counted() {
    let place = model("bpe-llama.model", "tokenizer.model", r#"{"add_bos_token": true}"#);
    let tokenizer = LlmTokenizer::open(place.path()).unwrap();
    let (prompt, caption) = ("画像の説明:", "犬が走っている");
    let text = tokenizer.encode(&format!("{prompt}{caption}")).unwrap();
    let whole = tokenizer.row(prompt, caption, 99).unwrap();
    assert_eq!(whole.ids, [&[1], &text[..], &[2]].concat());
    assert_eq!((whole.total, whole.is_cut(), whole.unknown), (text.len() + 2, false, 0));
    assert_eq!(whole.prompt, tokenizer.encode(prompt).unwrap().len() + 1);
    assert_eq!(tokenizer.row("", caption, 99).unwrap().prompt, 0);
    // The end goes first.
    let cut = tokenizer.row(prompt, caption, whole.total - 2).unwrap();
    assert_eq!(cut.ids[..], whole.ids[..whole.total - 2]);
    assert!(cut.is_cut() && cut.total == whole.total);
    let said = tokenizer.row(prompt, caption, whole.prompt).unwrap_err();
    assert!(said.exit_code() == 2 && said.to_string().contains("max_txt_len"), "{said}");
    // A character of three bytes that no piece has.
    assert_eq!(tokenizer.row("", "龘", 99).unwrap().bytes, 3);
    let unknown = model("char.model", "tokenizer.model", r#"{"add_bos_token": true}"#);
    let row = LlmTokenizer::open(unknown.path()).unwrap().row("", "犬龘犬", 99).unwrap();
    assert_eq!((row.unknown, row.bytes), (1, 0));
}
