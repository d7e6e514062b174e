//! Parity with LAVIS: recorded cases run again, number by number.
//!
//! A case is a safetensors file that holds weights, inputs and what LAVIS made of them (`tests/lavis/record.py` writes
//! them). Every recorded tensor is compared, in order of computation; a recorded tensor that is not compared is a failure.
//!
//! How far a number may be off, and why, says [`tolerance`]; of pictures, `images`.

mod case;
mod compare;
mod decode;
mod explain;
mod images;
mod stage2;
pub mod text;
pub mod tolerance;
mod trace;
mod training;
mod world;

pub use compare::{Line, Report, Skipped};

use crate::group::Group;
use crate::model::{Model, Profile};
use crate::nn::{Params, Precision};
use crate::tensor::{DType, Device, Storage};
use crate::{Error, Result};
use case::Case;
use compare::{Keeping, Kept};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use tolerance::Held;

/// The relative L2 error of f32.
const CLOSE: f64 = 1e-4;

/// Where a case is run, and how exactly.
pub struct Place {
    pub device: Device,
    /// On the CPU.
    pub dtype: DType,
    /// On a GPU.
    pub precision: Precision,
    /// Processes that share the ranks of a world's case.
    pub group: Group,
}

impl Place {
    /// What gradients are scaled by on their way, as torch.amp.GradScaler does: in f16 small ones would vanish.
    fn loss_scale(&self) -> f64 {
        if self.precision.rest == Storage::F16 { 1024.0 } else { 1.0 }
    }

    pub fn cpu(dtype: DType) -> Place {
        Place { device: Device::Cpu, dtype, precision: Precision::F32, group: Group::alone() }
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
    let held = if case.kind == "images" {
        Held::Exact
    } else {
        let config = case.config()?;
        let llm = if case.has_meta("llm") { stage2::llm(&case)?.layers } else { 0 };
        Held::of(&case, at, config.vit_depth + config.layers + llm, || derived(&case, at.precision))?
    };
    let mut report = Report::new(path, &case.kind, held);
    world::check(&case, at, &report)?;
    compare_all(&case, at, &mut report)?;
    settle(&case, at, &mut report)?;
    report.finish(case.names("outputs.").chain(case.names("grads.")).chain(case.names("after.")));
    Ok(report)
}

fn compare_all(case: &Case, at: &Place, report: &mut Report) -> Result<()> {
    match case.kind.as_str() {
        "vit" => training::vit(case, at, report),
        "stage1" => training::stage1(case, at, Profile::LavisDiagonal, report),
        "stage1_ids" => training::stage1(case, at, Profile::LavisImageId, report),
        "train" => training::train(case, at, report),
        "stage1_world" => world::stage1(case, at, report),
        "train_world" => world::train(case, at, report),
        "generate" => decode::generate(case, at, report),
        "features" => decode::features(case, at, report),
        "retrieval" => decode::retrieval(case, at, report),
        "explain" | "stage2_explain" => explain::explain(case, at, report),
        "images" => images::images(case, report),
        "stage2" => stage2::stage2(case, at, report),
        "stage2_train" => stage2::train(case, at, report),
        "stage2_generate" => stage2::generate(case, at, report),
        other => {
            let kinds = "vit, stage1, stage1_ids, train, stage1_world, train_world, generate, features, retrieval, explain, \
                         images, stage2, stage2_train, stage2_generate or stage2_explain";
            Err(Error::file("parity", &case.path, format!("a case of kind {kinds}"), other))
        }
    }
}

/// What a run makes of these tensors, or of all.
fn kept(case: &Case, at: &Place, only: &HashSet<String>) -> Result<BTreeMap<String, Kept>> {
    let mut report = Report::new(&case.path, &case.kind, Held::Exact);
    report.kept = Some(Keeping { only: only.clone(), values: BTreeMap::new() });
    compare_all(case, at, &mut report)?;
    Ok(report.kept.unwrap_or_default().values)
}

/// The errors that 16 bits may make, from runs on the CPU in f32: how far results move if weights do (see [`tolerance`]).
fn derived(case: &Case, precision: Precision) -> Result<BTreeMap<String, f64>> {
    let run = |case: &Case| kept(case, &Place::cpu(DType::F32), &HashSet::new());
    let right = run(case)?;
    let mut squares: BTreeMap<String, f64> = BTreeMap::new();
    for draw in 1..=tolerance::DRAWS {
        for (name, off) in run(&case.off(draw, precision))? {
            let Some(right) = right.get(&name).filter(|r| r.size > 0.0) else { continue };
            let far = |(a, b): (&f32, &f32)| f64::from(a - b).powi(2);
            let square = right.values.iter().zip(&off.values).map(far).sum::<f64>() / right.size.powi(2);
            *squares.entry(name).or_default() += square / tolerance::DRAWS as f64;
        }
    }
    Ok(squares.into_iter().map(|(name, s)| (name, s.sqrt())).collect())
}

/// What one run in 16 bits does not tell (see [`tolerance`]): whether a record of 0 is one, by the CPU in f32; whether a gradient
/// is twice as much, by runs with moved weights.
fn settle(case: &Case, at: &Place, report: &mut Report) -> Result<()> {
    let (open, runs) = report.unsettled();
    let zeros = if report.is_exact() { Vec::new() } else { std::mem::take(&mut report.zeros) };
    let all: HashSet<String> = open.iter().chain(zeros.iter().map(|z| &z.0)).cloned().collect();
    if all.is_empty() {
        return Ok(());
    }
    let exact = kept(&case.as_recorded(), &Place::cpu(DType::F32), &all)?;
    for (name, most) in zeros {
        let recorded = case.f64s(&name)?;
        let near = |(a, b): (&f32, &f64)| (f64::from(*a) - b).abs() <= most;
        if !exact.get(&name).is_some_and(|x| x.values.iter().zip(&recorded).all(near)) {
            report.refuse(&name);
        }
    }
    let gains = if open.is_empty() { Vec::new() } else { gains(case, at, &open, exact.clone(), runs)? };
    for (name, gain) in gains {
        let (recorded, right) = (case.f64s(&name)?, exact.get(&name));
        let far = |(a, b): (&f32, &f64)| (f64::from(*a) - b).powi(2);
        let off = right.map(|r| r.values.iter().zip(&recorded).map(far).sum::<f64>().sqrt() / r.size);
        report.settle(&name, gain, off.is_some_and(|off| off <= CLOSE));
    }
    Ok(())
}

/// ours . right / right . right of these tensors over the recorded weights and `runs` times moved ones; `exact`: right, as recorded.
fn gains(
    case: &Case,
    at: &Place,
    open: &HashSet<String>,
    exact: BTreeMap<String, Kept>,
    runs: u64,
) -> Result<Vec<(String, f64)>> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let mut sums: BTreeMap<String, [f64; 2]> = BTreeMap::new();
    let mut right = exact;
    for draw in 0..=runs {
        let one = if draw == 0 { case.as_recorded() } else { case.moved(draw) };
        if draw > 0 {
            right = kept(&one, &Place::cpu(DType::F32), open)?;
        }
        for (name, ours) in kept(&one, at, open)? {
            let Some(right) = right.get(&name).filter(|r| r.values.len() == ours.values.len()) else {
                continue;
            };
            let sum = sums.entry(name).or_default();
            sum[0] += dot(&ours.values, &right.values);
            sum[1] += dot(&right.values, &right.values);
        }
    }
    Ok(sums.into_iter().map(|(name, [both, right])| (name, both / right)).collect())
}

/// Parameters as recorded. Names outside `needed` prefixes may be missing (a case of the image encoder has no Q-Former).
fn set_up(case: &Case, at: &Place, train_vit: bool, needed: &[&str]) -> Result<Setup> {
    let (model, specs) = match case.has_meta("llm") {
        true => {
            Model::with_llm(case.config()?, stage2::llm(case)?, case.meta_or("prompt_length", 0)?, train_vit)?
        }
        false => Model::new(case.config()?, train_vit)?,
    };
    let known: HashSet<&str> = specs.iter().map(|s| s.name.as_str()).collect();
    if let Some(name) = case.names("weights.").find(|n| !known.contains(&n["weights.".len()..])) {
        return Err(Error::file("parity", &case.path, "weights of the case's configuration", name));
    }
    let params = Params::new(specs.clone(), |spec| {
        let has = case.has(&format!("weights.{}", spec.name));
        if has || needed.iter().any(|p| spec.name.starts_with(p)) {
            let value = case.weight(spec, at.dtype)?;
            model.llm().map_or(Ok(value.clone()), |llm| llm.arranged(&spec.name, value))
        } else {
            Ok(crate::tensor::Tensor::zeros(at.dtype, &spec.shape))
        }
    })?;
    let params = params.to(&at.device, at.precision)?;
    Ok(Setup { model, params })
}
