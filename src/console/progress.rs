//! How far a command is: a bar with the remaining time on a terminal, a plain line now and then anywhere else. All of it on
//! standard error, so that results on standard output stay clean.

use crate::terminal::duration;
use crate::train::{EvaluationLine, StepLine};
use indicatif::{ProgressBar, ProgressStyle};
use std::fmt::Display;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Between plain lines.
const EVERY: Duration = Duration::from_secs(10);

/// What a command shows of how far it is.
pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    /// What is counted, how many there are in all, and how many are done.
    what: &'static str,
    total: u64,
    done: u64,
    /// When this process began, and how many were done by then.
    begun: Instant,
    first: u64,
    /// Since the last plain line: when, samples, seconds waited.
    since: Instant,
    samples: f64,
    waited: f64,
    shown: bool,
}

impl Progress {
    /// Of nothing yet; `quiet` shows warnings only.
    pub fn new(quiet: bool) -> Progress {
        let terminal = !quiet && std::io::stderr().is_terminal();
        let bar = terminal.then(|| {
            let style = ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len}  {msg}");
            ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let now = Instant::now();
        Progress {
            bar,
            quiet,
            what: "",
            total: 0,
            done: 0,
            begun: now,
            first: 0,
            since: now,
            samples: 0.0,
            waited: 0.0,
            shown: false,
        }
    }

    /// Of `total` pictures, to which `what` is being done.
    pub fn of_pictures(what: &'static str, total: usize, quiet: bool) -> Progress {
        let mut progress = Progress::new(quiet);
        progress.start(what, 0, total as u64);
        progress
    }

    /// From here on `what` is counted; `done` of them are.
    pub fn start(&mut self, what: &'static str, done: u64, total: u64) {
        let now = Instant::now();
        (self.what, self.total, self.done, self.first) = (what, total, done, done);
        (self.begun, self.since, self.shown) = (now, now, false);
        if let Some(bar) = &self.bar {
            bar.set_prefix(what);
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    /// A message for the reader.
    pub fn say(&self, text: impl Display) {
        if !self.quiet {
            self.warn(text);
        }
    }

    /// A message that is shown even if nothing else is.
    pub fn warn(&self, text: impl Display) {
        match &self.bar {
            Some(bar) => bar.suspend(|| line(text)),
            None => line(text),
        }
    }

    /// `n` more pictures are done; `waiting` is the share of the time in which nothing could be computed for want of them.
    pub fn add(&mut self, n: usize, waiting: impl FnOnce() -> f64) {
        self.done += n as u64;
        if self.is_due() {
            let waiting = 100.0 * waiting();
            let rate = format!("{:.2} images/s", self.rate());
            self.show(&format!("{rate}  waiting for data {waiting:.0} %"));
        }
    }

    /// A training step is done; `seconds` is how long it took, waiting included.
    pub fn step(&mut self, line: &StepLine, samples: usize, seconds: f64) {
        self.done = line.step;
        self.samples += samples as f64;
        self.waited += line.time.waiting * seconds;
        if !self.is_due() && !(self.plain() && (!self.shown || line.step >= self.total)) {
            return;
        }
        let elapsed = self.since.elapsed().as_secs_f64().max(1e-9);
        self.show(&format!(
            "epoch {}  loss {:.3} (itc {:.3} itm {:.3} lm {:.3})  lr {:.2e}  {:.1} samples/s  waiting for data {:.0} %",
            line.epoch,
            line.loss,
            line.itc,
            line.itm,
            line.lm,
            line.learning_rate,
            self.samples / elapsed,
            100.0 * (self.waited / elapsed).min(1.0),
        ));
    }

    /// The validation data was looked at.
    pub fn evaluation(&self, line: &EvaluationLine) {
        self.say(format!(
            "step {}: validation loss {:.3} (itc {:.3} itm {:.3} lm {:.3})  recall@1 text to image {:.1} %, image to \
             text {:.1} % of {}",
            line.step,
            line.loss,
            line.itc,
            line.itm,
            line.lm,
            100.0 * line.recall_text_to_image,
            100.0 * line.recall_image_to_text,
            line.pictures
        ));
    }

    /// The end: takes the bar away; gives how many were done a second.
    pub fn finish(&self) -> f64 {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.rate()
    }

    fn plain(&self) -> bool {
        self.bar.is_none() && !self.quiet
    }

    /// A bar always shows where things stand, plain lines do now and then.
    fn is_due(&self) -> bool {
        self.bar.is_some() || (self.plain() && self.since.elapsed() >= EVERY)
    }

    fn show(&mut self, text: &str) {
        let text = format!("{text}  {} to go", duration(self.left()));
        match &self.bar {
            Some(bar) => {
                bar.set_message(text);
                bar.set_position(self.done);
            }
            None => line(format!("{} {}/{}  {text}", self.what, self.done, self.total)),
        }
        self.shown = true;
        if self.bar.is_none() || self.since.elapsed() >= EVERY {
            (self.since, self.samples, self.waited) = (Instant::now(), 0.0, 0.0);
        }
    }

    /// Done a second, by this process.
    fn rate(&self) -> f64 {
        (self.done - self.first) as f64 / self.begun.elapsed().as_secs_f64().max(1e-9)
    }

    fn left(&self) -> Duration {
        left(self.done - self.first, self.total.saturating_sub(self.done), self.begun.elapsed())
    }
}

/// How long `more` will take, if `done` took so long.
fn left(done: u64, more: u64, took: Duration) -> Duration {
    Duration::from_secs_f64((took.as_secs_f64() / done.max(1) as f64 * more as f64).min(1e9))
}

/// Where nobody reads any more, the work goes on all the same.
fn line(text: impl Display) {
    crate::terminal::tell(&text.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_go_follows_from_the_time_it_took() {
        let minute = Duration::from_secs(60);
        assert_eq!(duration(left(30, 90, minute)), "3 min 0 s");
        assert_eq!(duration(left(30, 0, minute)), "0 s");
        assert_eq!(duration(left(0, 59, Duration::from_secs(1))), "59 s");
        assert_eq!(duration(left(1, 123, minute)), "2 h 3 min");
    }

    #[test]
    fn what_an_earlier_process_did_is_not_this_ones_speed() {
        let mut progress = Progress::new(true);
        progress.start("step", 1000, 1010);
        progress.begun -= Duration::from_secs(100);
        progress.done = 1005;
        assert!((0.049..0.0501).contains(&progress.rate()), "{}", progress.rate());
        assert_eq!(progress.left().as_secs(), 100);
    }
}
