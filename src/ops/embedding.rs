//! Rows of a table.     table [V,C]   ids [n]   y [n,C]
//!   y[i] = table[ids[i]];     dtable[v] = sum of dy[i] with ids[i] = v, in order of i; none for `padding` (as in PyTorch)
//!   embedding_sum: the sum of rows of two tables, a constant

use super::check::check_dtype;
use super::gpu::{arrays, int, pick_rows, same_storage};
use crate::device::cpu;
use crate::device::launch::Arg;
use crate::tensor::{Storage, Tensor, constant, constant_tensor, record};
use crate::{Error, Result, on};
use std::sync::Arc;

/// The width of a table that has these rows.
fn check(table: &Tensor, ids: &[u32]) -> Result<usize> {
    let &[v, c] = table.shape().sizes() else {
        return Err(Error::argument("embedding", "table", "[entries, width]", table.shape()));
    };
    if let Some(bad) = ids.iter().find(|i| **i as usize >= v) {
        return Err(Error::argument("embedding", "ids", format!("ids below {v}"), bad)
            .fix("use the vocabulary that belongs to this model"));
    }
    Ok(c)
}

/// Rows of a table `[V,C]`: y `[n,C]`, `y[i]` = table[`ids[i]`].
///
/// `dtable[v]` = the sum of `dy[i]` with `ids[i]` = v, in order of i; row `padding` gets none. An error if an id is not below V.
///
/// Source: `torch.nn.functional.embedding`.
pub fn embedding(table: &Tensor, ids: &[u32], padding: Option<u32>) -> Result<Tensor> {
    let c = check(table, ids)?;
    if let Some([data]) = arrays("embedding", [table])? {
        return pick_rows("embedding", (table, &data), ids, padding, |[rows, index, y], c| {
            let kernel = format!("embedding_fwd_{}", data.storage().name());
            let args = [rows, index, Arg::NULL, Arg::NULL, y, c.into()];
            // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
            unsafe { data.gpu().launch(&kernel, (ids.len(), 1), (128, 1), 0, &args) }
        });
    }
    on!(table.dtype(), T => {
        let data = table.data::<T>();
        let mut y = Vec::with_capacity(ids.len() * c);
        for i in ids {
            y.extend_from_slice(&data[*i as usize * c..][..c]);
        }
        let ids2: Arc<[u32]> = ids.into();
        record("embedding", [table], y, &[ids.len(), c], move |dy, grads| {
            let dy = dy.data::<T>();
            grads.accumulate::<T>(0, |dt, _| {
                for (i, id) in ids2.iter().enumerate().filter(|(_, id)| Some(**id) != padding) {
                    cpu::zip_mut(&mut dt[*id as usize * c..][..c], &dy[i * c..][..c], |a, b| *a += *b);
                }
                Ok(())
            })
        })
    })
}

/// Rows of one table, and to each a row of another one of the same width (words and positions): `y[i]` = `table[i]` + `other[j]`.
/// A constant.
pub fn embedding_sum([table, other]: [&Tensor; 2], rows: &[(u32, u32)]) -> Result<Tensor> {
    const OP: &str = "embedding_sum";
    let n = rows.len();
    let (ids, places): (Vec<u32>, Vec<u32>) = rows.iter().copied().unzip();
    let c = check(table, &ids)?;
    if check(other, &places)? != c {
        return Err(Error::argument(OP, "table", format!("{c} columns"), other.shape()));
    }
    check_dtype(OP, table, &[("table", other)])?;
    if let Some([a, b]) = arrays(OP, [table, other])? {
        same_storage(OP, "table", &b, a.storage())?;
        let numbers: Vec<i32> = ids.iter().chain(&places).map(|i| int(*i as usize)).collect();
        let numbers = a.gpu().upload(OP, Storage::I32, &numbers)?;
        let y = a.gpu().array(OP, a.storage(), n * c)?;
        let (ids, places) = (numbers.part(0..n)?, numbers.part(n..2 * n)?);
        let args = crate::args![a.pointer_at(0, n * c), &ids, b.pointer_at(0, n * c), &places, &y, int(c)];
        let kernel = format!("embedding_fwd_{}", a.storage().name());
        // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
        unsafe { a.gpu().launch(&kernel, (n, 1), (128, 1), 0, args) }?;
        return constant_tensor(OP, &[table, other], Tensor::of_array(y, &[n, c])?);
    }
    on!(table.dtype(), T => {
        let (a, b) = (table.data::<T>(), other.data::<T>());
        let row = |(i, j): (u32, u32)| {
            let (i, j) = (i as usize * c, j as usize * c);
            a[i..i + c].iter().zip(&b[j..j + c]).map(|(a, b)| *a + *b)
        };
        constant(OP, &[table, other], rows.iter().copied().flat_map(row).collect::<Vec<T>>(), &[n, c])
    })
}
