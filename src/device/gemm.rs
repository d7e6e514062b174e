//! Matmuls on the CPU, by the kernels of the `gemm` crates. The one file that reasons about row and column major.
//!
//! c = beta * c + alpha * a b, each operand a view with a row and a column stride over a slice. The order of every sum
//! depends on the shapes alone, not on the number of threads.

use super::Real;
use gemm_common::Parallelism;
use std::sync::atomic::{AtomicU64, Ordering};

static FLOPS: AtomicU64 = AtomicU64::new(0);

/// A kernel for one element type: m, n, k; c with its column and row stride, and whether it is read; a and b with theirs;
/// alpha, beta of c := alpha c + beta a b; three conjugations, which are for complex numbers; threads.
#[doc(hidden)]
pub type Kernel<T> = unsafe fn(
    usize,
    usize,
    usize,
    *mut T,
    isize,
    isize,
    bool,
    *const T,
    isize,
    isize,
    *const T,
    isize,
    isize,
    T,
    T,
    bool,
    bool,
    bool,
    Parallelism,
);

/// The two element types whose matmuls run here.
pub trait Element: Sized {
    #[doc(hidden)]
    fn kernel() -> Kernel<Self>;
}

impl Element for f32 {
    fn kernel() -> Kernel<f32> {
        gemm_f32::gemm::f32::get_gemm_fn()
    }
}

impl Element for f64 {
    fn kernel() -> Kernel<f64> {
        gemm_f64::gemm::f64::get_gemm_fn()
    }
}

/// Notes a matmul `[m,k]` x `[k,n]` x `[k,n]`: 2 m n k operations.
pub fn count((m, n, k): (usize, usize, usize)) {
    FLOPS.fetch_add(2 * (m * n * k) as u64, Ordering::Relaxed);
}

/// Floating-point operations of all matmuls of this process so far; element-wise work is not counted.
pub fn flops() -> u64 {
    FLOPS.load(Ordering::Relaxed)
}

/// A matrix over a slice: element (i, j) is `data[i * row + j * column]`.
#[derive(Clone, Copy)]
pub struct View<'a, T> {
    /// The elements.
    pub data: &'a [T],
    /// Elements from one row to the next.
    pub row: usize,
    /// Elements from one column to the next.
    pub column: usize,
}

impl<'a, T> View<'a, T> {
    /// Row-major with `width` elements from row to row.
    pub fn rows(data: &'a [T], width: usize) -> Self {
        View { data, row: width, column: 1 }
    }

    /// These elements, rows for columns.
    pub fn transposed(self) -> Self {
        View { data: self.data, row: self.column, column: self.row }
    }
}

/// Elements from the first to the last of an [m,n] view; None where that is beyond any slice.
fn span(m: usize, n: usize, row: usize, column: usize) -> Option<usize> {
    if m == 0 || n == 0 {
        return Some(0);
    }
    (m - 1).checked_mul(row)?.checked_add((n - 1).checked_mul(column)?)?.checked_add(1)
}

/// A stride as the library takes it. Where only one element is along it, it is never used and may be anything.
fn stride(elements: usize, stride: usize) -> isize {
    if elements > 1 { stride as isize } else { 1 }
}

/// c `[m,n]` (row-major, `width` from row to row) = beta * c + alpha * a `[m,k]` b `[k,n]`. With beta = 0, c is not read.
#[allow(clippy::too_many_arguments)]
pub fn gemm<T: Real>(
    (m, n, k): (usize, usize, usize),
    alpha: T,
    a: View<T>,
    b: View<T>,
    beta: T,
    c: &mut [T],
    width: usize,
    parallel: bool,
) {
    let holds = |len: usize, span: Option<usize>| span.is_some_and(|span| span <= len);
    assert!(holds(a.data.len(), span(m, k, a.row, a.column)), "gemm: a is shorter than its shape");
    assert!(holds(b.data.len(), span(k, n, b.row, b.column)), "gemm: b is shorter than its shape");
    assert!(holds(c.len(), span(m, n, width, 1)), "gemm: c is shorter than its shape");
    assert!(m <= 1 || width >= n, "gemm: rows of c overlap");
    if m == 0 || n == 0 {
        return;
    }
    count((m, n, k));
    let threads = if parallel { Parallelism::Rayon(0) } else { Parallelism::None };
    let (a_strides, b_strides) =
        ((stride(k, a.column), stride(m, a.row)), (stride(n, b.column), stride(k, b.row)));
    let (a, b, row) = ((a.data.as_ptr(), a_strides), (b.data.as_ptr(), b_strides), stride(m, width));
    // The micro-kernels prefer columns: rows of c are columns of its transpose, c^T = b^T a^T.
    let turned = |(data, (column, row))| (data, (row, column));
    let ((m, n), (column, row), (a, a_strides), (b, b_strides)) =
        if row > 1 { ((n, m), (row, 1), turned(b), turned(a)) } else { ((m, n), (1, row), a, b) };
    // SAFETY: the asserts above bound every element that the strides can reach, so that strides that are used fit isize; no
    // element of `c` belongs to two rows, which threads write at once, and `c` is borrowed mutably, so it overlaps neither
    // `a` nor `b`.
    unsafe {
        T::kernel()(
            m,
            n,
            k,
            c.as_mut_ptr(),
            column,
            row,
            beta != T::ZERO,
            a,
            a_strides.0,
            a_strides.1,
            b,
            b_strides.0,
            b_strides.1,
            beta,
            alpha,
            false,
            false,
            false,
            threads,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// Whether a 2 x 2 matmul of these views, over four numbers each, is refused.
    fn refused(a: (usize, usize), b: (usize, usize), width: usize) -> bool {
        let (data, mut c) = ([1.0f32; 4], [0.0; 4]);
        let view = |(row, column)| View { data: &data, row, column };
        let run = || gemm((2, 2, 2), 1.0, view(a), view(b), 0.0, &mut c, width, false);
        catch_unwind(AssertUnwindSafe(run)).is_err()
    }

    #[test]
    fn views_that_reach_out_of_their_slices_are_refused() {
        assert!(!refused((2, 1), (1, 2), 2));
        assert!(!refused((0, 1), (1, 0), 2), "rows that are read may be the same");
        // These strides add up to less than 4 if the sum wraps.
        assert!(refused((usize::MAX, 2), (2, 1), 2));
        assert!(refused((2, 1), (1, usize::MAX), 2));
        assert!(refused((2, 1), (2, 1), usize::MAX));
        assert!(refused((2, 1), (2, 1), 1), "threads would write the same numbers");
        assert!(refused((3, 1), (2, 1), 2));
    }

    /// Pictures are computed together on the strength of it (`model::chunks`, which says of which sizes it holds).
    #[test]
    fn a_row_has_the_same_bits_beside_other_rows() {
        for (rows, n, k) in [(65, 64, 1536), (257, 64, 1408), (17, 65, 1537), (17, 16, 512), (197, 7, 6144)] {
            let number = |i: usize| ((i * 7919 + 13) % 4001) as f32 / 2000.0 - 1.0;
            let a: Vec<f32> = (0..6 * rows * k).map(number).collect();
            let b: Vec<f32> = (0..n * k).map(|i| number(i + 5)).collect();
            let product = |from: usize, m: usize, parallel: bool| {
                let mut c = vec![0.5; m * n];
                let (a, b) = (View::rows(&a[from * k..], k), View::rows(&b, k).transposed());
                gemm((m, n, k), 1.0, a, b, 1.0, &mut c, n, parallel);
                c
            };
            let together = product(0, 6 * rows, true);
            for i in 0..6 {
                let own = &together[i * rows * n..][..rows * n];
                assert!(product(i * rows, rows, i % 2 == 0) == own, "rows {i} of {rows} x {n} x {k}");
            }
            let some = product(rows, 3 * rows, true);
            assert!(some == together[rows * n..4 * rows * n], "three of {rows} x {n} x {k}");
        }
    }

    #[test]
    fn a_stride_that_is_never_used_may_be_anything() {
        let (a, b, mut c) = ([1.0, 2.0], [3.0, 4.0], [0.0f64]);
        let odd = usize::MAX - 6;
        let (a, b) = (View { data: &a, row: odd, column: 1 }, View { data: &b, row: 1, column: odd });
        gemm((1, 1, 2), 1.0, a, b, 0.0, &mut c, odd, false);
        assert_eq!(c, [11.0]);
    }
}
