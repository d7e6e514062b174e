//! Parameters under their LAVIS names, and the pass that uses them.
//!
//! A model holds ids; the numbers live in [`Params`]. A [`Pass`] hands them out: tracked on its tape if they are trained,
//! constants otherwise. So frozen parameters never get a gradient buffer.

mod params;
mod pass;
mod precision;
mod specs;

pub use crate::ops::Gelu;
pub use params::{Params, Trained, Value};
pub use pass::{DropoutPlan, LayerNorm, Linear, Pass, Unnormed};
pub use precision::{Part, Precision, place};
pub use specs::{Builder, Init, Spec, from_nothing, initial};

/// Index of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(pub usize);
