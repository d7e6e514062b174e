//! The negatives of the matching loss: which image a text is wrongly paired with, and which text an image.

use super::sites;
use crate::ops;
use crate::tensor::{Stream, Tensor};
use crate::{Error, Result};

/// The negative image of every text and the negative text of every image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negatives {
    /// The wrong picture for each caption.
    pub image: Vec<u32>,
    /// The wrong caption for each picture.
    pub text: Vec<u32>,
}

/// Where negatives come from.
#[derive(Clone)]
pub enum Sampling<'a> {
    /// These.
    Given(&'a Negatives),
    /// With, for every picture and caption `[B,B]`, the query row that their similarity is of: what was chosen elsewhere.
    Recorded {
        /// Those that were recorded.
        negatives: &'a Negatives,
        /// The best query of each text.
        queries: &'a [u32],
    },
    /// Drawn from the similarities; `site` tells micro-batches of a step apart.
    Draw {
        /// Of the run.
        seed: u64,
        /// Of the run.
        step: u32,
        /// Which of a step's draws.
        site: u32,
    },
}

/// Weights of the negatives [B,B], row by row: softmax + 1e-4 with the diagonal 0; with ids, softmax over other ids only.
pub(crate) struct NegativeWeights<'a> {
    /// Similarities of pictures with texts.
    pub i2t: &'a Tensor,
    /// Similarities of texts with pictures.
    pub t2i: &'a Tensor,
    /// Pictures of one number are no negatives of each other.
    pub ids: Option<&'a [i64]>,
}

impl NegativeWeights<'_> {
    /// Draws the negatives, or takes those that are given.
    pub fn choose(&self, sampling: Sampling) -> Result<Negatives> {
        match sampling {
            Sampling::Given(given) | Sampling::Recorded { negatives: given, .. } => {
                check_negatives(given, self.i2t.rows().0)
            }
            Sampling::Draw { seed, step, site } => {
                let stream = |own| Stream { seed, step, site: site.wrapping_add(own) };
                let streams = [sites::NEGATIVE_IMAGES, sites::NEGATIVE_TEXTS].map(stream);
                let [image, text] = ops::sample_negatives_twice([self.t2i, self.i2t], self.ids, streams)?;
                Ok(Negatives { image, text })
            }
        }
    }

    /// i2t and t2i as tensors.
    pub fn tensors(&self) -> Result<[Tensor; 2]> {
        let tensor = |sim: &Tensor| Tensor::new(ops::negative_weights(sim, self.ids)?, sim.shape().sizes());
        Ok([tensor(self.i2t)?, tensor(self.t2i)?])
    }
}

fn check_negatives(given: &Negatives, n: usize) -> Result<Negatives> {
    let bad = |v: &[u32]| v.len() != n || v.iter().any(|i| *i as usize >= n);
    if bad(&given.image) || bad(&given.text) {
        return Err(Error::argument(
            "stage 1",
            "negatives",
            format!("{n} indices below {n}"),
            format!("{given:?}"),
        ));
    }
    Ok(given.clone())
}

#[cfg(test)]
mod tests {
    use super::{NegativeWeights, Sampling};
    use crate::tensor::{DType, Tensor};

    /// From equal weights: images and texts by numbers of their own, never their own pair's.
    #[test]
    fn images_and_texts_are_drawn_apart() {
        let even = Tensor::zeros(DType::F64, &[16, 16]);
        let weights = NegativeWeights { i2t: &even, t2i: &even, ids: None };
        let drawn = weights.choose(Sampling::Draw { seed: 1, step: 1, site: 0 }).unwrap();
        assert_ne!(drawn.image, drawn.text);
        assert!((0..16).all(|i| drawn.image[i] != i as u32 && drawn.text[i] != i as u32), "{drawn:?}");
    }
}
