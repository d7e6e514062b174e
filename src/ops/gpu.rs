//! What several operations need to launch their kernels: where operands are, kernels' numbers, sums of columns, rows by
//! their target.

use crate::device::gpu::Gpu;
use crate::device::launch::Arg;
use crate::tensor::{Array, Dropout, Grads, Storage, Tensor, record_tensor};
use crate::{Error, Result};
use std::sync::Arc;

/// Where operands are that must be together: their arrays if all are on one GPU, None if all are on the CPU.
pub(super) fn arrays<const N: usize>(op: &'static str, tensors: [&Tensor; N]) -> Result<Option<[Array; N]>> {
    let found: Vec<Array> = tensors.iter().filter_map(|t| t.array()).collect();
    let apart = found.first().is_some_and(|a| found.iter().any(|b| !a.gpu().same(b.gpu())));
    if apart || (!found.is_empty() && found.len() < N) {
        let places: Vec<String> = tensors.iter().map(|t| place(t)).collect();
        return Err(Error::argument(op, "inputs", "tensors on one device", places.join(", "))
            .fix("move them with Tensor::to"));
    }
    Ok(found.try_into().ok())
}

fn place(t: &Tensor) -> String {
    t.array().map_or_else(|| "the CPU".into(), |a| a.gpu().name())
}

/// The gradient of a result on a GPU, as its backward gets it.
pub(super) fn gradient(op: &'static str, dy: &Tensor) -> Result<Array> {
    dy.array().ok_or_else(|| Error::argument(op, "gradient", "one on the GPU", "one on the CPU"))
}

/// An operand that must be stored as another one is.
pub(super) fn same_storage(op: &'static str, argument: &str, a: &Array, storage: Storage) -> Result<()> {
    if a.storage() == storage {
        return Ok(());
    }
    Err(Error::argument(op, argument, format!("stored as {}", storage.name()), a.storage().name()))
}

/// A kernel's integer.
pub(super) fn int(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// Threads for a row of `c` elements, eight a thread, in whole warps.
pub(super) fn row_threads(c: usize) -> (u32, u32) {
    (u32::try_from(c.div_ceil(8).next_multiple_of(32)).unwrap_or(u32::MAX), 1)
}

/// What kernels want to know of a dropout: seed, site, step, threshold, factor.
pub(super) fn drop_args(drop: Option<Dropout>) -> [Arg; 5] {
    let (seed, site, step, threshold, factor) = drop.map_or((0, 0, 0, 0, 1.0), |d| {
        let s = d.stream;
        (s.seed, s.site, s.step, d.threshold(), (1.0 / (1.0 - f64::from(d.p))) as f32)
    });
    [seed.into(), site.into(), step.into(), threshold.into(), factor.into()]
}

/// How the kernels share out sums over R rows of C columns (see `kernels/column_sum.cuh`): the grid of their blocks of (32,8)
/// threads, the memory for shares, and the counters.
pub(super) fn shares_of_columns(
    op: &'static str,
    gpu: &Gpu,
    (r, c): (usize, usize),
) -> Result<((usize, usize), Array, Arg)> {
    let (pieces, shares) = (c.div_ceil(256), r.div_ceil(64).clamp(1, gpu.blocks()));
    let partial = gpu.array(op, Storage::F32, if shares > 1 { shares * c } else { 0 })?;
    Ok(((pieces, shares), partial, gpu.counters(op, pieces)?))
}

/// The sums of the rows of C columns of x [R,..], from one on, in f32: out = them, or out += them.
pub(super) fn sum_columns(
    op: &'static str,
    x: &Array,
    (r, c): (usize, usize),
    from: usize,
    out: &Array,
    add: bool,
) -> Result<()> {
    let (gpu, stride) = (x.gpu(), x.len().checked_div(r).unwrap_or(c));
    let (grid, partial, counters) = shares_of_columns(op, gpu, (r, c))?;
    let x_at = x.pointer_at(from, r * c);
    let args = crate::args![x_at, out, &partial, counters, int(r), int(c), int(stride), i32::from(add)];
    let kernel = format!("column_sum_{}", x.storage().name());
    // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
    unsafe { gpu.launch(&kernel, grid, (32, 8), 0, args) }
}

/// The sums of the rows of x [R,C] in f32.
pub(super) fn column_sum(op: &'static str, x: &Array, r: usize, c: usize) -> Result<Array> {
    let sums = x.gpu().array(op, Storage::F32, c)?;
    sum_columns(op, x, (r, c), 0, &sums, false)?;
    Ok(sums)
}

/// Adds the sums of the rows of C columns of x, from one on, to the gradient of input i.
pub(super) fn column_sum_into(
    op: &'static str,
    grads: &mut Grads,
    i: usize,
    x: &Array,
    (r, c): (usize, usize),
    from: usize,
) -> Result<()> {
    gradients_beside(op, x.gpu(), grads, (&[i], c), |to, add| sum_columns(op, x, (r, c), from, to, add))
}

/// Gradients that are made side by side, `len` elements for each of these inputs, in f32: `make(to, add)` writes all of them,
/// or adds them to those of an earlier use, which lie side by side, too. Nothing is made where nobody asks for one.
pub(super) fn gradients_beside(
    op: &'static str,
    gpu: &Gpu,
    grads: &mut Grads,
    (inputs, len): (&[usize], usize),
    make: impl FnOnce(&Array, bool) -> Result<()>,
) -> Result<()> {
    if !inputs.iter().any(|i| grads.wants(*i)) {
        return Ok(());
    }
    if let Some(all) = grads.joined(inputs).filter(|all| all.storage() == Storage::F32) {
        return make(&all, true);
    }
    let all = gpu.array(op, Storage::F32, inputs.len() * len)?;
    make(&all, false)?;
    for (n, i) in inputs.iter().enumerate() {
        grads.add_array(*i, all.part(n * len..(n + 1) * len)?)?;
    }
    Ok(())
}

/// Rows sorted by their target, as `kernels/sorted_rows.cuh` wants them; rows with `skip` as their target left out.
struct SortedRows {
    order: Array,
    starts: Array,
    targets: Array,
    /// The most rows of a target.
    longest: i32,
}

impl SortedRows {
    fn new(op: &'static str, like: &Array, index: &[u32], skip: Option<u32>) -> Result<SortedRows> {
        let mut order: Vec<usize> = (0..index.len()).filter(|i| Some(index[*i]) != skip).collect();
        order.sort_by_key(|i| (index[*i], *i));
        let (mut starts, mut targets) = (Vec::new(), Vec::new());
        for (at, i) in order.iter().enumerate() {
            if targets.last() != Some(&int(index[*i] as usize)) {
                targets.push(int(index[*i] as usize));
                starts.push(int(at));
            }
        }
        starts.push(int(order.len()));
        let order: Vec<i32> = order.into_iter().map(int).collect();
        let table = |values: &[i32]| like.gpu().upload(op, Storage::I32, values);
        let longest = starts.windows(2).map(|s| s[1] - s[0]).max().unwrap_or(0);
        Ok(SortedRows { order: table(&order)?, starts: table(&starts)?, targets: table(&targets)?, longest })
    }

    /// Adds the rows dy [n,C] to their targets among the rows of `to`, which is zeroed first if it is fresh.
    fn add(&self, dy: &Array, to: &Array, c: usize, fresh: bool) -> Result<()> {
        if fresh {
            to.zero()?;
        }
        // Rows of either storage are added into f32 by the one, into their own storage by the other.
        let name = match to.storage() {
            Storage::F32 => format!("embedding_bwd_{}", dy.storage().name()),
            _ => format!("gather_rows_bwd_{}", dy.storage().name()),
        };
        let rows = to.pointer_at(0, 2 * self.targets.len() * c);
        let add = i32::from(!fresh);
        let args = crate::args![dy, &self.order, &self.starts, &self.targets, rows, int(c), add];
        // A thread for 8 columns of a target; several threads where there is more to add up than one fetches at once.
        let block = if self.longest > 4 { (32, 8) } else { (row_threads(c).0.min(256), 1) };
        // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
        unsafe {
            to.gpu().launch(&name, (self.targets.len(), c.div_ceil(8 * block.0 as usize)), block, 0, args)
        }
    }
}

/// Rows `index` of a table on a GPU, as `kernel` (rows, indices, result) picks them; gradients go back to their rows, none
/// for `skip`.
pub(super) fn pick_rows(
    op: &'static str,
    (table, data): (&Tensor, &Array),
    index: &[u32],
    skip: Option<u32>,
    kernel: impl FnOnce([Arg; 3], i32) -> Result<()>,
) -> Result<Tensor> {
    let (n, c) = (index.len(), table.rows().1);
    let y = data.gpu().array(op, data.storage(), n * c)?;
    let numbers: Vec<i32> = index.iter().map(|i| int(*i as usize)).collect();
    let numbers = data.gpu().upload(op, Storage::I32, &numbers)?;
    kernel([data.pointer_at(0, y.len()), (&numbers).into(), (&y).into()], int(c))?;
    let index: Arc<[u32]> = index.into();
    record_tensor(op, &[table], Tensor::of_array(y, &[n, c])?, move |dy, grads| {
        let dy = gradient(op, dy)?;
        let rows = SortedRows::new(op, &dy, &index, skip)?;
        grads.accumulate_array(0, |to, fresh| rows.add(&dy, to, c, fresh))
    })
}
