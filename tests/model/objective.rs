//! The objective of a tiny model as a function of its parameters, and a gradient against differences of it.
//!
//! The contrastive gradient is one-sided: in sim_i2t the texts are constants, in sim_t2i the images. So the function whose
//! slope it is holds the other side where it was:
//!   F(p) = (CE(sim(image(p), text(p0)) / temp(p)) + CE(sim(image(p0), text(p))^T / temp(p))) / 2 + ITM(p) + LM(p)
//! and the tests write out its first part from the features.

use crate::tiny;
use qformer::model::{Batch, Config, Image, Model, Negatives, Outputs, Profile, Sampling, Trace};
use qformer::nn::{Params, Pass, Spec};
use qformer::tensor::{DType, Gradients, Stream, Tape, Tensor};

/// A batch with given negatives, and the model it is for.
pub struct Setup {
    pub model: Model,
    pub specs: Vec<Spec>,
    pub values: Vec<Vec<f64>>,
    pub image: Tensor,
    pub text: Vec<Vec<u32>>,
    pub ids: Vec<i64>,
    pub negatives: Negatives,
    pub profile: Profile,
}

/// Normalised features, and the losses beside the contrastive one.
pub struct Parts {
    pub image: Vec<f64>,
    pub text: Vec<f64>,
    pub temp: f64,
    pub itm: f64,
    pub lm: f64,
}

impl Setup {
    pub fn new(config: Config, train_vit: bool, profile: Profile) -> Setup {
        Setup::of_seed(config, train_vit, profile, 5)
    }

    pub fn of_seed(config: Config, train_vit: bool, profile: Profile, seed: u64) -> Setup {
        let (model, specs) = Model::new(config.clone(), train_vit).unwrap();
        let image = tiny::pictures(&config, 3, seed, DType::F64);
        let text = tiny::captions(&config, 3, seed);
        let negatives = Negatives { image: vec![1, 2, 0], text: vec![2, 0, 0] };
        let values = tiny::values(&specs, 3);
        Setup { model, specs, values, image, text, ids: vec![7, 8, 7], negatives, profile }
    }

    pub fn params(&self, values: &[Vec<f64>]) -> Params {
        tiny::params(&self.specs, values, DType::F64)
    }

    pub fn run(&self, pass: &Pass, trace: Option<&mut Trace>) -> Outputs {
        let batch =
            Batch { image: Image::Pixels(self.image.clone()), text: &self.text, image_id: Some(&self.ids) };
        self.model.stage1(pass, &batch, self.profile, Sampling::Given(&self.negatives), trace).unwrap()
    }

    pub fn parts(&self, values: &[Vec<f64>]) -> Parts {
        let params = self.params(values);
        let mut trace = Trace::default();
        let out = self.run(&Pass::inference(&params), Some(&mut trace));
        let of = |t: &Option<Tensor>| t.as_ref().unwrap().to_f64().unwrap();
        Parts {
            image: of(&trace.image_feats),
            text: of(&trace.text_feat),
            temp: params.get(params.find("temp").unwrap()).item().unwrap(),
            itm: out.itm.item().unwrap(),
            lm: out.lm.item().unwrap(),
        }
    }

    /// Row i's target: 0.9 on itself, or shared among its image's captions, and 0.1 on all.
    pub fn targets(&self) -> Vec<Vec<f64>> {
        targets(&self.ids, self.profile)
    }

    pub fn objective(&self, values: &[Vec<f64>], held: &Parts) -> f64 {
        let now = self.parts(values);
        let sizes = (self.model.config.num_query, self.model.config.embed_dim);
        contrast(&now, held, &self.targets(), sizes) + now.itm + now.lm
    }

    pub fn gradients(&self) -> (Gradients, f64) {
        let params = self.params(&self.values);
        let (tape, mut grads) = (Tape::new(), Gradients::new());
        let out = self.run(&Pass::training(&params, &tape, None), None);
        tape.backward(&out.loss, 1.0, &mut grads).unwrap();
        (grads, out.loss.item().unwrap())
    }
}

pub fn targets(ids: &[i64], profile: Profile) -> Vec<Vec<f64>> {
    let n = ids.len();
    let share = |i: usize, j: usize| match profile {
        Profile::LavisDiagonal => f64::from(u8::from(i == j)),
        Profile::LavisImageId if ids[i] == ids[j] => {
            1.0 / ids.iter().filter(|id| **id == ids[i]).count() as f64
        }
        Profile::LavisImageId => 0.0,
    };
    (0..n).map(|i| (0..n).map(|j| 0.9 * share(i, j) + 0.1 / n as f64).collect()).collect()
}

/// -sum target log softmax(logits), mean over rows
fn cross_entropy(logits: &[Vec<f64>], targets: &[Vec<f64>]) -> f64 {
    let row = |(x, t): (&Vec<f64>, &Vec<f64>)| {
        let norm = x.iter().map(|x| x.exp()).sum::<f64>().ln();
        x.iter().zip(t).map(|(x, t)| t * (norm - x)).sum::<f64>()
    };
    logits.iter().zip(targets).map(row).sum::<f64>() / logits.len() as f64
}

/// max over queries of image[i,q] . text[j], [images][texts]
fn similarity(image: &[f64], text: &[f64], (q, e): (usize, usize)) -> Vec<Vec<f64>> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let largest = |queries: &[f64], t: &[f64]| queries.chunks(e).map(|a| dot(a, t)).fold(f64::MIN, f64::max);
    image.chunks(q * e).map(|i| text.chunks(e).map(|t| largest(i, t)).collect()).collect()
}

/// The contrastive part of F: each direction moves one side.
pub fn contrast(now: &Parts, held: &Parts, targets: &[Vec<f64>], sizes: (usize, usize)) -> f64 {
    let i2t = similarity(&now.image, &held.text, sizes);
    let t2i = similarity(&held.image, &now.text, sizes);
    let n = i2t.len();
    let over = |s: &dyn Fn(usize, usize) -> f64| -> Vec<Vec<f64>> {
        (0..n).map(|i| (0..n).map(|j| s(i, j) / now.temp).collect()).collect()
    };
    let both = [over(&|i, j| i2t[i][j]), over(&|i, j| t2i[j][i])];
    (cross_entropy(&both[0], targets) + cross_entropy(&both[1], targets)) / 2.0
}

pub fn length(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn unit(x: &[f64]) -> Vec<f64> {
    let n = length(x).max(1e-300);
    x.iter().map(|x| x / n).collect()
}

/// Directions for a tensor: along its gradient, where every error shows, and random ones.
fn directions(grad: &[f64], tensor: usize, random: u32) -> Vec<Vec<f64>> {
    let normal = |k: u32| {
        let stream = Stream { seed: 11, step: k, site: tensor as u32 };
        unit(&(0..grad.len() as u64).map(|i| stream.normal(i)).collect::<Vec<_>>())
    };
    std::iter::once(unit(grad)).chain((0..random).map(normal)).collect()
}

/// The h of the differences; what they leave out is of the order h^4.
const H: f64 = 1e-4;

/// The slope of f along d in tensor i, by five points.
fn slope(values: &[Vec<f64>], i: usize, d: &[f64], f: impl Fn(&[Vec<f64>]) -> f64) -> f64 {
    let at = |by: f64| {
        let mut moved = values.to_vec();
        moved[i].iter_mut().zip(d).for_each(|(x, d)| *x += by * H * d);
        f(&moved)
    };
    (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * H)
}

/// Every tensor's gradient against differences of f: within 1e-6 of its length (and 1e-9, where differences of numbers
/// around 10 end: 10 * 2^-52 / 1e-4 is 2e-11, and a few of them).
pub fn compare(setup: &Setup, grads: &Gradients, random: u32, f: impl Fn(&[Vec<f64>]) -> f64) {
    for (i, spec) in setup.specs.iter().enumerate().filter(|(_, s)| s.trained) {
        let none = vec![0.0; setup.values[i].len()];
        let grad = grads.get(i).map_or(none, |g| g.slice::<f64>().to_vec());
        for (k, d) in directions(&grad, i, random).iter().enumerate() {
            let numeric = slope(&setup.values, i, d, &f);
            let analytic: f64 = grad.iter().zip(d).map(|(g, d)| g * d).sum();
            assert!(
                (numeric - analytic).abs() <= 1e-6 * length(&grad) + 1e-9,
                "{} direction {k}: differences say {numeric:e}, backward {analytic:e}",
                spec.name
            );
        }
    }
}

/// Whether the largest of every similarity is so by more than a perturbation (2 H) moves it: else F has no slope there.
pub fn apart(parts: &Parts, (q, e): (usize, usize)) -> bool {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    parts.text.chunks(e).all(|text| {
        parts.image.chunks(q * e).all(|image| {
            let mut all: Vec<f64> = image.chunks(e).map(|a| dot(a, text)).collect();
            all.sort_by(f64::total_cmp);
            all[q - 1] - all[q - 2] > 20.0 * H
        })
    })
}
