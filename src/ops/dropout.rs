//! Inverted dropout, its mask drawn again in the backward.     x, y [any]
//!   y = x m,   m = 0 with probability p, else 1 / (1 - p)   (element numbers: positions in x);   dx = dy m

use super::check::check_dropout;
use super::gpu::{arrays, drop_args, gradient};
use crate::device::cpu;
use crate::tensor::{Array, Dropout, Real, Tensor, record, record_tensor};
use crate::{Result, on};

/// Inverted dropout: y = x m, m = 0 with probability p, else 1 / (1 - p); dx = dy m.
///
/// Which elements are kept depends on the random stream and an element's position in x alone, so that all devices keep the
/// same ones; the backward draws them again. None leaves x as it is. An error unless 0 <= p < 1.
///
/// Source: `torch.nn.functional.dropout`.
pub fn dropout(x: &Tensor, drop: Option<Dropout>) -> Result<Tensor> {
    let Some(drop) = drop else { return Ok(x.clone()) };
    check_dropout("dropout", drop)?;
    if let Some([data]) = arrays("dropout", [x])? {
        let y = masked_on_gpu(&data, drop)?;
        return record_tensor("dropout", &[x], Tensor::of_array(y, x.shape().sizes())?, move |dy, grads| {
            grads.add_array(0, masked_on_gpu(&gradient("dropout", dy)?, drop)?)
        });
    }
    on!(x.dtype(), T => {
        let y = masked(x.data::<T>(), drop);
        record("dropout", [x], y, x.shape().sizes(), move |dy, grads| grads.add(0, masked(dy.data::<T>(), drop)))
    })
}

fn masked_on_gpu(x: &Array, drop: Dropout) -> Result<Array> {
    let y = x.gpu().array("dropout", x.storage(), x.len())?;
    let args = [crate::args![x, &y, x.len() as u64], &drop_args(Some(drop))[..]].concat();
    let kernel = format!("dropout_fwd_{}", x.storage().name());
    // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
    unsafe { x.gpu().launch_each(&kernel, x.len(), &args) }?;
    Ok(y)
}

fn masked<T: Real>(x: &[T], drop: Dropout) -> Vec<T> {
    const PIECE: usize = 512;
    let mut y = x.to_vec();
    let whole = y.len() - y.len() % PIECE;
    let (body, rest) = y.split_at_mut(whole);
    cpu::each_row(
        body,
        PIECE,
        #[inline(always)]
        |i, row| drop.apply((i * PIECE) as u64, row),
    );
    drop.apply(whole as u64, rest);
    y
}
