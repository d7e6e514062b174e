//! Parity with LAVIS: recorded cases run again, number by number.
//!
//! A case is a safetensors file that holds weights, inputs and what LAVIS made of them (`tests/lavis/record.py` writes
//! them). Every recorded tensor is compared, in order of computation; a recorded tensor that is not compared is a failure.
//!
//! Tolerances (f32 and f64, the recorded numbers being f32): outputs and gradients relative L2 1e-4, losses relative 1e-4,
//! losses of a training run relative 1e-3, token ids and candidates equal. Pictures: see `images`.

mod case;
mod compare;
mod decode;
mod images;
pub mod text;
mod training;

pub use compare::{Line, Report};

use crate::model::{Model, Profile};
use crate::nn::Params;
use crate::tensor::DType;
use crate::{Error, Result};
use case::Case;
use std::path::Path;

/// The model of a case with its recorded weights.
struct Setup {
    model: Model,
    params: Params,
}

/// Runs one case file.
pub fn run(path: &Path, dtype: DType) -> Result<Report> {
    let case = Case::open(path)?;
    let mut report = Report::new(path, &case.kind);
    match case.kind.as_str() {
        "vit" => training::vit(&case, dtype, &mut report)?,
        "stage1" => training::stage1(&case, dtype, Profile::LavisDiagonal, &mut report)?,
        "stage1_ids" => training::stage1(&case, dtype, Profile::LavisImageId, &mut report)?,
        "train" => training::train(&case, dtype, &mut report)?,
        "generate" => decode::generate(&case, dtype, &mut report)?,
        "features" => decode::features(&case, dtype, &mut report)?,
        "retrieval" => decode::retrieval(&case, dtype, &mut report)?,
        "images" => images::images(&case, &mut report)?,
        other => {
            let kinds = "vit, stage1, stage1_ids, train, generate, features, retrieval or images";
            return Err(Error::file("parity", path, format!("a case of kind {kinds}"), other));
        }
    }
    report.finish(case.names("outputs.").chain(case.names("grads.")).chain(case.names("after.")));
    Ok(report)
}

/// Parameters as recorded. Names outside `needed` prefixes may be missing (a case of the image encoder has no Q-Former).
fn set_up(case: &Case, dtype: DType, train_vit: bool, needed: &[&str]) -> Result<Setup> {
    let (model, specs) = Model::new(case.config()?, train_vit)?;
    let known: std::collections::HashSet<&str> = specs.iter().map(|s| s.name.as_str()).collect();
    if let Some(name) = case.names("weights.").find(|n| !known.contains(&n["weights.".len()..])) {
        return Err(Error::file("parity", &case.path, "weights of the case's configuration", name));
    }
    let params = Params::new(specs.clone(), |spec| {
        let name = format!("weights.{}", spec.name);
        if needed.iter().any(|p| spec.name.starts_with(p)) || case.has(&name) {
            case.tensor(&name, dtype)
        } else {
            Ok(crate::tensor::Tensor::zeros(dtype, &spec.shape))
        }
    })?;
    Ok(Setup { model, params })
}
