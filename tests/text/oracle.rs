//! Our WordPiece against that of the crate `tokenizers`, word by word.

use qformer::text::Tokenizer;
use std::path::Path;
use tokenizers::Model;
use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece;

#[test]
fn wordpiece_equals_that_of_tokenizers() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/text");
    let tokenizer = Tokenizer::open_vocabulary(&own.join("vocab.txt")).unwrap();
    let tokens = (0..).map_while(|id| Some((tokenizer.token(id)?.to_string(), id)));
    let vocabulary: Vocab = tokens.collect();
    let oracle = WordPiece::builder().vocab(vocabulary).unk_token("[UNK]".into()).build().unwrap();

    // Words of the recorded texts, and words made of their characters: known and unknown ones, short and too long.
    let mut words = Vec::new();
    for file in ["wordpiece.jsonl", "captions.jsonl"] {
        for line in std::fs::read_to_string(own.join(file)).unwrap().lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            words.extend(tokenizer.words(line["text"].as_str().unwrap()));
        }
    }
    let characters: Vec<char> = words.concat().chars().collect();
    let mut state = 1u64;
    let mut below = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for longest in [2, 4, 8, 110] {
        for _ in 0..2000 {
            let length = 1 + below(longest);
            words.push((0..length).map(|_| characters[below(characters.len())]).collect());
        }
    }
    words.push("犬".repeat(100));
    words.push("犬".repeat(101));
    let mut unknown = 0;
    for word in &words {
        let mut ids = Vec::new();
        tokenizer.push_word(word, &mut ids);
        // A word is cut at white space before the crate sees it.
        let parts = word
            .split(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c))
            .filter(|p| !p.is_empty());
        let expected: Vec<u32> =
            parts.flat_map(|part| oracle.tokenize(part).unwrap()).map(|token| token.id).collect();
        assert_eq!(ids, expected, "{word:?}");
        unknown += usize::from(ids.contains(&tokenizer.special().unk));
    }
    assert!(unknown > 1000 && words.len() - unknown > 1000, "{unknown} of {}", words.len());
}
