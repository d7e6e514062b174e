//! The model: configuration, parameters, batches, features, captions

use crate::tiny::{self, error};
use qformer::device::gpu::{Matmul, Operand, Storage};
use qformer::model::{
    Batch, Config, GenerateOptions, Image, Model, Negatives, Profile, Sampling, retrieval_scores,
};
use qformer::nn::{Gelu, Params, Pass, Precision};
use qformer::tensor::{DType, Device, Gpu, Tensor};

fn t(sizes: &[usize]) -> Tensor {
    Tensor::zeros(DType::F64, sizes)
}

fn single(sizes: &[usize]) -> Tensor {
    Tensor::zeros(DType::F32, sizes)
}

#[test]
fn configurations() {
    let said = |change: fn(&mut Config)| {
        let mut config = tiny::config();
        change(&mut config);
        error(Model::new(config, false))
    };
    let wrong = |key: &str, want: &str, got: usize| {
        format!("model configuration: {key}: expected {want}, got {got}; correct it in config.json")
    };
    assert_eq!(said(|_| {}), "no error");
    assert_eq!(said(|c| (c.patch_size, c.max_txt_len, c.vocab) = (8, 9, 6)), "no error");
    assert_eq!(said(|c| c.max_pos = 1 << 14), "no error");
    assert_eq!(said(|c| c.image_size = 0), wrong("image_size", "1 to 4096", 0));
    assert_eq!(said(|c| c.patch_size = 0), wrong("patch_size", "1 to 1024", 0));
    assert_eq!(said(|c| c.vit_width = 1 << 15), wrong("vit_width", "1 to 16384", 1 << 15));
    assert_eq!(said(|c| c.vit_depth = 1025), wrong("vit_depth", "1 to 1024", 1025));
    assert_eq!(said(|c| c.vit_heads = 0), wrong("vit_heads", "1 to 1024", 0));
    assert_eq!(said(|c| c.vit_mlp = 0), wrong("vit_mlp", "1 to 65536", 0));
    assert_eq!(said(|c| c.hidden = 0), wrong("hidden", "1 to 16384", 0));
    // A pass has 4,096 sites for random numbers, of which a layer takes eight.
    assert_eq!(said(|c| c.layers = 0), wrong("layers", "1 to 511", 0));
    assert_eq!(said(|c| c.heads = 0), wrong("heads", "1 to 1024", 0));
    assert_eq!(said(|c| c.ffn = 0), wrong("ffn", "1 to 65536", 0));
    assert_eq!(said(|c| c.num_query = 0), wrong("num_query", "1 to 1024", 0));
    assert_eq!(said(|c| c.cross_freq = 0), wrong("cross_freq", "1 to 1024", 0));
    assert_eq!(said(|c| c.vocab = (1 << 20) + 1), wrong("vocab", "1 to 1048576", (1 << 20) + 1));
    assert_eq!(said(|c| c.max_txt_len = 0), wrong("max_txt_len", "1 to 4096", 0));
    assert_eq!(said(|c| c.embed_dim = 0), wrong("embed_dim", "1 to 16384", 0));
    assert_eq!(said(|c| c.max_pos = 0), wrong("max_pos", "1 to 16384", 0));
    assert_eq!(said(|c| c.image_size = 3), wrong("image_size", "at least patch_size 4", 3));
    assert_eq!(said(|c| c.vit_heads = 3), wrong("vit_heads", "a divisor of vit_width 16", 3));
    assert_eq!(said(|c| c.heads = 3), wrong("heads", "a divisor of hidden 16", 3));
    assert_eq!(said(|c| c.max_txt_len = 10), wrong("max_txt_len", "at most max_pos 9", 10));
    assert_eq!(said(|c| c.vocab = 5), wrong("vocab", "at least 6 (five special tokens and [DEC])", 5));
    let named = [Config::tiny(), Config::heads(), Config::base(), Config::full()].map(Some);
    assert_eq!(["tiny", "heads", "base", "full"].map(Config::named), named);
    assert_eq!(Config::named("huge"), None);
    let json = error(Config::from_json("{\"image_size\": 4}"));
    let start = "model configuration: JSON: expected the sizes of a model, got missing field `patch_size`";
    assert!(json.starts_with(start), "{json}");
    let text = serde_json::to_string(&tiny::config()).unwrap();
    assert_eq!(Config::from_json(&text).unwrap(), tiny::config());
    let unknown = error(Config::from_json(&text.replace("\"heads\"", "\"headz\"")));
    assert!(unknown.contains("unknown field `headz`"), "{unknown}");
    assert!(
        error(Config::from_json(&text.replace("\"heads\":2", "\"heads\":3")))
            .contains("a divisor of hidden 16")
    );
}

fn draw() -> Sampling<'static> {
    Sampling::Draw { seed: 1, step: 1, site: 0 }
}

#[test]
fn batches_of_a_step() {
    let (model, params) = tiny::model(tiny::config(), false, DType::F64);
    let pass = Pass::inference(&params);
    let image = tiny::pictures(&model.config, 2, 1, DType::F64);
    let (good, ids) = (vec![vec![2, 5, 3], vec![2, 3]], [1, 2]);
    let given = Negatives { image: vec![1, 0], text: vec![1, 0] };
    let run =
        |image: &Tensor, text: &[Vec<u32>], image_id: Option<&[i64]>, profile, given: Option<&Negatives>| {
            let sampling = match given {
                Some(n) => Sampling::Given(n),
                None => draw(),
            };
            error(model.stage1(
                &pass,
                &Batch { image: Image::Pixels(image.clone()), text, image_id },
                profile,
                sampling,
                None,
            ))
        };
    let (diagonal, by_id) = (Profile::LavisDiagonal, Profile::LavisImageId);
    let of = |text: &[Vec<u32>]| run(&image, text, None, diagonal, Some(&given));
    assert_eq!(of(&good), "no error");
    assert_eq!(of(&[vec![2; 9], vec![2, 3]]), "no error");
    assert_eq!(of(&good[..1]), "stage 1: text: expected a caption for each of 2 images, got 1");
    assert_eq!(of(&[vec![2, 3], vec![2]]), "stage 1: caption 1: expected 2 to 9 tokens, got 1");
    assert_eq!(of(&[vec![2; 10], vec![2, 3]]), "stage 1: caption 0: expected 2 to 9 tokens, got 10");
    assert_eq!(
        of(&[vec![2, 23, 3], vec![2, 3]]),
        "embedding: ids: expected ids below 23, got 23; use the vocabulary that belongs to this model"
    );
    let size = run(&t(&[2, 3, 8, 9]), &good, None, diagonal, Some(&given));
    assert_eq!(size, "image encoder: image: expected [batch, 3, 8, 8], got [2, 3, 8, 9]");
    let dtype = run(&single(&[2, 3, 8, 8]), &good, None, diagonal, Some(&given));
    assert_eq!(dtype, "patch_embed: weight: expected f32, got f64");
    let none = run(&t(&[0, 3, 8, 8]), &[], None, diagonal, Some(&given));
    assert_eq!(none, "stage 1: text: expected a caption for each of 0 images, got 0");
    let short = run(&image, &good, Some(&ids[..1]), diagonal, Some(&given));
    assert_eq!(short, "stage 1: image_id: expected 2 of them, got 1");
    assert_eq!(
        run(&image, &good, None, by_id, Some(&given)),
        "stage 1: image_id: expected an id for every image, got none; give image ids, or use the profile lavis-diagonal"
    );
    for (images, texts) in [(vec![1], vec![1, 0]), (vec![1, 0], vec![1, 2]), (vec![2, 0], vec![1, 0])] {
        let bad = Negatives { image: images, text: texts };
        let want = format!("stage 1: negatives: expected 2 indices below 2, got {bad:?}");
        assert_eq!(run(&image, &good, None, diagonal, Some(&bad)), want);
    }
    let one = run(&tiny::pictures(&model.config, 1, 1, DType::F64), &good[..1], None, diagonal, None);
    let want = "stage 1: batch: expected a negative for every caption, got none to draw from; use a batch of at least 2 \
                different images";
    assert_eq!(one, want);
    assert_eq!(run(&image, &good, Some(&ids), by_id, None), "no error");
    // Tokens of other images than the captions'.
    let batch = Batch { image: Image::Pixels(image.clone()), text: &good, image_id: None };
    let tokens = error(model.losses(&pass, &t(&[9, 16]), &batch, diagonal, draw(), None));
    assert_eq!(tokens, "stage 1: image tokens: expected [10, 16], got [9, 16]");
}

#[test]
fn features_and_retrieval() {
    let (model, params) = tiny::model(tiny::config(), false, DType::F64);
    let pass = Pass::inference(&params);
    let images = model.image_features(&pass, &tiny::pictures(&model.config, 2, 1, DType::F64)).unwrap();
    assert_eq!(
        error(model.image_features(&pass, &t(&[3, 8, 8]))),
        "image features: image: expected [B, 3, S, S], got [3, 8, 8]"
    );
    assert_eq!(
        error(model.image_features(&pass, &t(&[1, 3, 8, 4]))),
        "image encoder: image: expected [batch, 3, 8, 8], got [1, 3, 8, 4]"
    );
    assert_eq!(
        error(model.image_features_of(&pass, &t(&[9, 16]))),
        "image features: tokens: expected [a multiple of 5, 16], got [9, 16]"
    );
    assert_eq!(
        error(model.image_features_of(&pass, &t(&[5, 8]))),
        "image features: tokens: expected [a multiple of 5, 16], got [5, 8]"
    );
    let text = |t: Vec<u32>| error(model.text_features(&pass, &[vec![2, 3], t]));
    assert_eq!(text(vec![]), "text: text 1: expected 1 to 9 tokens, got 0");
    assert_eq!(text(vec![2; 10]), "text: text 1: expected 1 to 9 tokens, got 10");
    assert_eq!(text(vec![2; 9]), "no error");
    let pair = |p: (usize, usize)| error(model.match_pairs(&pass, &images, &[vec![2, 3]], &[(0, 0), p]));
    assert_eq!(pair((2, 0)), "match: pair: expected an image below 2 and a text below 1, got (2, 0)");
    assert_eq!(pair((0, 1)), "match: pair: expected an image below 2 and a text below 1, got (0, 1)");
    assert_eq!(pair((1, 0)), "no error");
    let ragged = retrieval_scores(&[vec![0.0, 1.0], vec![0.0]], 1, |p| Ok(vec![0.0; p.len()]));
    assert_eq!(error(ragged), "retrieval: itc: expected rows of 2 texts, got 1");
    let few = retrieval_scores(&[vec![0.0, 1.0]], 2, |_| Ok(vec![0.0]));
    assert_eq!(error(few), "retrieval: itm: expected a logit for each of 2 pairs, got 1");
}

#[test]
fn captions() {
    let (model, params) = tiny::model(tiny::config(), false, DType::F64);
    let images =
        model.image_features(&Pass::inference(&params), &tiny::pictures(&model.config, 2, 1, DType::F64));
    let images = images.unwrap();
    let said = |change: fn(&mut GenerateOptions)| {
        let mut options = GenerateOptions { max_length: 6, min_length: 1, ..GenerateOptions::default() };
        change(&mut options);
        error(model.generate(&params, &images, &options, &[0, 1]))
    };
    assert_eq!(said(|_| {}), "no error");
    assert_eq!(said(|o| o.num_beams = 0), "generate: num_beams: expected 1 to 11, got 0");
    assert_eq!(said(|o| o.num_beams = 12), "generate: num_beams: expected 1 to 11, got 12");
    assert_eq!(
        said(|o| o.max_length = 10),
        "generate: max_length: expected 2 to 9, the model's text positions, got 10"
    );
    assert_eq!(
        said(|o| o.max_length = 1),
        "generate: max_length: expected 2 to 9, the model's text positions, got 1"
    );
    assert_eq!(said(|o| o.min_length = 7), "generate: min_length: expected at most max_length, 6, got 7");
    assert_eq!(said(|o| o.top_p = f64::NAN), "generate: top_p: expected above 0 and at most 1, got NaN");
    assert_eq!(said(|o| o.top_p = 0.0), "generate: top_p: expected above 0 and at most 1, got 0");
    assert_eq!(said(|o| o.top_p = 1.5), "generate: top_p: expected above 0 and at most 1, got 1.5");
    let above = "expected a finite number above 0";
    assert_eq!(said(|o| o.temperature = 0.0), format!("generate: temperature: {above}, got 0"));
    assert_eq!(said(|o| o.temperature = f64::INFINITY), format!("generate: temperature: {above}, got inf"));
    assert_eq!(
        said(|o| o.repetition_penalty = -1.0),
        format!("generate: repetition_penalty: {above}, got -1")
    );
    assert_eq!(
        said(|o| o.length_penalty = f64::NAN),
        "generate: length_penalty: expected a finite number, got NaN"
    );
    assert_eq!(said(|o| o.do_sample = true), "generate: num_beams: expected 1 when sampling, got 3");
    let beams = "generate: num_return_sequences: expected 1 to 3, the number of beams";
    assert_eq!(said(|o| o.num_return_sequences = 0), format!("{beams}, got 0"));
    assert_eq!(said(|o| o.num_return_sequences = 4), format!("{beams}, got 4"));
    let options = GenerateOptions { max_length: 6, min_length: 1, ..GenerateOptions::default() };
    assert_eq!(
        error(model.generate(&params, &images, &options, &[0])),
        "generate: identities: expected one for each of 2 images, got 1"
    );
    assert_eq!(said(|o| (o.max_length, o.min_length, o.top_p) = (9, 9, 1.0)), "no error");
    assert_eq!(said(|o| (o.max_length, o.num_return_sequences) = (2, 3)), "no error");
    assert_eq!(said(|o| (o.do_sample, o.num_beams, o.num_return_sequences) = (true, 1, 20)), "no error");
    let logits = |captions: &[Vec<u32>]| error(model.caption_logits(&params, &images, captions));
    let sizes = "generate: captions: expected 2 captions of at most 9 tokens";
    assert_eq!(logits(&[vec![22, 5]]), format!("{sizes}, got 1 of up to 2"));
    assert_eq!(logits(&[vec![22], vec![22; 10]]), format!("{sizes}, got 2 of up to 10"));
    assert_eq!(logits(&[vec![22, 23], vec![22]]), "generate: captions: expected ids below 23, got 23");
    assert_eq!(logits(&[vec![22; 9], vec![22]]), "no error");
}

#[test]
fn parameters() {
    let (_, specs) = Model::new(tiny::config(), false).unwrap();
    let said = error(Params::new(specs.clone(), |spec| {
        let shape = if spec.name == "itm_head.bias" { vec![3] } else { spec.shape.clone() };
        Ok(t(&shape))
    }));
    assert_eq!(said, "model weights: itm_head.bias: expected [2], got [3]");
    let mixed = error(Params::new(specs, |spec| {
        Ok(if spec.name == "itm_head.bias" { single(&spec.shape) } else { t(&spec.shape) })
    }));
    assert_eq!(mixed, "model weights: itm_head.bias: expected f64, got f32");
    let (_, mut params) = tiny::model(tiny::config(), false, DType::F64);
    let id = params.find("itm_head.bias").unwrap();
    assert_eq!(error(params.set(id, &t(&[3]))), "model weights: itm_head.bias: expected [2], got [3]");
    params.set(id, &t(&[2])).unwrap();
    assert_eq!(params.get(id).to_f64().unwrap(), [0.0; 2]);
    let plan = Device::open("plan").unwrap();
    let double = error(params.to(&plan, Precision::F32));
    assert_eq!(double, "model weights: dtype: expected f32 for a GPU, got f64");
    let names = ["f32", "f16", "bf16", "bf16-vit"];
    let named = names.map(|name| Precision::named(name).unwrap());
    assert_eq!(named, [Precision::F32, Precision::F16, Precision::BF16, Precision::BF16_VIT]);
    assert_eq!(named.map(Precision::name), names);
    let unknown = "precision: name: expected f32, f16, bf16 or bf16-vit, got f8";
    assert_eq!(error(Precision::named("f8")), unknown);
    assert_eq!(error(Precision::on(&plan, Some("f8"))), unknown);
    assert_eq!(
        [None, Some("f16")].map(|n| Precision::on(&plan, n).unwrap()),
        [Precision::BF16, Precision::F16]
    );
    assert_eq!([None, Some("f32")].map(|n| Precision::on(&Device::Cpu, n).unwrap()), [Precision::F32; 2]);
    let cpu = error(Precision::on(&Device::Cpu, Some("f16")));
    assert!(cpu.starts_with("precision: dtype: expected f32 on the CPU, got f16; "), "{cpu}");
}

/// GELU in its tanh form is for a frozen image encoder on a GPU.
#[test]
fn gelu_of_the_image_encoder() {
    for (name, gelu) in [("exact", Gelu::Exact), ("tanh", Gelu::Tanh)] {
        assert_eq!((Gelu::named(name).unwrap(), gelu.name()), (gelu, name));
    }
    assert_eq!(error(Gelu::named("relu")), "precision: vit_gelu: expected exact or tanh, got relu");
    let plan = Device::open("plan").unwrap();
    for precision in [Precision::F32, Precision::F16, Precision::BF16, Precision::BF16_VIT] {
        assert_eq!(precision.vit_gelu, Gelu::Exact);
        let tanh = precision.with_gelu(&plan, Gelu::Tanh).unwrap();
        assert_eq!(tanh, Precision { vit_gelu: Gelu::Tanh, ..precision });
        assert_eq!(tanh.name(), precision.name());
        assert_eq!(tanh.with_gelu(&Device::Cpu, Gelu::Exact).unwrap(), precision);
        let cpu = error(precision.with_gelu(&Device::Cpu, Gelu::Tanh));
        assert!(cpu.starts_with("precision: vit_gelu: expected exact on the CPU, got tanh; "), "{cpu}");
        for train_vit in [false, true] {
            let specs = Model::new(tiny::config(), train_vit).unwrap().1;
            let random = Params::random(specs.clone(), DType::F32, 1).unwrap();
            for said in [error(random.to(&plan, tanh)), error(Params::zeros(specs.clone(), &plan, tanh))] {
                let trained = "precision: vit_gelu: expected exact where the image encoder is trained, got tanh; freeze";
                assert!(if train_vit { said.starts_with(trained) } else { said == "no error" }, "{said}");
            }
            assert_eq!(error(Params::zeros(specs, &plan, precision)), "no error");
        }
    }
}

/// c cannot be added to and become GELU of the sums.
#[test]
fn matmuls() {
    let gpu = Gpu::open("plan").unwrap();
    let c = gpu.array("test", Storage::F32, 4).unwrap();
    let all = Operand::rows(&c, 2);
    let matmul =
        |add, gelu| error(gpu.matmul(&Matmul::of((2, 2, 2), all, all, all).added(add).with_gelu(gelu)));
    let refused =
        "matmul: gelu: expected a matmul that replaces c, got f32 [2, 2] x [2, 2], gelu -> f32, added";
    assert_eq!(matmul(true, true), refused);
    for (add, gelu) in [(true, false), (false, true), (false, false)] {
        assert_eq!(matmul(add, gelu), "no error");
    }
    // Matrices that do not fit into their arrays.
    let sized = |sizes, a, b, c| error(gpu.matmul(&Matmul::of(sizes, a, b, c)));
    assert_eq!(sized((3, 2, 2), all, all, all), "matmul: a: expected [3, 2] in rows of 2, got 4 elements");
    assert_eq!(sized((2, 3, 2), all, all, all), "matmul: b: expected [2, 3] in rows of 2, got 4 elements");
    assert_eq!(
        sized((1, 2, 1), all, all, Operand::columns(&c, 2, 3)),
        "matmul: c: expected [1, 2] in rows of 2, got 1 elements"
    );
    assert_eq!(sized((2, 2, 1), Operand::rows(&c, 2).transposed(), all, all), "no error");
    let short = c.part(0..1).unwrap();
    let with_bias = Matmul::of((2, 2, 2), all, all, all).with_bias(Some(&short));
    assert_eq!(error(gpu.matmul(&with_bias)), "matmul: bias: expected 2, got 1");
}
