//! Inverted dropout, its mask drawn again in the backward.     x, y [any]
//!   y = x m,   m = 0 with probability p, else 1 / (1 - p)   (element numbers: positions in x);   dx = dy m

use crate::device::cpu;
use crate::tensor::{Dropout, Real, Tensor, record};
use crate::{Error, Result, on};

pub fn dropout(x: &Tensor, drop: Option<Dropout>) -> Result<Tensor> {
    let Some(drop) = drop else { return Ok(x.clone()) };
    check("dropout", drop)?;
    on!(x.dtype(), T => {
        let y = masked(x.data::<T>(), drop);
        record("dropout", [x], y, x.shape().sizes(), move |dy, grads| grads.add(0, masked(dy.data::<T>(), drop)))
    })
}

pub(super) fn check(op: &str, drop: Dropout) -> Result<()> {
    if (0.0..1.0).contains(&drop.p) {
        return Ok(());
    }
    Err(Error::argument(op, "p", "0 <= p < 1", drop.p))
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
        |i, row| apply(row, (i * PIECE) as u64, drop),
    );
    apply(rest, whole as u64, drop);
    y
}

/// Multiplies elements `first ..` by their factors.
#[inline(always)]
pub(super) fn apply<T: Real>(row: &mut [T], first: u64, drop: Dropout) {
    let mut factors = [T::ZERO; 512];
    let mut first = first;
    for part in row.chunks_mut(512) {
        let f = &mut factors[..part.len()];
        drop.factors(first, f);
        for (x, f) in part.iter_mut().zip(f) {
            *x *= *f;
        }
        first += part.len() as u64;
    }
}
