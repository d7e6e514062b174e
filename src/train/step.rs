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
use crate::tensor::{Array, Gradients, Tape, Tensor};
use crate::{Error, Result};

/// Losses (total, ITC, ITM, LM) and accuracies of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepLosses {
    pub losses: [f64; 4],
    pub accuracy: [f64; 4],
}

/// A part's weight, its four losses and its four accuracies.
pub type Values = [f64; 9];

/// Losses and accuracies of a step's parts, each with its weight, before anybody has waited for them.
#[derive(Default)]
pub struct Unread(Vec<Part>);

/// Total (None: the sum of the others), ITC, ITM and LM; and the right answers.
struct Part {
    share: f64,
    losses: [Option<Tensor>; 4],
    right: [Option<Right>; 4],
}

impl Unread {
    /// Adds a part: total, ITC, ITM and LM, and the right answers.
    pub(super) fn push(&mut self, share: f64, losses: [&Tensor; 4], right: [Right; 4]) {
        let losses = losses.map(|loss| Some(loss.detach()));
        self.0.push(Part { share, losses, right: right.map(Some) });
    }

    /// The sum of all losses that gradients are of, on a GPU; not finite if one of them is not.
    pub fn total(&self) -> Result<Option<Tensor>> {
        let all = self.0.iter().flat_map(|p| match &p.losses {
            [Some(total), ..] => vec![total.detach()],
            [None, parts @ ..] => parts.iter().flatten().map(Tensor::detach).collect(),
        });
        let mut sum: Option<Tensor> = None;
        for loss in all.filter(|loss| loss.array().is_some()) {
            sum = Some(match sum {
                Some(sum) => ops::add(&sum, &loss)?,
                None => loss,
            });
        }
        Ok(sum)
    }

    /// What they are.
    pub fn losses(&self) -> Result<StepLosses> {
        Ok(StepLosses::of(&self.read(&[])?.0))
    }

    /// What they are part by part, and the values of more tensors of one element. A GPU is waited for once.
    pub fn read(&self, more: &[&Tensor]) -> Result<(Vec<Values>, Vec<f64>)> {
        let tensors = || self.0.iter().flat_map(|p| p.losses.iter().flatten()).chain(more.iter().copied());
        let flags = self.0.iter().flat_map(|p| p.right.iter().flatten()).filter_map(|r| r.flags().cloned());
        let arrays: Vec<Array> = tensors().filter_map(Tensor::array).chain(flags).collect();
        let mut values = Array::read_together(&arrays)?.into_iter();
        let numbers: Vec<f64> = tensors()
            .map(|t| match t.array() {
                Some(_) => Ok(values.next().and_then(|v| v.first().copied()).map_or(f64::NAN, f64::from)),
                None => t.item(),
            })
            .collect::<Result<_>>()?;
        let (mut numbers, mut parts) = (numbers.into_iter(), Vec::new());
        for part in &self.0 {
            let [total, own @ ..] =
                part.losses.each_ref().map(|loss| loss.as_ref().and_then(|_| numbers.next()));
            let total = total.unwrap_or_else(|| own.iter().flatten().sum());
            let [itc, itm, lm] = own.map(|loss| loss.unwrap_or(0.0));
            let right = part.right.each_ref().map(|right| match right {
                Some(right) if right.flags().is_some() => right.share_of(&values.next().unwrap_or_default()),
                Some(right) => right.share_of(&[]),
                None => 0.0,
            });
            parts.push([part.share, total, itc, itm, lm, right[0], right[1], right[2], right[3]]);
        }
        Ok((parts, numbers.collect()))
    }
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
    ) -> Result<Unread> {
        let (share, mut sum) = (1.0 / batches.len() as f64, Unread::default());
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
        sum: &mut Unread,
    ) -> Result<()> {
        let tape = Tape::new();
        let pass = Pass::training(params, &tape, plan.drop).at_site(site);
        if self.llm().is_some() {
            let loss = self.stage2(&pass, batch, None)?;
            tape.backward(&loss, share * plan.scale, grads)?;
            let losses = [Some(loss.detach()), None, None, Some(loss.detach())];
            sum.0.push(Part { share, losses, right: [const { None }; 4] });
            return Ok(());
        }
        let sampling = Sampling::Draw { seed: plan.seed, step: plan.step, site };
        let out = self.stage1(&pass, batch, plan.profile, sampling, None)?;
        tape.backward(&out.loss, share * plan.scale, grads)?;
        sum.push(share, [&out.loss, &out.itc, &out.itm, &out.lm], out.accuracy.0);
        Ok(())
    }

    /// ITC over all micro-batches, the mean of their ITM and LM; see the file's header.
    pub fn step_joint(
        &self,
        params: &Params,
        batches: &[Batch],
        plan: StepPlan,
        grads: &mut Gradients,
    ) -> Result<Unread> {
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
        let (share, mut sum) = (1.0 / batches.len() as f64, Unread::default());
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
            let losses = [None, None, Some(itm.loss.detach()), Some(lm.detach())];
            sum.0.push(Part { share, losses, right: [None, None, Some(itm.right), Some(lm_right)] });
        }
        let [a, b] = itc.right.map(Some);
        let losses = [None, Some(itc.loss), None, None];
        sum.0.push(Part { share: 1.0, losses, right: [a, b, None, None] });
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
        Ok(Joint { loss: itc.detach(), right, gradients })
    }
}

struct Joint {
    loss: Tensor,
    right: [Right; 2],
    gradients: Vec<(Tensor, Tensor)>,
}

impl StepLosses {
    /// Of parts, in turn.
    pub fn of(parts: &[Values]) -> StepLosses {
        let mut sum = StepLosses::default();
        for [share, values @ ..] in parts {
            for i in 0..4 {
                sum.losses[i] += share * values[i];
                sum.accuracy[i] += share * values[4 + i];
            }
        }
        sum
    }
}
