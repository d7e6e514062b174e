//! Rotary positions.     x, y [R,C]: H heads of D columns, then columns that stay
//!   Of each head the first n = 2F columns turn in pairs (j, j + F) by the angle p f_j, p the row's position:
//!   (u, v) -> (u cos - v sin, v cos + u sin);     dx = dy turned by -p f_j
//! Angles and their cosines are computed in f64 from the frequencies f.

use super::gpu::{arrays, gradient, int};
use crate::device::cpu;
use crate::tensor::{Array, Gpu, Real, Storage, Tensor, record, record_tensor};
use crate::{Error, Result, on};
use std::sync::{Arc, OnceLock};

const OP: &str = "rotary";

/// The positions of rows, and the cosine and sine of each angle that they turn by.
#[derive(Debug)]
pub struct Rotary {
    positions: Vec<u32>,
    /// F, half the columns of a head that turn.
    half: usize,
    /// [largest position + 1, F, 2]
    turns: Vec<f64>,
    /// For the kernels, made when they are first used: the turns, and the positions.
    tables: OnceLock<[Array; 2]>,
}

impl Rotary {
    /// Rows at these positions, pairs of columns at these frequencies.
    pub fn new(positions: Vec<u32>, frequencies: &[f64]) -> Rotary {
        let most = positions.iter().max().map_or(0, |p| p + 1);
        let turn = |p: u32| frequencies.iter().map(move |f| (f64::from(p) * f).sin_cos());
        let turns = (0..most).flat_map(turn).flat_map(|(sin, cos)| [cos, sin]).collect();
        Rotary { positions, half: frequencies.len(), turns, tables: OnceLock::new() }
    }

    fn tables(&self, gpu: &Gpu) -> Result<&[Array; 2]> {
        if self.tables.get().is_none() {
            let turns: Vec<f32> = self.turns.iter().map(|x| *x as f32).collect();
            let positions: Vec<i32> = self.positions.iter().map(|p| int(*p as usize)).collect();
            let tables = [gpu.upload(OP, Storage::F32, &turns)?, gpu.upload(OP, Storage::I32, &positions)?];
            self.tables.get_or_init(|| tables);
        }
        let other = || Error::argument(OP, "positions", "positions used on one GPU", "another GPU");
        self.tables.get().filter(|t| t[0].gpu().same(gpu)).ok_or_else(other)
    }
}

/// Rotary positions: of each of `heads` heads of d columns of x `[R, >= H*D]`, the first 2F columns turn in pairs (j, j + F) by
/// the angle p f_j; other columns stay. dx = dy turned back.
///
/// Errors: positions that are not one for each row, more columns to turn than a head has, heads that x has no room for.
///
/// Source: Su et al., RoFormer (2021), in the pairing of GPT-NeoX and Llama.
pub fn rotary(x: &Tensor, (heads, d): (usize, usize), rotary: &Arc<Rotary>) -> Result<Tensor> {
    let (r, c) = x.rows();
    if rotary.positions.len() != r {
        return Err(Error::argument(
            OP,
            "positions",
            format!("one for each of {r} rows"),
            rotary.positions.len(),
        ));
    }
    if 2 * rotary.half > d {
        return Err(Error::argument(
            OP,
            "frequencies",
            format!("at most {} for heads of {d}", d / 2),
            rotary.half,
        ));
    }
    if heads * d > c {
        return Err(Error::argument(OP, "heads", format!("at most {c} columns"), heads * d));
    }
    if let Some([data]) = arrays(OP, [x])? {
        let y = Tensor::of_array(on_gpu(&data, (r, c), (heads, d), rotary, 1.0)?, x.shape().sizes())?;
        let rotary = rotary.clone();
        return record_tensor(OP, &[x], y, move |dy, grads| {
            grads.add_array(0, on_gpu(&gradient(OP, dy)?, (r, c), (heads, d), &rotary, -1.0)?)
        });
    }
    on!(x.dtype(), T => {
        let mut y = x.data::<T>().to_vec();
        turn(&mut y, c, (heads, d), rotary, T::ONE);
        let rotary = rotary.clone();
        record(OP, [x], y, x.shape().sizes(), move |dy, grads| {
            let mut dx = dy.data::<T>().to_vec();
            turn(&mut dx, c, (heads, d), &rotary, -T::ONE);
            grads.add(0, dx)
        })
    })
}

fn turn<T: Real>(x: &mut [T], c: usize, (heads, d): (usize, usize), rotary: &Rotary, sign: T) {
    let half = rotary.half;
    cpu::each_row(x, c, |row, x| {
        let turns = &rotary.turns[rotary.positions[row] as usize * 2 * half..][..2 * half];
        for head in x.chunks_exact_mut(d.max(1)).take(heads) {
            let (u, v) = head.split_at_mut(half);
            for ((u, v), turn) in u.iter_mut().zip(v).zip(turns.chunks_exact(2)) {
                let (cos, sin) = (T::of(turn[0]), sign * T::of(turn[1]));
                (*u, *v) = (*u * cos - *v * sin, *v * cos + *u * sin);
            }
        }
    });
}

fn on_gpu(
    x: &Array,
    (r, c): (usize, usize),
    (heads, d): (usize, usize),
    rotary: &Rotary,
    sign: f32,
) -> Result<Array> {
    let [turns, positions] = rotary.tables(x.gpu())?;
    let y = x.gpu().array(OP, x.storage(), r * c)?;
    let args = crate::args![x, &y, turns, positions, int(c), int(heads * d), int(d), int(rotary.half), sign];
    let kernel = format!("rotary_{}", x.storage().name());
    let threads = u32::try_from(c.div_ceil(8).next_multiple_of(32).min(256)).unwrap_or(256);
    // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
    unsafe { x.gpu().launch(&kernel, (r, 1), (threads, 1), 0, args) }?;
    Ok(y)
}
