//! Cases of several processes: one step, and a training run. Every process is a micro-batch here (see [`crate::train::world`]).

use super::case::Case;
use super::compare::Report;
use super::trace::{self, compare};
use super::training::{after, gradients, losses_of_a_run, of_step, optimizer};
use super::{CLOSE, Place, Setup, set_up};
use crate::model::{Batch, Image, Negatives, Profile, Trace};
use crate::ops;
use crate::tensor::{Gradients, Tensor};
use crate::train::step::StepPlan;
use crate::train::world::Rank;
use crate::{Error, Result};

/// In the order of [`Rank::losses`].
const LOSSES: [&str; 4] = ["loss", "loss_itc", "loss_itm", "loss_lm"];

/// The pictures and captions of every process.
struct Inputs {
    images: Vec<Tensor>,
    texts: Vec<Vec<Vec<u32>>>,
}

impl Inputs {
    /// `of` names what follows the rank: `.` or the number of a batch.
    fn read(case: &Case, at: &Place, of: &str) -> Result<Inputs> {
        let world: usize = case.meta("world")?;
        let name = |r: usize, what: &str| format!("inputs.rank{r}{of}{what}");
        let image = |r| case.tensor(&name(r, "image"), at.dtype);
        let text = |r| case.texts(&name(r, "input_ids"), &name(r, "attention_mask"));
        let images = (0..world).map(image).collect::<Result<Vec<_>>>()?;
        let texts = (0..world).map(text).collect::<Result<Vec<_>>>()?;
        if texts.is_empty() {
            return Err(Error::file("parity", &case.path, "a world of at least 1", world));
        }
        Ok(Inputs { images, texts })
    }

    fn batches(&self) -> Vec<Batch<'_>> {
        let all = self.images.iter().zip(&self.texts);
        all.map(|(image, text)| Batch { image: Image::Pixels(image.clone()), text, image_id: None }).collect()
    }
}

/// Negatives of all ranks in turn, each given by `of`.
fn negatives(world: usize, of: impl Fn(usize, &str) -> Result<Vec<u32>>) -> Result<Negatives> {
    let all = |what: &str| Ok((0..world).map(|r| of(r, what)).collect::<Result<Vec<_>>>()?.concat());
    Ok(Negatives { image: all("neg_image_index")?, text: all("neg_text_index")? })
}

fn plan(at: &Place) -> StepPlan {
    StepPlan { profile: Profile::LavisDiagonal, drop: None, seed: 0, step: 0, scale: at.loss_scale() }
}

/// Their sum.
fn sum(all: &[Gradients]) -> Result<Gradients> {
    let mut whole = Gradients::new();
    for grads in all {
        for key in grads.keys() {
            if let Some(g) = grads.get(key) {
                whole.add(key, g.clone())?;
            }
        }
    }
    Ok(whole)
}

pub fn stage1(case: &Case, at: &Place, report: &mut Report) -> Result<()> {
    let Setup { model, params } = set_up(case, at, false, &[""])?;
    let inputs = Inputs::read(case, at, ".")?;
    let world = inputs.texts.len();
    let negatives = negatives(world, |r, what| case.ids(&format!("inputs.rank{r}.{what}")))?;
    let mut grads: Vec<Gradients> = (0..world).map(|_| Gradients::new()).collect();
    let mut ranks: Vec<Rank> = Vec::new();
    model.step_world_given(&params, &inputs.batches(), (plan(at), &negatives), &mut grads, |_, rank| {
        ranks.push(rank);
        Ok(())
    })?;
    for (r, rank) in ranks.iter().enumerate() {
        trace::lines(case, &format!("rank{r}."), &rank.trace, inputs.texts[r].len(), report)?;
        for (loss, name) in rank.losses.iter().zip(LOSSES) {
            compare(case, &format!("outputs.rank{r}.{name}"), loss, report)?;
        }
    }
    let rows = |of: fn(&Trace) -> &Option<Tensor>| {
        let all: Vec<Tensor> =
            ranks.iter().filter_map(|r| of(&r.trace).as_ref()).map(Tensor::detach).collect();
        ops::concat_rows(&all.iter().collect::<Vec<_>>())
    };
    compare(case, "outputs.world.image_feats", &rows(|t| &t.image_feats)?, report)?;
    compare(case, "outputs.world.text_feat", &rows(|t| &t.text_feat)?, report)?;
    gathered_ids(case, &inputs, report)?;
    let losses = ranks.iter().map(Rank::values).collect::<Result<Vec<_>>>()?;
    for (i, name) in LOSSES.into_iter().enumerate() {
        let mean = losses.iter().map(|l| l[i]).sum::<f64>() / world as f64;
        let name = format!("outputs.world.{name}");
        report.close(&name, case.shape(&name)?, &[mean], &case.f64s(&name)?, CLOSE);
    }
    // Before averaging; of `ln_vision` a process of LAVIS has what others' losses say of its own pictures, a micro-batch here what its
    // losses say of others' pictures: only their sum is the same.
    for (r, own) in grads.iter().enumerate() {
        for (id, spec, value) in params.iter().filter(|(_, s, _)| !s.name.starts_with("ln_vision.")) {
            let name = format!("grads_local.rank{r}.{}", spec.name);
            if let Some(g) = own.get(id.0).filter(|_| case.has(&name)) {
                let ours = Tensor::of_buffer(g.clone(), value.shape().sizes())?.to_f64()?;
                let ours: Vec<f64> = ours.iter().map(|x| x / at.loss_scale()).collect();
                report.close(&name, case.shape(&name)?, &ours, &case.f64s(&name)?, CLOSE);
            }
        }
    }
    gradients(case, &params, &sum(&grads)?, at.loss_scale() * world as f64, report)
}

/// The ids of all processes as they were gathered, padded.
fn gathered_ids(case: &Case, inputs: &Inputs, report: &mut Report) -> Result<()> {
    const NAME: &str = "outputs.world.input_ids";
    let shape = case.shape(NAME)?;
    let width = shape.last().copied().unwrap_or(0);
    let padded = |t: &Vec<u32>| {
        let mut row: Vec<f64> = t.iter().map(|id| f64::from(*id)).collect();
        row.resize(width, f64::from(crate::model::PAD));
        row
    };
    let ours: Vec<f64> = inputs.texts.iter().flatten().flat_map(padded).collect();
    report.equal(NAME, shape, &ours, &case.f64s(NAME)?);
    Ok(())
}

pub fn train(case: &Case, at: &Place, report: &mut Report) -> Result<()> {
    let Setup { model, mut params } = set_up(case, at, false, &[""])?;
    let (run, schedule, mut optimizer) = optimizer(case, &params)?;
    let world: usize = case.meta("world")?;
    let steps = case.shape("outputs.losses")?.first().copied().unwrap_or(0);
    let batches = (0..).take_while(|k| case.has(&format!("inputs.rank0.{k}.image"))).count().max(1);
    let before = report
        .kept
        .is_some()
        .then(|| params.iter().map(|(_, _, v)| v.to_f64()).collect::<Result<Vec<_>>>())
        .transpose()?;
    let (mut lrs, mut means, mut own) = (Vec::new(), Vec::new(), vec![Vec::new(); world]);
    for step in 0..steps {
        let inputs = Inputs::read(case, at, &format!(".{}.", step % batches))?;
        let of = |r: usize, what: &str| of_step(case, &format!("inputs.rank{r}.{what}"), steps, step);
        let negatives = negatives(world, of)?;
        let mut grads: Vec<Gradients> = (0..world).map(|_| Gradients::new()).collect();
        let mut losses = vec![[0.0; 4]; world];
        let given = (plan(at), &negatives);
        model.step_world_given(&params, &inputs.batches(), given, &mut grads, |r, rank| {
            losses[r] = rank.values()?;
            Ok(())
        })?;
        for (own, losses) in own.iter_mut().zip(&losses) {
            own.extend(losses);
        }
        means.extend((0..4).map(|i| losses.iter().map(|l| l[i]).sum::<f64>() / world as f64));
        let lr = schedule.lr(step as u64, run.steps_per_epoch);
        lrs.push(lr);
        optimizer.step(&mut params, &mut sum(&grads)?, lr, 1.0 / (at.loss_scale() * world as f64))?;
    }
    report.arithmetic("outputs.lr", case.shape("outputs.lr")?, &lrs, &case.f64s("outputs.lr")?, 1e-14);
    losses_of_a_run(case, &means, report)?;
    for (r, ours) in own.iter().enumerate() {
        let name = format!("outputs.rank{r}.losses");
        report.close(&name, case.shape(&name)?, ours, &case.f64s(&name)?, 1e-3);
    }
    after(case, &params, before.as_deref(), report)
}
