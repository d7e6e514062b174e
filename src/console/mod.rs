//! How a long command speaks with whoever started it: progress on standard error, and signals that ask it to stop.

pub mod progress;
pub mod signals;

use crate::train::{EvaluationLine, StepLine, Watch};
use crate::{Error, Result};
use progress::Progress;
use signals::Stop;

/// A training's messages on a terminal; Ctrl-C and SIGTERM stop it.
pub struct Terminal {
    progress: Progress,
    stop: Option<Stop>,
    /// Of several processes, one speaks.
    speaks: bool,
}

impl Terminal {
    /// `quiet` shows warnings only.
    pub fn new(quiet: bool) -> Terminal {
        Terminal { progress: Progress::new(quiet), stop: None, speaks: true }
    }

    /// Of a process that only listens to signals.
    pub fn silent() -> Terminal {
        Terminal { speaks: false, ..Terminal::new(true) }
    }

    /// What `command` is to end with, if a signal asked to stop.
    pub fn stopped(&self, command: &str) -> Option<Error> {
        self.stop.as_ref()?.error(command)
    }
}

impl Watch for Terminal {
    fn say(&self, line: &str) {
        if self.speaks {
            self.progress.say(line);
        }
    }

    fn warn(&self, line: &str) {
        if self.speaks {
            self.progress.warn(line);
        }
    }

    fn begin(&mut self) -> Result<()> {
        self.stop = Some(Stop::listen()?);
        Ok(())
    }

    fn count(&mut self, what: &'static str, done: u64, total: u64) {
        self.progress.start(what, done, total);
    }

    fn advance(&mut self, n: usize, waited: &mut dyn FnMut() -> f64) {
        self.progress.add(n, waited);
    }

    fn step(&mut self, line: &StepLine, samples: usize, seconds: f64) {
        self.progress.step(line, samples, seconds);
    }

    fn evaluation(&mut self, line: &EvaluationLine) {
        self.progress.evaluation(line);
    }

    fn finish(&mut self) {
        self.progress.finish();
    }

    fn stop(&self) -> bool {
        self.stop.as_ref().is_some_and(|stop| stop.signal().is_some())
    }
}
