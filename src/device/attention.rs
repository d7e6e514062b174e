//! The tables from which the attention kernels work (`kernels/attention.cuh` says what their numbers mean): which warp
//! takes which rows, with many short segments packed into the blocks of a launch, and which rows are added to which
//! gradient, so that each has one owner.

use crate::{Error, Result};
use std::collections::HashMap;
use std::ops::Range;

/// Rows of a warp, and rows of a tile in shared memory.
const STRIP: usize = 16;
const TILE: usize = 32;
const MOST_WARPS: usize = 4;
/// More than any position: where nothing is causal.
const ALL: i32 = 1 << 30;

/// Query rows `q` see all key rows of `a`, and those of `b`: all, or if causal row i those up to b's i-th.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The query rows.
    pub q: Range<usize>,
    /// Key rows that all of them see.
    pub a: Range<usize>,
    /// Key rows behind those of `a`.
    pub b: Range<usize>,
    /// Whether row i of q sees b only up to its i-th row.
    pub causal: bool,
}

impl Segment {
    pub(crate) fn keys(&self) -> usize {
        self.a.len() + self.b.len()
    }

    /// How many keys row i of q sees (a first, then b).
    pub(crate) fn visible(&self, i: usize) -> usize {
        self.a.len() + if self.causal { self.b.len().min(i + 1) } else { self.b.len() }
    }

    /// The key rows with the column of the score matrix at which they begin.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (usize, &Range<usize>)> {
        [(0, &self.a), (self.a.len(), &self.b)].into_iter().filter(|(_, r)| !r.is_empty())
    }
}

/// Four numbers of a table, as the kernels read them.
pub type Entry = [i32; 4];

/// What the warps of attention's launches do, for one table of segments that `ops::Segments` has checked: ranges within the
/// tensors, no query row in two, a and b apart. Grids are (`blocks`, `sets` or `tiles`, heads), blocks 32 threads times the
/// warps (of sets: four).
#[derive(Debug, Default)]
pub struct WorkLists {
    /// Warps of a block of queries.
    pub warps: u32,
    /// What each block of queries works on.
    pub blocks: Vec<Entry>,
    /// The rows of its strips.
    pub strips: Vec<Entry>,
    /// Every set of keys once, and its strips.
    pub sets: Vec<Entry>,
    /// The segments of each set of keys.
    pub members: Vec<Entry>,
    /// Of a set.
    pub most_keys: usize,
    /// Warps of a block of keys.
    pub key_warps: u32,
    /// What each block of keys works on.
    pub tiles: Vec<Entry>,
    /// The queries that each block of keys goes through.
    pub steps: Vec<Entry>,
}

impl WorkLists {
    /// The lists of these segments.
    pub fn new(segments: &[Segment], q_rows: usize, k_rows: usize) -> Result<WorkLists> {
        let most = q_rows.max(k_rows);
        if most >= ALL as usize {
            return Err(Error::argument("attention", "rows", format!("fewer than {ALL}"), most));
        }
        let mut plan = WorkLists::default();
        plan.queries(segments, q_rows);
        plan.keys(segments, k_rows);
        Ok(plan)
    }

    /// Blocks and strips: strips that see the same keys side by side.
    fn queries(&mut self, segments: &[Segment], q_rows: usize) {
        let mut groups: Vec<(Entry, Vec<Entry>)> = Vec::new();
        let mut known: HashMap<Entry, usize> = HashMap::new();
        let mut add = |block: Entry, rows: Range<usize>, first: Option<usize>| {
            let group = *known.entry(block).or_insert_with(|| {
                groups.push((block, Vec::new()));
                groups.len() - 1
            });
            for at in rows.clone().step_by(STRIP) {
                let first = first.map_or(ALL, |f| int(f + at - rows.start));
                groups[group].1.push([int(at), int(STRIP.min(rows.end - at)), first, 0]);
            }
        };
        for s in segments {
            let block = [int(s.a.start), int(s.a.len()), int(s.b.start), int(s.a.len() + s.b.len())];
            add(block, s.q.clone(), s.causal.then_some(s.a.len() + 1));
        }
        for rows in gaps(segments.iter().map(|s| &s.q), q_rows) {
            add([0; 4], rows, None);
        }
        self.warps = warps(groups.iter().map(|(_, strips)| strips.len()).max());
        for (block, strips) in groups {
            if strips.is_empty() {
                continue;
            }
            let begin = self.strips.len();
            self.most_keys = self.most_keys.max(block[3] as usize);
            self.sets.push(block);
            self.members.push([int(begin), int(begin + strips.len()), 0, 0]);
            for part in strips.chunks(self.warps as usize) {
                self.blocks.push(block);
                self.strips.extend_from_slice(part);
                self.strips.resize(self.blocks.len() * self.warps as usize, [0; 4]);
            }
        }
    }

    /// Tiles and steps: key rows cut wherever a range begins or ends, so that a segment sees all of a piece or nothing.
    fn keys(&mut self, segments: &[Segment], k_rows: usize) {
        let parts =
            || segments.iter().filter(|s| !s.q.is_empty()).flat_map(|s| [(s, &s.a, 0), (s, &s.b, s.a.len())]);
        let mut cuts: Vec<usize> =
            parts().flat_map(|(_, r, _)| [r.start, r.end]).chain([0, k_rows]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        // for each piece between two cuts: who sees it, and the position its first row has there
        let mut seen_by: Vec<Vec<(&Segment, usize)>> = vec![Vec::new(); cuts.len()];
        for (s, rows, position) in parts() {
            let first = cuts.partition_point(|c| *c < rows.start);
            for (piece, cut) in cuts.iter().enumerate().skip(first).take_while(|(_, c)| **c < rows.end) {
                seen_by[piece].push((s, position + cut - rows.start));
            }
        }
        self.key_warps = warps(cuts.windows(2).map(|w| (w[1] - w[0]).div_ceil(STRIP)).max());
        let tile_rows = self.key_warps as usize * STRIP;
        for (piece, users) in cuts.windows(2).zip(&seen_by) {
            for row in (piece[0]..piece[1]).step_by(tile_rows) {
                let begin = int(self.steps.len());
                for (s, position) in users {
                    self.add_steps(s, position + row - piece[0]);
                }
                let rows = int(tile_rows.min(piece[1] - row));
                self.tiles.push([int(row), rows, begin, int(self.steps.len())]);
            }
        }
    }

    /// The query rows of a segment that see a tile whose first key has this position.
    fn add_steps(&mut self, s: &Segment, position: usize) {
        for first in (0..s.q.len()).step_by(TILE) {
            let rows = int(TILE.min(s.q.len() - first));
            let diagonal = if s.causal { int(s.a.len() + first) - int(position) } else { ALL };
            if diagonal + rows > 0 {
                self.steps.push([int(s.q.start + first), rows, int(position), diagonal]);
            }
        }
    }
}

/// Row counts were checked to fit.
fn int(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// The fewest warps (a power of two) that hold so many strips, up to the most a block has.
fn warps(strips: Option<usize>) -> u32 {
    strips.unwrap_or(1).next_power_of_two().clamp(1, MOST_WARPS) as u32
}

/// What these ranges leave of 0..rows.
fn gaps<'a>(ranges: impl Iterator<Item = &'a Range<usize>>, rows: usize) -> Vec<Range<usize>> {
    let mut sorted: Vec<&Range<usize>> = ranges.filter(|r| !r.is_empty()).collect();
    sorted.sort_by_key(|r| r.start);
    let ends = sorted.iter().map(|r| r.start).chain([rows]);
    let starts = std::iter::once(0).chain(sorted.iter().map(|r| r.end));
    starts.zip(ends).filter(|(start, end)| start < end).map(|(start, end)| start..end).collect()
}
