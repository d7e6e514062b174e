//! A language model's matrices stay in the 16 bits of their files on the way to a device that stores 16 bits; its numbers there are
//! those that come by way of f32.

use super::Place;
use qformer::model::{Config, Model};
use qformer::nn::{Params, Precision, Value};
use qformer::pretrained::llm::LlmFolder;
use qformer::tensor::{Device, Storage};

/// A folder of a GPT-NeoX whose q, k and v lie head by head, in f16 and in one file.
fn gpt_neox(place: &Place, name: &str) {
    place.language_model(name);
    let vocab = super::commands::json(&place.read(&format!("{name}/config.json")))["vocab_size"].clone();
    let config = format!(
        r#"{{"model_type":"gpt_neox","vocab_size":{vocab},"hidden_size":24,"num_hidden_layers":2,"num_attention_heads":3,
        "intermediate_size":40,"max_position_embeddings":64,"rotary_pct":0.5}}"#
    );
    place.write(&format!("{name}/config.json"), &config);
    let all = super::commands::language_model(&config, |x| half::f16::from_f32(x).to_le_bytes());
    let views = all.iter().map(|(n, s, b)| {
        (n.clone(), safetensors::tensor::TensorView::new(safetensors::Dtype::F16, s.clone(), b).unwrap())
    });
    let views: Vec<_> = views.collect();
    std::fs::remove_file(place.path(&format!("{name}/model.safetensors.index.json"))).unwrap();
    safetensors::serialize_to_file(views, None, &place.path(&format!("{name}/model.safetensors"))).unwrap();
}

#[test]
fn matrices_stay_in_the_bits_of_their_files() {
    let place = Place::new(3);
    place.language_model("llama");
    gpt_neox(&place, "neox");
    for (name, own) in [("llama", Storage::BF16), ("neox", Storage::F16)] {
        let folder = LlmFolder::open(&place.path(name)).unwrap();
        let (_, specs) = Model::with_llm(Config::tiny(), folder.config.clone(), 0, false).unwrap();
        let specs: Vec<_> = specs.into_iter().filter(|s| s.name.starts_with("llm_model.")).collect();
        let params =
            |in_16_bits| Params::of_values(specs.clone(), |spec| folder.value(spec, in_16_bits)).unwrap();
        let [wide, short] = [false, true].map(params);
        for (id, spec, _) in short.iter() {
            let half = match short.stored(id).unwrap() {
                Value::Half(half) => Some(half.storage()),
                Value::Tensor(_) => None,
            };
            assert_eq!(half, (spec.shape.len() == 2).then_some(own), "{}", spec.name);
            assert!(matches!(wide.stored(id).unwrap(), Value::Tensor(_)));
        }
        let Some(device) = device() else { continue };
        for precision in [Precision::F32, Precision::F16, Precision::BF16] {
            let [wide, short] =
                [false, true].map(|in_16_bits| params(in_16_bits).to(&device, precision).unwrap());
            for ((id, spec, a), (_, _, b)) in wide.iter().zip(short.iter()) {
                assert!(a.to_f32().unwrap() == b.to_f32().unwrap(), "{} at {}", spec.name, precision.name());
                let half = matches!(short.stored(id).unwrap(), Value::Half(_));
                assert_eq!(half, spec.shape.len() == 2, "{}: what is kept of it", spec.name);
            }
        }
    }
}

fn device() -> Option<Device> {
    let name = std::env::var("QFORMER_TEST_DEVICE").ok();
    let name = name.or_else(|| cfg!(feature = "host-kernels").then(|| "host".into()))?;
    Some(Device::open(&name).unwrap())
}

/// The whole way: training on such a device, resumed, and captions by it.
#[test]
fn a_second_stage_trains_on_a_device_of_16_bits() {
    if device().is_none() {
        println!("SKIPPED: no kernels on the host in this build");
        return;
    }
    let place = super::world();
    let name = std::env::var("QFORMER_TEST_DEVICE").unwrap_or_else(|_| "host".into());
    let train = |out: &str, more: &[&str]| {
        let at = ["--start", "model", "--llm", "llm", "--dtype", "bf16", "--set", "steps=2"];
        let all = [&super::train(out, &at)[..], more].concat();
        let all: Vec<&str> =
            all.into_iter().map(|word| if word == "cpu" { name.as_str() } else { word }).collect();
        place.ok(&all);
    };
    train("run", &[]);
    train("again", &["--steps", "1"]);
    place.ok(&["train", "--resume", "--out", "again", "--quiet"]);
    let bytes = |run: &str| std::fs::read(place.path(&format!("{run}/model/model.safetensors"))).unwrap();
    assert!(bytes("run") == bytes("again"), "a resumed run has other bytes");
    let caption = ["caption", "--model", "run/model", "photos/p00.png", "--device", &name, "--quiet"];
    let found = place.ok(&caption);
    assert!(!found.trim().is_empty());
}
