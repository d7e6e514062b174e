//! A model folder: written and opened again it is the same model; what does not belong together is refused.

use qformer::model::{Config, GenerateOptions, Model};
use qformer::nn::Params;
use qformer::pretrained::{Opening, Pretrained};
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
    params.iter().map(|(_, s, t)| (s.name.clone(), t.to_f32())).collect()
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
    assert!(e.contains("trained with") && e.contains("--any-vit"), "{e}");
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
