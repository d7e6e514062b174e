//! Rows put together and picked.     x [R,C]   y [n,C]
//!   gather_rows: y[i] = x[index[i]];     dx[r] = sum of dy[i] with index[i] = r
//!   transpose:   y[j,i] = x[i,j];     dx[i,j] = dy[j,i]
//!   concat_rows: y = the parts, one under the other;     dpart = its rows of dy

use super::check_dtype;
use crate::device::cpu;
use crate::tensor::{Tensor, record, record_tensor};
use crate::{Error, Result, on};
use std::sync::Arc;

pub fn gather_rows(x: &Tensor, index: &[u32]) -> Result<Tensor> {
    let (r, c) = x.rows();
    if let Some(bad) = index.iter().find(|i| **i as usize >= r) {
        return Err(Error::argument("gather_rows", "index", format!("rows 0..{r}"), bad));
    }
    on!(x.dtype(), T => {
        let (data, n) = (x.data::<T>(), index.len());
        let mut y = data[..0].to_vec();
        y.reserve_exact(n * c);
        for i in index {
            y.extend_from_slice(&data[*i as usize * c..][..c]);
        }
        let index: Arc<[u32]> = index.into();
        record("gather_rows", [x], y, &[n, c], move |dy, grads| {
            let dy = dy.data::<T>();
            grads.accumulate::<T>(0, |dx, _| {
                for (i, row) in index.iter().enumerate() {
                    let to = &mut dx[*row as usize * c..][..c];
                    cpu::zip_mut(to, &dy[i * c..][..c], |a, b| *a += *b);
                }
                Ok(())
            })
        })
    })
}

pub fn concat_rows(parts: &[&Tensor]) -> Result<Tensor> {
    let Some(first) = parts.first() else {
        return Err(Error::argument("concat_rows", "parts", "at least one", "none"));
    };
    let (_, c) = first.rows();
    for p in parts {
        check_dtype("concat_rows", first, &[("part", p)])?;
        if p.rows().1 != c {
            return Err(Error::argument("concat_rows", "part", format!("{c} columns"), p.shape()));
        }
    }
    on!(first.dtype(), T => {
        let rows: usize = parts.iter().map(|p| p.rows().0).sum();
        let mut y = Vec::with_capacity(rows * c);
        for p in parts {
            y.extend_from_slice(p.data::<T>());
        }
        let lens: Vec<usize> = parts.iter().map(|p| p.len()).collect();
        record_tensor("concat_rows", parts, Tensor::new(y, &[rows, c])?, move |dy, grads| {
            let mut rest = dy.data::<T>();
            for (i, len) in lens.iter().enumerate() {
                let (part, after) = rest.split_at(*len);
                rest = after;
                if grads.wants(i) {
                    grads.add(i, part.to_vec())?;
                }
            }
            Ok(())
        })
    })
}

/// y [C,R] = x^T of [R,C]
pub fn transpose(x: &Tensor) -> Result<Tensor> {
    let (r, c) = x.rows();
    on!(x.dtype(), T => {
        let y = transposed(x.data::<T>(), r, c);
        record("transpose", [x], y, &[c, r], move |dy, grads| grads.add(0, transposed(dy.data::<T>(), c, r)))
    })
}

fn transposed<T: Copy>(x: &[T], r: usize, c: usize) -> Vec<T> {
    (0..r * c).map(|i| x[i % r * c + i / r]).collect()
}
