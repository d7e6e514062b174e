//! Rows of a table.     table [V,C]   ids [n]   y [n,C]
//!   y[i] = table[ids[i]];     dtable[v] = sum of dy[i] with ids[i] = v, in order of i; none for `padding` (as in PyTorch)

use crate::device::cpu;
use crate::device::launch::Arg;
use crate::tensor::{Tensor, record};
use crate::{Error, Result, on};
use std::sync::Arc;

pub fn embedding(table: &Tensor, ids: &[u32], padding: Option<u32>) -> Result<Tensor> {
    let &[v, c] = table.shape().sizes() else {
        return Err(Error::argument("embedding", "table", "[entries, width]", table.shape()));
    };
    if let Some(bad) = ids.iter().find(|i| **i as usize >= v) {
        return Err(Error::argument("embedding", "ids", format!("ids below {v}"), bad)
            .fix("use the vocabulary that belongs to this model"));
    }
    if let Some([data]) = super::arrays("embedding", [table])? {
        return super::pick_rows("embedding", (table, &data), ids, padding, |[rows, index, y], c| {
            let kernel = format!("embedding_fwd_{}", data.storage().name());
            let args = [rows, index, Arg::NULL, Arg::NULL, y, c.into()];
            data.gpu().launch(&kernel, (ids.len(), 1), (128, 1), 0, &args)
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
