//! Cases of several processes: one step, and a training run. Every process is a micro-batch (see [`crate::train::world`]); of a group, each
//! process computes and compares as many of them, and all get the same report.

use super::case::Case;
use super::compare::{Line, Report};
use super::trace::{self, compare};
use super::training::{after, gradients, losses_of_a_run, of_step, optimizer};
use super::{CLOSE, Place, Setup, set_up};
use crate::group::Group;
use crate::model::{Batch, Image, Negatives, Profile, Trace};
use crate::nn::Params;
use crate::ops;
use crate::tensor::{Gradients, Tensor};
use crate::train::exchange::{gather_rows, sum_gradients};
use crate::train::step::StepPlan;
use crate::train::world::Rank;
use crate::{Error, Kind, Result};

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

    /// Those of this process.
    fn batches(&self, group: &Group) -> Vec<Batch<'_>> {
        let each = self.texts.len() / group.size();
        let all = self.images.iter().zip(&self.texts).skip(group.rank() * each).take(each);
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

/// Refuses a group that a case, or a precision, cannot be shared out to.
pub fn check(case: &Case, at: &Place, report: &Report) -> Result<()> {
    let size = at.group.size();
    if size == 1 {
        return Ok(());
    }
    let wrong = |name: &str, want: String, got: String| {
        Err(Error::argument("parity", name, want, got).fix("run it in one process"))
    };
    if !case.kind.ends_with("_world") {
        let want = format!("a case of several processes, with {size} of them");
        return wrong("CASE", want, format!("{} of kind {}", case.path.display(), case.kind));
    }
    let world: usize = case.meta("world")?;
    if !world.is_multiple_of(size) {
        let want = format!("a number that {size} processes can share");
        return wrong("CASE", want, format!("{} of {world} ranks", case.path.display()));
    }
    if !report.is_exact() {
        return wrong("--dtype", format!("f32 or f64, with {size} processes"), "16 bits".into());
    }
    Ok(())
}

/// The lines of all processes, in turn.
fn gather(group: &Group, own: Report, report: &mut Report) -> Result<()> {
    let broken = |e| Error::new(Kind::Group, "parity").about("lines").got(e);
    if group.size() == 1 {
        report.take(own);
        return Ok(());
    }
    // Figures that are not finite have no form in JSON.
    let figures: Vec<f64> = own.lines.iter().flat_map(|l| [l.max_abs, l.rel_l2]).collect();
    let texts =
        group.all_gather("gather lines", &serde_json::to_vec(&finite(&own.lines)).map_err(broken)?)?;
    let figures = group.gather("gather lines", &figures)?;
    for (text, figures) in texts.iter().zip(figures) {
        let mut lines: Vec<Line> = serde_json::from_slice(text).map_err(broken)?;
        for (line, figures) in lines.iter_mut().zip(figures.chunks_exact(2)) {
            (line.max_abs, line.rel_l2) = (figures[0], figures[1]);
        }
        report.lines.extend(lines);
    }
    Ok(())
}

fn finite(lines: &[Line]) -> Vec<Line> {
    lines.iter().map(|l| Line { max_abs: 0.0, rel_l2: 0.0, ..l.clone() }).collect()
}

/// The sum of gradients over all ranks.
fn sum(at: &Place, params: &Params, all: &[Gradients]) -> Result<Gradients> {
    let mut whole = Gradients::new();
    sum_gradients(&at.group, params, all.to_vec(), &mut whole)?;
    Ok(whole)
}

pub fn stage1(case: &Case, at: &Place, report: &mut Report) -> Result<()> {
    let Setup { model, params } = set_up(case, at, false, &[""])?;
    let inputs = Inputs::read(case, at, ".")?;
    let world = inputs.texts.len();
    let negatives = negatives(world, |r, what| case.ids(&format!("inputs.rank{r}.{what}")))?;
    let own = inputs.batches(&at.group);
    let first = at.group.rank() * own.len();
    let mut grads = vec![Gradients::new(); own.len()];
    let mut ranks: Vec<Rank> = Vec::new();
    let given = (plan(at), &negatives, &at.group);
    model.step_world_given(&params, &own, given, &mut grads, |_, rank| {
        ranks.push(rank);
        Ok(())
    })?;
    let mut lines = report.beside();
    for (r, rank) in (first..).zip(&ranks) {
        trace::lines(case, &format!("rank{r}."), &rank.trace, inputs.texts[r].len(), &mut lines)?;
        for (loss, name) in rank.losses.iter().zip(LOSSES) {
            compare(case, &format!("outputs.rank{r}.{name}"), loss, &mut lines)?;
        }
    }
    gather(&at.group, lines, report)?;
    let rows = |of: fn(&Trace) -> &Option<Tensor>| {
        let all: Vec<Tensor> =
            ranks.iter().filter_map(|r| of(&r.trace).as_ref()).map(Tensor::detach).collect();
        gather_rows(&at.group, "gather features", &ops::concat_rows(&all.iter().collect::<Vec<_>>())?)
    };
    compare(case, "outputs.world.image_feats", &rows(|t| &t.image_feats)?, report)?;
    compare(case, "outputs.world.text_feat", &rows(|t| &t.text_feat)?, report)?;
    gathered_ids(case, &inputs, report)?;
    let losses = ranks.iter().map(Rank::values).collect::<Result<Vec<_>>>()?;
    let losses = at.group.gather("gather losses", &losses.concat())?.concat();
    let losses: &[[f64; 4]] = losses.as_chunks().0;
    for (i, name) in LOSSES.into_iter().enumerate() {
        let mean = losses.iter().map(|l| l[i]).sum::<f64>() / world as f64;
        let name = format!("outputs.world.{name}");
        report.close(&name, case.shape(&name)?, &[mean], &case.f64s(&name)?, CLOSE);
    }
    // Before averaging; of `ln_vision` a process of LAVIS has what others' losses say of its own pictures, a micro-batch here what its
    // losses say of others' pictures: only their sum is the same.
    let mut lines = report.beside();
    for (r, own) in (first..).zip(&grads) {
        for (id, spec, value) in params.iter().filter(|(_, s, _)| !s.name.starts_with("ln_vision.")) {
            let name = format!("grads_local.rank{r}.{}", spec.name);
            if let Some(g) = own.get(id.0).filter(|_| case.has(&name)) {
                let ours = Tensor::of_buffer(g.clone(), value.shape().sizes())?.to_f64()?;
                let ours: Vec<f64> = ours.iter().map(|x| x / at.loss_scale()).collect();
                lines.close(&name, case.shape(&name)?, &ours, &case.f64s(&name)?, CLOSE);
            }
        }
    }
    gather(&at.group, lines, report)?;
    gradients(case, &params, &sum(at, &params, &grads)?, at.loss_scale() * world as f64, report)
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
        let batches = inputs.batches(&at.group);
        let mut grads = vec![Gradients::new(); batches.len()];
        let mut losses = Vec::new();
        let given = (plan(at), &negatives, &at.group);
        model.step_world_given(&params, &batches, given, &mut grads, |_, rank| {
            losses.extend(rank.values()?);
            Ok(())
        })?;
        let losses = at.group.gather("gather losses", &losses)?.concat();
        let losses: &[[f64; 4]] = losses.as_chunks().0;
        for (own, losses) in own.iter_mut().zip(losses) {
            own.extend(losses);
        }
        means.extend((0..4).map(|i| losses.iter().map(|l| l[i]).sum::<f64>() / world as f64));
        let lr = schedule.lr(step as u64, run.steps_per_epoch);
        lrs.push(lr);
        let mut whole = sum(at, &params, &grads)?;
        optimizer.step(&mut params, &mut whole, lr, 1.0 / (at.loss_scale() * world as f64))?;
    }
    report.arithmetic("outputs.lr", case.shape("outputs.lr")?, &lrs, &case.f64s("outputs.lr")?, 1e-14);
    losses_of_a_run(case, &means, report)?;
    for (r, ours) in own.iter().enumerate() {
        let name = format!("outputs.rank{r}.losses");
        report.close(&name, case.shape(&name)?, ours, &case.f64s(&name)?, 1e-3);
    }
    after(case, &params, before.as_deref(), report)
}
