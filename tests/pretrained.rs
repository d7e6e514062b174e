//! A model folder: written and opened again it is the same model; what does not belong together is refused.

use qformer::model::{Config, GenerateOptions, Model};
use qformer::nn::{self, Params, Spec};
use qformer::pretrained::{Opening, Pretrained, load};
use qformer::tensor::DType;
use qformer::text::{Settings, Tokenizer};
use qformer::vision::Picture;
use std::path::Path;

fn tokenizer() -> Tokenizer {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let words = ["犬", "猫", "が", "いる", "赤い", "青い", "丸", "##い"];
    Tokenizer::new(special.iter().chain(&words).map(|w| w.to_string()).collect(), Settings::default())
        .unwrap()
}

fn model(train_vit: bool, seed: u64) -> (Model, Params) {
    let config = Config { vocab: tokenizer().len(), ..Config::tiny() };
    let (model, specs) = Model::new(config, train_vit).unwrap();
    (model, Params::random(specs, DType::F32, seed).unwrap())
}

fn save(folder: &Path, train_vit: bool, seed: u64, vit: Option<&Path>) -> Params {
    let (model, params) = model(train_vit, seed);
    Pretrained::save(folder, &model, &params, &tokenizer(), vit).unwrap();
    params
}

fn picture() -> Picture {
    Picture::new(30, 20, (0..1800).map(|i| (i * 7 % 251) as u8).collect()).unwrap()
}

fn bytes(params: &Params) -> Vec<(String, Vec<f32>)> {
    params.iter().map(|(_, s, t)| (s.name.clone(), t.to_f32().unwrap())).collect()
}

#[test]
fn what_was_written_is_what_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    for train_vit in [false, true] {
        let params = save(folder.path(), train_vit, 3, None);
        let opened = Pretrained::open(folder.path()).unwrap();
        assert_eq!(bytes(&opened.params), bytes(&params));
        assert!(!opened.model.trains_vit());
        let images = opened.images(&[picture()]).unwrap();
        let options = GenerateOptions { num_beams: 2, max_length: 8, min_length: 2, ..Default::default() };
        let captions = opened.caption(&images, &options, &[0]).unwrap();
        assert_eq!(captions[0][0].text, opened.tokenizer.decode(&captions[0][0].ids));
    }
    let again = Pretrained::open(folder.path()).unwrap().identity;
    save(folder.path(), true, 4, None);
    assert_ne!(Pretrained::open(folder.path()).unwrap().identity, again);
}

#[test]
fn another_image_encoder_is_refused_unless_told() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    save(ours.path(), false, 3, None);
    save(theirs.path(), false, 4, None);
    let vit = theirs.path().join("vit.safetensors");
    let opening = Opening { vit: Some(vit.clone()), any_vit: false, ..Opening::default() };
    let e = Pretrained::open_with(ours.path(), &opening).map(drop).expect_err("another one").to_string();
    assert!(e.contains("trained with") && e.contains("copy the one"), "{e}");
    Pretrained::open_with(ours.path(), &Opening { vit: Some(vit), any_vit: true, ..Opening::default() })
        .unwrap();
}

#[test]
fn an_image_encoder_may_stay_where_it_is() {
    let (ours, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    save(other.path(), false, 3, None);
    let vit = other.path().join("vit.safetensors");
    let params = save(ours.path(), false, 3, Some(&vit));
    assert!(!ours.path().join("vit.safetensors").exists());
    assert_eq!(bytes(&Pretrained::open(ours.path()).unwrap().params), bytes(&params));
    std::fs::remove_file(&vit).unwrap();
    let e = Pretrained::open(ours.path()).map(drop).expect_err("gone").to_string();
    assert!(e.contains("vit.safetensors"), "{e}");
}

#[test]
fn parts_of_different_models_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), false, 3, None);
    let path = |name: &str| folder.path().join(name);
    let refusal = || Pretrained::open(folder.path()).map(drop).expect_err("refused").to_string();
    let vocab = std::fs::read_to_string(path("vocab.txt")).unwrap();
    std::fs::write(path("vocab.txt"), format!("{vocab}鳥\n")).unwrap();
    assert!(refusal().contains("vocab.txt"));
    std::fs::write(path("vocab.txt"), vocab).unwrap();
    let config = std::fs::read_to_string(path("config.json")).unwrap();
    std::fs::write(path("config.json"), config.replace("\"hidden\": 64", "\"hidden\": 32")).unwrap();
    let e = refusal();
    assert!(e.contains("model.safetensors") && e.contains("64") && e.contains("32"), "{e}");
    std::fs::write(path("config.json"), config.replace("\"hidden\"", "\"hiden\"")).unwrap();
    assert!(refusal().contains("hiden"));
    std::fs::write(path("config.json"), config).unwrap();
    let whole = std::fs::read(path("model.safetensors")).unwrap();
    std::fs::write(path("model.safetensors"), &whole[..whole.len() / 2]).unwrap();
    assert!(refusal().contains("model.safetensors"));
    std::fs::remove_file(path("config.json")).unwrap();
    assert!(refusal().contains("config.json"));
}

/// Smallest, largest, mean and deviation of the numbers that a parameter begins with.
fn begins(specs: &[Spec], name: &str, range: Option<std::ops::Range<usize>>) -> [f64; 4] {
    let i = specs.iter().position(|s| s.name == name).unwrap_or_else(|| panic!("{name}"));
    let range = range.unwrap_or(0..specs[i].shape.iter().product());
    let values = load::initial(&specs[i], i, 7, range);
    let values: Vec<f64> = values.into_iter().map(f64::from).collect();
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let (low, high) = (values.iter().copied().reduce(f64::min), values.iter().copied().reduce(f64::max));
    [low.unwrap(), high.unwrap(), mean, variance.sqrt()]
}

/// LAVIS leaves its two projections and the matching head as torch.nn.Linear begins: weights and biases uniform within
/// 1 / sqrt(inputs). All else that no file has begins as BERT's `_init_weights` does it: normal of deviation 0.02, biases
/// 0; the queries with the same deviation (`init_Qformer`), and the row of [DEC] by `resize_token_embeddings`.
#[test]
fn what_no_file_has_begins_as_in_lavis() {
    let (_, specs) = Model::new(Config::full(), false).unwrap();
    let bound = 1.0 / 768f64.sqrt();
    for name in ["vision_proj", "text_proj", "itm_head"] {
        for (part, sure) in [("weight", true), ("bias", name != "itm_head")] {
            let [low, high, mean, deviation] = begins(&specs, &format!("{name}.{part}"), None);
            assert!(-bound <= low && high <= bound, "{name}.{part}: {low} to {high}");
            if sure {
                // 256 numbers and more: uniform has a third of the bound's square as variance, and comes near the bounds
                assert!(low < -0.95 * bound && high > 0.95 * bound, "{name}.{part}: {low} to {high}");
                assert!((deviation * 3f64.sqrt() / bound - 1.0).abs() < 0.1, "{name}.{part}: {deviation}");
                assert!(mean.abs() < 0.12 * bound, "{name}.{part}: {mean}");
            }
            assert!(low < high, "{name}.{part} is constant");
        }
    }
    let layer = "Qformer.bert.encoder.layer.0";
    let words = "Qformer.bert.embeddings.word_embeddings.weight";
    let (vocab, hidden) = (Config::full().vocab, Config::full().hidden);
    let dec = Some((vocab - 1) * hidden..vocab * hidden);
    for (name, range) in [
        ("query_tokens".to_string(), None),
        (format!("{layer}.crossattention.self.query.weight"), None),
        (format!("{layer}.crossattention.self.key.weight"), None),
        (format!("{layer}.crossattention.self.value.weight"), None),
        (format!("{layer}.crossattention.output.dense.weight"), None),
        (words.to_string(), dec),
    ] {
        let [low, high, mean, deviation] = begins(&specs, &name, range);
        assert!((deviation / 0.02 - 1.0).abs() < 0.1 && mean.abs() < 0.003, "{name}: {mean} {deviation}");
        // A normal one reaches beyond the bounds of a uniform one of the same deviation.
        assert!(low < -0.02 * 3f64.sqrt() && high > 0.02 * 3f64.sqrt(), "{name}: {low} to {high}");
    }
    for (name, value) in [
        (format!("{layer}.crossattention.self.query.bias"), 0.0),
        (format!("{layer}.crossattention.output.LayerNorm.weight"), 1.0),
        ("ln_vision.weight".into(), 1.0),
        ("ln_vision.bias".into(), 0.0),
        ("temp".into(), f64::from(0.07f32)),
    ] {
        let [low, high, ..] = begins(&specs, &name, None);
        assert_eq!([low, high], [value; 2], "{name}");
    }
    let head_bias = "Qformer.cls.predictions.bias";
    assert_eq!(begins(&specs, head_bias, Some(vocab - 1..vocab))[..2], [0.0; 2], "{head_bias} of [DEC]");
    // From nothing at all, every weight keeps a signal's size, and no bias is but 0.
    let specs = nn::from_nothing(specs);
    let [.., deviation] = begins(&specs, "vision_proj.weight", None);
    assert!((deviation / bound - 1.0).abs() < 0.02, "{deviation}");
    assert_eq!(begins(&specs, "vision_proj.bias", None), [0.0; 4]);
}
