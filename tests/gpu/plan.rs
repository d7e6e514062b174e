//! A training step of BLIP-2 at its real size, batch 128, counted without a GPU: launches, matmuls, bytes and the peak of
//! memory against the stored table. A change that makes a step slower or larger shows here first; one that is wanted is
//! stored with
//!
//!     qformer bench step --device plan --config full --batch 128 --json > tests/gpu/step-full-128.json

use qformer::nn::Precision;
use qformer::ops::{self, Gelu, Heads, Options, Segment, Segments, Weight};
use qformer::tensor::{DType, Device, Gpu, Gradients, Storage, Tape, Tensor};
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
    for key in ["launches", "products", "copies", "waits", "bytes", "flops", "peak_bytes", "allocations"] {
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

/// Nothing but the GELUs of the image encoder's 39 blocks is gone where matmuls end with them, and with each of them a read
/// and a write of 32,896 rows of 6,144 numbers in 16 bits.
#[test]
fn products_that_end_with_gelu_save_its_launches_and_its_bytes() {
    let counted = |form: &str| -> Value {
        let step = ["bench", "step", "--device", "plan", "--config", "full", "--batch", "128", "--json"];
        let out = Command::new(env!("CARGO_BIN_EXE_qformer")).args(step).args(["--vit-gelu", form]).output();
        let out = out.unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let [exact, tanh] = ["exact", "tanh"].map(counted);
    let number = |v: &Value, key: &str| v[key].as_u64().unwrap();
    let saved = |key: &str| number(&exact, key) - number(&tanh, key);
    assert_eq!((saved("launches"), saved("bytes")), (39, 39 * 2 * 32_896 * 6_144 * 2));
    for key in ["products", "copies", "flops"] {
        assert_eq!(saved(key), 0, "{key}");
    }
    assert!(number(&tanh, "peak_bytes") <= number(&exact, "peak_bytes"));
    let launches = |v: &Value, name: &str| {
        let lines = v["kernels"].as_array().unwrap();
        lines.iter().find(|k| k["name"] == name).map_or(0, |k| number(k, "launches"))
    };
    let matmul = "matmul f16 [32896, 1408] x [1408, 6144] + bias";
    let [plain, ended] = ["", ", gelu"].map(|gelu| format!("{matmul}{gelu} -> f16"));
    for (step, form, gelus, plains, ends) in [(&exact, "exact", 39, 39, 0), (&tanh, "tanh", 0, 0, 39)] {
        assert_eq!(step["vit_gelu"], form);
        let found = ["gelu_fwd_f16", &plain, &ended].map(|name| launches(step, name));
        assert_eq!(found, [gelus, plains, ends], "{form}");
    }
}

/// Captions of 16 tokens by three beams at the real size, 64 pictures and one: what they launch is stored in
/// `tests/gpu/captions-full.json`. When every picture had the image encoder to itself, 64 took 18,272 launches, 16,256 matmuls
/// and 9,944 copies.
#[test]
fn captions_of_the_real_size_are_as_stored() {
    let stored = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/captions-full.json");
    let stored: Value = serde_json::from_str(&std::fs::read_to_string(stored).unwrap()).unwrap();
    for batch in ["1", "64"] {
        let caption =
            ["bench", "caption", "--device", "plan", "--config", "full", "--json", "--batch", batch];
        let out = Command::new(env!("CARGO_BIN_EXE_qformer")).args(caption).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let now: Value = serde_json::from_slice(&out.stdout).unwrap();
        for key in ["launches", "products", "copies", "waits"] {
            assert_eq!(now[key], stored[batch][key], "{key} of {batch}");
        }
    }
    let asked: u64 =
        ["launches", "products", "copies"].map(|key| stored["64"][key].as_u64().unwrap()).iter().sum();
    assert!(asked <= 4500, "{asked} for 64 captions");
}

/// `{"opt-2.7b": {..}, ..}`, what `bench step --llm NAME --device plan --config full --batch 128 --json` says, without its kernels.
#[test]
fn steps_with_a_language_model_are_as_stored() {
    let stored = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/step-llm-128.json");
    let stored: Value = serde_json::from_str(&std::fs::read_to_string(stored).unwrap()).unwrap();
    for (name, stored) in stored.as_object().unwrap() {
        let step = ["bench", "step", "--device", "plan", "--config", "full", "--batch", "128", "--json"];
        let out = Command::new(env!("CARGO_BIN_EXE_qformer")).args(step).args(["--llm", name]).output();
        let out = out.unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let now: Value = serde_json::from_slice(&out.stdout).unwrap();
        for (key, value) in stored.as_object().unwrap() {
            assert_eq!(&now[key], value, "{key} of {name}");
        }
    }
}

/// More rows of queries than a GPU takes blocks in the second direction of a grid.
#[test]
fn a_step_of_700_pairs_is_one_that_a_gpu_takes() {
    let step = ["bench", "step", "--device", "plan", "--config", "base", "--batch", "700", "--json"];
    let out = Command::new(env!("CARGO_BIN_EXE_qformer")).args(step).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// The arithmetic of a step is the model's: 2mnk of the matmuls that BLIP-2 cannot do without, within what the last
/// layers' unread rows and the heads add. `roofline.py` counts 648.3 GFLOP a pair, 18.7 of them in attention's kernels.
#[test]
fn products_are_those_of_the_roofline() {
    let stored = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/step-full-128.json");
    let stored: Value = serde_json::from_str(&std::fs::read_to_string(stored).unwrap()).unwrap();
    let per_pair = stored["flops"].as_f64().unwrap() / 128.0 / 1e9;
    assert!((per_pair - (648.3 - 18.7)).abs() < 0.01 * 648.3, "{per_pair} GFLOP a pair");
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
    let unknown = "device: name: expected auto, cpu, cuda (or cuda:1, ..), host or plan (plan:80 has 80 GB, plan:CARD is one of rtx-4080-laptop, rtx-3090, rtx-4090, rtx-5090, a100, h100, h200), got ";
    assert_eq!(error("gpu"), format!("{unknown}gpu"));
    assert_eq!(error("cuda:x"), format!("{unknown}cuda:x"));
    if !cfg!(feature = "cuda") {
        assert_eq!(
            error("cuda"),
            "device: cuda: expected a build with CUDA kernels, got one without; build with `cargo build --release --features cuda`, or use --device cpu"
        );
    }
}

/// A token of a caption: five kernels a layer, four around them; two small tables up, the best tokens down, no copies.
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
        assert_eq!(many.launched() - few.launched(), 5 * (5 * layers + 4));
        assert_eq!((many.multiplied(), few.multiplied()), (0, 0));
        assert_eq!((many.copies, few.copies), (2 * layers, 2 * layers), "caches that are made");
        assert!(many.downloaded < 9 * 3 * 4 * 16 && vocab > 16, "{} bytes down", many.downloaded);
    }
}

fn plan() -> (Device, Gpu) {
    let device = Device::open("plan").unwrap();
    let Device::Gpu(gpu) = &device else { panic!("a CPU") };
    let gpu = gpu.clone();
    (device, gpu)
}

fn zeros(device: &Device, storage: Storage, sizes: &[usize]) -> Tensor {
    Tensor::zeros(DType::F32, sizes).to(device, storage).unwrap()
}

/// Attention of two heads over `k_rows` keys that all query rows see.
fn attend(q: Heads, k: Heads, v: Heads, heads: usize) -> qformer::Result<Tensor> {
    let (q_rows, k_rows) = (q.tensor.rows().0, k.tensor.rows().0);
    let all = Segment { q: 0..q_rows, a: 0..k_rows, b: 0..0, causal: false };
    ops::attention([q, k, v], &Segments::new(vec![all], q_rows, k_rows)?, heads, 1.0, None)
}

/// Where q, k and v are the columns of one matrix, side by side, their gradients are written into one matrix: by the two
/// kernels of the backward, with nothing to zero or to add. Anything else gets room of its own.
#[test]
fn the_gradient_of_one_matrix_is_one_matrix() {
    let (device, gpu) = plan();
    let c = 16;
    // Which of three tensors q, k and v are in, and what q is of its tensor.
    let work = |place: [usize; 3], columns: [usize; 3], width: usize, first: fn(&Tensor) -> Tensor| {
        let tape = Tape::new();
        let all = [0, 1, 2].map(|key| tape.leaf(&zeros(&device, Storage::F32, &[4, width]), key));
        let q = first(&all[place[0]]);
        let tensors = [&q, &all[place[1]], &all[place[2]]];
        let [q, k, v] = [0, 1, 2].map(|i| Heads { tensor: tensors[i], column: columns[i] });
        let out = attend(q, k, v, 2).unwrap();
        let seed = zeros(&device, Storage::F32, out.shape().sizes());
        gpu.take_counts();
        tape.backward_from(&[(&out, seed)], &mut Gradients::new()).unwrap();
        let counts = gpu.take_counts();
        (counts.launched(), counts.copies)
    };
    let side_by_side = [0, c, 2 * c];
    // The one copy is the seed.
    assert_eq!(work([0; 3], side_by_side, 3 * c, Tensor::clone), (2, 1));
    let rows = |x: &Tensor| x.slice_rows(0..2).unwrap();
    let narrow = |x: &Tensor| x.reshape(&[8, 24]).unwrap();
    for (place, columns, first) in [
        ([0; 3], [c, 0, 2 * c], Tensor::clone as fn(&Tensor) -> Tensor),
        ([0, 1, 2], side_by_side, Tensor::clone),
        ([0, 0, 1], side_by_side, Tensor::clone),
        ([0, 1, 1], side_by_side, Tensor::clone),
        ([0; 3], side_by_side, rows),
        ([0; 3], side_by_side, narrow),
    ] {
        assert!(work(place, columns, 3 * c, first).1 >= 4, "{place:?} {columns:?}");
    }
    // Heads that fill their tensors need no zeros.
    assert_eq!(work([0, 1, 2], [0; 3], c, Tensor::clone), (2, 1));
}

/// Kernels in 16 bits are made for a few head sizes; what is not made of pieces of 16 bytes is computed in f32.
#[test]
fn a_head_has_the_kernel_of_its_size() {
    let (device, gpu) = plan();
    let kernel = |storage: Storage, heads: usize, d: usize, lead: usize| {
        let x = zeros(&device, storage, &[4, lead + heads * d]);
        let h = Heads { tensor: &x, column: lead };
        gpu.take_counts();
        let y = super::tiny::error(attend(h, h, h, heads));
        let names = gpu.take_counts().launches.into_keys();
        let mut names = names.filter_map(|n| n.strip_prefix("attention_fwd_").map(str::to_string));
        names.next().unwrap_or(y)
    };
    let sizes = [8, 32, 40, 64, 72, 88, 96, 128, 160];
    let want = ["d32", "d32", "d80", "d64", "d80", "d88", "d96", "d128", "d160"].map(|d| format!("bf16_{d}"));
    assert_eq!(sizes.map(|d| kernel(Storage::BF16, 2, d, 0)), want);
    assert_eq!(kernel(Storage::F16, 1, 64, 8), "f16_d64");
    assert_eq!(kernel(Storage::F16, 1, 64, 4), "f32");
    assert_eq!(kernel(Storage::F16, 2, 12, 0), "f32");
    assert_eq!(kernel(Storage::F32, 2, 64, 0), "f32");
    let large = "attention: head size: expected at most 160 on a GPU, got 161";
    assert_eq!(kernel(Storage::F32, 1, 161, 0), large);
}

/// Operands that belong together are stored alike; what is always in f32 is.
#[test]
fn operands_stored_differently_are_refused() {
    let (device, _) = plan();
    let error = super::tiny::error::<Tensor>;
    let [single, half] = [Storage::F32, Storage::F16];
    let of = |storage: Storage, sizes: &[usize]| zeros(&device, storage, sizes);
    let (x, w, b) = (of(half, &[4, 8]), of(half, &[5, 8]), of(half, &[5]));
    let stored = |what: &str, want: &str, got: &str| format!("{what}: expected stored as {want}, got {got}");
    for options in [Options::default, Options::batch_invariant, || Options::gelu(Gelu::Tanh)] {
        let linear =
            |x: &Tensor, w: &Tensor, b: Option<&Tensor>| ops::linear(x, Weight::Dense(w, b), options());
        assert_eq!(error(linear(&x, &w, Some(&b))), "no error");
        assert_eq!(error(linear(&x, &of(single, &[5, 8]), None)), stored("linear: weight", "f16", "f32"));
        assert_eq!(error(linear(&x, &w, Some(&of(single, &[5])))), stored("linear: bias", "f16", "f32"));
    }
    let column = |tensor| Heads { tensor, column: 0 };
    let y = of(single, &[4, 8]);
    assert_eq!(error(attend(column(&x), column(&y), column(&x), 1)), stored("attention: k", "f16", "f32"));
    assert_eq!(error(attend(column(&x), column(&x), column(&y), 1)), stored("attention: v", "f16", "f32"));
    assert_eq!(error(ops::max_similarity(&x, &y, 2)), stored("max_similarity: b", "f16", "f32"));
    assert_eq!(error(ops::divide(&x, &of(half, &[]))), stored("divide: divisor", "f32", "f16"));
    let fused = |stored: [Storage; 4]| {
        let [g, b] = [0, 1].map(|i| of(stored[i], &[8]));
        let layer = [&of(stored[2], &[5, 8]), &of(stored[3], &[5])];
        error(ops::linear(&x, Weight::AfterNorm { norm: [&g, &b], layer }, Options::default()))
    };
    assert_eq!(fused([single; 4]), "no error");
    for (i, name) in ["gamma", "beta", "weight", "bias"].into_iter().enumerate() {
        let mut storages = [single; 4];
        storages[i] = half;
        assert_eq!(fused(storages), stored(&format!("norm_linear: {name}"), "f32", "f16"));
    }
    let patches = |channels: usize, storages: [Storage; 4]| {
        let image = of(storages[0], &[1, channels, 6, 6]);
        let (weight, b) = (of(half, &[5, channels, 3, 3]), of(storages[1], &[5]));
        let (cls, pos) = (of(storages[2], &[1, 1, 5]), of(storages[3], &[1, 5, 5]));
        error(ops::patch_embed(&image, &weight, &b, &cls, &pos))
    };
    assert_eq!(patches(3, [single; 4]), "no error");
    let channels = "patch_embed: image: expected 3 channels on a GPU, got 4";
    assert_eq!(patches(4, [single; 4]), channels);
    for (i, name) in ["image", "bias", "cls_token", "pos_embed"].into_iter().enumerate() {
        let mut storages = [single; 4];
        storages[i] = half;
        assert_eq!(patches(3, storages), stored(&format!("patch_embed: {name}"), "f32", "f16"));
    }
    let planes = |bytes: usize, size: usize| {
        let both = [&device, &Device::Cpu]
            .map(|device| error(ops::pixel_planes(device, &vec![0; bytes], size, [0.0; 3], [1.0; 3])));
        assert_eq!(both[0], both[1]);
        both[0].clone()
    };
    let want = |size: usize, got: usize| {
        format!("pixel_planes: bytes: expected pictures of {size} x {size} x 3 bytes, got {got} bytes")
    };
    assert_eq!(planes(54, 3), "no error");
    assert_eq!(planes(55, 3), want(3, 55));
    assert_eq!(planes(54, 0), want(0, 54));
}
