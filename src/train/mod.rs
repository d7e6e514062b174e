//! Training. [`Training`] is the door, [`Watch`] what it reports to, [`config::Config`] its settings.
//!
//! Behind it: optimizer, schedule and trainer, and what surrounds a step so that a run can be stopped, lost and resumed.

#[doc(hidden)]
pub mod cache;
#[doc(hidden)]
pub mod checkpoint;
pub mod config;
#[doc(hidden)]
pub mod corpus;
#[doc(hidden)]
pub mod exchange;
#[doc(hidden)]
pub mod loading;
pub mod log;
mod manifest;
#[doc(hidden)]
pub mod optimizer;
#[doc(hidden)]
pub mod plan;
#[doc(hidden)]
pub mod rehearsal;
#[doc(hidden)]
pub mod run;
pub(crate) mod run_folder;
#[doc(hidden)]
pub mod schedule;
#[doc(hidden)]
pub mod session;
mod start;
#[doc(hidden)]
pub mod state;
#[doc(hidden)]
pub mod step;
#[doc(hidden)]
pub mod tensorboard;
mod together;
#[doc(hidden)]
pub mod trainer;
mod training;
#[doc(hidden)]
pub mod validate;
mod watch;
#[doc(hidden)]
pub mod world;

pub use log::{EvaluationLine, StepLine};
pub use session::{Ending, Outcome};
pub use training::Training;
pub use watch::Watch;
