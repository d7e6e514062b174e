//! A dense layer.     x [R,K]   weight [N,K]   bias [N]   y [R,N]
//!   y = x weight^T + bias
//!   dx = dy weight;   dweight = dy^T x;   dbias = sum_R(dy)
//! and GELU of one, in its tanh form, for layers that are not trained.

use super::check::{check_dtype, check_shape};
use super::gpu::{arrays, column_sum_into, gradient, same_storage};
use crate::device::gpu::{Operand, Product};
use crate::device::{cpu, gemm::View, gemm::gemm};
use crate::tensor::{Array, Grads, Real, Tensor, constant, constant_tensor, record, record_tensor};
use crate::{Error, Result, on};

mod after_norm;
mod beside;
mod few_rows;
mod half;

pub use after_norm::norm_linear;
pub use beside::linear_beside;
pub use few_rows::{linear_exact, linear_exact_cached, linear_exact_gelu};
pub use half::linear_half;

const OP: &str = "linear";

pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    dense(x, weight, bias, None)
}

/// The same for a vocabulary that is no multiple of 8, on a GPU: `padded` are weight and bias with rows of zeros up to one, and
/// y gets as many columns. Products are several times as fast so; those columns are 0, and must be in their gradient
/// ([`super::cross_entropy_of`] sees to it).
pub fn linear_padded(x: &Tensor, weight: &Tensor, bias: &Tensor, padded: [&Tensor; 2]) -> Result<Tensor> {
    dense(x, weight, Some(bias), Some(padded))
}

/// GELU of a dense layer in its tanh form (see [`cpu::gelu_tanh`]), on a GPU by the product itself: nothing in between is
/// written, so it has no gradient, and inputs are constants.
pub fn linear_gelu_tanh(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (r, n, k) = check_linear(x, weight, bias)?;
    let inputs = [x, weight, bias.unwrap_or(weight)];
    if let Some([x2, w2, b]) = arrays(OP, inputs)? {
        let y = x2.gpu().array(OP, x2.storage(), r * n)?;
        multiply([&x2, &w2, &y], bias.map(|_| &b), (r, n, k), true)?;
        return constant_tensor(OP, &inputs, Tensor::of_array(y, &[r, n])?);
    }
    on!(x.dtype(), T => {
        let sums = forward::<T>(x.data(), weight.data(), bias.map(Tensor::data), (r, n, k));
        constant(OP, &inputs, cpu::map(&sums, cpu::gelu_tanh), &[r, n])
    })
}

fn dense(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, padded: Option<[&Tensor; 2]>) -> Result<Tensor> {
    let (r, n, k) = check_linear(x, weight, bias)?;
    let has_bias = bias.is_some();
    let [wide, wide_bias] = padded.unwrap_or([weight, bias.unwrap_or(weight)]);
    if let Some([x2, w2, b]) = arrays(OP, [x, wide, wide_bias])? {
        let (_, width, _) = check_linear(x, wide, bias.map(|_| wide_bias))?;
        let y = x2.gpu().array(OP, x2.storage(), r * width)?;
        multiply([&x2, &w2, &y], bias.map(|_| &b), (r, width, k), false)?;
        let y = Tensor::of_array(y, &[r, width])?;
        return record_tensor(OP, &[x, weight, bias.unwrap_or(weight)], y, move |dy, grads| {
            let dy = gradient(OP, dy)?;
            let cast = dy.cast(OP, x2.storage())?;
            grads.accumulate_array(0, |dx, fresh| {
                let (a, b) = (Operand::rows(&cast, width), Operand::rows(&w2, k));
                let c = Operand::rows(dx, k);
                dx.gpu().product(&Product { add: !fresh, ..Product::of((r, k, width), a, b, c) })
            })?;
            weight_gradient(grads, 1, Operand::rows(&cast, width), &x2, (r, n, k))?;
            if has_bias {
                column_sum_into(OP, grads, 2, &dy, (r, n), 0)?;
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

/// y [R,N] = x w^T + bias, or GELU of it, on a GPU. All are stored alike.
fn multiply(
    [x, w, y]: [&Array; 3],
    bias: Option<&Array>,
    (r, n, k): (usize, usize, usize),
    gelu: bool,
) -> Result<()> {
    same_storage(OP, "weight", w, x.storage())?;
    if let Some(b) = bias {
        same_storage(OP, "bias", b, x.storage())?;
    }
    let (a, b, c) = (Operand::rows(x, k), Operand::rows(w, k).transposed(), Operand::rows(y, n));
    let bias = bias.map(Array::pointer);
    x.gpu().product(&Product { bias, gelu, ..Product::of((r, n, k), a, b, c) })
}

fn forward<T: Real>(x: &[T], w: &[T], b: Option<&[T]>, (r, n, k): (usize, usize, usize)) -> Vec<T> {
    let mut y = b.map_or_else(|| vec![T::ZERO; r * n], |b| cpu::repeat_row(b, r));
    let beta = if b.is_some() { T::ONE } else { T::ZERO };
    gemm((r, n, k), T::ONE, View::rows(x, k), View::rows(w, k).transposed(), beta, &mut y, n, true);
    y
}

/// The arguments of a dense layer: R, N and K.
fn check_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<(usize, usize, usize)> {
    let (r, k) = x.rows();
    let &[n, wk] = weight.shape().sizes() else {
        return Err(Error::argument("linear", "weight", "[out, in]", weight.shape()));
    };
    if wk != k {
        return Err(Error::argument(
            "linear",
            "weight",
            format!("[{n}, {k}] for x {}", x.shape()),
            weight.shape(),
        ));
    }
    if let Some(b) = bias {
        check_shape("linear", "bias", b, &[n])?;
        check_dtype("linear", x, &[("bias", b)])?;
    }
    check_dtype("linear", x, &[("weight", weight)])?;
    Ok((r, n, k))
}

/// A dense layer's dweight [N,K] = dy^T x, on a GPU, into the gradient of input i.
fn weight_gradient(
    grads: &mut Grads,
    i: usize,
    dy: Operand,
    x: &Array,
    (r, n, k): (usize, usize, usize),
) -> Result<()> {
    grads.accumulate_array(i, |dw, fresh| {
        if r == 0 && fresh {
            return dw.zero();
        }
        let (a, b, c) = (dy.transposed(), Operand::rows(x, k), Operand::rows(dw, k));
        x.gpu().product(&Product { add: !fresh, ..Product::of((n, k, r), a, b, c) })
    })
}
