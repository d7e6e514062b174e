//! The operations: one file each, with the maths, the check of the arguments, forward and backward.
//!
//! Letters: R rows, C columns, N/K of a product, H heads, D head size, V vocabulary, B images, Q queries.

mod add;
mod attend_rows;
mod attention;
mod cross_entropy;
mod dropout;
mod embedding;
mod gelu;
mod l2_normalize;
mod layer_norm;
mod linear;
mod linear_half;
mod max_similarity;
mod mean_rows;
mod norm_linear;
mod patch_embed;
mod rows;
mod scale;
mod segments;

pub use add::add;
pub use attend_rows::attend_rows;
pub use attention::{Heads, attention};
pub use cross_entropy::{Targets, cross_entropy, log_softmax_row};
pub use dropout::dropout;
pub use embedding::embedding;
pub use gelu::gelu;
pub use l2_normalize::l2_normalize;
pub use layer_norm::{layer_norm, normalize_rows};
pub use linear::{linear, linear_exact};
pub use linear_half::linear_half;
pub use max_similarity::max_similarity;
pub use mean_rows::mean_rows;
pub use norm_linear::norm_linear;
pub use patch_embed::patch_embed;
pub use rows::{concat_rows, gather_rows, transpose};
pub use scale::{divide, scale};
pub use segments::{Segment, Segments};

use crate::tensor::{Dropout, Tensor};
use crate::{Error, Result};

/// The shape an argument must have.
fn check_shape(op: &str, argument: &str, t: &Tensor, sizes: &[usize]) -> Result<()> {
    if t.shape().sizes() != sizes {
        return Err(Error::argument(op, argument, format!("{sizes:?}"), t.shape()));
    }
    Ok(())
}

/// All arguments have the first one's dtype.
fn check_dtype(op: &str, first: &Tensor, others: &[(&str, &Tensor)]) -> Result<()> {
    for (name, t) in others {
        if t.dtype() != first.dtype() {
            return Err(Error::argument(op, *name, first.dtype(), t.dtype()));
        }
    }
    Ok(())
}

/// A probability that leaves something.
fn check_dropout(op: &str, drop: Dropout) -> Result<()> {
    if (0.0..1.0).contains(&drop.p) {
        return Ok(());
    }
    Err(Error::argument(op, "p", "0 <= p < 1", drop.p))
}
