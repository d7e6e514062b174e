//! Buffers of the host's memory that a GPU copies from by itself: page-locked where the driver has such memory. They are made
//! once and used again and again, so that what is read into one is copied by nobody else, and no page is touched anew.

use super::{Array, Gpu, lock};
use crate::{Error, Result};
use std::ffi::c_void;
use std::sync::{Arc, Mutex};

/// Buffers of one size.
#[derive(Clone)]
pub struct Slots(Arc<Shared>);

struct Shared {
    bytes: usize,
    /// None on the CPU.
    gpu: Option<Gpu>,
    free: Mutex<Vec<Memory>>,
}

enum Memory {
    /// An address that `Driver::pin` gave.
    Pinned(*mut c_void),
    Plain(Vec<u8>),
}

// SAFETY: memory of the host that one slot, or the list of free ones, owns.
unsafe impl Send for Memory {}
unsafe impl Sync for Memory {}

/// One of them, until it is dropped.
pub struct Slot {
    memory: Memory,
    shared: Arc<Shared>,
}

impl Slots {
    /// For a GPU's stream, or for the CPU; none is made yet.
    pub fn new(gpu: Option<Gpu>, bytes: usize) -> Slots {
        Slots(Arc::new(Shared { bytes, gpu, free: Mutex::default() }))
    }

    /// A free one, or a new one.
    pub fn take(&self) -> Result<Slot> {
        let shared = self.0.clone();
        let free = lock(&shared.free).pop();
        if let Some(memory) = free {
            return Ok(Slot { memory, shared });
        }
        let pinned = match &shared.gpu {
            Some(gpu) => gpu.driver().pin(shared.bytes)?,
            None => None,
        };
        let memory = pinned.map_or_else(|| Memory::Plain(vec![0; shared.bytes]), Memory::Pinned);
        Ok(Slot { memory, shared })
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        lock(&self.0.free).len()
    }
}

impl Slot {
    /// What was read into it.
    pub fn bytes(&self) -> &[u8] {
        match &self.memory {
            // SAFETY: as many bytes as were asked for, this slot's alone; a GPU only reads them.
            Memory::Pinned(at) => unsafe { std::slice::from_raw_parts(at.cast::<u8>(), self.shared.bytes) },
            Memory::Plain(bytes) => bytes,
        }
    }

    /// To read into.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            // SAFETY: as above; who holds the slot while a GPU copies from it keeps it in `Flight`, which hands out nothing.
            Memory::Pinned(at) => unsafe {
                std::slice::from_raw_parts_mut(at.cast::<u8>(), self.shared.bytes)
            },
            Memory::Plain(bytes) => bytes,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let memory = std::mem::replace(&mut self.memory, Memory::Plain(Vec::new()));
        lock(&self.shared.free).push(memory);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for memory in lock(&self.free).drain(..) {
            if let (Memory::Pinned(at), Some(gpu)) = (memory, &self.gpu) {
                gpu.driver().unpin(at);
            }
        }
    }
}

/// A point in a queue.
pub struct Mark(u64);

impl Gpu {
    /// What this queue was asked for so far, for [`Gpu::wait_for`] of another one, or [`Gpu::reach`].
    pub fn mark(&self) -> Result<Mark> {
        self.driver().mark().map(Mark)
    }

    /// What comes next here waits until another queue has reached that point.
    pub fn wait_for(&self, mark: Mark) -> Result<()> {
        self.driver().wait(mark.0)
    }

    /// Waits until this queue has reached that point.
    pub fn reach(&self, mark: Mark) -> Result<()> {
        self.driver().reach(mark.0)
    }
}

/// Slots that a GPU copies from, until it has.
pub struct Flight {
    slots: Vec<Slot>,
    landed: Option<Mark>,
    gpu: Gpu,
}

impl Flight {
    /// Copies slots into an array, one after the other. Nobody waits, and no byte is copied by the host where the slots are
    /// page-locked.
    pub fn start(slots: Vec<Slot>, to: &Array) -> Result<Flight> {
        let bytes: usize = slots.iter().map(|slot| slot.bytes().len()).sum();
        if bytes != to.bytes() {
            return Err(Error::argument("upload", "bytes", to.bytes(), bytes));
        }
        let gpu = to.gpu().clone();
        // From here on the slots are kept until the device is done with them, whatever fails.
        let mut flight = Flight { slots, landed: None, gpu };
        let mut at = to.pointer();
        for slot in &flight.slots {
            let from = slot.bytes();
            flight.gpu.count(|c| c.uploaded += from.len() as u64);
            match slot.memory {
                Memory::Pinned(_) => flight.gpu.driver().upload_pinned(at, from)?,
                Memory::Plain(_) => flight.gpu.driver().upload(at, from)?,
            }
            at = at.wrapping_byte_add(from.len());
        }
        flight.landed = Some(flight.gpu.mark()?);
        Ok(flight)
    }

    /// Gives the slots back, when the device has copied them.
    pub fn land(mut self) -> Result<()> {
        self.wait()
    }

    fn wait(&mut self) -> Result<()> {
        let waited = match self.landed.take() {
            Some(mark) => self.gpu.reach(mark),
            None if self.slots.is_empty() => Ok(()),
            None => self.gpu.synchronize(),
        };
        self.slots.clear();
        waited
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // A device that fails copies nothing any more.
        let _ = self.wait();
    }
}
