//! Tokenizer files that are torn, changed or made to harm: each is refused or works, within time and memory.

use qformer::text::llm::LlmTokenizer;
use qformer::text::llm::sentencepiece::SentencePiece;
use std::path::{Path, PathBuf};

const TEXT: &str = "犬が<img>海岸で ﾊﾞﾝﾄﾞ か\u{3099}\0 aaaa龘🐕 <cap>。";

fn recorded(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/text/llm").join(name)
}

/// What a changed model makes of texts and ids; the point is that it comes back. True if it was refused.
fn refused(bytes: &[u8]) -> bool {
    let Ok(model) = SentencePiece::parse(bytes) else { return true };
    let ids = model.encode(TEXT);
    assert!(ids.iter().all(|&id| (id as usize) < model.len()));
    model.decode(&ids);
    model.decode(&(0..model.len() as u32 + 2).collect::<Vec<_>>());
    false
}

#[test]
fn models_cut_at_every_byte() {
    for name in ["unigram-bytes-symbols.model", "bpe-unused.model"] {
        let whole = std::fs::read(recorded(name)).unwrap();
        assert!(!refused(&whole));
        let accepted: Vec<usize> = (0..whole.len()).filter(|&n| !refused(&whole[..n])).collect();
        // Between two fields the rest may be missing: what is there is a model, if its pieces are whole.
        assert!(accepted.len() < 10 + whole.len() / 8, "{name}: {}", accepted.len());
    }
}

#[test]
fn models_with_changed_bytes() {
    for (name, step) in [
        ("unigram-bytes-symbols.model", 3),
        ("bpe-symbols.model", 3),
        ("char.model", 5),
        ("denormalized.model", 1),
    ] {
        let mut bytes = std::fs::read(recorded(name)).unwrap();
        // The rules stand near the end; they are what is followed without a name.
        let rules = bytes.len().saturating_sub(3000);
        for at in (0..rules).step_by(step * 4).chain((rules..bytes.len()).step_by(step)) {
            for bits in [0x01, 0x80, 0xFF] {
                bytes[at] ^= bits;
                refused(&bytes);
                bytes[at] ^= bits;
            }
        }
    }
}

/// A field of a message: its number, and bytes behind their length.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length > 0x7F {
        field.push(length as u8 | 0x80);
        length >>= 7;
    }
    field.push(length as u8);
    [field, bytes.to_vec()].concat()
}

fn piece(text: &[u8], score: f32, kind: u8) -> Vec<u8> {
    let score = [&[2 << 3 | 5][..], &score.to_le_bytes()].concat();
    field(1, &[field(1, text), score, vec![3 << 3, kind]].concat())
}

fn model(more: &[u8]) -> Vec<u8> {
    [&piece(b"<unk>", 0.0, 2), &piece("犬".as_bytes(), -1.0, 1)[..], more].concat()
}

/// A charsmap of these units and texts, as the whole normaliser.
fn rules(units: &[u32], texts: &[u8]) -> Vec<u8> {
    let units: Vec<u8> = units.iter().flat_map(|u| u.to_le_bytes()).collect();
    field(3, &field(2, &[&(units.len() as u32).to_le_bytes()[..], &units, texts].concat()))
}

fn why(bytes: &[u8]) -> String {
    SentencePiece::parse(bytes).err().unwrap_or_default()
}

#[test]
fn models_that_lie() {
    assert_eq!(why(&model(b"")), "");
    let long = [b"a".repeat(1001), b"b".repeat(9000)];
    let trainer = |kind: u8| field(2, &[3 << 3, kind]);
    for (bytes, named) in [
        (vec![], "no pieces"),
        (b"{\"version\": 1}".to_vec(), ""),
        (model(&[1 << 3 | 2, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F]), "bytes left"),
        (model(&[1 << 3 | 2, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01]), "a field"),
        (model(&[0x0B]), "type 3"),
        (model(&piece("犬".as_bytes(), -2.0, 1)), "a second time"),
        (model(&piece(b"", -2.0, 1)), "no text for piece 2"),
        (model(&piece(b"a\0", -2.0, 1)), "NUL"),
        (model(&piece(b"a\xFF", -2.0, 1)), "UTF-8"),
        (model(&piece(b"a", f32::NAN, 1)), "NaN"),
        (model(&piece(b"a", f32::NEG_INFINITY, 1)), "-inf"),
        (model(&piece(b"a", -1.0, 7)), "kind of a piece"),
        (model(&piece(b"<0x41>", -1.0, 6)), "as a byte"),
        (model(&piece(b"[UNK]", -1.0, 2)), "two unknown"),
        (model(&piece(&long[0], -1.0, 1)), "1000 characters"),
        (model(&piece(&long[1], -1.0, 1)), "9000 bytes"),
        (model(&trainer(9)), "kind of model"),
        (model(&field(2, &[35 << 3 & 0x7F | 0x80, 35 >> 4, 1])), "256 bytes"),
        (piece("犬".as_bytes(), -1.0, 1), "no unknown piece"),
        (piece(b"<unk>", 0.0, 2), "no piece that text could become"),
        (model(&field(3, &field(2, b"x"))), "the size of the replacement rules"),
        (model(&field(3, &field(2, &[0xFF; 40]))), "replacement rules of 4294967295 bytes"),
        (model(&rules(&[0; 256], b"x")), "without an end"),
        (model(&rules(&[0; 256], b"")), "without an end"),
        (model(&rules(&[0; 256], b"\xFF\0")), "UTF-8"),
        (model(&rules(&[0; 256], &[&b"x".repeat(5000)[..], b"\0"].concat())), "without an end"),
    ] {
        let said = why(&bytes);
        assert!(!said.is_empty() && said.contains(named), "{named}: {said:?}");
    }
}

#[test]
fn a_piece_with_a_meaning_comes_before_text_of_its_name() {
    let twice = [piece("<s>".as_bytes(), -1.0, 1), piece(b"<s>", 0.0, 3)].concat();
    let sp = SentencePiece::parse(&model(&twice)).unwrap();
    assert_eq!((sp.id("<s>"), sp.control("<s>"), sp.control("犬")), (Some(3), Some(3), None));
    assert_eq!(sp.encode("<s>").last(), Some(&2));
}

/// Arrays that lead out of themselves, in a circle, to no text, or deeper than any rule.
#[test]
fn arrays_that_lead_nowhere() {
    let unit = |label: u32, offset: u32, leaf: bool| offset << 10 | u32::from(leaf) << 8 | label;
    let place = |byte: u32, offset: u32| (offset ^ byte) as usize;
    let why = |units: &[u32]| why(&model(&rules(units, b"x\0")));
    let mut good = vec![0; 512];
    good[0] = unit(0, 256, false);
    let a = place(b'a'.into(), 256);
    good[a] = unit(b'a'.into(), (a as u32) ^ 300, true);
    good[300] = 1 << 31;
    assert_eq!(why(&good), "");
    let sp = SentencePiece::parse(&model(&rules(&good, b"x\0"))).unwrap();
    assert_eq!(sp.normalize("ab"), "▁xb");

    let changed = |at: usize, to: u32| {
        let mut units = good.clone();
        units[at] = to;
        why(&units)
    };
    assert!(changed(0, unit(0, 1 << 20, false)).contains("unit 0"));
    assert!(changed(a, unit(b'a'.into(), 1 << 20, true)).contains(&format!("unit {a}")));
    assert!(changed(300, 1 << 31 | 2).contains("without its text"));
    assert!(changed(300, 5).contains("without its text"));
    // `a` leads to a unit whose child by `a` is itself.
    assert!(changed(a, unit(b'a'.into(), (a as u32) ^ 256, false)).contains("circle"));

    // A chain of a thousand units, each below the one before.
    let mut chain = vec![0; 1 << 19];
    let mut at = 0;
    for n in 1..1000u32 {
        chain[at] |= unit(0, at as u32 ^ (n * 256), false);
        at = ((n * 256) ^ u32::from(b'a')) as usize;
        chain[at] = b'a'.into();
    }
    assert!(why(&chain).contains("512 bytes"), "{}", why(&chain));
}

#[test]
fn long_texts_end_soon() {
    // Sums are counted anew on the way; a piece that repeats itself is looked up at every place.
    let long = "犬a".repeat(30_000);
    for name in [
        "unigram-nfkc.model",
        "bpe-unused.model",
        "word.model",
        "char.model",
        "bytes-qwen.json",
        "unigram-bytes.json",
    ] {
        if name.ends_with("json") && !cfg!(feature = "tokenizer-json") {
            continue;
        }
        let tokenizer = LlmTokenizer::open_file(&recorded(name)).unwrap();
        assert!(!tokenizer.encode(&long).unwrap().is_empty());
    }
}

#[test]
fn a_tokenizer_json_that_is_torn_or_changed() {
    if !cfg!(feature = "tokenizer-json") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("tokenizer.json");
    for name in ["unigram-bytes.json", "bytes-llama3-template.json"] {
        let mut bytes = std::fs::read(recorded(name)).unwrap();
        let open = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            LlmTokenizer::open_file(&file)
        };
        for n in (0..bytes.len()).step_by(97) {
            assert!(open(&bytes[..n]).is_err(), "{name} cut at {n}");
        }
        for at in (0..bytes.len()).step_by(61) {
            for bits in [0x01, 0x80] {
                bytes[at] ^= bits;
                if let Ok(tokenizer) = open(&bytes) {
                    let _ = tokenizer.encode(TEXT).map(|ids| tokenizer.decode(&ids));
                }
                bytes[at] ^= bits;
            }
        }
    }
    for broken in ["", "[]", "{}", "{\"model\": {}}", &"[".repeat(100_000)] {
        std::fs::write(&file, broken).unwrap();
        let said = LlmTokenizer::open_file(&file).err().unwrap();
        assert!(said.exit_code() == 3 && said.to_string().contains("tokenizer.json"), "{said}");
    }
}
