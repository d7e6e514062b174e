//! Every recorded activation of a step, padded rows left out, and the query that answers each caption best.

use super::CLOSE;
use super::case::Case;
use super::compare::Report;
use crate::model::{Layout, Trace};
use crate::tensor::Tensor;
use crate::{Error, Result, ops};
use std::ops::Range;

/// A tensor of ours against the case's of this name.
pub(super) fn compare(case: &Case, name: &str, ours: &Tensor, report: &mut Report) -> Result<()> {
    report.close(name, case.shape(name)?, &ours.to_f64()?, &case.f64s(name)?, CLOSE);
    Ok(())
}

/// Every recorded activation of a step, or of process `of` ("rank0."), padded rows left out.
pub(super) fn lines(case: &Case, of: &str, t: &Trace, texts: usize, report: &mut Report) -> Result<()> {
    let name = |what: &str| format!("outputs.{of}{what}");
    let simple = |name: &str, ours: &Option<Tensor>, report: &mut Report| -> Result<()> {
        match ours.as_ref().filter(|_| case.has(name)) {
            Some(ours) => compare(case, name, ours, report),
            None => Ok(()),
        }
    };
    for (i, block) in t.vit_blocks.iter().enumerate() {
        simple(&name(&format!("vit.block.{i}")), &Some(block.clone()), report)?;
    }
    simple(&name("image_embeds"), &t.image_embeds, report)?;
    let (Some((merged, layout)), Some((pairs, pair_layout))) = (&t.merged, &t.pairs) else { return Ok(()) };
    let groups = |rows: usize, n: usize| (0..n).map(|i| i * rows..(i + 1) * rows).collect::<Vec<_>>();
    let queries = |l: &Layout, n: usize| groups(l.query_rows / n.max(1), n);
    rows(case, &name("query_hidden"), merged, &[queries(layout, texts)], report)?;
    rows(case, &name("text_hidden"), merged, std::slice::from_ref(&layout.text), report)?;
    simple(&name("image_feats"), &t.image_feats, report)?;
    simple(&name("text_feat"), &t.text_feat, report)?;
    simple(&name("sim_i2t"), &t.sim_i2t, report)?;
    simple(&name("sim_t2i"), &t.sim_t2i, report)?;
    simple(&name("weights_i2t"), &t.weights_i2t, report)?;
    simple(&name("weights_t2i"), &t.weights_t2i, report)?;
    let pair_queries = queries(pair_layout, pair_layout.text.len());
    rows(case, &name("itm_hidden"), pairs, &[pair_queries, pair_layout.text.clone()], report)?;
    simple(&name("itm_logits"), &t.itm_logits, report)?;
    rows(case, &name("lm_hidden"), merged, std::slice::from_ref(&layout.lm), report)?;
    if let Some(logits) = &t.lm_logits {
        let first = layout.lm.first().map_or(0, |r| r.start);
        let moved = layout.lm.iter().map(|r| r.start - first..r.end - first).collect();
        rows(case, &name("lm_logits"), logits, &[moved], report)?;
    }
    Ok(())
}

/// Packed rows against a recorded [B,L,C]: sequence b is `parts[0][b]`, then `parts[1][b]`, ...; the rest is padding.
pub(super) fn rows(
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
    let (mine, recorded) = (ours.to_f64()?, case.f64s(name)?);
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

/// Of every picture and caption, the first query row whose product with the caption is the largest, and by how much it is larger
/// than any other row's.
pub(super) struct Best {
    pub queries: Vec<u32>,
    pub gaps: Vec<f64>,
}

impl Best {
    /// image [B,Q,E], text [T,E].
    pub fn of(image: &[f64], text: &[f64], queries: usize, width: usize) -> Best {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let mut best = Best { queries: Vec::new(), gaps: Vec::new() };
        for picture in image.chunks((queries * width).max(1)) {
            for caption in text.chunks(width.max(1)) {
                let (mut first, mut second, mut at) = (f64::NEG_INFINITY, f64::NEG_INFINITY, 0);
                for (q, row) in picture.chunks(width.max(1)).enumerate() {
                    let y = dot(row, caption);
                    if y > first {
                        (first, second, at) = (y, first, q as u32);
                    } else if y > second {
                        second = y;
                    }
                }
                best.queries.push(at);
                best.gaps.push(first - second);
            }
        }
        best
    }

    /// Our own choice, where the given one is clear.
    pub fn line(&self, t: &Trace, queries: usize, report: &mut Report) -> Result<()> {
        let (Some(image), Some(text)) = (&t.image_feats, &t.text_feat) else { return Ok(()) };
        let may =
            |name: &str, x: &Tensor| report.rounded().map_or(CLOSE, |r| r.bound(name, x.shape().sizes()));
        let off = may("outputs.image_feats", image) + may("outputs.text_feat", text);
        let ours = ops::best_queries(&image.detach(), &text.detach(), queries)?;
        let clear = self.gaps.iter().map(|gap| *gap > 2.0 * off);
        let both = ours.iter().zip(&self.queries).zip(clear).filter(|(_, clear)| *clear);
        let (ours, theirs): (Vec<f64>, Vec<f64>) =
            both.map(|((a, b), _)| (f64::from(*a), f64::from(*b))).unzip();
        report.equal("outputs.sim_i2t (best query where clear)", &[ours.len()], &ours, &theirs);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equals_is_best_and_the_gap_is_to_the_second() {
        // One picture of three queries, two captions.
        let image = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0];
        let best = Best::of(&image, &[1.0, 0.0, 0.5, 0.75], 3, 2);
        assert_eq!((best.queries, best.gaps), (vec![0, 1], vec![0.0, 0.25]));
        let one = Best::of(&image[..2], &[1.0, 0.0], 1, 2);
        assert_eq!((one.queries, one.gaps), (vec![0], vec![f64::INFINITY]));
    }
}
