//! An operation of one's own, softplus(x) = ln(1 + e^x), with its gradient, proved by finite differences in f64.
//!
//!     cargo run --example gradient

use qformer::Result;
use qformer::ops::{self, Options, Weight};
use qformer::tensor::{Gradients, Tape, Tensor, record};

/// y = ln(1 + e^x); dx = dy / (1 + e^-x). In f64, on the CPU.
fn softplus(x: &Tensor) -> Result<Tensor> {
    let y: Vec<f64> = x.data::<f64>().iter().map(|x| x.max(0.0) + (-x.abs()).exp().ln_1p()).collect();
    let kept = x.detach();
    record("softplus", [x], y, x.shape().sizes(), move |dy, grads| {
        let each = dy.data::<f64>().iter().zip(kept.data::<f64>());
        grads.add(0, each.map(|(dy, x)| dy / (1.0 + (-x).exp())).collect())
    })
}

/// A number that depends on every element of softplus(x) in its own way: sum of w * softplus(x).
fn loss(x: &Tensor) -> Result<Tensor> {
    let n = x.len();
    let w = Tensor::new((0..n).map(|i| 0.3 + i as f64).collect::<Vec<f64>>(), &[1, n])?;
    ops::linear(&softplus(x)?, Weight::Dense(&w, None), Options::default())
}

/// The largest difference between the gradient and finite differences.
pub fn run() -> Result<f64> {
    let values = [-30.0, -2.5, -0.1, 0.0, 0.7, 3.0, 40.0];
    let tensor = |values: &[f64]| Tensor::new(values.to_vec(), &[1, values.len()]);
    let (tape, mut gradients) = (Tape::new(), Gradients::new());
    let y = loss(&tape.leaf(&tensor(&values)?, 0))?;
    tape.backward(&y, 1.0, &mut gradients)?;
    let found = gradients.get(0).map(|g| g.slice::<f64>().to_vec()).unwrap_or_default();
    let mut worst: f64 = 0.0;
    for (i, found) in found.iter().enumerate() {
        let at = |step: f64| {
            let mut moved = values;
            moved[i] += step;
            loss(&tensor(&moved)?).map(|y| y.data::<f64>()[0])
        };
        let expected = (at(1e-5)? - at(-1e-5)?) / 2e-5;
        println!("x {:>6.1}  gradient {found:.9}  finite differences {expected:.9}", values[i]);
        worst = worst.max((found - expected).abs());
    }
    Ok(worst)
}

#[allow(dead_code)]
fn main() -> Result<()> {
    // Central differences of step 1e-5: 1e-10 of truncation, and rounding of sums up to 300 over 2e-5.
    let worst = run()?;
    assert!(worst < 300.0 * f64::EPSILON / 1e-5 + 1e-9, "{worst}");
    Ok(())
}
