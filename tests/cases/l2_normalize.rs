//! y = x / max(|x|, 1e-12), row by row

use super::harness::{
    Case, Input, Rng, STORAGES, distance, gradient_of, on_kernels, places, prove, t, there,
};
use qformer::device::Real;
use qformer::tensor::{Storage, Tensor};
use qformer::{Result, ops};

#[derive(Debug)]
struct Normalize {
    r: usize,
    c: usize,
    x: Vec<f64>,
}

fn draw(rng: &mut Rng) -> Normalize {
    let (r, c) = (rng.rows(), rng.size());
    // Rows of a few numbers may be short by chance, and a short row bends too much for differences: move them away.
    let shift = if c < 4 { 2.5 } else { 0.0 };
    Normalize {
        r,
        c,
        x: rng.values(r * c).iter().map(|x| x + if *x < 0.0 { -shift } else { shift }).collect(),
    }
}

impl Case for Normalize {
    fn inputs(&self) -> Vec<Input> {
        vec![Input::new(&[self.r, self.c], self.x.clone())]
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        ops::l2_normalize(&x[0])
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let mut y = x[0].clone();
        for row in y.chunks_mut(self.c) {
            let mut sum = T::ZERO;
            for v in row.iter() {
                sum += *v * *v;
            }
            for v in row {
                *v /= sum.sqrt();
            }
        }
        (vec![self.r, self.c], y)
    }
}

#[test]
fn equals_its_definition_and_differences() {
    prove(draw);
}

/// Below 1e-12 the divisor is 1e-12, a constant: arithmetic. At a length of 5: dx = (dy - y (y . dy)) / 5.
#[test]
fn short_rows_and_rows_of_zeros() {
    let x = t(&[3e-13, 4e-13, 0.0, 0.0, 3.0, 4.0], &[3, 2]);
    let (y, d) = gradient_of(&[&x], &[1.0, 2.0, 3.0, -4.0, 1.0, 2.0], |x| ops::l2_normalize(&x[0]));
    let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-15 * b.abs());
    assert!(close(&y, &[0.3, 0.4, 0.0, 0.0, 0.6, 0.8]), "{y:?}");
    let d = d[0].as_deref().unwrap();
    assert!(close(&d[..4], &[1e12, 2e12, 3e12, -4e12]), "{d:?}");
    assert!(
        (d[4] - (1.0 - 0.6 * 2.2) / 5.0).abs() < 1e-15 && (d[5] - (2.0 - 0.8 * 2.2) / 5.0).abs() < 1e-15,
        "{d:?}"
    );
}

/// The width of a projection; the floor of the length in f32.
#[test]
fn projections_on_kernels() {
    on_kernels([(4, 256), (3, 13)].map(|(r, c)| Normalize { r, c, x: Rng::new(5).values(r * c) }));
    for place in places() {
        let y = ops::l2_normalize(&there(place, Storage::F32, &[3e-13, 4e-13, 0.0, 0.0], &[2, 2])).unwrap();
        assert!(distance(&y.to_f64().unwrap(), &[0.3, 0.4, 0.0, 0.0]) < 1e-6, "{place:?}");
    }
}

#[test]
fn nan_stays_nan() {
    for (place, storage) in places().flat_map(|place| STORAGES.map(|s| (place, s))) {
        let y = ops::l2_normalize(&there(place, storage, &[f64::NAN, 1.0], &[1, 2])).unwrap();
        assert!(y.to_f64().unwrap().iter().all(|y| y.is_nan()), "{storage:?}, {place:?}");
    }
}
