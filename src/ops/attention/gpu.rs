//! Attention by kernels (`kernels/attention*.cu`): their names, forward and backward.

use super::{Call, OP};
use crate::device::launch::Arg;
use crate::ops::gpu::{drop_args, int, same_storage};
use crate::tensor::{Array, Gpu, Grads, Storage};
use crate::{Error, Result};

/// Storage, name and shared memory of the kernels for a head size.
fn variant(storage: Storage, d: usize, aligned: bool) -> Result<(Storage, String, u32)> {
    if d > 160 {
        return Err(Error::argument(OP, "head size", "at most 160 on a GPU", d));
    }
    // What is not made of whole 16-byte pieces goes through the kernels of f32.
    if storage == Storage::F32 || !aligned {
        return Ok((Storage::F32, "f32".into(), 58_112));
    }
    let (name, columns) = match d {
        0..=32 => ("d32", 32),
        64 => ("d64", 64),
        88 => ("d88", 96),
        33..=80 => ("d80", 80),
        81..=96 => ("d96", 96),
        97..=112 => ("d112", 112),
        113..=128 => ("d128", 128),
        _ => ("d160", 160),
    };
    Ok((storage, format!("{}_{name}", storage.name()), 2 * 2 * 32 * (columns + 8) * 2))
}

/// The kernel that holds the whole keys of a set, where they fit and fill it by half at least: its name and shared memory.
fn whole(storage: Storage, d: usize, most_keys: usize) -> Option<(String, u32)> {
    let shared = match d {
        64 => 68_864,
        88 => 98_928,
        _ => return None,
    };
    let fits = storage != Storage::F32 && (129..=264).contains(&most_keys);
    fits.then(|| (format!("attention_whole_{}_d{d}", storage.name()), shared))
}

/// What the backward needs again.
pub(super) struct Kept {
    qkv: [Array; 3],
    widths: [usize; 3],
    y: Array,
    lse: Array,
    name: String,
    shared: u32,
    /// How the operands were stored when they came.
    storage: Storage,
}

impl Call {
    fn widths_fit(&self, widths: [usize; 3]) -> bool {
        self.d.is_multiple_of(8) && widths.iter().chain(&self.columns).all(|n| n.is_multiple_of(8))
    }

    /// Columns of q, of k or of v.
    fn columns_of(&self, i: usize) -> usize {
        self.d * if i == 0 { self.heads } else { self.key_heads }
    }

    /// The first head of operand i, and how far its rows lie apart.
    fn operand(&self, i: usize, array: &Array, widths: [usize; 3]) -> [Arg; 2] {
        let used = array.len() / widths[i].max(1) * self.columns_of(i);
        [array.pointer_at(self.columns[i], used), Arg::from(int(widths[i]))]
    }

    /// A block of `warps` for every entry (of four numbers) of a table, and every one of `heads`.
    fn launch(
        &self,
        kernel: &str,
        (table, heads): (&Array, usize),
        (warps, shared): (u32, u32),
        args: &[&[Arg]],
    ) -> Result<()> {
        let grid = (table.len() / 4, heads);
        // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
        unsafe { table.gpu().launch(kernel, grid, (32 * warps, 1), shared, &args.concat()) }
    }

    fn tail(&self) -> Vec<Arg> {
        [&[int(self.d).into(), (self.scale as f32).into()], &drop_args(self.drop)[..]].concat()
    }

    /// y [Rq, H*D], stored as q is.
    pub(super) fn forward_on_gpu(&self, qkv: [Array; 3], widths: [usize; 3]) -> Result<(Array, Kept)> {
        let (gpu, storage) = (qkv[0].gpu().clone(), qkv[0].storage());
        for (name, a) in [("k", &qkv[1]), ("v", &qkv[2])] {
            same_storage(OP, name, a, storage)?;
        }
        let (inner, name, shared) = variant(storage, self.d, self.widths_fit(widths))?;
        let [q, k, v] = qkv;
        let qkv = [q.cast(OP, inner)?, k.cast(OP, inner)?, v.cast(OP, inner)?];
        let (rows, h) = (self.segments.q_rows, self.heads);
        let y = gpu.array(OP, inner, rows * h * self.d)?;
        let lse = gpu.array(OP, Storage::F32, rows * h * if inner == Storage::F32 { 2 } else { 1 })?;
        let t = self.segments.tables(&gpu)?;
        let operands = [0, 1, 2].map(|i| self.operand(i, &qkv[i], widths)).concat();
        let (tail, group) = (self.tail(), crate::args![int(self.group())]);
        let has_whole = gpu.has_warp_groups() && self.group() == 1;
        if let Some((kernel, shared)) = whole(inner, self.d, t.most_keys).filter(|_| has_whole) {
            let own = crate::args![&y, &lse, &t.sets, &t.members, &t.strips];
            self.launch(&kernel, (&t.sets, h), (4, shared), &[&operands, own, &tail[1..]])?;
        } else {
            let own = crate::args![&y, &lse, &t.blocks, &t.strips];
            let kernel = format!("attention_fwd_{name}");
            self.launch(&kernel, (&t.blocks, h), (t.warps, shared), &[&operands, own, &tail, group])?;
        }
        let out = y.cast(OP, storage)?;
        Ok((out, Kept { qkv, widths, y, lse, name, shared, storage }))
    }

    pub(super) fn backward_on_gpu(&self, kept: &Kept, dy: &Array, grads: &mut Grads) -> Result<()> {
        let (gpu, inner) = (dy.gpu(), kept.y.storage());
        let dy = &dy.cast(OP, inner)?;
        let delta = gpu.array(OP, Storage::F32, self.segments.q_rows * self.heads)?;
        let together = self.one_matrix(kept);
        let out = if together {
            let one = gpu.array(OP, inner, kept.qkv[0].len())?;
            [one.clone(), one.clone(), one]
        } else {
            let [q, k, v] = [0, 1, 2].map(|i| self.room(gpu, kept, i));
            [q?, k?, v?]
        };
        let t = self.segments.tables(gpu)?;
        let operands = [0, 1, 2].map(|i| self.operand(i, &kept.qkv[i], kept.widths)).concat();
        let [dq, dk, dv] = [0, 1, 2].map(|i| self.operand(i, &out[i], kept.widths));
        let own =
            [crate::args![&kept.y, dy, &kept.lse, &delta], &dq, crate::args![&t.blocks, &t.strips]].concat();
        let kernel = format!("attention_bwd_q_{}", kept.name);
        let group = crate::args![int(self.group())];
        let all = [&operands[..], &own, &self.tail(), group];
        self.launch(&kernel, (&t.blocks, self.heads), (t.warps, kept.shared), &all)?;
        let own = [crate::args![dy, &kept.lse, &delta], &dk, &dv, crate::args![&t.tiles, &t.steps]].concat();
        let kernel = format!("attention_bwd_kv_{}", kept.name);
        let all = [&operands[..], &own, &self.tail(), group];
        self.launch(&kernel, (&t.tiles, self.key_heads), (t.key_warps, kept.shared), &all)?;
        let [q, k, v] = out;
        if together {
            return grads.add_array(0, q.cast(OP, kept.storage)?);
        }
        for (i, g) in [q, k, v].into_iter().enumerate() {
            if grads.wants(i) {
                grads.add_array(i, g.cast(OP, kept.storage)?)?;
            }
        }
        Ok(())
    }

    /// Whether q, k and v are the columns of one matrix, side by side: their gradients are one matrix, too.
    fn one_matrix(&self, kept: &Kept) -> bool {
        let c = self.heads * self.d;
        let [q, k, v] = &kept.qkv;
        self.group() == 1
            && q.pointer() == k.pointer()
            && k.pointer() == v.pointer()
            && q.len() == k.len()
            && self.columns == [0, c, 2 * c]
            && kept.widths == [3 * c; 3]
    }

    /// Room for the gradient of operand i: zeros where the heads do not reach.
    fn room(&self, gpu: &Gpu, kept: &Kept, i: usize) -> Result<Array> {
        let (len, storage) = (kept.qkv[i].len(), kept.y.storage());
        if kept.widths[i] == self.columns_of(i) {
            gpu.array(OP, storage, len)
        } else {
            gpu.zeros(OP, storage, len)
        }
    }
}
