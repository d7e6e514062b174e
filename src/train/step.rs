//! A step over several micro-batches whose contrastive negatives are the captions and pictures of all of them.
//!
//! The features of every micro-batch are computed first without a tape; the contrastive loss of the whole step gives their
//! gradients; then each micro-batch runs again on a tape, with those gradients as seeds beside its own matching and
//! captioning losses. Dropout masks depend on (seed, step, site, element) alone, so both runs draw the same ones, and the
//! result is the gradient of
//!   ITC(all) + mean over micro-batches (ITM + LM)
//! Matching negatives are drawn inside a micro-batch (their image keys are at hand there).

use crate::model::sites::micro_batch;
use crate::model::{Batch, Model, NegativeWeights, Profile, Sampling};
use crate::nn::{DropoutPlan, Params, Pass};
use crate::ops::{self, Right};
use crate::tensor::{Gradients, Tape, Tensor};
use crate::{Error, Result};

/// Losses (total, ITC, ITM, LM) and accuracies of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepLosses {
    pub losses: [f64; 4],
    pub accuracy: [f64; 4],
}

/// What every micro-batch of a step shares.
#[derive(Clone, Copy)]
pub struct StepPlan {
    pub profile: Profile,
    pub drop: Option<DropoutPlan>,
    pub seed: u64,
    pub step: u32,
    /// Multiplies the loss before backward (f16 loss scaling).
    pub scale: f64,
}

impl Model {
    /// Mean over micro-batches of their own losses; gradients are added to `grads`.
    pub fn step_separate(
        &self,
        params: &Params,
        batches: &[Batch],
        plan: StepPlan,
        grads: &mut Gradients,
    ) -> Result<StepLosses> {
        let (share, mut sum) = (1.0 / batches.len() as f64, StepLosses::default());
        for (i, batch) in batches.iter().enumerate() {
            self.micro_step(params, batch, plan, (share, micro_batch(i)), grads, &mut sum)?;
        }
        Ok(sum)
    }

    /// Adds a micro-batch's share of a step to its gradients and losses.
    fn micro_step(
        &self,
        params: &Params,
        batch: &Batch,
        plan: StepPlan,
        (share, site): (f64, u32),
        grads: &mut Gradients,
        sum: &mut StepLosses,
    ) -> Result<()> {
        let tape = Tape::new();
        let pass = Pass::training(params, &tape, plan.drop).at_site(site);
        if self.llm().is_some() {
            let loss = self.stage2(&pass, batch, None)?;
            tape.backward(&loss, share * plan.scale, grads)?;
            let loss = loss.item()?;
            sum.add(share, [loss, 0.0, 0.0, loss], [0.0; 4]);
            return Ok(());
        }
        let sampling = Sampling::Draw { seed: plan.seed, step: plan.step, site };
        let out = self.stage1(&pass, batch, plan.profile, sampling, None)?;
        tape.backward(&out.loss, share * plan.scale, grads)?;
        let losses = [out.loss.item()?, out.itc.item()?, out.itm.item()?, out.lm.item()?];
        sum.add(share, losses, out.accuracy.shares()?);
        Ok(())
    }

    /// ITC over all micro-batches, the mean of their ITM and LM; see the file's header.
    pub fn step_joint(
        &self,
        params: &Params,
        batches: &[Batch],
        plan: StepPlan,
        grads: &mut Gradients,
    ) -> Result<StepLosses> {
        if self.trains_vit() {
            return Err(Error::argument(
                "train",
                "contrastive_over",
                "a frozen image encoder",
                "a trained one",
            ));
        }
        let frozen = Pass::inference(params);
        let tokens: Vec<Tensor> =
            batches.iter().map(|b| self.tokens_of(&frozen, &b.image, |_, _| {})).collect::<Result<_>>()?;
        let mut features = Vec::new();
        for (i, (batch, tokens)) in batches.iter().zip(&tokens).enumerate() {
            let pass = Pass::untracked(params, plan.drop).at_site(micro_batch(i));
            let merged = self.merged_pass(&pass, tokens, batch.text, true, batch.text.len())?;
            features.push(self.contrastive_features(&pass, &merged)?);
        }
        let itc = self.joint_contrastive(params, batches, &features, plan, grads)?;
        let (share, mut sum) = (1.0 / batches.len() as f64, StepLosses::default());
        for (i, (batch, tokens)) in batches.iter().zip(&tokens).enumerate() {
            let (tape, site) = (Tape::new(), micro_batch(i));
            let pass = Pass::training(params, &tape, plan.drop).at_site(site);
            let merged = self.merged_pass(&pass, tokens, batch.text, true, batch.text.len())?;
            let (image, text) = self.contrastive_features(&pass, &merged)?;
            let (i2t, t2i) = self.similarities(&frozen, &image.detach(), &text.detach())?;
            let ids = batch.image_id.filter(|_| plan.profile == Profile::LavisImageId);
            let sampling = Sampling::Draw { seed: plan.seed, step: plan.step, site };
            let negatives = NegativeWeights { i2t: &i2t, t2i: &t2i, ids }.choose(sampling)?;
            let itm = self.itm_loss(&pass, &merged.keys, batch, &negatives, true)?;
            let (lm, lm_right) = self.lm_loss(&pass, &merged, batch.text)?;
            let both = ops::add(&itm.loss, &lm)?;
            let seed = pass.here(&Tensor::of(both.dtype(), &[share * plan.scale], &[])?)?;
            let (image_grad, text_grad) = itc.gradients[i].clone();
            tape.backward_from(&[(&both, seed), (&image, image_grad), (&text, text_grad)], grads)?;
            let (m, l) = (itm.loss.item()?, lm.item()?);
            sum.add(share, [m + l, 0.0, m, l], [0.0, 0.0, itm.right.share()?, lm_right.share()?]);
        }
        sum.losses[0] += itc.loss;
        sum.losses[1] = itc.loss;
        let [a, b] = itc.right.each_ref().map(Right::share);
        (sum.accuracy[0], sum.accuracy[1]) = (a?, b?);
        Ok(sum)
    }

    /// The contrastive loss over all features, its gradients per micro-batch; the temperature's goes to `grads`.
    fn joint_contrastive(
        &self,
        params: &Params,
        batches: &[Batch],
        features: &[(Tensor, Tensor)],
        plan: StepPlan,
        grads: &mut Gradients,
    ) -> Result<Joint> {
        let ids: Option<Vec<i64>> =
            batches.iter().map(|b| b.image_id).collect::<Option<Vec<_>>>().map(|v| v.concat());
        let (tape, mut own) = (Tape::new(), Gradients::new());
        let pass = Pass::training(params, &tape, None);
        let image = pass.input(&ops::concat_rows(&features.iter().map(|f| &f.0).collect::<Vec<_>>())?, 0);
        let text = pass.input(&ops::concat_rows(&features.iter().map(|f| &f.1).collect::<Vec<_>>())?, 1);
        let (i2t, t2i) = self.similarities(&pass, &image, &text)?;
        let (itc, right) = self.itc_loss(&i2t, &t2i, plan.profile, ids.as_deref())?;
        tape.backward(&itc, plan.scale, &mut own)?;
        for key in own.keys().filter(|k| *k < params.len()).collect::<Vec<_>>() {
            if let Some(g) = own.get(key) {
                grads.add(key, g.clone())?;
            }
        }
        let whole = |which: usize, all: &Tensor| -> Result<Tensor> {
            let none = || Error::argument("train", "contrastive gradient", "one per feature", "none");
            let grad = own.get(params.len() + which).ok_or_else(none)?;
            Tensor::of_buffer(grad.clone(), all.shape().sizes())
        };
        let (image, text) = (whole(0, &image)?, whole(1, &text)?);
        let part = |whole: &Tensor, from: usize, like: &Tensor| -> Result<Tensor> {
            let own = whole.slice_rows(from..from + like.rows().0)?;
            own.like(like)?.reshape(like.shape().sizes())
        };
        let (mut gradients, mut at) = (Vec::new(), [0, 0]);
        for (i, t) in features {
            gradients.push((part(&image, at[0], i)?, part(&text, at[1], t)?));
            at = [at[0] + i.rows().0, at[1] + t.rows().0];
        }
        Ok(Joint { loss: itc.item()?, right, gradients })
    }
}

struct Joint {
    loss: f64,
    right: [Right; 2],
    gradients: Vec<(Tensor, Tensor)>,
}

impl StepLosses {
    fn add(&mut self, share: f64, losses: [f64; 4], accuracy: [f64; 4]) {
        for i in 0..4 {
            self.losses[i] += share * losses[i];
            self.accuracy[i] += share * accuracy[i];
        }
    }
}
