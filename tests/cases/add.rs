//! y = a + b

use super::harness::{Case, Input, Rng, gradient_of, prove, t};
use qformer::device::Real;
use qformer::tensor::Tensor;
use qformer::{Result, ops};

#[derive(Debug)]
struct Add {
    shape: Vec<usize>,
    a: Vec<f64>,
    b: Vec<f64>,
}

fn draw(rng: &mut Rng) -> Add {
    // Now and then more elements than a piece of a parallel loop has (2^14).
    let shape = match rng.below(16) {
        0 => vec![],
        1 => vec![2, 3, rng.small(), 4],
        2 => vec![129, 131],
        _ => vec![rng.rows(), rng.size()],
    };
    let n = shape.iter().product();
    Add { shape, a: rng.values(n), b: rng.values(n) }
}

impl Case for Add {
    fn inputs(&self) -> Vec<Input> {
        vec![Input::new(&self.shape, self.a.clone()), Input::new(&self.shape, self.b.clone())]
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        ops::add(&x[0], &x[1])
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        (self.shape.clone(), x[0].iter().zip(&x[1]).map(|(a, b)| *a + *b).collect())
    }
}

#[test]
fn equals_its_definition_and_differences() {
    prove(draw);
}

#[test]
fn a_tensor_and_itself() {
    let (y, dx) = gradient_of(&[&t(&[1.5, -2.0], &[2])], &[3.0, 5.0], |x| ops::add(&x[0], &x[0]));
    assert_eq!((y, dx), (vec![3.0, -4.0], vec![Some(vec![6.0, 10.0])]));
}
