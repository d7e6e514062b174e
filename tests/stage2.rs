//! The second stage: recorded cases, gradients, and what users do with it - train, resume, caption, ask.

use qformer::model::llm::LlmConfig;
use qformer::model::{Batch, Config, Image, Model};
use qformer::nn::{DropoutPlan, Params, Pass, Precision};
use qformer::parity::{self, Place as At};
use qformer::tensor::{DType, Device, Gradients, Storage, Tape, Tensor};
use std::path::{Path, PathBuf};

mod commands;
#[path = "stage2/doctor.rs"]
mod doctor;
#[path = "stage2/halves.rs"]
mod halves;
#[path = "stage2/memory.rs"]
mod memory;
#[path = "stage2/refused.rs"]
mod refused;
use commands::Place;

fn cases(folder: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)) else {
        println!("SKIPPED: no recorded cases in {folder}");
        return Vec::new();
    };
    let name = |p: &PathBuf| p.file_name().unwrap().to_string_lossy().into_owned();
    let paths = entries.map(|e| e.unwrap().path());
    let mut all: Vec<PathBuf> =
        paths.filter(|p| name(p).starts_with("stage2") && name(p).ends_with(".safetensors")).collect();
    all.sort();
    all
}

fn agrees(case: &Path, at: &At) -> parity::Report {
    let report = parity::run(case, at).unwrap_or_else(|e| panic!("{}: {e}", case.display()));
    assert!(report.pass, "{report}");
    assert!(report.lines.len() > 3, "{report}");
    report
}

/// Recorded by tests/lavis/stage2.py.
#[test]
fn the_repositorys_cases_agree() {
    let all = cases("tests/lavis");
    assert!(all.len() >= 6, "{all:?}");
    for case in all {
        agrees(&case, &At::cpu(DType::F32));
        agrees(&case, &At::cpu(DType::F64));
    }
}

#[test]
fn the_repositorys_cases_agree_on_the_gpus_kernels() {
    let name = std::env::var("QFORMER_TEST_DEVICE").ok();
    let Some(name) = name.or_else(|| cfg!(feature = "host-kernels").then(|| "host".into())) else {
        println!("SKIPPED: no kernels on the host in this build");
        return;
    };
    let device = Device::open(&name).unwrap();
    for case in cases("tests/lavis") {
        for dtype in ["f32", "f16", "bf16"] {
            let precision = Precision::named(dtype).unwrap();
            let at = At { device: device.clone(), precision, ..At::cpu(DType::F32) };
            let report = agrees(&case, &at);
            // In 16 bits to twice what LAVIS is off by under autocast.
            let beside = format!("twice {}.autocast.json", case.file_stem().unwrap().to_string_lossy());
            assert_eq!(report.held_to, (dtype != "f32").then_some(beside), "{}", case.display());
        }
    }
}

/// Cases of other sizes and families beside the repository; not everyone has them.
#[test]
fn cases_beside_the_repository() {
    for case in cases("../shared/parity-stage2") {
        agrees(&case, &At::cpu(DType::F32));
    }
}

fn llama(vocab: usize) -> LlmConfig {
    let text = format!(
        r#"{{"model_type":"llama","vocab_size":{vocab},"hidden_size":24,"num_hidden_layers":2,"num_attention_heads":4,
        "num_key_value_heads":2,"intermediate_size":40,"max_position_embeddings":64,"rms_norm_eps":1e-5}}"#
    );
    LlmConfig::from_json(&text).unwrap()
}

/// Every trained parameter is reached by a gradient, and nothing else is; without dropout and with it. Key biases of attention have
/// none but rounding.
#[test]
fn gradients_reach_what_is_trained() {
    let (model, specs) = Model::with_llm(Config::tiny(), llama(50), 0, false).unwrap();
    let params = Params::random(specs, DType::F64, 3).unwrap();
    let c = &model.config;
    let pixels: Vec<f64> =
        (0..2 * 3 * c.image_size * c.image_size).map(|i| (i % 17) as f64 / 9.0 - 1.0).collect();
    let image = Tensor::of(DType::F64, &pixels, &[2, 3, c.image_size, c.image_size]).unwrap();
    let text = vec![vec![1, 7, 9, 2], vec![1, 8]];
    for drop in [None, Some(DropoutPlan { p: 0.1, seed: 1, step: 2 })] {
        let (tape, mut grads) = (Tape::new(), Gradients::new());
        let pass = Pass::training(&params, &tape, drop);
        let batch = Batch { image: Image::Pixels(image.clone()), text: &text, image_id: None };
        let loss = model.stage2(&pass, &batch, None).unwrap();
        tape.backward(&loss, 1.0, &mut grads).unwrap();
        for (id, spec, _) in params.iter() {
            let found = grads.get(id.0).map(|g| g.slice::<f64>().iter().any(|x| *x != 0.0));
            assert_eq!(found.is_some(), spec.trained, "{}", spec.name);
            assert!(found != Some(false), "{}: all zero", spec.name);
        }
    }
}

/// What the tape keeps of a language model's layers: the spec's list and nothing for a weight gradient. Counted by the driver that
/// counts alone: bytes in use at most in a forward pass.
#[test]
fn a_frozen_layer_keeps_no_input_of_its_matmuls() {
    let config = |layers: usize| {
        let text = format!(
            r#"{{"model_type":"llama","vocab_size":64,"hidden_size":64,"num_hidden_layers":{layers},"num_attention_heads":4,
            "num_key_value_heads":2,"intermediate_size":160,"max_position_embeddings":2048}}"#
        );
        LlmConfig::from_json(&text).unwrap()
    };
    let len = 24;
    let peak = |layers: usize, samples: usize| {
        let device = Device::open("plan:100000").unwrap();
        let (model, specs) = Model::with_llm(Config::tiny(), config(layers), 0, false).unwrap();
        let params = Params::zeros(specs, &device, Precision::BF16).unwrap();
        let rows = samples * model.config.image_tokens();
        let tokens = Tensor::zeros_on(&device, Storage::F32, &[rows, model.config.vit_width]).unwrap();
        let (tape, text) = (Tape::new(), vec![vec![3u32; len]; samples]);
        let batch = Batch { image: Image::Tokens(tokens), text: &text, image_id: None };
        model.stage2(&Pass::training(&params, &tape, None), &batch, None).unwrap();
        device.take_counts().peak as f64
    };
    // What grows with the samples is no weight, and what grows with the layers is kept.
    let grown = |layers: usize| peak(layers, 256) - peak(layers, 128);
    let rows = 128.0 * (Config::tiny().num_query + len - 1) as f64;
    let each = (grown(5) - grown(3)) / 2.0 / rows;
    // Two bytes each: inputs of two norms 2 D, q and o of D, k and v of D / 2, gate and up 2 F; statistics of two norms and of
    // attention's 4 heads in four bytes.
    let list = 2.0 * (2.0 * 64.0 + 2.0 * 64.0 + 2.0 * 32.0 + 2.0 * 160.0) + 4.0 * (2.0 + 4.0);
    assert!(each <= 1.05 * list, "{each} bytes a row and layer, {list} in the list");
    assert!(each >= 0.5 * list, "{each} bytes a row and layer: nothing was counted");
}

fn world() -> Place {
    let place = Place::new(3);
    place.pictures("photos", 6);
    let entries: Vec<_> = (0..6)
        .map(|i| serde_json::json!({ "image": format!("p{i:02}.png"), "caption": format!("犬が{i}匹いる"), "image_id": i }))
        .collect();
    place.write("captions.json", serde_json::to_string(&entries).unwrap());
    place.language_model("llm");
    place
}

fn train<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let all = ["train", "--images", "photos", "--captions", "captions.json", "--out", out, "--quiet"];
    // The small tokenizer knows few characters: the others are three tokens each.
    let more_of = ["--device", "cpu", "--batch", "3", "--set", "steps=6", "--set", "model.max_txt_len=40"];
    [&all[..], &more_of, more].concat()
}

#[test]
fn trains_resumes_captions_and_answers() {
    let place = world();
    let begin = ["--start", "model", "--llm", "llm", "--prompt", "画像の説明:"];
    place.ok(&train("run", &begin));
    place.ok(&train("again", &[&begin[..], &["--steps", "3"]].concat()));
    place.ok(&["train", "--resume", "--out", "again", "--quiet"]);
    let bytes = |run: &str| std::fs::read(place.path(&format!("{run}/model/model.safetensors"))).unwrap();
    assert_eq!(bytes("run"), bytes("again"), "a resumed run has other bytes");
    // The language model is named, not stored.
    let file = place.read("run/model/config.json");
    assert!(file.contains("\"llm\"") && file.contains("blake3") && file.contains("画像の説明:"), "{file}");
    let whole = std::fs::metadata(place.path("run/model/model.safetensors")).unwrap().len();
    assert!(whole < 700_000, "{whole} bytes");

    place.ok(&["caption", "--model", "run/model", "photos", "--out", "captions-out.json", "--quiet"]);
    let found: serde_json::Value = serde_json::from_str(&place.read("captions-out.json")).unwrap();
    assert_eq!(found.as_array().unwrap().len(), 6);
    // The same caption alone and in a batch. A file has every character as it is; a terminal has not.
    let alone = |model: &str, out: &str| {
        place.ok(&["caption", "--model", model, "photos/p03.png", "--out", out, "--quiet"]);
        let found: serde_json::Value = serde_json::from_str(&place.read(out)).unwrap();
        found[0]["caption"].clone()
    };
    let one = alone("run/model", "one.json");
    assert_eq!(one, found[3]["caption"]);

    let questions = r#"[{"image":"photos/p00.png","question":"何匹ですか"},{"image":"photos/p01.png","question":"何色"}]"#;
    place.write("questions.json", questions);
    let ask = ["caption", "--model", "run/model", "--ask", "質問: {} 答え:", "--questions", "questions.json"];
    let answers = place.ok(&[&ask[..], &["--out", "answers.json"]].concat());
    assert_eq!(answers, "");
    let answers: serde_json::Value = serde_json::from_str(&place.read("answers.json")).unwrap();
    assert!(answers[0]["answer"].is_string() && answers[1]["question"] == "何色", "{answers}");
    let truth = serde_json::json!([
        { "image": "photos/p00.png", "question": "何匹ですか", "answer": answers[0]["answer"] },
        { "image": "photos/p01.png", "question": "何色", "answers": ["x", "y"] },
    ]);
    place.write("truth.json", truth.to_string());
    let judged = place.ok(&["evaluate", "--results", "answers.json", "--questions", "truth.json", "--json"]);
    let judged: serde_json::Value = serde_json::from_str(&judged).unwrap();
    assert_eq!(
        (judged["exact_match"].as_f64(), judged["vqa_accuracy"].as_f64()),
        (Some(50.0), Some(0.0)),
        "{judged}"
    );

    // To LAVIS and back: the same caption.
    place.ok(&["convert", "run/model", "--to", "lavis", "--out", "lavis.pth"]);
    assert!(
        place
            .ok(&["inspect", "lavis.pth"])
            .contains("kind: stage 2, for a language model that reads 24 columns")
    );
    place.write(
        "sizes.json",
        place.read("model/config.json").replace("\"max_txt_len\": 16", "\"max_txt_len\": 40"),
    );
    let back = ["convert", "lavis.pth", "--vit", "model/vit.safetensors", "--config", "sizes.json"];
    let llm = ["--llm", "llm", "--prompt", "画像の説明:", "--out", "back"];
    place.ok(&[&back[..], &llm].concat());
    assert_eq!(alone("back", "back.json"), one);
    assert!(place.fails(2, &[&back[..], &["--out", "none"]].concat()).contains("--llm"));

    // To transformers and back: the same caption.
    place.ok(&["convert", "run/model", "--vit", "model/vit.safetensors", "--to", "hf", "--out", "hf"]);
    let hf: serde_json::Value = serde_json::from_str(&place.read("hf/config.json")).unwrap();
    assert_eq!(hf["architectures"][0], "Blip2ForConditionalGeneration");
    // The tokenizer has as many tokens as the model has rows: there is one more for <image>.
    let rows = hf["image_token_index"].as_u64().unwrap();
    assert_eq!(hf["text_config"]["model_type"], "llama");
    assert_eq!(hf["text_config"]["vocab_size"], rows + 1);
    let back = ["convert", "hf", "--config", "sizes.json", "--llm", "llm", "--prompt", "画像の説明:"];
    place.ok(&[&back[..], &["--out", "from-hf"]].concat());
    assert_eq!(alone("from-hf", "from-hf.json"), one);

    let measured =
        ["evaluate", "--model", "run/model", "--captions", "captions.json", "--images", "photos", "--json"];
    let measured: serde_json::Value = serde_json::from_str(&place.ok(&measured)).unwrap();
    assert!(measured["cider_d"].is_number() && measured["txt_r1"].is_null(), "{measured}");

    // What only a first stage has.
    for command in [
        &["search", "index", "--out", "x.index"][..],
        &["features", "--mode", "image", "--out", "x.safetensors"],
    ] {
        let ran = place.run(&[command, &["--model", "run/model", "photos"]].concat());
        assert!(ran.code == 3 && ran.err.contains("stage 1"), "{command:?}: {}", ran.err);
    }
    // Another language model than the one it was trained with.
    place.language_model("other");
    let shard = place.path("other/model-00001-of-00002.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let ran = place.run(&["caption", "--model", "run/model", "--llm", "other", "photos/p00.png"]);
    assert!(ran.code == 3 && ran.err.contains("trained with"), "{}", ran.err);
}
