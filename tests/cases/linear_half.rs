//! y = x weight^T + bias with a frozen weight in f16: the same as `linear` with the weight widened, which is exact.

use super::harness::{DRAWS, Rng, distance, floats, t};
use half::f16;
use qformer::ops;
use qformer::tensor::{HalfMatrix, Tape, Tensor};
use std::sync::Arc;

fn matrix(values: &[f64], n: usize, k: usize) -> (HalfMatrix, Vec<f64>) {
    let halves: Vec<f16> = values.iter().map(|x| f16::from_f64(*x)).collect();
    let bytes: Vec<u8> = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
    (HalfMatrix::new(Arc::new(bytes), n, k).unwrap(), halves.iter().map(|h| h.to_f64()).collect())
}

#[test]
fn equals_linear_with_the_widened_weight() {
    for draw in 0..DRAWS {
        let rng = &mut Rng::new(draw);
        // around the 512 columns of a tile
        let (r, n, k) = (rng.rows(), rng.pick(&[1, 3, 64, 511, 512, 513, 1030]), rng.size());
        let (x, values) = (rng.values(r * k), rng.values(n * k));
        let bias = rng.one_in(2).then(|| rng.values(n));
        let (half, wide) = matrix(&values, n, k);
        let b = bias.as_ref().map(|b| t(b, &[n]));
        let want = ops::linear(&t(&x, &[r, k]), &t(&wide, &[n, k]), b.as_ref()).unwrap();
        let found = ops::linear_half(&t(&x, &[r, k]), &half, b.as_ref()).unwrap();
        assert_eq!(found.shape(), want.shape());
        assert!(distance(&found.to_f64(), &want.to_f64()) < 1e-12, "draw {draw}");
        let single = |v: &[f64], shape: &[usize]| Tensor::new(floats::<f32>(v), shape).unwrap();
        let b = bias.as_ref().map(|b| single(b, &[n]));
        let found = ops::linear_half(&single(&x, &[r, k]), &half, b.as_ref()).unwrap();
        // k products, their sums and x itself are rounded: at most k + 3 roundings of 2^-24 of a sum of k products
        let largest = |v: &[f64]| v.iter().fold(1.0f64, |m, x| m.max(x.abs()));
        let terms = k as f64 * largest(&x) * largest(&wide) + bias.as_ref().map_or(0.0, |b| largest(b));
        let bound = (k as f64 + 3.0) * terms / f64::from(1 << 24);
        assert!(distance(&found.to_f64(), &want.to_f64()) <= bound, "draw {draw}");
    }
}

#[test]
fn nan_and_infinity_propagate() {
    let (half, _) = matrix(&[f64::NAN, 1.0, f64::INFINITY, 1.0, 65504.0, -65504.0], 3, 2);
    let y = ops::linear_half(&t(&[1.0, 1.0], &[1, 2]), &half, None).unwrap().to_f64();
    assert!(y[0].is_nan() && y[1] == f64::INFINITY && y[2] == 0.0, "{y:?}");
}

#[test]
fn refuses_what_does_not_fit() {
    let (half, _) = matrix(&[1.0; 6], 2, 3);
    let x = t(&[1.0; 3], &[1, 3]);
    let says = |result: qformer::Result<Tensor>, what: &str| {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(what), "{message}");
    };
    says(
        ops::linear_half(&t(&[1.0; 2], &[1, 2]), &half, None),
        "weight: expected [2, 2] for x [1, 2], got [2, 3]",
    );
    says(ops::linear_half(&x, &half, Some(&t(&[1.0; 3], &[3]))), "bias");
    let single = Tensor::new(vec![1.0f32; 2], &[2]).unwrap();
    says(ops::linear_half(&x, &half, Some(&single)), "bias");
    let tape = Tape::new();
    says(ops::linear_half(&tape.leaf(&x, 0), &half, None), "expected constants, got a tracked tensor");
    assert!(HalfMatrix::new(Arc::new(vec![0u8; 5]), 1, 3).is_err());
    assert!(HalfMatrix::new(Arc::new(vec![0u8; 12]), usize::MAX, 2).is_err());
}
