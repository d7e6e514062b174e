//! How long a run is, and what its trainer is told.

use super::Config;
use crate::train::schedule::Schedule;
use crate::train::trainer::Options;

const DEFAULT_EPOCHS: u64 = 10;

/// How long a run is: worked out from the settings and the number of micro-batches in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length {
    /// The step that this process stops after.
    pub steps: u64,
    /// The last step of the run, which its schedule is made for.
    pub whole: u64,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Of the schedule.
    pub max_epoch: u64,
    /// Steps of warm-up.
    pub warmup_steps: u64,
}

impl Config {
    /// `--steps`: the length of a run that has none of its own; otherwise where this process stops, and the run keeps its
    /// length and schedule, to be resumed. Beyond the steps of the settings it is their new number.
    pub fn set_steps(&mut self, steps: u64) {
        match (self.steps, self.epochs) {
            (None, None) => self.steps = Some(steps),
            (Some(own), _) if steps > own => self.steps = Some(steps),
            _ => self.stop_after = Some(steps),
        }
    }

    /// The length of a run with this many micro-batches in an epoch.
    pub fn length(&self, micro_per_epoch: u64) -> Length {
        let accumulate = self.accumulate as u64;
        let steps_per_epoch = (micro_per_epoch / accumulate).max(1);
        let epochs = || self.epochs.unwrap_or(DEFAULT_EPOCHS).saturating_mul(steps_per_epoch);
        let whole = self.steps.unwrap_or_else(epochs);
        let steps = self.stop_after.unwrap_or(whole);
        let max_epoch = self.epochs.unwrap_or_else(|| whole.div_ceil(steps_per_epoch)).max(1);
        let given = self.warmup_steps.or(self.warmup_iterations.map(|n| n.div_ceil(accumulate)));
        let usual = (max_epoch.saturating_mul(steps_per_epoch) / 10).min(5000).min(steps_per_epoch).max(1);
        Length { steps, whole, steps_per_epoch, max_epoch, warmup_steps: given.unwrap_or(usual) }
    }

    /// What a trainer is told.
    pub fn options(&self, length: Length) -> Options {
        Options {
            seed: self.seed,
            dropout: self.dropout as f32,
            profile: self.profile,
            contrast: self.contrast,
            steps_per_epoch: length.steps_per_epoch,
            schedule: Schedule {
                init_lr: self.init_lr,
                min_lr: self.min_lr,
                warmup_lr: self.warmup_lr,
                warmup_steps: length.warmup_steps,
                max_epoch: length.max_epoch,
            },
            hyper: self.hyper,
        }
    }
}
