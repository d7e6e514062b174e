//! y = x m,   m = 0 where the sample's word is below p 2^32, else 1 / (1 - p)

use super::dropout;
use super::harness::{Case, Input, Rng, on_kernels, prove, t};
use qformer::device::Real;
use qformer::tensor::{Dropout, Tensor};
use qformer::{Result, ops};

#[derive(Debug)]
struct DropPath {
    samples: usize,
    rows: usize,
    c: usize,
    x: Vec<f64>,
    drop: Dropout,
}

fn draw_of(rng: &mut Rng, [samples, rows, c]: [usize; 3]) -> DropPath {
    DropPath { samples, rows, c, x: rng.values(samples * rows * c), drop: dropout::random(rng) }
}

impl Case for DropPath {
    fn inputs(&self) -> Vec<Input> {
        vec![Input::new(&[self.samples * self.rows, self.c], self.x.clone())]
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        ops::drop_path(&x[0], self.rows, Some(self.drop))
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let per = self.rows * self.c;
        let factor = |i: usize| T::of(dropout::factor(self.drop, (i / per) as u64));
        (
            vec![self.samples * self.rows, self.c],
            x[0].iter().enumerate().map(|(i, x)| *x * factor(i)).collect(),
        )
    }
}

#[test]
fn equals_its_definition_and_differences() {
    prove(|rng| {
        let sizes = [rng.pick(&[0, 1, 2, 3, 7, 33]), rng.pick(&[1, 2, 3, 5]), rng.size()];
        draw_of(rng, sizes)
    });
}

/// Many samples, and several of them within one thread's elements.
#[test]
fn tokens_of_pictures_on_kernels() {
    on_kernels([[4, 257, 88], [700, 1, 1], [65, 3, 1]].map(|sizes| draw_of(&mut Rng::new(8), sizes)));
}

#[test]
fn what_is_refused() {
    let drop = Some(dropout::random(&mut Rng::new(1)));
    for rows in [0, 2] {
        let e = ops::drop_path(&t(&[1.0; 3], &[3, 1]), rows, drop).unwrap_err().to_string();
        assert_eq!(e, format!("drop_path: x: expected whole samples of {rows} rows, got 3 rows"));
    }
}
