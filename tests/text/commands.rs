//! The commands `tokens`, `vocabulary`, `dictionary` and `parity --vocab`, as a user runs them.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn qformer(arguments: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qformer"));
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

fn code(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{:?}", code(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn tokens_of_arguments_and_of_lines() {
    let words = text(&qformer(&["tokens", "二匹の犬が走っている"], b""));
    assert_eq!(words, "text     二匹の犬が走っている\nwords    二 匹 の 犬 が 走っ て いる\n\n");
    // What is written is what parity reads, line by line, whatever the texts hold.
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("lines.jsonl");
    let vocabulary = "tests/text/vocab.txt";
    for clean in [&[][..], &["--clean"]] {
        let arguments = [&["tokens", "--vocab", vocabulary, "--json"], clean].concat();
        let lines = text(&qformer(&arguments, "犬が\n\n  A dog! \n猫 \t\r\n".as_bytes()));
        assert_eq!(lines.lines().count(), 4);
        assert!(lines.contains(r#""text":"  A dog! ""#), "{lines}");
        std::fs::write(&file, lines).unwrap();
        let report = text(&qformer(&["parity", "--vocab", vocabulary, file.to_str().unwrap()], b""));
        assert!(report.contains("4 lines") && report.contains("all equal"), "{report}");
    }
    let (exit, message) = code(&qformer(&["tokens"], b"good\n\xff\xfe\n"));
    assert_eq!(exit, Some(3));
    assert!(message.contains("line 2") && message.contains("UTF-8"), "{message}");
    assert_eq!(code(&qformer(&["tokens", "--model", "/nowhere", "x"], b"")).0, Some(3));
}

#[test]
fn parity_ends_with_5_where_lines_differ() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("lines.jsonl");
    std::fs::write(&file, r#"{"text":"犬","words":["猫"]}"#).unwrap();
    let arguments = ["parity", "--vocab", "tests/text/vocab.txt", file.to_str().unwrap()];
    let output = qformer(&arguments, b"");
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stdout).contains("words of \"犬\""));
    let output = qformer(&[&arguments[..], &["--json"]].concat(), b"");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["pass"], &report["compared"]["words"]), (&false.into(), &1.into()));
    std::fs::write(&file, "").unwrap();
    assert_eq!(qformer(&arguments, b"").status.code(), Some(3));
}

#[test]
fn vocabulary_reads_every_form_of_captions_and_overwrites_nothing() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name).to_str().unwrap().to_string();
    let captions = ["赤い犬がいる", "青い犬、白い猫", "赤い猫"];
    let coco = serde_json::json!({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations":
        captions.iter().map(|c| serde_json::json!({"image_id": 1, "caption": c})).collect::<Vec<_>>()});
    let list = serde_json::json!([{"image": "a.jpg", "caption": captions[0]}, {"image": "b.jpg", "caption": captions[1..]}]);
    let lines = captions.map(|c| serde_json::json!({"caption": c}).to_string()).join("\n");
    let table = format!("image,caption\n{}", captions.map(|c| format!("a.jpg,{c}\n")).concat());
    let files = [
        ("coco.json", coco.to_string()),
        ("list.json", list.to_string()),
        ("lines.jsonl", lines),
        ("table.csv", table.clone()),
        ("table.tsv", table.replace(',', "\t")),
        ("plain.txt", format!("\u{feff}{}\n", captions.join("\n"))),
    ];
    let mut written = Vec::new();
    for (name, content) in files {
        std::fs::write(at(name), content).unwrap();
        let said = text(&qformer(
            &["vocabulary", &at(name), "--size", "60", "--out", &at("out.txt"), "--force"],
            b"",
        ));
        assert!(said.contains("of 3 captions") && said.contains("0 are [UNK]"), "{name}: {said}");
        written.push(std::fs::read_to_string(at("out.txt")).unwrap());
    }
    assert!(
        written.iter().all(|text| *text == written[0])
            && written[0].starts_with("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    );

    let (exit, message) = code(&qformer(&["vocabulary", &at("plain.txt"), "--out", &at("out.txt")], b""));
    assert!(exit == Some(2) && message.contains("--force"), "{message}");
    for (name, content, named) in [
        ("broken.json", "[{\"caption\": ", "broken.json"),
        ("broken.jsonl", "{}\n{", "line 2"),
        ("none.json", "[1, 2]", "none"),
        ("empty.txt", "", "none"),
        ("other.csv", "image,text\na,b\n", "caption"),
    ] {
        std::fs::write(at(name), content).unwrap();
        let (exit, message) = code(&qformer(&["vocabulary", &at(name), "--out", &at("new.txt")], b""));
        assert!(exit == Some(3) && message.contains(named), "{name}: {message}");
        assert!(!Path::new(&at("new.txt")).exists());
    }
    let (exit, message) =
        code(&qformer(&["vocabulary", &at("plain.txt"), "--size", "5", "--out", &at("new.txt")], b""));
    assert!(exit == Some(2) && message.contains("size"), "{message}");
}

#[test]
fn dictionary_is_converted_or_refused() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("tiny.zst");
    let arguments = ["dictionary", "--mecab", "tests/text/tiny", "--out", out.to_str().unwrap()];
    assert!(text(&qformer(&arguments, b"")).contains("22 words"));
    assert!(out.exists());
    let (exit, message) = code(&qformer(&["dictionary", "--mecab", "tests", "--out", "out.bin"], b""));
    assert!(exit == Some(3) && message.contains("sys.dic"), "{message}");
}
