//! Parity with LAVIS: recorded cases run again, number by number.
//!
//! A case is a safetensors file that holds weights, inputs and what LAVIS made of them (`tests/lavis/record.py` writes
//! them). Every recorded tensor is compared, in order of computation; a recorded tensor that is not compared is a failure.
//!
//! Tolerances (f32 and f64, the recorded numbers being f32): outputs and gradients relative L2 1e-4, losses relative 1e-4,
//! losses of a training run relative 1e-3, token ids and candidates equal. Pictures: see `images`. On a GPU in 16 bits:
//! what the roundings on the way add up to (`Place::rounding`); weights after a training run within what AdamW can move them;
//! gradients that differ do not count where two query rows are nearly as similar to a text.

mod case;
mod compare;
mod decode;
mod images;
pub mod text;
mod training;

pub use compare::{Line, Report};

use crate::model::{Config, Model, Profile};
use crate::nn::{Params, Precision};
use crate::tensor::{DType, Device, Storage};
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
    /// What gradients are scaled by on their way, as torch.amp.GradScaler does: in f16 small ones would vanish.
    fn loss_scale(&self) -> f64 {
        if self.precision.rest == Storage::F16 { 1024.0 } else { 1.0 }
    }

    /// The relative L2 error that storing in 16 bits may add. A sublayer rounds about four results, a layer has two, and
    /// the backward as many again: n = 16 (image layers + Q-Former layers) roundings, each off by up to u, u / sqrt 3 on
    /// average, which add in quadrature: u sqrt(n / 3). Twice that, for what softmax and norms amplify.
    fn rounding(&self, config: &Config) -> f64 {
        let unit = match self.precision.rest {
            Storage::F16 => 2f64.powi(-11),
            Storage::BF16 => 2f64.powi(-8),
            _ => return 0.0,
        };
        let n = 16.0 * (config.vit_depth + config.layers) as f64;
        2.0 * unit * (n / 3.0).sqrt()
    }

    /// The same of gradients: the contrastive loss looks at cosines divided by the temperature, so an error e of these is
    /// one of e / temperature in its probabilities, which are half wrong at most.
    fn gradient_rounding(&self, config: &Config, temperature: f64) -> f64 {
        self.rounding(config) * (1.0 + 0.5 / temperature)
    }

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
    if case.kind != "images" {
        let config = case.config()?;
        let temperature = case.f64s("weights.temp").ok().and_then(|t| t.first().copied());
        report.rounding = at.rounding(&config);
        report.gradient_rounding = at.gradient_rounding(&config, temperature.unwrap_or(1.0));
    }
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
