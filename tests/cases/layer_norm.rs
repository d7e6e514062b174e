//! y = (x - mean) / sqrt(var + eps) weight + bias, row by row; var is the mean of squares (not of n - 1)

use super::harness::{Case, Input, Rng, distance, floats, gradient_of, prove, t};
use qformer::device::Real;
use qformer::tensor::Tensor;
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
        assert!(distance(&y.to_f64(), &want) < 1e-12, "{r} x {c}");
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
    let one = Tensor::new(vec![1f32; c], &[c]).unwrap();
    let zero = Tensor::new(vec![0f32; c], &[c]).unwrap();
    let y = ops::layer_norm(&Tensor::new(floats::<f32>(&x), &[1, c]).unwrap(), &one, &zero, 1e-12).unwrap();
    // The mean is off by at most 1000 * 2^-24 * (a few steps of its sum): 16 of them.
    assert!(distance(&y.to_f64(), &normalized(&x, 1e-12)) < 16.0 * 1000.0 / f64::from(1 << 24));
}

#[test]
fn nan_stays_nan_in_its_row_only() {
    let x = t(&[f64::NAN, 1.0, 2.0, 5.0], &[2, 2]);
    let y = ops::layer_norm(&x, &t(&[1.; 2], &[2]), &t(&[0.; 2], &[2]), 1e-5).unwrap().to_f64();
    assert!(y[..2].iter().all(|y| y.is_nan()) && y[2..].iter().all(|y| y.is_finite()), "{y:?}");
}
