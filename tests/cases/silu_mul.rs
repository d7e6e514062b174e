//! y = g u / (1 + e^(-g))

use super::harness::{Case, Input, Rng, gradient_of, prove, t};
use qformer::device::Real;
use qformer::tensor::Tensor;
use qformer::{Result, ops};

#[derive(Debug)]
struct SiluMul {
    shape: Vec<usize>,
    values: [Vec<f64>; 2],
}

fn draw(rng: &mut Rng) -> SiluMul {
    let shape = if rng.one_in(40) { vec![129, 131] } else { vec![rng.rows(), rng.size()] };
    let n = shape.iter().product();
    SiluMul { shape, values: [rng.values(n).iter().map(|x| 3.0 * x).collect(), rng.values(n)] }
}

impl Case for SiluMul {
    fn inputs(&self) -> Vec<Input> {
        self.values.iter().map(|v| Input::new(&self.shape, v.clone())).collect()
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        ops::silu_mul(&x[0], &x[1])
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let y = |(g, u): (&T, &T)| *g * *u / (T::ONE + (-*g).exp());
        (self.shape.clone(), x[0].iter().zip(&x[1]).map(y).collect())
    }
}

#[test]
fn equals_its_definition_and_differences() {
    prove(draw);
}

/// torch: (silu(g) * u) and both gradients in float64 (PyTorch 2.11).
#[test]
fn known_answers() {
    let (g, u) = (t(&[0.0, 1.0, -1.0, 2.0], &[4]), t(&[3.0, 2.0, 5.0, -1.0], &[4]));
    let (y, d) = gradient_of(&[&g, &u], &[1.0, 2.0, 3.0, 4.0], |x| ops::silu_mul(&x[0], &x[1]));
    let close =
        |a: &[f64], b: [f64; 4]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-14 * b.abs().max(1.0));
    assert!(close(&y, TORCH[0]), "{y:?}");
    assert!(close(d[0].as_deref().unwrap(), TORCH[1]), "{d:?}");
    assert!(close(d[1].as_deref().unwrap(), TORCH[2]), "{d:?}");
}

const TORCH: [[f64; 4]; 3] = [
    [0.0, 1.4621171572600098, -1.3447071068499756, -1.7615941559557646],
    [1.5, 3.7106820474859474, 1.084942321927699, -4.363136995139582],
    [0.0, 1.4621171572600098, -0.8068242641099853, 7.0463766238230585],
];

#[test]
fn what_is_refused() {
    let said = ops::silu_mul(&t(&[1.0; 6], &[2, 3]), &t(&[1.0; 6], &[3, 2])).unwrap_err().to_string();
    assert_eq!(said, "silu_mul: up: expected [2, 3], got [3, 2]");
}
