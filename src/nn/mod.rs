//! Parameters under their LAVIS names, and the pass that uses them.
//!
//! A model holds ids; the numbers live in [`Params`]. A [`Pass`] hands them out: tracked on its tape if they are trained,
//! constants otherwise. So frozen parameters never get a gradient buffer.

use crate::tensor::{Gpu, Storage, Tensor};
use crate::{Result, ops};

mod params;
mod pass;
mod specs;

pub use params::{Gelu, Params, Precision, Value};
pub use pass::{DropoutPlan, LayerNorm, Linear, Pass};
pub use specs::{Builder, Init, Spec, from_nothing, initial};

/// 8-bit pictures [n,S,S,3] as a GPU's planes [n,3,S,S], normalised there: a quarter of the bytes go up.
pub fn pictures(gpu: &Gpu, bytes: &[u8], size: usize, mean: [f32; 3], std: [f32; 3]) -> Result<Tensor> {
    ops::pixel_planes(&gpu.upload("pictures", Storage::U8, bytes)?, size, mean, std)
}

/// Index of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(pub usize);
