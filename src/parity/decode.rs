//! Cases of features, retrieval and captioning.

use super::case::Case;
use super::{CLOSE, Place, Report, Setup, set_up};
use crate::model::{GenerateOptions, Images, Model, PAD, SEP, mean_cosine, retrieval_scores};
use crate::nn::{Params, Pass};
use crate::tensor::{DType, Tensor};
use crate::{Error, Result};

fn compare(case: &Case, name: &str, ours: &[f64], report: &mut Report) -> Result<()> {
    report.close(name, case.shape(name)?, ours, &case.f64s(name)?, CLOSE);
    Ok(())
}

pub fn features(case: &Case, at: &Place, report: &mut Report) -> Result<()> {
    let Setup { model, params } = set_up(case, at, false, &[""])?;
    let pass = Pass::inference(&params);
    let images = model.image_features(&pass, &case.tensor("inputs.image", at.dtype)?)?;
    compare(case, "outputs.image_embeds", &images.embeds.to_f64()?, report)?;
    compare(case, "outputs.image_embeds_proj", &images.proj.to_f64()?, report)?;
    let count = (0..).take_while(|j| case.has(&format!("inputs.input_ids.{j}"))).count();
    let texts: Vec<Vec<u32>> =
        (0..count).map(|j| case.ids(&format!("inputs.input_ids.{j}"))).collect::<Result<_>>()?;
    for (j, t) in model.text_features(&pass, &texts)?.iter().enumerate() {
        compare(case, &format!("outputs.text_embeds.{j}"), &t.embeds.to_f64()?, report)?;
        compare(case, &format!("outputs.text_embeds_proj.{j}"), &t.proj.to_f64()?, report)?;
    }
    let pairs: Vec<(usize, usize)> =
        (0..images.count).flat_map(|i| (0..count).map(move |j| (i, j))).collect();
    let scores = model.match_pairs(&pass, &images, &texts, &pairs)?;
    let (q, c) = (model.config.num_query, model.config.hidden);
    let (hidden, embeds) = (scores.hidden.to_f64()?, images.embeds.to_f64()?);
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
    compare(case, "outputs.itm_logit", &match_logits(&scores.logits)?, report)
}

/// The second column of [P,2].
fn match_logits(logits: &Tensor) -> Result<Vec<f64>> {
    Ok(logits.to_f64()?.chunks(2).map(|p| p[1]).collect())
}

pub fn retrieval(case: &Case, at: &Place, report: &mut Report) -> Result<()> {
    let Setup { model, params } = set_up(case, at, false, &[""])?;
    let pass = Pass::inference(&params);
    let images = model.image_features(&pass, &case.tensor("inputs.image", at.dtype)?)?;
    let texts = case.texts("inputs.input_ids", "inputs.attention_mask")?;
    let features = model.text_features(&pass, &texts)?;
    let first: Vec<Tensor> = features.iter().map(|t| t.proj.slice_rows(0..1)).collect::<Result<_>>()?;
    let rows = first.iter().map(Tensor::to_f64).collect::<Result<Vec<_>>>()?.concat();
    let cls = Tensor::of(at.dtype, &rows, &[texts.len(), model.config.embed_dim])?;
    let itc = model.itc_scores(&images.proj, &cls)?.to_f64()?;
    let itc: Vec<Vec<f64>> = itc.chunks(texts.len().max(1)).map(<[f64]>::to_vec).collect();
    let scores = retrieval_scores(&itc, case.meta("k_test")?, |pairs| {
        match_logits(&model.match_pairs(&pass, &images, &texts, pairs)?.logits)
    })?;
    for (name, ours) in
        [("outputs.score_i2t", scores.i2t.concat()), ("outputs.score_t2i", scores.t2i.concat())]
    {
        let theirs = case.f64s(name)?;
        let to_text = name.ends_with("i2t");
        let itc_of = |row: usize, at: usize| if to_text { itc[row][at] } else { itc[at][row] };
        let ours = as_they_chose(ours, &theirs, if to_text { texts.len() } else { images.count }, itc_of);
        let chosen = |x: &[f64]| x.iter().map(|v| f64::from(*v != -100.0)).collect::<Vec<_>>();
        let shape = case.shape(name)?;
        if report.is_exact() {
            report.equal(&format!("{name} (candidates)"), shape, &chosen(&ours), &chosen(&theirs));
        }
        // Scores are compared where both chose: the -100 elsewhere would make any error small. In 16 bits candidates that are
        // nearly equal change places.
        let both = |(a, b): (&f64, &f64)| (*a != -100.0 && *b != -100.0).then_some((*a, *b));
        let (ours, theirs): (Vec<f64>, Vec<f64>) = ours.iter().zip(&theirs).filter_map(both).unzip();
        report.close(name, shape, &ours, &theirs, CLOSE);
    }
    Ok(())
}

/// Equal similarities, as of duplicates: which of them is a candidate is open (torch.topk says so). Scores of candidates that only we
/// chose are put where those stand that only LAVIS chose, if their similarities are equal but for rounding: the scores are compared.
fn as_they_chose(
    mut ours: Vec<f64>,
    theirs: &[f64],
    width: usize,
    itc: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    const NONE: f64 = -100.0;
    const EQUAL: f64 = 1e-5; // cosines: sums of products of two unit vectors, a few hundred roundings of 2^-24
    for (row, (ours, theirs)) in ours.chunks_mut(width.max(1)).zip(theirs.chunks(width.max(1))).enumerate() {
        let only = |a: &[f64], b: &[f64]| -> Vec<usize> {
            let mut at: Vec<usize> = (0..width).filter(|i| a[*i] != NONE && b[*i] == NONE).collect();
            at.sort_by(|x, y| itc(row, *y).total_cmp(&itc(row, *x)));
            at
        };
        for (from, to) in only(ours, theirs).into_iter().zip(only(theirs, ours)) {
            if (itc(row, from) - itc(row, to)).abs() <= EQUAL {
                ours.swap(from, to);
            }
        }
    }
    ours
}

/// Arguments of transformers' `generate` as a case names them.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Run {
    num_beams: usize,
    max_length: usize,
    min_length: usize,
    repetition_penalty: f64,
    length_penalty: f64,
    pub num_return_sequences: usize,
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

/// A model and what it makes of a case's pictures.
struct Seen {
    setup: Setup,
    images: Images,
}

impl Seen {
    fn at(case: &Case, at: &Place) -> Result<Seen> {
        let setup = set_up(case, at, false, &[""])?;
        let image = case.tensor("inputs.image", at.dtype)?;
        let images = setup.model.image_features(&Pass::inference(&setup.params), &image)?;
        Ok(Seen { setup, images })
    }
}

pub fn generate(case: &Case, at: &Place, report: &mut Report) -> Result<()> {
    let seen = Seen::at(case, at)?;
    let Setup { model, params } = &seen.setup;
    let [bos, eos, pad]: [u32; 3] = [case.meta("bos")?, case.meta("eos")?, case.meta("pad")?];
    if (bos, eos, pad) != (model.config.bos(), SEP, PAD) {
        let want = format!("bos {}, eos {SEP}, pad {PAD}", model.config.bos());
        return Err(Error::file("parity", &case.path, want, format!("bos {bos}, eos {eos}, pad {pad}")));
    }
    if case.has("outputs.image_embeds") {
        let pass = Pass::inference(params);
        let tokens = model.vit_tokens(&pass, &case.tensor("inputs.image", at.dtype)?, |_, _| {})?;
        compare(case, "outputs.image_embeds", &model.image_embeds(&pass, &tokens)?.to_f64()?, report)?;
    }
    if case.has("outputs.teacher_forced_logits") {
        teacher_forced(case, model, params, &seen.images, report)?;
    }
    let exact = if report.is_exact() { None } else { Some(Seen::at(case, &Place::cpu(DType::F32))?) };
    let runs: Vec<Run> = case.meta("runs")?;
    let identities: Vec<u32> = (0..seen.images.count as u32).collect();
    for (k, run) in runs.iter().enumerate() {
        let name = format!("outputs.ids.{k}");
        if let Some(exact) = &exact {
            along(case, &name, &seen, exact, report)?;
            continue;
        }
        let found = model.generate(params, &seen.images, &run.into(), &identities)?;
        let (shape, theirs) = (case.shape(&name)?, case.f64s(&name)?);
        let width = shape.last().copied().unwrap_or(0);
        let ids = found.iter().flatten().flat_map(|h| padded(&h.ids, width)).collect::<Vec<_>>();
        report.equal(&name, shape, &ids, &theirs);
    }
    Ok(())
}

fn padded(ids: &[u32], width: usize) -> Vec<f64> {
    let fill = width.saturating_sub(ids.len());
    ids.iter().map(|id| f64::from(*id)).chain(std::iter::repeat_n(f64::from(PAD), fill)).collect()
}

/// Recorded captions without what stands behind their end.
fn captions(case: &Case, name: &str) -> Result<Vec<Vec<u32>>> {
    let width = case.shape(name)?.last().copied().unwrap_or(0).max(1);
    let caption = |ids: &[u32]| ids[..ids.iter().position(|id| *id == PAD).unwrap_or(ids.len())].to_vec();
    Ok(case.ids(name)?.chunks(width).map(caption).collect())
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
    let ours = model.caption_logits(params, images, &captions(case, "outputs.ids.0")?)?;
    let v = model.config.vocab;
    let recorded: Vec<f64> = (ours.iter().enumerate())
        .flat_map(|(i, rows)| theirs.get(i * width * v..(i * width + rows.len()) * v).unwrap_or(&[]).to_vec())
        .collect();
    let ours: Vec<f64> = ours.into_iter().flatten().flatten().collect();
    report.close(name, case.shape(name)?, &ours, &recorded, CLOSE);
    Ok(())
}

/// The logits on the way to recorded captions in 16 bits, beside those of the CPU in f32, where the ids are equal: words that are nearly
/// as probable change places, and with them all that follow.
fn along(case: &Case, name: &str, ours: &Seen, exact: &Seen, report: &mut Report) -> Result<()> {
    let captions = captions(case, name)?;
    let (each, v) = (captions.len() / ours.images.count.max(1), ours.setup.model.config.vocab);
    let logits = |seen: &Seen| -> Result<Vec<f64>> {
        let mut all = Vec::new();
        for j in 0..each {
            let one: Vec<Vec<u32>> = captions.iter().skip(j).step_by(each).cloned().collect();
            let found = seen.setup.model.caption_logits(&seen.setup.params, &seen.images, &one)?;
            all.extend(found.into_iter().flatten().flatten());
        }
        Ok(all)
    };
    let (ours, theirs) = (logits(ours)?, logits(exact)?);
    report.close(name, &[theirs.len() / v.max(1), v], &ours, &theirs, CLOSE);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::as_they_chose;

    /// Captions 1 and 3 are the same one: which is a candidate is open. 0 and 2 are not.
    #[test]
    fn duplicates_are_compared_by_their_score() {
        let itc = [0.9, 0.5, 0.2, 0.5];
        let moved = |ours: &[f64], theirs: &[f64]| as_they_chose(ours.to_vec(), theirs, 4, |_, at| itc[at]);
        let theirs = [3.0, -100.0, -100.0, 1.5];
        assert_eq!(moved(&[3.0, 1.5, -100.0, -100.0], &theirs), theirs);
        assert_eq!(moved(&[3.0, 1.4, -100.0, -100.0], &theirs), [3.0, -100.0, -100.0, 1.4]);
        let other = [3.0, -100.0, 1.5, -100.0];
        assert_eq!(moved(&other, &theirs), other);
        assert_eq!(moved(&theirs, &theirs), theirs);
    }
}
