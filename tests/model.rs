//! The whole objective on a tiny model, in f64: the gradient of every parameter against differences, which parameters
//! are reached, how negatives are drawn, and the scores of retrieval.
//!
//! The contrastive gradient is one-sided: in sim_i2t the texts are constants, in sim_t2i the images. So the function whose
//! slope it is holds the other side where it was:
//!   F(p) = (CE(sim(image(p), text(p0)) / temp(p)) + CE(sim(image(p0), text(p))^T / temp(p))) / 2 + ITM(p) + LM(p)
//! and the tests write out its first part from the features.

mod tiny;

use qformer::model::{
    Batch, Config, MICRO_SITES, Model, Negatives, Outputs, Profile, Sampling, StepPlan, Trace,
};
use qformer::model::{mean_cosine, retrieval_scores};
use qformer::nn::{DropoutPlan, Init, Params, Pass, Precision, Spec, Value};
use qformer::tensor::{DType, Device, Gradients, HalfMatrix, Stream, Tape, Tensor};
use std::sync::Arc;

/// A batch with given negatives, and the model it is for.
struct Setup {
    model: Model,
    specs: Vec<Spec>,
    values: Vec<Vec<f64>>,
    image: Tensor,
    text: Vec<Vec<u32>>,
    ids: Vec<i64>,
    negatives: Negatives,
    profile: Profile,
}

/// Normalised features, and the losses beside the contrastive one.
struct Parts {
    image: Vec<f64>,
    text: Vec<f64>,
    temp: f64,
    itm: f64,
    lm: f64,
}

impl Setup {
    fn new(config: Config, train_vit: bool, profile: Profile) -> Setup {
        Setup::of_seed(config, train_vit, profile, 5)
    }

    fn of_seed(config: Config, train_vit: bool, profile: Profile, seed: u64) -> Setup {
        let (model, specs) = Model::new(config.clone(), train_vit).unwrap();
        let image = tiny::pictures(&config, 3, seed, DType::F64);
        let text = tiny::captions(&config, 3, seed);
        let negatives = Negatives { image: vec![1, 2, 0], text: vec![2, 0, 0] };
        let values = tiny::values(&specs, 3);
        Setup { model, specs, values, image, text, ids: vec![7, 8, 7], negatives, profile }
    }

    fn params(&self, values: &[Vec<f64>]) -> Params {
        tiny::params(&self.specs, values, DType::F64)
    }

    fn run(&self, pass: &Pass, trace: Option<&mut Trace>) -> Outputs {
        let batch = Batch { image: &self.image, text: &self.text, image_id: Some(&self.ids) };
        self.model.stage1(pass, &batch, self.profile, Sampling::Given(&self.negatives), trace).unwrap()
    }

    fn parts(&self, values: &[Vec<f64>]) -> Parts {
        let params = self.params(values);
        let mut trace = Trace::default();
        let out = self.run(&Pass::inference(&params), Some(&mut trace));
        let of = |t: &Option<Tensor>| t.as_ref().unwrap().to_f64();
        Parts {
            image: of(&trace.image_feats),
            text: of(&trace.text_feat),
            temp: params.get(params.find("temp").unwrap()).item(),
            itm: out.itm.item(),
            lm: out.lm.item(),
        }
    }

    /// Row i's target: 0.9 on itself, or shared among its image's captions, and 0.1 on all.
    fn targets(&self) -> Vec<Vec<f64>> {
        targets(&self.ids, self.profile)
    }

    fn objective(&self, values: &[Vec<f64>], held: &Parts) -> f64 {
        let now = self.parts(values);
        let sizes = (self.model.config.num_query, self.model.config.embed_dim);
        contrast(&now, held, &self.targets(), sizes) + now.itm + now.lm
    }

    fn gradients(&self) -> (Gradients, f64) {
        let params = self.params(&self.values);
        let (tape, mut grads) = (Tape::new(), Gradients::new());
        let out = self.run(&Pass::training(&params, &tape, None), None);
        tape.backward(&out.loss, 1.0, &mut grads).unwrap();
        (grads, out.loss.item())
    }
}

fn targets(ids: &[i64], profile: Profile) -> Vec<Vec<f64>> {
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
fn contrast(now: &Parts, held: &Parts, targets: &[Vec<f64>], sizes: (usize, usize)) -> f64 {
    let i2t = similarity(&now.image, &held.text, sizes);
    let t2i = similarity(&held.image, &now.text, sizes);
    let n = i2t.len();
    let over = |s: &dyn Fn(usize, usize) -> f64| -> Vec<Vec<f64>> {
        (0..n).map(|i| (0..n).map(|j| s(i, j) / now.temp).collect()).collect()
    };
    let both = [over(&|i, j| i2t[i][j]), over(&|i, j| t2i[j][i])];
    (cross_entropy(&both[0], targets) + cross_entropy(&both[1], targets)) / 2.0
}

fn length(x: &[f64]) -> f64 {
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
fn compare(setup: &Setup, grads: &Gradients, random: u32, f: impl Fn(&[Vec<f64>]) -> f64) {
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
fn apart(parts: &Parts, (q, e): (usize, usize)) -> bool {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    parts.text.chunks(e).all(|text| {
        parts.image.chunks(q * e).all(|image| {
            let mut all: Vec<f64> = image.chunks(e).map(|a| dot(a, text)).collect();
            all.sort_by(f64::total_cmp);
            all[q - 1] - all[q - 2] > 20.0 * H
        })
    })
}

fn check_every_parameter(config: Config, train_vit: bool, profile: Profile) {
    let sizes = (config.num_query, config.embed_dim);
    let of_seed = |seed| {
        let setup = Setup::of_seed(config.clone(), train_vit, profile, seed);
        let held = setup.parts(&setup.values);
        apart(&held, sizes).then_some((setup, held))
    };
    let (setup, held) = (5..).find_map(of_seed).unwrap();
    let (grads, loss) = setup.gradients();
    // The same function: with all rows or those that a loss reads, and with the contrastive loss written out.
    let written = setup.objective(&setup.values, &held);
    assert!((loss - written).abs() < 1e-12 * loss, "{loss} is not {written}");
    compare(&setup, &grads, 3, |values| setup.objective(values, &held));
}

#[test]
fn every_gradient_with_a_trained_image_encoder() {
    check_every_parameter(tiny::config(), true, Profile::LavisDiagonal);
}

#[test]
fn every_gradient_with_image_ids() {
    check_every_parameter(Config { cross_freq: 1, ..tiny::config() }, true, Profile::LavisImageId);
}

/// Behind a frozen image encoder, ln_vision and the keys are one operation: its gradients, and those alone, differ in
/// how they are computed.
#[test]
fn every_gradient_with_a_frozen_image_encoder() {
    check_every_parameter(tiny::config(), false, Profile::LavisDiagonal);
}

/// Under dropout the trace (all rows) draws other masks than the step; matching and captioning need none.
#[test]
fn every_gradient_under_dropout() {
    let setup = Setup::new(tiny::config(), true, Profile::LavisDiagonal);
    let drop = Some(DropoutPlan { p: 0.2, seed: 9, step: 4 });
    let params = setup.params(&setup.values);
    let (tape, mut grads) = (Tape::new(), Gradients::new());
    let out = setup.run(&Pass::training(&params, &tape, drop), None);
    let one = || Tensor::new(vec![1f64], &[]).unwrap();
    tape.backward_from(&[(&out.itm, one()), (&out.lm, one())], &mut grads).unwrap();
    let dropped = [setup.parts(&setup.values).itm, setup.parts(&setup.values).lm];
    assert!(dropped[0] != out.itm.item() && dropped[1] != out.lm.item(), "dropout changed nothing");
    compare(&setup, &grads, 0, |values| {
        let params = setup.params(values);
        let out = setup.run(&Pass::untracked(&params, drop), None);
        out.itm.item() + out.lm.item()
    });
}

/// The true gradient of a key bias is 0: softmax ignores a constant.
fn is_key_bias(name: &str) -> bool {
    name.ends_with("attention.self.key.bias")
}

#[test]
fn every_trained_parameter_is_reached_and_no_frozen_one() {
    for (train_vit, dtype) in [(false, DType::F32), (true, DType::F64)] {
        let config = tiny::config();
        let (model, params) = tiny::model(config.clone(), train_vit, dtype);
        let (image, text) = (tiny::pictures(&config, 3, 5, dtype), tiny::captions(&config, 3, 5));
        let (tape, mut grads) = (Tape::new(), Gradients::new());
        let batch = Batch { image: &image, text: &text, image_id: None };
        let sampling = Sampling::Draw { seed: 1, step: 1, site: 0 };
        let pass = Pass::training(&params, &tape, Some(DropoutPlan { p: 0.1, seed: 1, step: 1 }));
        let out = model.stage1(&pass, &batch, Profile::LavisDiagonal, sampling, None).unwrap();
        tape.backward(&out.loss, 1.0, &mut grads).unwrap();
        for (id, spec, value) in params.iter() {
            let grad = grads.get(id.0);
            assert_eq!(grad.is_some(), spec.trained, "{}: trained {}", spec.name, spec.trained);
            assert_eq!(spec.trained, train_vit || !spec.name.starts_with("visual_encoder."), "{}", spec.name);
            let Some(grad) = grad else { continue };
            assert_eq!((grad.len(), grad.dtype()), (value.len(), dtype), "{}", spec.name);
            let all: Vec<f64> = match grad {
                qformer::tensor::Buffer::F32(g) => g.iter().map(|x| f64::from(*x)).collect(),
                qformer::tensor::Buffer::F64(g) => g.clone(),
                qformer::tensor::Buffer::Gpu(_) => panic!("no GPU here"),
            };
            assert!(all.iter().all(|x| x.is_finite()), "{}", spec.name);
            let rounding = if dtype == DType::F32 { 1e-6 } else { 1e-15 };
            assert_eq!(length(&all) > rounding, !is_key_bias(&spec.name), "{}: {}", spec.name, length(&all));
        }
        assert!(grads.keys().all(|k| k < params.len()));
        assert!(params.iter().all(|(id, spec, _)| pass.param(id).tracked() == spec.trained));
        assert!(pass.tracks() && !Pass::inference(&params).tracks());
    }
}

/// Deviations, bounds and constants are those of the specifications, and no two parameters begin alike.
#[test]
fn random_parameters_begin_as_specified() {
    let (_, specs) = Model::new(Config::tiny(), false).unwrap();
    let params = Params::random(specs, DType::F64, 5).unwrap();
    assert!(!params.is_empty() && Params::random(Vec::new(), DType::F64, 5).unwrap().is_empty());
    let mut first = std::collections::HashSet::new();
    for (_, spec, value) in params.iter() {
        let x = value.to_f64();
        let square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        match spec.init {
            Init::Constant(c) => assert!(x.iter().all(|x| *x == c), "{}", spec.name),
            // The mean of n squares is off by sqrt(2 / n) of itself, five times that at most.
            Init::Normal(s) => {
                let far = (square / (s * s) - 1.0).abs();
                assert!(far < 5.0 * (2.0 / x.len() as f64).sqrt(), "{}", spec.name);
            }
            Init::Uniform(b) => {
                let (low, high) = x.iter().fold((b, -b), |(l, h), x| (x.min(l), x.max(h)));
                assert!(-b <= low && high < b, "{}: {low} {high}", spec.name);
                let spread = low < -0.6 * b && 0.6 * b < high;
                assert!(spread || x.len() < 20, "{}: {low} {high}", spec.name);
            }
        }
        assert!(matches!(spec.init, Init::Constant(_)) || first.insert((x[0] / square.sqrt()).to_bits()));
    }
}

/// Bytes of halves, where halves may stand.
struct Halves(Vec<half::f16>);

impl AsRef<[u8]> for Halves {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// A frozen weight comes in half precision and is known to, also where a GPU stores it; a trained one may not.
#[test]
fn only_frozen_weights_come_in_half_precision() {
    let (frozen, trained) = ("visual_encoder.blocks.0.mlp.fc1.weight", "text_proj.weight");
    let load = |name: &str| {
        let (_, specs) = Model::new(tiny::config(), false).unwrap();
        Params::of_values(specs, |spec| {
            if spec.name != name {
                return Ok(Value::Tensor(Tensor::zeros(DType::F32, &spec.shape)));
            }
            let halves = Halves(vec![half::f16::ONE; spec.shape.iter().product()]);
            Ok(Value::Half(HalfMatrix::new(Arc::new(halves), spec.shape[0], spec.shape[1])?))
        })
    };
    let known = |params: &Params| {
        let names = params.iter().filter(|(id, _, _)| params.comes_in_half(*id));
        names.map(|(_, spec, _)| spec.name.clone()).collect::<Vec<_>>()
    };
    let params = load(frozen).unwrap();
    assert_eq!(known(&params), [frozen]);
    let device = Device::open("plan").unwrap();
    let Device::Gpu(gpu) = &device else { panic!("a CPU") };
    let there = params.to(&device, Precision::F16).unwrap();
    assert_eq!(known(&there), [frozen]);
    assert!(!gpu.take_counts().launches.contains_key("cast_f16_f32"), "halves are stored as they are");
    let want =
        "model weights: text_proj.weight: expected f32 or f64, since it is trained, got half precision";
    assert_eq!(tiny::error(load(trained)), want);
}

/// Micro-batches of two and of three captions; the first of each has the same image id.
fn micro_batches(profile: Profile, seed: u64) -> [Setup; 2] {
    [2usize, 3].map(|n| {
        let setup = Setup::new(tiny::config(), false, profile);
        let config = setup.model.config.clone();
        let (image, text) = (tiny::pictures(&config, n, seed, DType::F64), tiny::captions(&config, n, seed));
        let negatives = Negatives { image: vec![0; n], text: vec![0; n] };
        Setup { image, text, ids: (0..n).map(|i| (i * n) as i64).collect(), negatives, ..setup }
    })
}

/// A step over two micro-batches of different sizes: contrastive negatives from both, or each for itself.
fn check_accumulation(joint: bool, profile: Profile) {
    const SCALE: f64 = 8.0;
    let sizes = (tiny::config().num_query, tiny::config().embed_dim);
    let mut micro = (5..)
        .map(|seed| micro_batches(profile, seed))
        .find(|m| apart(&stack(&m.each_ref().map(|m| m.parts(&m.values))), sizes))
        .unwrap();
    let (model, params) = (&micro[0].model, micro[0].params(&micro[0].values));
    let batches: Vec<Batch> =
        micro.iter().map(|m| Batch { image: &m.image, text: &m.text, image_id: Some(&m.ids) }).collect();
    let plan = StepPlan { profile, drop: None, seed: 6, step: 2, scale: SCALE };
    let mut grads = Gradients::new();
    let losses = if joint {
        model.step_joint(&params, &batches, plan, &mut grads).unwrap()
    } else {
        model.step_separate(&params, &batches, plan, &mut grads).unwrap()
    };
    // The negatives that each micro-batch drew.
    let draw = |k: usize| {
        let sampling = Sampling::Draw { seed: 6, step: 2, site: k as u32 * MICRO_SITES };
        model.stage1(&Pass::inference(&params), &batches[k], profile, sampling, None).unwrap().negatives
    };
    let negatives = [draw(0), draw(1)];
    for (m, n) in micro.iter_mut().zip(negatives) {
        m.negatives = n;
    }
    let ids: Vec<i64> = micro.iter().flat_map(|m| m.ids.clone()).collect();
    let objective = |now: &[Parts; 2], held: &[Parts; 2]| {
        let rest = now.iter().map(|p| p.itm + p.lm).sum::<f64>() / 2.0;
        if joint {
            return contrast(&stack(now), &stack(held), &targets(&ids, profile), sizes) + rest;
        }
        let own = (0..2).map(|k| contrast(&now[k], &held[k], &micro[k].targets(), sizes));
        own.sum::<f64>() / 2.0 + rest
    };
    let parts = |values: &[Vec<f64>]| [0, 1].map(|k| micro[k].parts(values));
    let held = parts(&micro[0].values);
    let total = objective(&held, &held);
    assert!((losses.losses[0] - total).abs() < 1e-12 * total, "{} is not {total}", losses.losses[0]);
    let sum: f64 = losses.losses[1..].iter().sum();
    assert!((losses.losses[0] - sum).abs() < 1e-12 * total);
    compare(&micro[0], &grads, 1, |values| SCALE * objective(&parts(values), &held));
}

/// Features of both, one after the other.
fn stack(parts: &[Parts]) -> Parts {
    Parts {
        image: parts.iter().flat_map(|p| p.image.clone()).collect(),
        text: parts.iter().flat_map(|p| p.text.clone()).collect(),
        temp: parts[0].temp,
        itm: 0.0,
        lm: 0.0,
    }
}

#[test]
fn accumulated_micro_batches_with_negatives_of_all() {
    check_accumulation(true, Profile::LavisDiagonal);
    check_accumulation(true, Profile::LavisImageId);
}

#[test]
fn accumulated_micro_batches_each_for_itself() {
    check_accumulation(false, Profile::LavisDiagonal);
}

/// With one micro-batch both ways are the same step, dropout and image ids included.
#[test]
fn one_micro_batch_is_the_same_either_way() {
    for profile in [Profile::LavisDiagonal, Profile::LavisImageId] {
        let setup = Setup::new(tiny::config(), false, profile);
        let params = setup.params(&setup.values);
        let drop = Some(DropoutPlan { p: 0.1, seed: 6, step: 2 });
        let plan = StepPlan { profile, drop, seed: 6, step: 2, scale: 1.0 };
        let batch = [Batch { image: &setup.image, text: &setup.text, image_id: Some(&setup.ids) }];
        let [mut a, mut b] = [Gradients::new(), Gradients::new()];
        let joint = setup.model.step_joint(&params, &batch, plan, &mut a).unwrap();
        let separate = setup.model.step_separate(&params, &batch, plan, &mut b).unwrap();
        assert_eq!(joint.accuracy, separate.accuracy);
        for (x, y) in joint.losses.iter().zip(separate.losses) {
            assert!((x - y).abs() < 1e-12, "{joint:?} {separate:?}");
        }
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
        for key in a.keys() {
            let [x, y] = [&a, &b].map(|g| g.get(key).unwrap().slice::<f64>());
            let far: Vec<f64> = x.iter().zip(y).map(|(x, y)| x - y).collect();
            assert!(length(&far) <= 1e-12 * (1.0 + length(y)), "{}", setup.specs[key].name);
        }
    }
}

/// The same samples twice: other masks, so another loss than once.
#[test]
fn micro_batches_draw_masks_of_their_own() {
    let setup = Setup::new(tiny::config(), false, Profile::LavisDiagonal);
    let params = setup.params(&setup.values);
    let drop = Some(DropoutPlan { p: 0.3, seed: 6, step: 2 });
    let plan = StepPlan { profile: Profile::LavisDiagonal, drop, seed: 6, step: 2, scale: 1.0 };
    let captioning = |joint: bool, times: usize| {
        let batch = || Batch { image: &setup.image, text: &setup.text, image_id: None };
        let (batches, grads) = ((0..times).map(|_| batch()).collect::<Vec<_>>(), &mut Gradients::new());
        let losses = match joint {
            true => setup.model.step_joint(&params, &batches, plan, grads),
            false => setup.model.step_separate(&params, &batches, plan, grads),
        };
        losses.unwrap().losses[3]
    };
    for joint in [false, true] {
        assert!((captioning(joint, 1) - captioning(joint, 2)).abs() > 1e-6, "joint: {joint}");
    }
}

/// The shares of right answers, against the recorded similarities and logits.
#[test]
fn accuracies_count_the_largest() {
    let setup = Setup::new(tiny::config(), false, Profile::LavisDiagonal);
    let mut trace = Trace::default();
    let out = setup.run(&Pass::inference(&setup.params(&setup.values)), Some(&mut trace));
    let share = |t: &Option<Tensor>, class: &dyn Fn(usize) -> usize| {
        let t = t.as_ref().unwrap();
        let (rows, columns) = t.rows();
        let right = |(i, row): (usize, &[f64])| (0..columns).all(|j| j == class(i) || row[j] < row[class(i)]);
        t.to_f64().chunks(columns).enumerate().filter(|r| right(*r)).count() as f64 / rows as f64
    };
    let want = [
        share(&trace.sim_t2i, &|i| i),
        share(&trace.sim_i2t, &|i| i),
        share(&trace.itm_logits, &|i| usize::from(i < 3)),
    ];
    assert_eq!(out.accuracy.shares().unwrap()[..3], want);
    // Next tokens: the rows of the trace are whole captions, whose last row predicts nothing.
    let logits = trace.lm_logits.unwrap();
    let v = logits.rows().1;
    let (mut row, mut right, mut all) = (0, 0, 0);
    for text in &setup.text {
        for next in &text[1..] {
            let x = &logits.to_f64()[row * v..(row + 1) * v];
            right += usize::from((0..v).all(|j| x[j] <= x[*next as usize]));
            (row, all) = (row + 1, all + 1);
        }
        row += 1;
    }
    assert_eq!(out.accuracy.shares().unwrap()[3], right as f64 / all as f64);
}

/// How often each negative is drawn in many steps, against its weight: softmax + 1e-4 without the diagonal, or softmax
/// over the other ids alone.
#[test]
fn negatives_are_drawn_by_their_weights() {
    const DRAWS: u32 = 3000;
    for profile in [Profile::LavisDiagonal, Profile::LavisImageId] {
        let setup = Setup::new(tiny::config(), false, profile);
        let params = setup.params(&setup.values);
        let pass = Pass::inference(&params);
        let tokens = setup.model.vit_tokens(&pass, &setup.image, |_, _| {}).unwrap();
        let batch = Batch { image: &setup.image, text: &setup.text, image_id: Some(&setup.ids) };
        let mut trace = Trace::default();
        setup.run(&pass, Some(&mut trace));
        let weights = |sim: &Option<Tensor>| -> Vec<Vec<f64>> {
            let row = |(i, row): (usize, &[f64])| {
                let other = |j: usize| setup.ids[j] != setup.ids[i];
                let e: Vec<f64> = match profile {
                    Profile::LavisDiagonal => row.iter().map(|x| x.exp()).collect(),
                    Profile::LavisImageId => {
                        row.iter().enumerate().map(|(j, x)| f64::from(u8::from(other(j))) * x.exp()).collect()
                    }
                };
                let total: f64 = e.iter().sum();
                let weight = |j: usize| match profile {
                    Profile::LavisDiagonal if i == j => 0.0,
                    Profile::LavisDiagonal => e[j] / total + 1e-4,
                    Profile::LavisImageId => e[j] / total,
                };
                (0..3).map(weight).collect()
            };
            sim.as_ref().unwrap().to_f64().chunks(3).enumerate().map(row).collect()
        };
        let want = [weights(&trace.sim_t2i), weights(&trace.sim_i2t)];
        for (w, t) in want.iter().zip([&trace.weights_t2i, &trace.weights_i2t]) {
            let far = w
                .concat()
                .iter()
                .zip(t.as_ref().unwrap().to_f64())
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f64::max);
            assert!(far < 1e-12, "{w:?} {t:?}");
        }
        let mut counts = [[[0u32; 3]; 3]; 2];
        for step in 0..DRAWS {
            let sampling = Sampling::Draw { seed: 4, step, site: 0 };
            let n = setup.model.losses(&pass, &tokens, &batch, profile, sampling, None).unwrap().negatives;
            for (count, drawn) in counts.iter_mut().zip([&n.image, &n.text]) {
                for (i, j) in drawn.iter().enumerate() {
                    count[i][*j as usize] += 1;
                }
            }
        }
        for (count, want) in counts.iter().zip(&want) {
            for (count, w) in count.iter().zip(want) {
                let total: f64 = w.iter().sum();
                for (count, w) in count.iter().zip(w) {
                    let (share, p) = (f64::from(*count) / f64::from(DRAWS), w / total);
                    // Five standard deviations; what has no weight is never drawn.
                    let bound = 5.0 * (p * (1.0 - p) / f64::from(DRAWS)).sqrt();
                    assert!((share - p).abs() <= bound, "{profile:?}: drawn {share}, weight {p}");
                }
            }
        }
    }
}

/// And images and texts are not drawn by the same numbers.
#[test]
fn draws_differ_by_seed_step_and_site() {
    let setup = Setup::new(tiny::config(), false, Profile::LavisDiagonal);
    let params = setup.params(&setup.values);
    let pass = Pass::inference(&params);
    let config = &setup.model.config;
    let (image, text) = (tiny::pictures(config, 16, 1, DType::F64), tiny::captions(config, 16, 1));
    let batch = Batch { image: &image, text: &text, image_id: None };
    let draw = |seed, step, site| {
        let sampling = Sampling::Draw { seed, step, site };
        setup.model.stage1(&pass, &batch, Profile::LavisDiagonal, sampling, None).unwrap().negatives
    };
    let all = [draw(1, 1, 0), draw(2, 1, 0), draw(1, 2, 0), draw(1, 1, 1 << 16)];
    for i in 0..4 {
        assert!((0..i).all(|j| all[i] != all[j]), "draw {i}");
        assert_ne!(all[i].image, all[i].text);
    }
    assert_eq!(all[0], draw(1, 1, 0));
}

/// A pair's scores do not depend on the other pairs and images, and are those of `stage1`'s matching pass.
#[test]
fn matched_pairs_are_those_of_the_matching_loss() {
    let setup = Setup::new(tiny::config(), false, Profile::LavisDiagonal);
    let params = setup.params(&setup.values);
    let pass = Pass::inference(&params);
    let mut trace = Trace::default();
    setup.run(&pass, Some(&mut trace));
    let images = setup.model.image_features(&pass, &setup.image).unwrap();
    let n = &setup.negatives;
    let mut pairs: Vec<(usize, usize)> = (0..3).map(|i| (i, i)).collect();
    pairs.extend((0..3).map(|t| (n.image[t] as usize, t)));
    pairs.extend((0..3).map(|i| (i, n.text[i] as usize)));
    let scores = setup.model.match_pairs(&pass, &images, &setup.text, &pairs).unwrap();
    let far = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(far(&scores.logits.to_f64(), &trace.itm_logits.unwrap().to_f64()) < 1e-12);
    let one = setup.model.match_pairs(&pass, &images, &setup.text, &pairs[4..5]).unwrap();
    assert!(far(&one.logits.to_f64(), &scores.logits.to_f64()[8..10]) < 1e-12);
    // Features: those of the first pass.
    assert!(far(&images.proj.to_f64(), &trace.image_feats.unwrap().to_f64()) < 1e-12);
    let texts = setup.model.text_features(&pass, &setup.text).unwrap();
    let e = setup.model.config.embed_dim;
    for (i, t) in texts.iter().enumerate() {
        assert_eq!(t.embeds.rows().0, setup.text[i].len());
        let cls = trace.text_feat.as_ref().unwrap().to_f64();
        assert!(far(&t.proj.to_f64()[..e], &cls[i * e..(i + 1) * e]) < 1e-12, "text {i}");
    }
    let cls: Vec<f64> = texts.iter().flat_map(|t| t.proj.to_f64()[..e].to_vec()).collect();
    let itc = setup.model.itc_scores(&images.proj, &Tensor::new(cls, &[3, e]).unwrap()).unwrap();
    let temp = params.get(params.find("temp").unwrap()).item();
    let sim: Vec<f64> = trace.sim_i2t.unwrap().to_f64().iter().map(|x| x * temp).collect();
    assert!(far(&itc.to_f64(), &sim) < 1e-12);
}

#[test]
fn mean_cosine_is_arithmetic() {
    // cos = 1, -1, 0 and 3/5: (2 + 0 + 1 + 1.6) / 2 / 4
    let (a, b) = ([1., 1., 2., 0., 1., 0., 1., 0.], [2., 2., -1., 0., 0., 5., 3., 4.]);
    assert!((mean_cosine(&a, &b, 2) - 4.6 / 8.0).abs() < 1e-15);
    assert_eq!(mean_cosine(&[], &[], 2), 0.0);
    // As torch's cosine_similarity: a row of zeros has cosine 0.
    assert_eq!(mean_cosine(&[0., 0.], &[1., 0.], 2), 0.5);
}

/// The two best texts of every image and the two best images of every text are matched; ties go to the lower index.
#[test]
fn reranked_scores_are_arithmetic() {
    let itc = vec![vec![0.1, 0.9, 0.5], vec![0.7, 0.7, 0.7]];
    let mut asked = Vec::new();
    let scores = retrieval_scores(&itc, 2, |pairs| {
        asked.push(pairs.to_vec());
        Ok(pairs.iter().map(|(i, t)| (10 * i + t) as f64).collect())
    });
    let scores = scores.unwrap();
    assert_eq!(scores.i2t, [[-100.0, 1.0 + 0.9, 2.0 + 0.5], [10.0 + 0.7, 11.0 + 0.7, -100.0]]);
    assert_eq!(scores.t2i, [[0.1, 10.7], [1.9, 11.7], [2.5, 12.7]]);
    assert_eq!(asked[..2], [vec![(0, 1), (0, 2)], vec![(1, 0), (1, 1)]]);
    assert_eq!(asked[2], [(1, 0), (0, 0)]);
    let one = retrieval_scores(&itc, 1, |pairs| Ok(vec![0.0; pairs.len()])).unwrap();
    assert_eq!(one.t2i, [[-100.0, 0.7], [0.9, -100.0], [-100.0, 0.7]]);
}
