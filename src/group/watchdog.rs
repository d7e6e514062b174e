//! Ends a process whose group does not answer. A rank that hangs or is gone leaves the others waiting for ever in the middle of a call;
//! a thread of its own looks at the clock.

use crate::terminal;
use crate::{Error, Kind, Result};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What the process waits for, and since when.
#[derive(Default)]
struct Waiting {
    step: u64,
    call: Option<(&'static str, Instant)>,
    over: bool,
}

/// The clock of a group's calls.
pub(super) struct Watchdog {
    waiting: Arc<Mutex<Waiting>>,
}

impl Watchdog {
    /// A thread that calls `end` with an error when a call takes longer than `patience`.
    pub fn start(
        (rank, size): (usize, usize),
        patience: Duration,
        end: impl Fn(&Error) + Send + 'static,
    ) -> Result<Watchdog> {
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let seen = Arc::clone(&waiting);
        let look = (patience / 20).clamp(Duration::from_millis(10), Duration::from_secs(1));
        let body = move || {
            loop {
                std::thread::sleep(look);
                let waiting = seen.lock().unwrap_or_else(PoisonError::into_inner);
                if waiting.over {
                    return;
                }
                let late = waiting.call.filter(|(_, since)| since.elapsed() > patience);
                if let Some((call, _)) = late {
                    end(&no_answer((rank, size), waiting.step, call, patience));
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("group-watchdog".into());
        thread.spawn(body).map_err(|e| Error::new(Kind::Group, super::OPERATION).about("watchdog").got(e))?;
        Ok(Watchdog { waiting })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The step that messages name.
    pub fn step(&self, step: u64) {
        self.lock().step = step;
    }

    /// A call begins, or comes on.
    pub fn begin(&self, call: &'static str) {
        self.lock().call = Some((call, Instant::now()));
    }

    pub fn end(&self) {
        self.lock().call = None;
    }

    /// An error of the engine, with where it happened.
    pub fn locate(&self, (rank, size): (usize, usize), e: Error) -> Error {
        let waiting = self.lock();
        let call = waiting.call.map_or("", |c| c.0);
        e.about(format!("rank {rank} of {size}, step {}: {call}", waiting.step))
            .fix("look for what the other ranks say; --resume continues from the newest checkpoint")
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.lock().over = true;
    }
}

fn no_answer((rank, size): (usize, usize), step: u64, call: &str, patience: Duration) -> Error {
    Error::new(Kind::Group, super::OPERATION)
        .about(format!("rank {rank} of {size}, step {step}: {call}"))
        .expected(format!("the other ranks within {} s", patience.as_secs_f64()))
        .got("no answer")
        .fix(
            "look for a rank that was killed, hangs or has lost its machine; --resume continues from the newest checkpoint; \
             --group-timeout says how long to wait",
        )
}

/// Says why, and ends the process at once: other threads hang in calls that nothing can interrupt.
pub(super) fn give_up(e: &Error, leave: impl Fn(u8)) {
    terminal::tell(&format!("qformer: {e}"));
    leave(e.exit_code());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_call_that_takes_too_long_is_named() {
        let (sender, receiver) = channel();
        let say = move |e: &Error| drop(sender.send(e.clone()));
        let dog = Watchdog::start((1, 3), Duration::from_millis(80), say).unwrap();
        dog.step(17);
        // Calls that end, and one that comes on, are no reason.
        for _ in 0..6 {
            dog.begin("gather features");
            std::thread::sleep(Duration::from_millis(30));
            dog.end();
        }
        (0..6).for_each(|_| {
            dog.begin("sum gradients");
            std::thread::sleep(Duration::from_millis(30));
        });
        assert!(receiver.try_recv().is_err());
        let e = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(e.exit_code(), 8);
        let text = e.to_string();
        assert!(
            text.contains("rank 1 of 3, step 17: sum gradients") && text.contains("--group-timeout"),
            "{text}"
        );
    }
}
