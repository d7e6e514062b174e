//! Cases of the image encoder, of one step and of a training run.

use super::case::Case;
use super::compare::{FROZEN, NOISE, Report};
use super::tolerance::{NOTHING, ZERO};
use super::trace::{self, Best, compare};
use super::{CLOSE, Place, Setup, set_up};
use crate::model::{Batch, Image, Negatives, Profile, Sampling, Trace};
use crate::nn::{DropoutPlan, Gelu, Params, Pass};
use crate::tensor::{DType, Gradients, Tape, Tensor};
use crate::train::optimizer::{AdamW, Hyper};
use crate::train::schedule::Schedule;
use crate::{Error, Result};
use serde::Deserialize;

/// Gradients of ordinary size still have digits in f16 at this loss scale.
const SMALLEST_SCALE: f64 = 1.0 / 1024.0;

/// The true gradient of a key bias is 0 (softmax ignores a constant): what is there is rounding noise.
fn is_noise(name: &str) -> bool {
    name.ends_with("attention.self.key.bias")
}

fn largest(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |m: f64, x| m.max(x.abs()))
}

/// What nine tenths of the recorded gradients have as their largest number at most.
fn size_of_gradients(case: &Case) -> Result<f64> {
    let of = |name| Ok::<_, Error>(largest(&case.f64s(name)?));
    let mut all = case.names("grads.").map(of).collect::<Result<Vec<_>>>()?;
    all.sort_by(f64::total_cmp);
    Ok(all.get(all.len() * 9 / 10).copied().unwrap_or(0.0))
}

/// What is added up for the gradient of the temperature: a softmax's differences times the similarities over it.
fn size_of_temperature(case: &Case) -> Result<f64> {
    const SIM: &str = "outputs.sim_i2t";
    let temp = largest(&case.f64s("weights.temp")?);
    let sim = if case.has(SIM) { largest(&case.f64s(SIM)?) } else { 1.0 / temp };
    Ok(sim / temp)
}

/// Gradients in the order backward reaches them: the last parameter first.
pub(super) fn gradients(
    case: &Case,
    params: &Params,
    grads: &Gradients,
    scale: f64,
    report: &mut Report,
) -> Result<()> {
    let size = size_of_gradients(case)?;
    let all: Vec<_> = params.iter().collect();
    for (id, spec, value) in all.into_iter().rev() {
        let name = format!("grads.{}", spec.name);
        if !case.has(&name) {
            if spec.trained && grads.get(id.0).is_some() {
                let want = "the gradients of the trained parameters";
                let got = "a gradient that was not recorded";
                return Err(Error::file("parity", &case.path, want, name).fix(got));
            }
            continue;
        }
        let ours = match grads.get(id.0) {
            Some(g) => {
                let all = Tensor::of_buffer(g.clone(), value.shape().sizes())?.to_f64()?;
                all.iter().map(|x| x / scale).collect()
            }
            None => Vec::new(),
        };
        let theirs = case.f64s(&name)?;
        let size = if spec.name == "temp" { size.max(size_of_temperature(case)?) } else { size };
        if is_noise(&spec.name) || largest(&theirs) <= NOTHING * size {
            let share = report.rounded().map_or(ZERO, |r| r.floor().max(ZERO));
            report.near(&name, &spec.shape, &ours, &theirs, share * size);
            report.keep(&name, &ours, None);
            if !is_noise(&spec.name) {
                report.zeros.push((name, ZERO * size));
            }
        } else {
            report.close(&name, &spec.shape, &ours, &theirs, CLOSE);
        }
    }
    Ok(())
}

pub fn vit(case: &Case, at: &Place, report: &mut Report) -> Result<()> {
    // GELU in its tanh form has no gradient.
    let trained = at.precision.vit_gelu == Gelu::Exact;
    let Setup { model, params } = set_up(case, at, trained, &["visual_encoder.", "ln_vision."])?;
    let (tape, mut grads) = (Tape::new(), Gradients::new());
    let pass = Pass::training(&params, &tape, None);
    let tokens = model.vit_tokens(&pass, &case.tensor("inputs.image", at.dtype)?, |_, _| {})?;
    let embeds = model.image_embeds(&pass, &tokens)?;
    compare(case, "outputs.image_embeds", &embeds, report)?;
    if !trained {
        case.names("grads.").for_each(|name| report.skip(name, FROZEN));
        return Ok(());
    }
    let seed = case.tensor("inputs.grad_image_embeds", at.dtype)?.reshape(embeds.shape().sizes())?;
    tape.backward_from(&[(&embeds, seed.like(&embeds)?)], &mut grads)?;
    gradients(case, &params, &grads, 1.0, report)
}

fn negatives(case: &Case) -> Result<Negatives> {
    Ok(Negatives { image: case.ids("inputs.neg_image_index")?, text: case.ids("inputs.neg_text_index")? })
}

/// The query of every picture and caption that the gradient goes through, as [`super::tolerance`] says.
fn best_queries(case: &Case, batch: &Batch, profile: Profile, negatives: &Negatives) -> Result<Best> {
    const NAMES: [&str; 2] = ["outputs.image_feats", "outputs.text_feat"];
    let config = case.config()?;
    let (q, e) = (config.num_query, config.embed_dim);
    let [image, text] = if NAMES.iter().all(|n| case.has(n)) {
        [case.f64s(NAMES[0])?, case.f64s(NAMES[1])?]
    } else {
        let cpu = Place::cpu(DType::F32);
        let Setup { model, params } = set_up(&case.as_recorded(), &cpu, false, &[""])?;
        let mut trace = Trace::default();
        let plan = dropout(case)?;
        let pass = Pass::untracked(&params, plan);
        let image = case.tensor("inputs.image", cpu.dtype)?;
        let batch = Batch { image: Image::Pixels(image.clone()), text: batch.text, image_id: batch.image_id };
        model.stage1(&pass, &batch, profile, Sampling::Given(negatives), Some(&mut trace))?;
        let features = |t: Option<Tensor>| t.map_or(Ok(Vec::new()), |t| t.to_f64());
        [features(trace.image_feats)?, features(trace.text_feat)?]
    };
    let mut best = Best::of(&image, &text, q, e);
    if case.has("inputs.best_query") {
        best.queries = case.ids("inputs.best_query")?;
    }
    Ok(best)
}

/// Dropout of a case that was recorded with it: LAVIS was given the masks that these numbers name.
fn dropout(case: &Case) -> Result<Option<DropoutPlan>> {
    #[derive(Deserialize)]
    struct Plan {
        p: f32,
        seed: u64,
        step: u32,
    }
    if !case.has_meta("dropout") {
        return Ok(None);
    }
    let Plan { p, seed, step } = case.meta("dropout")?;
    Ok(Some(DropoutPlan { p, seed, step }))
}

pub(super) fn are_finite(params: &Params, grads: &Gradients) -> Result<bool> {
    for (id, _, value) in params.iter() {
        let Some(g) = grads.get(id.0) else { continue };
        let all = Tensor::of_buffer(g.clone(), value.shape().sizes())?.to_f64()?;
        if !all.iter().all(|x| x.is_finite()) {
            return Ok(false);
        }
    }
    Ok(true)
}

pub fn stage1(case: &Case, at: &Place, profile: Profile, report: &mut Report) -> Result<()> {
    let Setup { model, params } = set_up(case, at, false, &[""])?;
    let image = case.tensor("inputs.image", at.dtype)?;
    let text = case.texts("inputs.input_ids", "inputs.attention_mask")?;
    let ids = if profile == Profile::LavisImageId { Some(case.i64s("inputs.image_id")?) } else { None };
    let batch = Batch { image: Image::Pixels(image.clone()), text: &text, image_id: ids.as_deref() };
    let negatives = negatives(case)?;
    let (best, plan) = (best_queries(case, &batch, profile, &negatives)?, dropout(case)?);
    let given = Sampling::Recorded { negatives: &negatives, queries: &best.queries };

    // Once as a user computes it (rows nobody reads left out), once with every row for comparison. Masks of dropout are named by
    // rows: the recorded ones are of every row.
    let mut scale = at.loss_scale();
    let (out, grads, mut trace) = loop {
        let (tape, mut grads) = (Tape::new(), Gradients::new());
        let pass = Pass::training(&params, &tape, plan);
        let mut trace = Trace::default();
        let every = plan.is_some().then_some(&mut trace);
        let out = model.stage1(&pass, &batch, profile, given.clone(), every)?;
        tape.backward(&out.loss, scale, &mut grads)?;
        // As torch.amp.GradScaler does: where gradients overflow they are computed again with less.
        if at.loss_scale() == 1.0 || scale < SMALLEST_SCALE || are_finite(&params, &grads)? {
            break (out, grads, trace);
        }
        scale /= 16.0;
    };
    if plan.is_none() {
        let own = Sampling::Given(&negatives);
        model.stage1(&Pass::inference(&params), &batch, profile, own, Some(&mut trace))?;
    }
    trace::lines(case, "", &trace, text.len(), report)?;
    best.line(&trace, model.config.num_query, report)?;
    for (name, t) in
        [("loss_itc", &out.itc), ("loss_itm", &out.itm), ("loss_lm", &out.lm), ("loss", &out.loss)]
    {
        compare(case, &format!("outputs.{name}"), t, report)?;
    }
    gradients(case, &params, &grads, scale, report)
}

#[derive(Deserialize)]
pub(super) struct Run {
    init_lr: f64,
    min_lr: f64,
    warmup_lr: f64,
    warmup_steps: u64,
    weight_decay: f64,
    max_epoch: u64,
    pub steps_per_epoch: u64,
    betas: [f64; 2],
    eps: f64,
}

/// The optimizer and the schedule of a run.
pub(super) fn optimizer(case: &Case, params: &Params) -> Result<(Run, Schedule, AdamW)> {
    let run: Run = case.meta("run")?;
    let schedule = Schedule {
        init_lr: run.init_lr,
        min_lr: run.min_lr,
        warmup_lr: run.warmup_lr,
        warmup_steps: run.warmup_steps,
        max_epoch: run.max_epoch,
    };
    let hyper = Hyper { betas: run.betas, eps: run.eps, weight_decay: run.weight_decay, ..Hyper::default() };
    let optimizer = AdamW::new(params, hyper)?;
    Ok((run, schedule, optimizer))
}

/// Row `step` of an input of every step.
pub(super) fn of_step(case: &Case, name: &str, steps: usize, step: usize) -> Result<Vec<u32>> {
    let all = case.ids(name)?;
    let n = all.len() / steps.max(1);
    let row = all.get(step * n..(step + 1) * n);
    Ok(row
        .ok_or_else(|| Error::file("parity", &case.path, format!("step {step} in {name}"), "none"))?
        .to_vec())
}

pub fn train(case: &Case, at: &Place, report: &mut Report) -> Result<()> {
    let Setup { model, mut params } = set_up(case, at, false, &[""])?;
    let (run, schedule, mut optimizer) = optimizer(case, &params)?;
    let steps = case.shape("outputs.losses")?.first().copied().unwrap_or(0);
    let batches = (0..).take_while(|k| case.has(&format!("inputs.{k}.image"))).count().max(1);
    let values = |params: &Params| params.iter().map(|(_, _, v)| v.to_f64()).collect::<Result<Vec<_>>>();
    let before = report.kept.is_some().then(|| values(&params)).transpose()?;
    let (mut lrs, mut all) = (Vec::new(), Vec::new());
    for step in 0..steps {
        let k = step % batches;
        let image = case.tensor(&format!("inputs.{k}.image"), at.dtype)?;
        let text = case.texts(&format!("inputs.{k}.input_ids"), &format!("inputs.{k}.attention_mask"))?;
        let (tape, mut grads) = (Tape::new(), Gradients::new());
        let pass = Pass::training(&params, &tape, None);
        let negatives = Negatives {
            image: of_step(case, "inputs.neg_image_index", steps, step)?,
            text: of_step(case, "inputs.neg_text_index", steps, step)?,
        };
        let queries = case.has("inputs.best_query").then(|| of_step(case, "inputs.best_query", steps, step));
        let queries = queries.transpose()?;
        let given = match &queries {
            Some(queries) => Sampling::Recorded { negatives: &negatives, queries },
            None => Sampling::Given(&negatives),
        };
        let batch = Batch { image: Image::Pixels(image.clone()), text: &text, image_id: None };
        let out = model.stage1(&pass, &batch, Profile::LavisDiagonal, given, None)?;
        tape.backward(&out.loss, at.loss_scale(), &mut grads)?;
        let lr = schedule.lr(step as u64, run.steps_per_epoch);
        for loss in [&out.loss, &out.itc, &out.itm, &out.lm] {
            all.push(loss.item()?);
        }
        lrs.push(lr);
        drop((pass, out));
        optimizer.step(&mut params, &mut grads, lr, 1.0 / at.loss_scale())?;
    }
    // The learning rate is arithmetic in f64 on both sides: equal to a few units in the last place.
    report.arithmetic("outputs.lr", case.shape("outputs.lr")?, &lrs, &case.f64s("outputs.lr")?, 1e-14);
    losses_of_a_run(case, &all, report)?;
    after(case, &params, before.as_deref(), report)
}

/// The trained parameters behind a run, which began with `before`.
pub(super) fn after(
    case: &Case,
    params: &Params,
    before: Option<&[Vec<f64>]>,
    report: &mut Report,
) -> Result<()> {
    for (id, spec, value) in params.iter().filter(|(_, s, _)| s.trained) {
        let name = format!("after.{}", spec.name);
        if is_noise(&spec.name) {
            report.skip(&name, NOISE);
            continue;
        }
        let ours = value.to_f64()?;
        // A weight that is off is so from the start: how far its way is off is what counts.
        report.keep(&name, &ours, before.and_then(|b| b.get(id.0)).map(Vec::as_slice));
        report.close(&name, &spec.shape, &ours, &case.f64s(&name)?, 1e-3);
    }
    Ok(())
}

pub(super) fn losses_of_a_run(case: &Case, ours: &[f64], report: &mut Report) -> Result<()> {
    const WORST: &str = "outputs.losses, worst of a step (relative)";
    let recorded = case.f64s("outputs.losses")?;
    report.close("outputs.losses", case.shape("outputs.losses")?, ours, &recorded, 1e-3);
    let most = match report.rounded() {
        None => 1e-3,
        Some(rounded) if rounded.knows(WORST) => rounded.bound(WORST, &[]),
        Some(_) => return Ok(()),
    };
    let far = |(a, b): (&f64, &f64)| (a - b).abs() / b.abs();
    // A NaN on either side must not vanish in `max`.
    let worst = ours.iter().zip(&recorded).map(far).fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m });
    report.near(WORST, &[recorded.len()], &[worst], &[0.0], most);
    Ok(())
}
