//! Captions to ids on one thread: cleaning, NFKC, words, WordPiece. Criterion's times are CPU time here (what the
//! thread ran, CLOCK_THREAD_CPUTIME_ID), so that other programs on the machine do not count; elements are captions.
//!
//! `cargo bench --bench text`; with QFORMER_CAPTIONS=FILE (one a line) and QFORMER_VOCAB=vocab.txt on your own.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use qformer::text::Tokenizer;
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

fn bench(c: &mut Criterion) {
    let tokenizer =
        Tokenizer::open_vocabulary(&path("QFORMER_VOCAB", "tests/text/vocab.txt")).expect("a vocabulary");
    let captions = captions();
    let mut group = c.benchmark_group("text");
    group.throughput(Throughput::Elements(captions.len() as u64));
    let mut run = |name: &str, each: &dyn Fn(&str)| {
        group.bench_function(name, |b| {
            b.iter_custom(|n| {
                let before = ran();
                for _ in 0..n {
                    captions.iter().for_each(|caption| each(black_box(caption)));
                }
                ran() - before
            });
        });
    };
    run("caption", &|caption| drop(black_box(tokenizer.caption(caption, 32))));
    run("words", &|caption| drop(black_box(tokenizer.words(caption))));
    let ids: Vec<u32> = (5..25).collect();
    run("decode", &|_| drop(black_box(tokenizer.decode(black_box(&ids)))));
}

criterion_group!(benches, bench);
criterion_main!(benches);
