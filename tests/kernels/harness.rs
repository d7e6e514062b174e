//! What the kernel tests share: storage types, random inputs, the tolerance, and `place`: where and how kernels run.
//!
//! Tolerance, after FlashAttention's tests: with `reference` in f64 and `naive` the plain formula computed in the storage
//! type (sums in f32, rounded after every step, as PyTorch does it), the kernel must satisfy
//! `max|kernel - reference| <= 2 max(max|naive - reference|, u max|reference|)`, u the unit roundoff of the type.
//! The second term is the rounding of the result, which no implementation can count on avoiding: the naive one may be lucky.
//!
//! KERNELS_LONG=1 runs 200 random shapes of each kernel and 100 schedules.

pub use crate::place::*;

use qformer::device::emulator::Schedule;
use qformer::device::launch::Arg;
use qformer::tensor::{DType, Dropout, Gradients, Stream, Tape, Tensor};

/// A storage type of the kernels.
pub trait Storage: bytemuck::Pod + PartialEq + std::fmt::Debug {
    const NAME: &'static str;
    fn of(v: f64) -> Self;
    fn get(self) -> f64;
}
impl Storage for f32 {
    const NAME: &'static str = "f32";
    fn of(v: f64) -> f32 {
        v as f32
    }
    fn get(self) -> f64 {
        f64::from(self)
    }
}
impl Storage for half::f16 {
    const NAME: &'static str = "f16";
    fn of(v: f64) -> Self {
        half::f16::from_f64(v)
    }
    fn get(self) -> f64 {
        self.to_f64()
    }
}
impl Storage for half::bf16 {
    const NAME: &'static str = "bf16";
    fn of(v: f64) -> Self {
        half::bf16::from_f64(v)
    }
    fn get(self) -> f64 {
        self.to_f64()
    }
}

/// v as storage of type T holds it.
pub fn round<T: Storage>(v: f64) -> f64 {
    T::of(v).get()
}
/// Half the distance from 1 to the next value.
pub fn unit_roundoff<T: Storage>() -> f64 {
    match T::NAME {
        "f32" => 2f64.powi(-24),
        "f16" => 2f64.powi(-11),
        _ => 2f64.powi(-8),
    }
}
/// v rounded on the way of a naive implementation, which computes in f32.
pub fn r<T: Storage>(v: f32) -> f32 {
    T::of(f64::from(v)).get() as f32
}
pub fn values<T: Storage>(stored: &[T]) -> Vec<f64> {
    stored.iter().map(|v| v.get()).collect()
}
pub fn floats<T: Storage>(stored: &[T]) -> Vec<f32> {
    stored.iter().map(|v| v.get() as f32).collect()
}
pub fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|v| f64::from(*v)).collect()
}

/// Repeatable random numbers (splitmix64).
pub struct Random(u64);
impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678))
    }
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
    /// 0 .. n
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }
    pub fn within(&mut self, from: usize, to: usize) -> usize {
        from + self.below(to - from + 1)
    }
}

/// Asymmetric, repeatable inputs.
pub fn random<T: Storage>(n: usize, seed: u64, scale: f64) -> Vec<T> {
    let mut x = Random::new(seed);
    (0..n).map(|_| T::of(scale * ((x.uniform() + x.uniform() + x.uniform() - 1.5) * 1.6 + 0.1))).collect()
}

/// How many random shapes a test tries: `few`, or 200 in the long run.
pub fn shapes(few: usize) -> usize {
    if long() { 200 } else { few }
}

/// out [c] = or += the sums of the columns of x [n,c], its rows in `shares`.
pub fn column_sum<T: Storage>(
    x: &Memory,
    out: &Memory,
    (n, c): (usize, usize),
    shares: usize,
    add: bool,
    schedule: Schedule,
) {
    let pieces = c.div_ceil(256);
    let (partial, counters) = (fresh::<f32>(shares * c), on_device(&vec![0u32; pieces]));
    let mut args = [x, out, &partial, &counters].map(Arg::from).to_vec();
    if shares == 1 {
        args[2..].fill(Arg::NULL);
    }
    args.extend([Arg::from(n as i32), (c as i32).into(), (c as i32).into(), i32::from(add).into()]);
    let kernel = format!("column_sum_{}", T::NAME);
    run(&launch_of(&kernel, [pieces as u32, shares as u32, 1], [32, 8, 1]), &args, schedule);
    assert!(read::<u32>(&counters).iter().all(|n| *n == 0), "counters that are not 0 again");
}

/// The largest |a - b|; NaN where one has a NaN or an infinity that the other has not.
pub fn worst(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let same = |x: f64, y: f64| x == y || (x.is_nan() && y.is_nan());
    let differences = a.iter().zip(b).map(|(&x, &y)| if same(x, y) { 0.0 } else { (x - y).abs() });
    differences.fold(0.0, |m: f64, d| if m.is_nan() || d.is_nan() { f64::NAN } else { m.max(d) })
}

/// The tolerance of this file's header.
#[track_caller]
pub fn assert_close<T: Storage>(what: &str, kernel: &[T], reference: &[f64], naive: &[f32]) {
    assert_close_but(0.0, what, kernel, reference, naive);
}
/// The same and a derived allowance, for what cancels.
#[track_caller]
pub fn assert_close_but<T: Storage>(slack: f64, what: &str, kernel: &[T], reference: &[f64], naive: &[f32]) {
    let largest = reference.iter().filter(|v| v.is_finite()).fold(0f64, |m, v| m.max(v.abs()));
    let bound = 2.0 * worst(&wide(naive), reference).max(unit_roundoff::<T>() * largest) + slack;
    let error = worst(&values(kernel), reference);
    assert!(error <= bound, "{what} in {}: error {error:.3e}, allowed {bound:.3e}", T::NAME);
}
/// The same for an output that is f32 whatever the inputs are.
#[track_caller]
pub fn assert_close_f32(what: &str, kernel: &[f32], reference: &[f64], naive: &[f32]) {
    assert_close::<f32>(what, kernel, reference, naive);
}

/// A tensor in f64, the definition's precision, of values as they are stored.
pub fn exact<T: Storage>(stored: &[T], sizes: &[usize]) -> Tensor {
    Tensor::of(DType::F64, &values(stored), sizes).expect("a tensor")
}
/// The CPU definition in f64: its result, and the gradients of the leaves for `dy`.
pub fn definition(
    leaves: &[Tensor],
    dy: &[f64],
    op: impl Fn(&[Tensor]) -> qformer::Result<Tensor>,
) -> (Vec<f64>, Vec<Vec<f64>>) {
    let tape = Tape::new();
    let tracked: Vec<Tensor> = leaves.iter().enumerate().map(|(i, t)| tape.leaf(t, i)).collect();
    let y = op(&tracked).expect("the definition");
    let mut grads = Gradients::new();
    let seed = Tensor::of(DType::F64, dy, y.shape().sizes()).expect("dy");
    tape.backward_from(&[(&y, seed)], &mut grads).expect("backward");
    let of = |i: usize| grads.get(i).map_or(Vec::new(), |g| g.slice::<f64>().to_vec());
    (y.to_f64().unwrap(), (0..leaves.len()).map(of).collect())
}

/// A dropout of the crate's convention.
pub fn some_dropout() -> Dropout {
    Dropout { p: 0.1, stream: Stream { seed: 0x0123_4567_89ab_cdef, site: 7, step: 41 } }
}
/// The kernels' five arguments of a dropout.
pub fn drop_args(drop: Option<Dropout>) -> [Arg; 5] {
    let Some(d) = drop else { return [0u64.into(), 0u32.into(), 0u32.into(), 0u32.into(), 1f32.into()] };
    let Stream { seed, step, site } = d.stream;
    [seed.into(), site.into(), step.into(), d.threshold().into(), drop_scale(d).into()]
}
pub fn drop_scale(d: Dropout) -> f32 {
    (1.0 / (1.0 - f64::from(d.p))) as f32
}
/// What element e is multiplied by.
pub fn drop_factor(drop: Option<Dropout>, e: u64) -> f32 {
    let mut factor = [1f32];
    if let Some(d) = drop {
        d.factors(e, &mut factor);
    }
    factor[0]
}
