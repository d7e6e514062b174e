//! Captions to ids on one thread: cleaning, NFKC, words, WordPiece. Criterion's times are CPU time here (what the
//! thread ran, CLOCK_THREAD_CPUTIME_ID), so that other programs on the machine do not count; elements are captions.
//!
//! `cargo bench --bench text`; with QFORMER_CAPTIONS=FILE (one a line), QFORMER_VOCAB=vocab.txt and
//! QFORMER_TOKENIZER=tokenizer.model (or .json) on your own.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use qformer::text::Tokenizer;
use qformer::text::llm::LlmTokenizer;
use rustix::time::{ClockId, clock_gettime};
use std::hint::black_box;
use std::path::PathBuf;
use std::time::Duration;

fn path(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| concat_root(default), PathBuf::from)
}

fn concat_root(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The captions of a text file, or those recorded for the tests that a person could have written.
fn captions() -> Vec<String> {
    if let Some(file) = std::env::var_os("QFORMER_CAPTIONS") {
        let text = std::fs::read_to_string(file).expect("a readable file of captions");
        return text.lines().map(String::from).collect();
    }
    let text =
        std::fs::read_to_string(concat_root("tests/text/captions.jsonl")).expect("the recorded captions");
    let line =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["text"].as_str().map(String::from);
    text.lines().take(30).filter_map(line).collect()
}

/// Time this thread has run.
fn ran() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The crate's WordPiece over the same vocabulary.
#[cfg(feature = "tokenizer-json")]
fn wordpiece(tokenizer: &Tokenizer) -> impl Fn(&str) -> Vec<u32> {
    use tokenizers::Model;
    use tokenizers::models::wordpiece::WordPiece;
    let tokens = (0..).map_while(|id| Some((tokenizer.token(id)?.to_string(), id)));
    let vocabulary: tokenizers::models::bpe::Vocab = tokens.collect();
    let model =
        WordPiece::builder().vocab(vocabulary).unk_token("[UNK]".into()).build().expect("a WordPiece");
    move |word| model.tokenize(word).expect("ids").into_iter().map(|token| token.id).collect()
}

fn bench(c: &mut Criterion) {
    let tokenizer =
        Tokenizer::open_vocabulary(&path("QFORMER_VOCAB", "tests/text/vocab.txt")).expect("a vocabulary");
    let captions = captions();
    let words: Vec<Vec<String>> = captions.iter().map(|caption| tokenizer.words(caption)).collect();
    let mut group = c.benchmark_group("text");
    group.throughput(Throughput::Elements(captions.len() as u64));
    let mut run = |name: &str, each: &dyn Fn(usize)| {
        group.bench_function(name, |b| {
            b.iter_custom(|n| {
                let before = ran();
                for _ in 0..n {
                    (0..captions.len()).for_each(|i| each(black_box(i)));
                }
                ran() - before
            });
        });
    };
    run("caption", &|i| drop(black_box(tokenizer.caption(&captions[i], 32))));
    run("words", &|i| drop(black_box(tokenizer.words(&captions[i]))));
    // The same words to ids, by our WordPiece and by that of the crate `tokenizers`.
    run("pieces", &|i| {
        let mut ids = Vec::new();
        words[i].iter().for_each(|word| tokenizer.push_word(word, &mut ids));
        drop(black_box(ids));
    });
    #[cfg(feature = "tokenizer-json")]
    {
        let oracle = wordpiece(&tokenizer);
        run("pieces-tokenizers", &|i| {
            drop(black_box(words[i].iter().flat_map(|word| oracle(word)).collect::<Vec<u32>>()));
        });
    }
    let ids: Vec<u32> = (5..25).collect();
    run("decode", &|_| drop(black_box(tokenizer.decode(black_box(&ids)))));
    let model =
        LlmTokenizer::open_file(&path("QFORMER_TOKENIZER", "tests/text/llm/unigram-bytes-symbols.model"));
    let model = model.expect("a tokenizer of a language model");
    run("llm", &|i| drop(black_box(model.encode(&captions[i]))));
}

criterion_group!(benches, bench);
criterion_main!(benches);
