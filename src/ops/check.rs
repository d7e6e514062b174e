//! What several operations check of their arguments.

use crate::tensor::{Dropout, Tensor};
use crate::{Error, Result};

/// The shape an argument must have.
pub(super) fn check_shape(op: &str, argument: &str, t: &Tensor, sizes: &[usize]) -> Result<()> {
    if t.shape().sizes() != sizes {
        return Err(Error::argument(op, argument, format!("{sizes:?}"), t.shape()));
    }
    Ok(())
}

/// All arguments have the first one's dtype.
pub(super) fn check_dtype(op: &str, first: &Tensor, others: &[(&str, &Tensor)]) -> Result<()> {
    for (name, t) in others {
        if t.dtype() != first.dtype() {
            return Err(Error::argument(op, *name, first.dtype(), t.dtype()));
        }
    }
    Ok(())
}

/// A probability that leaves something.
pub(super) fn check_dropout(op: &str, drop: Dropout) -> Result<()> {
    if (0.0..1.0).contains(&drop.p) {
        return Ok(());
    }
    Err(Error::argument(op, "p", "0 <= p < 1", drop.p))
}
