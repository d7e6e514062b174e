//! How well pictures and texts fit, with sums whose order does not depend on what else is computed.

use super::Pretrained;
use crate::Result;
use crate::model::{Images, mean_cosine};
use crate::nn::Pass;
use crate::tensor::Tensor;

/// Texts made ready to be compared with pictures.
pub struct Texts {
    /// The tokens of each.
    pub ids: Vec<Vec<u32>>,
    /// The normalised features of their `[CLS]` tokens `[T,E]`.
    pub cls: Tensor,
}

impl Texts {
    /// `longest` is the number of tokens texts are cut to.
    pub fn new(model: &Pretrained, texts: &[&str], longest: usize) -> Result<Texts> {
        let ids: Vec<Vec<u32>> = texts.iter().map(|t| model.tokenizer.caption(t, longest)).collect();
        let pass = Pass::inference(&model.params).batch_invariant();
        let mut cls = Vec::with_capacity(ids.len() * model.model.config.embed_dim);
        for some in ids.chunks(64) {
            for features in model.model.text_features(&pass, some)? {
                cls.extend(features.proj.slice_rows(0..1)?.to_f32()?);
            }
        }
        let cls = Tensor::new(cls, &[ids.len(), model.model.config.embed_dim])?;
        Ok(Texts { ids, cls })
    }
}

/// The three scores of an image and a text, as `model::features` defines them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// The largest cosine between the text and the picture's queries.
    pub itc: f32,
    /// The matching head's logit that they belong together.
    pub itm: f32,
    /// The mean of (cos + 1) / 2 between the queries with and without the text.
    pub mean_cosine: f32,
}

/// The scores of one image with each text.
pub fn scores(model: &Pretrained, image: &Images, texts: &Texts) -> Result<Vec<Scores>> {
    let m = &model.model;
    let pass = Pass::inference(&model.params).batch_invariant();
    let pairs: Vec<(usize, usize)> = (0..texts.ids.len()).map(|t| (0, t)).collect();
    let itc = m.itc_scores(&image.proj, &texts.cls)?.to_f32()?;
    let matched = m.match_pairs(&pass, image, &texts.ids, &pairs)?;
    let (itm, c) = (matched.logits.to_f32()?, m.config.hidden);
    let (own, hidden) = (image.embeds.to_f64()?, matched.hidden.to_f64()?);
    let of = |(t, rows): (usize, &[f64])| Scores {
        itc: itc[t],
        itm: itm[2 * t + 1],
        mean_cosine: mean_cosine(&own, rows, c) as f32,
    };
    Ok(hidden.chunks(m.config.num_query * c).take(pairs.len()).enumerate().map(of).collect())
}
