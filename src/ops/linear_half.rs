//! A dense layer with a frozen weight in half precision.     x [R,K], a constant   weight [N,K] f16   bias [N]   y [R,N]
//!   y = x weight^T + bias, computed in x's dtype: the weight is converted by tiles of output columns.

use super::check_shape;
use crate::device::{cpu, gemm::View, gemm::gemm};
use crate::tensor::{HalfMatrix, Real, Tensor, constant};
use crate::{Error, Result, on};

const OP: &str = "linear_half";
/// Output columns of a tile: large enough that the product packs x rarely, small enough to stay in a cache.
const TILE: usize = 512;

pub fn linear_half(x: &Tensor, weight: &HalfMatrix, bias: Option<&Tensor>) -> Result<Tensor> {
    let (r, k) = x.rows();
    let [n, wk] = weight.sizes();
    if wk != k {
        return Err(Error::argument(
            OP,
            "weight",
            format!("[{n}, {k}] for x {}", x.shape()),
            format!("[{n}, {wk}]"),
        ));
    }
    if let Some(b) = bias {
        check_shape(OP, "bias", b, &[n])?;
        super::check_dtype(OP, x, &[("bias", b)])?;
    }
    on!(x.dtype(), T => {
        let y = forward::<T>(x.data(), weight, bias.map(Tensor::data), (r, n, k));
        constant(OP, &[x, bias.unwrap_or(x)], y, &[r, n])
    })
}

fn forward<T: Real>(x: &[T], w: &HalfMatrix, b: Option<&[T]>, (r, n, k): (usize, usize, usize)) -> Vec<T> {
    let mut y = vec![T::ZERO; r * n];
    if let Some(b) = b {
        cpu::each_row(&mut y, n, |_, row| row.copy_from_slice(b));
    }
    if r == 0 {
        return y;
    }
    let mut tile = vec![T::ZERO; TILE.min(n) * k];
    for first in (0..n).step_by(TILE) {
        let columns = TILE.min(n - first);
        let part = &mut tile[..columns * k];
        cpu::each_row(part, k, |row, to| w.row(first + row, to));
        let view = View::rows(&*part, k).transposed();
        gemm((r, columns, k), T::ONE, View::rows(x, k), view, T::ONE, &mut y[first..], n, true);
    }
    y
}
