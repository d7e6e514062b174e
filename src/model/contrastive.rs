//! The contrastive loss (ITC): features of images and texts, their similarities, and targets.
//!
//! The gradient is one-sided as in LAVIS: in sim_i2t the texts are constants, in sim_t2i the images are.

use super::Model;
use super::stage1::{Merged, Profile, SMOOTHING};
use crate::Result;
use crate::nn::Pass;
use crate::ops::{self, Right, Targets};
use crate::tensor::{DType, Tensor};

impl Model {
    /// l2-normalised projections: image [B*Q,E] and text [B,E].
    pub(crate) fn contrastive_features(&self, pass: &Pass, m: &Merged) -> Result<(Tensor, Tensor)> {
        let images = m.hidden.slice_rows(0..m.layout.query_rows)?;
        let image_feats = ops::l2_normalize(&self.first()?.vision_proj.forward(pass, &images)?)?;
        let cls = if m.layout.last.is_some() {
            m.hidden.slice_rows(m.layout.query_rows..m.layout.query_rows + m.layout.text.len())?
        } else {
            let first: Vec<u32> = m.layout.text.iter().map(|r| r.start as u32).collect();
            ops::gather_rows(&m.hidden, &first)?
        };
        Ok((image_feats, ops::l2_normalize(&self.first()?.text_proj.forward(pass, &cls)?)?))
    }

    /// sim_i2t and sim_t2i [B,B], divided by the temperature; each learns on its own side only.
    pub(crate) fn similarities(
        &self,
        pass: &Pass,
        image: &Tensor,
        text: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        self.similarities_of(pass, [image, text], [image, text], None)
    }

    /// Of some images and texts [B], which learn, with all of a batch, which are constants: [B, all].
    pub(crate) fn similarities_of(
        &self,
        pass: &Pass,
        [image, text]: [&Tensor; 2],
        [all_images, all_texts]: [&Tensor; 2],
        queries: Option<&[u32]>,
    ) -> Result<(Tensor, Tensor)> {
        let (q, temp) = (self.config.num_query, pass.param(self.first()?.temp));
        let i2t = ops::max_similarity_of(image, &all_texts.detach(), q, queries)?;
        let t2i = ops::transpose(&ops::max_similarity_of(&all_images.detach(), text, q, queries)?)?;
        Ok((ops::divide(&i2t, &temp)?, ops::divide(&t2i, &temp)?))
    }

    pub(crate) fn itc_loss(
        &self,
        i2t: &Tensor,
        t2i: &Tensor,
        profile: Profile,
        ids: Option<&[i64]>,
    ) -> Result<(Tensor, [Right; 2])> {
        self.itc_loss_at(i2t, t2i, profile, 0, ids)
    }

    /// The contrastive loss of some rows of a larger batch: sims `[B, all]`, whose first row is row `first` of all; `ids` are of all.
    pub(crate) fn itc_loss_at(
        &self,
        i2t: &Tensor,
        t2i: &Tensor,
        profile: Profile,
        first: usize,
        ids: Option<&[i64]>,
    ) -> Result<(Tensor, [Right; 2])> {
        let own = first..first + i2t.rows().0;
        let diagonal: Vec<Option<u32>> = own.clone().map(|i| Some(i as u32)).collect();
        let loss = |sim: &Tensor| match (profile, ids) {
            (Profile::LavisImageId, Some(ids)) => {
                ops::cross_entropy(sim, Targets::Soft(&same_id_targets(sim.dtype(), ids, own.clone())?))
            }
            _ => ops::cross_entropy(sim, Targets::Classes(&diagonal, SMOOTHING)),
        };
        let both = ops::add(&loss(i2t)?, &loss(t2i)?)?;
        Ok((ops::scale(&both, 0.5)?, [ops::right(t2i, &diagonal)?, ops::right(i2t, &diagonal)?]))
    }
}

/// 0.9 * (same id, each row summing to 1) + 0.1 / B of the rows `own` of `ids`.
fn same_id_targets(dtype: DType, ids: &[i64], own: std::ops::Range<usize>) -> Result<Tensor> {
    let n = ids.len();
    let row = |id: &i64| {
        let same = ids.iter().filter(|other| *other == id).count() as f64;
        let target = move |other: &i64| if other == id { (1.0 - SMOOTHING) / same } else { 0.0 } + SMOOTHING / n as f64;
        ids.iter().map(target).collect::<Vec<_>>()
    };
    let rows = ids.get(own.clone()).unwrap_or_default();
    Tensor::of(dtype, &rows.iter().flat_map(row).collect::<Vec<_>>(), &[own.len(), n])
}
