//! Training: what surrounds the model's step so that a run can be stopped, lost and gone on with.

pub mod checkpoint;
pub mod signals;
