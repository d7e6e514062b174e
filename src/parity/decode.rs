//! Cases of features, retrieval and captioning.

use super::case::Case;
use super::{Report, Setup, set_up};
use crate::model::{mean_cosine, retrieval_scores};
use crate::nn::Pass;
use crate::ops;
use crate::tensor::{DType, Tensor};
use crate::{Error, Result};

const CLOSE: f64 = 1e-4;

fn compare(case: &Case, name: &str, ours: &[f64], report: &mut Report) -> Result<()> {
    report.close(name, case.shape(name)?, ours, &case.f64s(name)?, CLOSE);
    Ok(())
}

pub fn features(case: &Case, dtype: DType, report: &mut Report) -> Result<()> {
    let Setup { model, params } = set_up(case, dtype, false, &[""])?;
    let pass = Pass::inference(&params);
    let images = model.image_features(&pass, &case.tensor("inputs.image", dtype)?)?;
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

pub fn retrieval(case: &Case, dtype: DType, report: &mut Report) -> Result<()> {
    let Setup { model, params } = set_up(case, dtype, false, &[""])?;
    let pass = Pass::inference(&params);
    let images = model.image_features(&pass, &case.tensor("inputs.image", dtype)?)?;
    let texts = case.texts("inputs.input_ids", "inputs.attention_mask")?;
    let features = model.text_features(&pass, &texts)?;
    let first: Vec<Tensor> = features.iter().map(|t| t.proj.slice_rows(0..1)).collect::<Result<_>>()?;
    let rows = first.iter().flat_map(Tensor::to_f64).collect::<Vec<_>>();
    let cls = Tensor::of(dtype, &rows, &[texts.len(), model.config.embed_dim])?;
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
        report.equal(&format!("{name} (candidates)"), case.shape(name)?, &chosen(&ours), &chosen(&theirs));
        compare(case, name, &ours, report)?;
    }
    Ok(())
}

pub fn generate(case: &Case, _dtype: DType, _report: &mut Report) -> Result<()> {
    let _ = ops::add;
    Err(Error::file("parity", &case.path, "a kind", "generate"))
}
