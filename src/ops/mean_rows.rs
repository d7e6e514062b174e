//! Means of groups of rows.     x [G*n,C]   y [G,C]
//!   y[g] = mean of x[g*n .. (g+1)*n];     dx[r] = dy[r / n] / n

use super::gpu::{arrays, gradient, int};
use crate::device::cpu;
use crate::tensor::{Real, Tensor, record, record_tensor};
use crate::{Error, Result, on};

/// Means of groups of n rows: x `[G*n,C]`, y `[G,C]`; `dx[r]` = dy[r / n] / n. An error unless n divides the rows.
pub fn mean_rows(x: &Tensor, n: usize) -> Result<Tensor> {
    let (r, c) = x.rows();
    if n == 0 || !r.is_multiple_of(n) {
        return Err(Error::argument("mean_rows", "group", format!("a divisor of {r} rows"), n));
    }
    if let Some([data]) = arrays("mean_rows", [x])? {
        let (gpu, storage) = (data.gpu().clone(), data.storage());
        let y = gpu.array("mean_rows", storage, r / n * c)?;
        let args = crate::args![&data, &y, int(n), int(c)];
        let name = move |pass: &str| format!("mean_rows_{pass}_{}", storage.name());
        // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
        unsafe { gpu.launch(&name("fwd"), (r / n, c.div_ceil(256)), (256, 1), 0, args) }?;
        let y = Tensor::of_array(y, &[r / n, c])?;
        return record_tensor("mean_rows", &[x], y, move |dy, grads| {
            let dy = gradient("mean_rows", dy)?.cast("mean_rows", storage)?;
            let dx = gpu.array("mean_rows", storage, r * c)?;
            let args = crate::args![&dy, &dx, int(n), int(c)];
            // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
            unsafe { gpu.launch(&name("bwd"), (r, c.div_ceil(256)), (256, 1), 0, args) }?;
            grads.add_array(0, dx)
        });
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
