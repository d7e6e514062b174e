//! One negative for each row of similarities, drawn on a GPU by its kernel, which draws what `model/negatives.rs` does.

use super::gpu::int;
use crate::Result;
use crate::tensor::{Storage, Stream, Tensor};

const OP: &str = "sample negatives";

/// sim [n,n] -> n picks. None on the CPU, in a plan, and where a row has nothing to draw from.
pub fn sample_negatives(sim: &Tensor, ids: Option<&[i64]>, stream: Stream) -> Result<Option<Vec<u32>>> {
    let Some(array) = sim.array() else { return Ok(None) };
    let (gpu, n) = (array.gpu(), sim.rows().0);
    let array = array.cast(OP, Storage::F32)?;
    let ids = ids.map(|ids| gpu.upload(OP, Storage::I32, ids)).transpose()?;
    let picked = gpu.array(OP, Storage::I32, n)?;
    let (seed, site, step) = (stream.seed, stream.site, stream.step);
    let args = crate::args![&array, ids.as_ref(), &picked, int(n), seed, site, step];
    gpu.launch("sample_negatives_f32", (n, 1), (32, 1), 0, args)?;
    let picked = picked.read::<i32>()?;
    Ok(picked
        .into_iter()
        .map(u32::try_from)
        .collect::<std::result::Result<_, _>>()
        .ok()
        .filter(|_| gpu.computes()))
}
