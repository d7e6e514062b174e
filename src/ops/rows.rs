//! Rows put together and picked.     x [R,C]   y [n,C]
//!   gather_rows: y[i] = x[index[i]];     dx[r] = sum of dy[i] with index[i] = r
//!   transpose:   y[j,i] = x[i,j];     dx[i,j] = dy[j,i]
//!   concat_rows: y = the parts, one under the other;     dpart = its rows of dy
//!   with_room:   y = x, and room behind it for rows that are written later; a constant

use super::check::check_dtype;
use super::gpu::{arrays, gradient, int, pick_rows};
use crate::device::cpu;
use crate::tensor::{Array, Real, Storage, Tensor, constant, constant_tensor, record, record_tensor};
use crate::{Error, Result, on};
use std::sync::Arc;

/// Rows of x `[R,C]` by their numbers: y `[n,C]`, `y[i]` = x[`index[i]`]; `dx[r]` = the sum of `dy[i]` with `index[i]` = r, in order of i.
/// An error if an index is not below R.
///
/// Source: `torch.index_select`.
pub fn gather_rows(x: &Tensor, index: &[u32]) -> Result<Tensor> {
    let (r, c) = x.rows();
    if let Some(bad) = index.iter().find(|i| **i as usize >= r) {
        return Err(Error::argument("gather_rows", "index", format!("rows 0..{r}"), bad));
    }
    if let Some([data]) = arrays("gather_rows", [x])? {
        return pick_rows("gather_rows", (x, &data), index, None, |[rows, numbers, y], c| {
            let kernel = format!("gather_rows_fwd_{}", data.storage().name());
            // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
            unsafe {
                data.gpu().launch(&kernel, (index.len(), 1), (128, 1), 0, &[rows, numbers, y, c.into()])
            }
        });
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

/// Parts one under the other: y `[sum of rows, C]`; dpart = its rows of dy. All have C columns and one dtype; on a GPU y is stored as
/// they are, or in f32 where they differ. Constants that lie one after the other in the same memory stay there. An error if
/// there are none.
///
/// Source: `torch.cat`.
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
    let filled: Vec<&&Tensor> = parts.iter().filter(|p| !p.is_empty()).collect();
    if let ([only], false) = (&filled[..], parts.iter().any(|p| p.tracked())) {
        return only.reshape(&[only.rows().0, c]);
    }
    let runs = runs(parts);
    if runs.len() < parts.len() {
        return concat_rows(&runs.iter().collect::<Vec<_>>());
    }
    if first.array().is_some() {
        return concat_on_gpu(parts, c);
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

/// The parts, those joined that lie one after the other in the same memory.
fn runs(parts: &[&Tensor]) -> Vec<Tensor> {
    let mut runs: Vec<Tensor> = Vec::with_capacity(parts.len());
    for part in parts {
        match runs.last_mut().and_then(|last| Some((last.joined(part)?, last))) {
            Some((both, last)) => *last = both,
            None => runs.push((*part).clone()),
        }
    }
    runs
}

fn concat_on_gpu(parts: &[&Tensor], c: usize) -> Result<Tensor> {
    let mut found = Vec::with_capacity(parts.len());
    for p in parts {
        found.extend(arrays("concat_rows", [*p, parts[0]])?.map(|[a, _]| a));
    }
    let [first, ..] = &found[..] else { return Ok(parts[0].clone()) };
    let even = found.iter().all(|a| a.storage() == first.storage());
    let storage = if even { first.storage() } else { Storage::F32 };
    let y = first.gpu().array("concat_rows", storage, found.iter().map(Array::len).sum())?;
    let mut places = Vec::with_capacity(found.len());
    let mut at = 0;
    for a in &found {
        places.push(at..at + a.len());
        a.cast_into(&y.part(at..at + a.len())?)?;
        at += a.len();
    }
    let y = Tensor::of_array(y, &[at / c.max(1), c])?;
    record_tensor("concat_rows", parts, y, move |dy, grads| {
        let dy = gradient("concat_rows", dy)?;
        places.into_iter().enumerate().try_for_each(|(i, range)| grads.add_array(i, dy.part(range)?))
    })
}

/// x, and behind its rows room for those that [`super::Options::cache`] writes later: `rows` of them all in all. A constant.
pub fn with_room(x: &Tensor, rows: usize) -> Result<Tensor> {
    let (r, c) = x.rows();
    if rows < r {
        return Err(Error::argument("with_room", "rows", format!("at least {r}"), rows));
    }
    if let Some([data]) = arrays("with_room", [x])? {
        let y = data.gpu().array("with_room", data.storage(), rows * c)?;
        y.part(0..r * c)?.copy_from(&data)?;
        return constant_tensor("with_room", &[x], Tensor::of_array(y, &[rows, c])?);
    }
    on!(x.dtype(), T => {
        let mut y = x.data::<T>().to_vec();
        y.resize(rows * c, T::ZERO);
        constant("with_room", &[x], y, &[rows, c])
    })
}

/// Writes rows `[n,C]` over those of a table `[R,C]` from `at` on, in place. Nobody else may hold the table's memory on the CPU.
pub fn put_rows(table: &mut Tensor, at: usize, rows: &Tensor) -> Result<()> {
    let ((r, c), (n, width)) = (table.rows(), rows.rows());
    if width != c || at + n > r {
        return Err(Error::argument(
            "put_rows",
            "rows",
            format!("at most {} of {c} columns", r.saturating_sub(at)),
            rows.shape(),
        ));
    }
    check_dtype("put_rows", table, &[("rows", rows)])?;
    if let Some([to, from]) = arrays("put_rows", [&*table, rows])? {
        return to.part(at * c..(at + n) * c)?.copy_from(&from);
    }
    on!(rows.dtype(), T => match table.data_mut::<T>() {
        Some(to) => to[at * c..][..n * c].copy_from_slice(rows.data()),
        None => return Err(Error::argument("put_rows", "table", "one that nobody shares", "a shared one")),
    });
    Ok(())
}

/// y `[C,R]` = x^T of `[R,C]`; dx = dy^T.
pub fn transpose(x: &Tensor) -> Result<Tensor> {
    let (r, c) = x.rows();
    if let Some([data]) = arrays("transpose", [x])? {
        let turn = |x: &Array, r: usize, c: usize| -> Result<Array> {
            let y = x.gpu().array("transpose", x.storage(), r * c)?;
            let args = crate::args![x, &y, int(r), int(c)];
            let kernel = format!("transpose_fwd_{}", x.storage().name());
            // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
            unsafe { x.gpu().launch(&kernel, (c.div_ceil(32), r.div_ceil(32)), (32, 8), 0, args) }?;
            Ok(y)
        };
        let y = Tensor::of_array(turn(&data, r, c)?, &[c, r])?;
        return record_tensor("transpose", &[x], y, move |dy, grads| {
            grads.add_array(0, turn(&gradient("transpose", dy)?, c, r)?)
        });
    }
    on!(x.dtype(), T => {
        let y = transposed(x.data::<T>(), r, c);
        record("transpose", [x], y, &[c, r], move |dy, grads| grads.add(0, transposed(dy.data::<T>(), c, r)))
    })
}

fn transposed<T: Copy>(x: &[T], r: usize, c: usize) -> Vec<T> {
    (0..r * c).map(|i| x[i % r * c + i / r]).collect()
}
