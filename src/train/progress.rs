//! How a run looks while it runs: a bar on a terminal, a line now and then anywhere else. All of it on stderr.

use super::log::{EvaluationLine, StepLine};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Time between plain lines.
const EVERY: Duration = Duration::from_secs(10);

pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    total: u64,
    /// Since the last plain line: when, samples, seconds waited.
    since: Instant,
    samples: f64,
    waited: f64,
    /// Since the beginning of this process: when, and steps done.
    begun: Instant,
    done: u64,
    printed: bool,
}

impl Progress {
    /// For a run of `total` steps; `quiet` shows warnings only.
    pub fn new(quiet: bool) -> Progress {
        let terminal = !quiet && std::io::stderr().is_terminal();
        let bar = terminal.then(|| {
            let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg}");
            ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let now = Instant::now();
        Progress {
            bar,
            quiet,
            total: 0,
            since: now,
            samples: 0.0,
            waited: 0.0,
            begun: now,
            done: 0,
            printed: false,
        }
    }

    /// Training begins at `step`.
    pub fn start(&mut self, step: u64, total: u64) {
        let now = Instant::now();
        (self.total, self.since, self.begun, self.done) = (total, now, now, 0);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(step);
        }
    }

    /// A message for the reader.
    pub fn say(&self, text: impl std::fmt::Display) {
        if !self.quiet {
            self.warn(text);
        }
    }

    /// A message that is shown even if nothing else is.
    pub fn warn(&self, text: impl std::fmt::Display) {
        match &self.bar {
            Some(bar) => bar.suspend(|| line(text)),
            None => line(text),
        }
    }

    /// A step is done; `seconds` is how long it took, waiting included.
    pub fn step(&mut self, line: &StepLine, samples: usize, seconds: f64) {
        self.done += 1;
        self.samples += samples as f64;
        self.waited += line.time.waiting * seconds;
        let last = line.step >= self.total;
        if self.quiet || !(self.bar.is_some() || last || !self.printed || self.since.elapsed() >= EVERY) {
            return;
        }
        let elapsed = self.since.elapsed().as_secs_f64().max(1e-9);
        let left = self.total.saturating_sub(line.step) as f64;
        let eta = self.begun.elapsed().as_secs_f64() / self.done as f64 * left;
        let text = format!(
            "loss {:.3} (itc {:.3} itm {:.3} lm {:.3})  lr {:.2e}  {:.1} samples/s  waiting {:.0} %  left {}",
            line.loss,
            line.itc,
            line.itm,
            line.lm,
            line.learning_rate,
            self.samples / elapsed,
            100.0 * (self.waited / elapsed).min(1.0),
            duration(eta)
        );
        match &self.bar {
            Some(bar) => {
                bar.set_message(text);
                bar.set_position(line.step);
            }
            None => self::line(format!("step {}/{}  epoch {}  {text}", line.step, self.total, line.epoch)),
        }
        if self.bar.is_none() || self.since.elapsed() >= EVERY {
            (self.since, self.samples, self.waited) = (Instant::now(), 0.0, 0.0);
        }
        self.printed = true;
    }

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

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}

/// Where nobody reads any more, training goes on all the same.
fn line(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// `2h 05m`, `3m 20s`, `12s`
pub fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {:02}s", s / 60, s % 60),
        _ => format!("{}h {:02}m", s / 3600, s % 3600 / 60),
    }
}
