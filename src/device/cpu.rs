//! Loops over rows: in parallel over fixed pieces, vectorised for the machine they run on.
//!
//! Pieces and the order of sums depend on the shapes alone, so results do not depend on the number of threads.
//!
//! A closure handed to these loops becomes part of them only if it is inlined: compiled on its own it is baseline code,
//! where `mul_add` is a call. Those of more than a few operations say `#[inline(always)]`.

use super::Real;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Elements a piece of an element-wise loop has.
const PIECE: usize = 1 << 14;
/// Rows of one partial sum of a column sum.
const SUM_ROWS: usize = 64;

/// Runs a loop compiled for the best vector instructions of this machine (AVX-512, AVX2 or the baseline).
#[inline(always)]
pub fn simd<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// The best vector instructions of this machine, which decide in what order sums are taken and so their last bits.
pub fn instructions() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    return match pulp::Arch::new() {
        pulp::Arch::V3(_) => "AVX2",
        pulp::Arch::Scalar => "SSE2",
        _ => "AVX-512",
    };
    #[cfg(not(target_arch = "x86_64"))]
    return std::env::consts::ARCH;
}

/// `out[i]` = f(`x[i]`)
pub fn map<T: Real>(x: &[T], f: impl Fn(T) -> T + Sync) -> Vec<T> {
    map2(
        x,
        x,
        #[inline(always)]
        |x, _| f(x),
    )
}

/// `out[i]` = f(`a[i]`, `b[i]`)
pub fn map2<T: Real>(a: &[T], b: &[T], f: impl Fn(T, T) -> T + Sync) -> Vec<T> {
    assert_eq!(a.len(), b.len(), "map2: as many on both sides");
    fresh(
        a.len(),
        PIECE,
        #[inline(always)]
        |at, out| {
            for ((o, a), b) in out.iter_mut().zip(&a[at..]).zip(&b[at..]) {
                o.write(f(*a, *b));
            }
        },
    )
}

/// A row `rows` times, one under the other.
pub fn repeat_row<T: Real>(row: &[T], rows: usize) -> Vec<T> {
    let n = row.len().max(1);
    let len = rows.checked_mul(row.len());
    assert!(len.is_some(), "repeat_row: {rows} rows of {} elements are more than memory has", row.len());
    fresh(len.unwrap_or(0), (PIECE / n).max(1) * n, |_, out| {
        for line in out.chunks_exact_mut(n) {
            for (o, x) in line.iter_mut().zip(row) {
                o.write(*x);
            }
        }
    })
}

/// A new vector, written in pieces of `piece` elements: `f(first, part)` writes all of `part`.
fn fresh<T: Real>(len: usize, piece: usize, f: impl Fn(usize, &mut [MaybeUninit<T>]) + Sync) -> Vec<T> {
    let mut out = Vec::with_capacity(len);
    let room = &mut out.spare_capacity_mut()[..len];
    let run = |i: usize, part: &mut [MaybeUninit<T>]| {
        simd(
            #[inline(always)]
            || f(i * piece, part),
        )
    };
    if len <= PIECE {
        room.chunks_mut(piece).enumerate().for_each(|(i, part)| run(i, part));
    } else {
        room.par_chunks_mut(piece).enumerate().for_each(|(i, part)| run(i, part));
    }
    // SAFETY: the pieces are all of 0..len, and each `f` here writes every element of its part.
    unsafe { out.set_len(len) };
    out
}

/// Exact GELU: x F(x), F the normal distribution's integral ([`normal_cdf`]).
#[inline(always)]
pub fn gelu<T: Real>(x: T) -> T {
    x * normal_cdf(x)
}

/// F(x) = (1 + erf(x / sqrt 2)) / 2. Constants stand where they are used: captured by a closure, they would be loaded for
/// every element, and the loop would not be vectorised.
#[inline(always)]
pub fn normal_cdf<T: Real>(x: T) -> T {
    T::of(0.5) * (T::ONE + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf())
}

/// GELU in its tanh form, x (1 + tanh u) / 2 = x / (1 + e^(-2u)),  u = sqrt(2/pi) (x + 0.044715 x^3): what cuBLASLt's
/// epilogue computes. It is off the exact one by at most 4.8e-4.
#[inline(always)]
pub fn gelu_tanh<T: Real>(x: T) -> T {
    let u = T::of(0.797_884_560_802_865_4) * (x + T::of(0.044_715) * x * x * x);
    x / (T::ONE + Real::exp(T::of(-2.0) * u))
}

/// f(&mut `a[i]`, &`b[i]`) for every i.
pub fn zip_mut<T: Real>(a: &mut [T], b: &[T], f: impl Fn(&mut T, &T) + Sync) {
    let run = |a: &mut [T], b: &[T]| {
        simd(
            #[inline(always)]
            || {
                for (a, b) in a.iter_mut().zip(b) {
                    f(a, b);
                }
            },
        );
    };
    if a.len() <= PIECE {
        run(a, b);
    } else {
        a.par_chunks_mut(PIECE).zip(b.par_chunks(PIECE)).for_each(|(a, b)| run(a, b));
    }
}

/// f(row index, row of `out`) for every row of `width` elements, in parallel.
pub fn each_row<T: Real>(out: &mut [T], width: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let rows = (PIECE / width.max(1)).max(1);
    let run = |first: usize, piece: &mut [T]| {
        simd(
            #[inline(always)]
            || {
                for (i, row) in piece.chunks_exact_mut(width).enumerate() {
                    f(first + i, row);
                }
            },
        );
    };
    if width == 0 {
        return;
    }
    if out.len() <= rows * width {
        run(0, out);
    } else {
        out.par_chunks_mut(rows * width).enumerate().for_each(|(i, p)| run(i * rows, p));
    }
}

/// f(row index, row of `a`, row of `b`) for every row of two outputs with as many rows, in parallel.
pub fn each_row2<T: Real, U: Real>(
    (a, wa): (&mut [T], usize),
    (b, wb): (&mut [U], usize),
    f: impl Fn(usize, &mut [T], &mut [U]) + Sync,
) {
    if wa == 0 || wb == 0 {
        return;
    }
    let rows = (PIECE / wa.max(wb)).max(1);
    a.par_chunks_mut(rows * wa).zip(b.par_chunks_mut(rows * wb)).enumerate().for_each(|(p, (a, b))| {
        simd(
            #[inline(always)]
            || {
                for (i, (a, b)) in a.chunks_exact_mut(wa).zip(b.chunks_exact_mut(wb)).enumerate() {
                    f(p * rows + i, a, b);
                }
            },
        );
    });
}

/// Sums over rows, `sums` of them at once: `f(row, sums)` adds row `row`'s terms into `sums` (len elements).
/// Partial sums over 64 rows each are added in their order.
pub fn sum_rows<T: Real>(rows: usize, len: usize, f: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    let partial = |p: usize| {
        let mut sums = vec![T::ZERO; len];
        simd(
            #[inline(always)]
            || {
                for row in p * SUM_ROWS..((p + 1) * SUM_ROWS).min(rows) {
                    f(row, &mut sums);
                }
            },
        );
        sums
    };
    let parts: Vec<Vec<T>> = (0..rows.div_ceil(SUM_ROWS)).into_par_iter().map(partial).collect();
    let mut parts = parts.into_iter();
    let Some(mut total) = parts.next() else { return vec![T::ZERO; len] };
    for part in parts {
        zip_mut(&mut total, &part, |a, b| *a += *b);
    }
    total
}

/// The sums of the columns of x [rows, len].
pub fn column_sums<T: Real>(x: &[T], rows: usize, len: usize) -> Vec<T> {
    sum_rows(rows, len, |row, sums| {
        for (s, x) in sums.iter_mut().zip(&x[row * len..]) {
            *s += *x;
        }
    })
}

/// The sum of `x[i]`, in 16 lanes, added in a fixed tree.
#[inline(always)]
pub fn sum<T: Real>(n: usize, x: impl Fn(usize) -> T) -> T {
    const LANES: usize = 16;
    let mut lanes = [T::ZERO; LANES];
    let whole = n - n % LANES;
    let mut i = 0;
    while i < whole {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += x(i + l);
        }
        i += LANES;
    }
    for (l, lane) in lanes.iter_mut().enumerate().take(n - whole) {
        *lane += x(whole + l);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest `x[i]`; NaN if one of them is NaN; -inf of none.
#[inline(always)]
pub fn max<T: Real>(x: &[T]) -> T {
    const LANES: usize = 16;
    let low = T::of(f64::NEG_INFINITY);
    let pick = |m: T, v: T| if v > m || v.is_nan() { v } else { m };
    let mut lanes = [low; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (m, v) in lanes.iter_mut().zip(chunk) {
            *m = if m.is_nan() { *m } else { pick(*m, *v) };
        }
    }
    let rest = chunks.remainder().iter();
    lanes.iter().chain(rest).fold(low, |m, v| if m.is_nan() { m } else { pick(m, *v) })
}

/// A mutable slice that several tasks write at once, each its own elements.
pub(crate) struct Shared<T>(*mut T, usize);

// SAFETY: a `Shared` only hands out raw pieces through `piece`, whose callers promise that no two tasks overlap.
unsafe impl<T: Send> Send for Shared<T> {}
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub fn new(slice: &mut [T]) -> Shared<T> {
        Shared(slice.as_mut_ptr(), slice.len())
    }

    /// Elements `at .. at + len`.
    ///
    /// # Safety
    /// While the piece lives, no other task reads or writes the elements that its user touches in it.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn piece(&self, at: usize, len: usize) -> &mut [T] {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.1);
        assert!(inside, "shared slice: {at} + {len} is past its end {}", self.1);
        // SAFETY: in bounds by the assert; not aliased in use by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn a_piece_lies_inside_its_slice() {
        let mut numbers = [1, 2, 3, 4];
        let shared = Shared::new(&mut numbers);
        // SAFETY: one thread, one piece at a time.
        let piece = |at, len| catch_unwind(AssertUnwindSafe(|| unsafe { shared.piece(at, len) }.to_vec()));
        assert_eq!(piece(1, 3).ok(), Some(vec![2, 3, 4]));
        assert_eq!(piece(4, 0).ok(), Some(vec![]));
        assert!(piece(1, 4).is_err());
        assert!(piece(2, usize::MAX - 1).is_err(), "a sum that wraps to 0");
        assert!(piece(usize::MAX, 2).is_err());
    }

    #[test]
    fn repeated_rows_are_all_written() {
        assert_eq!(repeat_row(&[1.0f32, 2.0], 3), [1.0, 2.0, 1.0, 2.0, 1.0, 2.0]);
        assert!(repeat_row::<f32>(&[], usize::MAX).is_empty());
        assert!(catch_unwind(|| repeat_row(&[1.0f32; 3], usize::MAX)).is_err());
        let many = repeat_row(&[1.0f64; 5], PIECE);
        assert!(many.len() == 5 * PIECE && many.iter().all(|x| *x == 1.0));
    }

    #[test]
    fn rows_in_pieces_are_the_rows() {
        let mut out = vec![0.0f32; 3 * PIECE];
        each_row(&mut out, 3, |i, row| row.fill(i as f32));
        assert!(out.iter().enumerate().all(|(i, x)| *x == (i / 3) as f32));
        let sums = column_sums(&out, PIECE, 3);
        let sum = (PIECE * (PIECE - 1) / 2) as f32;
        assert!(sums.iter().all(|s| (s - sum).abs() <= 1e-6 * sum));
    }
}
