//! What the kernel tests share: storage types, random inputs, running one launch under every schedule, and the tolerance.
//!
//! Tolerance, after FlashAttention's tests: with `reference` in f64 and `naive` the plain formula computed in the storage
//! type (rounded after every step, as PyTorch does it), the kernel must satisfy
//! `max|kernel - reference| <= 2 max(max|naive - reference|, max|round(reference) - reference|)`.
//! The second term is the rounding of the result, which no implementation can avoid, should the naive one be lucky.

use qformer::device::host::{self, Memory, Schedule};
use qformer::device::launch::{Arg, Launch};

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
pub fn values<T: Storage>(stored: &[T]) -> Vec<f64> {
    stored.iter().map(|v| v.get()).collect()
}

/// Asymmetric, repeatable inputs: a mixture of small values and a few large ones, from splitmix64.
pub fn random<T: Storage>(n: usize, seed: u64, scale: f64) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..n).map(|_| T::of(scale * ((next() + next() + next() - 1.5) * 1.6 + 0.1))).collect()
}

/// Uploads a slice.
pub fn on_device<T: bytemuck::Pod>(values: &[T]) -> Memory {
    Memory::from_slice(values).expect("memory")
}
/// Fresh memory for n elements of type T.
pub fn fresh<T>(n: usize) -> Memory {
    Memory::new(n * size_of::<T>()).expect("memory")
}

pub fn launch_of(kernel: &str, grid: [u32; 3], block: [u32; 3]) -> Launch<'_> {
    Launch { kernel, grid, block, shared: 0 }
}

/// One launch under one schedule.
pub fn run(launch: &Launch, args: &[Arg], schedule: Schedule) {
    // SAFETY: every test passes buffers of the sizes the kernel's header asks for.
    unsafe { host::launch(launch, args, schedule) }.unwrap_or_else(|e| panic!("{schedule:?}: {e}"));
}

/// Runs `once` under every schedule; all must give the same bytes. Returns those of the first.
pub fn everywhere<R: PartialEq>(once: impl Fn(Schedule) -> R) -> R {
    let mut schedules = Schedule::several(6).into_iter();
    let first = once(schedules.next().expect("schedules"));
    for schedule in schedules {
        assert!(
            once(schedule) == first,
            "another result under {schedule:?}: the kernel is not deterministic"
        );
    }
    first
}

/// The largest |a - b|; NaN where one has a NaN or an infinity that the other has not.
pub fn worst(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let same = |x: f64, y: f64| x == y || (x.is_nan() && y.is_nan());
    let differences = a.iter().zip(b).map(|(&x, &y)| if same(x, y) { 0.0 } else { (x - y).abs() });
    differences.fold(0.0, |m: f64, d| if m.is_nan() || d.is_nan() { f64::NAN } else { m.max(d) })
}

/// The tolerance of this file's header.
pub fn assert_close<T: Storage>(what: &str, kernel: &[f64], reference: &[f64], naive: &[f64]) {
    let stored: Vec<f64> = reference.iter().map(|&v| round::<T>(v)).collect();
    let bound = 2.0 * worst(naive, reference).max(worst(&stored, reference));
    let error = worst(kernel, reference);
    assert!(error <= bound, "{what} in {}: error {error:.3e}, allowed {bound:.3e}", T::NAME);
}

/// Philox4x32-10 (Salmon et al. 2011), for the dropout masks.
pub fn philox(key: [u32; 2], mut c: [u32; 4]) -> [u32; 4] {
    let (mut k0, mut k1) = (key[0], key[1]);
    for _ in 0..10 {
        let a = u64::from(c[0]) * 0xD251_1F53;
        let b = u64::from(c[2]) * 0xCD9E_8D57;
        c = [(b >> 32) as u32 ^ c[1] ^ k0, b as u32, (a >> 32) as u32 ^ c[3] ^ k1, a as u32];
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    c
}

/// The crate's dropout convention; p = 0 keeps everything.
#[derive(Clone, Copy)]
pub struct Dropout {
    pub p: f64,
    pub seed: u64,
    pub site: u32,
    pub step: u32,
}
impl Dropout {
    pub const NONE: Dropout = Dropout { p: 0.0, seed: 0, site: 0, step: 0 };
    pub const SOME: Dropout = Dropout { p: 0.1, seed: 0x0123_4567_89ab_cdef, site: 7, step: 41 };

    pub fn threshold(&self) -> u32 {
        (self.p * 4_294_967_296.0).floor() as u32
    }
    pub fn scale(&self) -> f64 {
        f64::from((1.0 / (1.0 - self.p)) as f32)
    }
    /// What element e is multiplied by.
    pub fn factor(&self, e: u64) -> f64 {
        let four = e / 4;
        let words = philox(
            [self.seed as u32, (self.seed >> 32) as u32],
            [four as u32, (four >> 32) as u32, self.site, self.step],
        );
        if words[(e % 4) as usize] >= self.threshold() { self.scale() } else { 0.0 }
    }
    pub fn args(&self) -> [Arg; 5] {
        [
            self.seed.into(),
            self.site.into(),
            self.step.into(),
            self.threshold().into(),
            (self.scale() as f32).into(),
        ]
    }
}
