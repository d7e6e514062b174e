//! y[g] = mean of the rows of group g

use super::harness::{Case, Input, Rng, prove};
use qformer::device::Real;
use qformer::tensor::Tensor;
use qformer::{Result, ops};

#[derive(Debug)]
struct MeanRows {
    groups: usize,
    n: usize,
    c: usize,
    x: Vec<f64>,
}

fn draw(rng: &mut Rng) -> MeanRows {
    let (groups, n, c) = (rng.pick(&[0, 1, 2, 3, 7]), rng.pick(&[1, 2, 3, 8, 32]), rng.size());
    MeanRows { groups, n, c, x: rng.values(groups * n * c) }
}

impl Case for MeanRows {
    fn inputs(&self) -> Vec<Input> {
        vec![Input::new(&[self.groups * self.n, self.c], self.x.clone())]
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        ops::mean_rows(&x[0], self.n)
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let (n, c) = (self.n, self.c);
        let mut y = Vec::new();
        for g in 0..self.groups {
            for j in 0..c {
                let mut sum = T::ZERO;
                for i in 0..n {
                    sum += x[0][(g * n + i) * c + j];
                }
                y.push(sum / T::of(n as f64));
            }
        }
        (vec![self.groups, c], y)
    }
}

#[test]
fn equals_its_definition_and_differences() {
    prove(draw);
}
