//! y = x (1 + erf(x / sqrt 2)) / 2

use super::harness::{Case, Input, Rng, STORAGES, device, gradient_of, on_kernels, places, prove, t, there};
use qformer::device::Real;
use qformer::tensor::{Storage, Tensor};
use qformer::{Result, ops};

#[derive(Debug)]
struct Gelu {
    shape: Vec<usize>,
    x: Vec<f64>,
}

fn draw(rng: &mut Rng) -> Gelu {
    let shape = if rng.one_in(40) { vec![129, 131] } else { vec![rng.rows(), rng.size()] };
    let n = shape.iter().product();
    Gelu { shape, x: rng.values(n).iter().map(|x| 3.0 * x).collect() }
}

impl Case for Gelu {
    fn inputs(&self) -> Vec<Input> {
        vec![Input::new(&self.shape, self.x.clone())]
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        ops::gelu(&x[0])
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let y = |x: &T| *x * T::of(0.5) * (T::ONE + (*x / T::of(2.0).sqrt()).erf());
        (self.shape.clone(), x[0].iter().map(y).collect())
    }
}

#[test]
fn equals_its_definition_and_differences() {
    prove(draw);
}

/// x N(x) and N(x) + x n(x) from tables of the normal distribution (15 digits: mpmath).
#[test]
fn known_answers() {
    let x = t(&[0.0, 1.0, -1.0, 2.0], &[4]);
    let (y, dx) = gradient_of(&[&x], &[1.0; 4], |x| ops::gelu(&x[0]));
    let close = |a: &[f64], b: [f64; 4]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-14);
    assert!(
        close(&y, [0.0, 0.841_344_746_068_542_9, -0.158_655_253_931_457_05, 1.954_499_736_103_641_6]),
        "{y:?}"
    );
    let dx = dx[0].as_deref().unwrap();
    let slopes = [0.5, 1.083_315_470_587_686_3, -0.083_315_470_587_686_3, 1.085_231_801_078_197];
    assert!(close(dx, slopes), "{dx:?}");
}

#[test]
fn what_is_not_finite_stays_so() {
    let x = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, 40.0, -40.0];
    for (place, storage) in places().flat_map(|place| STORAGES.map(|s| (place, s))) {
        let y = ops::gelu(&there(place, storage, &x, &[6])).unwrap().to_f64().unwrap();
        // -inf * 0, as in PyTorch
        assert!(y[0].is_nan() && y[2].is_nan(), "{storage:?}, {place:?}");
        assert_eq!((y[1], &y[3..]), (f64::INFINITY, &[0.0, 40.0, -0.0][..]), "{storage:?}, {place:?}");
    }
}

/// More elements than a block has, and rests of every size.
#[test]
fn many_elements_on_kernels() {
    let of = |n: usize| Gelu { shape: vec![n], x: Rng::new(1).values(n).iter().map(|x| 3.0 * x).collect() };
    on_kernels([9216, 4096, 65, 9].map(of));
}

/// Every f16 there is: within half a unit in the last place and a 24th of it, of what is exact.
#[test]
fn of_every_f16() {
    let Some(device) = device() else { return };
    let x: Vec<f64> =
        (0..=u16::MAX).map(half::f16::from_bits).filter(|x| x.is_finite()).map(f64::from).collect();
    let y = ops::gelu(&there(device, Storage::F16, &x, &[x.len()])).unwrap().to_f64().unwrap();
    for (x, y) in x.into_iter().zip(y) {
        let want = x * 0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
        let unit = 2f64.powi((want.abs().log2().floor() as i32).max(-14) - 10);
        assert!((y - want).abs() <= unit * (0.5 + 1.0 / 24.0), "gelu({x}): {y}, not {want}");
    }
}
