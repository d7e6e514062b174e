//! y = (x - mean) / sqrt(var + eps) weight + bias, row by row; var is the mean of squares (not of n - 1)

use super::dropout;
use super::harness::{
    Case, Input, Rng, STORAGES, device, distance, doubles, floats, gradient_of, on_kernels_by_turns, places,
    prove, prove_one, t, there,
};
use qformer::device::Real;
use qformer::tensor::{DType, Dropout, Gradients, Storage, Tape, Tensor};
use qformer::{Result, ops};

#[derive(Debug)]
struct Norm {
    r: usize,
    c: usize,
    x: Vec<f64>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    eps: f64,
}

fn draw(rng: &mut Rng) -> Norm {
    let (r, c) = (rng.rows(), rng.size());
    // Rows of a few numbers are nearly equal by chance, where the function bends too much for differences: spread them.
    let spread = |i: usize| if c < 5 { 3.0 * (i % c) as f64 } else { 0.0 };
    let x = rng.values(r * c).iter().enumerate().map(|(i, x)| x + spread(i)).collect();
    // One number in a row has no variance: only a large eps keeps its function from being a constant's.
    let eps = if c == 1 { rng.pick(&[0.1, 1.0]) } else { rng.pick(&[1e-12, 1e-6, 1e-5, 0.1]) };
    Norm { r, c, x, weight: rng.values(c), bias: rng.values(c), eps }
}

fn normalized<T: Real>(x: &[T], eps: f64) -> Vec<T> {
    let n = T::of(x.len() as f64);
    let (mut mean, mut var) = (T::ZERO, T::ZERO);
    for v in x {
        mean += *v / n;
    }
    for v in x {
        var += (*v - mean) * (*v - mean) / n;
    }
    x.iter().map(|v| (*v - mean) / (var + T::of(eps)).sqrt()).collect()
}

impl Case for Norm {
    fn inputs(&self) -> Vec<Input> {
        vec![
            Input::new(&[self.r, self.c], self.x.clone()),
            Input::new(&[self.c], self.weight.clone()),
            Input::new(&[self.c], self.bias.clone()),
        ]
    }

    fn dense(&self) -> Vec<bool> {
        vec![true, false, false]
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        ops::layer_norm(&x[0], &x[1], &x[2], self.eps)
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let n = x[0].chunks(self.c).flat_map(|row| normalized(row, self.eps));
        let y = n.enumerate().map(|(i, n)| n * x[1][i % self.c] + x[2][i % self.c]);
        (vec![self.r, self.c], y.collect())
    }
}

#[test]
fn equals_its_definition_and_differences() {
    prove(draw);
}

#[test]
fn normalized_rows_equal_their_definition() {
    for n in 0..super::harness::DRAWS {
        let Norm { r, c, x, eps, .. } = draw(&mut Rng::new(n));
        let want: Vec<f64> = x.chunks(c).flat_map(|row| normalized(row, eps)).collect();
        let y = ops::normalize_rows(&t(&x, &[r, c]), eps).unwrap();
        assert_eq!(y.shape().sizes(), [r, c]);
        assert!(distance(&y.to_f64().unwrap(), &want) < 1e-12, "{r} x {c}");
    }
}

/// LayerNorm(residual + x m): the end of a sublayer, one kernel where there are any. The residual is stored as x is, or
/// in f32.
#[derive(Debug)]
struct Sublayer {
    norm: Norm,
    x: Vec<f64>,
    drop: Option<Dropout>,
    wide: bool,
}

impl Sublayer {
    fn sum<T: Real>(&self, x: &[T], residual: &[T]) -> Vec<T> {
        let factor = |i: usize| self.drop.map_or(1.0, |d| dropout::factor(d, i as u64));
        x.iter().zip(residual).enumerate().map(|(i, (x, r))| *r + *x * T::of(factor(i))).collect()
    }
}

impl Case for Sublayer {
    fn inputs(&self) -> Vec<Input> {
        let mut all = self.norm.inputs();
        all.insert(0, Input::new(&[self.norm.r, self.norm.c], self.x.clone()));
        all
    }

    fn dense(&self) -> Vec<bool> {
        vec![true, !self.wide, false, false]
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        if x[0].array().is_none() {
            let sum = ops::add(&ops::dropout(&x[0], self.drop)?, &x[1])?;
            return ops::layer_norm(&sum, &x[2], &x[3], self.norm.eps);
        }
        let (y, z) = ops::residual_norm(&x[0], &x[1], &x[2], &x[3], self.norm.eps, self.drop)?;
        let [a, b] = [&x[0], &x[1]].map(|x| floats::<f32>(&x.to_f64().unwrap()));
        let unit = if x[1].array().unwrap().storage() == Storage::F32 { 1e-6 } else { 1e-2 };
        assert!(distance(&z.to_f64().unwrap(), &doubles(&self.sum(&a, &b))) <= unit * 20.0 && !z.tracked());
        Ok(y)
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        self.norm.define(&[self.sum(&x[0], &x[1]), x[2].clone(), x[3].clone()])
    }
}

#[test]
fn the_end_of_a_sublayer_equals_its_definition_and_differences() {
    for n in 0..32 {
        let mut rng = Rng::new(1000 + n);
        let norm = draw(&mut rng);
        // Small beside what the rows are spread by.
        let x = rng.values(norm.r * norm.c).iter().map(|x| 0.1 * x).collect();
        let drop = rng.one_in(2).then(|| dropout::random(&mut rng));
        prove_one(&Sublayer { norm, x, drop, wide: n % 2 == 0 }, 4 * n, &mut rng);
    }
}

/// Widths of the models and the smallest, one block and many: 23, so two groups of them, and 300, whose groups are added up in
/// two goes.
#[test]
fn widths_of_the_models_on_kernels() {
    let sizes = [
        (3, 768),
        (2, 1408),
        (1, 7),
        (5, 13),
        (30, 776),
        (3, 769),
        (1, 2048),
        (180, 24),
        (2400, 3),
        (5, 16),
        (33, 768),
    ];
    on_kernels_by_turns(
        &[Storage::BF16, Storage::F16, Storage::F32, Storage::BF16],
        (0..).zip(sizes).map(|(n, (r, c))| {
            let rng = &mut Rng::new(40 + n);
            let [x, residual] =
                [1.0, 2.0].map(|by| rng.values(r * c).iter().map(|x| by * x).collect::<Vec<_>>());
            let norm = Norm { r, c, x: residual, weight: rng.values(c), bias: rng.values(c), eps: 1e-6 };
            Sublayer { norm, x, drop: (n % 2 == 0).then(|| dropout::random(rng)), wide: n % 3 > 0 }
        }),
    );
    on_kernels_by_turns(
        &STORAGES,
        [(180, 24), (2400, 3), (2, 1408)].map(|(r, c)| {
            let rng = &mut Rng::new(r as u32);
            Norm { r, c, x: rng.values(r * c), weight: rng.values(c), bias: rng.values(c), eps: 1e-6 }
        }),
    );
}

#[test]
fn rows_without_an_affine_part_are_normalised_on_a_gpu() {
    let Some(device) = device() else { return };
    for n in 0..16 {
        let Norm { r, c, x, eps, .. } = draw(&mut Rng::new(n));
        let there = Tensor::new(floats::<f32>(&x), &[r, c]).unwrap().to(device, Storage::F32).unwrap();
        let want: Vec<f64> = there.to_f64().unwrap().chunks(c).flat_map(|row| normalized(row, eps)).collect();
        for (storage, unit) in [(Storage::F32, 2f64.powi(-24)), (Storage::BF16, 2f64.powi(-8))] {
            let y = ops::normalize_rows_as(&there, eps, Some(storage)).unwrap();
            assert_eq!((y.shape().sizes(), y.array().unwrap().storage()), (&[r, c][..], storage));
            // Sums of up to 48 terms of up to 7, over a deviation that is rarely small.
            assert!(distance(&y.to_f64().unwrap(), &want) < 2e3 * unit.min(1e-5) + 8.0 * unit, "{r} x {c}");
        }
    }
}

/// torch.nn.functional.layer_norm([1, 2, 3, 4], eps=0): (x - 2.5) / sqrt(1.25).
#[test]
fn known_answers() {
    let (x, one, zero) = (t(&[1., 2., 3., 4.], &[1, 4]), t(&[1.; 4], &[4]), t(&[0.; 4], &[4]));
    let (y, d) =
        gradient_of(&[&x, &one, &zero], &[1., 0., 0., 0.], |x| ops::layer_norm(&x[0], &x[1], &x[2], 0.0));
    let s = 1.25f64.sqrt();
    assert!(distance(&y, &[-1.5 / s, -0.5 / s, 0.5 / s, 1.5 / s]) < 1e-15, "{y:?}");
    // dx = (g - 1/4 - n (-1.5 / s) / 4) / s
    let n = [-1.5 / s, -0.5 / s, 0.5 / s, 1.5 / s];
    let want = [0, 1, 2, 3].map(|j| (f64::from(u8::from(j == 0)) - 0.25 - n[j] * n[0] / 4.0) / s);
    assert!(distance(d[0].as_deref().unwrap(), &want) < 1e-15);
}

/// E[x^2] - E[x]^2 in f32 loses a variance of 1 beside a mean of 1000 (error about 0.06); two passes do not.
#[test]
fn a_large_mean_takes_no_precision() {
    let c = 769;
    let x: Vec<f64> = Rng::new(1).values(c).iter().map(|x| f64::from((1000.0 + x) as f32)).collect();
    for place in places() {
        let there = |v: &[f64], sizes: &[usize]| there(place, Storage::F32, v, sizes);
        let (one, zero) = (there(&vec![1.0; c], &[c]), there(&vec![0.0; c], &[c]));
        let y = ops::layer_norm(&there(&x, &[1, c]), &one, &zero, 1e-12).unwrap();
        // The mean is off by at most 1000 * 2^-24 * (a few steps of its sum): 16 of them.
        let far = distance(&y.to_f64().unwrap(), &normalized(&x, 1e-12));
        assert!(far < 16.0 * 1000.0 / f64::from(1 << 24), "{far:e}, {place:?}");
    }
}

/// A row of equal numbers is its bias: a mean that is off by a rounding would be 0.06 of it at eps 1e-12. (0.1 is not exact in
/// any format, and 769 of them do not add up exactly.)
#[test]
fn a_constant_row_is_the_bias() {
    for c in [1, 3, 48, 769, 1408, 2047] {
        let x = [0.1f32, -3.7, 1000.3, 0.0].map(|v| vec![v; c]).concat();
        let (w, b): (Vec<f32>, Vec<f32>) = (vec![1.5; c], (0..c).map(|j| j as f32).collect());
        for place in places() {
            let there = |v: &[f32], sizes: &[usize]| {
                Tensor::new(v.to_vec(), sizes).unwrap().to(place, Storage::F32).unwrap()
            };
            let leaves = [there(&x, &[4, c]), there(&w, &[c]), there(&b, &[c])];
            let tape = Tape::new();
            let [x, w, b2] = [0, 1, 2].map(|i| tape.leaf(&leaves[i], i));
            let y = ops::layer_norm(&x, &w, &b2, 1e-12).unwrap();
            assert_eq!(y.to_f32().unwrap(), b.repeat(4), "{c} columns, {place:?}");
            // n is 0: the weight learns nothing, x what g is beside its mean, divided by sqrt(eps).
            let dy: Vec<f64> = (0..4 * c).map(|i| ((i * 7) % 5) as f64 - 2.0).collect();
            let mut grads = Gradients::new();
            let seed = Tensor::of(DType::F32, &dy, &[4, c]).unwrap().to(place, Storage::F32).unwrap();
            tape.backward_from(&[(&y, seed)], &mut grads).unwrap();
            let of = |i: usize, sizes: &[usize]| {
                Tensor::of_buffer(grads.get(i).unwrap().clone(), sizes).unwrap().to_f64().unwrap()
            };
            assert!(of(1, &[c]).iter().all(|d| *d == 0.0), "{c} columns");
            let dx = of(0, &[4, c]);
            for (dx, dy) in dx.chunks(c).zip(dy.chunks(c)) {
                let mean = 1.5 * dy.iter().sum::<f64>() / c as f64;
                let want: Vec<f64> = dy.iter().map(|d| 1e6 * (1.5 * d - mean)).collect();
                // Numbers of up to 3, their mean of up to 2,047 and a few more operations, in f32.
                assert!(distance(dx, &want) <= 1e6 * 3.0 * 16.0 / f64::from(1 << 24), "{c} columns");
            }
        }
    }
}

#[test]
fn nan_stays_nan_in_its_row_only() {
    for (place, storage) in places().flat_map(|place| STORAGES.map(|s| (place, s))) {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let x = there(place, storage, &[1.0, 3.0, bad, 1.0, 2.0, 5.0], &[3, 2]);
            let [w, b] = [1.0, 0.0].map(|v| there(place, Storage::F32, &[v; 2], &[2]));
            let y = ops::layer_norm(&x, &w, &b, 1e-5).unwrap().to_f64().unwrap();
            let nan: Vec<bool> = y.iter().map(|y| y.is_nan()).collect();
            assert_eq!(nan, [false, false, true, true, false, false], "{bad}, {storage:?}, {place:?}");
        }
    }
}
