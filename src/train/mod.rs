//! Training: optimizer, schedule and trainer, and what surrounds a step so that a run can be stopped, lost and gone on with.

pub mod checkpoint;
mod manifest;
pub mod optimizer;
pub mod schedule;
pub mod signals;
pub mod trainer;
