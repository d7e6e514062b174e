//! Memory that is kept when it is given back, for the next who needs as much: after the first step of a training run
//! the driver is not asked again.

use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard};

/// A piece of the device's memory.
pub struct Block {
    at: *mut c_void,
    bytes: usize,
}

// SAFETY: an address on a device; who holds the block may use it from any thread.
unsafe impl Send for Block {}
unsafe impl Sync for Block {}

impl Block {
    pub fn at(&self) -> *mut c_void {
        self.at
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What an operation holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub op: &'static str,
    pub bytes: u64,
    pub blocks: u64,
}

pub(super) struct Pool {
    granule: usize,
    free: BTreeMap<usize, Vec<usize>>,
    live: HashMap<usize, (&'static str, usize)>,
    usage: Arc<Mutex<Usage>>,
}

/// Bytes in use now and at most, of all pools of a device.
#[derive(Debug, Default)]
pub(super) struct Usage {
    live: u64,
    peak: u64,
}

impl Pool {
    pub fn new(granule: usize, usage: Arc<Mutex<Usage>>) -> Pool {
        Pool { granule, free: BTreeMap::new(), live: HashMap::new(), usage }
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        super::lock(&self.usage)
    }

    /// What to ask the driver for: small blocks in steps of the granule, large ones in eighths of a power of two, so that
    /// batches of nearly the same size find each other's memory. A block serves its own size only: a step that is run
    /// again finds all of its blocks.
    pub fn size_for(&self, bytes: usize) -> usize {
        if self.granule == 1 {
            return bytes.max(1);
        }
        let step = (bytes.next_power_of_two() / 16).max(self.granule);
        bytes.max(1).div_ceil(step) * step
    }

    /// A free block of the size that `bytes` ask for.
    pub fn take(&mut self, op: &'static str, bytes: usize) -> Option<Block> {
        let size = self.size_for(bytes);
        let at = self.free.get_mut(&size)?.pop()?;
        Some(self.enter(op, at, size))
    }

    /// A block that the driver gave.
    pub fn adopt(&mut self, op: &'static str, at: *mut c_void, size: usize) -> Block {
        self.enter(op, at as usize, size)
    }

    fn enter(&mut self, op: &'static str, at: usize, bytes: usize) -> Block {
        self.live.insert(at, (op, bytes));
        let mut usage = self.usage();
        usage.live += bytes as u64;
        usage.peak = usage.peak.max(usage.live);
        Block { at: at as *mut c_void, bytes }
    }

    pub fn give_back(&mut self, at: *mut c_void, bytes: usize) {
        if self.live.remove(&(at as usize)).is_some() {
            self.usage().live -= bytes as u64;
            self.free.entry(bytes).or_default().push(at as usize);
        }
    }

    /// All free blocks, which the pool forgets.
    pub fn release(&mut self) -> Vec<*mut c_void> {
        std::mem::take(&mut self.free).into_values().flatten().map(|at| at as *mut c_void).collect()
    }

    pub fn live(&self) -> u64 {
        self.usage().live
    }

    /// The peak so far; the next begins at what is in use.
    pub fn restart_peak(&mut self) -> u64 {
        let mut usage = self.usage();
        let live = usage.live;
        std::mem::replace(&mut usage.peak, live)
    }

    pub fn holders(&self) -> Vec<Holder> {
        let mut by_op: BTreeMap<&'static str, (u64, u64)> = BTreeMap::new();
        for (op, bytes) in self.live.values() {
            let sum = by_op.entry(op).or_default();
            *sum = (sum.0 + *bytes as u64, sum.1 + 1);
        }
        let mut all: Vec<Holder> =
            by_op.into_iter().map(|(op, (bytes, blocks))| Holder { op, bytes, blocks }).collect();
        all.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(a.op.cmp(b.op)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_to_who_needs_about_as_much() {
        let mut pool = Pool::new(512, Arc::default());
        assert_eq!([pool.size_for(1), pool.size_for(513), pool.size_for(1 << 20)], [512, 1024, 1 << 20]);
        let size = pool.size_for((1 << 20) + 1);
        assert!(size > 1 << 20 && size <= (1 << 20) + (1 << 17), "{size}");
        assert!(pool.take("a", 1000).is_none(), "an empty pool has nothing");
        let a = pool.adopt("a", 0x1000 as *mut c_void, 1024);
        assert!(pool.take("b", 1000).is_none(), "it is in use");
        assert_eq!(pool.holders(), [Holder { op: "a", bytes: 1024, blocks: 1 }]);
        pool.give_back(a.at(), a.bytes());
        assert!(pool.take("b", 100).is_none(), "too large");
        let b = pool.take("b", 900).map(|b| (b.at() as usize, b.bytes()));
        assert_eq!(b, Some((0x1000, 1024)));
        assert_eq!((pool.restart_peak(), pool.live()), (1024, 1024));
        assert!(pool.release().is_empty(), "what is in use stays");
    }
}
