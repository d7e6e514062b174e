//! Cases of the image encoder, of one step and of a training run.

use super::case::Case;
use super::{Line, Place, Report, Setup, set_up};
use crate::model::{Batch, Layout, Negatives, Outputs, Profile, Sampling, Trace};
use crate::nn::{Gelu, Params, Pass};
use crate::tensor::{Gradients, Tape, Tensor};
use crate::train::optimizer::{AdamW, Hyper};
use crate::train::schedule::Schedule;
use crate::{Error, Result};
use serde::Deserialize;
use std::ops::Range;

const CLOSE: f64 = 1e-4;

fn compare(case: &Case, name: &str, ours: &Tensor, report: &mut Report) -> Result<()> {
    report.close(name, case.shape(name)?, &ours.to_f64(), &case.f64s(name)?, CLOSE);
    Ok(())
}

/// The true gradient of a key bias is 0 (softmax ignores a constant): what is there is rounding noise.
fn is_noise(name: &str) -> bool {
    name.ends_with("attention.self.key.bias")
}

/// Gradients in the order backward reaches them: the last parameter first.
fn gradients(case: &Case, params: &Params, grads: &Gradients, scale: f64, report: &mut Report) -> Result<()> {
    let largest = case
        .names("grads.")
        .map(|n| case.f64s(n))
        .try_fold(0f64, |m, g| -> Result<f64> { Ok(g?.iter().fold(m, |m, x| m.max(x.abs()))) })?;
    let all: Vec<_> = params.iter().collect();
    for (id, spec, value) in all.into_iter().rev() {
        let name = format!("grads.{}", spec.name);
        if !case.has(&name) {
            if spec.trained && grads.get(id.0).is_some() {
                let got = "a gradient that was not recorded";
                return Err(Error::file(
                    "parity",
                    &case.path,
                    "the gradients of the trained parameters",
                    name,
                )
                .fix(got));
            }
            continue;
        }
        let ours = match grads.get(id.0) {
            Some(g) => {
                let all = Tensor::of_buffer(g.clone(), value.shape().sizes())?.to_f64();
                all.iter().map(|x| x / scale).collect()
            }
            None => Vec::new(),
        };
        let theirs = case.f64s(&name)?;
        if is_noise(&spec.name) {
            // f32 sums of up to a few thousand terms whose true sum is 0
            let share = 1e-5f64.max(report.rounding / 10.0);
            report.near(&name, &spec.shape, &ours, &theirs, share * largest);
        } else {
            report.close(&name, &spec.shape, &ours, &theirs, CLOSE.max(report.gradient_rounding));
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
        case.names("grads.").for_each(|name| report.skip(name));
        return Ok(());
    }
    let seed = case.tensor("inputs.grad_image_embeds", at.dtype)?.reshape(embeds.shape().sizes())?;
    tape.backward_from(&[(&embeds, seed.like(&embeds)?)], &mut grads)?;
    gradients(case, &params, &grads, 1.0, report)
}

fn negatives(case: &Case, step: Option<usize>) -> Result<Negatives> {
    let pick = |name: &str| -> Result<Vec<u32>> {
        let all = case.ids(name)?;
        let Some(step) = step else { return Ok(all) };
        let n = case.shape(name)?.last().copied().unwrap_or(0);
        let row = all.get(step * n..(step + 1) * n);
        Ok(row
            .ok_or_else(|| Error::file("parity", &case.path, format!("step {step} in {name}"), "none"))?
            .to_vec())
    };
    Ok(Negatives { image: pick("inputs.neg_image_index")?, text: pick("inputs.neg_text_index")? })
}

pub fn stage1(case: &Case, at: &Place, profile: Profile, report: &mut Report) -> Result<()> {
    let Setup { model, params } = set_up(case, at, false, &[""])?;
    let image = case.tensor("inputs.image", at.dtype)?;
    let text = case.texts("inputs.input_ids", "inputs.attention_mask")?;
    let image_id = if profile == Profile::LavisImageId { Some(case.i64s("inputs.image_id")?) } else { None };
    let batch = Batch { image: &image, text: &text, image_id };
    let negatives = negatives(case, None)?;

    // Once as a user computes it (rows nobody reads left out), once with every row for comparison.
    let (tape, mut grads) = (Tape::new(), Gradients::new());
    let pass = Pass::training(&params, &tape, None);
    let out = model.stage1(&pass, &batch, profile, Sampling::Given(&negatives), None)?;
    tape.backward(&out.loss, at.loss_scale(), &mut grads)?;
    let mut trace = Trace::default();
    model.stage1(
        &Pass::inference(&params),
        &batch,
        profile,
        Sampling::Given(&negatives),
        Some(&mut trace),
    )?;

    trace_lines(case, &trace, &text, report)?;
    losses(case, &out, report)?;
    let before = report.lines.len();
    gradients(case, &params, &grads, at.loss_scale(), report)?;
    if !report.is_exact() && near_tie(case, &trace)? {
        let (good, bad): (Vec<Line>, Vec<Line>) =
            report.lines.split_off(before).into_iter().partition(|l| l.pass);
        report.lines.extend(good);
        bad.iter().for_each(|l| report.skip(&l.name));
    }
    Ok(())
}

/// Whether a picture's two query rows that answer a text best, in the recorded features, are nearer than twice what ours are
/// off by: then 16 bits may choose the other, and the gradient takes another way.
fn near_tie(case: &Case, t: &Trace) -> Result<bool> {
    const NAMES: [&str; 2] = ["outputs.image_feats", "outputs.text_feat"];
    let (Some(images), Some(texts)) = (&t.image_feats, &t.text_feat) else { return Ok(false) };
    if !NAMES.iter().all(|name| case.has(name)) {
        return Ok(false);
    }
    let &[_, queries, width] = case.shape(NAMES[0])? else { return Ok(false) };
    // Cosines of every text and query row, picture by picture.
    let cosines = |images: &[f64], texts: &[f64]| -> Vec<f64> {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let of = |rows: &[f64], t: &[f64]| rows.chunks(width).map(|q| dot(q, t)).collect::<Vec<_>>();
        let picture = |rows: &[f64]| texts.chunks(width).flat_map(|t| of(rows, t)).collect::<Vec<_>>();
        images.chunks(queries * width).flat_map(picture).collect()
    };
    let theirs = cosines(&case.f64s(NAMES[0])?, &case.f64s(NAMES[1])?);
    let ours = cosines(&images.to_f64(), &texts.to_f64());
    let off = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let gap = |row: &[f64]| {
        let mut sorted = row.to_vec();
        sorted.sort_by(f64::total_cmp);
        if let [.., second, first] = sorted[..] { first - second } else { f64::INFINITY }
    };
    Ok(theirs.chunks(queries).any(|row| gap(row) <= 2.0 * off))
}

fn losses(case: &Case, out: &Outputs, report: &mut Report) -> Result<()> {
    for (name, t) in
        [("loss_itc", &out.itc), ("loss_itm", &out.itm), ("loss_lm", &out.lm), ("loss", &out.loss)]
    {
        compare(case, &format!("outputs.{name}"), t, report)?;
    }
    Ok(())
}

/// Every recorded activation, padded rows left out.
fn trace_lines(case: &Case, t: &Trace, text: &[Vec<u32>], report: &mut Report) -> Result<()> {
    let simple = |name: &str, ours: &Option<Tensor>, report: &mut Report| -> Result<()> {
        match ours.as_ref().filter(|_| case.has(name)) {
            Some(ours) => compare(case, name, ours, report),
            None => Ok(()),
        }
    };
    for (i, block) in t.vit_blocks.iter().enumerate() {
        simple(&format!("outputs.vit.block.{i}"), &Some(block.clone()), report)?;
    }
    simple("outputs.image_embeds", &t.image_embeds, report)?;
    let (Some((merged, layout)), Some((pairs, pair_layout))) = (&t.merged, &t.pairs) else { return Ok(()) };
    let groups = |rows: usize, n: usize| (0..n).map(|i| i * rows..(i + 1) * rows).collect::<Vec<_>>();
    let queries = |l: &Layout, n: usize| groups(l.query_rows / n.max(1), n);
    rows(case, "outputs.query_hidden", merged, &[queries(layout, text.len())], report)?;
    rows(case, "outputs.text_hidden", merged, std::slice::from_ref(&layout.text), report)?;
    simple("outputs.image_feats", &t.image_feats, report)?;
    simple("outputs.text_feat", &t.text_feat, report)?;
    simple("outputs.sim_i2t", &t.sim_i2t, report)?;
    simple("outputs.sim_t2i", &t.sim_t2i, report)?;
    simple("outputs.weights_i2t", &t.weights_i2t, report)?;
    simple("outputs.weights_t2i", &t.weights_t2i, report)?;
    let pair_queries = queries(pair_layout, pair_layout.text.len());
    rows(case, "outputs.itm_hidden", pairs, &[pair_queries, pair_layout.text.clone()], report)?;
    simple("outputs.itm_logits", &t.itm_logits, report)?;
    rows(case, "outputs.lm_hidden", merged, std::slice::from_ref(&layout.lm), report)?;
    if let Some(logits) = &t.lm_logits {
        let first = layout.lm.first().map_or(0, |r| r.start);
        let moved = layout.lm.iter().map(|r| r.start - first..r.end - first).collect();
        rows(case, "outputs.lm_logits", logits, &[moved], report)?;
    }
    Ok(())
}

/// Packed rows against a recorded [B,L,C]: sequence b is `parts[0][b]`, then `parts[1][b]`, ...; the rest is padding.
fn rows(
    case: &Case,
    name: &str,
    ours: &Tensor,
    parts: &[Vec<Range<usize>>],
    report: &mut Report,
) -> Result<()> {
    if !case.has(name) {
        return Ok(());
    }
    let &[b, l, c] = case.shape(name)? else {
        return Err(Error::file("parity", &case.path, format!("three axes in {name}"), "others"));
    };
    let (mine, recorded) = (ours.to_f64(), case.f64s(name)?);
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for i in 0..b {
        let mut at = i * l;
        for range in parts.iter().filter_map(|p| p.get(i)) {
            x.extend_from_slice(&mine[range.start * c..range.end * c]);
            let to = (at + range.len()).min((i + 1) * l);
            y.extend_from_slice(&recorded[at * c..to * c]);
            at = to;
        }
    }
    report.close(name, &[b, l, c], &x, &y, CLOSE);
    Ok(())
}

#[derive(Deserialize)]
struct Run {
    init_lr: f64,
    min_lr: f64,
    warmup_lr: f64,
    warmup_steps: u64,
    weight_decay: f64,
    max_epoch: u64,
    steps_per_epoch: u64,
    betas: [f64; 2],
    eps: f64,
}

pub fn train(case: &Case, at: &Place, report: &mut Report) -> Result<()> {
    let Setup { model, mut params } = set_up(case, at, false, &[""])?;
    let run: Run = case.meta("run")?;
    let schedule = Schedule {
        init_lr: run.init_lr,
        min_lr: run.min_lr,
        warmup_lr: run.warmup_lr,
        warmup_steps: run.warmup_steps,
        max_epoch: run.max_epoch,
    };
    let hyper = Hyper { betas: run.betas, eps: run.eps, weight_decay: run.weight_decay, ..Hyper::default() };
    let mut optimizer = AdamW::new(&params, hyper)?;
    let steps = case.shape("outputs.losses")?.first().copied().unwrap_or(0);
    let batches = (0..).take_while(|k| case.has(&format!("inputs.{k}.image"))).count().max(1);
    let (mut lrs, mut all) = (Vec::new(), Vec::new());
    for step in 0..steps {
        let k = step % batches;
        let image = case.tensor(&format!("inputs.{k}.image"), at.dtype)?;
        let text = case.texts(&format!("inputs.{k}.input_ids"), &format!("inputs.{k}.attention_mask"))?;
        let (tape, mut grads) = (Tape::new(), Gradients::new());
        let pass = Pass::training(&params, &tape, None);
        let negatives = negatives(case, Some(step))?;
        let batch = Batch { image: &image, text: &text, image_id: None };
        let out = model.stage1(&pass, &batch, Profile::LavisDiagonal, Sampling::Given(&negatives), None)?;
        tape.backward(&out.loss, at.loss_scale(), &mut grads)?;
        let lr = schedule.lr(step as u64, run.steps_per_epoch);
        all.extend([&out.loss, &out.itc, &out.itm, &out.lm].map(Tensor::item));
        lrs.push(lr);
        drop((pass, out));
        optimizer.step(&mut params, &mut grads, lr, 1.0 / at.loss_scale())?;
    }
    // The learning rate is arithmetic in f64 on both sides: equal to a few units in the last place.
    report.close("outputs.lr", case.shape("outputs.lr")?, &lrs, &case.f64s("outputs.lr")?, 1e-14);
    let recorded = case.f64s("outputs.losses")?;
    // Stored in 16 bits a logit errs by its size, and a loss by twice that, however small the loss has become.
    let largest = recorded.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let (of, what) = if report.is_exact() { (0.0, "relative") } else { (largest, "of the largest") };
    let far = |(a, b): (&f64, &f64)| (a - b).abs() / b.abs().max(of);
    // A NaN on either side must not vanish in `max`.
    let worst = all.iter().zip(&recorded).map(far).fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m });
    let width = recorded.len();
    report.close("outputs.losses", case.shape("outputs.losses")?, &all, &recorded, 1e-3);
    report.near(
        &format!("outputs.losses, worst of a step ({what})"),
        &[width],
        &[worst],
        &[0.0],
        report.loosened(1e-3),
    );
    for (_, spec, value) in params.iter().filter(|(_, s, _)| s.trained) {
        let name = format!("after.{}", spec.name);
        if is_noise(&spec.name) {
            report.skip(&name);
        } else if report.is_exact() {
            report.close(&name, &spec.shape, &value.to_f64(), &case.f64s(&name)?, 1e-3);
        } else {
            // An update has the size of the learning rate whatever the gradient's, at most (1 - b1) / sqrt(1 - b2) of it
            // (Kingma and Ba, section 2.1); two runs may go opposite ways where rounding decides.
            let most = ((1.0 - run.betas[0]) / (1.0 - run.betas[1]).sqrt()).max(1.0);
            let apart = 2.0 * most * lrs.iter().sum::<f64>();
            report.near(&name, &spec.shape, &value.to_f64(), &case.f64s(&name)?, apart);
        }
    }
    Ok(())
}
