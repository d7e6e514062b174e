//! y = x weight^T + bias

use super::harness::{
    Case, DRAWS, Input, Rng, STORAGES, device, distance, floats, gradient_of, largest, on_kernels, places,
    prove, t, unit_roundoff,
};
use qformer::Result;
use qformer::device::Real;
use qformer::ops::{self, Cache, Gelu, Options, Weight};
use qformer::tensor::{DType, Tensor};

fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    ops::linear(x, Weight::Dense(w, b), Options::default())
}

fn few_rows(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    ops::linear(x, Weight::Dense(w, b), Options::batch_invariant())
}

#[derive(Debug)]
struct Linear {
    lead: Vec<usize>,
    n: usize,
    k: usize,
    x: Vec<f64>,
    weight: Vec<f64>,
    bias: Option<Vec<f64>>,
}

fn draw(rng: &mut Rng) -> Linear {
    let lead = if rng.one_in(8) { vec![2, rng.small()] } else { vec![rng.rows()] };
    let (n, k) = (rng.size(), rng.size());
    let bias = rng.one_in(2).then(|| rng.values(n));
    let r: usize = lead.iter().product();
    Linear { x: rng.values(r * k), weight: rng.values(n * k), lead, n, k, bias }
}

impl Linear {
    fn shape(&self) -> Vec<usize> {
        self.lead.iter().copied().chain([self.k]).collect()
    }

    fn rows(&self) -> usize {
        self.lead.iter().product()
    }
}

impl Case for Linear {
    fn inputs(&self) -> Vec<Input> {
        let mut inputs = vec![
            Input::new(&self.shape(), self.x.clone()),
            Input::new(&[self.n, self.k], self.weight.clone()),
        ];
        inputs.extend(self.bias.as_ref().map(|b| Input::new(&[self.n], b.clone())));
        inputs
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        linear(&x[0], &x[1], x.get(2))
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let (r, n, k) = (self.rows(), self.n, self.k);
        let mut y = Vec::new();
        for i in 0..r {
            for j in 0..n {
                let mut sum = T::ZERO;
                for l in 0..k {
                    sum += x[0][i * k + l] * x[1][j * k + l];
                }
                y.push(if x.len() > 2 { sum + x[2][j] } else { sum });
            }
        }
        (vec![r, n], y)
    }
}

#[test]
fn equals_its_definition_and_differences() {
    prove(draw);
}

/// A tensor times itself: y = x x^T, so <w, y> has the gradient (w + w^T) x.
#[test]
fn a_tensor_and_itself() {
    let x = t(&[1., 2., 3., 4.], &[2, 2]);
    let (y, d) = gradient_of(&[&x], &[1., 10., 100., 1000.], |x| linear(&x[0], &x[0], None));
    assert_eq!(y, [5., 11., 11., 25.]);
    assert_eq!(d[0].as_deref().unwrap(), [332., 444., 6110., 8220.]);
}

/// One row more than a task's columns (64), more rows than the inner four.
fn few_rows_case(rng: &mut Rng) -> Linear {
    let (r, n, k) = (
        rng.pick(&[0, 1, 2, 3, 4, 5, 7, 8, 9]),
        rng.pick(&[1, 3, 63, 64, 65, 130]),
        rng.pick(&[1, 7, 31, 32, 33, 64, 97]),
    );
    let bias = rng.one_in(2).then(|| rng.values(n));
    Linear { x: rng.values(r * k), weight: rng.values(n * k), lead: vec![r], n, k, bias }
}

#[test]
fn batch_invariant_layers_equal_their_definition_and_ignore_the_other_rows() {
    for n in 0..DRAWS {
        let case = few_rows_case(&mut Rng::new(n));
        let (r, k, n) = (case.rows(), case.k, case.n);
        let x: Vec<Vec<f64>> = case.inputs().into_iter().map(|i| i.values).collect();
        let (shape, want) = case.define::<f64>(&x);
        let tensor = |x: &[f64], shape: &[usize]| Tensor::new(floats::<f32>(x), shape).unwrap();
        let (w, b) = (t(&case.weight, &[n, k]), case.bias.as_ref().map(|b| t(b, &[n])));
        let y = few_rows(&t(&case.x, &[r, k]), &w, b.as_ref()).unwrap();
        assert_eq!(y.shape().sizes(), shape);
        assert!(distance(&y.to_f64().unwrap(), &want) < 1e-12, "{case:?}");
        let (w, b) = (tensor(&case.weight, &[n, k]), case.bias.as_ref().map(|b| tensor(b, &[n])));
        let x = tensor(&case.x, &[r, k]);
        let all = few_rows(&x, &w, b.as_ref()).unwrap();
        for i in 0..r {
            let alone = few_rows(&x.slice_rows(i..i + 1).unwrap(), &w, b.as_ref()).unwrap();
            assert_eq!(alone.data::<f32>(), &all.data::<f32>()[i * n..(i + 1) * n], "row {i} of {r}");
        }
    }
}

/// Rows of sums alone and in whole groups, three layers side by side, GELU, no bias, columns in several rounds, none at all:
/// equal to the definition, and every row the same bits alone, where its first byte is aligned or not.
#[test]
fn batch_invariant_layers_on_kernels_ignore_the_other_rows() {
    let Some(device) = device() else { return };
    let layers = [
        (0, 5, 7, false, true, false),
        (1, 1, 1, false, true, false),
        (3, 13, 24, false, true, false),
        (5, 9, 64, true, true, false),
        (18, 16, 100, true, true, false),
        (4, 24, 768, false, true, true),
        (3, 8, 1600, false, false, false),
        (33, 7, 37, false, true, true),
        (70, 5, 7, false, true, false),
    ];
    for (i, (r, n, k, three, bias, gelu)) in layers.into_iter().enumerate() {
        // Those of many rows, one by one, in one storage each.
        for storage in STORAGES.into_iter().skip(i % 3).take(if r > 5 { 1 } else { 3 }) {
            let rng = &mut Rng::new((r * n) as u32);
            let mut there = |shape: &[usize], by: f64| {
                let values: Vec<f64> = rng.values(shape.iter().product()).iter().map(|x| x * by).collect();
                super::harness::there(device, storage, &values, shape)
            };
            let (x, parts) = (there(&[r, k], 1.0), if three { 3 } else { 1 });
            let layers = [0, 1, 2].map(|_| (there(&[n, k], 0.2), there(&[n], 1.0)));
            let run = |x: &Tensor| {
                if !three {
                    let (w, b) = &layers[0];
                    let options = Options { gelu: gelu.then_some(Gelu::Exact), ..Options::batch_invariant() };
                    let y = ops::linear(x, Weight::Dense(w, bias.then_some(b)), options).unwrap();
                    return vec![y.to_f64().unwrap()];
                }
                let mut caches = [0, 1].map(|_| ops::with_room(&no_rows(x, n), x.rows().0).unwrap());
                let [keys, values] = &mut caches;
                let cache = Some(Cache { tensors: [keys, values], at: 0 });
                let beside = Weight::Beside(layers.each_ref().map(|(w, b)| [w, b]));
                let q = ops::linear(x, beside, Options { cache, ..Options::batch_invariant() }).unwrap();
                [&q, &*keys, &*values].map(|y| y.to_f64().unwrap()).to_vec()
            };
            let all = run(&x);
            let values = x.to_f64().unwrap();
            for ((w, b), y) in layers.iter().zip(&all).take(parts) {
                let (w, b) = (t(&w.to_f64().unwrap(), &[n, k]), t(&b.to_f64().unwrap(), &[n]));
                let want = few_rows(&t(&values, &[r, k]), &w, bias.then_some(&b)).unwrap();
                let want = if gelu { ops::gelu(&want).unwrap() } else { want }.to_f64().unwrap();
                // Sums of k terms of up to 1 in f32, and up to three roundings to the storage.
                let unit = 4.0 * unit_roundoff(storage) * (1.0 + largest(&want));
                let far = distance(y, &want);
                assert!(far <= k as f64 * 2f64.powi(-24) + unit, "{r} x {k} by {n}, {storage:?}: {far:e}");
            }
            for i in 0..r {
                let alone = run(&x.slice_rows(i..i + 1).unwrap());
                for (alone, all) in alone.iter().zip(&all) {
                    assert_eq!(alone[..], all[i * n..(i + 1) * n], "row {i} of {r}, {k} by {n}, {storage:?}");
                }
            }
        }
    }
}

/// No rows of n columns, in x's storage.
fn no_rows(x: &Tensor, n: usize) -> Tensor {
    Tensor::zeros(DType::F32, &[0, n]).like(x).unwrap()
}

/// Sums of columns over many rows, in several shares and in one.
#[test]
fn gradients_of_a_bias_on_kernels() {
    on_kernels([(700, 33), (1, 1), (257, 100), (200, 520)].map(|(r, n)| {
        let rng = &mut Rng::new(n as u32);
        let (x, weight, bias) = (rng.values(r * 3), rng.values(n * 3), Some(rng.values(n)));
        Linear { lead: vec![r], n, k: 3, x, weight, bias }
    }));
}

#[test]
fn nan_and_infinity_propagate() {
    for (place, storage) in places().flat_map(|place| STORAGES.map(|s| (place, s))) {
        let there = |x: &[f64], shape: &[usize]| super::harness::there(place, storage, x, shape);
        let (x, w) = (there(&[f64::NAN, 1., f64::INFINITY, 1., 1., 1.], &[3, 2]), there(&[1., 1.], &[1, 2]));
        for y in [linear(&x, &w, None), few_rows(&x, &w, None)].map(|y| y.unwrap().to_f64().unwrap()) {
            assert!(y[0].is_nan() && y[1] == f64::INFINITY && y[2] == 2.0, "{y:?}, {storage:?}, {place:?}");
        }
    }
}

/// Queries are given back; keys and values become rows of their caches, the others stay as they are.
#[test]
fn cached_layers_are_the_batch_invariant_ones() {
    for n in 0..DRAWS {
        let rng = &mut Rng::new(n);
        let case = few_rows_case(rng);
        let (r, n, k) = (case.rows(), case.n, case.k);
        let x = t(&case.x, &[r, k]);
        let layers = [0, 1, 2].map(|_| (t(&rng.values(n * k), &[n, k]), t(&rng.values(n), &[n])));
        let past = t(&rng.values(2 * n), &[2, n]);
        let mut caches = [0, 1].map(|_| ops::with_room(&past, 4 + r).unwrap());
        let [keys, cached] = &mut caches;
        let pairs = layers.each_ref().map(|(w, b)| [w, b]);
        let run = |tensors: [&mut Tensor; 2], at: usize| {
            let cache = Some(Cache { tensors, at });
            ops::linear(&x, Weight::Beside(pairs), Options { cache, ..Options::batch_invariant() })
        };
        let q = run([keys, cached], 3).unwrap();
        let alone = pairs.map(|[w, b]| few_rows(&x, w, Some(b)).unwrap().to_f64().unwrap());
        assert_eq!(q.to_f64().unwrap(), alone[0]);
        for (cache, alone) in caches.iter().zip(&alone[1..]) {
            let all = cache.to_f64().unwrap();
            assert_eq!(all.len(), (4 + r) * n);
            assert_eq!((&all[..2 * n], &all[3 * n..(3 + r) * n]), (&past.to_f64().unwrap()[..], &alone[..]));
        }
        let [keys, cached] = &mut caches;
        let e = run([keys, cached], 5).unwrap_err().to_string();
        assert!(e.starts_with(&format!("linear: cache: expected [at least {}, {n}], got", 5 + r)), "{e}");
    }
}

/// Three layers side by side: y has the columns of all, gradients are those of each.
#[derive(Debug)]
struct Beside {
    r: usize,
    n: usize,
    k: usize,
    x: Vec<f64>,
    layers: [[Vec<f64>; 2]; 3],
}

impl Case for Beside {
    fn inputs(&self) -> Vec<Input> {
        let mut inputs = vec![Input::new(&[self.r, self.k], self.x.clone())];
        for [w, b] in &self.layers {
            inputs.push(Input::new(&[self.n, self.k], w.clone()));
            inputs.push(Input::new(&[self.n], b.clone()));
        }
        inputs
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        let layers = [[&x[1], &x[2]], [&x[3], &x[4]], [&x[5], &x[6]]];
        ops::linear(&x[0], Weight::Beside(layers), Options::default())
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let (r, n, k) = (self.r, self.n, self.k);
        let one = |i: usize, j: usize| {
            let (w, b) = (&x[1 + 2 * (j / n)], &x[2 + 2 * (j / n)]);
            (0..k).fold(T::ZERO, |sum, l| sum + x[0][i * k + l] * w[j % n * k + l]) + b[j % n]
        };
        (vec![r, 3 * n], (0..r * 3 * n).map(|at| one(at / (3 * n), at % (3 * n))).collect())
    }
}

#[test]
fn three_layers_side_by_side_equal_their_definition_and_differences() {
    prove(|rng| {
        let (r, n, k) = (rng.rows(), rng.size(), rng.size());
        let layers = [0, 1, 2].map(|_| [rng.values(n * k), rng.values(n)]);
        Beside { r, n, k, x: rng.values(r * k), layers }
    });
}

/// GELU in the kernel is GELU behind it.
#[test]
fn gelu_of_a_batch_invariant_layer_is_gelu_of_its_result() {
    for n in 0..DRAWS {
        let case = few_rows_case(&mut Rng::new(n));
        let (r, k, n) = (case.rows(), case.k, case.n);
        let (x, w, b) =
            (t(&case.x, &[r, k]), t(&case.weight, &[n, k]), case.bias.as_ref().map(|b| t(b, &[n])));
        let options = Options { gelu: Some(Gelu::Exact), ..Options::batch_invariant() };
        let y = ops::linear(&x, Weight::Dense(&w, b.as_ref()), options).unwrap();
        let apart = ops::gelu(&few_rows(&x, &w, b.as_ref()).unwrap()).unwrap();
        assert_eq!(y.to_f64().unwrap(), apart.to_f64().unwrap());
    }
}

#[test]
fn options_that_do_not_go_together_are_refused() {
    let (x, w) = (t(&[1.0; 6], &[2, 3]), t(&[1.0; 12], &[4, 3]));
    let options = Options { gelu: Some(Gelu::Tanh), ..Options::batch_invariant() };
    let e = ops::linear(&x, Weight::Dense(&w, None), options).unwrap_err().to_string();
    assert!(e.starts_with("linear: options: expected options that go together"), "{e}");
}
