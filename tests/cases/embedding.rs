//! y[i] = table[ids[i]]; the gradient of the padding id's row is none

use super::harness::{Case, Input, Rng, STORAGES, gradient_of, on_kernels, places, prove, t, there};
use qformer::device::Real;
use qformer::tensor::{Device, Storage, Tensor};
use qformer::{Result, ops};

#[derive(Debug)]
struct Embedding {
    c: usize,
    table: Vec<f64>,
    ids: Vec<u32>,
    padding: Option<u32>,
}

fn draw(rng: &mut Rng) -> Embedding {
    let (v, c, n) = (rng.pick(&[1, 2, 5, 23]), rng.size(), rng.rows());
    let padding = rng.one_in(2).then(|| rng.below(v) as u32);
    Embedding { c, table: rng.values(v * c), ids: rng.ids(n, v), padding }
}

impl Case for Embedding {
    fn inputs(&self) -> Vec<Input> {
        vec![Input::new(&[self.table.len() / self.c, self.c], self.table.clone())]
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        ops::embedding(&x[0], &self.ids, self.padding)
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let c = self.c;
        let y = self.ids.iter().flat_map(|i| (0..c).map(move |j| *i as usize * c + j));
        (vec![self.ids.len(), c], y.map(|at| x[0][at]).collect())
    }

    fn hold(&self, _: usize, values: &mut [f64]) {
        if let Some(p) = self.padding {
            let row = p as usize * self.c..(p as usize + 1) * self.c;
            values[row.clone()].copy_from_slice(&self.table[row]);
        }
    }
}

#[test]
fn equals_its_definition_and_differences() {
    prove(draw);
}

/// Many tokens of a small table and few of a large one, as wide as the models.
#[test]
fn wide_tables_on_kernels() {
    on_kernels([(5, 40, 33), (2, 90, 264), (50, 3, 768)].map(|(v, n, c)| {
        let rng = &mut Rng::new(n as u32);
        Embedding { c, table: rng.values(v * c), ids: rng.ids(n, v), padding: None }
    }));
}

/// torch.nn.functional.embedding([[1, 3], [0]], padding_idx=0).
#[test]
fn padding_is_looked_up_but_learns_nothing() {
    let table = t(&[1., 2., 3., 4., 5., 6., 7., 8.], &[4, 2]);
    let w = [1., 10., 2., 20., 3., 30., 4., 40.];
    let (y, d) = gradient_of(&[&table], &w, |x| ops::embedding(&x[0], &[3, 0, 3, 1], Some(0)));
    assert_eq!(y, [7., 8., 1., 2., 7., 8., 3., 4.]);
    assert_eq!(d[0].as_deref().unwrap(), [0., 0., 4., 40., 0., 0., 4., 40.]);
    let (_, d) = gradient_of(&[&table], &w, |x| ops::embedding(&x[0], &[3, 0, 3, 1], None));
    assert_eq!(d[0].as_deref().unwrap(), [2., 20., 4., 40., 0., 0., 4., 40.]);
}

#[test]
fn the_sum_of_two_tables_rows() {
    let tables = |place, storage| {
        [
            there(place, storage, &[1., 2., 3., 4., 5., 6.], &[3, 2]),
            there(place, storage, &[10., 20., 30., 40.], &[2, 2]),
        ]
    };
    for (place, storage) in places().flat_map(|place| STORAGES.map(|s| (place, s))) {
        let y = ops::embedding_sum(tables(place, storage).each_ref(), &[(2, 0), (0, 1), (2, 1)]).unwrap();
        let want = (&[3, 2][..], vec![15., 26., 31., 42., 35., 46.]);
        assert_eq!((y.shape().sizes(), y.to_f64().unwrap()), want, "{storage:?}, {place:?}");
    }
    let [words, places] = tables(&Device::Cpu, Storage::F32);
    for (rows, bad) in [([(3, 0)], "ids below 3, got 3"), ([(0, 2)], "ids below 2, got 2")] {
        let e = ops::embedding_sum([&words, &places], &rows).unwrap_err().to_string();
        assert!(e.starts_with(&format!("embedding: ids: expected {bad}")), "{e}");
    }
}
