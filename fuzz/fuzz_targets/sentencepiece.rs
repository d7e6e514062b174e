//! Models of sentencepiece: whatever the bytes, an error or a tokenizer whose ids are pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qformer::text::llm::sentencepiece::SentencePiece;

fuzz_target!(|data: &[u8]| {
    let Ok(model) = SentencePiece::parse(data) else { return };
    let ids = model.encode("犬が<img>海岸で ﾊﾞﾝﾄﾞ か\u{3099}\0 aaaa龘🐕 <cap>。");
    assert!(ids.iter().all(|&id| (id as usize) < model.len()));
    model.decode(&ids);
});
