//! y = x m,   m = 0 where the element's word is below p 2^32, else 1 / (1 - p)

use super::harness::{Case, Input, Rng, prove, t};
use qformer::device::Real;
use qformer::tensor::{Dropout, Stream, Tensor};
use qformer::{Result, ops};

#[derive(Debug)]
struct Drop {
    shape: Vec<usize>,
    x: Vec<f64>,
    drop: Dropout,
}

pub fn random(rng: &mut Rng) -> Dropout {
    let p = rng.pick(&[0.1, 0.1, 0.3, 0.5, 0.9, 0.0]);
    let stream =
        Stream { seed: rng.below(1 << 20) as u64, step: rng.below(100) as u32, site: rng.below(100) as u32 };
    Dropout { p, stream }
}

/// The factor of one element, from its word.
pub fn factor(drop: Dropout, element: u64) -> f64 {
    let p = f64::from(drop.p);
    if f64::from(drop.stream.bits(element)) < (p * 4_294_967_296.0).floor() { 0.0 } else { 1.0 / (1.0 - p) }
}

fn draw(rng: &mut Rng) -> Drop {
    // Masks are drawn in blocks of 512 and of 64 elements: sizes below, at and beyond them.
    let shape = if rng.one_in(4) {
        vec![rng.pick(&[64, 511, 512, 513, 1024, 1543])]
    } else {
        vec![rng.rows(), rng.size()]
    };
    Drop { x: rng.values(shape.iter().product()), shape, drop: random(rng) }
}

impl Case for Drop {
    fn inputs(&self) -> Vec<Input> {
        vec![Input::new(&self.shape, self.x.clone())]
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        ops::dropout(&x[0], Some(self.drop))
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let y = x[0].iter().enumerate().map(|(i, x)| *x * T::of(factor(self.drop, i as u64)));
        (self.shape.clone(), y.collect())
    }
}

#[test]
fn equals_its_definition_and_differences() {
    prove(draw);
}

#[test]
fn none_is_the_identity_and_sites_and_steps_differ() {
    let x = t(&[1.0; 256], &[256]);
    assert_eq!(ops::dropout(&x, None).unwrap().to_f64().unwrap(), x.to_f64().unwrap());
    let mask = |seed, step, site| {
        let drop = Dropout { p: 0.5, stream: Stream { seed, step, site } };
        ops::dropout(&x, Some(drop)).unwrap().to_f64().unwrap()
    };
    let all = [mask(1, 1, 1), mask(2, 1, 1), mask(1, 2, 1), mask(1, 1, 2)];
    for i in 0..4 {
        assert!(all[i].iter().filter(|x| **x != 0.0).all(|x| *x == 2.0));
        assert!((0..i).all(|j| all[i] != all[j]), "two streams draw one mask");
    }
}
