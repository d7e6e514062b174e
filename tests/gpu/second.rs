//! A training step of the second stage at real sizes, batch 128, counted without a GPU: its arithmetic is the model's, and what
//! computing layers twice costs and saves.

use serde_json::Value;
use std::path::Path;
use std::process::Command;

fn stored(name: &str, key: &str) -> f64 {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/step-llm-128.json");
    let all: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    all[name][key].as_f64().unwrap()
}

/// 2mnk of the matmuls that stage 2 cannot do without, captions of 16 tokens: frozen weights without gradients of their own, nothing
/// for padding, the last layer for rows that predict. Counted by hand so many GFLOP a pair, less those of attention's kernels.
#[test]
fn second_steps_have_the_arithmetic_of_the_model() {
    for (name, gflop) in [("opt-2.7b", 1026.3 - 16.4), ("llm-jp-3-1.8b", 833.7 - 15.9)] {
        let per_pair = stored(name, "flops") / 128.0 / 1e9;
        assert!((per_pair - gflop).abs() < 0.01 * gflop, "{name}: {per_pair} GFLOP a pair, {gflop} by hand");
    }
}

/// Computing layers twice keeps 1.2 of 6.2 GB of the language model's activations (by hand), for one more forward of its layers but
/// for the last one's rows that nobody reads: 12 matrices of 2560 x 2560 a layer, 47 rows a pair.
#[test]
fn layers_computed_twice_take_less_memory_for_one_more_forward() {
    let step = ["bench", "step", "--device", "plan", "--config", "full", "--batch", "128", "--json"];
    let out = Command::new(env!("CARGO_BIN_EXE_qformer"))
        .args(step)
        .args(["--llm", "opt-2.7b", "--recompute"])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let twice: Value = serde_json::from_slice(&out.stdout).unwrap();
    let (peak, once) = (twice["peak_bytes"].as_f64().unwrap(), stored("opt-2.7b", "peak_bytes"));
    assert!(peak < once - 4.9e9, "{peak} bytes at the peak, {once} without");
    let more = (twice["flops"].as_f64().unwrap() - stored("opt-2.7b", "flops")) / 128.0;
    let layer = 2.0 * 47.0 * 12.0 * 2560.0 * 2560.0;
    assert!(more > 0.9 * 31.0 * layer && more < 1.02 * 32.0 * layer, "{more} FLOP a pair, {layer} a layer");
}
