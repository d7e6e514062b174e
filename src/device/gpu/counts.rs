//! What was asked of a GPU, counted.

use super::matmul;
use std::collections::BTreeMap;

/// What was done since the counts were last taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Of every kernel, by its name.
    pub launches: BTreeMap<String, Launches>,
    /// Matmuls by shape and storages, and the 2mnk of all.
    pub matmuls: BTreeMap<String, Launches>,
    /// Of matmuls: 2mnk each.
    pub flops: u64,
    /// Copies within the device, and memory set to zero.
    pub copies: u64,
    /// Times the host waited for the device: for what it reads, or for everything.
    pub waits: u64,
    /// Bytes from and to the host's memory.
    pub uploaded: u64,
    /// Bytes to the host.
    pub downloaded: u64,
    /// Times the driver was asked for memory, because the pool had none that fits.
    pub allocations: u64,
    /// The most bytes in use at a time.
    pub peak: u64,
}

/// How often something was launched, the bytes of the memory it was handed (read, written or both: once), and its 2mnk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Launches {
    /// How many there were.
    pub count: u64,
    /// Read and written.
    pub bytes: u64,
    /// Of matmuls: 2mnk each.
    pub flops: u64,
}

impl Counts {
    /// Launches of all kernels.
    pub fn launched(&self) -> u64 {
        self.launches.values().map(|l| l.count).sum()
    }

    /// Matmuls.
    pub fn multiplied(&self) -> u64 {
        self.matmuls.values().map(|l| l.count).sum()
    }

    /// Bytes of all kernels and matmuls.
    pub fn moved(&self) -> u64 {
        self.launches.values().chain(self.matmuls.values()).map(|l| l.bytes).sum()
    }
}

/// Counts while they grow: matmuls get their names when somebody asks.
#[derive(Default)]
pub(super) struct Tally {
    pub counts: Counts,
    pub matmuls: BTreeMap<matmul::Kind, Launches>,
}

impl Launches {
    pub(super) fn add(&mut self, bytes: usize, flops: u64) {
        (self.count, self.bytes, self.flops) =
            (self.count + 1, self.bytes + bytes as u64, self.flops + flops);
    }
}
