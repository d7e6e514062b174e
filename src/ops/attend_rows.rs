//! Attention of single rows over listed key rows, for decoding.     q [R,H*D]   k, v [N,G*D]   y [R,H*D]
//!   y_r = softmax(scale q_r k_l^T) v_l   over l in lists[r], per head; query head h reads key head h / (H/G)
//! A row's result depends on its own list alone, bit for bit. Inference only; the lists let beams share what they have in
//! common: the query rows of their image and the tokens before they parted.

use super::check::{check_dtype, check_shape};
use super::gpu::{arrays, int};
use crate::device::cpu;
use crate::tensor::{Array, Gpu, Real, Storage, Tensor, constant, constant_tensor};
use crate::{Error, Result, on};
use std::sync::OnceLock;

const OP: &str = "attend_rows";

/// Which key rows every row sees.
#[derive(Debug)]
pub struct Lists {
    lists: Vec<Vec<u32>>,
    /// The largest of all.
    last: Option<u32>,
    /// For the kernel, made when it is first used: the lists one after the other, and where each begins.
    tables: OnceLock<[Array; 2]>,
}

impl Lists {
    /// The rows that each query row sees.
    pub fn new(lists: Vec<Vec<u32>>) -> Lists {
        let last = lists.iter().flatten().copied().max();
        Lists { lists, last, tables: OnceLock::new() }
    }

    fn tables(&self, gpu: &Gpu) -> Result<&[Array; 2]> {
        if self.tables.get().is_none() {
            let mut numbers: Vec<i32> = self.lists.iter().flatten().map(|l| int(*l as usize)).collect();
            let (count, mut start) = (numbers.len(), 0);
            numbers.push(0);
            for list in &self.lists {
                start += list.len();
                numbers.push(int(start));
            }
            let all = gpu.upload(OP, Storage::I32, &numbers)?;
            let tables = [all.part(0..count)?, all.part(count..numbers.len())?];
            self.tables.get_or_init(|| tables);
        }
        let other = || Error::argument(OP, "lists", "lists used on one GPU", "another GPU");
        self.tables.get().filter(|t| t[0].gpu().same(gpu)).ok_or_else(other)
    }
}

/// Attention of single rows over listed key rows, for decoding: q, y `[R,H*D]`, k, v `[N,G*D]`, G a divisor of H.
///
/// Per head, y_r = softmax(scale q_r k_l^T) v_l over l in the list of row r. A row's result depends on its own list alone, bit for
/// bit. Inputs are constants. Errors: `heads` that do not divide the columns, a `scale` that is not finite, lists that are not one
/// for each row or name rows that k does not have.
pub fn attend_rows([q, k, v]: [&Tensor; 3], lists: &Lists, heads: usize, scale: f64) -> Result<Tensor> {
    let ((r, c), (n, width)) = (q.rows(), k.rows());
    if heads == 0 || !c.is_multiple_of(heads) {
        return Err(Error::argument(OP, "heads", format!("a divisor of {c} columns"), heads));
    }
    let d = c / heads;
    let key_heads = width.checked_div(d).unwrap_or(0);
    if c > 0 && (key_heads * d != width || key_heads == 0 || !heads.is_multiple_of(key_heads)) {
        return Err(Error::argument(
            OP,
            "k",
            format!("heads of {d} columns, as many as divide {heads}"),
            k.shape(),
        ));
    }
    for (name, t) in [("k", k), ("v", v)] {
        check_shape(OP, name, t, &[n, width])?;
        check_dtype(OP, q, &[(name, t)])?;
    }
    let group = heads.checked_div(key_heads).unwrap_or(1);
    if !scale.is_finite() {
        return Err(Error::argument(OP, "scale", "a finite number", scale));
    }
    if lists.lists.len() != r {
        return Err(Error::argument(OP, "lists", format!("one for each of {r} rows"), lists.lists.len()));
    }
    if let Some(row) = lists.last.filter(|row| *row as usize >= n) {
        return Err(Error::argument(OP, "lists", format!("rows below {n}"), row));
    }
    if let Some(arrays) = arrays(OP, [q, k, v])? {
        let y = on_gpu(&arrays, lists, (r, c, heads, width), scale as f32)?;
        return constant_tensor(OP, &[q, k, v], Tensor::of_array(y, &[r, c])?);
    }
    on!(q.dtype(), T => {
        let y = forward::<T>([q, k, v], &lists.lists, (heads, group), T::of(scale));
        constant(OP, &[q, k, v], y, &[r, c])
    })
}

fn on_gpu(
    [q, k, v]: &[Array; 3],
    lists: &Lists,
    (r, c, heads, width): (usize, usize, usize, usize),
    scale: f32,
) -> Result<Array> {
    let [rows, starts] = lists.tables(q.gpu())?;
    let y = q.gpu().array(OP, q.storage(), r * c)?;
    let (group, width) = (c.checked_div(width).unwrap_or(1), int(width));
    let args = crate::args![q, k, width, v, width, rows, starts, &y, int(c / heads), scale, int(group)];
    let kernel = format!("attend_rows_{}", q.storage().name());
    // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
    unsafe { q.gpu().launch(&kernel, (r, heads), (128, 1), 0, args) }?;
    Ok(y)
}

fn forward<T: Real>(
    [q, k, v]: [&Tensor; 3],
    lists: &[Vec<u32>],
    (heads, group): (usize, usize),
    scale: T,
) -> Vec<T> {
    let ((r, c), width) = (q.rows(), k.rows().1);
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
                let at = |l: &u32| *l as usize * width + h / group * d;
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
