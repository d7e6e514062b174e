//! scale: y = c x;   divide: y = x / t

use super::harness::{Case, Input, Rng, gradient_of, prove, t};
use qformer::device::Real;
use qformer::tensor::Tensor;
use qformer::{Result, ops};

#[derive(Debug)]
struct Scale {
    shape: Vec<usize>,
    x: Vec<f64>,
    by: f64,
}

fn draw(rng: &mut Rng) -> Scale {
    let shape = if rng.one_in(16) { vec![] } else { vec![rng.rows(), rng.size()] };
    let by = rng.pick(&[0.0, 1.0, 0.5, -2.75, 1e-3, 17.0]);
    Scale { x: rng.values(shape.iter().product()), shape, by }
}

impl Case for Scale {
    fn inputs(&self) -> Vec<Input> {
        vec![Input::new(&self.shape, self.x.clone())]
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        ops::scale(&x[0], self.by)
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        (self.shape.clone(), x[0].iter().map(|x| *x * T::of(self.by)).collect())
    }
}

#[derive(Debug)]
struct Divide(Scale);

impl Case for Divide {
    fn inputs(&self) -> Vec<Input> {
        let mut by = Input::new(&[], vec![self.0.by]);
        by.step = 1e-3 * self.0.by.abs();
        vec![Input::new(&self.0.shape, self.0.x.clone()), by]
    }

    /// What is divided are similarities, which are in f32 always.
    fn dense(&self) -> Vec<bool> {
        vec![false, false]
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        ops::divide(&x[0], &x[1])
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        (self.0.shape.clone(), x[0].iter().map(|v| *v / x[1][0]).collect())
    }
}

#[test]
fn scale_equals_its_definition_and_differences() {
    prove(draw);
}

#[test]
fn divide_equals_its_definition_and_differences() {
    prove(|rng| {
        let by = rng.pick(&[0.07, 0.3, 1.0, -2.5]);
        Divide(Scale { by, ..draw(rng) })
    });
}

#[test]
fn a_number_divided_by_itself() {
    let (y, d) = gradient_of(&[&t(&[4.0], &[])], &[3.0], |x| ops::divide(&x[0], &x[0]));
    assert_eq!((y, d), (vec![1.0], vec![Some(vec![0.0])]));
}
