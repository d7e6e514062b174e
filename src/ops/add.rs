//! The sum of two tensors of one shape.     y = a + b;   da = dy, db = dy

use super::{check_dtype, check_shape};
use crate::device::cpu;
use crate::tensor::{Tensor, record};
use crate::{Result, on};

pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    check_shape("add", "b", b, a.shape().sizes())?;
    check_dtype("add", a, &[("b", b)])?;
    on!(a.dtype(), T => {
        let y = cpu::map2(a.data::<T>(), b.data::<T>(), |a, b| a + b);
        record("add", [a, b], y, a.shape().sizes(), |dy, grads| {
            for i in 0..2 {
                if grads.wants(i) {
                    grads.add(i, dy.data::<T>().to_vec())?;
                }
            }
            Ok(())
        })
    })
}
