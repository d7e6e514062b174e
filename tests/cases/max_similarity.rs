//! y[i,j] = max over the queries q of a[i,q] . b[j]

use super::harness::{Case, Input, Rng, STORAGES, gradient_of, on_kernels, places, prove, t, there};
use qformer::device::Real;
use qformer::tensor::{Gradients, Tape, Tensor};
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
    draw_of(rng, |rng| {
        let (pictures, q) = (rng.pick(&[0, 1, 2, 3, 5]), rng.pick(&[1, 2, 3, 7]));
        [pictures, q, rng.pick(&[0, 1, 2, 3, 5]), rng.size()]
    })
}

fn draw_of(rng: &mut Rng, sizes: impl Fn(&mut Rng) -> [usize; 4]) -> Similarity {
    loop {
        let [pictures, q, texts, e] = sizes(rng);
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

/// A Q-Former's queries and columns, more texts than a block has, sizes that no vector divides.
#[test]
fn sizes_of_a_batch_on_kernels() {
    let sizes = [[3, 32, 5, 256], [2, 32, 70, 40], [2, 37, 3, 33], [1, 1, 1, 1]];
    on_kernels(sizes.map(|sizes| draw_of(&mut Rng::new(7), |_| sizes)));
}

/// Of given queries, the matmul itself, whatever the others are: small integers, exact in every storage.
#[test]
fn a_similarity_of_given_queries() {
    for [pictures, q, texts, e] in [[3, 33, 5, 40], [2, 1, 70, 7], [2, 37, 3, 33]] {
        let whole = |n: usize, by: usize| (0..n).map(|i| (i * by % 7) as f64 - 3.0).collect::<Vec<_>>();
        let (a, b) = (whole(pictures * q * e, 5), whole(texts * e, 3));
        let given: Vec<u32> = (0..pictures * texts).map(|at| (at * 11 % q) as u32).collect();
        let want: Vec<f64> = (0..pictures * texts)
            .map(|at| {
                let (row, text) = (at / texts * q + given[at] as usize, at % texts);
                (0..e).map(|k| a[row * e + k] * b[text * e + k]).sum()
            })
            .collect();
        for (place, storage) in places().flat_map(|place| STORAGES.map(|s| (place, s))) {
            let (a, b) =
                (there(place, storage, &a, &[pictures * q, e]), there(place, storage, &b, &[texts, e]));
            let y = ops::max_similarity_of(&a, &b, q, Some(&given)).unwrap();
            assert_eq!(y.to_f64().unwrap(), want, "{storage:?}, {place:?}");
        }
    }
}

/// As torch's max(dim): of equal queries the first one learns.
#[test]
fn ties_go_to_the_first() {
    let (a, b) = (t(&[1., 2., 2., 1., 1., 2.], &[3, 2]), t(&[1., 1.], &[1, 2]));
    let (y, d) = gradient_of(&[&a, &b], &[5.], |x| ops::max_similarity(&x[0], &x[1], 3));
    assert_eq!(y, [3.]);
    assert_eq!(d[0].as_deref().unwrap(), [5., 5., 0., 0., 0., 0.]);
    assert_eq!(d[1].as_deref().unwrap(), [5., 10.]);
    for (place, storage) in places().flat_map(|place| STORAGES.map(|s| (place, s))) {
        let (tape, mut grads) = (Tape::new(), Gradients::new());
        let a = tape.leaf(&there(place, storage, &[3.; 40], &[40, 1]), 0);
        let y = ops::max_similarity(&a, &there(place, storage, &[1.], &[1, 1]), 40).unwrap();
        tape.backward(&y, 1.0, &mut grads).unwrap();
        let da = Tensor::of_buffer(grads.get(0).unwrap().clone(), &[40]).unwrap().to_f64().unwrap();
        assert!(da[0] == 1.0 && da[1..].iter().all(|d| *d == 0.0), "{storage:?}, {place:?}: {da:?}");
    }
}

#[test]
fn nan_wins_wherever_it_is() {
    for place in 0..3 {
        let mut a = [1., 3., 2.];
        a[place] = f64::NAN;
        for (at, storage) in places().flat_map(|at| STORAGES.map(|s| (at, s))) {
            let (a, one) = (there(at, storage, &a, &[3, 1]), there(at, storage, &[1.], &[1, 1]));
            let y = ops::max_similarity(&a, &one, 3).unwrap().item().unwrap();
            assert!(y.is_nan(), "NaN at query {place} gave {y}, {storage:?}, {at:?}");
        }
    }
}
