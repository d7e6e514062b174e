//! Recall at 1, 5 and 10 of a search in both directions, in percent, as LAVIS's retrieval task reports it.
//!
//! Picture i and text j belong together if their ids are equal; a picture may have several texts. The rank of
//! a search is the place of the best right answer when scores are sorted downwards, and a hit if below k.
//! LAVIS leaves equal scores in an arbitrary order; here an equal wrong answer ranks first, so that a model which gives
//! everything the same score finds nothing.

use crate::{Error, Result};
use serde::Serialize;

const OPERATION: &str = "recall";
const AT: [usize; 3] = [1, 5, 10];

/// How often a search finds what belongs together, in per cent: among the first 1, 5 and 10.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Recall {
    /// Texts found for a picture (LAVIS's txt_r1, txt_r5, txt_r10), in percent.
    pub image_to_text: [f64; 3],
    /// Pictures found for a text (img_r1, img_r5, img_r10), in percent.
    pub text_to_image: [f64; 3],
    /// The mean of the six (r_mean).
    pub mean: f64,
}

/// `i2t` [pictures, texts] scores the search for texts, `t2i` [texts, pictures] that for pictures (LAVIS fills
/// in the ITM score of different candidates each way); ids say what belongs together.
pub fn recall<Id: PartialEq>(i2t: &[f32], t2i: &[f32], images: &[Id], texts: &[Id]) -> Result<Recall> {
    let image_to_text = one_way("image-to-text scores", i2t, images, texts)?;
    let text_to_image = one_way("text-to-image scores", t2i, texts, images)?;
    let mean = image_to_text.iter().chain(&text_to_image).sum::<f64>() / 6.0;
    Ok(Recall { image_to_text, text_to_image, mean })
}

fn one_way<Id: PartialEq>(name: &str, scores: &[f32], rows: &[Id], columns: &[Id]) -> Result<[f64; 3]> {
    if rows.is_empty() || columns.is_empty() || scores.len() != rows.len() * columns.len() {
        let expected = format!("[{}, {}], neither 0", rows.len(), columns.len());
        return Err(Error::argument(OPERATION, name, expected, format!("{} numbers", scores.len())));
    }
    if let Some(i) = scores.iter().position(|s| s.is_nan()) {
        return Err(Error::argument(OPERATION, name, "numbers", format!("NaN at element {i}")));
    }
    let mut hits = [0usize; 3];
    for (r, (id, row)) in rows.iter().zip(scores.chunks_exact(columns.len())).enumerate() {
        let right = row.iter().zip(columns).filter(|(_, c)| *c == id).map(|(s, _)| *s).reduce(f32::max);
        let Some(best) = right else {
            return Err(Error::argument(
                OPERATION,
                name,
                "a right answer in every row",
                format!("none in row {r}"),
            ));
        };
        let rank = row.iter().zip(columns).filter(|(s, c)| **s >= best && *c != id).count();
        for (hit, k) in hits.iter_mut().zip(AT) {
            *hit += usize::from(rank < k);
        }
    }
    Ok(hits.map(|h| 100.0 * h as f64 / rows.len() as f64))
}
