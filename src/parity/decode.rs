//! Cases of features, retrieval and captioning.

use super::case::Case;
use super::{Place, Report, Setup, set_up};
use crate::model::{GenerateOptions, Images, Model, PAD, SEP, mean_cosine, retrieval_scores};
use crate::nn::{Params, Pass};
use crate::tensor::Tensor;
use crate::{Error, Result};

const CLOSE: f64 = 1e-4;

fn compare(case: &Case, name: &str, ours: &[f64], report: &mut Report) -> Result<()> {
    report.close(name, case.shape(name)?, ours, &case.f64s(name)?, CLOSE);
    Ok(())
}

pub fn features(case: &Case, at: &Place, report: &mut Report) -> Result<()> {
    let Setup { model, params } = set_up(case, at, false, &[""])?;
    let pass = Pass::inference(&params);
    let images = model.image_features(&pass, &case.tensor("inputs.image", at.dtype)?)?;
    compare(case, "outputs.image_embeds", &images.embeds.to_f64(), report)?;
    compare(case, "outputs.image_embeds_proj", &images.proj.to_f64(), report)?;
    let count = (0..).take_while(|j| case.has(&format!("inputs.input_ids.{j}"))).count();
    let texts: Vec<Vec<u32>> =
        (0..count).map(|j| case.ids(&format!("inputs.input_ids.{j}"))).collect::<Result<_>>()?;
    for (j, t) in model.text_features(&pass, &texts)?.iter().enumerate() {
        compare(case, &format!("outputs.text_embeds.{j}"), &t.embeds.to_f64(), report)?;
        compare(case, &format!("outputs.text_embeds_proj.{j}"), &t.proj.to_f64(), report)?;
    }
    let pairs: Vec<(usize, usize)> =
        (0..images.count).flat_map(|i| (0..count).map(move |j| (i, j))).collect();
    let scores = model.match_pairs(&pass, &images, &texts, &pairs)?;
    let (q, c) = (model.config.num_query, model.config.hidden);
    let (hidden, embeds) = (scores.hidden.to_f64(), images.embeds.to_f64());
    let mut cosines = Vec::new();
    for (p, (i, j)) in pairs.iter().enumerate() {
        let multimodal = &hidden[p * q * c..(p + 1) * q * c];
        let name = format!("outputs.multimodal_embeds.{i}.{j}");
        if case.has(&name) {
            compare(case, &name, multimodal, report)?;
        }
        cosines.push(mean_cosine(&embeds[i * q * c..(i + 1) * q * c], multimodal, c));
    }
    compare(case, "outputs.mean_cosine", &cosines, report)?;
    compare(case, "outputs.itm_logit", &match_logits(&scores.logits), report)
}

/// The second column of [P,2].
fn match_logits(logits: &Tensor) -> Vec<f64> {
    logits.to_f64().chunks(2).map(|p| p[1]).collect()
}

pub fn retrieval(case: &Case, at: &Place, report: &mut Report) -> Result<()> {
    let Setup { model, params } = set_up(case, at, false, &[""])?;
    let pass = Pass::inference(&params);
    let images = model.image_features(&pass, &case.tensor("inputs.image", at.dtype)?)?;
    let texts = case.texts("inputs.input_ids", "inputs.attention_mask")?;
    let features = model.text_features(&pass, &texts)?;
    let first: Vec<Tensor> = features.iter().map(|t| t.proj.slice_rows(0..1)).collect::<Result<_>>()?;
    let rows = first.iter().flat_map(Tensor::to_f64).collect::<Vec<_>>();
    let cls = Tensor::of(at.dtype, &rows, &[texts.len(), model.config.embed_dim])?;
    let itc = model.itc_scores(&images.proj, &cls)?.to_f64();
    let itc: Vec<Vec<f64>> = itc.chunks(texts.len().max(1)).map(<[f64]>::to_vec).collect();
    let scores = retrieval_scores(&itc, case.meta("k_test")?, |pairs| {
        Ok(match_logits(&model.match_pairs(&pass, &images, &texts, pairs)?.logits))
    })?;
    for (name, ours) in
        [("outputs.score_i2t", scores.i2t.concat()), ("outputs.score_t2i", scores.t2i.concat())]
    {
        let theirs = case.f64s(name)?;
        let chosen = |x: &[f64]| x.iter().map(|v| f64::from(*v != -100.0)).collect::<Vec<_>>();
        let shape = case.shape(name)?;
        if report.is_exact() {
            report.equal(&format!("{name} (candidates)"), shape, &chosen(&ours), &chosen(&theirs));
            compare(case, name, &ours, report)?;
            continue;
        }
        // Candidates that are nearly equal change places in 16 bits: scores are compared where both chose.
        let both = |(a, b): (&f64, &f64)| (*a != -100.0 && *b != -100.0).then_some((*a, *b));
        let (ours, theirs): (Vec<f64>, Vec<f64>) = ours.iter().zip(&theirs).filter_map(both).unzip();
        report.close(name, shape, &ours, &theirs, CLOSE);
    }
    Ok(())
}

/// Arguments of transformers' `generate` as a case names them.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Run {
    num_beams: usize,
    max_length: usize,
    min_length: usize,
    repetition_penalty: f64,
    length_penalty: f64,
    num_return_sequences: usize,
}

impl Default for Run {
    fn default() -> Run {
        let o = GenerateOptions::default();
        Run {
            num_beams: o.num_beams,
            max_length: o.max_length,
            min_length: o.min_length,
            repetition_penalty: o.repetition_penalty,
            length_penalty: o.length_penalty,
            num_return_sequences: o.num_return_sequences,
        }
    }
}

impl From<&Run> for GenerateOptions {
    fn from(r: &Run) -> GenerateOptions {
        GenerateOptions {
            num_beams: r.num_beams,
            max_length: r.max_length,
            min_length: r.min_length,
            repetition_penalty: r.repetition_penalty,
            length_penalty: r.length_penalty,
            num_return_sequences: r.num_return_sequences,
            ..GenerateOptions::default()
        }
    }
}

pub fn generate(case: &Case, at: &Place, report: &mut Report) -> Result<()> {
    let Setup { model, params } = set_up(case, at, false, &[""])?;
    let [bos, eos, pad]: [u32; 3] = [case.meta("bos")?, case.meta("eos")?, case.meta("pad")?];
    if (bos, eos, pad) != (model.config.bos(), SEP, PAD) {
        let want = format!("bos {}, eos {SEP}, pad {PAD}", model.config.bos());
        return Err(Error::file("parity", &case.path, want, format!("bos {bos}, eos {eos}, pad {pad}")));
    }
    let pass = Pass::inference(&params);
    let image = case.tensor("inputs.image", at.dtype)?;
    if case.has("outputs.image_embeds") {
        let tokens = model.vit_tokens(&pass, &image, |_, _| {})?;
        compare(case, "outputs.image_embeds", &model.image_embeds(&pass, &tokens)?.to_f64(), report)?;
    }
    let images = model.image_features(&pass, &image)?;
    if case.has("outputs.teacher_forced_logits") {
        teacher_forced(case, &model, &params, &images, report)?;
    }
    let runs: Vec<Run> = case.meta("runs")?;
    let identities: Vec<u32> = (0..images.count as u32).collect();
    for (k, run) in runs.iter().enumerate() {
        let found = model.generate(&params, &images, &run.into(), &identities)?;
        let name = format!("outputs.ids.{k}");
        let (shape, theirs) = (case.shape(&name)?, case.f64s(&name)?);
        let width = shape.last().copied().unwrap_or(0);
        let ids = found.iter().flatten().flat_map(|h| padded(&h.ids, width)).collect::<Vec<_>>();
        if report.is_exact() {
            report.equal(&name, shape, &ids, &theirs);
        } else {
            report.skip(&name); // words that are nearly as probable change places in 16 bits
        }
    }
    Ok(())
}

fn padded(ids: &[u32], width: usize) -> Vec<f64> {
    let fill = width.saturating_sub(ids.len());
    ids.iter().map(|id| f64::from(*id)).chain(std::iter::repeat_n(f64::from(PAD), fill)).collect()
}

/// The logits on the way to the recorded ids, up to each caption's end; rows behind it are not comparable.
fn teacher_forced(
    case: &Case,
    model: &Model,
    params: &Params,
    images: &Images,
    report: &mut Report,
) -> Result<()> {
    let name = "outputs.teacher_forced_logits";
    let (theirs, width) = (case.f64s(name)?, case.shape("outputs.ids.0")?.last().copied().unwrap_or(0));
    let captions: Vec<Vec<u32>> = case
        .ids("outputs.ids.0")?
        .chunks(width.max(1))
        .map(|ids| ids[..ids.iter().position(|id| *id == PAD).unwrap_or(ids.len())].to_vec())
        .collect();
    let ours = model.caption_logits(params, images, &captions)?;
    let v = model.config.vocab;
    let recorded: Vec<f64> = (ours.iter().enumerate())
        .flat_map(|(i, rows)| theirs.get(i * width * v..(i * width + rows.len()) * v).unwrap_or(&[]).to_vec())
        .collect();
    let ours: Vec<f64> = ours.into_iter().flatten().flatten().collect();
    report.close(name, case.shape(name)?, &ours, &recorded, CLOSE);
    Ok(())
}
