//! Stochastic depth: a branch dropped for whole samples.     x, y [samples * rows, C]
//!   y[i] = x[i] m,   m = 0 with probability p, else 1 / (1 - p)   (element number of a sample's draw: the sample);   dx = dy m

use super::check::check_dropout;
use super::gpu::{arrays, drop_args, gradient};
use crate::device::cpu;
use crate::tensor::{Array, Dropout, Real, Tensor, record, record_tensor};
use crate::{Error, Result, on};

const OP: &str = "drop_path";

/// Drops whole samples: y = x m, m = 0 with probability p for all `rows` rows of a sample, else 1 / (1 - p); dx = dy m.
///
/// x is `[samples * rows, C]`; y is stored as x is. Which samples are kept depends on the random stream and a sample's position
/// alone, so that all devices keep the same ones. None leaves x as it is. An error unless 0 <= p < 1 and x's rows are whole
/// samples.
///
/// Source: `timm.models.layers.DropPath`, which EVA's ViT has behind attention and behind its MLP.
pub fn drop_path(x: &Tensor, rows: usize, drop: Option<Dropout>) -> Result<Tensor> {
    let Some(drop) = drop else { return Ok(x.clone()) };
    check_dropout(OP, drop)?;
    let (all, columns) = x.rows();
    if rows == 0 || !all.is_multiple_of(rows) {
        return Err(Error::argument(OP, "x", format!("whole samples of {rows} rows"), format!("{all} rows")));
    }
    let per = rows * columns;
    if let Some([data]) = arrays(OP, [x])? {
        let y = on_gpu(&data, per, drop)?;
        return record_tensor(OP, &[x], Tensor::of_array(y, x.shape().sizes())?, move |dy, grads| {
            grads.add_array(0, on_gpu(&gradient(OP, dy)?, per, drop)?)
        });
    }
    on!(x.dtype(), T => {
        let y = masked(x.data::<T>(), per, drop);
        record(OP, [x], y, x.shape().sizes(), move |dy, grads| grads.add(0, masked(dy.data::<T>(), per, drop)))
    })
}

fn on_gpu(x: &Array, per: usize, drop: Dropout) -> Result<Array> {
    let y = x.gpu().array(OP, x.storage(), x.len())?;
    let args = [crate::args![x, &y, x.len() as u64, per as u64], &drop_args(Some(drop))[..]].concat();
    let kernel = format!("drop_path_{}", x.storage().name());
    // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
    unsafe { x.gpu().launch_each(&kernel, x.len(), &args) }?;
    Ok(y)
}

fn masked<T: Real>(x: &[T], per: usize, drop: Dropout) -> Vec<T> {
    let mut y = x.to_vec();
    cpu::each_row(&mut y, per, |sample, row| {
        let mut factor = [T::ONE];
        drop.apply(sample as u64, &mut factor);
        row.iter_mut().for_each(|y| *y *= factor[0]);
    });
    y
}
