//! A training step of BLIP-2 at its real size, batch 128, counted without a GPU: launches, products, bytes and the peak of
//! memory against the stored table. A change that makes a step slower or larger shows here first; one that is wanted is
//! stored with
//!
//!     qformer bench step --device plan --config full --batch 128 --json > tests/gpu/step-full-128.json

use super::options;
use qformer::model::{CLS, Config, Model, SEP};
use qformer::nn::{Params, Precision};
use qformer::tensor::{DType, Device, Storage, Tensor};
use qformer::train::trainer::{Contrast, Micro, Trainer};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

#[test]
fn a_step_of_the_real_size_is_as_stored() {
    let stored = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/step-full-128.json");
    let stored: Value = serde_json::from_str(&std::fs::read_to_string(stored).unwrap()).unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_qformer"))
        .args(["bench", "step", "--device", "plan", "--config", "full", "--batch", "128", "--json"])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let now: Value = serde_json::from_slice(&out.stdout).unwrap();
    for key in ["launches", "products", "copies", "bytes", "flops", "peak_bytes", "allocations"] {
        assert_eq!(now[key], stored[key], "{key}");
    }
    let kernels = |v: &Value| -> Vec<(String, u64, u64)> {
        let line = |k: &Value| {
            (
                k["name"].as_str().unwrap().to_string(),
                k["launches"].as_u64().unwrap(),
                k["bytes"].as_u64().unwrap(),
            )
        };
        let mut all: Vec<_> = v["kernels"].as_array().unwrap().iter().map(line).collect();
        all.sort();
        all
    };
    let (now, stored) = (kernels(&now), kernels(&stored));
    for (a, b) in now.iter().zip(&stored) {
        assert_eq!(a, b);
    }
    assert_eq!(now.len(), stored.len());
}

/// The arithmetic of a step is the model's: 2mnk of the products that BLIP-2 cannot do without, within what the last
/// layers' unread rows and the heads add. `roofline.py` counts 648.3 GFLOP a pair, 18.7 of them in attention's kernels.
#[test]
fn products_are_those_of_the_roofline() {
    let stored = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/step-full-128.json");
    let stored: Value = serde_json::from_str(&std::fs::read_to_string(stored).unwrap()).unwrap();
    let per_pair = stored["flops"].as_f64().unwrap() / 128.0 / 1e9;
    assert!((per_pair - (648.3 - 18.7)).abs() < 0.01 * 648.3, "{per_pair} GFLOP a pair");
}

/// A GPU that is too small: who holds what, and how much of the batch fitted.
#[test]
fn too_little_memory_is_one_error() {
    let device = Device::open("plan:5").unwrap();
    let config = Config::named("full").unwrap();
    let (model, specs) = Model::new(config.clone(), false).unwrap();
    let params = Params::zeros(specs, &device, Precision::BF16).unwrap();
    let mut t = Trainer::new(model, params, options(Contrast::MicroBatch)).unwrap();
    let s = config.image_size;
    let batch = 16;
    let micro = Micro {
        image: Tensor::zeros(DType::F32, &[batch, 3, s, s]),
        text: vec![vec![CLS, 9, 9, 9, SEP]; batch],
        image_id: None,
        names: (0..batch).map(|i| i.to_string()).collect(),
    };
    let error = t.step(&[micro]).unwrap_err();
    assert_eq!(error.exit_code(), 6);
    let text = error.to_string();
    assert!(text.contains("memory of a plan") && text.contains("the largest holders: weights"), "{text}");
    assert!(text.contains("batch"), "{text}");
}

/// A plan has no results to write down.
#[test]
fn a_plan_is_refused_where_numbers_are_wanted() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lavis/vit-small.safetensors");
    let run = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_qformer")).args(args).output().unwrap();
    let out = run(&["parity", "--device", "plan", case.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2));
    assert!(
        text.contains("--device: expected cpu, cuda or host, got plan, which computes nothing"),
        "{text}"
    );
}

#[test]
fn names_of_devices() {
    let error = |name: &str| super::tiny::error(Device::open(name));
    let unknown = "device: name: expected cpu, cuda (or cuda:1, ..), host or plan (plan:80 has 80 GB), got ";
    assert_eq!(error("gpu"), format!("{unknown}gpu"));
    assert_eq!(error("cuda:x"), format!("{unknown}cuda:x"));
    if !cfg!(feature = "cuda") {
        assert_eq!(
            error("cuda"),
            "device: cuda: expected a build with CUDA kernels, got one without; build with `cargo build --release --features cuda`, or use --device cpu"
        );
    }
}

/// A token of a caption: seven kernels a layer, six around them; two small tables up, the best tokens down, no copies.
#[test]
fn a_token_is_few_launches_and_no_copies() {
    let device = Device::open("plan").unwrap();
    let Device::Gpu(gpu) = &device else { panic!("a CPU") };
    for precision in [Precision::F32, Precision::BF16] {
        let config = qformer::model::Config { max_pos: 24, ..qformer::model::Config::tiny() };
        let (layers, vocab) = (config.layers as u64, config.vocab);
        let side = config.image_size;
        let (model, specs) = qformer::model::Model::new(config, false).unwrap();
        let params = qformer::nn::Params::zeros(specs, &device, precision).unwrap();
        let image = Tensor::zeros(DType::F32, &[1, 3, side, side]).to(&device, Storage::F32).unwrap();
        let images = model.image_features(&qformer::nn::Pass::inference(&params), &image).unwrap();
        let counts = |tokens: usize| {
            let options = qformer::model::GenerateOptions {
                max_length: tokens + 1,
                min_length: tokens + 1,
                ..Default::default()
            };
            gpu.take_counts();
            model.generate(&params, &images, &options, &[0]).unwrap();
            gpu.take_counts()
        };
        let (few, many) = (counts(4), counts(9));
        assert_eq!(many.launched() - few.launched(), 5 * (7 * layers + 6));
        assert_eq!((many.multiplied(), few.multiplied()), (0, 0));
        assert_eq!((many.copies, few.copies), (2 * layers, 2 * layers), "caches that are made");
        assert!(many.downloaded < 9 * 3 * 4 * 16 && vocab > 16, "{} bytes down", many.downloaded);
    }
}
