//! Products with one number.     x, y [any]   t [] (a learned temperature)
//!   scale:  y = c x;     dx = c dy
//!   divide: y = x / t;   dx = dy / t;   dt = -sum(dy y) / t

use super::check::check_dtype;
use super::gpu::{arrays, gradient, int, same_storage};
use crate::device::cpu;
use crate::tensor::{Array, Real, Storage, Tensor, record, record_tensor};
use crate::{Error, Result, on};

/// y = c x; dx = c dy. An error unless c is finite.
pub fn scale(x: &Tensor, c: f64) -> Result<Tensor> {
    if !c.is_finite() {
        return Err(Error::argument("scale", "factor", "a finite number", c));
    }
    if let Some([data]) = arrays("scale", [x])? {
        let times = move |x: &Array| -> Result<Array> {
            let y = x.gpu().array("scale", x.storage(), x.len())?;
            let args = crate::args![x, &y, x.len() as u64, c as f32];
            let kernel = format!("scale_fwd_{}", x.storage().name());
            // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
            unsafe { x.gpu().launch_each(&kernel, x.len(), args) }?;
            Ok(y)
        };
        let y = Tensor::of_array(times(&data)?, x.shape().sizes())?;
        return record_tensor("scale", &[x], y, move |dy, grads| {
            grads.add_array(0, times(&gradient("scale", dy)?)?)
        });
    }
    on!(x.dtype(), T => {
        let c = T::of(c);
        let y = cpu::map(x.data::<T>(), |x| x * c);
        record("scale", [x], y, x.shape().sizes(), move |dy, grads| {
            grads.add(0, cpu::map(dy.data::<T>(), |d| d * c))
        })
    })
}

/// y = x / t of a learned number t `[]`; dx = dy / t, dt = -sum(dy y) / t. On a GPU, t is in f32.
pub fn divide(x: &Tensor, t: &Tensor) -> Result<Tensor> {
    check_dtype("divide", x, &[("divisor", t)])?;
    if t.len() != 1 {
        return Err(Error::argument("divide", "divisor", "one number", t.shape()));
    }
    if let Some([data, by]) = arrays("divide", [x, t])? {
        return divide_on_gpu(x, t, &data, by);
    }
    on!(x.dtype(), T => {
        let by = t.data::<T>()[0];
        let y = cpu::map(x.data::<T>(), |x| x / by);
        let kept = y.clone();
        record("divide", [x, t], y, x.shape().sizes(), move |dy, grads| {
            let dy = dy.data::<T>();
            grads.add(0, cpu::map(dy, |d| d / by))?;
            grads.add(1, vec![-cpu::sum(dy.len(), |i| dy[i] * kept[i]) / by])
        })
    })
}

fn divide_on_gpu(x: &Tensor, t: &Tensor, data: &Array, by: Array) -> Result<Tensor> {
    same_storage("divide", "divisor", &by, Storage::F32)?;
    let (gpu, n) = (data.gpu(), data.len());
    let y = gpu.array("divide", data.storage(), n)?;
    let name = |pass: &str| format!("divide_{pass}_{}", data.storage().name());
    // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
    unsafe { gpu.launch_each(&name("fwd"), n, crate::args![data, &by, &y, n as u64]) }?;
    let (kept, backward) = (y.clone(), name("bwd"));
    record_tensor("divide", &[x, t], Tensor::of_array(y, x.shape().sizes())?, move |dy, grads| {
        let dy = gradient("divide", dy)?.cast("divide", kept.storage())?;
        let (gpu, pieces) = (dy.gpu(), n.div_ceil(2048));
        let dx = gpu.array("divide", dy.storage(), n)?;
        let partial = gpu.array("divide", Storage::F32, pieces)?;
        let args = crate::args![&dy, &kept, &by, &dx, &partial, n as u64];
        // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
        unsafe { gpu.launch(&backward, (pieces, 1), (256, 1), 0, args) }?;
        grads.add_array(0, dx)?;
        grads.accumulate_array(1, |dt, fresh| {
            let args = crate::args![&partial, &by, dt, int(pieces), i32::from(!fresh)];
            // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
            unsafe { gpu.launch("divide_bwd_t", (1, 1), (256, 1), 0, args) }
        })
    })
}
