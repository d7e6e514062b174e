//! Training: optimizer, schedule and trainer, and what surrounds a step so that a run can be stopped, lost and resumed.

pub mod cache;
pub mod checkpoint;
pub mod config;
pub mod corpus;
pub mod log;
mod manifest;
pub mod optimizer;
pub mod plan;
pub mod rehearsal;
pub mod run;
pub mod schedule;
pub mod session;
mod start;
pub mod state;
pub mod step;
pub mod tensorboard;
pub mod trainer;
mod training;
pub mod validate;
mod watch;

pub use log::{EvaluationLine, StepLine};
pub use session::{Ending, Outcome};
pub use training::Training;
pub use watch::Watch;
