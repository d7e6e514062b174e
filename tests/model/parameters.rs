//! How parameters begin, and in which precision they may come.

use crate::tiny;
use qformer::model::{Config, Model};
use qformer::nn::{Init, Params, Precision, Value};
use qformer::tensor::{Buffer, DType, Device, Gradients, HalfMatrix, Tensor};
use qformer::train::optimizer::{AdamW, Hyper};
use std::sync::Arc;

/// Deviations, bounds and constants are those of the specifications, and no two parameters begin alike.
#[test]
fn random_parameters_begin_as_specified() {
    let (_, specs) = Model::new(Config::tiny(), false).unwrap();
    let params = Params::random(specs, DType::F64, 5).unwrap();
    assert!(!params.is_empty() && Params::random(Vec::new(), DType::F64, 5).unwrap().is_empty());
    let mut first = std::collections::HashSet::new();
    for (_, spec, value) in params.iter() {
        let x = value.to_f64().unwrap();
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

/// What weight decay is for, by name: matrices, embeddings and the query tokens; nothing of one axis, no bias, not the temperature.
#[test]
fn weight_decay_is_of_these() {
    let config = Config { layers: 2, cross_freq: 2, ..Config::tiny() };
    let (_, specs) = Model::new(config, false).unwrap();
    let mut params = Params::random(specs, DType::F64, 5).unwrap();
    let before: Vec<Vec<f64>> = params.iter().map(|(_, _, v)| v.to_f64().unwrap()).collect();
    let hyper = Hyper { weight_decay: 0.5, ..Hyper::default() };
    let mut grads = Gradients::new();
    for (id, spec, value) in params.iter().filter(|(_, s, _)| s.trained) {
        assert!(!spec.name.starts_with("visual_encoder."), "{}", spec.name);
        grads.add(id.0, Buffer::zeros(DType::F64, value.len())).unwrap();
    }
    AdamW::new(&params, hyper).unwrap().step(&mut params, &mut grads, 0.1, 1.0).unwrap();
    let mut decayed = std::collections::BTreeSet::new();
    for ((_, spec, value), before) in params.iter().zip(&before) {
        let after = value.to_f64().unwrap();
        let by = if &after == before { 1.0 } else { 1.0 - 0.1 * 0.5 };
        assert!(after.iter().zip(before).all(|(a, b)| (a - by * b).abs() <= 1e-15), "{}", spec.name);
        // What begins as zeros shows nothing: biases alone do.
        assert!(before.iter().any(|x| *x != 0.0) || spec.name.contains("bias"), "{}", spec.name);
        decayed.extend((by != 1.0).then(|| spec.name.clone()));
    }
    let mut want = vec!["itm_head.weight", "query_tokens", "text_proj.weight", "vision_proj.weight"];
    want.extend([
        "Qformer.bert.embeddings.position_embeddings.weight",
        "Qformer.bert.embeddings.word_embeddings.weight",
        "Qformer.cls.predictions.transform.dense.weight",
    ]);
    let mut want: std::collections::BTreeSet<String> = want.into_iter().map(String::from).collect();
    for (layer, kinds) in [(0, &["attention", "crossattention"][..]), (1, &["attention"])] {
        let name = format!("Qformer.bert.encoder.layer.{layer}");
        for kind in kinds {
            let parts = ["self.query", "self.key", "self.value", "output.dense"];
            want.extend(parts.map(|part| format!("{name}.{kind}.{part}.weight")));
        }
        let feed_forwards = ["intermediate", "intermediate_query", "output", "output_query"];
        want.extend(feed_forwards.map(|part| format!("{name}.{part}.dense.weight")));
    }
    assert_eq!(decayed, want);
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
