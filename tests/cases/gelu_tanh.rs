//! y = x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2

use super::harness::{Case, Input, Rng, gradient_of, prove, t};
use qformer::device::Real;
use qformer::tensor::Tensor;
use qformer::{Result, ops};

#[derive(Debug)]
struct GeluTanh {
    shape: Vec<usize>,
    x: Vec<f64>,
}

fn draw(rng: &mut Rng) -> GeluTanh {
    let shape = if rng.one_in(40) { vec![129, 131] } else { vec![rng.rows(), rng.size()] };
    let n = shape.iter().product();
    GeluTanh { shape, x: rng.values(n).iter().map(|x| 2.0 * x).collect() }
}

impl Case for GeluTanh {
    fn inputs(&self) -> Vec<Input> {
        vec![Input::new(&self.shape, self.x.clone())]
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        ops::gelu_tanh(&x[0])
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let y = |x: &T| {
            let u = T::of((2.0 / std::f64::consts::PI).sqrt()) * (*x + T::of(0.044_715) * *x * *x * *x);
            // tanh u = (e^u - e^-u) / (e^u + e^-u)
            let (up, down) = (u.exp(), (-u).exp());
            *x * T::of(0.5) * (T::ONE + (up - down) / (up + down))
        };
        (self.shape.clone(), x[0].iter().map(y).collect())
    }
}

#[test]
fn equals_its_definition_and_differences() {
    prove(draw);
}

/// torch.nn.functional.gelu(x, approximate="tanh") and its gradient in float64 (PyTorch 2.11).
#[test]
fn known_answers() {
    let x = t(&[0.0, 1.0, -1.0, 2.0], &[4]);
    let (y, dx) = gradient_of(&[&x], &[1.0; 4], |x| ops::gelu_tanh(&x[0]));
    let close = |a: &[f64], b: [f64; 4]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-14);
    assert!(close(&y, TORCH[0]), "{y:?}");
    assert!(close(dx[0].as_deref().unwrap(), TORCH[1]), "{dx:?}");
}

const TORCH: [[f64; 4]; 2] = [
    [0.0, 0.8411919906082768, -0.15880800939172324, 1.954597694087775],
    [0.5, 1.0829640838457826, -0.08296408384578252, 1.0860992566236183],
];

#[test]
fn far_out_it_is_x_or_nothing() {
    let y = ops::gelu_tanh(&t(&[40.0, -40.0, f64::NAN], &[3])).unwrap().to_f64().unwrap();
    assert!(y[0] == 40.0 && y[1] == 0.0 && y[2].is_nan(), "{y:?}");
}
