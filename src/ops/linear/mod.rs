//! A dense layer.     x [R,K]   weight [N,K]   bias [N]   y [R,N]
//!   y = x weight^T + bias
//!   dx = dy weight;   dweight = dy^T x;   dbias = sum_R(dy)
//! and GELU of one, in its tanh form, for layers that are not trained.

use crate::device::gpu::{Operand, Product};
use crate::device::{cpu, gemm::View, gemm::gemm};
use crate::tensor::{Array, Real, Tensor, constant, constant_tensor, record, record_tensor};
use crate::{Result, on};

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
    let (r, n, k) = super::check_linear(x, weight, bias)?;
    let inputs = [x, weight, bias.unwrap_or(weight)];
    if let Some([x2, w2, b]) = super::arrays(OP, inputs)? {
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
    let (r, n, k) = super::check_linear(x, weight, bias)?;
    let has_bias = bias.is_some();
    let [wide, wide_bias] = padded.unwrap_or([weight, bias.unwrap_or(weight)]);
    if let Some([x2, w2, b]) = super::arrays(OP, [x, wide, wide_bias])? {
        let (_, width, _) = super::check_linear(x, wide, bias.map(|_| wide_bias))?;
        let y = x2.gpu().array(OP, x2.storage(), r * width)?;
        multiply([&x2, &w2, &y], bias.map(|_| &b), (r, width, k), false)?;
        let y = Tensor::of_array(y, &[r, width])?;
        return record_tensor(OP, &[x, weight, bias.unwrap_or(weight)], y, move |dy, grads| {
            let dy = super::gradient(OP, dy)?;
            let cast = dy.cast(OP, x2.storage())?;
            grads.accumulate_array(0, |dx, fresh| {
                let (a, b) = (Operand::rows(&cast, width), Operand::rows(&w2, k));
                let c = Operand::rows(dx, k);
                dx.gpu().product(&Product { add: !fresh, ..Product::of((r, k, width), a, b, c) })
            })?;
            super::weight_gradient(grads, 1, Operand::rows(&cast, width), &x2, (r, n, k))?;
            if has_bias {
                super::column_sum_into(OP, grads, 2, &dy, (r, n), 0)?;
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
    super::same_storage(OP, "weight", w, x.storage())?;
    if let Some(b) = bias {
        super::same_storage(OP, "bias", b, x.storage())?;
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
