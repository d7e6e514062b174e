//! The table that says which rows attend to which: segments over packed rows (see `attention` for their meaning).

use crate::device::attention::{self, Segment};
use crate::tensor::{Array, Gpu, Storage};
use crate::{Error, Result};
use std::sync::{Arc, OnceLock};

/// Key positions that a dropout element number has room for.
pub(super) const MAX_KEYS: usize = 1 << 16;

/// A checked table of segments over `q_rows` query rows and `k_rows` key rows.
#[derive(Debug)]
pub struct Segments {
    pub(super) list: Vec<Segment>,
    /// Indices into `list`: segments that share key rows are in one group.
    pub(super) groups: Vec<Vec<usize>>,
    pub(super) q_rows: usize,
    pub(super) k_rows: usize,
    /// The kernels' work lists on a GPU, made when they are first used there.
    tables: OnceLock<Tables>,
}

impl Segments {
    /// A table over `q_rows` query rows and `k_rows` key rows. An error where ranges leave them, a query row is in two segments,
    /// or the a and the b of a segment overlap.
    pub fn new(list: Vec<Segment>, q_rows: usize, k_rows: usize) -> Result<Arc<Segments>> {
        let wrong = |what: &str, want: String, s: &Segment| {
            Err(Error::argument("segments", what, want, format!("{s:?}")))
        };
        for s in &list {
            let ordered = [&s.q, &s.a, &s.b].iter().all(|r| r.start <= r.end);
            if !ordered || s.q.end > q_rows || s.a.end > k_rows || s.b.end > k_rows {
                return wrong("rows", format!("ranges within {q_rows} query and {k_rows} key rows"), s);
            }
            if s.keys() > MAX_KEYS {
                return wrong("keys", format!("at most {MAX_KEYS}"), s);
            }
            if s.a.start.max(s.b.start) < s.a.end.min(s.b.end) {
                return wrong("keys", "a and b apart".into(), s);
            }
        }
        let mut by_q: Vec<&Segment> = list.iter().filter(|s| !s.q.is_empty()).collect();
        by_q.sort_by_key(|s| s.q.start);
        if let Some(pair) = by_q.windows(2).find(|w| w[0].q.end > w[1].q.start) {
            return wrong("query rows", "each row in one segment at most".into(), pair[1]);
        }
        let groups = group(&list);
        Ok(Arc::new(Segments { list, groups, q_rows, k_rows, tables: OnceLock::new() }))
    }

    /// The work lists on this GPU, made once.
    pub(super) fn tables(&self, gpu: &Gpu) -> Result<&Tables> {
        if self.tables.get().is_none() {
            let made = Tables::new(gpu, self)?;
            self.tables.get_or_init(|| made);
        }
        let other = || Error::argument("attention", "segments", "segments used on one GPU", "another GPU");
        self.tables.get().filter(|t| t.gpu.same(gpu)).ok_or_else(other)
    }
}

/// The launches of attention's kernels over a table of segments, in a GPU's memory (see `device::attention`).
#[derive(Debug)]
pub(super) struct Tables {
    gpu: Gpu,
    pub warps: u32,
    pub blocks: Array,
    pub strips: Array,
    pub sets: Array,
    pub members: Array,
    pub most_keys: usize,
    pub key_warps: u32,
    pub tiles: Array,
    pub steps: Array,
}

impl Tables {
    fn new(gpu: &Gpu, segments: &Segments) -> Result<Tables> {
        let plan = attention::WorkLists::new(&segments.list, segments.q_rows, segments.k_rows)?;
        let table = |entries: &[attention::Entry]| gpu.upload("attention", Storage::I32, entries);
        Ok(Tables {
            gpu: gpu.clone(),
            warps: plan.warps,
            blocks: table(&plan.blocks)?,
            strips: table(&plan.strips)?,
            sets: table(&plan.sets)?,
            members: table(&plan.members)?,
            most_keys: plan.most_keys,
            key_warps: plan.key_warps,
            tiles: table(&plan.tiles)?,
            steps: table(&plan.steps)?,
        })
    }
}

/// Groups of segments connected by overlapping key ranges, in order of their first segment.
fn group(list: &[Segment]) -> Vec<Vec<usize>> {
    let mut parent: Vec<usize> = (0..list.len()).collect();
    fn root(parent: &mut [usize], mut i: usize) -> usize {
        while parent[i] != i {
            parent[i] = parent[parent[i]];
            i = parent[i];
        }
        i
    }
    let mut ranges: Vec<(usize, usize, usize)> = (list.iter().enumerate())
        .flat_map(|(i, s)| [(s.a.start, s.a.end, i), (s.b.start, s.b.end, i)])
        .filter(|(start, end, _)| start < end)
        .collect();
    ranges.sort_unstable();
    let mut open: Option<(usize, usize)> = None; // (end of the run so far, one of its segments)
    for (start, end, i) in ranges {
        open = match open {
            Some((until, first)) if start < until => {
                let (a, b) = (root(&mut parent, first), root(&mut parent, i));
                parent[a.max(b)] = a.min(b);
                Some((until.max(end), first))
            }
            _ => Some((end, i)),
        };
    }
    let mut groups: Vec<Vec<usize>> = vec![Vec::new(); list.len()];
    for i in 0..list.len() {
        let r = root(&mut parent, i);
        groups[r].push(i);
    }
    groups.retain(|g| !g.is_empty());
    groups
}

#[cfg(test)]
mod tests {
    use super::{Segment, group};
    use std::ops::Range;

    #[test]
    fn segments_that_share_keys_are_one_group() {
        let groups = |keys: &[[Range<usize>; 2]]| {
            let segment =
                |[a, b]: &[Range<usize>; 2]| Segment { q: 0..0, a: a.clone(), b: b.clone(), causal: false };
            group(&keys.iter().map(segment).collect::<Vec<_>>())
        };
        // Neighbours are apart, and an empty range shares nothing.
        assert_eq!(groups(&[[0..3, 0..0], [3..5, 0..0]]), [[0], [1]]);
        assert_eq!(groups(&[[0..9, 0..0], [12..15, 5..5]]), [[0], [1]]);
        // Chains: by the next key, from behind a short segment, from one range to the other.
        assert_eq!(
            groups(&[[0..3, 0..0], [8..9, 0..0], [2..6, 0..0], [5..7, 0..0]]),
            [vec![0, 2, 3], vec![1]]
        );
        assert_eq!(groups(&[[0..9, 0..0], [1..2, 0..0], [8..10, 0..0]]), [[0, 1, 2]]);
        assert_eq!(groups(&[[0..1, 6..8], [2..3, 0..0], [7..9, 0..0]]), [vec![0, 2], vec![1]]);
    }
}
