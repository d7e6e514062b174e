//! Vocabularies: refused ones, trained ones, settings, decoding.

use qformer::text::{Settings, Special, Subwords, Tokenizer, clean_caption};
use qformer::text::{train_vocabulary as train, vocabulary::Vocabulary};
use std::path::Path;

const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

fn tokenizer(tokens: &[&str]) -> Tokenizer {
    let all = SPECIAL.iter().chain(tokens).map(|t| t.to_string()).collect();
    Tokenizer::new(all, Settings::default()).unwrap()
}

/// Opens a directory with these files.
fn open(vocabulary: &[u8], settings: Option<&str>) -> qformer::Result<Tokenizer> {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("vocab.txt"), vocabulary).unwrap();
    if let Some(settings) = settings {
        std::fs::write(place.path().join("tokenizer_config.json"), settings).unwrap();
    }
    Tokenizer::open(place.path())
}

#[test]
fn unusable_vocabularies_are_refused_with_the_line() {
    let good = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n犬\n";
    assert_eq!(open(good.as_bytes(), None).unwrap().len(), 7);
    for (text, named) in [
        ("", "empty"),
        ("\n", "empty"),
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\n犬\n", "[MASK]"),
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n犬\n猫\n犬\n", "'犬' in lines 6 and 8"),
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n\n犬\n", "line 6"),
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n[DEC]\n犬\n", "[DEC]"),
    ] {
        let error = open(text.as_bytes(), None).err().unwrap();
        assert!(error.to_string().contains(named) && error.to_string().contains("vocab.txt"), "{error}");
        assert_ne!(error.exit_code(), 0);
    }
    let error = open(b"[PAD]\n[UNK]\n\xff\xfe\n", None).err().unwrap().to_string();
    assert!(error.contains("UTF-8") && error.contains("line 3"), "{error}");
    let nowhere = Tokenizer::open(Path::new("/nowhere/at/all")).err().unwrap().to_string();
    assert!(nowhere.contains("/nowhere/at/all/vocab.txt"), "{nowhere}");
}

#[test]
fn lines_end_as_python_sees_them() {
    let unix = open("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n犬 \n猫".as_bytes(), None).unwrap();
    let windows =
        open("[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\n[MASK]\r\n犬 \r\n猫\r\n".as_bytes(), None).unwrap();
    for t in [unix, windows] {
        assert_eq!(
            (t.token(5), t.token(6), t.token(7), t.token(8)),
            (Some("犬 "), Some("猫"), Some("[DEC]"), None)
        );
        let Special { pad, unk, cls, sep, mask, dec } = t.special();
        assert_eq!([pad, unk, cls, sep, mask, dec], [0, 1, 2, 3, 4, 7]);
    }
}

#[test]
fn special_tokens_may_lie_anywhere() {
    let t = open("犬\n[MASK]\n[SEP]\n[CLS]\n[UNK]\n[PAD]\n[DEC]\n".as_bytes(), None).unwrap();
    assert_eq!(t.len(), 7);
    assert_eq!(t.encode("犬鳥[PAD]"), [3, 0, 4, 5, 2]);
    assert_eq!(t.decode(&[3, 0, 4, 5, 2, 6]), "犬");
}

#[test]
fn settings_that_change_the_words_are_refused() {
    let vocabulary = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n犬\n猫\n".as_bytes();
    let with = |settings: &str| open(vocabulary, Some(settings));
    // As the models of cl-tohoku have it.
    let usual = r#"{"do_lower_case": false, "word_tokenizer_type": "mecab", "subword_tokenizer_type": "character",
        "mecab_kwargs": {"mecab_dic": "ipadic"}, "model_max_length": 512, "cls_token": "[CLS]",
        "mask_token": {"content": "[MASK]", "__type": "AddedToken"}, "bos_token": null}"#;
    let characters = with(usual).unwrap();
    assert_eq!(characters.settings().subwords, Subwords::Character);
    assert_eq!(characters.encode("犬猫"), [2, 5, 6, 3]);
    // transformers cuts otherwise where the type is left out; without any settings there is nothing to differ from.
    assert_eq!(open(vocabulary, None).unwrap().encode("犬猫"), [2, 5, 6, 3]);
    for (settings, named) in [
        ("{}", "word_tokenizer_type mecab, got none"),
        (r#"{"do_lower_case": false, "tokenizer_class": "BertJapaneseTokenizer"}"#, "basic"),
        (r#"{"word_tokenizer_type": "mecab", "tokenizer_class": "BertTokenizer"}"#, "got BertTokenizer"),
        (r#"{"tokenizer_class": "T5Tokenizer"}"#, "tokenizer_class BertJapaneseTokenizer"),
        (r#"{"word_tokenizer_type": "sudachi"}"#, "sudachi"),
        (r#"{"word_tokenizer_type": "basic"}"#, "basic"),
        (r#"{"subword_tokenizer_type": "sentencepiece"}"#, "sentencepiece"),
        (r#"{"do_lower_case": true}"#, "do_lower_case"),
        (r#"{"do_word_tokenize": false}"#, "do_word_tokenize"),
        (r#"{"do_subword_tokenize": false}"#, "do_subword_tokenize"),
        (r#"{"mecab_kwargs": {"do_lower_case": true}}"#, "do_lower_case"),
        (r#"{"mecab_kwargs": {"normalize_text": false}}"#, "normalize_text"),
        (r#"{"mecab_kwargs": {"mecab_option": "-d /x"}}"#, "mecab_option"),
        (r#"{"word_tokenizer_type": "mecab", "mecab_kwargs": {"mecab_dic": "unidic"}}"#, "unidic.zst"),
        (r#"{"cls_token": "<s>"}"#, "cls_token"),
        (r#"{"sep_token": {"content": "</s>"}}"#, "sep_token"),
        (r#"{"bos_token": "[BOS]"}"#, "bos_token"),
        (r#"{"do_lower_case": "#, "line 1"),
        ("[]", "tokenizer_config.json"),
    ] {
        let error = with(settings).err().unwrap_or_else(|| panic!("{settings}")).to_string();
        assert!(error.contains(named), "{settings}: {error}");
    }
}

#[test]
fn saved_and_opened_again() {
    let place = tempfile::tempdir().unwrap();
    let tokens = [&SPECIAL[..], &["犬", "##ん", " "]].concat().into_iter().map(String::from).collect();
    let first =
        Tokenizer::new(tokens, Settings { subwords: Subwords::Character, ..Settings::default() }).unwrap();
    first.save(place.path()).unwrap();
    let text = std::fs::read_to_string(place.path().join("vocab.txt")).unwrap();
    assert_eq!(text, "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n犬\n##ん\n \n");
    let second = Tokenizer::open(place.path()).unwrap();
    assert_eq!(second.settings(), first.settings());
    assert_eq!(second.encode("犬ん猫"), first.encode("犬ん猫"));
    assert_eq!(second.len(), 9);
}

#[test]
fn decodes_as_transformers_does() {
    let t =
        tokenizer(&["犬", "##が", "it", "'", "s", "'s", "n't", ".", ",", "!", "?", "'re", "hi", "\u{3000}"]);
    let decode = |text: &[&str]| {
        let ids: Vec<u32> = text.iter().map(|token| t.id(token).unwrap()).collect();
        t.decode(&ids)
    };
    // Expected: BertJapaneseTokenizer.decode of transformers 4.30.2, special tokens skipped.
    assert_eq!(
        decode(&["[CLS]", "犬", "##が", "[UNK]", "犬", "[SEP]", "[PAD]", "[DEC]", "[MASK]"]),
        "犬が 犬"
    );
    assert_eq!(decode(&["##が", "犬"]), "##が 犬");
    assert_eq!(decode(&["it", "'s", ".", "hi", ",", "hi", "!", "?"]), "it's. hi, hi!?");
    assert_eq!(decode(&["it", "'", "hi", "'", "."]), "it'hi '.");
    assert_eq!(decode(&["it", "n't", "'re", "'", "s"]), "itn't're's");
    assert_eq!(decode(&["\u{3000}", "犬", "\u{3000}"]), "犬");
    assert_eq!(decode(&[]), "");
    assert_eq!(t.decode(&[5, 9999]), "犬 [UNK]");
}

#[test]
fn captions_are_cleaned_and_cut() {
    let t = tokenizer(&["犬", "猫", "a"]);
    assert_eq!(t.caption("犬！ A.", 32), [2, 5, 1, 7, 3]);
    assert_eq!(t.caption("犬 猫 犬 猫 犬", 4), [2, 5, 6, 3]);
    assert_eq!(t.caption("犬 猫", 4), [2, 5, 6, 3]);
    assert_eq!(t.caption("犬 猫", 0), [2, 3]);
    assert_eq!(t.caption("", 32), [2, 3]);
    let long = "犬".repeat(3_000_000);
    assert_eq!(t.caption(&long, 32).len(), 32);
}

const CAPTIONS: [&str; 6] = [
    "赤い三角が左にある。",
    "青い三角が右にある。",
    "赤い四角が二つある。",
    "大きな青い丸がある！",
    "A red triangle, an orange triangle",
    "緑の三角と赤い三角",
];

#[test]
fn a_trained_vocabulary_spells_its_captions() {
    let tokens = train(CAPTIONS, 200).unwrap();
    assert_eq!(tokens[..5], SPECIAL);
    assert!(tokens.len() <= 200);
    let t = Tokenizer::new(tokens.clone(), Settings::default()).unwrap();
    let unk = t.special().unk;
    for caption in CAPTIONS {
        let ids = t.caption(caption, 100);
        assert!(!ids.contains(&unk), "{caption}: {ids:?}");
        let words = t.words(&clean_caption(caption));
        assert_eq!(t.decode(&ids), words.join(" ").replace(" ,", ",").replace(" !", "!"), "{caption}");
    }
    // What comes twice became one token.
    assert!(["三角", "triangle"].iter().all(|word| t.id(word).is_some()), "{tokens:?}");
    // The same again, and in another order.
    assert_eq!(train(CAPTIONS, 200).unwrap(), tokens);
    assert_eq!(train(CAPTIONS.iter().rev(), 200).unwrap(), tokens);
    assert!(Vocabulary::new(tokens).is_ok());
}

#[test]
fn a_small_vocabulary_keeps_the_most_frequent_characters() {
    // a: 3 at the start; b: 2 inside; c: 1 inside.
    let tokens = train(["ab", "abc", "a"], 7).unwrap();
    assert_eq!(tokens[5..], ["a", "##b"]);
    // Characters first, then the pair that comes twice; "abc" comes once and is not joined.
    let tokens = train(["ab", "abc", "a"], 100).unwrap();
    assert_eq!(tokens[5..], ["a", "b", "c", "##a", "##b", "##c", "ab"]);
    for (captions, size) in [(&[""][..], 100), (&["..."], 100), (&[], 100), (&["a"], 5), (&["a"], 0)] {
        assert!(train(captions, size).is_err(), "{captions:?} {size}");
    }
}
