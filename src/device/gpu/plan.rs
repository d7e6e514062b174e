//! A GPU that computes nothing: memory, launches, matmuls and bytes are counted as on any other, downloads are zeros. It
//! tells what a step would take - on a machine without a GPU, in the time that the launches themselves need.

use super::{Driver, Kernels, Matmul, Memory};
use crate::Result;
use crate::device::cards::{self, Card};
use crate::device::launch::{Arg, Launch};
use crate::device::setup;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Above every address that a process has.
const FIRST: usize = 1 << 56;

struct Plan {
    /// The GPU that is stood in for, if it is a known one.
    card: Option<&'static Card>,
    memory: u64,
    next: Arc<AtomicUsize>,
    /// By all streams.
    used: Arc<AtomicU64>,
    sizes: Mutex<HashMap<usize, usize>>,
}

/// What an H200 offers to programs.
pub(in crate::device) const H200: u64 = cards::H200.memory;

/// A GPU with so much memory free, on which everything succeeds that fits.
pub(in crate::device) fn of(memory: u64) -> Box<dyn Driver> {
    Box::new(Plan::new(None, memory))
}

/// A known GPU, of whose memory a margin is kept as of a real one's.
pub(in crate::device) fn card(card: &'static Card) -> Box<dyn Driver> {
    Box::new(Plan::new(Some(card), card.memory))
}

impl Plan {
    fn new(card: Option<&'static Card>, memory: u64) -> Plan {
        let next = Arc::new(AtomicUsize::new(FIRST));
        Plan { card, memory, next, used: Arc::default(), sizes: Mutex::default() }
    }

    fn sizes(&self) -> MutexGuard<'_, HashMap<usize, usize>> {
        super::lock(&self.sizes)
    }
}

impl Driver for Plan {
    fn name(&self) -> String {
        let of = self.card.map_or_else(String::new, |card| format!(" of an {}", card.title));
        format!("a plan{of} (nothing is computed)")
    }

    fn card(&self) -> Option<&'static Card> {
        self.card
    }

    fn has_warp_groups(&self) -> bool {
        self.card.is_none_or(|card| card.warp_groups)
    }

    fn computes(&self) -> bool {
        false
    }

    fn memory(&self) -> Option<Memory> {
        let free = self.memory - self.used.load(Ordering::Relaxed);
        let usable = if self.card.is_some() { setup::usable(free, self.memory, false) } else { free };
        Some(Memory { usable, free, total: self.memory, shared: false })
    }

    fn blocks(&self) -> usize {
        self.card.unwrap_or(&cards::H200).multiprocessors
    }

    fn granule(&self) -> usize {
        512
    }

    fn allocate(&self, bytes: usize) -> Result<Option<*mut c_void>> {
        let fits = |used: u64| used.checked_add(bytes as u64).filter(|n| *n <= self.memory);
        let Some(room) = bytes.checked_next_multiple_of(512) else { return Ok(None) };
        if self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
            return Ok(None);
        }
        let at = self.next.fetch_add(room, Ordering::Relaxed);
        self.sizes().insert(at, bytes);
        Ok(Some(at as *mut c_void))
    }

    fn free(&self, at: *mut c_void) {
        let bytes = self.sizes().remove(&(at as usize)).unwrap_or(0);
        self.used.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    fn fresh(&self, _at: *mut c_void, _bytes: usize) {}

    /// Launches of any name are counted.
    fn load(&self, _kernels: Kernels) -> Result<()> {
        Ok(())
    }

    fn upload(&self, _to: *mut c_void, _from: &[u8]) -> Result<()> {
        Ok(())
    }

    fn download(&self, _from: *mut c_void, to: &mut [u8]) -> Result<()> {
        to.fill(0);
        Ok(())
    }

    fn copy(&self, _from: *mut c_void, _to: *mut c_void, _bytes: usize) -> Result<()> {
        Ok(())
    }

    fn zero(&self, _at: *mut c_void, _bytes: usize) -> Result<()> {
        Ok(())
    }

    fn launch(&self, launch: &Launch, _args: &[Arg]) -> Result<()> {
        launch.check_grid()
    }

    fn matmul(&self, _matmul: &Matmul) -> Result<()> {
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn side(&self) -> Result<Box<dyn Driver>> {
        let (next, used) = (Arc::clone(&self.next), Arc::clone(&self.used));
        Ok(Box::new(Plan { card: self.card, memory: self.memory, next, used, sizes: Mutex::default() }))
    }

    /// Everything is done when its call returns.
    fn mark(&self) -> Result<u64> {
        Ok(0)
    }

    fn wait(&self, _mark: u64) -> Result<()> {
        Ok(())
    }

    fn stamp(&self) -> Result<u64> {
        Ok(0)
    }

    fn between(&self, _start: u64, _end: u64) -> Result<f64> {
        Ok(0.0)
    }
}
