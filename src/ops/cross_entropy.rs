//! Softmax cross-entropy, the mean over the counted rows.     x [R,V]   loss []
//!   with classes t and label smoothing s (as torch.nn.functional.cross_entropy):
//!     row = (1-s) (-logp[t]) + s mean_V(-logp);     target = (1-s) onehot(t) + s/V
//!   with soft targets:  row = -sum_V(target logp)
//!   loss = mean over rows that are not ignored (0 if all are);     dx = dloss (p sum(target) - target) / counted

use super::check_dtype;
use crate::device::cpu;
use crate::tensor::{Real, Tensor, record};
use crate::{Error, Result, on};

const OP: &str = "cross_entropy";

/// What each row should be.
pub enum Targets<'a> {
    /// A class per row, None for ignored rows, and label smoothing.
    Classes(&'a [Option<u32>], f64),
    /// A distribution per row [R,V], a constant.
    Soft(&'a Tensor),
}

pub fn cross_entropy(x: &Tensor, targets: Targets) -> Result<Tensor> {
    let (r, v) = x.rows();
    on!(x.dtype(), T => {
        let (rows, smooth) = targets_of::<T>(x, &targets, r, v)?;
        let counted = rows.iter().filter(|t| !matches!(t, Row::Ignored)).count().max(1);
        let data = x.data::<T>();
        let (mut losses, mut norms) = (vec![T::ZERO; r], vec![T::ZERO; r]);
        cpu::each_row2((&mut losses, 1), (&mut norms, 1), #[inline(always)] |i, loss, norm| {
            if !matches!(rows[i], Row::Ignored) {
                let x = &data[i * v..][..v];
                norm[0] = log_sum_exp(x);
                loss[0] = row_loss(x, norm[0], &rows[i], smooth);
            }
        });
        let loss = cpu::sum(r, |i| losses[i]) / T::of(counted as f64);
        let x2 = x.detach();
        record(OP, [x], vec![loss], &[], move |dy, grads| {
            let by = dy.data::<T>()[0] / T::of(counted as f64);
            let mut dx = x2.data::<T>().to_vec();
            cpu::each_row(&mut dx, v, #[inline(always)] |i, row| row_gradient(row, norms[i], &rows[i], smooth, by));
            grads.add(0, dx)
        })
    })
}

enum Row<T> {
    Ignored,
    Class(usize),
    Soft(Vec<T>),
}

fn targets_of<T: Real>(x: &Tensor, targets: &Targets, r: usize, v: usize) -> Result<(Vec<Row<T>>, T)> {
    match targets {
        Targets::Classes(classes, smooth) => {
            if classes.len() != r {
                return Err(Error::argument(OP, "classes", format!("{r} of them"), classes.len()));
            }
            if !(0.0..=1.0).contains(smooth) {
                return Err(Error::argument(OP, "label smoothing", "0 to 1", smooth));
            }
            if let Some(bad) = classes.iter().flatten().find(|t| **t as usize >= v) {
                return Err(Error::argument(OP, "classes", format!("below {v}"), bad));
            }
            let row = |t: &Option<u32>| t.map_or(Row::Ignored, |t| Row::Class(t as usize));
            Ok((classes.iter().map(row).collect(), T::of(*smooth)))
        }
        Targets::Soft(t) => {
            super::check_shape(OP, "soft targets", t, x.shape().sizes())?;
            check_dtype(OP, x, &[("soft targets", t)])?;
            if t.tracked() {
                return Err(
                    Error::argument(OP, "soft targets", "a constant", "a tracked tensor").fix("detach it")
                );
            }
            let rows = t.data::<T>().chunks(v.max(1)).map(|t| Row::Soft(t.to_vec())).collect();
            Ok((rows, T::ZERO))
        }
    }
}

/// log(sum(e^x)), stable; NaN and +inf propagate.
#[inline(always)]
fn log_sum_exp<T: Real>(x: &[T]) -> T {
    let top = cpu::max(x);
    top + cpu::sum(x.len(), |j| (x[j] - top).exp()).ln()
}

#[inline(always)]
fn row_loss<T: Real>(x: &[T], norm: T, row: &Row<T>, smooth: T) -> T {
    match row {
        Row::Ignored => T::ZERO,
        Row::Class(t) => {
            let mut loss = (T::ONE - smooth) * (norm - x[*t]);
            if smooth > T::ZERO {
                let share = T::of(1.0 / x.len() as f64);
                loss += smooth * (norm - cpu::sum(x.len(), |j| x[j]) * share);
            }
            loss
        }
        Row::Soft(t) => cpu::sum(x.len(), |j| t[j] * (norm - x[j])),
    }
}

/// x becomes its gradient.
#[inline(always)]
fn row_gradient<T: Real>(x: &mut [T], norm: T, row: &Row<T>, smooth: T, by: T) {
    match row {
        Row::Ignored => x.fill(T::ZERO),
        Row::Class(t) => {
            let even = smooth * T::of(1.0 / x.len() as f64);
            for x in x.iter_mut() {
                *x = by * ((*x - norm).exp() - even);
            }
            x[*t] -= by * (T::ONE - smooth);
        }
        Row::Soft(t) => {
            let total = cpu::sum(t.len(), |j| t[j]);
            for (x, t) in x.iter_mut().zip(t) {
                *x = by * ((*x - norm).exp() * total - *t);
            }
        }
    }
}

/// log softmax of one row, in place (decoding).
pub fn log_softmax_row<T: Real>(x: &mut [T]) {
    cpu::simd(
        #[inline(always)]
        || {
            let norm = log_sum_exp(x);
            for x in x.iter_mut() {
                *x -= norm;
            }
        },
    );
}
