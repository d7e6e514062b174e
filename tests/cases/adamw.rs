//! AdamW of several parameters at once, and the norm of their gradients, against the formulas as they stand in torch.optim.

use super::harness::{Rng, device, distance};
use qformer::ops::{self, AdamWStep, Parameter};
use qformer::tensor::{Buffer, DType, Device, Storage, Tensor};

const BY: AdamWStep =
    AdamWStep { lr: 1e-2, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.05, step: 7, unscale: 0.5 };
/// Sizes around a chunk of the kernels (2048), and the storage of each parameter's copy.
const PARAMETERS: [(usize, Storage); 4] =
    [(1, Storage::F32), (2048, Storage::F16), (2049, Storage::BF16), (5000, Storage::F16)];

/// What their learning rates are multiplied by.
const SCALES: [f64; 4] = [1.0, 0.5, 1.0, 0.5];

/// Value, gradient and both moments of a parameter.
fn draw(rng: &mut Rng, n: usize) -> [Vec<f64>; 4] {
    let squares = |v: Vec<f64>| v.into_iter().map(|v| v * v).collect();
    [rng.values(n), rng.values(n), rng.values(n), squares(rng.values(n))]
}

/// torch.optim.AdamW's single-tensor step.
fn define(i: usize, [p, g, m, v]: &[Vec<f64>; 4]) -> [Vec<f64>; 3] {
    let ([b1, b2], t) = (BY.betas, BY.step as i32);
    let (n, decays, lr) = (p.len(), i % 2 == 1, BY.lr * SCALES[i]);
    let mut out = [p.clone(), m.clone(), v.clone()];
    for i in 0..n {
        let g = g[i] * BY.unscale;
        if decays {
            out[0][i] *= 1.0 - lr * BY.weight_decay;
        }
        out[1][i] = b1 * m[i] + (1.0 - b1) * g;
        out[2][i] = b2 * v[i] + (1.0 - b2) * g * g;
        let denominator = out[2][i].sqrt() / (1.0 - b2.powi(t)).sqrt() + BY.eps;
        out[0][i] -= lr / (1.0 - b1.powi(t)) * out[1][i] / denominator;
    }
    out
}

/// One step on a device: values, moments and copies of all parameters, one after the other, and the gradients' norm.
fn run(place: &Device, dtype: DType, all: &[[Vec<f64>; 4]]) -> ([Vec<f64>; 4], f64) {
    let tensor = |v: &[f64]| {
        let t = Tensor::of(dtype, v, &[v.len()]).unwrap();
        if place.keeps_storages() { t.to(place, Storage::F32).unwrap() } else { t }
    };
    let buffer = |v: &[f64]| {
        let t = tensor(v);
        t.array().map_or_else(|| qformer::on!(dtype, T => Buffer::of(t.data::<T>().to_vec())), Buffer::Gpu)
    };
    let grads: Vec<Buffer> = all.iter().map(|p| buffer(&p[1])).collect();
    let mut held: Vec<(Tensor, Option<Tensor>, Buffer, Buffer)> = (all.iter().zip(PARAMETERS))
        .map(|(p, (_, storage))| {
            let value = tensor(&p[0]);
            let copied = place.keeps_storages() && storage != Storage::F32;
            let copy = copied.then(|| value.to(place, storage).unwrap());
            (value, copy, buffer(&p[2]), buffer(&p[3]))
        })
        .collect();
    let mut parameters: Vec<Parameter> = (held.iter_mut().zip(&grads).enumerate())
        .map(|(i, ((value, copy, m, v), gradient))| Parameter {
            name: "p",
            value,
            copy: copy.as_ref(),
            gradient,
            exp_avg: m,
            exp_avg_sq: v,
            decays: i % 2 == 1,
            scale: SCALES[i],
        })
        .collect();
    ops::adamw(&mut parameters, &BY).unwrap();
    drop(parameters);
    let numbers = |b: &Buffer| Tensor::of_buffer(b.clone(), &[b.len()]).unwrap().to_f64().unwrap();
    let mut out = [const { Vec::new() }; 4];
    for (value, copy, m, v) in &held {
        out[0].extend(value.to_f64().unwrap());
        out[1].extend(numbers(m));
        out[2].extend(numbers(v));
        out[3].extend(copy.as_ref().unwrap_or(value).to_f64().unwrap());
    }
    (out, ops::gradient_norm(&grads.iter().collect::<Vec<_>>()).unwrap())
}

#[test]
fn equals_its_definition_on_every_device() {
    let mut rng = Rng::new(1);
    let all: Vec<[Vec<f64>; 4]> = PARAMETERS.iter().map(|(n, _)| draw(&mut rng, *n)).collect();
    let want: Vec<[Vec<f64>; 3]> = all.iter().enumerate().map(|(i, p)| define(i, p)).collect();
    let want = [0, 1, 2].map(|i| want.iter().flat_map(|p| p[i].clone()).collect::<Vec<f64>>());
    let norm = all.iter().flat_map(|p| &p[1]).map(|g| g * g).sum::<f64>().sqrt();
    // About ten roundings of numbers below 10; gradients near 0 leave a step of at most lr / 0.1 off by its rounding.
    let mut places = vec![(Device::Cpu, DType::F64, 1e-13), (Device::Cpu, DType::F32, 1e-5)];
    places.extend(device().map(|d| (d.clone(), DType::F32, 1e-5)));
    for (place, dtype, bound) in places {
        let (found, length) = run(&place, dtype, &all);
        for (i, (found, want)) in found.iter().zip(&want).enumerate() {
            let far = distance(found, want);
            assert!(far <= bound, "{dtype} {place:?}: number {i} off by {far:e}");
        }
        assert!((length - norm).abs() <= bound * norm, "{dtype}: {length} is not {norm}");
        // Copies are the new values, rounded to their storage.
        let mut at = 0;
        for (n, storage) in PARAMETERS {
            let round = |x: f64| match (place.keeps_storages(), storage) {
                (true, Storage::F16) => half::f16::from_f32(x as f32).to_f64(),
                (true, Storage::BF16) => half::bf16::from_f32(x as f32).to_f64(),
                _ => x,
            };
            let values: Vec<f64> = found[0][at..at + n].iter().map(|x| round(*x)).collect();
            assert_eq!(values, found[3][at..at + n], "{storage:?}");
            at += n;
        }
    }
}

#[test]
fn a_norm_of_what_is_not_finite_is_not_finite() {
    for place in std::iter::once(Device::Cpu).chain(device().cloned()) {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut values = vec![1f32; 3000];
            values[2500] = bad;
            let t = Tensor::new(values, &[3000]).unwrap().at(&place).unwrap();
            let grad = t.array().map_or_else(|| Buffer::of(t.data::<f32>().to_vec()), Buffer::Gpu);
            assert!(!ops::gradient_norm(&[&grad]).unwrap().is_finite());
        }
    }
    assert_eq!(ops::gradient_norm(&[]).unwrap(), 0.0);
}
