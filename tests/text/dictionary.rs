//! Dictionaries: a small one that MeCab compiled (`record_dictionary.py`), and files of it.

use qformer::text::segment::{Segmenter, convert};
use qformer::text::{Dictionary, Settings, Tokenizer};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde::Deserialize;
use std::path::{Path, PathBuf};

const FILES: [&str; 4] = ["sys.dic", "unk.dic", "matrix.bin", "char.bin"];

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/text/tiny")
}

fn words(segmenter: &Segmenter, text: &str) -> Vec<String> {
    let mut words = Vec::new();
    segmenter.words(text, |word| words.push(word.to_string()));
    words
}

#[derive(Deserialize)]
struct Line {
    text: String,
    words: Vec<String>,
}

fn lines() -> Vec<Line> {
    let text = std::fs::read_to_string(tiny().join("words.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_converted_dictionary_cuts_as_mecab_does() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("tiny.zst");
    let (bytes, count) = convert(&tiny()).unwrap();
    assert_eq!(count, 22);
    std::fs::write(&file, &bytes).unwrap();
    let segmenter = Segmenter::open(&file).unwrap();
    let lines = lines();
    assert_eq!(lines.len(), 130);
    for line in lines {
        assert_eq!(words(&segmenter, &line.text), line.words, "{:?}", line.text);
    }
}

#[test]
fn a_model_takes_its_dictionary_along() {
    let place = tempfile::tempdir().unwrap();
    let (first, second) = (place.path().join("first"), place.path().join("second"));
    std::fs::create_dir(&first).unwrap();
    std::fs::create_dir(&second).unwrap();
    std::fs::write(first.join("unidic_lite.zst"), convert(&tiny()).unwrap().0).unwrap();
    std::fs::write(first.join("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n森林\n犬\n").unwrap();
    let settings = r#"{"word_tokenizer_type": "mecab", "mecab_kwargs": {"mecab_dic": "unidic_lite"}}"#;
    std::fs::write(first.join("tokenizer_config.json"), settings).unwrap();
    Tokenizer::open(&first).unwrap().save(&second).unwrap();
    std::fs::remove_dir_all(&first).unwrap();
    let tokenizer = Tokenizer::open(&second).unwrap();
    // Only the small dictionary has no word for it and takes two characters of one kind.
    assert_eq!(tokenizer.words("森林犬"), ["森林", "犬"]);
    assert_eq!(tokenizer.encode("森林犬"), [2, 5, 6, 3]);
}

#[test]
fn a_missing_dictionary_says_how_to_make_it() {
    let settings = Settings { dictionary: Dictionary::File("unidic_lite.zst".into()), ..Settings::default() };
    let vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(String::from).to_vec();
    let error = Tokenizer::new(vocabulary, settings).err().unwrap().to_string();
    assert!(error.contains("unidic_lite.zst") && error.contains("qformer dictionary --mecab"), "{error}");
}

#[test]
fn damaged_mecab_files_are_named() {
    let place = tempfile::tempdir().unwrap();
    for name in FILES {
        for f in FILES {
            std::fs::copy(tiny().join(f), place.path().join(f)).unwrap();
        }
        let whole = std::fs::read(tiny().join(name)).unwrap();
        for bytes in [&whole[..whole.len() - 1], &[], b"something else entirely"] {
            std::fs::write(place.path().join(name), bytes).unwrap();
            let error = convert(place.path()).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains(name), "{error}");
        }
        std::fs::remove_file(place.path().join(name)).unwrap();
        assert!(convert(place.path()).unwrap_err().to_string().contains(name));
    }
    // Another encoding: its name stands at 40.
    let mut sys = std::fs::read(tiny().join("sys.dic")).unwrap();
    sys[40..48].copy_from_slice(b"EUC-JP\0\0");
    std::fs::copy(tiny().join("char.bin"), place.path().join("char.bin")).unwrap();
    std::fs::write(place.path().join("sys.dic"), sys).unwrap();
    assert!(convert(place.path()).unwrap_err().to_string().contains("EUC-JP"));
}

#[test]
fn a_damaged_dictionary_file_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("tiny.zst");
    let (bytes, _) = convert(&tiny()).unwrap();
    let text = "犬猫が走る山川";
    std::fs::write(&file, &bytes).unwrap();
    let expected = words(&Segmenter::open(&file).unwrap(), text);
    let open = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        Segmenter::open(&file)
    };
    for n in (0..bytes.len()).step_by(7) {
        assert_eq!(open(&bytes[..n]).err().unwrap().exit_code(), 3, "cut at {n}");
    }
    let mut changed = bytes.clone();
    for at in 0..bytes.len() {
        changed[at] ^= 0x55;
        if let Ok(segmenter) = open(&changed) {
            assert_eq!(words(&segmenter, text), expected, "byte {at}");
        }
        changed[at] ^= 0x55;
    }
    // A frame that says it is larger than any dictionary; one that is far larger than it says it was.
    // (Window of 2 MB, a size of 2^40 bytes, one block of a repeated byte.)
    let announced = [&b"\x28\xb5\x2f\xfd\xc0\x58\0\0\0\0\0\x01\0\0"[..], b"\x03\0\0\0"].concat();
    assert!(open(&announced).err().unwrap().to_string().contains("limit"));
    let bomb = compress_to_vec(&vec![0; 64 << 20][..], CompressionLevel::Fastest);
    assert!(bomb.len() < 10_000, "{}", bomb.len());
    assert!(open(&bomb).err().unwrap().to_string().contains("limit"));
    // Without its checksum, nothing would tell a damaged word.
    let mut unchecked = bytes[..bytes.len() - 4].to_vec();
    unchecked[4] &= !4;
    assert!(open(&unchecked).err().unwrap().to_string().contains("checksum"));
}

#[test]
fn long_texts_lose_nothing() {
    let segmenter = Segmenter::ipadic().unwrap();
    let part = "白い猫と黒い犬が庭で走っている。";
    for text in [part.repeat(3000), "犬".repeat(40_000), "x".repeat(40_000), "犬が ".repeat(20_000)] {
        let mut joined = String::new();
        segmenter.words(&text, |word| joined.push_str(word));
        assert_eq!(joined, text.replace(' ', ""));
    }
    // Pieces end with a sentence, so each sentence is cut as it is alone.
    let alone = words(&segmenter, part);
    let all = words(&segmenter, &part.repeat(3000));
    assert!(all.chunks(alone.len()).all(|sentence| sentence == alone));
}
