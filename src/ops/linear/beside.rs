//! Three dense layers of one input, side by side.     x [R,K]   weights [N,K]   biases [N]   y [R,3N]
//!   y = x [w0; w1; w2]^T + [b0, b1, b2];   the gradients are those of `linear`
//!
//! On a GPU, where the weights lie one after the other in memory, as [`crate::nn::Params`] puts them, that is one matmul
//! forward and one for dx. Attention takes its columns where they are.

use super::{check_linear, weight_gradient};
use crate::device::gpu::{Matmul, Operand};
use crate::device::{cpu, gemm::View, gemm::gemm};
use crate::ops::gpu::{arrays, gradient, gradients_beside, same_storage, sum_columns};
use crate::tensor::{Array, Grads, Real, Tensor, record_tensor};
use crate::{Error, Result, on};

const OP: &str = "linear";

/// Weights and biases that are one matrix and one row in memory, and where their columns begin in y.
#[derive(Clone)]
struct Run {
    weight: Array,
    bias: Array,
    width: usize,
    column: usize,
}

/// A layer is its weight and its bias; all weights have the same shape.
pub(super) fn beside(x: &Tensor, layers: [[&Tensor; 2]; 3]) -> Result<Tensor> {
    let [[w0, b0], [w1, b1], [w2, b2]] = layers;
    let (r, n, k) = check_linear(x, w0, Some(b0))?;
    for (w, b) in [(w1, b1), (w2, b2)] {
        if check_linear(x, w, Some(b))? != (r, n, k) {
            return Err(Error::argument(OP, "weights", format!("[{n}, {k}] each"), w.shape()));
        }
    }
    let inputs = [x, w0, b0, w1, b1, w2, b2];
    let Some(arrays) = arrays(OP, inputs)? else {
        return on!(x.dtype(), T => on_cpu::<T>(inputs, (r, n, k)));
    };
    for array in &arrays {
        same_storage(OP, "weights and biases", array, arrays[0].storage())?;
    }
    let [x2, a0, c0, a1, c1, a2, c2] = arrays;
    let mut runs: Vec<Run> = Vec::new();
    for (i, (weight, bias)) in [(a0, c0), (a1, c1), (a2, c2)].into_iter().enumerate() {
        let joined = runs.last().and_then(|run| Some((run.weight.joined(&weight)?, run.bias.joined(&bias)?)));
        match (runs.last_mut(), joined) {
            (Some(run), Some((weight, bias))) => {
                (run.weight, run.bias, run.width) = (weight, bias, run.width + n);
            }
            _ => runs.push(Run { weight, bias, width: n, column: i * n }),
        }
    }
    let y = x2.gpu().array(OP, x2.storage(), r * 3 * n)?;
    for run in &runs {
        let (a, b) = (Operand::rows(&x2, k), Operand::rows(&run.weight, k).transposed());
        let c = Operand::columns(&y, 3 * n, run.column);
        x2.gpu().matmul(&Matmul::of((r, run.width, k), a, b, c).with_bias(Some(&run.bias)))?;
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
            gpu.matmul(&Matmul::of((r, k, run.width), a, b, c).added(add))?;
        }
        Ok(())
    })?;
    for i in 0..3 {
        let part = Operand::columns(dy, 3 * n, i * n);
        weight_gradient(grads, 1 + 2 * i, part, x, (r, n, k))?;
    }
    gradients_beside(OP, gpu, grads, (&[2, 4, 6], n), |to, add| sum_columns(OP, dy, (r, 3 * n), 0, to, add))
}

/// The definition: the columns of each layer by a matmul of its own.
fn on_cpu<T: Real>(inputs: [&Tensor; 7], (r, n, k): (usize, usize, usize)) -> Result<Tensor> {
    let width = 3 * n;
    let [x, w0, b0, w1, b1, w2, b2] = inputs;
    let row = [b0, b1, b2].map(|b| b.data::<T>()).concat();
    let mut y = cpu::repeat_row(&row, r);
    for (i, w) in [w0, w1, w2].into_iter().enumerate() {
        let (a, b) = (View::rows(x.data::<T>(), k), View::rows(w.data::<T>(), k).transposed());
        let at = (i * n).min(y.len());
        gemm((r, n, k), T::ONE, a, b, T::ONE, &mut y[at..], width, true);
    }
    let (x, weights) = (x.detach(), [w0, w1, w2].map(Tensor::detach));
    record_tensor(OP, &inputs, Tensor::new(y, &[r, width])?, move |dy, grads| {
        let (dy, x) = (dy.data::<T>(), x.data::<T>());
        let part = |i: usize| View { data: &dy[(i * n).min(dy.len())..], row: width, column: 1 };
        if grads.wants(0) {
            let mut dx = vec![T::ZERO; r * k];
            for (i, w) in weights.iter().enumerate() {
                let beta = if i == 0 { T::ZERO } else { T::ONE };
                gemm((r, k, n), T::ONE, part(i), View::rows(w.data::<T>(), k), beta, &mut dx, k, true);
            }
            grads.add(0, dx)?;
        }
        let sums = cpu::column_sums(dy, r, width);
        for i in 0..3 {
            grads.accumulate::<T>(1 + 2 * i, |dw, fresh| {
                let beta = if fresh { T::ZERO } else { T::ONE };
                gemm((n, k, r), T::ONE, part(i).transposed(), View::rows(x, k), beta, dw, k, true);
                Ok(())
            })?;
            if grads.wants(2 + 2 * i) {
                grads.add(2 + 2 * i, sums[i * n..][..n].to_vec())?;
            }
        }
        Ok(())
    })
}
