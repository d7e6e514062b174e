//! A piece of a model whose inner results are not kept: its backward computes them again.     x -> y = f(x)
//!   dx = df(x)^T dy, by a tape of its own over f once more

use super::gpu::arrays;
use crate::tensor::{Gradients, Tape, Tensor, record_tensor};
use crate::{Error, Result, on};

const OP: &str = "recompute";

/// y = f(x), of which only x is kept; the backward runs f again on a tape of its own, and gives the same bits as f on the tape would.
///
/// f must compute the same every time, and only from x and constants: nothing else gets a gradient. Without a tape it is f.
///
/// Source: `torch.utils.checkpoint`; Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016).
pub fn recompute(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor> + Send + 'static) -> Result<Tensor> {
    if !x.tracked() {
        return f(x);
    }
    let kept = x.detach();
    let y = f(&kept)?;
    if y.tracked() {
        return Err(Error::argument(OP, "f", "a function of x and constants", "one with other gradients"));
    }
    record_tensor(OP, &[x], y, move |dy, grads| {
        let (tape, mut own) = (Tape::new(), Gradients::new());
        // Of all rows: gradients of a leaf are added up in f32, those on the way as they are stored.
        let leaf = tape.leaf(&kept, 0).slice_rows(0..kept.rows().0)?.reshape(kept.shape().sizes())?;
        tape.backward_from(&[(&f(&leaf)?, dy.clone())], &mut own)?;
        let Some(dx) = own.get(0) else { return Ok(()) };
        let dx = Tensor::of_buffer(dx.clone(), kept.shape().sizes())?;
        match arrays(OP, [&dx])? {
            Some([dx]) => grads.add_array(0, dx.duplicate(OP)?),
            None => on!(dx.dtype(), T => grads.add(0, dx.data::<T>().to_vec())),
        }
    })
}
