//! Training: optimizer, schedule, trainer, checkpoints.

pub mod optimizer;
pub mod schedule;
pub mod trainer;
