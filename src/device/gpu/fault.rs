//! GPUs fail: this makes the emulated one fail in the same way, so that the ends of a run are tested without a GPU.
//!
//! `QFORMER_FAULT=CALL:CODE@N`, CALL one of allocate, upload, download, launch and matmul, CODE one of CUDA's, N from 1.
//!
//! The N-th such call ends with the code. From there on every call does, as after an error of a real GPU; where memory is out
//! (code 2), allocations alone.

use crate::device::running::{self, OUT_OF_MEMORY};
use crate::{Error, Result};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const VARIABLE: &str = "QFORMER_FAULT";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Allocate,
    Upload,
    Download,
    Launch,
    Matmul,
}

const CALLS: [(&str, Call); 5] = [
    ("allocate", Call::Allocate),
    ("upload", Call::Upload),
    ("download", Call::Download),
    ("launch", Call::Launch),
    ("matmul", Call::Matmul),
];

#[derive(Debug)]
pub(super) struct Fault {
    call: Call,
    code: u32,
    at: u64,
    seen: AtomicU64,
    met: AtomicBool,
}

impl Fault {
    /// As the environment asks for; none if it does not.
    pub fn from_environment() -> Result<Option<Fault>> {
        let Some(text) = std::env::var_os(VARIABLE) else { return Ok(None) };
        let text = text.to_string_lossy().into_owned();
        let wrong = || Error::argument("device", VARIABLE, "CALL:CODE@N, as launch:700@20", &text);
        Fault::parse(&text).map(Some).ok_or_else(wrong)
    }

    fn parse(text: &str) -> Option<Fault> {
        let (name, rest) = text.split_once(':')?;
        let (code, at) = rest.split_once('@')?;
        let (_, call) = CALLS.into_iter().find(|(known, _)| *known == name)?;
        let (seen, met) = (AtomicU64::new(0), AtomicBool::new(false));
        Some(Fault { call, code: code.parse().ok()?, at: at.parse().ok().filter(|n| *n > 0)?, seen, met })
    }

    /// The code with which a call ends, if it fails.
    pub fn meets(&self, call: Call) -> Option<u32> {
        if call == self.call && self.seen.fetch_add(1, Ordering::Relaxed) + 1 >= self.at {
            self.met.store(true, Ordering::Relaxed);
        }
        let memory = self.code == OUT_OF_MEMORY;
        let fails = self.met.load(Ordering::Relaxed) && (!memory || call == Call::Allocate);
        fails.then_some(self.code)
    }

    pub fn check(&self, call: Call, operation: &str) -> Result<()> {
        self.meets(call).map_or(Ok(()), |code| Err(running::failure(operation, code, "")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_call_fails_and_what_follows() {
        let fault = Fault::parse("launch:700@3").unwrap();
        let calls = [Call::Launch, Call::Upload, Call::Launch, Call::Launch, Call::Upload];
        assert_eq!(calls.map(|c| fault.meets(c)), [None, None, None, Some(700), Some(700)]);
        let fault = Fault::parse("allocate:2@1").unwrap();
        let calls = [Call::Launch, Call::Allocate, Call::Launch, Call::Allocate];
        assert_eq!(calls.map(|c| fault.meets(c)), [None, Some(2), None, Some(2)]);
        for wrong in ["", "launch", "launch:700", "launch:x@1", "launch:700@0", "wait:700@1"] {
            assert!(Fault::parse(wrong).is_none(), "{wrong}");
        }
    }
}
