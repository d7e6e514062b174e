//! Language models that cannot be used: one clear error each, its exit code, and nothing written. And one that can: its padding
//! is its end.

use super::{Place, train, world};
use std::path::Path;

/// A training that is refused before it writes anything.
fn said(place: &Place, more: &[&str]) -> (i32, String) {
    let ran = place.run(&train("refused", more));
    assert!(ran.code != 0 && !ran.err.contains("panicked"), "{more:?}: {}", ran.err);
    assert!(!place.path("refused").exists(), "{more:?} left a folder");
    (ran.code, ran.err)
}

fn change(file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "no {from} in {text}");
    std::fs::write(file, text.replacen(from, to, 1)).unwrap();
}

/// Trains with a language model's folder that is spoilt; it is refused as a file, with these words, and `doctor` says the same.
fn spoilt(place: &Place, name: &str, words: &[&str], spoil: impl FnOnce(&Path)) {
    place.language_model(name);
    spoil(&place.path(name));
    let (code, err) = said(place, &["--start", "model", "--llm", name]);
    let last = err.lines().last().unwrap_or_default();
    assert!(code == 3 && words.iter().all(|w| last.contains(w)), "{name}: {code}, no {words:?} in {err}");
    let doctor = place.run(&["doctor", "--llm", name]);
    assert!(doctor.code == 3 && doctor.err.contains(last), "{name}: {}", doctor.err);
}

fn config(from: &'static str, to: &'static str) -> impl FnOnce(&Path) {
    move |at| change(&at.join("config.json"), from, to)
}

const SHARD: &str = "model-00002-of-00002.safetensors";
const INDEX: &str = "model.safetensors.index.json";

#[test]
fn settings_that_do_not_go_together() {
    let place = world();
    let (code, err) = said(&place, &["--llm", "llm"]);
    assert!(code == 2 && err.contains("--start"), "{err}");
    for more in [["--prompt", "x"], ["--set", "recompute=on"], ["--set", "llm_dropout=0.1"]] {
        let (code, err) = said(&place, &[&["--start", "model"][..], &more].concat());
        assert!(code == 2 && err.contains("--llm"), "{err}");
    }
    let (code, err) = said(&place, &["--start", "model", "--llm", "nowhere"]);
    assert!(code == 3 && err.contains("nowhere"), "{err}");
    let (code, err) = said(&place, &["--start", "model", "--llm", "llm/config.json"]);
    assert!(code == 3 && err.contains("the folder of a language model"), "{err}");
    // 64 positions, 8 of them the queries'.
    let long = ["--start", "model", "--llm", "llm", "--set", "model.max_txt_len=61"];
    let (code, err) = said(&place, &long);
    assert!(code == 2 && err.contains("max_txt_len: expected at most 56"), "{err}");
}

#[test]
fn a_prompt_that_leaves_no_room() {
    let place = world();
    let long = "長い".repeat(40);
    let (code, err) = said(&place, &["--start", "model", "--llm", "llm", "--prompt", &long]);
    assert!(code == 2 && err.contains("prompt: expected fewer tokens than the 40 of max_txt_len"), "{err}");
    let doctor = ["doctor", "--llm", "llm", "--images", "photos", "--captions", "captions.json"];
    let err = place.fails(2, &[&doctor[..], &["--prompt", &long]].concat());
    assert!(err.contains("fewer tokens than the 32 of max_txt_len"), "{err}");
    place.ok(&train("run", &["--start", "model", "--llm", "llm", "--set", "steps=1"]));
    let caption = ["caption", "--model", "run/model", "photos/p00.png", "--out", "none.json", "--prompt"];
    let err = place.fails(2, &[&caption[..], &[&long]].concat());
    assert!(err.contains("prompt: expected at most 55 tokens"), "{err}");
    assert!(!place.path("none.json").exists());
}

#[test]
fn files_that_are_missing_or_torn() {
    let place = world();
    let fetch = "download";
    spoilt(&place, "shard", &[SHARD, "no such file", fetch], |at| {
        std::fs::remove_file(at.join(SHARD)).unwrap()
    });
    spoilt(&place, "torn", &[SHARD], |at| {
        let bytes = std::fs::read(at.join(SHARD)).unwrap();
        std::fs::write(at.join(SHARD), &bytes[..bytes.len() - 7]).unwrap();
    });
    spoilt(&place, "index", &[INDEX, "an index of shards"], |at| {
        std::fs::write(at.join(INDEX), "{").unwrap()
    });
    spoilt(&place, "unindexed", &["lm_tail.weight", fetch], |at| {
        change(&at.join(INDEX), "\"lm_head.weight\"", "\"lm_tail.weight\"");
    });
    spoilt(&place, "no-weights", &["model.safetensors", "neither"], |at| {
        for name in ["model-00001-of-00002.safetensors", SHARD, INDEX] {
            std::fs::remove_file(at.join(name)).unwrap();
        }
    });
    spoilt(&place, "no-config", &["config.json in it"], |at| {
        std::fs::remove_file(at.join("config.json")).unwrap();
    });
    spoilt(&place, "torn-config", &["torn-config/config.json", "JSON"], |at| {
        std::fs::write(at.join("config.json"), "{\"model_type\":").unwrap();
    });
}

#[test]
fn a_tokenizer_that_is_absent_or_says_too_little() {
    let place = world();
    spoilt(&place, "tokenizer", &["tokenizer.json, tokenizer.model", "none of them"], |at| {
        std::fs::remove_file(at.join("tokenizer.model")).unwrap();
    });
    spoilt(&place, "settings", &["tokenizer_config.json", "add_bos_token"], |at| {
        std::fs::remove_file(at.join("tokenizer_config.json")).unwrap();
    });
    spoilt(&place, "end", &["eos_token", "</fin>"], |at| {
        change(&at.join("tokenizer_config.json"), "\"</s>\"", "\"</fin>\"");
    });
    spoilt(&place, "garbage", &["tokenizer.model"], |at| {
        std::fs::write(at.join("tokenizer.model"), [0xffu8; 64]).unwrap();
    });
}

#[test]
fn a_vocabulary_of_another_size() {
    let place = world();
    let vocab = || -> u64 {
        place.language_model("sizes");
        super::commands::json(&place.read("sizes/config.json"))["vocab_size"].as_u64().unwrap()
    };
    let vocab = vocab();
    let set = |to: u64| {
        let (from, to) = (format!("\"vocab_size\":{vocab}"), format!("\"vocab_size\":{to}"));
        move |at: &Path| change(&at.join("config.json"), &from, &to)
    };
    // More rows than the file has; fewer than the tokenizer has tokens.
    spoilt(&place, "more", &["model.embed_tokens.weight", "config.json says"], set(vocab + 8));
    let last = format!("got a tokenizer with ids up to {}", vocab - 1);
    spoilt(&place, "fewer", &["fewer: vocab_size", &last], set(vocab - 1));
    spoilt(
        &place,
        "width",
        &["config.json says"],
        config("\"hidden_size\":24", "\"hidden_size\":28,\"head_dim\":6"),
    );
}

#[test]
fn keys_of_the_wrong_type() {
    let place = world();
    for (name, from, to, words) in [
        ("size", "\"hidden_size\":24", "\"hidden_size\":\"24\"", "hidden_size: expected a whole number"),
        ("none", "\"hidden_size\":24,", "", "hidden_size: expected a whole number, got none"),
        ("eps", "\"rms_norm_eps\":1e-5", "\"rms_norm_eps\":\"1e-5\"", "rms_norm_eps: expected a number"),
        (
            "flag",
            "\"hidden_size\"",
            "\"attention_bias\":1,\"hidden_size\"",
            "attention_bias: expected true or false",
        ),
        ("type", "\"llama\"", "[\"llama\"]", "model_type: expected a text"),
        ("bloom", "\"llama\"", "\"bloom\"", "model_type: expected opt, gpt_neox"),
        ("window", "\"hidden_size\"", "\"sliding_window\":16,\"hidden_size\"", "sliding_window"),
        ("yarn", "\"hidden_size\"", "\"rope_scaling\":{\"rope_type\":\"yarn\"},\"hidden_size\"", "got yarn"),
        (
            "bits",
            "\"hidden_size\"",
            "\"quantization_config\":{\"bits\":4},\"hidden_size\"",
            "quantization_config",
        ),
    ] {
        let place_of_key = format!("{name}/config.json: ");
        spoilt(&place, name, &[&place_of_key, words], config(from, to));
    }
}

#[test]
fn weights_of_another_family_or_of_more_layers() {
    let place = world();
    spoilt(&place, "qwen2", &["q_proj.bias", "config.json says"], config("llama", "qwen2"));
    spoilt(&place, "qwen3", &["config.json says"], config("llama", "qwen3"));
    spoilt(
        &place,
        "neox",
        &["gpt_neox.", "config.json says"],
        config("llama\"", "gpt_neox\",\"rotary_pct\":1.0"),
    );
    spoilt(&place, "opt", &["ffn_dim"], config("llama", "opt"));
    // What would be left unread: the numbers would be those of no model.
    spoilt(
        &place,
        "shallow",
        &["model.layers.1.", "config.json alone"],
        config("\"num_hidden_layers\":2", "\"num_hidden_layers\":1"),
    );
    let add = |tensor: &'static str| {
        move |at: &Path| {
            let bytes = 1f32.to_le_bytes().repeat(24);
            let view =
                safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![24], &bytes).unwrap();
            safetensors::serialize_to_file([(tensor, view)], None, &at.join("more.safetensors")).unwrap();
            change(
                &at.join(INDEX),
                "\"lm_head.weight\"",
                &format!("\"{tensor}\":\"more.safetensors\",\"lm_head.weight\""),
            );
        }
    };
    let bias = "model.layers.0.self_attn.q_proj.bias";
    spoilt(&place, "bias", &[bias, "config.json alone"], add(bias));
    spoilt(&place, "head-bias", &["lm_head.bias", "config.json alone"], add("lm_head.bias"));
    // What follows from config.json, and what is no part of the model, may lie there.
    for (name, tensor) in
        [("angles", "model.layers.0.self_attn.rotary_emb.inv_freq"), ("score", "score.weight")]
    {
        place.language_model(name);
        add(tensor)(&place.path(name));
        let shown = place.ok(&["doctor", "--llm", name]);
        assert!(shown.contains("a whole language model, Llama: 2 layers, 24 wide"), "{shown}");
    }
}

#[test]
fn numbers_that_are_not_finite() {
    let place = world();
    place.language_model("nan");
    let file = place.path(&format!("nan/{SHARD}"));
    let mut bytes = std::fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    let ran = place.run(&train("refused", &["--start", "model", "--llm", "nan"]));
    assert!(ran.code == 7 || ran.code == 3, "{}: {}", ran.code, ran.err);
    assert!(ran.err.contains("finite") && ran.err.contains(SHARD), "{}", ran.err);
    assert!(!place.path("refused/model").exists());
}

/// LAVIS finds padding by its id, and a model whose padding is its end never learns to end. Here rows have no padding: such a
/// model's numbers are those of one with a padding token of its own, the end among the targets.
#[test]
fn padding_that_is_the_end() {
    let place = world();
    let begin = ["--start", "model", "--set", "steps=2", "--llm"];
    place.ok(&train("own", &[&begin[..], &["llm"]].concat()));
    place.language_model("same");
    change(
        &place.path("same/tokenizer_config.json"),
        "\"eos_token\"",
        "\"pad_token\":\"</s>\",\"eos_token\"",
    );
    change(
        &place.path("same/config.json"),
        "\"hidden_size\"",
        "\"eos_token_id\":2,\"pad_token_id\":2,\"hidden_size\"",
    );
    place.ok(&train("end", &[&begin[..], &["same"]].concat()));
    // Behind the header, which says where the language model is.
    let numbers = |run: &str| {
        let bytes = std::fs::read(place.path(&format!("{run}/model/model.safetensors"))).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[8 + header..].to_vec()
    };
    assert!(numbers("own") == numbers("end"), "other numbers");
    let caption = |run: &str| place.ok(&["caption", "--model", &format!("{run}/model"), "photos", "--quiet"]);
    assert_eq!(caption("own"), caption("end"));
    let tokenizer = qformer::text::llm::LlmTokenizer::open(&place.path("same")).unwrap();
    let row = tokenizer.row("", "犬", 40).unwrap();
    assert_eq!((row.ids.last(), tokenizer.padding()), (Some(&2), Some(2)));
}
