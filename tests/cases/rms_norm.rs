//! y = weight x / sqrt(mean(x^2) + eps), row by row

use super::harness::{Case, Input, Rng, gradient_of, prove, t};
use qformer::device::Real;
use qformer::tensor::Tensor;
use qformer::{Result, ops};

#[derive(Debug)]
struct RmsNorm {
    r: usize,
    c: usize,
    eps: f64,
    x: Vec<f64>,
    weight: Vec<f64>,
}

fn draw(rng: &mut Rng) -> RmsNorm {
    let (r, c) = (rng.rows(), rng.size());
    // Rows of a few numbers may be short by chance, and a short row bends too much for differences: move them away.
    let shift = if c < 4 { 2.5 } else { 0.0 };
    let x = rng.values(r * c).iter().map(|x| x + if *x < 0.0 { -shift } else { shift }).collect();
    RmsNorm { r, c, eps: rng.pick(&[0.0, 1e-6, 0.1]), x, weight: rng.values(c) }
}

impl Case for RmsNorm {
    fn inputs(&self) -> Vec<Input> {
        vec![Input::new(&[self.r, self.c], self.x.clone()), Input::new(&[self.c], self.weight.clone())]
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        ops::rms_norm(&x[0], &x[1], self.eps)
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let mut y = x[0].clone();
        for row in y.chunks_mut(self.c) {
            let mut sum = T::ZERO;
            for v in row.iter() {
                sum += *v * *v;
            }
            let root = (sum / T::of(self.c as f64) + T::of(self.eps)).sqrt();
            for (v, w) in row.iter_mut().zip(&x[1]) {
                *v = *v / root * *w;
            }
        }
        (vec![self.r, self.c], y)
    }

    fn dense(&self) -> Vec<bool> {
        vec![true, false]
    }
}

#[test]
fn equals_its_definition_and_differences() {
    prove(draw);
}

/// mean(x^2) = (9 + 16) / 2 = 12.5; with eps 0 and weights 1, dx = (g - n mean(g n)) / sqrt(12.5): arithmetic.
#[test]
fn a_row_of_three_and_four() {
    let (x, w) = (t(&[3.0, 4.0], &[1, 2]), t(&[1.0, 1.0], &[2]));
    let (y, d) = gradient_of(&[&x, &w], &[1.0, 2.0], |x| ops::rms_norm(&x[0], &x[1], 0.0));
    let root = 12.5f64.sqrt();
    let close =
        |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-15 * b.abs().max(1.0));
    assert!(close(&y, &[3.0 / root, 4.0 / root]), "{y:?}");
    // mean(g n) = (3 + 8) / 2 / root
    let mean = 5.5 / root;
    let want = [(1.0 - 3.0 / root * mean) / root, (2.0 - 4.0 / root * mean) / root];
    assert!(close(d[0].as_deref().unwrap(), &want), "{d:?}");
    assert!(close(d[1].as_deref().unwrap(), &[3.0 / root, 8.0 / root]), "{d:?}");
}

#[test]
fn zeros_stay_zeros_and_what_is_not_finite_propagates() {
    let x = t(&[0.0, 0.0, f64::NAN, 1.0, f64::INFINITY, 1.0], &[3, 2]);
    let y = ops::rms_norm(&x, &t(&[1.0, 1.0], &[2]), 1e-6).unwrap().to_f64().unwrap();
    assert_eq!(&y[..2], [0.0, 0.0]);
    assert!(y[2].is_nan() && y[3].is_nan() && y[4].is_nan() && y[5] == 0.0, "{y:?}");
}

#[test]
fn what_is_refused() {
    let said = |w: &[f64], eps: f64| {
        let y = ops::rms_norm(&t(&[1.0; 6], &[2, 3]), &t(w, &[w.len()]), eps);
        y.map_or_else(|e| e.to_string(), |_| "no error".into())
    };
    assert_eq!(said(&[1.0; 3], 0.0), "no error");
    assert_eq!(said(&[1.0; 2], 0.0), "rms_norm: weight: expected [3], got [2]");
    assert_eq!(said(&[1.0; 3], -1.0), "rms_norm: eps: expected a finite number, at least 0, got -1");
}
