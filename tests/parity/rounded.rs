//! In 16 bits `parity` can fail: a gradient that is zeroed or doubled in any tensor is found, with LAVIS's errors under autocast beside
//! the case and without; and what is right passes both ways.

use crate::{Recorded, own};
use qformer::nn::Precision;
use qformer::parity::{Place, Report};
use qformer::tensor::{DType, Device};
use std::path::Path;

/// Every precision a case can be compared in here: on the CPU, and by the GPU's kernels on the host.
fn places() -> Vec<(&'static str, Place)> {
    let mut all = vec![("f32", Place::cpu(DType::F32))];
    if cfg!(feature = "host-kernels") {
        all.extend(["f16", "bf16"].map(|name| {
            let precision = Precision::named(name).unwrap();
            (name, Place { device: Device::open("host").unwrap(), precision, ..Place::cpu(DType::F32) })
        }));
    }
    all
}

fn is_noise(name: &str) -> bool {
    name.ends_with("attention.self.key.bias")
}

/// The lines of changed tensors all fail. Every second one is changed, then the others, so that the size of the gradients stays.
fn finds_all(kind: &str, with: bool) {
    let path = own(kind);
    let beside = path.with_extension("autocast.json");
    let case = Recorded::read(&path);
    let grads: Vec<String> =
        case.tensors.keys().filter(|n| n.starts_with("grads.") && !is_noise(n)).cloned().collect();
    for (dtype, place) in places() {
        if dtype == "f32" && !with {
            continue; // nothing beside the case is read
        }
        let beside = (with && dtype != "f32").then_some(beside.as_path());
        for by in [0.0, 2.0, -1.0] {
            for odd in [0, 1] {
                let mut changed = case.clone();
                let half: Vec<&String> = grads.iter().skip(odd).step_by(2).collect();
                half.iter().for_each(|name| changed.multiply(name, by));
                let report = changed.run_at(&place, beside).unwrap();
                assert!(!report.pass);
                for name in half {
                    let line = report.lines.iter().find(|l| &l.name == name).unwrap();
                    assert!(!line.pass, "{dtype}: {name} times {by} passes: {line:?}");
                }
            }
        }
    }
}

#[test]
fn zeroed_doubled_and_flipped_gradients_are_found() {
    finds_all("stage1", true);
    finds_all("vit", true);
    finds_all("stage2-llama", true);
}

#[test]
fn and_without_a_record_of_autocast() {
    finds_all("stage1", false);
}

/// Smaller than what 16 bits leave of a gradient whose true value is 0: only f32 tells that its record was lost.
#[test]
fn a_small_gradient_that_is_zeroed_is_found() {
    let Some((_, place)) = places().into_iter().nth(2) else { return };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lavis/stage1-eps.safetensors");
    let beside = path.with_extension("autocast.json");
    let case = Recorded::read(&path);
    let whole = case.run_at(&place, Some(&beside)).unwrap();
    assert!(whole.pass, "{whole}");
    let name = "grads.Qformer.cls.predictions.transform.dense.bias";
    let mut changed = case.clone();
    changed.multiply(name, 0.0);
    let report = changed.run_at(&place, Some(&beside)).unwrap();
    assert_eq!(report.first_divergence.as_deref(), Some(name), "{report}");
}

fn held(report: &Report) -> &str {
    report.held_to.as_deref().unwrap_or("f32")
}

#[test]
fn what_is_right_passes_by_a_derived_bound() {
    for (dtype, place) in places().into_iter().skip(1) {
        for kind in ["vit", "stage1", "stage1_ids", "train", "features", "retrieval", "generate"] {
            let report = Recorded::read(&own(kind)).run_at(&place, None).unwrap();
            assert!(report.pass, "{dtype}\n{report}");
            assert!(held(&report).starts_with("a bound derived from"), "{report}");
        }
    }
}

/// The last line says what a case was held to, and what was left out.
#[test]
fn the_last_line_says_how() {
    let case = Recorded::read(&own("train"));
    let last = |report: &Report| report.to_string().lines().last().unwrap_or_default().to_string();
    let f32 = case.run().unwrap();
    let noise = f32.skipped.len();
    let why = format!("; {noise} not compared: steps of AdamW along a gradient whose true value is 0");
    assert!(noise > 0 && last(&f32).starts_with("ok: ") && last(&f32).ends_with(&why), "{}", last(&f32));
    let Some((_, place)) = places().into_iter().nth(1) else { return };
    let beside = own("train").with_extension("autocast.json");
    let f16 = case.run_at(&place, Some(&beside)).unwrap();
    assert!(last(&f16).ends_with(&format!("; held to twice case.autocast.json{why}")), "{}", last(&f16));
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.json");
    for (text, said) in
        [("[]", "what tests/lavis/autocast.py writes"), ("{\"bf16\": {}}", "no errors of f16")]
    {
        std::fs::write(&broken, text).unwrap();
        let error = case.run_at(&place, Some(&broken)).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("case.autocast.json"), "{error}");
    }
}
