//! gather_rows, concat_rows, transpose and Tensor::slice_rows: elements moved, never changed

use super::harness::{Case, Input, Rng, gradient_of, on_kernels, prove, t};
use qformer::device::Real;
use qformer::tensor::Tensor;
use qformer::{Result, ops};

#[derive(Debug)]
enum Move {
    Gather(Vec<u32>),
    Concat2(usize),
    Concat3(usize, usize),
    Transpose,
    /// Rows from..to, and of these once more.
    Slice([usize; 4]),
}

#[derive(Debug)]
struct Rows {
    r: usize,
    c: usize,
    x: Vec<f64>,
    more: Vec<f64>,
    which: Move,
}

fn drawn(rng: &mut Rng, which: impl Fn(&mut Rng, usize) -> Move) -> Rows {
    let (r, c) = (rng.rows(), rng.size());
    let which = which(rng, r);
    Rows { r, c, x: rng.values(r * c), more: rng.values(70 * c), which }
}

impl Case for Rows {
    fn inputs(&self) -> Vec<Input> {
        let part = |n: usize| Input::new(&[n, self.c], self.more[..n * self.c].to_vec());
        let mut inputs = vec![Input::new(&[self.r, self.c], self.x.clone())];
        match self.which {
            Move::Concat2(n) => inputs.push(part(n)),
            Move::Concat3(n, m) => inputs.extend([part(n), part(m)]),
            _ => {}
        }
        inputs
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        match &self.which {
            Move::Gather(index) => ops::gather_rows(&x[0], index),
            Move::Concat2(_) => ops::concat_rows(&[&x[0], &x[1]]),
            Move::Concat3(..) => ops::concat_rows(&[&x[0], &x[1], &x[2]]),
            Move::Transpose => ops::transpose(&x[0]),
            Move::Slice([a, b, c, d]) => x[0].slice_rows(*a..*b)?.slice_rows(*c..*d),
        }
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let (r, c) = (self.r, self.c);
        let row = |i: usize| x[0][i * c..(i + 1) * c].to_vec();
        match &self.which {
            Move::Gather(index) => {
                (vec![index.len(), c], index.iter().flat_map(|i| row(*i as usize)).collect())
            }
            Move::Concat2(n) => (vec![r + n, c], x.concat()),
            Move::Concat3(n, m) => (vec![r + n + m, c], x.concat()),
            Move::Transpose => {
                let mut y = vec![T::ZERO; r * c];
                for i in 0..r {
                    for j in 0..c {
                        y[j * r + i] = x[0][i * c + j];
                    }
                }
                (vec![c, r], y)
            }
            Move::Slice([from, _, a, b]) => (vec![b - a, c], (*a..*b).flat_map(|i| row(from + i)).collect()),
        }
    }
}

#[test]
fn gather_equals_its_definition_and_differences() {
    prove(|rng| {
        drawn(rng, |rng, r| {
            let n = if r == 0 { 0 } else { rng.rows() };
            Move::Gather(rng.ids(n, r))
        })
    });
}

/// Many rows of few targets and few of many, as wide as the models; a transpose over several tiles.
#[test]
fn wide_rows_on_kernels() {
    on_kernels([(5, 40, 33), (2, 90, 264), (50, 3, 768), (33, 0, 70)].map(|(r, n, c)| {
        let mut rng = Rng::new(n as u32);
        let which = if n == 0 { Move::Transpose } else { Move::Gather(rng.ids(n, r)) };
        Rows { r, c, x: rng.values(r * c), more: vec![], which }
    }));
}

#[test]
fn concat_equals_its_definition_and_differences() {
    prove(|rng| {
        drawn(rng, |rng, _| {
            let (n, m) = (rng.pick(&[0, 1, 2, 5, 67]), rng.pick(&[0, 1, 3]));
            if rng.one_in(2) { Move::Concat2(n) } else { Move::Concat3(n, m) }
        })
    });
}

#[test]
fn transpose_equals_its_definition_and_differences() {
    prove(|rng| drawn(rng, |_, _| Move::Transpose));
}

#[test]
fn slices_equal_their_definition_and_differences() {
    prove(|rng| {
        drawn(rng, |rng, r| {
            let mut two = |n: usize| {
                let (a, b) = (rng.below(n + 1), rng.below(n + 1));
                [a.min(b), a.max(b)]
            };
            let [a, b] = two(r);
            let [c, d] = two(b - a);
            Move::Slice([a, b, c, d])
        })
    });
}

#[test]
fn one_tensor_in_all_places() {
    let x = t(&[1., 2., 3., 4.], &[2, 2]);
    let w: Vec<f64> = (1..=12).map(f64::from).collect();
    let (y, d) = gradient_of(&[&x], &w, |x| ops::concat_rows(&[&x[0], &x[0], &x[0]]));
    assert_eq!(y, [x.to_f64().unwrap(), x.to_f64().unwrap(), x.to_f64().unwrap()].concat());
    assert_eq!(d[0].as_deref().unwrap(), [15., 18., 21., 24.]);
}
