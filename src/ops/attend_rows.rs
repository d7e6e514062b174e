//! Attention of single rows over listed key rows, for decoding.     q [R,H*D]   k, v [N,H*D]   y [R,H*D]
//!   y_r = softmax(scale q_r k_l^T) v_l   over l in lists[r], per head
//! A row's result depends on its own list alone, bit for bit. Inference only; the lists let beams share what they have in
//! common: the query rows of their image and the tokens before they parted.

use super::{check_dtype, check_shape};
use crate::device::cpu;
use crate::tensor::{Array, Real, Storage, Tensor, constant, constant_tensor};
use crate::{Error, Result, on};

const OP: &str = "attend_rows";

pub fn attend_rows([q, k, v]: [&Tensor; 3], lists: &[Vec<u32>], heads: usize, scale: f64) -> Result<Tensor> {
    let ((r, c), (n, _)) = (q.rows(), k.rows());
    if heads == 0 || !c.is_multiple_of(heads) {
        return Err(Error::argument(OP, "heads", format!("a divisor of {c} columns"), heads));
    }
    for (name, t) in [("k", k), ("v", v)] {
        check_shape(OP, name, t, &[n, c])?;
        check_dtype(OP, q, &[(name, t)])?;
    }
    if !scale.is_finite() {
        return Err(Error::argument(OP, "scale", "a finite number", scale));
    }
    if lists.len() != r {
        return Err(Error::argument(OP, "lists", format!("one for each of {r} rows"), lists.len()));
    }
    if let Some(row) = lists.iter().flatten().find(|row| **row as usize >= n) {
        return Err(Error::argument(OP, "lists", format!("rows below {n}"), row));
    }
    if let Some(arrays) = super::arrays(OP, [q, k, v])? {
        let y = on_gpu(&arrays, lists, (r, c, heads), scale as f32)?;
        return constant_tensor(OP, &[q, k, v], Tensor::of_array(y, &[r, c])?);
    }
    on!(q.dtype(), T => {
        let y = forward::<T>([q, k, v], lists, heads, T::of(scale));
        constant(OP, &[q, k, v], y, &[r, c])
    })
}

fn on_gpu(
    [q, k, v]: &[Array; 3],
    lists: &[Vec<u32>],
    (r, c, heads): (usize, usize, usize),
    scale: f32,
) -> Result<Array> {
    let (mut rows, mut starts) = (Vec::new(), vec![0]);
    for list in lists {
        rows.extend(list.iter().map(|l| super::int(*l as usize)));
        starts.push(super::int(rows.len()));
    }
    let table = |values: &[i32]| q.gpu().upload(OP, Storage::I32, values);
    let (rows, starts) = (table(&rows)?, table(&starts)?);
    let y = q.gpu().array(OP, q.storage(), r * c)?;
    let width = super::int(c);
    let args = crate::args![q, k, width, v, width, &rows, &starts, &y, super::int(c / heads), scale];
    let kernel = format!("attend_rows_{}", q.storage().name());
    q.gpu().launch(&kernel, (r, heads), (128, 1), 0, args)?;
    Ok(y)
}

fn forward<T: Real>([q, k, v]: [&Tensor; 3], lists: &[Vec<u32>], heads: usize, scale: T) -> Vec<T> {
    let (r, c) = q.rows();
    let (d, [q, k, v]) = (c / heads, [q, k, v].map(Tensor::data::<T>));
    let mut y = vec![T::ZERO; r * c];
    cpu::each_row(
        &mut y,
        c,
        #[inline(always)]
        |i, y| {
            let mut p = vec![T::ZERO; lists[i].len()];
            for (h, y) in y.chunks_exact_mut(d).enumerate() {
                let q = &q[i * c + h * d..][..d];
                let at = |l: &u32| *l as usize * c + h * d;
                for (p, l) in p.iter_mut().zip(&lists[i]) {
                    let k = &k[at(l)..][..d];
                    *p = scale * cpu::sum(d, |j| q[j] * k[j]);
                }
                let top = cpu::max(&p);
                for p in &mut p {
                    *p = (*p - top).exp();
                }
                let share = T::ONE / cpu::sum(p.len(), |j| p[j]);
                for (p, l) in p.iter().zip(&lists[i]) {
                    let (p, v) = (*p * share, &v[at(l)..][..d]);
                    for (y, v) in y.iter_mut().zip(v) {
                        *y = v.mul_add(p, *y);
                    }
                }
            }
        },
    );
    y
}
