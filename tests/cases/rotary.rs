//! Of each head the first 2F columns turn in pairs (j, j + F) by position times frequency

use super::harness::{Case, Input, Rng, gradient_of, prove, t};
use qformer::device::Real;
use qformer::ops::Rotary;
use qformer::tensor::Tensor;
use qformer::{Result, ops};
use std::sync::Arc;

#[derive(Debug)]
struct Turned {
    heads: usize,
    d: usize,
    width: usize,
    positions: Vec<u32>,
    frequencies: Vec<f64>,
    x: Vec<f64>,
}

fn draw(rng: &mut Rng) -> Turned {
    let (r, heads, d) = (rng.rows(), rng.pick(&[1, 2, 3]), rng.pick(&[2, 3, 4, 8, 10, 16, 24, 32]));
    let width = heads * d + rng.pick(&[0, 0, 1, 8, 24]);
    let half = 1 + rng.below(d / 2);
    let frequencies = (0..half).map(|j| 50f64.powf(-(j as f64) / half as f64)).collect();
    let positions = rng.ids(r, 70);
    Turned { heads, d, width, positions, frequencies, x: rng.values(r * width) }
}

impl Case for Turned {
    fn inputs(&self) -> Vec<Input> {
        vec![Input::new(&[self.positions.len(), self.width], self.x.clone())]
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        let rotary = Arc::new(Rotary::new(self.positions.clone(), &self.frequencies));
        ops::rotary(&x[0], (self.heads, self.d), &rotary)
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let (mut y, half) = (x[0].clone(), self.frequencies.len());
        for (row, p) in self.positions.iter().enumerate() {
            for head in 0..self.heads {
                for (j, f) in self.frequencies.iter().enumerate() {
                    let at = row * self.width + head * self.d + j;
                    let (u, v, angle) = (x[0][at], x[0][at + half], f64::from(*p) * f);
                    y[at] = u * T::of(angle.cos()) - v * T::of(angle.sin());
                    y[at + half] = v * T::of(angle.cos()) + u * T::of(angle.sin());
                }
            }
        }
        (vec![self.positions.len(), self.width], y)
    }
}

#[test]
fn equals_its_definition_and_differences() {
    prove(draw);
}

/// A quarter turn takes (u, v) to (-v, u), and a gradient back; the third column of a head stays.
#[test]
fn a_quarter_turn() {
    let rotary = Arc::new(Rotary::new(vec![0, 1], &[std::f64::consts::FRAC_PI_2]));
    let x = t(&[1.0, 2.0, 3.0, 1.0, 2.0, 3.0], &[2, 3]);
    let (y, d) = gradient_of(&[&x], &[5.0, 7.0, 9.0, 5.0, 7.0, 9.0], |x| ops::rotary(&x[0], (1, 3), &rotary));
    let close = |a: &[f64], b: [f64; 6]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-15 * 10.0);
    assert!(close(&y, [1.0, 2.0, 3.0, -2.0, 1.0, 3.0]), "{y:?}");
    assert!(close(d[0].as_deref().unwrap(), [5.0, 7.0, 9.0, 7.0, -5.0, 9.0]), "{d:?}");
}

#[test]
fn what_is_refused() {
    let said = |positions: Vec<u32>, frequencies: &[f64], heads: (usize, usize)| {
        let rotary = Arc::new(Rotary::new(positions, frequencies));
        let y = ops::rotary(&t(&[1.0; 8], &[2, 4]), heads, &rotary);
        y.map_or_else(|e| e.to_string(), |_| "no error".into())
    };
    assert_eq!(said(vec![0, 1], &[1.0, 0.5], (1, 4)), "no error");
    assert_eq!(said(vec![0], &[1.0], (1, 4)), "rotary: positions: expected one for each of 2 rows, got 1");
    assert_eq!(
        said(vec![0, 1], &[1.0; 3], (1, 4)),
        "rotary: frequencies: expected at most 2 for heads of 4, got 3"
    );
    assert_eq!(said(vec![0, 1], &[1.0], (2, 4)), "rotary: heads: expected at most 4 columns, got 8");
}
