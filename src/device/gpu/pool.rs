//! Memory is asked of the driver in segments and kept: blocks are cut from them, the smallest free piece that is large enough
//! first, and neighbours that are free become one piece again. So what steps of other sizes need is found among what a larger one
//! gave back, and after the first step of a training run the driver is not asked again.

use super::{Gpu, lock};
use crate::Result;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard};

/// Small blocks have segments of their own, which large ones would be hindered by.
const SMALL: usize = 1 << 20;
/// What is asked for at least, for small blocks and for large ones; a multiple of the second.
const SEGMENT: [usize; 2] = [8 << 20, 64 << 20];
const ROUND: usize = 2 << 20;

impl Gpu {
    /// Bytes that this queue's pool has of the driver: for small blocks, for large ones.
    pub fn held(&self) -> [usize; 2] {
        lock(&self.0.pool).held()
    }

    /// Asks at once for as much memory as another pool `held` in a run like the one to come. False if there is not as much.
    pub fn reserve(&self, held: [usize; 2]) -> Result<bool> {
        if self.is_emulated() {
            return Ok(true); // every block is asked for
        }
        let mut pool = lock(&self.0.pool);
        let have = pool.held();
        let missing = [0, 1].map(|class| (class, held[class].saturating_sub(have[class])));
        for (class, bytes) in missing.into_iter().filter(|(_, bytes)| *bytes > 0) {
            if !self.segment(&mut pool, class, &[bytes])? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

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
    /// The operation that asked for it.
    pub op: &'static str,
    /// In all.
    pub bytes: u64,
    /// In so many blocks.
    pub blocks: u64,
}

pub(super) struct Pool {
    granule: usize,
    /// What the driver gave, by address.
    segments: BTreeMap<usize, Segment>,
    /// Free pieces by address, and by size: of segments for small blocks and of those for large ones.
    free: BTreeMap<usize, usize>,
    by_size: [BTreeSet<(usize, usize)>; 2],
    live: HashMap<usize, (&'static str, usize)>,
    usage: Arc<Mutex<Usage>>,
}

#[derive(Clone, Copy)]
struct Segment {
    bytes: usize,
    /// Index of `by_size`.
    class: usize,
}

/// Bytes in use now and at most, of all pools of a device.
#[derive(Debug, Default)]
pub(super) struct Usage {
    live: u64,
    peak: u64,
}

impl Pool {
    /// With a granule of 1 every block is a segment of its own, exactly as long as asked for: a checker sees its end.
    pub fn new(granule: usize, usage: Arc<Mutex<Usage>>) -> Pool {
        Pool {
            granule,
            segments: BTreeMap::new(),
            free: BTreeMap::new(),
            by_size: Default::default(),
            live: HashMap::new(),
            usage,
        }
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        super::lock(&self.usage)
    }

    /// As long as a block for so many bytes is.
    pub fn size_for(&self, bytes: usize) -> usize {
        bytes.max(1).next_multiple_of(self.granule)
    }

    /// Which segments a block of this size is cut from: 0 for small ones, 1 for large ones.
    pub fn class(&self, size: usize) -> usize {
        usize::from(self.granule > 1 && size > SMALL)
    }

    /// What to ask the driver for where no free piece has this size: with room for more, and, if there is none, without.
    pub fn segments_for(&self, size: usize) -> [usize; 2] {
        match (self.granule, self.class(size)) {
            (1, _) => [size; 2],
            (_, class) => [size.next_multiple_of(ROUND).max(SEGMENT[class]), size],
        }
    }

    /// A block of this size out of what is free: of its own class, or, before the driver is asked for more, of large pieces.
    pub fn take(&mut self, op: &'static str, size: usize) -> Option<Block> {
        let find = |class: usize| Some((class, *self.by_size[class].range((size, 0)..).next()?));
        let (class, (piece, at)) = (self.class(size)..2).find_map(find)?;
        if self.granule == 1 && piece != size {
            return None;
        }
        self.remove(class, at, piece);
        if piece > size {
            self.insert(class, at + size, piece - size);
        }
        self.live.insert(at, (op, size));
        let mut usage = self.usage();
        usage.live += size as u64;
        usage.peak = usage.peak.max(usage.live);
        Some(Block { at: at as *mut c_void, bytes: size })
    }

    /// Memory that the driver gave for a class of blocks.
    pub fn adopt(&mut self, at: *mut c_void, bytes: usize, class: usize) {
        self.segments.insert(at as usize, Segment { bytes, class });
        self.insert(class, at as usize, bytes);
    }

    fn insert(&mut self, class: usize, at: usize, bytes: usize) {
        self.free.insert(at, bytes);
        self.by_size[class].insert((bytes, at));
    }

    fn remove(&mut self, class: usize, at: usize, bytes: usize) {
        self.free.remove(&at);
        self.by_size[class].remove(&(bytes, at));
    }

    pub fn give_back(&mut self, at: *mut c_void, bytes: usize) {
        let at = at as usize;
        if self.live.remove(&at).is_none() {
            return;
        }
        self.usage().live -= bytes as u64;
        let Some((&first, &segment)) = self.segments.range(..=at).next_back() else { return };
        let (mut start, mut end) = (at, at + bytes);
        if let Some((&before, &n)) = self.free.range(first..at).next_back()
            && before + n == at
        {
            self.remove(segment.class, before, n);
            start = before;
        }
        if end < first + segment.bytes
            && let Some(&n) = self.free.get(&end)
        {
            self.remove(segment.class, end, n);
            end += n;
        }
        self.insert(segment.class, start, end - start);
    }

    /// The segments of which nothing is in use; the pool forgets them.
    pub fn release(&mut self) -> Vec<*mut c_void> {
        let free = |(at, s): (&usize, &Segment)| {
            (self.free.get(at) == Some(&s.bytes)).then_some((*at, s.bytes, s.class))
        };
        let free: Vec<_> = self.segments.iter().filter_map(free).collect();
        for &(at, bytes, class) in &free {
            self.remove(class, at, bytes);
            self.segments.remove(&at);
        }
        free.into_iter().map(|(at, ..)| at as *mut c_void).collect()
    }

    /// Bytes that the driver gave: for small blocks, for large ones.
    pub fn held(&self) -> [usize; 2] {
        [0, 1].map(|class| self.segments.values().filter(|s| s.class == class).map(|s| s.bytes).sum())
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

    const MB: usize = 1 << 20;

    fn place(block: Option<Block>) -> (usize, usize) {
        block.map_or((0, 0), |b| (b.at() as usize, b.bytes()))
    }

    #[test]
    fn blocks_are_cut_from_segments_and_become_whole_again() {
        let mut pool = Pool::new(512, Arc::default());
        assert_eq!([pool.size_for(0), pool.size_for(513)], [512, 1024]);
        assert_eq!(pool.segments_for(512), [8 * MB, 512]);
        assert_eq!(pool.segments_for(65 * MB + 512), [66 * MB, 65 * MB + 512]);
        assert!(pool.take("a", 2 * MB).is_none(), "an empty pool has nothing");
        pool.adopt((1usize << 40) as *mut c_void, 64 * MB, 1);
        pool.adopt(((1usize << 40) + 64 * MB) as *mut c_void, 64 * MB, 1);
        let small = place(pool.take("a", 1024));
        assert_eq!(small, (1usize << 40, 1024), "there are no small pieces");
        pool.give_back(small.0 as *mut c_void, small.1);
        let [a, b, c] = [20, 30, 14].map(|n| place(pool.take("a", n * MB)));
        assert_eq!([a.0, b.0, c.0], [0, 20, 50].map(|n| (1usize << 40) + n * MB));
        pool.give_back(a.0 as *mut c_void, a.1);
        pool.give_back(c.0 as *mut c_void, c.1);
        assert_eq!(place(pool.take("b", 13 * MB)).0, c.0, "the smallest piece that is large enough");
        assert_eq!(
            pool.holders(),
            [Holder { op: "a", bytes: 30 << 20, blocks: 1 }, Holder { op: "b", bytes: 13 << 20, blocks: 1 }]
        );
        pool.give_back(c.0 as *mut c_void, 13 * MB);
        pool.give_back(b.0 as *mut c_void, b.1);
        pool.give_back(b.0 as *mut c_void, b.1);
        assert!(pool.take("c", 65 * MB).is_none(), "segments that lie side by side stay two");
        assert_eq!(place(pool.take("c", 64 * MB)), (1usize << 40, 64 * MB));
        assert_eq!((pool.restart_peak(), pool.live()), (64 << 20, 64 << 20));
        assert_eq!(pool.release(), [((1usize << 40) + 64 * MB) as *mut c_void], "what is in use stays");
        assert_eq!(pool.held(), [0, 64 * MB]);
    }

    #[test]
    fn a_granule_of_one_hands_out_whole_segments() {
        let mut pool = Pool::new(1, Arc::default());
        assert_eq!(pool.segments_for(5), [5, 5]);
        pool.adopt(4096 as *mut c_void, 5, 0);
        assert!(pool.take("a", 4).is_none());
        let block = place(pool.take("a", 5));
        assert_eq!(block, (4096, 5));
        pool.give_back(4096 as *mut c_void, 5);
        assert_eq!(pool.release().len(), 1);
    }
}
