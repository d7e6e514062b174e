//! Small models with weights that matter, and their batches, for the tests of the model and of training.
#![allow(dead_code)]

use qformer::Result;
use qformer::model::{Config, Image, Model, Profile};
use qformer::nn::{Init, Params, Spec};
use qformer::tensor::{DType, Stream, Tensor};
use qformer::train::optimizer::Hyper;
use qformer::train::schedule::Schedule;
use qformer::train::trainer::{Contrast, Micro, Options};

/// 2 ViT blocks and 2 Q-Former layers, 16 wide.
pub fn config() -> Config {
    Config {
        image_size: 8,
        patch_size: 4,
        vit_width: 16,
        vit_depth: 2,
        vit_heads: 2,
        vit_mlp: 24,
        hidden: 16,
        layers: 2,
        heads: 2,
        ffn: 24,
        num_query: 3,
        cross_freq: 2,
        vocab: 23,
        max_txt_len: 8,
        embed_dim: 6,
        max_pos: 9,
        exif_orientation: false,
    }
}

fn normals(n: usize, stream: Stream) -> impl Iterator<Item = f64> {
    (0..n as u64).map(move |i| stream.normal(i))
}

/// Values at which no parameter is without effect: biases and norms too are random, and weights larger than at the
/// start of a training.
pub fn values(specs: &[Spec], seed: u64) -> Vec<Vec<f64>> {
    let value = |(i, spec): (usize, &Spec)| -> Vec<f64> {
        let (middle, spread) = match (spec.name.as_str(), spec.init) {
            ("temp", _) => (0.5, 0.0),
            (_, Init::Constant(c)) => (c, 0.2),
            (_, Init::Normal(_) | Init::Uniform(_)) => (0.0, 0.3),
        };
        let stream = Stream { seed, step: 7, site: i as u32 };
        normals(spec.shape.iter().product(), stream).map(|x| middle + spread * x).collect()
    };
    specs.iter().enumerate().map(value).collect()
}

pub fn params(specs: &[Spec], values: &[Vec<f64>], dtype: DType) -> Params {
    let mut values = values.iter();
    Params::new(specs.to_vec(), |spec| Tensor::of(dtype, values.next().unwrap(), &spec.shape)).unwrap()
}

/// A model and its parameters.
pub fn model(config: Config, train_vit: bool, dtype: DType) -> (Model, Params) {
    let (model, specs) = Model::new(config, train_vit).unwrap();
    let values = values(&specs, 3);
    (model, params(&specs, &values, dtype))
}

/// Pictures [n,3,S,S] of a seed.
pub fn pictures(config: &Config, n: usize, seed: u64, dtype: DType) -> Tensor {
    let s = config.image_size;
    let pixels: Vec<f64> = normals(n * 3 * s * s, Stream { seed, step: 1, site: 0 }).collect();
    Tensor::of(dtype, &pixels, &[n, 3, s, s]).unwrap()
}

/// `n` samples of a seed as a loader would give them.
pub fn micro(config: &Config, n: usize, seed: u64) -> Micro {
    Micro {
        image: Image::Pixels(pictures(config, n, seed, DType::F32)),
        text: captions(config, n, seed),
        image_id: None,
        names: (0..n).map(|i| format!("{seed}/{i}.jpg")).collect(),
    }
}

/// How the tests of training train: with dropout.
pub fn options(contrast: Contrast, schedule: Schedule) -> Options {
    Options {
        seed: 42,
        dropout: 0.1,
        profile: Profile::LavisDiagonal,
        contrast,
        steps_per_epoch: 30,
        schedule,
        hyper: Hyper::default(),
    }
}

/// Captions of different lengths, from [CLS] to [SEP]; the first is the shortest there is.
pub fn captions(config: &Config, n: usize, seed: u64) -> Vec<Vec<u32>> {
    let stream = Stream { seed, step: 2, site: 0 };
    let words = |i: usize| {
        let length = if i == 0 { 0 } else { stream.bits(i as u64) as usize % (config.max_txt_len - 2) + 1 };
        let word = move |j: usize| 4 + stream.bits((100 * i + j) as u64) % (config.vocab as u32 - 5);
        let body = (0..length).map(word);
        std::iter::once(2).chain(body).chain([3]).collect()
    };
    (0..n).map(words).collect()
}

pub fn error<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => "no error".into(),
        Err(e) => e.to_string(),
    }
}
