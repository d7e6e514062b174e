//! Parameters from files: where a training, or the use of a model, starts. The rules are in [`crate::weights::start`].

use super::llm::{Bits, LlmFolder, is_llm};
use crate::nn::{self, Params, Spec, Value};
use crate::tensor::{DType, HalfMatrix, Tensor};
use crate::weights::start::{Plan, Want};
use crate::{Error, Result};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// What a model asks of files.
pub fn wants(specs: &[Spec]) -> Vec<Want> {
    specs.iter().map(|s| Want { name: s.name.clone(), shape: s.shape.clone() }).collect()
}

/// The numbers of a plan made from [`wants`] of the same specifications; what is in no file starts from the seed. Frozen
/// matrices that a file has in f16 stay f16; all else becomes `dtype`.
pub fn params(specs: Vec<Spec>, plan: &Plan, dtype: DType, seed: u64) -> Result<Params> {
    params_with(specs, plan, dtype, seed, None)
}

/// The numbers of [`params`], and behind them the parameters of a language model, for a device that stores 16 bits or for one that
/// does not.
pub fn params_with(
    specs: Vec<Spec>,
    plan: &Plan,
    dtype: DType,
    seed: u64,
    llm: Option<(&LlmFolder, bool)>,
) -> Result<Params> {
    let mut index = 0;
    Params::of_values(specs, |spec| {
        if let Some((llm, in_16_bits)) = llm.filter(|_| is_llm(&spec.name)) {
            return llm.value(spec, in_16_bits);
        }
        let i = index;
        index += 1;
        if plan.wants().get(i).is_none_or(|want| want.name != spec.name) {
            return Err(Error::argument("start", &spec.name, "a plan of this model", "one of another"));
        }
        if let (false, &[rows, columns]) = (spec.trained, &spec.shape[..])
            && let Some(halves) = plan.half(i)?
        {
            return Ok(Value::Half(HalfMatrix::new(Arc::new(Bits(halves)), rows, columns)?));
        }
        let values = plan.f32(i, |range| initial(spec, i, seed, range))?;
        Ok(Value::Tensor(match dtype {
            DType::F32 => Tensor::new(values, &spec.shape)?,
            DType::F64 => Tensor::new(values.into_iter().map(f64::from).collect(), &spec.shape)?,
        }))
    })
}

/// Elements of a parameter as it begins, in parallel.
pub fn initial(spec: &Spec, index: usize, seed: u64, range: Range<usize>) -> Vec<f32> {
    const PIECE: usize = 1 << 16;
    let mut out = vec![0.0; range.len()];
    out.par_chunks_mut(PIECE).enumerate().for_each(|(p, piece)| {
        let first = range.start + p * PIECE;
        let values = nn::initial(spec, index, seed, first..first + piece.len());
        piece.iter_mut().zip(values).for_each(|(to, x)| *to = x as f32);
    });
    out
}
