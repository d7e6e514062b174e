//! y[i,j] = max over the queries q of a[i,q] . b[j]

use super::harness::{Case, Input, Rng, gradient_of, prove, t};
use qformer::device::Real;
use qformer::tensor::Tensor;
use qformer::{Result, ops};

#[derive(Debug)]
struct Similarity {
    pictures: usize,
    q: usize,
    texts: usize,
    e: usize,
    a: Vec<f64>,
    b: Vec<f64>,
}

impl Similarity {
    fn products<T: Real>(&self, a: &[T], b: &[T], i: usize, j: usize) -> Vec<T> {
        let e = self.e;
        let dot = |q: usize| (0..e).fold(T::ZERO, |s, l| s + a[(i * self.q + q) * e + l] * b[j * e + l]);
        (0..self.q).map(dot).collect()
    }

    /// Whether no perturbation of the differences changes which query is the largest.
    fn apart(&self) -> bool {
        (0..self.pictures).all(|i| {
            (0..self.texts).all(|j| {
                let mut p = self.products(&self.a, &self.b, i, j);
                p.sort_by(f64::total_cmp);
                p.windows(2).last().is_none_or(|w| w[1] - w[0] > 2e-3)
            })
        })
    }
}

fn draw(rng: &mut Rng) -> Similarity {
    loop {
        let (pictures, q, texts) =
            (rng.pick(&[0, 1, 2, 3, 5]), rng.pick(&[1, 2, 3, 7]), rng.pick(&[0, 1, 2, 3, 5]));
        let e = rng.size();
        let (a, b) = (rng.values(pictures * q * e), rng.values(texts * e));
        let case = Similarity { pictures, q, texts, e, a, b };
        if case.apart() {
            return case;
        }
    }
}

impl Case for Similarity {
    fn inputs(&self) -> Vec<Input> {
        let input = |shape: [usize; 2], x: &[f64]| Input { step: 1e-4, ..Input::new(&shape, x.to_vec()) };
        vec![input([self.pictures * self.q, self.e], &self.a), input([self.texts, self.e], &self.b)]
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        ops::max_similarity(&x[0], &x[1], self.q)
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let mut y = Vec::new();
        for i in 0..self.pictures {
            for j in 0..self.texts {
                let p = self.products(&x[0], &x[1], i, j);
                y.push(p.iter().fold(p[0], |m, v| if *v > m { *v } else { m }));
            }
        }
        (vec![self.pictures, self.texts], y)
    }
}

#[test]
fn equals_its_definition_and_differences() {
    prove(draw);
}

/// As torch's max(dim): of equal queries the first one learns.
#[test]
fn ties_go_to_the_first() {
    let (a, b) = (t(&[1., 2., 2., 1., 1., 2.], &[3, 2]), t(&[1., 1.], &[1, 2]));
    let (y, d) = gradient_of(&[&a, &b], &[5.], |x| ops::max_similarity(&x[0], &x[1], 3));
    assert_eq!(y, [3.]);
    assert_eq!(d[0].as_deref().unwrap(), [5., 5., 0., 0., 0., 0.]);
    assert_eq!(d[1].as_deref().unwrap(), [5., 10.]);
}

#[test]
fn nan_wins_wherever_it_is() {
    for place in 0..3 {
        let mut a = [1., 3., 2.];
        a[place] = f64::NAN;
        let y = ops::max_similarity(&t(&a, &[3, 1]), &t(&[1.], &[1, 1]), 3).unwrap();
        assert!(y.item().unwrap().is_nan(), "NaN at query {place} gave {}", y.item().unwrap());
    }
}
