//! How far a command is: a bar with the time to go on a terminal, otherwise a plain line now and then. On standard error,
//! so that results on standard output stay clean.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between plain lines.
const EVERY: Duration = Duration::from_secs(10);

pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    what: &'static str,
    total: usize,
    done: usize,
    start: Instant,
    last: Instant,
}

impl Progress {
    /// `what` is being done to `total` pictures.
    pub fn start(what: &'static str, total: usize, quiet: bool) -> Progress {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(total as u64).with_message(what);
            let style = "{msg} {wide_bar} {pos}/{len}  {per_sec}  {prefix}  {eta} to go";
            bar.set_style(
                ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar
        });
        Progress { bar, quiet, what, total, done: 0, start: Instant::now(), last: Instant::now() }
    }

    /// `n` more are done; `waiting` is the share of the time in which nothing could be computed for want of pictures.
    pub fn add(&mut self, n: usize, waiting: impl FnOnce() -> f64) {
        self.done += n;
        if let Some(bar) = &self.bar {
            bar.set_prefix(format!("waiting for data {:.0} %", 100.0 * waiting()));
            bar.inc(n as u64);
        } else if !self.quiet && self.last.elapsed() >= EVERY {
            self.last = Instant::now();
            self.say(&line(self.what, self.done, self.total, self.start.elapsed(), waiting()));
        }
    }

    /// A line that stays, above the bar.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            // A closed standard error is no reason to stop.
            None => drop(writeln!(std::io::stderr(), "{line}")),
        }
    }

    /// The end: removes the bar; returns pictures per second.
    pub fn end(self) -> f64 {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        rate(self.done, self.start.elapsed())
    }
}

fn rate(done: usize, elapsed: Duration) -> f64 {
    done as f64 / elapsed.as_secs_f64().max(1e-9)
}

fn line(what: &str, done: usize, total: usize, elapsed: Duration, waiting: f64) -> String {
    let rate = rate(done, elapsed);
    let left = Duration::from_secs_f64((total.saturating_sub(done) as f64 / rate.max(1e-9)).min(1e9));
    format!(
        "{what} {done}/{total} ({:.1} %)  {rate:.2} images/s  waiting for data {:.0} %  {} to go",
        100.0 * done as f64 / total.max(1) as f64,
        100.0 * waiting,
        time(left)
    )
}

/// A duration as one reads it.
pub fn time(t: Duration) -> String {
    let s = t.as_secs();
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_how_far_how_fast_and_how_long() {
        let text = line("captioning", 30, 120, Duration::from_secs(60), 0.126);
        assert_eq!(text, "captioning 30/120 (25.0 %)  0.50 images/s  waiting for data 13 %  3 min 0 s to go");
        assert_eq!(time(Duration::from_secs(7384)), "2 h 3 min");
        assert_eq!(time(Duration::from_secs(59)), "59 s");
    }
}
