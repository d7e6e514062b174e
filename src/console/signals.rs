//! Stopping by Ctrl-C (SIGINT) or `kill` (SIGTERM). The first signal sets a flag: a command finishes what it is
//! at, saves, and ends with [`Stop::error`], whose exit code is 128 + the signal's number, as the shell has it.
//! A second signal ends the process at once, with the same code, saving nothing.
//! SIGHUP is left alone, so that `nohup` keeps its meaning.

use crate::{Error, Kind, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Remembers whether a signal has asked to stop. Clones see the same flag.
#[derive(Clone, Debug)]
pub struct Stop {
    signal: Arc<AtomicUsize>,
}

impl Stop {
    /// Listens from now on; call it once, before the first step.
    pub fn listen() -> Result<Stop> {
        let signal = Arc::new(AtomicUsize::new(0));
        let armed = Arc::new(AtomicBool::new(false));
        for (number, value) in [(SIGINT, SIGINT as usize), (SIGTERM, SIGTERM as usize)] {
            // The order matters: the shutdown looks at `armed` before this signal arms it.
            flag::register_conditional_shutdown(number, 128 + number, Arc::clone(&armed))
                .and_then(|_| flag::register(number, Arc::clone(&armed)))
                .and_then(|_| flag::register_usize(number, Arc::clone(&signal), value))
                .map_err(|e| Error::new(Kind::Argument, "listen for signals").got(e))?;
        }
        Ok(Stop { signal })
    }

    /// The number of the signal that asked to stop, if one did.
    pub fn signal(&self) -> Option<i32> {
        i32::try_from(self.signal.load(Ordering::SeqCst)).ok().filter(|&n| n != 0)
    }

    /// What this command is to end with after saving, if a signal asked to stop.
    pub fn error(&self, command: &str) -> Option<Error> {
        let n = self.signal()?;
        Some(Error::new(Kind::Signal(n), command).got(format!("signal {n} asked to stop")))
    }
}
