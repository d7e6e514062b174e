//! y = gelu(x weight^T + bias), the exact GELU

use super::harness::{Case, Input, Rng, gradient_of, on_kernels, prove, t};
use qformer::Result;
use qformer::device::Real;
use qformer::ops::{self, Gelu, Options, Weight};
use qformer::tensor::Tensor;

#[derive(Debug)]
struct LinearGelu {
    r: usize,
    n: usize,
    k: usize,
    x: Vec<f64>,
    weight: Vec<f64>,
    bias: Option<Vec<f64>>,
}

impl LinearGelu {
    fn drawn(rng: &mut Rng, [r, n, k]: [usize; 3], bias: bool) -> LinearGelu {
        let bias = bias.then(|| rng.values(n));
        LinearGelu { r, n, k, x: rng.values(r * k), weight: rng.values(n * k), bias }
    }
}

impl Case for LinearGelu {
    fn inputs(&self) -> Vec<Input> {
        let mut inputs = vec![
            Input::new(&[self.r, self.k], self.x.clone()),
            Input::new(&[self.n, self.k], self.weight.clone()),
        ];
        inputs.extend(self.bias.as_ref().map(|b| Input::new(&[self.n], b.clone())));
        inputs
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        ops::linear(&x[0], Weight::Dense(&x[1], x.get(2)), Options::gelu(Gelu::Exact))
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let (r, n, k) = (self.r, self.n, self.k);
        let one = |i: usize, j: usize| {
            let bias = if x.len() > 2 { x[2][j] } else { T::ZERO };
            let h = (0..k).fold(bias, |sum, l| sum + x[0][i * k + l] * x[1][j * k + l]);
            h * T::of(0.5) * (T::ONE + (h / T::of(2.0).sqrt()).erf())
        };
        (vec![r, n], (0..r * n).map(|at| one(at / n, at % n)).collect())
    }
}

#[test]
fn equals_its_definition_and_differences() {
    prove(|rng| {
        let sizes = [rng.rows(), rng.size(), rng.size()];
        let bias = !rng.one_in(4);
        LinearGelu::drawn(rng, sizes, bias)
    });
}

/// Rows in several shares and in one, columns in several blocks, rows that no thread may read whole.
#[test]
fn gradients_of_a_bias_on_kernels() {
    on_kernels(
        [[700, 33, 3], [1, 1, 2], [257, 104, 3], [200, 520, 5], [64, 8, 3]]
            .map(|sizes| LinearGelu::drawn(&mut Rng::new(sizes[1] as u32), sizes, true)),
    );
}

/// The layer and GELU apart have the same gradients.
#[test]
fn gradients_are_those_of_the_layer_and_gelu() {
    let rng = &mut Rng::new(3);
    let [x, w, b] = [[5, 4], [3, 4], [1, 3]].map(|[r, c]| (rng.values(r * c), [r, c]));
    let [x, w, b] = [t(&x.0, &x.1), t(&w.0, &w.1), t(&b.0, &b.1[1..])];
    let weights = rng.values(15);
    let one =
        |x: &[Tensor]| ops::linear(&x[0], Weight::Dense(&x[1], Some(&x[2])), Options::gelu(Gelu::Exact));
    let two =
        |x: &[Tensor]| ops::gelu(&ops::linear(&x[0], Weight::Dense(&x[1], Some(&x[2])), Options::default())?);
    assert_eq!(gradient_of(&[&x, &w, &b], &weights, one), gradient_of(&[&x, &w, &b], &weights, two));
}
