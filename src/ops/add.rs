//! The sum of two tensors of one shape.     y = a + b;   da = dy, db = dy

use super::check::{check_dtype, check_shape};
use super::gpu::{arrays, gradient};
use crate::device::cpu;
use crate::tensor::{Storage, Tensor, record, record_tensor};
use crate::{Result, on};

/// The sum of two tensors of one shape: y = a + b; da = dy, db = dy.
///
/// Of one dtype. On a GPU, y is stored as both are, or in f32 where they differ. An error names the argument whose shape or
/// dtype does not fit.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    check_shape("add", "b", b, a.shape().sizes())?;
    check_dtype("add", a, &[("b", b)])?;
    if let Some([x, z]) = arrays("add", [a, b])? {
        let storage = if x.storage() == z.storage() { x.storage() } else { Storage::F32 };
        let y = x.gpu().array("add", storage, x.len())?;
        let (x, z) = (x.cast("add", storage)?, z.cast("add", storage)?);
        let args = crate::args![&x, &z, &y, y.len() as u64];
        let kernel = format!("add_fwd_{}", storage.name());
        // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
        unsafe { x.gpu().launch_each(&kernel, y.len(), args) }?;
        return record_tensor("add", &[a, b], Tensor::of_array(y, a.shape().sizes())?, |dy, grads| {
            let dy = gradient("add", dy)?;
            grads.add_array(0, dy.clone())?;
            grads.add_array(1, dy)
        });
    }
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
