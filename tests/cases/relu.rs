//! y = x where x > 0, else 0

use super::harness::{Case, Input, Rng, gradient_of, prove, t};
use qformer::device::Real;
use qformer::tensor::Tensor;
use qformer::{Result, ops};

#[derive(Debug)]
struct Relu {
    shape: Vec<usize>,
    x: Vec<f64>,
}

fn draw(rng: &mut Rng) -> Relu {
    let shape = if rng.one_in(40) { vec![129, 131] } else { vec![rng.rows(), rng.size()] };
    let n = shape.iter().product();
    // Differences do not see the corner: numbers stay away from it.
    let away = |x: &f64| if x.abs() < 0.01 { x + 0.05 } else { *x };
    Relu { shape, x: rng.values(n).iter().map(|x| x - 0.4).map(|x| away(&x)).collect() }
}

impl Case for Relu {
    fn inputs(&self) -> Vec<Input> {
        vec![Input::new(&self.shape, self.x.clone())]
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        ops::relu(&x[0])
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        (self.shape.clone(), x[0].iter().map(|x| if *x > T::ZERO { *x } else { T::ZERO }).collect())
    }
}

#[test]
fn equals_its_definition_and_differences() {
    prove(draw);
}

/// At the corner the gradient is 0, and NaN stays, as in PyTorch.
#[test]
fn the_corner_and_what_is_no_number() {
    let x = t(&[0.0, -0.0, 2.0, -2.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e-300, -1e-300], &[9]);
    let (y, dx) = gradient_of(&[&x], &[3.0; 9], |x| ops::relu(&x[0]));
    assert_eq!(y[..6], [0.0, 0.0, 2.0, 0.0, f64::INFINITY, 0.0]);
    assert!(y[6].is_nan() && y[7] == 1e-300 && y[8] == 0.0, "{y:?}");
    assert_eq!(dx[0].as_deref().unwrap(), [0.0, 0.0, 3.0, 0.0, 3.0, 0.0, 3.0, 3.0, 0.0]);
}
