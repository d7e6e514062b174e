//! LayerNorm over the last axis.     x, y [R,C]   weight, bias [C]   mean, rstd [R]
//!   y  = n weight + bias,   n = (x - mean) rstd,   rstd = 1 / sqrt(var + eps)   (two-pass variance)
//!   dx = rstd (g - mean(g) - n mean(g n)),   g = dy weight;     dweight = sum_R(dy n);     dbias = sum_R(dy)

use super::{check_dtype, check_shape};
use crate::device::cpu;
use crate::tensor::{Real, Tensor, constant, record};
use crate::{Error, Result, on};

const OP: &str = "layer_norm";

pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let (r, c) = x.rows();
    check_shape(OP, "weight", weight, &[c])?;
    check_shape(OP, "bias", bias, &[c])?;
    check_dtype(OP, x, &[("weight", weight), ("bias", bias)])?;
    check_eps(eps)?;
    on!(x.dtype(), T => {
        let (data, w, b) = (x.data::<T>(), weight.data::<T>(), bias.data::<T>());
        let (mut y, mut stats) = (vec![T::ZERO; r * c], vec![T::ZERO; r * 2]);
        cpu::each_row2((&mut y, c), (&mut stats, 2), #[inline(always)] |i, y, stat| {
            let x = &data[i * c..][..c];
            let (mean, rstd) = statistics(x, eps);
            (stat[0], stat[1]) = (mean, rstd);
            for j in 0..c {
                y[j] = ((x[j] - mean) * rstd).mul_add(w[j], b[j]);
            }
        });
        let (x2, w2) = (x.detach(), weight.detach());
        record(OP, [x, weight, bias], y, x.shape().sizes(), move |dy, grads| {
            let (dy, x, w) = (dy.data::<T>(), x2.data::<T>(), w2.data::<T>());
            if grads.wants(0) {
                grads.add(0, backward_x(dy, x, w, &stats, c))?;
            }
            if grads.wants(1) || grads.wants(2) {
                let sums = backward_w(dy, x, &stats, r, c);
                grads.add(2, sums[c..].to_vec())?;
                grads.add(1, sums[..c].to_vec())?;
            }
            Ok(())
        })
    })
}

/// n = (x - mean) rstd without an affine part; a constant.
pub fn normalize_rows(x: &Tensor, eps: f64) -> Result<Tensor> {
    let (_, c) = x.rows();
    check_eps(eps)?;
    on!(x.dtype(), T => {
        let mut y = x.data::<T>().to_vec();
        cpu::each_row(&mut y, c, #[inline(always)] |_, row| {
            let (mean, rstd) = statistics(row, eps);
            for v in row.iter_mut() {
                *v = (*v - mean) * rstd;
            }
        });
        constant("normalize_rows", &[x], y, x.shape().sizes())
    })
}

fn check_eps(eps: f64) -> Result<()> {
    if eps.is_finite() && eps >= 0.0 {
        return Ok(());
    }
    Err(Error::argument(OP, "eps", "a finite number, at least 0", eps))
}

#[inline(always)]
fn statistics<T: Real>(x: &[T], eps: f64) -> (T, T) {
    let share = T::of(1.0 / x.len() as f64);
    let mean = cpu::sum(x.len(), |j| x[j]) * share;
    let var = cpu::sum(x.len(), |j| (x[j] - mean) * (x[j] - mean)) * share;
    (mean, T::ONE / (var + T::of(eps)).sqrt())
}

fn backward_x<T: Real>(dy: &[T], x: &[T], w: &[T], stats: &[T], c: usize) -> Vec<T> {
    let mut dx = dy.to_vec();
    let share = T::of(1.0 / c as f64);
    cpu::each_row(
        &mut dx,
        c,
        #[inline(always)]
        |i, d| {
            let (x, mean, rstd) = (&x[i * c..][..c], stats[2 * i], stats[2 * i + 1]);
            let w = &w[..c];
            let mean_g = cpu::sum(c, |j| d[j] * w[j]) * share;
            let mean_gn = cpu::sum(c, |j| d[j] * w[j] * (x[j] - mean)) * rstd * share;
            for j in 0..c {
                d[j] = rstd * (d[j] * w[j] - mean_g - (x[j] - mean) * rstd * mean_gn);
            }
        },
    );
    dx
}

/// [dweight, dbias], one after the other.
fn backward_w<T: Real>(dy: &[T], x: &[T], stats: &[T], r: usize, c: usize) -> Vec<T> {
    cpu::sum_rows(
        r,
        2 * c,
        #[inline(always)]
        |i, sums| {
            let (dy, x) = (&dy[i * c..][..c], &x[i * c..][..c]);
            let (mean, rstd) = (stats[2 * i], stats[2 * i + 1]);
            let (dw, db) = sums.split_at_mut(c);
            for j in 0..c {
                dw[j] += dy[j] * ((x[j] - mean) * rstd);
                db[j] += dy[j];
            }
        },
    )
}
