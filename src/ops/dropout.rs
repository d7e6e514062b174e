//! Inverted dropout, its mask drawn again in the backward.     x, y [any]
//!   y = x m,   m = 0 with probability p, else 1 / (1 - p)   (element numbers: positions in x);   dx = dy m

use super::check_dropout;
use crate::device::cpu;
use crate::tensor::{Dropout, Real, Tensor, record};
use crate::{Result, on};

pub fn dropout(x: &Tensor, drop: Option<Dropout>) -> Result<Tensor> {
    let Some(drop) = drop else { return Ok(x.clone()) };
    check_dropout("dropout", drop)?;
    on!(x.dtype(), T => {
        let y = masked(x.data::<T>(), drop);
        record("dropout", [x], y, x.shape().sizes(), move |dy, grads| grads.add(0, masked(dy.data::<T>(), drop)))
    })
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
