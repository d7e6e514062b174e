//! Matrix products on the CPU, through the `gemm` crate. The one file that reasons about row and column major.
//!
//! c = beta * c + alpha * a b, each operand a view with a row and a column stride over a slice. The order of every sum
//! depends on the shapes alone, not on the number of threads.

use super::Real;

/// A matrix over a slice: element (i, j) is `data[i * row + j * column]`.
#[derive(Clone, Copy)]
pub struct View<'a, T> {
    pub data: &'a [T],
    pub row: usize,
    pub column: usize,
}

impl<'a, T> View<'a, T> {
    /// Row-major with `width` elements from row to row.
    pub fn rows(data: &'a [T], width: usize) -> Self {
        View { data, row: width, column: 1 }
    }

    pub fn transposed(self) -> Self {
        View { data: self.data, row: self.column, column: self.row }
    }
}

fn span(m: usize, n: usize, row: usize, column: usize) -> usize {
    if m == 0 || n == 0 { 0 } else { (m - 1) * row + (n - 1) * column + 1 }
}

/// c [m,n] (row-major, `width` from row to row) = beta * c + alpha * a [m,k] b [k,n]. With beta = 0, c is not read.
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
    assert!(a.data.len() >= span(m, k, a.row, a.column), "gemm: a is shorter than its shape");
    assert!(b.data.len() >= span(k, n, b.row, b.column), "gemm: b is shorter than its shape");
    assert!(c.len() >= span(m, n, width, 1), "gemm: c is shorter than its shape");
    if m == 0 || n == 0 {
        return;
    }
    super::meter::count((m, n, k));
    let threads = if parallel { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
    // SAFETY: the three asserts above bound every element that the strides can reach, and `c` is borrowed mutably, so it
    // overlaps neither `a` nor `b`. T is f32 or f64, which `gemm` knows.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            width as isize,
            beta != T::ZERO,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            beta,
            alpha,
            false,
            false,
            false,
            threads,
        );
    }
}
