//! A dense layer.     x [R,K]   weight [N,K]   bias [N]   y [R,N]
//!   y = x weight^T + bias
//!   dx = dy weight;   dweight = dy^T x;   dbias = sum_R(dy)

use super::{check_dtype, check_shape};
use crate::device::gpu::{Operand, Product};
use crate::device::{cpu, gemm::View, gemm::gemm, meter};
use crate::tensor::{Array, Real, Tensor, constant, constant_tensor, record, record_tensor};
use crate::{Error, Result, on};
use rayon::prelude::*;

const OP: &str = "linear";

fn check(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<(usize, usize, usize)> {
    let (r, k) = x.rows();
    let &[n, wk] = weight.shape().sizes() else {
        return Err(Error::argument(OP, "weight", "[out, in]", weight.shape()));
    };
    if wk != k {
        return Err(Error::argument(OP, "weight", format!("[{n}, {k}] for x {}", x.shape()), weight.shape()));
    }
    if let Some(b) = bias {
        check_shape(OP, "bias", b, &[n])?;
        check_dtype(OP, x, &[("bias", b)])?;
    }
    check_dtype(OP, x, &[("weight", weight)])?;
    Ok((r, n, k))
}

pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (r, n, k) = check(x, weight, bias)?;
    let has_bias = bias.is_some();
    if let Some([x2, w2, b]) = super::arrays(OP, [x, weight, bias.unwrap_or(weight)])? {
        let y = x2.gpu().array(OP, x2.storage(), r * n)?;
        multiply([&x2, &w2, &y], bias.map(|_| &b), (r, n, k))?;
        let y = Tensor::of_array(y, &[r, n])?;
        return record_tensor(OP, &[x, weight, bias.unwrap_or(weight)], y, move |dy, grads| {
            let dy = super::gradient(OP, dy)?;
            backward_on_gpu(&dy, [&x2, &w2], (r, n, k), grads)?;
            if has_bias && grads.wants(2) {
                super::column_sum_into(OP, grads, 2, &dy, (r, n))?;
            }
            Ok(())
        });
    }
    on!(x.dtype(), T => {
        let y = forward::<T>(x.data(), weight.data(), bias.map(Tensor::data), (r, n, k));
        let (x2, w2) = (x.detach(), weight.detach());
        record(OP, [x, weight, bias.unwrap_or(weight)], y, &[r, n], move |dy, grads| {
            let dy = dy.data::<T>();
            if grads.wants(0) {
                let mut dx = vec![T::ZERO; r * k];
                let (a, b) = (View::rows(dy, n), View::rows(w2.data::<T>(), k));
                gemm((r, k, n), T::ONE, a, b, T::ZERO, &mut dx, k, true);
                grads.add(0, dx)?;
            }
            grads.accumulate::<T>(1, |dw, fresh| {
                let beta = if fresh { T::ZERO } else { T::ONE };
                let (a, b) = (View::rows(dy, n).transposed(), View::rows(x2.data::<T>(), k));
                gemm((n, k, r), T::ONE, a, b, beta, dw, k, true);
                Ok(())
            })?;
            if has_bias && grads.wants(2) {
                grads.add(2, cpu::column_sums(dy, r, n))?;
            }
            Ok(())
        })
    })
}

/// y [R,N] = x w^T + bias on a GPU. All are stored alike.
fn multiply([x, w, y]: [&Array; 3], bias: Option<&Array>, (r, n, k): (usize, usize, usize)) -> Result<()> {
    super::same_storage(OP, "weight", w, x.storage())?;
    if let Some(b) = bias {
        super::same_storage(OP, "bias", b, x.storage())?;
    }
    x.gpu().product(&Product {
        sizes: (r, n, k),
        a: Operand::rows(x, k),
        b: Operand::rows(w, k).transposed(),
        c: Operand::rows(y, n),
        bias: bias.map(Array::pointer),
        add: false,
    })
}

fn backward_on_gpu(
    dy: &Array,
    [x, w]: [&Array; 2],
    (r, n, k): (usize, usize, usize),
    grads: &mut crate::tensor::Grads,
) -> Result<()> {
    let gpu = dy.gpu();
    let dy = &dy.cast(OP, x.storage())?;
    if grads.wants(0) {
        let dx = gpu.array(OP, x.storage(), r * k)?;
        let (a, b, c) = (Operand::rows(dy, n), Operand::rows(w, k), Operand::rows(&dx, k));
        gpu.product(&Product { sizes: (r, k, n), a, b, c, bias: None, add: false })?;
        grads.add_array(0, dx)?;
    }
    if grads.wants(1) {
        let (a, b) = (Operand::rows(dy, n).transposed(), Operand::rows(x, k));
        grads.accumulate_array(1, |dw, fresh| {
            if r == 0 && fresh {
                return dw.zero();
            }
            let c = Operand::rows(dw, k);
            gpu.product(&Product { sizes: (n, k, r), a, b, c, bias: None, add: !fresh })
        })?;
    }
    Ok(())
}

fn forward<T: Real>(x: &[T], w: &[T], b: Option<&[T]>, (r, n, k): (usize, usize, usize)) -> Vec<T> {
    let mut y = b.map_or_else(|| vec![T::ZERO; r * n], |b| cpu::repeat_row(b, r));
    let beta = if b.is_some() { T::ONE } else { T::ZERO };
    gemm((r, n, k), T::ONE, View::rows(x, k), View::rows(w, k).transposed(), beta, &mut y, n, true);
    y
}

/// The same product for inference, each row summed in an order that does not depend on how many rows there are: an
/// image's result is then the same bits in any batch. Made for few rows (decoding), where reading the weights is the cost.
pub fn linear_exact(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (r, n, k) = check(x, weight, bias)?;
    if let Some([x2, w, b]) = super::arrays(OP, [x, weight, bias.unwrap_or(weight)])? {
        let y = exact_on_gpu([&x2, &w], bias.map(|_| &b), (r, n, k))?;
        return constant_tensor(OP, &[x, weight, bias.unwrap_or(weight)], Tensor::of_array(y, &[r, n])?);
    }
    on!(x.dtype(), T => {
        let y = exact::<T>(x.data(), weight.data(), bias.map(Tensor::data), (r, n, k));
        constant(OP, &[x, weight, bias.unwrap_or(weight)], y, &[r, n])
    })
}

/// On a GPU: rows of a product, which is never of another size; a row's sums then do not depend on its neighbours.
const ROWS: usize = 32;

fn exact_on_gpu(
    [x, w]: [&Array; 2],
    bias: Option<&Array>,
    (r, n, k): (usize, usize, usize),
) -> Result<Array> {
    let gpu = x.gpu();
    let y = gpu.array(OP, x.storage(), r * n)?;
    for first in (0..r).step_by(ROWS) {
        let rows = ROWS.min(r - first);
        let (from, to) = (x.part(first * k..(first + rows) * k)?, y.part(first * n..(first + rows) * n)?);
        // Slices that are aligned like whole arrays: the library chooses its algorithm by that, too.
        let aligned = |a: &Array| (a.pointer() as usize).is_multiple_of(256);
        if rows == ROWS && aligned(&from) && aligned(&to) {
            multiply([&from, w, &to], bias, (ROWS, n, k))?;
            continue;
        }
        let (whole, out) = (gpu.zeros(OP, x.storage(), ROWS * k)?, gpu.array(OP, x.storage(), ROWS * n)?);
        whole.part(0..rows * k)?.copy_from(&from)?;
        multiply([&whole, w, &out], bias, (ROWS, n, k))?;
        to.copy_from(&out.part(0..rows * n)?)?;
    }
    Ok(y)
}

/// Output columns a task computes for all rows, so that a weight row is read from memory once.
const COLUMNS: usize = 64;

fn exact<T: Real>(x: &[T], w: &[T], b: Option<&[T]>, (r, n, k): (usize, usize, usize)) -> Vec<T> {
    meter::count((r, n, k));
    let mut yt = vec![T::ZERO; n * r]; // [N,R]: a task's part is contiguous
    yt.par_chunks_mut(COLUMNS * r.max(1)).enumerate().for_each(|(c, part)| {
        cpu::simd(
            #[inline(always)]
            || {
                for (j, out) in part.chunks_exact_mut(r).enumerate() {
                    let col = c * COLUMNS + j;
                    let wj = &w[col * k..(col + 1) * k];
                    let bias = b.map_or(T::ZERO, |b| b[col]);
                    for (i, o) in (0..r).step_by(4).zip(out.chunks_mut(4)) {
                        let x = &x[i * k..(i + o.len()) * k];
                        match o.len() {
                            4 => write_dots::<T, 4>(o, x, wj, bias),
                            3 => write_dots::<T, 3>(o, x, wj, bias),
                            2 => write_dots::<T, 2>(o, x, wj, bias),
                            _ => write_dots::<T, 1>(o, x, wj, bias),
                        }
                    }
                }
            },
        );
    });
    let mut y = vec![T::ZERO; r * n];
    cpu::each_row(&mut y, n, |i, row| {
        for (j, y) in row.iter_mut().enumerate() {
            *y = yt[j * r + i];
        }
    });
    y
}

/// out[i] = x_i w + bias for M rows x: the weights are read once for all of them.
#[inline(always)]
fn write_dots<T: Real, const M: usize>(out: &mut [T], x: &[T], w: &[T], bias: T) {
    let k = w.len();
    let rows = std::array::from_fn::<_, M, _>(
        #[inline(always)]
        |i| &x[i * k..(i + 1) * k],
    );
    for (o, d) in out.iter_mut().zip(dots(rows, w)) {
        *o = d + bias;
    }
}

/// The products of M rows with one, each summed in 32 lanes and then lane by lane in a fixed tree.
#[inline(always)]
fn dots<T: Real, const M: usize>(x: [&[T]; M], w: &[T]) -> [T; M] {
    const LANES: usize = 32;
    let mut acc = [[T::ZERO; LANES]; M];
    let whole = w.len() - w.len() % LANES;
    let mut at = 0;
    while at < whole {
        let wv = &w[at..at + LANES];
        for (a, x) in acc.iter_mut().zip(&x) {
            let xv = &x[at..at + LANES];
            for l in 0..LANES {
                a[l] = wv[l].mul_add(xv[l], a[l]);
            }
        }
        at += LANES;
    }
    let mut out = [T::ZERO; M];
    // A copy: lanes with an index that is not known would keep the sums above in memory, and them from being vectors.
    let mut sums = acc;
    for ((o, a), x) in out.iter_mut().zip(&mut sums).zip(&x) {
        for l in 0..w.len() - whole {
            a[l] = w[whole + l].mul_add(x[whole + l], a[l]);
        }
        let mut width = LANES / 2;
        while width > 0 {
            for l in 0..width {
                a[l] += a[l + width];
            }
            width /= 2;
        }
        *o = a[0];
    }
    out
}
