//! Rows that are kept in files, on their way to a device. They are read into slots that a GPU copies from by itself, in a stream of
//! its own: who trains copies nothing and waits for nothing.

use super::{Device, Flight, Gpu, Mark, Slot, Slots, Storage, Tensor};
use crate::{Error, Result};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

const OP: &str = "kept rows";

/// Rows on their way to a device, a slot at a time.
pub struct Feed {
    device: Device,
    /// For uploads.
    side: Option<Gpu>,
    slots: Slots,
    storage: Storage,
    /// [rows, columns] of a slot.
    sizes: [usize; 2],
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Uploads that the device's own stream has not been told to wait for.
    pending: Vec<Mark>,
    flights: VecDeque<Flight>,
}

impl Feed {
    /// Of slots that hold so many rows and columns.
    pub fn new(device: &Device, storage: Storage, sizes: [usize; 2]) -> Result<Feed> {
        let side = if let Device::Gpu(gpu) = device { Some(gpu.side()?) } else { None };
        let slots = Slots::new(side.clone(), sizes[0] * sizes[1] * storage.bytes());
        Ok(Feed { device: device.clone(), side, slots, storage, sizes, state: Mutex::default() })
    }

    /// One to read rows into.
    pub fn slot(&self) -> Result<Slot> {
        self.slots.take()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rows of slots, one after the other: in their storage on a GPU, where they are after [`Feed::settle`], in f32 on the CPU.
    pub fn rows(&self, slots: Vec<Slot>) -> Result<Tensor> {
        let [n, w] = self.sizes;
        let (Some(side), Device::Gpu(gpu)) = (&self.side, &self.device) else {
            let mut wide = Vec::with_capacity(slots.len() * n * w);
            for slot in &slots {
                let part = Tensor::of_stored(&self.device, self.storage, slot.bytes(), &[n, w])?;
                wide.extend_from_slice(part.data::<f32>());
            }
            return Tensor::new(wide, &[slots.len() * n, w]);
        };
        let rows = slots.len() * n;
        // Whoever used the memory last is done.
        side.after(gpu)?;
        let to = side.array(OP, self.storage, rows * w)?;
        let mut state = self.state();
        // All but the last are long done.
        while state.flights.len() > 1 {
            state.flights.pop_front().map_or(Ok(()), Flight::land)?;
        }
        state.flights.push_back(Flight::start(slots, &to)?);
        state.pending.push(side.mark()?);
        Tensor::of_array(to.on(gpu), &[rows, w])
    }

    /// What comes next on the device waits for the rows handed out so far.
    pub fn settle(&self) -> Result<()> {
        let Device::Gpu(gpu) = &self.device else { return Ok(()) };
        self.state().pending.drain(..).try_for_each(|mark| gpu.wait_for(mark))
    }

    /// Room for `slots` slots' rows on a GPU, all of them zeros.
    pub fn table(&self, slots: usize) -> Result<Tensor> {
        Tensor::zeros_on(&self.device, self.storage, &[slots * self.sizes[0], self.sizes[1]])
    }

    /// Puts a slot's rows into a table, as its slot `number`.
    pub fn put(&self, table: &Tensor, number: usize, slot: &Slot) -> Result<()> {
        let n = self.sizes[0];
        let Some(rows) = table.slice_rows(number * n..(number + 1) * n)?.array() else {
            return Err(Error::argument(OP, "table", "one on a GPU", "one on the CPU"));
        };
        rows.write(slot.bytes())
    }
}
