//! The forms of others: a folder for transformers, a checkpoint of LAVIS, a BERT that is a vocabulary only; what compares as the same.

use super::{craft, json, ok, path, qformer, tensors};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

fn random(tmp: &tempfile::TempDir) -> String {
    let model = path(tmp, "model");
    ok(&["convert", "--random", "tiny", "--out", &model]);
    model
}

fn read_json(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Names and shapes are those of transformers' own class at these sizes (`state_dict()` of 4.57.6, the same in 5.24.0).
#[test]
fn transformers_gets_a_folder_with_all_of_its_names() {
    let tmp = tempfile::tempdir().unwrap();
    let (model, hf) = (random(&tmp), path(&tmp, "hf"));
    ok(&["convert", &model, "--to", "hf", "--out", &hf]);
    let recorded = read_json(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lavis/hf-names.json"));
    let expected: BTreeMap<String, Vec<usize>> = serde_json::from_value(recorded).unwrap();
    let found: BTreeMap<String, Vec<usize>> = tensors(&format!("{hf}/model.safetensors"))
        .into_iter()
        .map(|(n, (_, shape, _))| (n, shape))
        .collect();
    assert_eq!(found, expected);

    let config = read_json(&format!("{hf}/config.json"));
    assert_eq!((&config["model_type"], &config["image_token_index"]), (&json!("blip-2"), &Value::Null));
    let (q, v) = (&config["qformer_config"], &config["vision_config"]);
    assert_eq!(
        (&q["vocab_size"], &q["num_attention_heads"], &q["encoder_hidden_size"]),
        (&json!(120), &json!(4), &json!(48))
    );
    assert_eq!(
        (&v["num_hidden_layers"], &v["image_size"], &v["patch_size"]),
        (&json!(3), &json!(28), &json!(7))
    );
    assert_eq!(q["use_qformer_text_input"], true);
    let pictures = read_json(&format!("{hf}/preprocessor_config.json"));
    // CLIP's numbers as transformers has them
    let numbers = |key: &str| -> Vec<f32> { serde_json::from_value(pictures[key].clone()).unwrap() };
    let clip = |text: &str| -> Vec<f32> { text.split(' ').map(|x| x.parse().unwrap()).collect() };
    assert_eq!(numbers("image_mean"), clip("0.48145466 0.4578275 0.40821073"));
    assert_eq!(numbers("image_std"), clip("0.26862954 0.26130258 0.27577711"));
    assert_eq!((&pictures["size"]["height"], &pictures["resample"]), (&json!(28), &json!(3)));
    let tokenizer = read_json(&format!("{hf}/tokenizer_config.json"));
    assert_eq!(tokenizer["tokenizer_class"], "BertJapaneseTokenizer");
    assert_eq!(
        (&tokenizer["bos_token"], &tokenizer["added_tokens_decoder"]["119"]["content"]),
        (&json!("[DEC]"), &json!("[DEC]"))
    );
    let vocabulary = std::fs::read_to_string(format!("{hf}/vocab.txt")).unwrap();
    assert_eq!(vocabulary.lines().count(), 119);
    assert!(!vocabulary.contains("[DEC]"));
    // And back: all that transformers has a place for.
    let back = path(&tmp, "back");
    ok(&["convert", &hf, "--config", "tiny", "--partial", "--out", &back]);
    let (_, report, _) = qformer(&["inspect", &hf, "--compare", &model]);
    assert!(!report.contains("differs: Qformer") && report.contains(" tensors equal"), "{report}");
}

#[test]
fn transformers_needs_the_image_encoder() {
    let tmp = tempfile::tempdir().unwrap();
    let (model, hf) = (random(&tmp), path(&tmp, "hf"));
    std::fs::remove_file(format!("{model}/vit.safetensors")).unwrap();
    let (code, _, err) = qformer(&["convert", &model, "--to", "hf", "--out", &hf]);
    assert!(code == 2 && err.contains("--vit"), "{code}: {err}");
    assert!(!Path::new(&hf).exists());
    ok(&["convert", &model, "--to", "hf", "--out", &format!("{hf}.safetensors")]);
}

#[test]
fn lavis_gets_a_checkpoint_as_it_saves_them() {
    let tmp = tempfile::tempdir().unwrap();
    let model = random(&tmp);
    let [pth, safe, odd] = ["lavis.pth", "lavis.safetensors", "lavis"].map(|n| path(&tmp, n));
    let snippet = ok(&["convert", &model, "--to", "lavis", "--out", &pth]);
    assert!(
        snippet.contains(&format!("missing, unexpected = model.load_checkpoint(\"{pth}\")")),
        "{snippet}"
    );
    assert_eq!(snippet.lines().count(), 5, "{snippet}");
    ok(&["convert", &model, "--to", "lavis", "--out", &safe]);
    let report = json(&["inspect", &pth, "--json"]);
    assert_eq!(report["files"][0]["format"], "PyTorch (zip)");
    assert_eq!(json(&["inspect", &pth, "--compare", &safe, "--json"])["same"], true);
    // Every tensor's bytes lie at a multiple of 64, as PyTorch has them.
    let bytes = std::fs::read(&pth).unwrap();
    let places: Vec<usize> =
        (0..bytes.len() - 4).filter(|at| &bytes[*at..*at + 4] == b"PK\x03\x04").collect();
    assert!(places.len() > 100);
    for at in places {
        let le = |i: usize| usize::from(u16::from_le_bytes([bytes[at + i], bytes[at + i + 1]]));
        assert_eq!((at + 30 + le(26) + le(28)) % 64, 0);
    }
    let (code, _, err) = qformer(&["convert", &model, "--to", "lavis", "--out", &odd]);
    assert!(code == 2 && err.contains(".pth"), "{err}");
    let again = path(&tmp, "again");
    ok(&["convert", &pth, "--vit", &format!("{model}/vit.safetensors"), "--config", "tiny", "--out", &again]);
    assert_eq!(json(&["inspect", &again, "--compare", &model, "--json"])["same"], true);
}

#[test]
fn a_bert_may_be_a_vocabulary_only() {
    let tmp = tempfile::tempdir().unwrap();
    let (model, bert, out) = (random(&tmp), path(&tmp, "bert"), path(&tmp, "out"));
    std::fs::create_dir(&bert).unwrap();
    for name in ["vocab.txt", "tokenizer_config.json"] {
        std::fs::rename(format!("{model}/{name}"), format!("{bert}/{name}")).unwrap();
    }
    ok(&["convert", &model, "--bert", &bert, "--out", &out]);
    assert!(Path::new(&out).join("vocab.txt").is_file());
    assert_eq!(json(&["inspect", &out, "--compare", &model, "--json"])["same"], true);
    // It starts nothing by itself, and what looks like weights is read as weights.
    let (code, _, err) = qformer(&["convert", "--bert", &bert, "--out", &out, "--force"]);
    assert!(code == 2 && err.contains("no weights"), "{err}");
    std::fs::write(format!("{bert}/weights.bin"), "x").unwrap();
    let (code, _, err) = qformer(&["convert", &model, "--bert", &bert, "--out", &out, "--force"]);
    assert!(code == 3 && err.contains("pytorch_model.bin"), "{err}");
}

/// A safetensors file of f32 numbers.
fn write(path: &str, tensors: &[(&str, &[f32])]) {
    let mut at = 0;
    let mut entry = |(name, values): &(&str, &[f32])| {
        at += 4 * values.len();
        let begin = at - 4 * values.len();
        format!(r#""{name}":{{"dtype":"F32","shape":[{}],"data_offsets":[{begin},{at}]}}"#, values.len())
    };
    let entries: Vec<String> = tensors.iter().map(&mut entry).collect();
    let mut bytes = craft::safetensors(&format!("{{{}}}", entries.join(",")), 0);
    bytes.extend(tensors.iter().flat_map(|(_, v)| v.iter().flat_map(|x| x.to_le_bytes())));
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn the_same_numbers_under_other_names_compare_as_the_same() {
    let tmp = tempfile::tempdir().unwrap();
    let norm = "bert.encoder.layer.0.output.LayerNorm";
    let [old, new, wrapped, other] = ["old", "new", "wrapped", "other"].map(|n| path(&tmp, n));
    write(&old, &[(&format!("{norm}.gamma"), &[1.0]), (&format!("{norm}.beta"), &[2.0])]);
    write(&new, &[(&format!("{norm}.weight"), &[1.0]), (&format!("{norm}.bias"), &[2.0])]);
    write(
        &wrapped,
        &[(&format!("module._orig_mod.{norm}.weight"), &[1.0]), (&format!("module.{norm}.beta"), &[2.0])],
    );
    write(&other, &[(&format!("{norm}.gamma"), &[1.0]), (&format!("{norm}.beta"), &[3.0])]);
    for same in [&old, &new, &wrapped] {
        let report = json(&["inspect", &old, "--compare", same, "--json"]);
        assert_eq!((&report["same"], &report["equal"]), (&json!(true), &json!(2)), "{same}");
    }
    let (code, out, _) = qformer(&["inspect", &new, "--compare", &other]);
    assert_eq!(code, 5);
    assert!(
        out.contains(&format!("differs: {norm}.bias: "))
            && out.contains("1 tensors equal, 1 differ, 0 in one only"),
        "{out}"
    );
    // Two names for the same parameter are two tensors.
    write(
        &other,
        &[
            (&format!("{norm}.weight"), &[1.0]),
            (&format!("{norm}.gamma"), &[9.0]),
            (&format!("{norm}.bias"), &[2.0]),
        ],
    );
    let report = json_of(&["inspect", &new, "--compare", &other, "--json"]);
    assert_eq!(report["same"], false);
}

fn json_of(args: &[&str]) -> Value {
    serde_json::from_str(&qformer(args).1).unwrap()
}

/// LAVIS keeps the biases of queries and values apart, Hugging Face has them in one with zeros between.
#[test]
fn joined_biases_are_compared_with_their_parts() {
    let tmp = tempfile::tempdir().unwrap();
    let [lavis, hf, wrong] = ["lavis", "hf", "wrong"].map(|n| path(&tmp, n));
    let (ours, theirs) = ("visual_encoder.blocks.0.attn", "vision_model.encoder.layers.0.self_attn");
    write(&lavis, &[(&format!("{ours}.q_bias"), &[1.0, 2.0]), (&format!("{ours}.v_bias"), &[3.0, 4.0])]);
    write(&hf, &[(&format!("{theirs}.qkv.bias"), &[1.0, 2.0, 0.0, 0.0, 3.0, 4.0])]);
    write(&wrong, &[(&format!("{theirs}.qkv.bias"), &[1.0, 2.0, 0.0, 0.0, 3.0, 5.0])]);
    assert_eq!(json(&["inspect", &lavis, "--compare", &hf, "--json"])["same"], true);
    let report = json_of(&["inspect", &lavis, "--compare", &wrong, "--json"]);
    assert_eq!(report["equal"], 1);
    assert!(report["differ"][format!("{ours}.v_bias")].is_string(), "{report}");
}

#[test]
fn hashes_are_of_files_tensors_and_the_image_encoder() {
    let tmp = tempfile::tempdir().unwrap();
    let model = random(&tmp);
    let report = json(&["inspect", &model, "--hash", "--json"]);
    for file in report["files"].as_array().unwrap() {
        let bytes = std::fs::read(file["path"].as_str().unwrap()).unwrap();
        assert_eq!(file["blake3"], blake3::hash(&bytes).to_hex().as_str());
    }
    let encoder = &report["image_encoder"];
    assert!(encoder["blake3"].is_string());
    assert_eq!(encoder["blake3"], encoder["trained_with"]);
    let text = ok(&["inspect", &model, "--hash"]);
    assert!(text.contains("the one the model was trained with"), "{text}");
    let other = path(&tmp, "other");
    ok(&["convert", "--random", "tiny", "--seed", "7", "--out", &other]);
    std::fs::copy(format!("{other}/vit.safetensors"), format!("{model}/vit.safetensors")).unwrap();
    let text = ok(&["inspect", &model, "--hash"]);
    assert!(text.contains("not the one the model was trained with"), "{text}");
}
