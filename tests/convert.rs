//! `qformer convert` and `qformer inspect`, run as users run them.

#[allow(dead_code)]
#[path = "weights/craft.rs"]
mod craft;
#[path = "convert/forms.rs"]
mod forms;
#[path = "weights/shared.rs"]
mod shared;
#[path = "weights/sparse.rs"]
mod sparse;

use qformer::model::{Config, Model};
use qformer::nn::{Params, Pass};
use qformer::pretrained::load;
use qformer::tensor::{DType, Tensor};
use qformer::weights::start::Plan;
use qformer::weights::{Dtype, Info, Set, write};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// (exit code, stdout, stderr)
fn qformer(args: &[&str]) -> (i32, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_qformer")).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

fn ok(args: &[&str]) -> String {
    let (code, out, err) = qformer(args);
    assert_eq!(code, 0, "{args:?}: {err}");
    out
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&ok(args)).unwrap()
}

fn path(dir: &tempfile::TempDir, name: &str) -> String {
    dir.path().join(name).to_str().unwrap().to_string()
}

/// All tensors of a file by name, as the safetensors crate reads them.
fn tensors(file: &str) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    shared::expected(Path::new(file)).into_iter().map(|t| (t.name, (t.dtype, t.shape, t.bytes))).collect()
}

#[test]
fn lavis_to_ours_and_back_is_the_same_bits() {
    let Some(dir) = shared::file("weights") else { return };
    let tmp = tempfile::tempdir().unwrap();
    let (ours, back) = (path(&tmp, "ours"), path(&tmp, "back.safetensors"));
    let (lavis, bert) = (dir.join("lavis_checkpoint.pth"), dir.join("bert-tiny"));
    let (lavis, bert) = (lavis.to_str().unwrap(), bert.to_str().unwrap());
    ok(&["convert", lavis, "--bert", bert, "--config", "tiny", "--out", &ours]);
    let snippet = ok(&["convert", &ours, "--to", "lavis", "--out", &back]);
    assert_eq!(snippet.lines().count(), 5, "{snippet}");
    assert!(snippet.contains(&format!("load_state_dict(safetensors.torch.load_file(\"{back}\")")));
    // The English model that LAVIS builds has another vocabulary.
    assert!(snippet.contains(&format!("resize_token_embeddings({})", Config::tiny().vocab)));
    let expected = dir.join("lavis_checkpoint.expected.safetensors");
    assert_eq!(tensors(&back), tensors(expected.to_str().unwrap()));
    let same = json(&["inspect", lavis, "--compare", &back, "--json"]);
    assert_eq!((&same["same"], &same["equal"]), (&Value::Bool(true), &Value::from(130)));
    for name in ["vocab.txt", "tokenizer_config.json"] {
        let copied = std::fs::read(tmp.path().join("ours").join(name)).unwrap();
        assert_eq!(copied, std::fs::read(dir.join("bert-tiny").join(name)).unwrap());
    }
}

#[test]
fn eva_and_bert_make_a_folder_ready_for_training() {
    let Some(dir) = shared::file("weights") else { return };
    let tmp = tempfile::tempdir().unwrap();
    let out = path(&tmp, "start");
    let (vit, bert) = (dir.join("eva_vit_tiny.pth"), dir.join("bert-tiny"));
    let (vit, bert) = (vit.to_str().unwrap(), bert.to_str().unwrap());
    ok(&["convert", "--vit", vit, "--bert", bert, "--config", "tiny", "--image-size", "56", "--out", &out]);
    let config = std::fs::read_to_string(tmp.path().join("start/config.json")).unwrap();
    let config = Config::from_json(&config).unwrap();
    assert_eq!(config, Config { image_size: 56, ..Config::tiny() });
    let eva = tensors(dir.join("eva_vit_tiny.expected.safetensors").to_str().unwrap());
    let frozen = tensors(&path(&tmp, "start/vit.safetensors"));
    assert_eq!(frozen.len(), 4 + 3 * 13);
    for (name, found) in &frozen {
        if !name.ends_with("pos_embed") {
            assert_eq!(found, &eva[name.strip_prefix("visual_encoder.").unwrap()], "{name}");
        }
    }
    // The hash of the image encoder is that of the file it came from.
    let (_, specs) = Model::new(config, false).unwrap();
    let vit_wants = || load::wants(&specs).into_iter().filter(|w| w.name.starts_with("visual_")).collect();
    let hash = |set: Set| Plan::new(vec![set], vit_wants(), false).unwrap().vit_hash().unwrap().unwrap();
    let stored = Set::open(Path::new(&out)).unwrap().files()[0].metadata()["vit_blake3"].clone();
    assert_eq!(stored, hash(Set::open(Path::new(vit)).unwrap()));
    assert_eq!(stored, hash(Set::open(Path::new(&out)).unwrap()));
    // Sizes that the shapes show need no --config, but the tiny model's heads do not show.
    let (code, _, err) = qformer(&["convert", "--vit", vit, "--bert", bert, "--out", &out]);
    assert_eq!(code, 2, "{err}");
}

/// The same random model as a folder, for LAVIS and under Hugging Face's names.
#[test]
fn a_random_model_goes_to_lavis_and_hugging_face_and_back() {
    let tmp = tempfile::tempdir().unwrap();
    let [model, lavis, again, hf, from_hf] =
        ["model", "lavis.safetensors", "again", "hf.safetensors", "from_hf"].map(|n| path(&tmp, n));
    ok(&["convert", "--random", "tiny", "--out", &model]);
    ok(&["convert", &model, "--to", "lavis", "--out", &lavis]);
    ok(&[
        "convert",
        &lavis,
        "--vit",
        &format!("{model}/vit.safetensors"),
        "--config",
        "tiny",
        "--out",
        &again,
    ]);
    for file in ["model.safetensors", "vit.safetensors"] {
        // Their metadata differs: one of the folders has a vocabulary.
        let read = |dir: &str| tensors(&format!("{dir}/{file}"));
        assert!(read(&model) == read(&again), "{file} differs");
    }
    ok(&["convert", &model, "--to", "hf", "--out", &hf]);
    let names = tensors(&hf);
    assert!(names.contains_key("vision_model.encoder.layers.2.self_attn.qkv.bias"));
    assert!(names.contains_key("qformer.encoder.layer.3.intermediate_query.dense.weight"));
    assert!(
        !names.keys().any(|n| n.contains("visual_encoder") || n.contains("Qformer") || n.contains("q_bias"))
    );
    let (code, _, err) = qformer(&["convert", &hf, "--config", "tiny", "--out", &from_hf]);
    assert_eq!(code, 2);
    assert!(err.contains("--partial"), "{err}");
    ok(&["convert", &hf, "--config", "tiny", "--partial", "--out", &from_hf]);
    let (before, after) =
        (tensors(&format!("{model}/model.safetensors")), tensors(&format!("{from_hf}/model.safetensors")));
    let differing: Vec<&String> = before.keys().filter(|n| before[*n] != after[*n]).collect();
    // What Hugging Face has no name for starts anew, from the same seed: even that is equal.
    assert!(differing.is_empty(), "{differing:?}");
    let values = |dir: &str| {
        let set = Set::open(Path::new(&format!("{dir}/vit.safetensors"))).unwrap();
        set.tensors().map(|t| (t.name.clone(), set.f32(&t.name).unwrap())).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(values(&model), values(&from_hf), "the image encoder, biases joined and split");
}

fn load(folder: &str, halves: bool) -> (Model, Params) {
    let text = std::fs::read_to_string(Path::new(folder).join("config.json")).unwrap();
    let (model, specs) = Model::new(Config::from_json(&text).unwrap(), false).unwrap();
    let plan = Plan::new(vec![Set::open(Path::new(folder)).unwrap()], load::wants(&specs), false).unwrap();
    let params = match halves {
        true => load::params(specs, &plan, DType::F32, 0).unwrap(),
        false => {
            let mut i = 0;
            Params::new(specs, |spec| {
                i += 1;
                Tensor::new(plan.f32(i - 1, |_| panic!("all is in the files"))?, &spec.shape)
            })
            .unwrap()
        }
    };
    (model, params)
}

#[test]
fn frozen_halves_stay_halves_and_compute_the_same() {
    let tmp = tempfile::tempdir().unwrap();
    let folder = path(&tmp, "model");
    ok(&["convert", "--random", "heads", "--out", &folder]);
    let (model, whole) = load(&folder, false);
    let (_, kept) = load(&folder, true);
    let halves = kept.specs().iter().filter(|s| kept.half(kept.find(&s.name).unwrap()).is_some()).count();
    assert_eq!(halves, 4, "qkv, proj, fc1, fc2 of the one block");
    let s = model.config.image_size;
    let pixels: Vec<f32> = (0..2 * 3 * s * s).map(|i| ((i * 7919 % 1000) as f32 - 500.0) / 250.0).collect();
    let image = Tensor::new(pixels, &[2, 3, s, s]).unwrap();
    let features = |params: &Params| {
        model.image_features(&Pass::inference(params), &image).unwrap().proj.to_f64().unwrap()
    };
    let (a, b) = (features(&whole), features(&kept));
    let worst = a.iter().zip(&b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
    // The same products in tiles of another size: rounding of f32 sums over at most 392 terms of unit vectors.
    assert!(worst < 1e-6, "{worst}");
    assert!(a.iter().any(|x| x.abs() > 1e-3));
}

#[test]
fn inspect_lists_what_is_in_a_file() {
    let tmp = tempfile::tempdir().unwrap();
    let folder = path(&tmp, "model");
    ok(&["convert", "--random", "tiny", "--out", &folder]);
    let report = json(&["inspect", &folder, "--json", "--hash"]);
    assert_eq!(report["names"], "LAVIS");
    let files = report["files"].as_array().unwrap();
    assert_eq!(files.len(), 2);
    let of = |file: usize, name: &str| {
        let list = files[file]["tensors"].as_array().unwrap();
        list.iter().find(|t| t["name"] == name).unwrap().clone()
    };
    let temp = of(0, "temp");
    assert_eq!((&temp["dtype"], &temp["shape"]), (&"F32".into(), &serde_json::json!([])));
    assert_eq!(temp["blake3"], blake3::hash(&0.07f32.to_le_bytes()).to_hex().as_str());
    assert_eq!(of(1, "visual_encoder.blocks.0.mlp.fc1.weight")["dtype"], "F16");
    let text = ok(&["inspect", &folder]);
    assert!(text.contains("temp") && text.contains("F32: ") && !text.contains(" blake3:"), "{text}");
}

/// Bytes read and pages touched by a run of the program, as Linux counts them for a shell and the children it waited for.
fn cost(args: &[&str]) -> (u64, u64) {
    let script = r#""$@" > /dev/null && cat /proc/$$/io /proc/$$/stat"#;
    let shell =
        Command::new("sh").args(["-c", script, "sh", env!("CARGO_BIN_EXE_qformer")]).args(args).output();
    let out = shell.unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let read = text.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap_or_else(|| panic!("{text}"));
    // behind the name in brackets: state, then 8 numbers, then the children's page faults
    let faults = text.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(8)).unwrap();
    (read.trim().parse().unwrap(), faults.parse().unwrap())
}

/// Files of 5 GiB in 1280 tensors, mostly holes, are listed by their headers: what else is read is the program itself.
#[test]
fn large_files_are_listed_without_reading_a_tensor() {
    let tmp = tempfile::tempdir().unwrap();
    let small = path(&tmp, "small.safetensors");
    sparse::safetensors(Path::new(&small), 1, 4).unwrap();
    let (idle, idle_faults) = cost(&["inspect", &small]);
    type Writer = fn(&Path, u64, u64) -> std::io::Result<()>;
    let files: [(&str, Writer); 2] =
        [("large.safetensors", sparse::safetensors), ("large.pth", sparse::pytorch)];
    for (name, write) in files {
        let name = path(&tmp, name);
        if let Err(e) = write(Path::new(&name), 1280, 4 << 20) {
            println!("SKIPPED: this file system has no files with holes ({e})");
            return;
        }
        let report = json(&["inspect", &name, "--json"]);
        assert_eq!(report["totals"][0]["bytes"], 5u64 << 30);
        assert_eq!(report["files"][0]["tensors"].as_array().unwrap().len(), 1280);
        let (read, faults) = cost(&["inspect", &name, "--json"]);
        // Names, shapes and places; of a zip archive they stand in the pickle, the directory and every local header.
        assert!(read - idle < 1 << 20, "{name}: {read} bytes read, {idle} of them for a file of nothing");
        assert!(faults < idle_faults + 2000, "{name}: {faults} pages, {idle_faults} for a file of nothing");
    }
    // The measure sees what is read.
    sparse::safetensors(Path::new(&small), 2, 4 << 20).unwrap();
    let (read, faults) = cost(&["inspect", &small, "--compare", &small]);
    assert!(read - idle >= 16 << 20 && faults >= idle_faults + 2000, "{read} bytes, {faults} pages");
}

#[test]
fn compare_says_what_differs() {
    let tmp = tempfile::tempdir().unwrap();
    let info = |name: &str, dtype, n| Info { name: name.into(), dtype, shape: vec![n] };
    let file = |name: &str, tensors: &[(Info, u8)]| {
        let infos: Vec<Info> = tensors.iter().map(|t| t.0.clone()).collect();
        write::write(
            &qformer::files::RealDisk,
            &tmp.path().join(name),
            &infos,
            &BTreeMap::new(),
            |info, w| {
                let fill = tensors.iter().find(|t| t.0.name == info.name).unwrap().1;
                w.write_all(&vec![fill; info.bytes()]).map_err(|e| qformer::Error::io("test", name, &e))
            },
        )
        .unwrap();
        path(&tmp, name)
    };
    let a = file(
        "a",
        &[
            (info("x", Dtype::U8, 4), 1),
            (info("y", Dtype::U8, 4), 1),
            (info("z", Dtype::U8, 4), 1),
            (info("a", Dtype::U8, 1), 1),
        ],
    );
    let b = file(
        "b",
        &[
            (info("x", Dtype::U8, 4), 1),
            (info("y", Dtype::U8, 4), 2),
            (info("z", Dtype::I8, 4), 1),
            (info("b", Dtype::U8, 1), 1),
        ],
    );
    let (code, out, err) = qformer(&["inspect", &a, "--compare", &b]);
    assert_eq!(code, 5, "{err}");
    for line in [
        "differs: y: 4 of 4 bytes",
        "differs: z: U8 [4] here, I8 [4] there",
        "1 tensors equal, 2 differ, 2 in one only",
    ] {
        assert!(out.contains(line), "{out}");
    }
    assert_eq!(json(&["inspect", &a, "--compare", &a, "--json"])["same"], true);
}

/// Sizes that cannot be read are not guessed from the shapes instead.
#[test]
fn a_broken_config_beside_the_model_is_an_error() {
    let tmp = tempfile::tempdir().unwrap();
    let (model, out) = (path(&tmp, "model"), path(&tmp, "out.safetensors"));
    ok(&["convert", "--random", "heads", "--out", &model]);
    let config = tmp.path().join("model/config.json");
    let honest = std::fs::read_to_string(&config).unwrap();
    let cut = &honest[..honest.len() / 2];
    let odd = honest.replace("\"heads\": 2", "\"heads\": 3");
    let misspelt = honest.replace("\"hidden\"", "\"hiden\"");
    for (text, says) in [(cut, "JSON"), ("", "JSON"), ("[]", "sizes"), (&odd, "heads"), (&misspelt, "hiden")]
    {
        assert_ne!(text, honest);
        std::fs::write(&config, text).unwrap();
        let (code, _, err) = qformer(&["convert", &model, "--to", "lavis", "--out", &out]);
        assert_eq!(code, 3, "{text}: {err}");
        assert!(err.contains("config.json") && err.contains(says) && err.contains("--config"), "{err}");
        assert!(!Path::new(&out).exists());
    }
    ok(&["convert", &model, "--config", "heads", "--to", "lavis", "--out", &out]);
    std::fs::write(&config, [0xff, 0xfe]).unwrap();
    assert_eq!(qformer(&["convert", &model, "--to", "lavis", "--out", &out]).0, 2, "it is there");
    assert_eq!(qformer(&["convert", &model, "--to", "lavis", "--out", &out, "--force"]).0, 3);
    // Hugging Face's own says nothing of our sizes and is no mistake.
    std::fs::write(&config, r#"{"model_type": "blip-2", "num_query_tokens": 32}"#).unwrap();
    ok(&["convert", &model, "--to", "lavis", "--out", &out, "--force"]);
}

#[test]
fn errors_say_what_to_do() {
    let tmp = tempfile::tempdir().unwrap();
    let out = path(&tmp, "out");
    let text = path(&tmp, "text.pth");
    std::fs::write(&text, "this is no file of weights").unwrap();
    let missing = path(&tmp, "missing.pth");
    let empty = tmp.path().to_str().unwrap();
    for (args, code, says) in [
        (vec!["convert", "--out", &out], 2, "a checkpoint, or --bert and --vit"),
        (vec!["convert", &text, "--out", &out], 3, "neither safetensors nor a PyTorch file"),
        (vec!["convert", &missing, "--out", &out], 3, "check the path"),
        (vec!["convert", empty, "--out", &out], 3, "a folder with model.safetensors or pytorch_model.bin"),
        (vec!["convert", "--random", "huge", "--out", &out], 3, "tiny, heads, base, full"),
        (vec!["convert", "--random", "tiny", "--image-size", "3", "--out", &out], 2, "image_size"),
        (vec!["inspect", &text], 3, "neither safetensors nor a PyTorch file"),
    ] {
        let (found, _, err) = qformer(&args);
        assert!(err.contains(says) && found == code, "{args:?}: {found} {err}");
        assert!(!err.contains("panicked"), "{err}");
    }
    assert!(!Path::new(&out).exists(), "nothing is written on an error");
}
