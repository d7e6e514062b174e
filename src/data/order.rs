//! Which samples make up batch number `step`: a function of the seed and the step, with no state.
//!
//! One walk is over one data set, or over several put end to end (LAVIS's concatenated data sets): each
//! epoch is a new permutation, drawn from (seed, epoch), cut into batches; what is left over at an epoch's
//! end is dropped, as LAVIS does in training. With ratios (LAVIS's `sample_ratios`) every data set has its own
//! walk, and each batch comes whole from one of them, drawn with probability ratio / sum of ratios.
//! For evaluation, [`Order::in_turn`] goes once over everything, the last batch being smaller.
//!
//! Indices count over all data sets put end to end. What is remembered (the current permutation, how
//! often each walk was drawn so far) only saves time: it is computed again from the seed whenever it is not there.

use super::random::Draws;
use crate::{Error, Result};
use std::sync::{Arc, Mutex, PoisonError};

const SITE_SHUFFLE: u32 = 1;
const SITE_RATIO: u32 = 2;
/// Every so many steps the draws of the walks are counted up and remembered.
const STRIDE: u64 = 1024;

/// An epoch's number and its permutation.
type Epoch = (u64, Arc<Vec<u32>>);

#[derive(Debug)]
struct Walk {
    offset: usize,
    len: u32,
    /// The last permutation of an even and of an odd epoch, as threads may still be at the end of the one before.
    recent: [Mutex<Option<Epoch>>; 2],
}

#[derive(Debug)]
enum Kind {
    Shuffled { seed: u64 },
    Ratios { seed: u64, cumulated: Vec<f64>, counts: Mutex<Vec<Vec<u64>>> },
    InTurn,
}

/// Which samples are in which batch.
#[derive(Debug)]
pub struct Order {
    walks: Vec<Walk>,
    batch: usize,
    total: usize,
    kind: Kind,
    share: Option<Share>,
}

/// Batches that one of several readers takes: of every `of` in turn those from `first` on, `own` of them.
#[derive(Clone, Copy, Debug)]
struct Share {
    own: u64,
    of: u64,
    first: u64,
}

impl Order {
    /// The order of training over data sets of these sizes.
    pub fn shuffled(seed: u64, batch: usize, sizes: &[usize], ratios: Option<&[f64]>) -> Result<Order> {
        let total = checked_total(batch, sizes)?;
        let Some(ratios) = ratios else {
            let kind = Kind::Shuffled { seed };
            return Order { walks: vec![Walk::new(0, total)], batch, total, kind, share: None }
                .with_full_batches();
        };
        let wrong = |got| Error::argument("order", "ratios", "a positive number for each data set", got);
        if ratios.len() != sizes.len() {
            return Err(wrong(format!("{} for {} data sets", ratios.len(), sizes.len())));
        }
        if let Some(bad) = ratios.iter().find(|r| !r.is_finite() || **r <= 0.0) {
            return Err(wrong(bad.to_string()));
        }
        let (mut walks, mut offset) = (Vec::new(), 0);
        for &size in sizes {
            walks.push(Walk::new(offset, size));
            offset += size;
        }
        let mut sum = 0.0;
        let cumulated = ratios.iter().map(|r| (sum += r, sum).1).collect();
        let counts = Mutex::new(vec![vec![0; sizes.len()]]);
        let kind = Kind::Ratios { seed, cumulated, counts };
        Order { walks, batch, total, kind, share: None }.with_full_batches()
    }

    /// Once over `size` samples, in their own order.
    pub fn in_turn(batch: usize, size: usize) -> Result<Order> {
        let total = checked_total(batch, &[size])?;
        Ok(Order { walks: vec![Walk::new(0, total)], batch, total, kind: Kind::InTurn, share: None })
    }

    /// Of every `of` batches the `own` from `first` on: what one of several readers of the same order reads. Steps count its own.
    pub fn shared(self, own: usize, of: usize, first: usize) -> Order {
        let [own, of, first] = [own, of, first].map(|n| n as u64);
        Order { share: Some(Share { own: own.max(1), of, first }), ..self }
    }

    /// The number of a reader's batch among those of all.
    pub fn among_all(&self, step: u64) -> u64 {
        self.share.map_or(step, |s| step / s.own * s.of + s.first + step % s.own)
    }

    fn with_full_batches(self) -> Result<Order> {
        match self.walks.iter().map(|w| w.len as usize).min() {
            Some(smallest) if smallest >= self.batch => Ok(self),
            smallest => {
                let expected =
                    format!("at most {}, the size of the smallest data set", smallest.unwrap_or(0));
                Err(Error::argument("order", "batch size", expected, self.batch)
                    .fix("choose a smaller batch"))
            }
        }
    }

    /// The indices of this batch; empty after the end of an order in turn.
    pub fn batch(&self, step: u64) -> Vec<usize> {
        (0..self.batch_len(step)).filter_map(|slot| self.at(step, slot)).collect()
    }

    /// How many samples batch number `step` has.
    pub fn batch_len(&self, step: u64) -> usize {
        match self.kind {
            Kind::InTurn => {
                let done = usize::try_from(step).unwrap_or(usize::MAX).saturating_mul(self.batch);
                self.total.saturating_sub(done).min(self.batch)
            }
            _ => self.batch,
        }
    }

    /// The sample in this slot of this batch.
    pub fn at(&self, step: u64, slot: usize) -> Option<usize> {
        self.spare(step, slot, 0)
    }

    /// The sample to take where those of `ahead` earlier tries were unusable: the one in the same
    /// slot that many batches later in the same walk. Depends on nothing else in the batch.
    pub fn spare(&self, step: u64, slot: usize, ahead: u64) -> Option<usize> {
        if slot >= self.batch_len(step.saturating_add(ahead)) {
            return None;
        }
        let (walk, turn) = self.walk(self.among_all(step));
        let walk = self.walks.get(walk)?;
        let turn = turn + ahead;
        let seed = match self.kind {
            Kind::InTurn => return Some(turn as usize * self.batch + slot),
            Kind::Shuffled { seed } | Kind::Ratios { seed, .. } => seed,
        };
        let per_epoch = (walk.len as usize / self.batch) as u64;
        let order = walk.permutation(seed, turn / per_epoch);
        let place = (turn % per_epoch) as usize * self.batch + slot;
        order.get(place).map(|&i| walk.offset + i as usize)
    }

    /// The epoch of this step: how often the walk of its batch has started over.
    pub fn epoch(&self, step: u64) -> u64 {
        let (walk, turn) = self.walk(self.among_all(step));
        let len = self.walks.get(walk).map_or(1, |w| w.len as usize);
        if self.replaces() { turn / (len / self.batch) as u64 } else { 0 }
    }

    /// Batches in an epoch, all walks together.
    pub fn steps_per_epoch(&self) -> u64 {
        if self.replaces() {
            self.walks.iter().map(|w| (w.len as usize / self.batch) as u64).sum()
        } else {
            self.total.div_ceil(self.batch) as u64
        }
    }

    /// All samples of all data sets.
    pub fn total(&self) -> usize {
        self.total
    }

    /// True for training: an unusable sample is replaced by a later one. In turn it is left out.
    pub fn replaces(&self) -> bool {
        !matches!(self.kind, Kind::InTurn)
    }

    /// Which walk this batch is of, and how many batches of it came before.
    fn walk(&self, step: u64) -> (usize, u64) {
        let Kind::Ratios { seed, cumulated, counts } = &self.kind else { return (0, step) };
        let draws = |step: u64| Draws::new(*seed, [SITE_RATIO, (step >> 32) as u32, 0]).unit(step as u32);
        let pick = |step: u64| {
            let u = draws(step) * cumulated.last().copied().unwrap_or(1.0);
            cumulated.partition_point(|&c| c <= u).min(cumulated.len() - 1)
        };
        let count = |before: &[u64], range: std::ops::Range<u64>| {
            let mut turns = before.to_vec();
            range.for_each(|s| turns[pick(s)] += 1);
            turns
        };
        let stretch = step / STRIDE;
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        while (counts.len() as u64) <= stretch {
            let done = counts.len() as u64 - 1;
            let next = count(&counts[done as usize], done * STRIDE..(done + 1) * STRIDE);
            counts.push(next);
        }
        let turns = count(&counts[stretch as usize], stretch * STRIDE..step);
        let walk = pick(step);
        (walk, turns[walk])
    }
}

impl Walk {
    fn new(offset: usize, len: usize) -> Self {
        Walk { offset, len: len as u32, recent: [Mutex::new(None), Mutex::new(None)] }
    }

    fn permutation(&self, seed: u64, epoch: u64) -> Arc<Vec<u32>> {
        let [even, odd] = &self.recent;
        let recent = if epoch.is_multiple_of(2) { even } else { odd };
        let mut recent = recent.lock().unwrap_or_else(PoisonError::into_inner);
        match &*recent {
            Some((known, order)) if *known == epoch => order.clone(),
            _ => {
                let name = [SITE_SHUFFLE, epoch as u32, self.offset as u32];
                let order = Arc::new(Draws::new(seed, name).permutation(self.len));
                *recent = Some((epoch, order.clone()));
                order
            }
        }
    }
}

/// The number of samples, after refusing empty batches, empty data sets and more than 2^32 - 1 samples.
fn checked_total(batch: usize, sizes: &[usize]) -> Result<usize> {
    if batch == 0 {
        return Err(Error::argument("order", "batch size", "at least 1", 0));
    }
    if sizes.is_empty() || sizes.contains(&0) {
        return Err(Error::argument(
            "order",
            "data sets",
            "at least one sample in each",
            format!("{sizes:?}"),
        ));
    }
    let total = sizes.iter().fold(0usize, |sum, &n| sum.saturating_add(n));
    if u32::try_from(total).is_err() {
        return Err(Error::argument("order", "data sets", "fewer than 2^32 samples", total));
    }
    Ok(total)
}
