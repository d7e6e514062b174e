//! A dense layer behind a LayerNorm whose input is a constant.     n [R,K] (normalised rows)   gamma, beta [K]
//!   weight [N,K]   bias [N]   y [R,N]
//!   y = (n gamma + beta) weight^T + bias = n (weight gamma)^T + (bias + weight beta)
//!   With G = dy^T n and s = sum_R(dy):
//!   dweight = G gamma + s beta^T;   dbias = s;   dgamma = sum_N(weight G);   dbeta = weight^T s
//! One matmul backward instead of two: nothing needs the gradient of n.

use crate::device::gpu::{Matmul, Operand};
use crate::device::{cpu, gemm::View, gemm::gemm};
use crate::ops::check::{check_dtype, check_shape};
use crate::ops::gpu::{arrays, column_sum, gradient, gradients_beside, int, same_storage, sum_columns};
use crate::tensor::{Array, Real, Storage, Tensor, record, record_tensor};
use crate::{Error, Result, on};

const OP: &str = "norm_linear";

pub(super) fn after_norm(
    n: &Tensor,
    [gamma, beta]: [&Tensor; 2],
    [weight, bias]: [&Tensor; 2],
) -> Result<Tensor> {
    let (r, k) = n.rows();
    if n.tracked() {
        return Err(
            Error::argument(OP, "n", "a constant", "a tracked tensor").fix("use layer_norm and linear")
        );
    }
    let (out, _) = weight.rows();
    check_shape(OP, "gamma", gamma, &[k])?;
    check_shape(OP, "beta", beta, &[k])?;
    check_shape(OP, "weight", weight, &[out, k])?;
    check_shape(OP, "bias", bias, &[out])?;
    check_dtype(OP, n, &[("gamma", gamma), ("beta", beta), ("weight", weight), ("bias", bias)])?;
    if let Some(arrays) = arrays(OP, [n, gamma, beta, weight, bias])? {
        return on_gpu([gamma, beta, weight, bias], arrays, (r, out, k));
    }
    on!(n.dtype(), T => {
        let kept = [n, gamma, beta, weight].map(Tensor::detach);
        let y = forward::<T>(&kept, bias.data(), (r, out, k));
        record(OP, [gamma, beta, weight, bias], y, &[r, out], move |dy, grads| {
            let dy = dy.data::<T>();
            let [n, gamma, beta, weight] = kept.each_ref().map(|t| t.data::<T>());
            let mut g = vec![T::ZERO; out * k];
            gemm((out, k, r), T::ONE, View::rows(dy, out).transposed(), View::rows(n, k), T::ZERO, &mut g, k, true);
            let s = cpu::column_sums(dy, r, out);
            let sums = cpu::sum_rows(out, 2 * k, #[inline(always)] |o, sums: &mut [T]| {
                let (w, g) = (&weight[o * k..][..k], &g[o * k..][..k]);
                let (dgamma, dbeta) = sums.split_at_mut(k);
                for j in 0..k {
                    dgamma[j] += w[j] * g[j];
                    dbeta[j] += w[j] * s[o];
                }
            });
            grads.add(0, sums[..k].to_vec())?;
            grads.add(1, sums[k..].to_vec())?;
            cpu::each_row(&mut g, k, #[inline(always)] |o, row| {
                for j in 0..k {
                    row[j] = row[j].mul_add(gamma[j], s[o] * beta[j]);
                }
            });
            grads.add(2, g)?;
            grads.add(3, s)
        })
    })
}

fn on_gpu(
    tensors: [&Tensor; 4],
    [n, gamma, beta, weight, bias]: [Array; 5],
    (r, out, k): (usize, usize, usize),
) -> Result<Tensor> {
    let (gpu, storage) = (n.gpu().clone(), n.storage());
    for (name, a) in [("gamma", &gamma), ("beta", &beta), ("weight", &weight), ("bias", &bias)] {
        same_storage(OP, name, a, Storage::F32)?;
    }
    let folded = gpu.array(OP, storage, out * k)?;
    let offset = gpu.array(OP, Storage::F32, out)?;
    let columns = int(k);
    let args = crate::args![&weight, &gamma, &beta, &bias, &folded, &offset, columns];
    // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
    unsafe { gpu.launch(&format!("norm_linear_fold_{}", storage.name()), (out, 1), (256, 1), 0, args) }?;
    let y = gpu.array(OP, storage, r * out)?;
    let offset = offset.cast(OP, storage)?;
    let (a, b, c) = (Operand::rows(&n, k), Operand::rows(&folded, k).transposed(), Operand::rows(&y, out));
    gpu.matmul(&Matmul::of((r, out, k), a, b, c).with_bias(Some(&offset)))?;
    record_tensor(OP, &tensors, Tensor::of_array(y, &[r, out])?, move |dy, grads| {
        let dy = gradient(OP, dy)?.cast(OP, storage)?;
        let g = gpu.array(OP, Storage::F32, out * k)?;
        let (a, b, c) = (Operand::rows(&dy, out).transposed(), Operand::rows(&n, k), Operand::rows(&g, k));
        gpu.matmul(&Matmul::of((out, k, r), a, b, c))?;
        let s = column_sum(OP, &dy, r, out)?;
        let shares = out.div_ceil(64).clamp(1, gpu.blocks());
        let partial = gpu.array(OP, Storage::F32, shares * 2 * k)?;
        let rows = int(out);
        let unfold = |dw: &Array, fresh: bool| {
            let add = i32::from(!fresh);
            let args = crate::args![&weight, &gamma, &beta, &g, &s, dw, &partial, rows, columns, add];
            // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
            unsafe { gpu.launch("norm_linear_unfold", (k.div_ceil(32), shares), (32, 8), 0, args) }
        };
        // The partial sums of gamma and beta are needed without the weight's gradient, too.
        if grads.wants(2) {
            grads.accumulate_array(2, unfold)?;
        } else {
            unfold(&gpu.array(OP, Storage::F32, out * k)?, true)?;
        }
        gradients_beside(OP, &gpu, grads, (&[0, 1], k), |to, add| {
            sum_columns(OP, &partial, (shares, 2 * k), 0, to, add)
        })?;
        grads.add_array(3, s)
    })
}

fn forward<T: Real>(kept: &[Tensor; 4], bias: &[T], (r, out, k): (usize, usize, usize)) -> Vec<T> {
    let [n, gamma, beta, weight] = kept.each_ref().map(|t| t.data::<T>());
    let (mut folded, mut offset) = (weight.to_vec(), bias.to_vec());
    cpu::each_row2(
        (&mut folded, k),
        (&mut offset, 1),
        #[inline(always)]
        |_, w, b| {
            b[0] += cpu::sum(k, |j| w[j] * beta[j]);
            for (w, g) in w.iter_mut().zip(gamma) {
                *w *= *g;
            }
        },
    );
    let mut y = cpu::repeat_row(&offset, r);
    gemm(
        (r, out, k),
        T::ONE,
        View::rows(n, k),
        View::rows(&folded, k).transposed(),
        T::ONE,
        &mut y,
        out,
        true,
    );
    y
}
