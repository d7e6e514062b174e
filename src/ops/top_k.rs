//! The most probable of each row of logits, for decoding.     x [R,V]
//!   of each row the k largest x, largest first, ties to the lower index, as (index, x - log sum_V e^x); a NaN before
//! everything. A row is looked at alone. In f64 on the CPU; on a GPU the sums are in f32.

use super::gpu::{arrays, int};
use crate::tensor::{Array, Real, Storage, Tensor};
use crate::{Error, Result, on};
use rayon::prelude::*;

const OP: &str = "top_k";

/// The k largest of each row of logits x `[R,V]`, largest first, as (index, log-probability): x - log sum_V e^x.
///
/// Ties go to the lower index, a NaN is before everything. A row is looked at alone. In f64 on the CPU; the sums are in f32 on a
/// GPU. No gradient. An error unless k is 1 to V.
///
/// Source: `torch.topk` of `torch.log_softmax`.
pub fn top_k(x: &Tensor, k: usize) -> Result<Vec<Vec<(u32, f64)>>> {
    let (r, v) = x.rows();
    if k == 0 || k > v {
        return Err(Error::argument(OP, "k", format!("1 to {v}"), k));
    }
    if let Some([x]) = arrays(OP, [x])? {
        return on_gpu(&x, (r, v, k));
    }
    Ok(on!(x.dtype(), T => x.data::<T>().par_chunks_exact(v).map(|row| largest(row, k)).collect()))
}

fn on_gpu(x: &Array, (r, v, k): (usize, usize, usize)) -> Result<Vec<Vec<(u32, f64)>>> {
    // All that comes back lies together.
    let found = x.gpu().array(OP, Storage::I32, r * (2 * k + 1))?;
    let [values, indices, norms] =
        [0..r * k, r * k..2 * r * k, 2 * r * k..r * (2 * k + 1)].map(|range| found.part(range));
    let args = crate::args![x, &values?, &indices?, &norms?, int(v), int(k)];
    let threads = u32::try_from(v.next_multiple_of(32).min(1024)).unwrap_or(1024);
    // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
    unsafe { x.gpu().launch(&format!("top_k_{}", x.storage().name()), (r, 1), (threads, 1), 0, args) }?;
    let found = found.read::<i32>()?;
    let number = |at: usize| f64::from(f32::from_bits(found[at].cast_unsigned()));
    let one = |i: usize, j: usize| {
        let at = i * k + j;
        (found[r * k + at].cast_unsigned(), number(at) - number(2 * r * k + i))
    };
    Ok((0..r).map(|i| (0..k).map(|j| one(i, j)).collect()).collect())
}

fn largest<T: Real>(row: &[T], k: usize) -> Vec<(u32, f64)> {
    let above = |a: T, b: T| a > b || (a.is_nan() && !b.is_nan());
    let mut list: Vec<usize> = Vec::with_capacity(k + 1);
    for (i, x) in row.iter().enumerate() {
        if list.len() < k || above(*x, row[list[k - 1]]) {
            let at = list.partition_point(|j| !above(*x, row[*j]));
            list.insert(at, i);
            list.truncate(k);
        }
    }
    let top = row[list[0]].to_f64();
    let norm = top + row.iter().map(|x| (x.to_f64() - top).exp()).sum::<f64>().ln();
    list.into_iter().map(|i| (i as u32, row[i].to_f64() - norm)).collect()
}
