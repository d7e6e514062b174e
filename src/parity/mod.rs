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
use crate::nn::{Params, Precision};
use crate::tensor::{DType, Device};
use crate::{Error, Result};
use case::Case;
use std::path::Path;

/// Where a case is run, and how exactly.
pub struct Place {
    pub device: Device,
    /// On the CPU.
    pub dtype: DType,
    /// On a GPU.
    pub precision: Precision,
}

impl Place {
    pub fn cpu(dtype: DType) -> Place {
        Place { device: Device::Cpu, dtype, precision: Precision::F32 }
    }
}

/// The model of a case with its recorded weights.
struct Setup {
    model: Model,
    params: Params,
}

/// Runs one case file.
pub fn run(path: &Path, at: &Place) -> Result<Report> {
    let case = Case::open(path)?;
    let mut report = Report::new(path, &case.kind);
    match case.kind.as_str() {
        "vit" => training::vit(&case, at, &mut report)?,
        "stage1" => training::stage1(&case, at, Profile::LavisDiagonal, &mut report)?,
        "stage1_ids" => training::stage1(&case, at, Profile::LavisImageId, &mut report)?,
        "train" => training::train(&case, at, &mut report)?,
        "generate" => decode::generate(&case, at, &mut report)?,
        "features" => decode::features(&case, at, &mut report)?,
        "retrieval" => decode::retrieval(&case, at, &mut report)?,
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
fn set_up(case: &Case, at: &Place, train_vit: bool, needed: &[&str]) -> Result<Setup> {
    let (model, specs) = Model::new(case.config()?, train_vit)?;
    let known: std::collections::HashSet<&str> = specs.iter().map(|s| s.name.as_str()).collect();
    if let Some(name) = case.names("weights.").find(|n| !known.contains(&n["weights.".len()..])) {
        return Err(Error::file("parity", &case.path, "weights of the case's configuration", name));
    }
    let params = Params::new(specs.clone(), |spec| {
        let name = format!("weights.{}", spec.name);
        if needed.iter().any(|p| spec.name.starts_with(p)) || case.has(&name) {
            case.tensor(&name, at.dtype)
        } else {
            Ok(crate::tensor::Tensor::zeros(at.dtype, &spec.shape))
        }
    })?;
    let params = params.to(&at.device, at.precision)?;
    Ok(Setup { model, params })
}
