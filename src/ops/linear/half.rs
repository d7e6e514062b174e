//! A dense layer with a frozen weight in half precision.     x [R,K], a constant   weight [N,K] f16   bias [N]   y [R,N]
//!   y = x weight^T + bias, computed in x's dtype: the weight is converted by tiles of output columns, turned as the
//! matmul wants it, so that it need not be copied once more.

use crate::device::{cpu, gemm::View, gemm::gemm};
use crate::ops::check::{check_dtype, check_shape};
use crate::tensor::{HalfMatrix, Real, Tensor, constant};
use crate::{Error, Result, on};
use rayon::prelude::*;

const OP: &str = "linear_half";
/// Output columns of a tile, which one thread computes: as wide as the widest kernel of a matmul.
const TILE: usize = 64;
/// Terms of the sums that are converted at once: a tile of them stays in a cache.
const DEPTH: usize = 1536;

pub(super) fn linear_half(x: &Tensor, weight: &HalfMatrix, bias: Option<&Tensor>) -> Result<Tensor> {
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
        check_dtype(OP, x, &[("bias", b)])?;
    }
    on!(x.dtype(), T => {
        let y = forward::<T>(x.data(), weight, bias.map(Tensor::data), (r, n, k));
        constant(OP, &[x, bias.unwrap_or(x)], y, &[r, n])
    })
}

fn forward<T: Real>(x: &[T], w: &HalfMatrix, b: Option<&[T]>, (r, n, k): (usize, usize, usize)) -> Vec<T> {
    if r == 0 || n == 0 {
        return Vec::new();
    }
    // Tile by tile [R,TILE]: a thread's part is contiguous.
    let mut tiles = vec![T::ZERO; r * n];
    let room = || vec![T::ZERO; TILE * DEPTH.min(k)];
    tiles.par_chunks_mut(r * TILE).enumerate().for_each_init(room, |part, (t, tile)| {
        let (first, columns) = (t * TILE, tile.len() / r);
        for at in (0..k).step_by(DEPTH) {
            let depth = DEPTH.min(k - at);
            let part = &mut part[..columns * depth];
            w.turned(first..first + columns, at..at + depth, part);
            let view = View { data: &x[at..], row: k, column: 1 };
            let beta = if at == 0 { T::ZERO } else { T::ONE };
            gemm((r, columns, depth), T::ONE, view, View::rows(part, columns), beta, tile, columns, false);
        }
    });
    let mut y = vec![T::ZERO; r * n];
    cpu::each_row(&mut y, n, |i, row| {
        for (t, to) in row.chunks_mut(TILE).enumerate() {
            let from = &tiles[t * TILE * r + i * to.len()..][..to.len()];
            match b {
                Some(b) => to.iter_mut().zip(from).zip(&b[t * TILE..]).for_each(|((y, x), b)| *y = *x + *b),
                None => to.copy_from_slice(from),
            }
        }
    });
    y
}
