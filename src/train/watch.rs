//! What a training reports while it runs, and how it is asked to stop: [`Watch`]. The command line implements it with a progress
//! line and signals; a program that trains implements what it wants to know.

use super::log::{EvaluationLine, StepLine};
use crate::Result;

/// Whom a training reports to. Every method may be left out.
///
/// A function of a step is a `Watch` that is called after each step:
///
/// ```
/// use qformer::train::{StepLine, Watch};
///
/// let mut losses = Vec::new();
/// let mut watch = |step: &StepLine| losses.push(step.loss);
/// let watch: &mut dyn Watch = &mut watch;
/// # let _ = watch;
/// ```
pub trait Watch {
    /// A line for the reader.
    fn say(&self, _line: &str) {}

    /// A line that matters even to a reader who wants no others.
    fn warn(&self, _line: &str) {}

    /// Everything is checked; from here on files are written, and [`Watch::stop`] is asked.
    fn begin(&mut self) -> Result<()> {
        Ok(())
    }

    /// From here on `what` is counted; `done` of `total` are.
    fn count(&mut self, _what: &'static str, _done: u64, _total: u64) {}

    /// `n` more are done; `waited` gives the share of the time since its last call that was spent waiting for pictures.
    fn advance(&mut self, _n: usize, _waited: &mut dyn FnMut() -> f64) {}

    /// A training step of `samples` captions is done; `seconds` is how long it took, waiting for pictures included.
    fn step(&mut self, _line: &StepLine, _samples: usize, _seconds: f64) {}

    /// The validation data was looked at.
    fn evaluation(&mut self, _line: &EvaluationLine) {}

    /// What was counted has ended.
    fn finish(&mut self) {}

    /// Whether to stop after this step. What is done is saved, and the run can be resumed.
    fn stop(&self) -> bool {
        false
    }
}

/// Reports to nobody.
impl Watch for () {}

impl<F: FnMut(&StepLine)> Watch for F {
    fn step(&mut self, line: &StepLine, _samples: usize, _seconds: f64) {
        self(line);
    }
}
