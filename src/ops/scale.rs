//! Products with one number.     x, y [any]   t [] (a learned temperature)
//!   scale:  y = c x;     dx = c dy
//!   divide: y = x / t;   dx = dy / t;   dt = -sum(dy y) / t

use super::check_dtype;
use crate::device::cpu;
use crate::tensor::{Real, Tensor, record};
use crate::{Error, Result, on};

pub fn scale(x: &Tensor, c: f64) -> Result<Tensor> {
    if !c.is_finite() {
        return Err(Error::argument("scale", "factor", "a finite number", c));
    }
    on!(x.dtype(), T => {
        let c = T::of(c);
        let y = cpu::map(x.data::<T>(), |x| x * c);
        record("scale", [x], y, x.shape().sizes(), move |dy, grads| {
            grads.add(0, cpu::map(dy.data::<T>(), |d| d * c))
        })
    })
}

pub fn divide(x: &Tensor, t: &Tensor) -> Result<Tensor> {
    check_dtype("divide", x, &[("divisor", t)])?;
    if t.len() != 1 {
        return Err(Error::argument("divide", "divisor", "one number", t.shape()));
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
