//! Strangers' names and texts on a terminal: no control character of theirs gets there, on standard output or standard error.

use std::path::Path;
use std::process::Command;

const NAME: &str = "a\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}";

/// (exit code, standard output and standard error in one)
fn run(args: &[&str]) -> (i32, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_qformer")).args(args).output().unwrap();
    let all = [out.stdout, out.stderr].concat();
    (out.status.code().unwrap(), String::from_utf8(all).unwrap())
}

fn is_clean(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() && !"\n\t".contains(c) || ('\u{202a}'..='\u{202e}').contains(&c))
}

fn safetensors(path: &Path, header: &str, data: usize) {
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn names_and_texts_are_shown_and_not_obeyed() {
    let tmp = tempfile::tempdir().unwrap();
    let at = |name: &str| tmp.path().join(name).to_str().unwrap().to_string();
    let (odd, plain, meta) = (at(&format!("{NAME}.png")), at("plain"), at("meta.safetensors"));
    let (words, model) = (at("words"), at("model"));
    std::fs::write(&odd, "junk").unwrap();
    let metadata = r#"{"__metadata__":{"\u001b[31mk":"\u001b]0;v\u0007"},"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    safetensors(Path::new(&meta), metadata, 1);
    assert_eq!(run(&["convert", "--random", "tiny", "--out", &plain]).0, 0);
    // a vocabulary whose tokens are sequences that terminals obey
    let vocabulary = std::fs::read_to_string(format!("{plain}/vocab.txt")).unwrap();
    let hostile = |(i, t): (usize, &str)| {
        if t.starts_with('[') { t.to_string() } else { format!("\u{1b}]52;c;{i}\u{7}") }
    };
    let lines: Vec<String> = vocabulary.lines().enumerate().map(hostile).collect();
    std::fs::create_dir(&words).unwrap();
    std::fs::write(format!("{words}/vocab.txt"), lines.join("\n") + "\n").unwrap();
    std::fs::copy(format!("{plain}/tokenizer_config.json"), format!("{words}/tokenizer_config.json"))
        .unwrap();
    assert_eq!(run(&["convert", &plain, "--bert", &words, "--out", &model]).0, 0);
    let picture = at("picture.png");
    let mut png = png::Encoder::new(std::fs::File::create(&picture).unwrap(), 8, 8);
    png.set_color(png::ColorType::Rgb);
    png.write_header().unwrap().write_image_data(&[0; 192]).unwrap();
    let long = format!("--{NAME}");
    let cases: [(&[&str], i32); 9] = [
        (&["inspect", &odd], 3),
        (&["inspect", &meta], 0),
        (&["inspect", &meta, "--json"], 0),
        (&["tokens", NAME], 0),
        (&["tokens", NAME, "--json"], 0),
        (&["caption", "--model", &model, &picture], 0),
        (&["caption", "--model", &model, &odd], 3),
        (&["train", "--set", &format!("{NAME}=1")], 2),
        (&[&long], 2),
    ];
    for (args, code) in cases {
        let (found, said) = run(args);
        assert!(is_clean(&said), "{args:?}: {:?}", said);
        assert_eq!(found, code, "{args:?}: {said}");
        assert!(
            said.contains("\\u009b") || said.contains("\\u{9b}") || said.contains("\\u001b"),
            "{args:?}: {said}"
        );
    }
    // JSON means what it meant.
    let (_, json) = run(&["tokens", NAME, "--json"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["text"], NAME);
}

#[test]
fn a_long_name_fits_a_screen() {
    let tmp = tempfile::tempdir().unwrap();
    let config = tmp.path().join("x.yaml");
    std::fs::write(&config, format!("? {}\n: 1\n", "a".repeat(900_000))).unwrap();
    let (code, said) = run(&["train", config.to_str().unwrap()]);
    assert_eq!(code, 2, "{}", said.len());
    assert!(said.len() < 2000 && said.contains("aaa...("), "{said}");
}
