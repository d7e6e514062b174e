//! Features in three modes and the scores of retrieval (inference).
//!
//! Three scores of an image and a text, by their names everywhere:
//! - `itc`: the largest cosine over the queries of the projected features (not divided by the temperature);
//! - `itm`: the "match" logit of the matching head, mean over the queries;
//! - `mean_cosine`: mean over queries of (cos(image hidden, multimodal hidden) + 1) / 2 (BLIP2-Japanese).

use super::Model;
use super::qformer::ImageKeys;
use crate::nn::Pass;
use crate::ops;
use crate::tensor::Tensor;
use crate::{Error, Result};
use std::ops::Range;

/// A text's hidden rows `[L,C]` and their normalised projections `[L,E]`.
pub struct TextFeatures {
    /// The last layer's rows.
    pub embeds: Tensor,
    /// `embeds` projected and normalised: what cosines are taken of.
    pub proj: Tensor,
}

/// Matching of pairs: logits `[P,2]` and the hidden query rows `[P*Q,C]`.
pub struct ItmScores {
    /// `[P,2]`: that a pair does not belong together, and that it does.
    pub logits: Tensor,
    /// The query rows of every pair.
    pub hidden: Tensor,
}

/// Images made ready: their keys and values, hidden query rows `[B*Q,C]` and projections `[B*Q,E]`.
pub struct Images {
    /// How many pictures they are of.
    pub count: usize,
    /// What cross-attention sees of the pictures.
    pub keys: ImageKeys,
    /// The last layer's rows.
    pub embeds: Tensor,
    /// `embeds` projected and normalised: what cosines are taken of.
    pub proj: Tensor,
    /// Of every layer, the keys and values of the query rows: what a caption's rows attend to.
    pub(super) past: Vec<(Tensor, Tensor)>,
}

impl Images {
    /// Some of them, on the same memory.
    pub fn part(&self, range: Range<usize>) -> Result<Images> {
        let rows = |x: &Tensor| {
            let each = x.rows().0.checked_div(self.count).unwrap_or(0);
            x.slice_rows(range.start * each..range.end * each)
        };
        let pair = |(k, v): &(Tensor, Tensor)| Ok((rows(k)?, rows(v)?));
        Ok(Images {
            count: range.len(),
            embeds: rows(&self.embeds)?,
            proj: rows(&self.proj)?,
            keys: self.keys.iter().map(|k| k.as_ref().map(pair).transpose()).collect::<Result<_>>()?,
            past: self.past.iter().map(pair).collect::<Result<_>>()?,
        })
    }

    /// One by one, on the same memory.
    pub fn each(&self) -> Result<Vec<Images>> {
        (0..self.count).map(|i| self.part(i..i + 1)).collect()
    }

    /// Several, one after the other; on the memory that they have where they lie so.
    pub fn stack(parts: &[Images]) -> Result<Images> {
        let rows = |pick: &dyn Fn(&Images) -> Option<&Tensor>| -> Result<Tensor> {
            ops::concat_rows(&parts.iter().filter_map(pick).collect::<Vec<_>>())
        };
        let (layers, keys) = parts.first().map_or((0, 0), |p| (p.past.len(), p.keys.len()));
        let key = |i: usize| -> Result<Option<(Tensor, Tensor)>> {
            if parts[0].keys[i].is_none() {
                return Ok(None);
            }
            let part =
                |p: &'_ Images, second: bool| p.keys[i].clone().map(|(k, v)| if second { v } else { k });
            let [k, v] = [false, true].map(|s| parts.iter().filter_map(|p| part(p, s)).collect::<Vec<_>>());
            let all = |x: &[Tensor]| ops::concat_rows(&x.iter().collect::<Vec<_>>());
            Ok(Some((all(&k)?, all(&v)?)))
        };
        Ok(Images {
            count: parts.iter().map(|p| p.count).sum(),
            embeds: rows(&|p| Some(&p.embeds))?,
            proj: rows(&|p| Some(&p.proj))?,
            keys: (0..keys).map(key).collect::<Result<_>>()?,
            past: (0..layers)
                .map(|i| {
                    Ok((rows(&|p| p.past.get(i).map(|kv| &kv.0))?, rows(&|p| p.past.get(i).map(|kv| &kv.1))?))
                })
                .collect::<Result<_>>()?,
        })
    }
}

impl Model {
    /// Mode image, from ViT tokens `[B*N,W]`.
    pub fn image_features_of(&self, pass: &Pass, tokens: &Tensor) -> Result<Images> {
        let (n, width) = (self.config.image_tokens(), self.config.vit_width);
        if !tokens.rows().0.is_multiple_of(n) || tokens.rows().1 != width {
            let want = format!("[a multiple of {n}, {width}]");
            return Err(Error::argument("image features", "tokens", want, tokens.shape()));
        }
        let count = tokens.rows().0 / n;
        let keys = self.keys_of(pass, tokens)?;
        let layout = super::Layout::merged(self.sizes(), count, &[], &[], false)?;
        let x = self.qformer.embed(pass, &pass.param(self.query_tokens), count, &[], 0)?;
        let mut past = Vec::new();
        let embeds = self.qformer.forward_with(pass, x, &layout, &keys, 0, &mut past)?;
        let proj = ops::l2_normalize(&self.first()?.vision_proj.forward(pass, &embeds)?)?;
        Ok(Images { count, keys, embeds, proj, past })
    }

    /// Mode text.
    pub fn text_features(&self, pass: &Pass, texts: &[Vec<u32>]) -> Result<Vec<TextFeatures>> {
        self.check_texts(texts)?;
        let lens: Vec<usize> = texts.iter().map(Vec::len).collect();
        let layout = super::Layout::merged(self.sizes(), 0, &lens, &[], false)?;
        let slices: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let x = self.qformer.embed(pass, &pass.param(self.query_tokens), 0, &slices, 0)?;
        let hidden = self.qformer.forward(pass, x, &layout, &Vec::new(), 0)?;
        let proj = ops::l2_normalize(&self.first()?.text_proj.forward(pass, &hidden)?)?;
        let part = |r: &std::ops::Range<usize>| {
            Ok(TextFeatures { embeds: hidden.slice_rows(r.clone())?, proj: proj.slice_rows(r.clone())? })
        };
        layout.text.iter().map(part).collect()
    }

    /// Mode multimodal: pairs (image, text) of these images and texts.
    pub fn match_pairs(
        &self,
        pass: &Pass,
        images: &Images,
        texts: &[Vec<u32>],
        pairs: &[(usize, usize)],
    ) -> Result<ItmScores> {
        self.check_texts(texts)?;
        if let Some((i, t)) = pairs.iter().find(|(i, t)| *i >= images.count || *t >= texts.len()) {
            let want = format!("an image below {} and a text below {}", images.count, texts.len());
            return Err(Error::argument("match", "pair", want, format!("({i}, {t})")));
        }
        let which: Vec<usize> = pairs.iter().map(|p| p.0).collect();
        let slices: Vec<&[u32]> = pairs.iter().map(|p| texts[p.1].as_slice()).collect();
        let (hidden, layout) = self.pair_pass(pass, &images.keys, images.count, &which, &slices, true)?;
        let logits = self.itm_logits(pass, &hidden, layout.query_rows)?;
        Ok(ItmScores { logits, hidden })
    }

    /// `itc` of all images and texts `[images][texts]`; `text_proj` holds the `[CLS]` rows `[T,E]`.
    pub fn itc_scores(&self, image_proj: &Tensor, text_proj: &Tensor) -> Result<Tensor> {
        ops::max_similarity(image_proj, &text_proj.like(image_proj)?, self.config.num_query)
    }

    fn check_texts(&self, texts: &[Vec<u32>]) -> Result<()> {
        match texts.iter().position(|t| t.is_empty() || t.len() > self.config.max_pos) {
            None => Ok(()),
            Some(i) => {
                let want = format!("1 to {} tokens", self.config.max_pos);
                Err(Error::argument("text", format!("text {i}"), want, texts[i].len()))
            }
        }
    }
}

/// Mean over rows of (cos(a, b) + 1) / 2.     a, b `[Q,C]`
pub fn mean_cosine(a: &[f64], b: &[f64], c: usize) -> f64 {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let rows = a.chunks(c).zip(b.chunks(c));
    let cos = rows.map(|(x, y)| (dot(x, y) / (dot(x, x).sqrt() * dot(y, y).sqrt()).max(1e-8) + 1.0) / 2.0);
    let all: Vec<f64> = cos.collect();
    all.iter().sum::<f64>() / all.len().max(1) as f64
}

/// Score matrices after re-ranking: image to text `[I][T]` and text to image `[T][I]`.
pub struct Retrieval {
    /// The scores of each picture with every text.
    pub i2t: Vec<Vec<f64>>,
    /// The scores of each text with every picture.
    pub t2i: Vec<Vec<f64>>,
}

/// Re-ranked retrieval as LAVIS's `compute_sim_matrix`: of each row's `k` best by `itc`, the score is `itm` + `itc`; the
/// rest are -100. `itc` is `[I][T]`; `itm` computes the logits of pairs (image, text). Of equal `itc`, as of duplicates, the lower index
/// is a candidate here; torch.topk, which LAVIS calls, leaves open which one is.
pub fn retrieval_scores(
    itc: &[Vec<f64>],
    k: usize,
    mut itm: impl FnMut(&[(usize, usize)]) -> Result<Vec<f64>>,
) -> Result<Retrieval> {
    let (images, texts) = (itc.len(), itc.first().map_or(0, Vec::len));
    let wrong = |what: &str, want: String, got: usize| Error::argument("retrieval", what, want, got);
    if let Some(row) = itc.iter().find(|row| row.len() != texts) {
        return Err(wrong("itc", format!("rows of {texts} texts"), row.len()));
    }
    let mut itm = |pairs: &[(usize, usize)]| match itm(pairs)? {
        logits if logits.len() == pairs.len() => Ok(logits),
        logits => Err(wrong("itm", format!("a logit for each of {} pairs", pairs.len()), logits.len())),
    };
    let mut i2t = vec![vec![-100.0; texts]; images];
    let mut t2i = vec![vec![-100.0; images]; texts];
    for i in 0..images {
        let best = top(k, texts, |t| itc[i][t]);
        let pairs: Vec<_> = best.iter().map(|t| (i, *t)).collect();
        for (t, score) in best.iter().zip(itm(&pairs)?) {
            i2t[i][*t] = score + itc[i][*t];
        }
    }
    for t in 0..texts {
        let best = top(k, images, |i| itc[i][t]);
        let pairs: Vec<_> = best.iter().map(|i| (*i, t)).collect();
        for (i, score) in best.iter().zip(itm(&pairs)?) {
            t2i[t][*i] = score + itc[*i][t];
        }
    }
    Ok(Retrieval { i2t, t2i })
}

/// The indices of the k largest, largest first, ties to the lower index.
fn top(k: usize, n: usize, score: impl Fn(usize) -> f64) -> Vec<usize> {
    let mut all: Vec<usize> = (0..n).collect();
    all.sort_by(|a, b| score(*b).total_cmp(&score(*a)).then(a.cmp(b)));
    all.truncate(k);
    all
}
