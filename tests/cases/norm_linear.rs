//! y = (n gamma + beta) weight^T + bias, n a constant

use super::harness::{Case, Input, Rng, on_kernels, prove};
use qformer::Result;
use qformer::device::Real;
use qformer::ops::{self, Options, Weight};
use qformer::tensor::Tensor;

#[derive(Debug)]
struct NormLinear {
    r: usize,
    n: usize,
    k: usize,
    x: Vec<f64>,
    gamma: Vec<f64>,
    beta: Vec<f64>,
    weight: Vec<f64>,
    bias: Vec<f64>,
}

fn draw(rng: &mut Rng) -> NormLinear {
    let (r, n, k) = (rng.rows(), rng.pick(&[1, 2, 3, 7, 17, 32, 65, 131]), rng.size());
    draw_of(rng, [r, n, k])
}

fn draw_of(rng: &mut Rng, [r, n, k]: [usize; 3]) -> NormLinear {
    // The rows are kept as f32 can hold them: they are not among the inputs that the harness rounds.
    let x = rng.values(r * k).iter().map(|x| f64::from(*x as f32)).collect();
    NormLinear {
        r,
        n,
        k,
        x,
        gamma: rng.values(k),
        beta: rng.values(k),
        weight: rng.values(n * k),
        bias: rng.values(n),
    }
}

impl Case for NormLinear {
    fn inputs(&self) -> Vec<Input> {
        vec![
            Input::new(&[self.k], self.gamma.clone()),
            Input::new(&[self.k], self.beta.clone()),
            Input::new(&[self.n, self.k], self.weight.clone()),
            Input::new(&[self.n], self.bias.clone()),
        ]
    }

    fn dense(&self) -> Vec<bool> {
        vec![false; 4]
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        let rows = Tensor::of(x[0].dtype(), &self.x, &[self.r, self.k])?.like(&x[0])?;
        let weight = Weight::AfterNorm { norm: [&x[0], &x[1]], layer: [&x[2], &x[3]] };
        ops::linear(&rows, weight, Options::default())
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let (r, n, k) = (self.r, self.n, self.k);
        let mut y = Vec::new();
        for i in 0..r {
            for j in 0..n {
                let mut sum = T::ZERO;
                for l in 0..k {
                    sum += (T::of(self.x[i * k + l]) * x[0][l] + x[1][l]) * x[2][j * k + l];
                }
                y.push(sum + x[3][j]);
            }
        }
        (vec![r, n], y)
    }
}

#[test]
fn equals_its_definition_and_differences() {
    prove(draw);
}

#[test]
fn more_columns_than_a_block_has_on_kernels() {
    on_kernels([[9, 20, 70], [3, 130, 1408], [5, 33, 33]].map(|sizes| draw_of(&mut Rng::new(9), sizes)));
}
