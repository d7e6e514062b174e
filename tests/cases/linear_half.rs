//! y = x weight^T + bias with a weight in half precision

use super::harness::{DRAWS, Rng, distance, floats};
use half::f16;
use qformer::ops::{self, Options, Weight};
use qformer::tensor::{DType, HalfMatrix, Tape, Tensor};
use std::sync::Arc;

fn half(values: &[f16], rows: usize, columns: usize) -> qformer::Result<HalfMatrix> {
    /// Bytes at an even address.
    struct Aligned(Vec<f16>);
    impl AsRef<[u8]> for Aligned {
        fn as_ref(&self) -> &[u8] {
            bytemuck::cast_slice(&self.0)
        }
    }
    HalfMatrix::new(Arc::new(Aligned(values.to_vec())), rows, columns)
}

#[test]
fn equals_its_definition() {
    for draw in 0..DRAWS {
        let mut rng = Rng::new(draw);
        // Output columns on both sides of a tile's 64, and now and then sums of more terms than are converted at once.
        let (wide, long) = (rng.one_in(4), rng.one_in(8));
        let n = if wide { rng.pick(&[63, 64, 65, 130, 515]) } else { rng.size() };
        let k = if long { rng.pick(&[1535, 1536, 1537, 3100]) } else { rng.size() };
        let (r, has_bias) = (rng.pick(&[0, 1, 2, 5, 64]), rng.one_in(2));
        let (x, b) = (rng.values(r * k), rng.values(n));
        let w: Vec<f16> = rng.values(n * k).iter().map(|w| f16::from_f64(*w)).collect();
        let matrix = half(&w, n, k).unwrap();
        let x: Vec<f64> = x.iter().map(|x| f64::from(*x as f32)).collect();
        let mut want = Vec::new();
        for row in x.chunks(k) {
            for (j, w) in w.chunks(k).enumerate() {
                let sum: f64 = row.iter().zip(w).map(|(x, w)| x * w.to_f64()).sum();
                want.push(sum + if has_bias { f64::from(b[j] as f32) } else { 0.0 });
            }
        }
        // Sums of k terms, each off by 2^-53 or 2^-24 of what is summed so far.
        let terms = k.max(49) as f64;
        for (dtype, bound) in [(DType::F64, terms * 2f64.powi(-53)), (DType::F32, terms * 2f64.powi(-24))] {
            let bias: Vec<f64> = floats::<f32>(&b).iter().map(|b| f64::from(*b)).collect();
            let bias = has_bias.then(|| Tensor::of(dtype, &bias, &[n]).unwrap());
            let y = linear_half(&Tensor::of(dtype, &x, &[r, k]).unwrap(), &matrix, bias.as_ref()).unwrap();
            assert_eq!(y.shape().sizes(), [r, n]);
            let far = distance(&y.to_f64().unwrap(), &want);
            assert!(far <= bound * 200.0, "draw {draw} {dtype}: off by {far:e}");
        }
    }
}

fn linear_half(x: &Tensor, w: &HalfMatrix, b: Option<&Tensor>) -> qformer::Result<Tensor> {
    ops::linear(x, Weight::Half(w, b), Options::default())
}

#[test]
fn what_is_refused() {
    let said = |r: qformer::Result<Tensor>| r.map_or_else(|e| e.to_string(), |_| "no error".into());
    let matrix = half(&[f16::ONE; 6], 2, 3).unwrap();
    let zeros = |sizes: &[usize]| Tensor::zeros(DType::F64, sizes);
    let x = zeros(&[4, 3]);
    assert_eq!(
        said(linear_half(&zeros(&[4, 2]), &matrix, None)),
        "linear_half: weight: expected [2, 2] for x [4, 2], got [2, 3]"
    );
    assert_eq!(
        said(linear_half(&x, &matrix, Some(&zeros(&[3])))),
        "linear_half: bias: expected [2], got [3]"
    );
    let single = Tensor::zeros(DType::F32, &[2]);
    assert_eq!(said(linear_half(&x, &matrix, Some(&single))), "linear_half: bias: expected f64, got f32");
    let tape = Tape::new();
    let refused = "linear_half: inputs: expected constants, got a tracked tensor; detach it: this operation has no gradient";
    assert_eq!(said(linear_half(&tape.leaf(&x, 0), &matrix, None)), refused);
    assert_eq!(said(linear_half(&x, &matrix, Some(&tape.leaf(&zeros(&[2]), 0)))), refused);
    let short = half(&[f16::ONE; 5], 2, 3).err().unwrap().to_string();
    assert_eq!(short, "half matrix: bytes: expected aligned f16 of [2, 3], got 10 bytes");
}
