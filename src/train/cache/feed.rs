//! Kept tokens for batches: of records that threads read, or gathered from all of them in a GPU's memory.

use super::{Cache, OPERATION};
use crate::ops;
use crate::tensor::{Device, Feed as Rows, Slot, Tensor};
use crate::{Error, Kind, Result};

/// What a batch takes of the cache for a sample.
pub enum Record {
    /// Its bytes.
    Read(Slot),
    /// Its number, where all of them are on the GPU.
    Kept(usize),
}

pub struct Feed {
    rows: Rows,
    /// All records [records*N,W].
    all: Option<Tensor>,
    /// N
    tokens: usize,
}

impl Feed {
    pub fn new(device: &Device, cache: &Cache) -> Result<Feed> {
        let rows = Rows::new(device, cache.settings.storage, cache.sizes)?;
        Ok(Feed { rows, all: None, tokens: cache.sizes[0] })
    }

    pub fn slot(&self) -> Result<Slot> {
        self.rows.slot()
    }

    /// Whether all records are on the GPU.
    pub fn has_all(&self) -> bool {
        self.all.is_some()
    }

    /// Tokens [B*N,W] of a batch, in the storage of the cache on a GPU. They are there after [`Feed::settle`].
    pub fn tokens(&self, records: Vec<Record>) -> Result<Tensor> {
        let Some(all) = &self.all else {
            let slot = |record| if let Record::Read(slot) = record { Some(slot) } else { None };
            return self.rows.rows(records.into_iter().filter_map(slot).collect());
        };
        // Damaged ones were computed again, and put there.
        let number = |record: &Record| if let Record::Kept(number) = record { Some(*number) } else { None };
        let rows = |number: usize| (number * self.tokens) as u32..((number + 1) * self.tokens) as u32;
        let index: Vec<u32> = records.iter().filter_map(number).flat_map(rows).collect();
        ops::gather_rows(all, &index)
    }

    /// What comes next on the device waits for the tokens handed out so far.
    pub fn settle(&self) -> Result<()> {
        self.rows.settle()
    }

    /// Puts all records of a complete cache on the GPU; those that could not be used are zeros there, and never asked for.
    /// `repair` computes a damaged one again.
    pub fn keep_all(
        &mut self,
        cache: &Cache,
        mut repair: impl FnMut(&Cache, usize) -> Result<Vec<u8>>,
    ) -> Result<()> {
        if u32::try_from(cache.len() * self.tokens).is_err() {
            let most = format!("at most {} views", u32::MAX as usize / self.tokens);
            return Err(Error::argument(OPERATION, "cache_on_gpu", most, cache.len()));
        }
        let all = self.rows.table(cache.len()).map_err(|e| match e.kind() {
            Kind::Device => e.fix("leave cache_on_gpu out: its tokens are then read from the disk"),
            _ => e,
        })?;
        for record in (0..cache.len()).filter(|record| cache.is_usable(*record)) {
            let mut slot = self.rows.slot()?;
            if !cache.read(record, slot.bytes_mut())? {
                slot.bytes_mut().copy_from_slice(&repair(cache, record)?);
            }
            self.rows.put(&all, record, &slot)?;
        }
        self.all = Some(all);
        Ok(())
    }
}
