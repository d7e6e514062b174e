//! Cases of the second stage: one step, a training run, and texts that follow images and prompts.

use super::case::Case;
use super::compare::Report;
use super::decode::Run;
use super::trace::{self, compare};
use super::training::{self, are_finite, gradients, losses_of_a_run};
use super::{CLOSE, Place, Setup, set_up};
use crate::model::llm::LlmConfig;
use crate::model::{AnswerProfile, Answering, Batch, Image, LlmTrace};
use crate::nn::Pass;
use crate::tensor::{DType, Gradients, Tape, Tensor};
use crate::{Error, Result};

/// The language model of a case.
pub fn llm(case: &Case) -> Result<LlmConfig> {
    LlmConfig::from_map(&case.meta("llm")?)
}

fn all_weights(case: &Case, at: &Place) -> Result<Setup> {
    set_up(case, at, false, &[""])
}

pub fn stage2(case: &Case, at: &Place, report: &mut Report) -> Result<()> {
    let Setup { model, params } = all_weights(case, at)?;
    let text = case.texts("inputs.input_ids", "inputs.attention_mask")?;
    let image = Image::Pixels(case.tensor("inputs.image", at.dtype)?);
    let batch = Batch { image, text: &text, image_id: None };

    // Once as a user computes it (rows nobody reads left out), once with every row for comparison.
    let mut scale = at.loss_scale();
    let (loss, grads) = loop {
        let (tape, mut grads) = (Tape::new(), Gradients::new());
        let loss = model.stage2(&Pass::training(&params, &tape, None), &batch, None)?;
        tape.backward(&loss, scale, &mut grads)?;
        if scale <= 1.0 || are_finite(&params, &grads)? {
            break (loss, grads);
        }
        scale /= 16.0;
    };
    let (tape, mut own, mut t) = (Tape::new(), Gradients::new(), LlmTrace::default());
    let every = model.stage2(&Pass::training(&params, &tape, None), &batch, Some(&mut t))?;
    tape.backward(&every, scale, &mut own)?;
    let lines = |name: &str, ours: &Option<Tensor>, report: &mut Report| match ours {
        Some(ours) => compare(case, &format!("outputs.{name}"), ours, report),
        None => Ok(()),
    };
    lines("image_embeds", &t.image_embeds, report)?;
    lines("query_hidden", &t.query_hidden, report)?;
    lines("llm_inputs", &t.inputs, report)?;
    let q = model.config.num_query;
    let parts = [(0..text.len()).map(|b| b * q..(b + 1) * q).collect(), t.text.clone()];
    for (i, layer) in t.layers.iter().enumerate() {
        trace::rows(case, &format!("outputs.llm.layer.{i}"), layer, &parts, report)?;
    }
    if let Some(logits) = &t.logits {
        trace::rows(case, "outputs.logits", logits, &parts, report)?;
    }
    compare(case, "outputs.loss", &loss, report)?;
    let name = "outputs.grad_llm_inputs";
    if let (Some(g), Some(x), true) = (own.get(params.len()), &t.inputs, case.has(name)) {
        let ours = Tensor::of_buffer(g.clone(), x.shape().sizes())?.to_f64()?;
        let ours: Vec<f64> = ours.iter().map(|x| x / scale).collect();
        report.close(name, case.shape(name)?, &ours, &case.f64s(name)?, CLOSE);
    }
    gradients(case, &params, &grads, scale, report)
}

pub fn train(case: &Case, at: &Place, report: &mut Report) -> Result<()> {
    let Setup { model, mut params } = all_weights(case, at)?;
    let (run, schedule, mut optimizer) = training::optimizer(case, &params)?;
    let steps = case.shape("outputs.losses")?.first().copied().unwrap_or(0);
    let batches = (0..).take_while(|k| case.has(&format!("inputs.{k}.image"))).count().max(1);
    let values = || params.iter().map(|(_, _, v)| v.to_f64()).collect::<Result<Vec<_>>>();
    let before = report.kept.is_some().then(values).transpose()?;
    let (mut lrs, mut losses) = (Vec::new(), Vec::new());
    for step in 0..steps {
        let k = step % batches;
        let image = Image::Pixels(case.tensor(&format!("inputs.{k}.image"), at.dtype)?);
        let text = case.texts(&format!("inputs.{k}.input_ids"), &format!("inputs.{k}.attention_mask"))?;
        let (tape, mut grads) = (Tape::new(), Gradients::new());
        let pass = Pass::training(&params, &tape, None);
        let loss = model.stage2(&pass, &Batch { image, text: &text, image_id: None }, None)?;
        tape.backward(&loss, at.loss_scale(), &mut grads)?;
        let lr = schedule.lr(step as u64, run.steps_per_epoch);
        losses.push(loss.item()?);
        lrs.push(lr);
        drop((pass, loss));
        optimizer.step(&mut params, &mut grads, lr, 1.0 / at.loss_scale())?;
    }
    report.arithmetic("outputs.lr", case.shape("outputs.lr")?, &lrs, &case.f64s("outputs.lr")?, 1e-14);
    losses_of_a_run(case, &losses, report)?;
    training::after(case, &params, before.as_deref(), report)
}

/// A model, and what its language model is given.
struct Asked {
    setup: Setup,
    inputs: Tensor,
    prompts: Vec<Vec<u32>>,
}

impl Asked {
    fn at(case: &Case, at: &Place) -> Result<Asked> {
        let setup = all_weights(case, at)?;
        let inputs =
            setup.model.llm_inputs_of_pictures(&setup.params, &case.tensor("inputs.image", at.dtype)?)?;
        let width = case.shape("inputs.prompt_ids")?.last().copied().unwrap_or(0).max(1);
        let (ids, mask) = (case.ids("inputs.prompt_ids")?, case.i64s("inputs.prompt_mask")?);
        let prompt = |(ids, mask): (&[u32], &[i64])| -> Vec<u32> {
            ids.iter().zip(mask).filter(|(_, m)| **m != 0).map(|(id, _)| *id).collect()
        };
        let prompts = ids.chunks(width).zip(mask.chunks(width)).map(prompt).collect();
        Ok(Asked { setup, inputs, prompts })
    }

    fn logits(&self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f64>>> {
        let Setup { model, params } = &self.setup;
        let all = model.answer_logits(params, &self.inputs, &self.prompts, texts)?;
        Ok(all.into_iter().map(|rows| rows.concat()).collect())
    }
}

pub fn generate(case: &Case, at: &Place, report: &mut Report) -> Result<()> {
    let asked = Asked::at(case, at)?;
    let [bos, eos, pad]: [u32; 3] = [case.meta("bos")?, case.meta("eos")?, case.meta("pad")?];
    let profile = AnswerProfile::named(&case.meta::<String>("profile")?)?;
    // The bos that a search starts from is no new token.
    let opening = usize::from(profile == AnswerProfile::LavisHead);
    let recorded = |name: &str| -> Result<Vec<Vec<u32>>> {
        let width = case.shape(name)?.last().copied().unwrap_or(0).max(1);
        let text = |ids: &[u32]| {
            let new = &ids[opening.min(ids.len())..];
            new[..new.iter().position(|id| *id == eos).map_or(new.len(), |at| at + 1)].to_vec()
        };
        Ok(case.ids(name)?.chunks(width).map(text).collect())
    };
    let Setup { model, params } = &asked.setup;
    if case.has("outputs.image_embeds") {
        let pass = Pass::inference(params);
        let tokens = model.vit_tokens(&pass, &case.tensor("inputs.image", at.dtype)?, |_, _| {})?;
        compare(case, "outputs.image_embeds", &model.image_embeds(&pass, &tokens)?, report)?;
    }
    if case.has("outputs.llm_inputs") {
        compare(case, "outputs.llm_inputs", &asked.inputs, report)?;
    }
    let forced = "outputs.teacher_forced_logits";
    if case.has(forced) {
        let ours = asked.logits(&recorded("outputs.ids.0")?)?;
        let (theirs, v) = (case.f64s(forced)?, case.shape(forced)?.last().copied().unwrap_or(0));
        let each = theirs.len() / ours.len().max(1);
        let theirs: Vec<f64> = (ours.iter().enumerate())
            .flat_map(|(b, rows)| theirs[b * each..].iter().take(rows.len().min(each)).copied())
            .collect();
        let ours: Vec<f64> = ours.iter().flat_map(|rows| rows.iter().take(each).copied()).collect();
        report.close(forced, &[ours.len() / v.max(1), v], &ours, &theirs, CLOSE);
    }
    let exact = if report.is_exact() { None } else { Some(Asked::at(case, &Place::cpu(DType::F32))?) };
    let identities: Vec<u32> = (0..asked.prompts.len() as u32).collect();
    for (k, run) in case.meta::<Vec<Run>>("runs")?.iter().enumerate() {
        let name = format!("outputs.ids.{k}");
        if let Some(exact) = &exact {
            along(&name, (&asked, exact), &recorded(&name)?, report)?;
            continue;
        }
        let options = run.into();
        let found = model.answers(
            params,
            &Answering {
                inputs: &asked.inputs,
                prompts: &asked.prompts,
                options: &options,
                profile,
                bos,
                eos,
                identities: &identities,
            },
        )?;
        let (shape, theirs) = (case.shape(&name)?, case.f64s(&name)?);
        let width = shape.last().copied().unwrap_or(0);
        let ids = found.iter().flatten().flat_map(|h| {
            let all = std::iter::repeat_n(bos, opening).chain(h.ids.iter().copied());
            let fill = width.saturating_sub(opening + h.ids.len());
            all.chain(std::iter::repeat_n(pad, fill)).map(f64::from).collect::<Vec<_>>()
        });
        report.equal(&name, shape, &ids.collect::<Vec<_>>(), &theirs);
    }
    Ok(())
}

/// The logits on the way to recorded texts in 16 bits, beside those of the CPU in f32, where the ids are equal.
fn along(name: &str, (ours, exact): (&Asked, &Asked), texts: &[Vec<u32>], report: &mut Report) -> Result<()> {
    let each = texts.len() / ours.prompts.len().max(1);
    let logits = |asked: &Asked| -> Result<Vec<f64>> {
        let mut all = Vec::new();
        for j in 0..each {
            let one: Vec<Vec<u32>> = texts.iter().skip(j).step_by(each).cloned().collect();
            all.extend(asked.logits(&one)?.concat());
        }
        Ok(all)
    };
    let (ours, theirs) = (logits(ours)?, logits(exact)?);
    if theirs.is_empty() {
        return Err(Error::argument("parity", name, "recorded texts", "none"));
    }
    report.close(name, &[theirs.len()], &ours, &theirs, CLOSE);
    Ok(())
}
