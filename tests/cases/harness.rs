//! What is proved of every operation, from one description of it.
//!
//! A [`Case`] is one draw of shapes and values with the operation and its definition: plain loops, generic over f32 and
//! f64, that read like the formula. [`prove`] draws 256 of them and holds each one to:
//! - forward in f64 equals the definition;
//! - forward in f32 is not further from the definition in f64 than twice the definition in f32 is;
//! - the gradient in f64 equals central differences: every element, or 4 directions above 64 elements. The operation is
//!   used twice on the same tensors, each time under another, non-uniform upstream gradient, so that gradients add up;
//! - the gradient in f32 equals the one in f64 but for rounding;
//! - an input that is not tracked gets none, and a second run gives the same bits: on the host's kernels under another
//!   schedule of their threads;
//! - on a GPU in f32 both hold to the same bounds, in f16 and bf16 to a few roundings (every fourth draw): the one that
//!   QFORMER_TEST_DEVICE names, or the kernels on the host where they are built. The host reports races, reads of what
//!   nobody wrote and accesses past the end. [`on_kernels`] does this alone, for shapes too large for differences.
//!
//! Inputs are leaves of the tape or results on it, and begin at the start of their buffer or inside it, by turns.

use qformer::Result;
use qformer::device::Real;
use qformer::on;
use qformer::ops;
use qformer::tensor::{DType, Device, Gradients, Storage, Stream, Tape, Tensor};
use std::fmt::Debug;
use std::sync::OnceLock;

pub const DRAWS: u32 = 256;
/// Half the distance of two neighbouring numbers in [1, 2).
const ULP32: f64 = 1.0 / (1u64 << 24) as f64;

pub struct Input {
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
    /// The h of the differences; what they leave out is of the order h^4.
    pub step: f64,
}

impl Input {
    pub fn new(shape: &[usize], values: Vec<f64>) -> Input {
        assert_eq!(shape.iter().product::<usize>(), values.len());
        Input { shape: shape.to_vec(), values, step: 1e-3 }
    }
}

pub trait Case: Debug {
    /// What is differentiated.
    fn inputs(&self) -> Vec<Input>;
    /// The operation under test.
    fn run(&self, x: &[Tensor]) -> Result<Tensor>;
    /// Its definition: shape and elements of the result.
    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>);
    /// Which inputs are stored in 16 bits where a GPU works in them; the others are in f32 always.
    fn dense(&self) -> Vec<bool> {
        vec![true; self.inputs().len()]
    }
    /// Whether GPUs have kernels for it.
    fn on_gpu(&self) -> bool {
        true
    }
    /// Undoes a perturbation where the operation's gradient is none by definition.
    fn hold(&self, _input: usize, _values: &mut [f64]) {}
}

/// Random numbers of a test, from its number.
pub struct Rng {
    stream: Stream,
    at: u64,
}

impl Rng {
    pub fn new(seed: u32) -> Rng {
        Rng { stream: Stream { seed: 0x51f0_0000 + u64::from(seed), step: 0, site: 0 }, at: 0 }
    }

    pub fn uniform(&mut self) -> f64 {
        self.at += 1;
        self.stream.uniform(self.at)
    }

    /// 0 .. n
    pub fn below(&mut self, n: usize) -> usize {
        (self.uniform() * n as f64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A number of columns: 1, primes, and sizes around the lanes of vector loops.
    pub fn size(&mut self) -> usize {
        self.pick(&[1, 1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 15, 16, 17, 19, 31, 32, 33, 37, 48])
    }

    pub fn small(&mut self) -> usize {
        self.pick(&[1, 1, 2, 2, 3, 4, 5, 7])
    }

    /// A number of rows: none, few, and now and then more than a partial sum has (64).
    pub fn rows(&mut self) -> usize {
        self.pick(&[0, 1, 1, 1, 2, 2, 3, 3, 4, 5, 5, 7, 11, 13, 63, 64, 65, 129])
    }

    /// Numbers around 0.3, so that nothing cancels by symmetry.
    pub fn values(&mut self, n: usize) -> Vec<f64> {
        self.at = self.at.next_multiple_of(2) + 2;
        let from = self.at;
        self.at += n as u64 + 1;
        (0..n as u64).map(|i| 0.3 + 0.8 * self.stream.normal(from + i)).collect()
    }

    pub fn ids(&mut self, n: usize, below: usize) -> Vec<u32> {
        (0..n).map(|_| self.below(below) as u32).collect()
    }
}

pub fn floats<T: Real>(x: &[f64]) -> Vec<T> {
    x.iter().map(|x| T::of(*x)).collect()
}

pub fn doubles<T: Real>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

/// Holds `DRAWS` cases to all of it.
pub fn prove<C: Case>(make: impl Fn(&mut Rng) -> C) {
    for n in 0..DRAWS {
        let mut rng = Rng::new(n);
        let case = make(&mut rng);
        prove_one(&case, n, &mut rng);
    }
}

fn about<C: Case>(case: &C, n: u32) -> String {
    let mut about = format!("draw {n} of {case:?}");
    about.truncate(about.floor_char_boundary(2000));
    about
}

pub fn prove_one<C: Case>(case: &C, n: u32, rng: &mut Rng) {
    let (interior, offset) = (n % 2 == 1, n as usize % 3);
    let setting = Setting { about: about(case, n), interior, offset };
    let inputs = case.inputs();
    forward(case, &inputs, &setting);
    backward(case, &inputs, &setting, rng);
    if let Some(device) = device().filter(|_| n.is_multiple_of(4) && case.on_gpu()) {
        for storage in STORAGES {
            let setting =
                Setting { about: format!("{} on a GPU: {}", storage.name(), setting.about), ..setting };
            on_gpu(case, &inputs, &setting, (device, another(n), storage), rng);
        }
    }
}

/// Holds cases of given shapes to what kernels promise, in every storage.
pub fn on_kernels<C: Case>(cases: impl IntoIterator<Item = C>) {
    for (n, case) in (0..).zip(cases) {
        STORAGES.iter().for_each(|storage| on_kernels_in(*storage, &case, n));
    }
}

/// Cases that take long: each in one of these storages, by turns.
pub fn on_kernels_by_turns<C: Case>(storages: &[Storage], cases: impl IntoIterator<Item = C>) {
    for ((n, case), storage) in (0..).zip(cases).zip(storages.iter().cycle()) {
        on_kernels_in(*storage, &case, n);
    }
}

fn on_kernels_in<C: Case>(storage: Storage, case: &C, n: u32) {
    let Some(device) = device() else { return };
    let about = format!("{} on a GPU: {}", storage.name(), about(case, n));
    let setting = Setting { about, interior: n % 2 == 1, offset: n as usize % 3 };
    on_gpu(case, &case.inputs(), &setting, (device, another(4 * n), storage), &mut Rng::new(n));
}

pub const STORAGES: [Storage; 3] = [Storage::F32, Storage::F16, Storage::BF16];

/// The CPU, and where kernels are tested.
pub fn places() -> impl Iterator<Item = &'static Device> {
    std::iter::once(&Device::Cpu).chain(device())
}

/// A tensor of values on a device, in a storage of it.
pub fn there(place: &Device, storage: Storage, values: &[f64], shape: &[usize]) -> Tensor {
    let storage = if place.keeps_storages() { storage } else { Storage::F32 };
    Tensor::of(DType::F32, values, shape).unwrap().to(place, storage).unwrap()
}

/// Where kernels are tested, if anywhere.
pub fn device() -> Option<&'static Device> {
    static DEVICE: OnceLock<Option<Device>> = OnceLock::new();
    let open = || {
        let named = std::env::var("QFORMER_TEST_DEVICE").ok();
        let name = named.or_else(|| cfg!(feature = "host-kernels").then(|| "host".into()))?;
        Some(Device::open(&name).unwrap_or_else(|e| panic!("{e}")))
    };
    DEVICE.get_or_init(open).as_ref()
}

/// Where a second run shall give the same bits: where the threads of a block run in another order, if that can be told.
fn another(n: u32) -> &'static Device {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    let open = || {
        let first = device().expect("a device").clone();
        let named = std::env::var_os("QFORMER_TEST_DEVICE").is_some_and(|name| name != "host");
        let more = (1..4).map(|n| Device::open(&format!("host:{n}")).unwrap_or_else(|e| panic!("{e}")));
        if named { vec![first] } else { more.collect() }
    };
    let devices = DEVICES.get_or_init(open);
    &devices[n as usize / 4 % devices.len()]
}

/// Forward and backward of a case by kernels, against f64 on the CPU from the same (rounded) values.
fn on_gpu<C: Case>(
    case: &C,
    inputs: &[Input],
    setting: &Setting,
    (device, another, storage): (&Device, &Device, Storage),
    rng: &mut Rng,
) {
    let unit = unit_roundoff(storage);
    let dense = case.dense();
    let stored = |i: usize| if dense[i] { storage } else { Storage::F32 };
    let rounded = |v: &[f64], s: Storage| -> Vec<f64> { v.iter().map(|x| round(*x, s)).collect() };
    let inputs: Vec<Input> = (inputs.iter().enumerate())
        .map(|(i, x)| Input {
            values: rounded(&x.values, stored(i)),
            ..Input::new(&x.shape, x.values.clone())
        })
        .collect();
    let values: Vec<Vec<f64>> = inputs.iter().map(|i| i.values.clone()).collect();
    let (_, truth) = case.define::<f64>(&values);
    let upstream = [0, 1].map(|_| rounded(&rng.values(truth.len()), storage));
    let tracked = tracked(inputs.len(), rng);
    let exact = gradients(case, setting, DType::F64, &inputs, &vec![true; inputs.len()], &upstream);
    let run = |at: &Device| {
        let (tape, mut grads) = (Tape::new(), Gradients::new());
        let tensor = |(key, input): (usize, &Input)| {
            let t = setting.tensor(DType::F32, &input.values, &input.shape).to(at, stored(key)).unwrap();
            if !tracked[key] {
                return t;
            }
            if !setting.interior {
                return tape.leaf(&t, key);
            }
            ops::add(&tape.leaf(&t, key), &Tensor::zeros(DType::F32, &input.shape).like(&t).unwrap()).unwrap()
        };
        let x: Vec<Tensor> = inputs.iter().enumerate().map(tensor).collect();
        let y = [0, 1].map(|_| case.run(&x).unwrap_or_else(|e| panic!("{}: {e}", setting.about)));
        let seeds: Vec<(&Tensor, Tensor)> = (y.iter().zip(&upstream))
            .map(|(y, w)| (y, Tensor::of(DType::F32, w, y.shape().sizes()).unwrap().like(y).unwrap()))
            .collect();
        tape.backward_from(&seeds, &mut grads).unwrap_or_else(|e| panic!("{}: {e}", setting.about));
        let grad = |(i, x): (usize, &Input)| {
            assert_eq!(grads.get(i).is_some(), tracked[i], "{}: gradient of input {i}", setting.about);
            grads
                .get(i)
                .map_or_else(Vec::new, |g| Tensor::of_buffer(g.clone(), &x.shape).unwrap().to_f64().unwrap())
        };
        let grads: Vec<Vec<f64>> = inputs.iter().enumerate().map(grad).collect();
        (y[0].to_f64().unwrap(), grads)
    };
    let ((y, grads), again) = (run(device), run(another));
    let bits = |x: &[f64]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let same = bits(&again.0) == bits(&y) && again.1.iter().zip(&grads).all(|(a, b)| bits(a) == bits(b));
    assert!(same, "{}: other numbers in a second run", setting.about);
    let single: Vec<Vec<f32>> = values.iter().map(|v| floats(v)).collect();
    let naive = distance(&doubles(&case.define::<f32>(&single).1), &truth);
    // In f32 as on the CPU. In 16 bits a few roundings on the way: operands made on the way, the result.
    let few = if storage == Storage::F32 { 4.0 } else { 8.0 };
    let bound = 2.0 * naive + few * unit * (1.0 + largest(&truth));
    let far = distance(&y, &truth);
    assert!(far <= bound, "{}: off by {far:e}, more than {bound:e}", setting.about);
    let w: Vec<f64> = upstream[0].iter().zip(&upstream[1]).map(|(a, b)| a + b).collect();
    for (i, g) in grads.iter().enumerate().filter(|(i, _)| tracked[*i]) {
        let truth = exact.get(i).unwrap().slice::<f64>();
        let small = if storage == Storage::F32 { 2e-5 } else { 16.0 * unit };
        let (far, bound) = (distance(g, truth), small * (largest(truth) + largest(&w)));
        assert!(
            far <= bound,
            "{}: gradient of input {i} is off by {far:e}, more than {bound:e}",
            setting.about
        );
    }
}

pub fn unit_roundoff(storage: Storage) -> f64 {
    match storage {
        Storage::F16 => 2f64.powi(-11),
        Storage::BF16 => 2f64.powi(-8),
        _ => ULP32,
    }
}

fn round(x: f64, storage: Storage) -> f64 {
    match storage {
        Storage::F16 => half::f16::from_f64(x).to_f64(),
        Storage::BF16 => half::bf16::from_f64(x).to_f64(),
        _ => f64::from(x as f32),
    }
}

/// How a case's tensors are laid out.
struct Setting {
    about: String,
    /// Results on the tape instead of its leaves.
    interior: bool,
    /// Rows that stand before the tensor in its buffer.
    offset: usize,
}

impl Setting {
    /// A tensor behind `offset` rows of something else.
    fn tensor(&self, dtype: DType, values: &[f64], shape: &[usize]) -> Tensor {
        let width = shape.last().copied().unwrap_or(1);
        let lead = self.offset * width;
        let all: Vec<f64> = std::iter::repeat_n(7.0e6, lead).chain(values.iter().copied()).collect();
        let rows = all.len() / width.max(1);
        let all = Tensor::of(dtype, &all, &[rows, width]).unwrap();
        all.slice_rows(self.offset.min(rows)..rows).unwrap().reshape(shape).unwrap()
    }
}

fn run<C: Case>(case: &C, setting: &Setting, dtype: DType, inputs: &[Input], values: &[Vec<f64>]) -> Tensor {
    let x: Vec<Tensor> = inputs.iter().zip(values).map(|(i, v)| setting.tensor(dtype, v, &i.shape)).collect();
    case.run(&x).unwrap_or_else(|e| panic!("{}: {e}", setting.about))
}

fn forward<C: Case>(case: &C, inputs: &[Input], setting: &Setting) {
    // Values that f32 holds exactly, so that all three compute from the same inputs.
    let values: Vec<Vec<f64>> = inputs.iter().map(|i| doubles(&floats::<f32>(&i.values))).collect();
    let (shape, truth) = case.define::<f64>(&values);
    let single: Vec<Vec<f32>> = values.iter().map(|v| floats(v)).collect();
    let naive = doubles(&case.define::<f32>(&single).1);
    let [y64, y32] = [DType::F64, DType::F32].map(|d| run(case, setting, d, inputs, &values));
    for y in [&y64, &y32] {
        assert_eq!(y.shape().sizes(), shape, "{}: shape", setting.about);
    }
    let largest = largest(&truth);
    // Sums of up to 700 terms in f64: 700 * 2^-53 of the largest term, and a little for what cancels.
    let bound64 = 1e-12 * (1.0 + largest);
    // The definition may be right by luck; the terms of a sum that cancels are of the order of 1, as the inputs are.
    let bound32 = 2.0 * distance(&naive, &truth) + 4.0 * ULP32 * (1.0 + largest);
    assert!(
        distance(&y64.to_f64().unwrap(), &truth) <= bound64,
        "{}: f64 {:?} is not {truth:?}",
        setting.about,
        y64.to_f64().unwrap()
    );
    let far = distance(&y32.to_f64().unwrap(), &truth);
    assert!(far <= bound32, "{}: f32 is off by {far:e}, more than {bound32:e}", setting.about);
}

pub fn largest(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |m, x| x.abs().max(m))
}

/// The largest difference; NaN counts as infinite.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| if (a - b).is_nan() { f64::INFINITY } else { (a - b).abs() })
        .fold(0.0, f64::max)
}

/// The gradients of <w1, y1> + <w2, y2>, where y1 and y2 are two results from the same tensors.
fn gradients<C: Case>(
    case: &C,
    setting: &Setting,
    dtype: DType,
    inputs: &[Input],
    tracked: &[bool],
    upstream: &[Vec<f64>; 2],
) -> Gradients {
    let (tape, mut grads) = (Tape::new(), Gradients::new());
    let tensor = |(key, (input, tracked)): (usize, (&Input, &bool))| {
        let t = setting.tensor(dtype, &input.values, &input.shape);
        match (tracked, setting.interior) {
            (false, _) => t,
            (true, false) => tape.leaf(&t, key),
            (true, true) => {
                let zero = Tensor::zeros(dtype, &input.shape);
                ops::add(&tape.leaf(&t, key), &zero).unwrap()
            }
        }
    };
    let x: Vec<Tensor> = inputs.iter().zip(tracked).enumerate().map(tensor).collect();
    let y = [0, 1].map(|_| case.run(&x).unwrap());
    let seeds: Vec<(&Tensor, Tensor)> =
        y.iter().zip(upstream).map(|(y, w)| (y, Tensor::of(dtype, w, y.shape().sizes()).unwrap())).collect();
    tape.backward_from(&seeds, &mut grads).unwrap_or_else(|e| panic!("{}: {e}", setting.about));
    grads
}

/// All of `n` inputs, or now and then all but one.
fn tracked(n: usize, rng: &mut Rng) -> Vec<bool> {
    let mut tracked = vec![true; n];
    if n > 1 && rng.one_in(3) {
        tracked[rng.below(n)] = false;
    }
    tracked
}

fn backward<C: Case>(case: &C, inputs: &[Input], setting: &Setting, rng: &mut Rng) {
    let tracked = tracked(inputs.len(), rng);
    let n = case.define::<f64>(&inputs.iter().map(|i| i.values.clone()).collect::<Vec<_>>()).1.len();
    let upstream = [rng.values(n), rng.values(n)];
    let run = |dtype| gradients(case, setting, dtype, inputs, &tracked, &upstream);
    let (grads, again, single) = (run(DType::F64), run(DType::F64), run(DType::F32));
    let w: Vec<f64> = upstream[0].iter().zip(&upstream[1]).map(|(a, b)| a + b).collect();
    for (i, input) in inputs.iter().enumerate() {
        let name = format!("{}: gradient of input {i} {:?}", setting.about, input.shape);
        if !tracked[i] {
            assert!(grads.get(i).is_none(), "{name}: there is one, but the input is not tracked");
            continue;
        }
        let grad = grads.get(i).unwrap_or_else(|| panic!("{name}: none")).slice::<f64>();
        let bits = |g: &Gradients| {
            g.get(i).map(|g| g.slice::<f64>().iter().map(|x| x.to_bits()).collect::<Vec<_>>())
        };
        assert_eq!(bits(&grads), bits(&again), "{name}: other bits in a second run");
        let single = doubles(single.get(i).unwrap().slice::<f32>());
        // Two sums of at most 170 terms in a row, each off by 170 * 2^-24 = 1e-5 of its largest terms at worst.
        let bound = 2e-5 * (largest(grad) + largest(&w));
        let far = distance(&single, grad);
        assert!(far <= bound, "{name}: f32 is off by {far:e}, more than {bound:e}");
        differences(case, inputs, i, grad, &w, setting, &name, rng);
    }
}

#[allow(clippy::too_many_arguments)]
fn differences<C: Case>(
    case: &C,
    inputs: &[Input],
    i: usize,
    grad: &[f64],
    w: &[f64],
    setting: &Setting,
    name: &str,
    rng: &mut Rng,
) {
    let n = grad.len();
    let (each, h) = (n <= 64, inputs[i].step);
    for direction in 0..if each { n } else { 4 } {
        let d: Vec<f64> = if each {
            (0..n).map(|j| f64::from(u8::from(j == direction))).collect()
        } else {
            rng.values(n).iter().map(|x| x / (n as f64).sqrt()).collect()
        };
        let at = |by: f64| {
            let mut values: Vec<Vec<f64>> = inputs.iter().map(|i| i.values.clone()).collect();
            for (x, d) in values[i].iter_mut().zip(&d) {
                *x += by * h * d;
            }
            case.hold(i, &mut values[i]);
            run(case, setting, DType::F64, inputs, &values).to_f64().unwrap()
        };
        // Five points: (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12 h, differences first so that little cancels.
        let (near, far) = ((at(1.0), at(-1.0)), (at(2.0), at(-2.0)));
        let slope = |k: usize| (8.0 * (near.0[k] - near.1[k]) - (far.0[k] - far.1[k])) / (12.0 * h);
        let numeric: f64 = w.iter().enumerate().map(|(k, w)| w * slope(k)).sum();
        let analytic: f64 = grad.iter().zip(&d).map(|(g, d)| g * d).sum();
        assert!(
            (numeric - analytic).abs() <= 1e-7 + 1e-6 * numeric.abs(),
            "{name}, direction {direction}: differences say {numeric:e}, backward {analytic:e}"
        );
    }
}

/// The gradient of <w, f(x)> with respect to every x, in f64.
pub fn gradient_of(
    x: &[&Tensor],
    w: &[f64],
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> (Vec<f64>, Vec<Option<Vec<f64>>>) {
    let (tape, mut grads) = (Tape::new(), Gradients::new());
    let leaves: Vec<Tensor> = x.iter().enumerate().map(|(i, t)| tape.leaf(t, i)).collect();
    let y = f(&leaves).unwrap();
    let seed = Tensor::of(y.dtype(), w, y.shape().sizes()).unwrap();
    tape.backward_from(&[(&y, seed)], &mut grads).unwrap();
    let of = |i| grads.get(i).map(|g| on!(g.dtype(), T => doubles(g.slice::<T>())));
    (y.to_f64().unwrap(), (0..x.len()).map(of).collect())
}

/// A tensor of f64.
pub fn t(values: &[f64], shape: &[usize]) -> Tensor {
    Tensor::new(values.to_vec(), shape).unwrap()
}
