//! Three dense layers of one input, side by side, on a GPU.     x [R,K]   weights [N,K]   biases [N]   y [R,3N]
//!   y = x [w0; w1; w2]^T + [b0, b1, b2];   the gradients are those of `linear`
//!
//! Where the weights lie one after the other in memory, as [`crate::nn::Params`] puts them, that is one product forward and
//! one for dx. Attention takes its columns where they are.

use super::{check_linear, weight_gradient};
use crate::device::gpu::{Operand, Product};
use crate::ops::gpu::{arrays, column_sum_into, gradient, same_storage};
use crate::tensor::{Array, Grads, Tensor, record_tensor};
use crate::{Error, Result};

const OP: &str = "linear";

/// Weights and biases that are one matrix and one row in memory, and where their columns begin in y.
#[derive(Clone)]
struct Run {
    weight: Array,
    bias: Array,
    width: usize,
    column: usize,
}

/// Whether b begins where a, of `len` elements, ends.
fn follows(a: &Array, len: usize, b: &Array) -> bool {
    a.pointer().wrapping_byte_add(len * a.storage().bytes()) == b.pointer()
}

/// A layer is its weight and its bias; all weights have the same shape.
pub fn linear_beside(x: &Tensor, layers: [[&Tensor; 2]; 3]) -> Result<Tensor> {
    let [[w0, b0], [w1, b1], [w2, b2]] = layers;
    let (r, n, k) = check_linear(x, w0, Some(b0))?;
    for (w, b) in [(w1, b1), (w2, b2)] {
        if check_linear(x, w, Some(b))? != (r, n, k) {
            return Err(Error::argument(OP, "weights", format!("[{n}, {k}] each"), w.shape()));
        }
    }
    let inputs = [x, w0, b0, w1, b1, w2, b2];
    let Some(arrays) = arrays(OP, inputs)? else {
        return Err(Error::argument(OP, "x", "a tensor on a GPU", "one on the CPU"));
    };
    for array in &arrays {
        same_storage(OP, "weights and biases", array, arrays[0].storage())?;
    }
    let [x2, a0, c0, a1, c1, a2, c2] = arrays;
    let mut runs: Vec<Run> = Vec::new();
    for (i, (weight, bias)) in [(a0, c0), (a1, c1), (a2, c2)].into_iter().enumerate() {
        match runs.last_mut() {
            Some(run)
                if follows(&run.weight, run.width * k, &weight) && follows(&run.bias, run.width, &bias) =>
            {
                run.width += n;
            }
            _ => runs.push(Run { weight, bias, width: n, column: i * n }),
        }
    }
    let y = x2.gpu().array(OP, x2.storage(), r * 3 * n)?;
    for run in &runs {
        let (a, b) = (Operand::rows(&x2, k), Operand::rows(&run.weight, k).transposed());
        let c = Operand::columns(&y, 3 * n, run.column);
        x2.gpu().product(&Product {
            bias: Some(run.bias.pointer()),
            ..Product::of((r, run.width, k), a, b, c)
        })?;
    }
    record_tensor(OP, &inputs, Tensor::of_array(y, &[r, 3 * n])?, move |dy, grads| {
        let dy = gradient(OP, dy)?.cast(OP, x2.storage())?;
        backward(&dy, &x2, &runs, (r, n, k), grads)
    })
}

fn backward(
    dy: &Array,
    x: &Array,
    runs: &[Run],
    (r, n, k): (usize, usize, usize),
    grads: &mut Grads,
) -> Result<()> {
    let gpu = dy.gpu();
    grads.accumulate_array(0, |dx, fresh| {
        for (i, run) in runs.iter().enumerate() {
            let (a, b) = (Operand::columns(dy, 3 * n, run.column), Operand::rows(&run.weight, k));
            let (c, add) = (Operand::rows(dx, k), !fresh || i > 0);
            gpu.product(&Product { add, ..Product::of((r, k, run.width), a, b, c) })?;
        }
        Ok(())
    })?;
    for i in 0..3 {
        let part = Operand::columns(dy, 3 * n, i * n);
        weight_gradient(grads, 1 + 2 * i, part, x, (r, n, k))?;
        column_sum_into(OP, grads, 2 + 2 * i, dy, (r, n), i * n)?;
    }
    Ok(())
}
