//! Means of groups of rows.     x [G*n,C]   y [G,C]
//!   y[g] = mean of x[g*n .. (g+1)*n];     dx[r] = dy[r / n] / n

use crate::device::cpu;
use crate::tensor::{Real, Tensor, record};
use crate::{Error, Result, on};

pub fn mean_rows(x: &Tensor, n: usize) -> Result<Tensor> {
    let (r, c) = x.rows();
    if n == 0 || !r.is_multiple_of(n) {
        return Err(Error::argument("mean_rows", "group", format!("a divisor of {r} rows"), n));
    }
    on!(x.dtype(), T => {
        let (data, share) = (x.data::<T>(), T::of(1.0 / n as f64));
        let mut y = vec![T::ZERO; r / n * c];
        cpu::each_row(&mut y, c, |g, row| {
            for i in g * n..(g + 1) * n {
                for (y, x) in row.iter_mut().zip(&data[i * c..]) {
                    *y += *x;
                }
            }
            for y in row.iter_mut() {
                *y *= share;
            }
        });
        record("mean_rows", [x], y, &[r / n, c], move |dy, grads| {
            let dy = dy.data::<T>();
            let mut dx = vec![T::ZERO; r * c];
            cpu::each_row(&mut dx, c, |i, row| {
                for (dx, dy) in row.iter_mut().zip(&dy[i / n * c..]) {
                    *dx = *dy * share;
                }
            });
            grads.add(0, dx)
        })
    })
}
