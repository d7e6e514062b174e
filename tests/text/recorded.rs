//! Lines recorded from transformers 4.30.2 with fugashi 1.5.2 and ipadic 1.0.0 (`record_transformers.py`).

use qformer::parity::text;
use qformer::text::{Settings, Subwords, Tokenizer};
use std::path::{Path, PathBuf};

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Every value of every line; the number of lines.
fn all_equal(file: &Path, tokenizer: &Tokenizer) -> usize {
    let report = text::run(file, tokenizer).unwrap();
    assert!(report.pass, "{report}");
    report.lines
}

#[test]
fn equals_every_recorded_line() {
    let own = folder("tests/text");
    let pieces = Tokenizer::open_vocabulary(&own.join("vocab.txt")).unwrap();
    assert_eq!(all_equal(&own.join("wordpiece.jsonl"), &pieces), 285);
    assert_eq!(all_equal(&own.join("captions.jsonl"), &pieces), 155);

    let vocabulary = std::fs::read_to_string(own.join("vocab.txt")).unwrap();
    let vocabulary = vocabulary.lines().map(String::from).collect();
    let settings = Settings { subwords: Subwords::Character, ..Settings::default() };
    let characters = Tokenizer::new(vocabulary, settings).unwrap();
    assert_eq!(all_equal(&own.join("character.jsonl"), &characters), 285);
}

#[test]
fn equals_every_shared_line() {
    let shared = folder("../shared/tokenizer");
    if !shared.exists() {
        println!("SKIPPED, nothing compared: no {}", shared.display());
        return;
    }
    let tokenizer = Tokenizer::open(&shared).unwrap();
    let names = ["reference.jsonl", "hard.jsonl", "captions.jsonl", "hard_captions.jsonl"];
    let lines = names.map(|name| all_equal(&shared.join(name), &tokenizer));
    assert_eq!(lines, [1552, 296, 1552, 296]);
}

#[test]
fn parity_sees_differences_and_refuses_files_that_compare_nothing() {
    let tokenizer = Tokenizer::open(&folder("tests/text")).unwrap();
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("lines.jsonl");
    let run = |content: &str| {
        std::fs::write(&file, content).unwrap();
        text::run(&file, &tokenizer)
    };
    let good = r#"{"text":"犬","words":["犬"]}"#;
    assert!(run(good).unwrap().pass);
    for wrong in [
        r#"{"text":"犬","words":["猫"]}"#,
        r#"{"text":"犬","tokens":[]}"#,
        r#"{"text":"犬","ids":[2,3]}"#,
        r#"{"text":"犬","decoded":"猫"}"#,
        r#"{"text":"A","pre":"A"}"#,
        r#"{"text":"犬","ids32":[2]}"#,
        r#"{"text":"犬","mask32":[1,1,1,0]}"#,
    ] {
        let report = run(&format!("{good}\n{wrong}\n")).unwrap();
        assert_eq!((report.pass, report.lines, report.lines_that_differ), (false, 2, 1), "{wrong}");
        assert_eq!(report.differences[0].line, 2);
    }
    for (broken, named) in [
        ("", "line 1: nothing"),
        ("\n", "line 1"),
        (r#"{"text":"犬"}"#, "line 1: nothing to compare"),
        ("{\"text\":\"犬\",\"words\":[\"犬\"]}\n{\"text\":\"犬\"}", "line 2: nothing to compare"),
        (r#"{"words":["犬"]}"#, "missing field `text`"),
        (r#"{"text":"犬","wrods":["犬"]}"#, "unknown field `wrods`"),
        (r#"{"text":"犬","#, "EOF"),
    ] {
        let error = run(broken).unwrap_err().to_string();
        assert!(error.contains(named), "{broken:?}: {error}");
    }
    std::fs::write(&file, b"{\"text\":\"\xff\"}").unwrap();
    assert!(text::run(&file, &tokenizer).unwrap_err().to_string().contains("line 1"));
}
