//! y = v (1 + tanh(sqrt(2/pi) (v + 0.044715 v^3))) / 2,   v = x weight^T + bias

use super::harness::{DRAWS, Rng, device, distance, floats, largest, t};
use half::{bf16, f16};
use qformer::Result;
use qformer::ops::{self, Gelu, Options, Weight};
use qformer::tensor::{DType, Device, Storage, Tape, Tensor};

/// Half the distance of two neighbouring numbers in [1, 2).
const ULP32: f64 = 1.0 / (1u64 << 24) as f64;

struct Layer {
    sizes: (usize, usize, usize),
    x: Vec<f64>,
    weight: Vec<f64>,
    bias: Option<Vec<f64>>,
}

impl Layer {
    /// Sums from -3 to 3 and beyond, where the two forms of GELU differ most.
    fn draw(rng: &mut Rng) -> Layer {
        let (r, n, k) = (rng.rows(), rng.size(), rng.size());
        let spread = (k as f64).powf(-0.5);
        let weight = rng.values(n * k).iter().map(|w| 2.0 * spread * (w - 0.3)).collect();
        let bias = rng.one_in(2).then(|| rng.values(n));
        Layer { sizes: (r, n, k), x: rng.values(r * k), weight, bias }
    }

    /// The same of numbers that a storage holds.
    fn rounded(&self, round: impl Fn(&f64) -> f64) -> Layer {
        let all = |v: &Vec<f64>| v.iter().map(&round).collect();
        Layer {
            sizes: self.sizes,
            x: all(&self.x),
            weight: all(&self.weight),
            bias: self.bias.as_ref().map(all),
        }
    }

    /// v and y in f64, and y as plain loops in f32 make it.
    fn define(&self) -> [Vec<f64>; 3] {
        let (r, n, k) = self.sizes;
        let (mut sums, mut single) = (Vec::new(), Vec::new());
        for (i, j) in (0..r).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let (mut sum, mut sum32) = (0.0, 0f32);
            for l in 0..k {
                let (x, w) = (self.x[i * k + l], self.weight[j * k + l]);
                (sum, sum32) = (sum + x * w, sum32 + x as f32 * w as f32);
            }
            let b = self.bias.as_ref().map_or(0.0, |b| b[j]);
            let v = sum32 + b as f32;
            let u = (2.0 / std::f32::consts::PI).sqrt() * (v + 0.044715 * v.powi(3));
            sums.push(sum + b);
            single.push(f64::from(v * (1.0 + u.tanh()) / 2.0));
        }
        let y = |v: &f64| {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3));
            v * (1.0 + u.tanh()) / 2.0
        };
        let y = sums.iter().map(y).collect();
        [sums, y, single]
    }

    fn run(&self, tensor: impl Fn(&[f64], &[usize]) -> Tensor) -> Result<Tensor> {
        let (r, n, k) = self.sizes;
        let bias = self.bias.as_ref().map(|b| tensor(b, &[n]));
        gelu_tanh(&tensor(&self.x, &[r, k]), &tensor(&self.weight, &[n, k]), bias.as_ref())
    }
}

fn gelu_tanh(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    ops::linear(x, Weight::Dense(w, b), Options::gelu(Gelu::Tanh))
}

#[test]
fn equals_its_definition() {
    for draw in 0..DRAWS {
        let case = Layer::draw(&mut Rng::new(draw)).rounded(|x| f64::from(*x as f32));
        let [_, want, naive] = case.define();
        let naive = distance(&naive, &want);
        for dtype in [DType::F64, DType::F32] {
            let y = case.run(|x, sizes| Tensor::of(dtype, x, sizes).unwrap()).unwrap();
            assert_eq!(y.shape().sizes(), [case.sizes.0, case.sizes.1]);
            // As the harness has it: in f32 twice what plain loops are off by, and a little for what they met by luck.
            let bound = match dtype {
                DType::F64 => 1e-12 * (1.0 + largest(&want)),
                DType::F32 => 2.0 * naive + 4.0 * ULP32 * (1.0 + largest(&want)),
            };
            let far = distance(&y.to_f64().unwrap(), &want);
            assert!(far <= bound, "draw {draw} {dtype}: off by {far:e}, more than {bound:e}");
        }
    }
}

/// On a GPU sums and GELU are in f32, and y alone is rounded to its storage, by up to `unit` of itself: had the sums been
/// rounded in between, some would be off by twice that.
#[test]
fn on_a_gpu_only_the_result_is_rounded() {
    let Some(device) = device() else { return };
    let Device::Gpu(gpu) = device else { panic!("a CPU") };
    // A library does not say how it computes tanh: the hardware's own is off by up to 2^-11 (PTX, tanh.approx.f32).
    let tanh = if gpu.is_emulated() { 0.0 } else { 2f64.powi(-11) / 2.0 };
    for draw in (0..DRAWS).step_by(4) {
        for (storage, unit) in
            [(Storage::F32, ULP32), (Storage::F16, 2f64.powi(-11)), (Storage::BF16, 2f64.powi(-8))]
        {
            let case = Layer::draw(&mut Rng::new(draw)).rounded(|x| match storage {
                Storage::F16 => f16::from_f64(*x).to_f64(),
                Storage::BF16 => bf16::from_f64(*x).to_f64(),
                _ => f64::from(*x as f32),
            });
            let [sums, want, naive] = case.define();
            let y = case
                .run(|x, sizes| Tensor::new(floats::<f32>(x), sizes).unwrap().to(device, storage).unwrap());
            let y = y.unwrap();
            assert_eq!(
                (y.shape().sizes(), y.array().unwrap().storage()),
                (&[case.sizes.0, case.sizes.1][..], storage)
            );
            let sum = 2.0 * distance(&naive, &want) + 4.0 * ULP32 * (1.0 + largest(&want));
            for ((y, want), v) in y.to_f64().unwrap().iter().zip(&want).zip(&sums) {
                let bound = sum + unit * want.abs() + tanh * v.abs();
                let far = (y - want).abs();
                assert!(far <= bound, "draw {draw} {}: {y} is not {want}, off by {far:e}", storage.name());
            }
        }
    }
}

/// GELU of every x of a line, from a layer of one weight, which is 1.
fn line(x: &[f64], dtype: DType) -> [Vec<f64>; 2] {
    let column = Tensor::of(dtype, x, &[x.len(), 1]).unwrap();
    let one = Tensor::of(dtype, &[1.0], &[1, 1]).unwrap();
    [gelu_tanh(&column, &one, None), ops::gelu(&column)].map(|y| y.unwrap().to_f64().unwrap())
}

/// What users are told of it: by how much an activation differs.
#[test]
fn is_off_the_exact_one_by_5e_4_at_most() {
    let x: Vec<f64> = (-100_000..=100_000).map(|i| f64::from(i) * 1e-4).collect();
    for dtype in [DType::F64, DType::F32] {
        let [tanh, exact] = line(&x, dtype);
        let far = distance(&tanh, &exact);
        assert!((1e-4..5e-4).contains(&far), "{dtype}: {far:e}");
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    for dtype in [DType::F64, DType::F32] {
        let [y, exact] = line(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 40.0, -40.0, 0.0], dtype);
        assert!(y[0].is_nan() && y[2].is_nan() && exact[2].is_nan(), "{y:?}");
        assert_eq!([y[1], y[3], y[4], y[5]], [f64::INFINITY, 40.0, -0.0, 0.0], "{dtype}");
    }
}

#[test]
fn what_is_refused() {
    let said = |r: Result<Tensor>| r.map_or_else(|e| e.to_string(), |_| "no error".into());
    let (x, w, b) = (t(&[1.0; 6], &[2, 3]), t(&[1.0; 12], &[4, 3]), t(&[1.0; 4], &[4]));
    let gelu = |x: &Tensor, w: &Tensor, b: &Tensor| said(gelu_tanh(x, w, Some(b)));
    assert_eq!(gelu(&x, &w, &b), "no error");
    assert_eq!(gelu(&x, &b, &b), "linear: weight: expected [out, in], got [4]");
    assert_eq!(gelu(&x, &w, &x), "linear: bias: expected [4], got [2, 3]");
    let refused =
        "linear: inputs: expected constants, got a tracked tensor; detach it: this operation has no gradient";
    let places = std::iter::once(Device::Cpu).chain(device().cloned());
    for place in places {
        let of = |x: &Tensor| {
            Tensor::new(x.to_f32().unwrap(), x.shape().sizes()).unwrap().to(&place, Storage::F32).unwrap()
        };
        let [x, w, b] = [&x, &w, &b].map(of);
        assert_eq!(gelu(&x, &w, &b), "no error");
        let tape = Tape::new();
        assert_eq!(gelu(&tape.leaf(&x, 0), &w, &b), refused);
        assert_eq!(gelu(&x, &tape.leaf(&w, 0), &b), refused);
        assert_eq!(gelu(&x, &w, &tape.leaf(&b, 0)), refused);
    }
}
