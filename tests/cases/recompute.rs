//! y = f(x), f computed once more for its gradient; here silu(x) x + relu(x), x used several times

use super::harness::{Case, Input, Rng, device, prove, t};
use qformer::device::Real;
use qformer::tensor::{Gradients, Storage, Tape, Tensor};
use qformer::{Result, ops};

#[derive(Debug)]
struct Recompute {
    shape: Vec<usize>,
    x: Vec<f64>,
}

fn f(x: &Tensor) -> Result<Tensor> {
    ops::add(&ops::silu_mul(x, x)?, &ops::gelu(x)?)
}

fn draw(rng: &mut Rng) -> Recompute {
    let shape = vec![rng.rows(), rng.size()];
    let n = shape.iter().product();
    Recompute { shape, x: rng.values(n) }
}

impl Case for Recompute {
    fn inputs(&self) -> Vec<Input> {
        vec![Input::new(&self.shape, self.x.clone())]
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        ops::recompute(&x[0], f)
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let y = |x: &T| {
            *x * *x / (T::ONE + (-*x).exp()) + *x * T::of(0.5) * (T::ONE + (*x / T::of(2.0).sqrt()).erf())
        };
        (self.shape.clone(), x[0].iter().map(y).collect())
    }
}

#[test]
fn equals_its_definition_and_differences() {
    prove(draw);
}

/// The same bits as without it, in every storage; and on the tape one entry stands where three would.
#[test]
fn the_same_bits_as_on_the_tape() {
    let values: Vec<f64> = (0..77).map(|i| (i as f64 * 0.37).sin() * 2.0).collect();
    let x = Tensor::new(values.iter().map(|x| *x as f32).collect(), &[7, 11]).unwrap();
    let run = |x: &Tensor, again: bool| {
        let (tape, mut grads) = (Tape::new(), Gradients::new());
        let leaf = tape.leaf(x, 0);
        let middle = ops::scale(&leaf, 0.7).unwrap();
        let y = if again { ops::recompute(&middle, f) } else { f(&middle) }.unwrap();
        let entries = tape.len();
        let seed = ops::scale(&y.detach(), 0.3).unwrap();
        tape.backward_from(&[(&y, seed)], &mut grads).unwrap();
        let g = Tensor::of_buffer(grads.get(0).unwrap().clone(), &[7, 11]).unwrap();
        (y.to_f32().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>(), g.to_f32().unwrap(), entries)
    };
    let mut places = vec![x.clone()];
    if let Some(device) = device() {
        places.extend([Storage::F32, Storage::F16, Storage::BF16].map(|s| x.to(device, s).unwrap()));
    }
    for x in places {
        let (plain, again) = (run(&x, false), run(&x, true));
        assert_eq!((plain.0, plain.1), (again.0, again.1));
        assert_eq!((plain.2, again.2), (4, 2));
    }
}

#[test]
fn a_second_input_with_a_gradient_is_refused() {
    let tape = Tape::new();
    let (x, other) = (tape.leaf(&t(&[1.0], &[1]), 0), tape.leaf(&t(&[2.0], &[1]), 1));
    let said = ops::recompute(&x, move |x| ops::add(x, &other)).unwrap_err().to_string();
    assert!(said.contains("a function of x and constants"), "{said}");
}
