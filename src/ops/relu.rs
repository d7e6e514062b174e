//! ReLU.     x, y [any]
//!   y = x where x > 0, else 0;     dx = dy where x > 0, else 0
//! Kept for the backward: a bit an element.

use super::gpu::{arrays, gradient};
use crate::device::cpu;
use crate::tensor::{Array, Real, Storage, Tensor, record, record_tensor};
use crate::{Result, on};

const OP: &str = "relu";

/// ReLU: y = x where x > 0, else 0; dx = dy there, else 0. NaN stays NaN.
///
/// Any shape; y is stored as x is. The backward needs a bit an element, not x.
///
/// Source: `torch.nn.functional.relu`.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    if let Some([data]) = arrays(OP, [x])? {
        return on_gpu(x, &data);
    }
    on!(x.dtype(), T => {
        let data = x.data::<T>();
        let y = cpu::map(data, |x| if x <= T::ZERO { T::ZERO } else { x });
        let bits: Vec<u8> = if x.tracked() { data.chunks(8).map(bits).collect() } else { Vec::new() };
        record(OP, [x], y, x.shape().sizes(), move |dy, grads| {
            let mut dx = dy.data::<T>().to_vec();
            for (dx, bits) in dx.chunks_mut(8).zip(&bits) {
                for (i, d) in dx.iter_mut().enumerate() {
                    *d = if bits >> i & 1 == 1 { *d } else { T::ZERO };
                }
            }
            grads.add(0, dx)
        })
    })
}

/// Of up to eight elements, those that pass.
fn bits<T: Real>(x: &[T]) -> u8 {
    x.iter().enumerate().fold(0, |all, (i, x)| all | u8::from(*x > T::ZERO || x.is_nan()) << i)
}

fn on_gpu(x: &Tensor, data: &Array) -> Result<Tensor> {
    let (gpu, storage, n) = (data.gpu(), data.storage(), data.len());
    let y = gpu.array(OP, storage, n)?;
    let bits = gpu.array(OP, Storage::U8, n.div_ceil(8))?;
    let name = move |pass: &str| format!("relu_{pass}_{}", storage.name());
    // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
    unsafe { gpu.launch_each(&name("fwd"), n, crate::args![data, &y, &bits, n as u64]) }?;
    record_tensor(OP, &[x], Tensor::of_array(y, x.shape().sizes())?, move |dy, grads| {
        let dy = gradient(OP, dy)?.cast(OP, storage)?;
        let dx = dy.gpu().array(OP, storage, n)?;
        // SAFETY: as above.
        unsafe { dy.gpu().launch_each(&name("bwd"), n, crate::args![&dy, &bits, &dx, n as u64]) }?;
        grads.add_array(0, dx)
    })
}
