//! A step of LAVIS's run on W processes: micro-batch r stands for process r. They are computed by one process, or shared out evenly
//! among those of a group, in turn; the numbers are the same to the bit ([`super::exchange`] says what moves).
//!
//! Features of all micro-batches are computed first without a tape; they are the constants that every micro-batch is compared
//! with, as LAVIS gathers them without gradient. Then, for each micro-batch r of B samples, on a tape of its own:
//!   ITC_r   its images and texts with those of all, [B, W B], targets r B + b, smoothing over W B; mean over B
//!   ITM_r   its pairs, and negatives drawn from all W B; an image drawn from elsewhere is projected here from its ViT tokens
//!           (normalised, in the storage of activations), so that its gradient reaches `ln_vision`, the keys and values, as LAVIS's gather with gradient has it
//!   LM_r    its own captions, mean over its own predicted tokens
//! The gradient is that of the mean over r of ITC_r + ITM_r + LM_r. Source: LAVIS 1.0.2, blip2_qformer.py, base_model.py
//! (`concat_all_gather`, `all_gather_with_grad`), under DistributedDataParallel.

use super::exchange::{drawn_tokens, gather_lists, gather_rows, sum_gradients};
use super::step::{StepPlan, Unread};
use crate::group::Group;
use crate::model::sites::micro_batch;
use crate::model::{Batch, Matching, Model, NegativeWeights, Negatives, Sampling, Trace};
use crate::nn::{Params, Pass};
use crate::ops::{self, Right};
use crate::tensor::{Gradients, Tape, Tensor};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;

/// What one micro-batch computed.
pub struct Rank {
    /// ITC + ITM + LM, ITC, ITM, LM.
    pub losses: [Tensor; 4],
    /// For `parity`, which asks for every row; similarities are `[B, W B]`.
    pub trace: Trace,
}

impl Rank {
    /// The losses' values.
    pub fn values(&self) -> Result<[f64; 4]> {
        let [a, b, c, d] = self.losses.each_ref().map(Tensor::item);
        Ok([a?, b?, c?, d?])
    }
}

/// This process's micro-batches of a step and what all share.
struct World<'a> {
    model: &'a Model,
    batches: &'a [Batch<'a>],
    plan: StepPlan,
    /// The number of the first of them, and how many there are in all.
    first: usize,
    count: usize,
    /// Samples of each.
    size: usize,
    /// ViT tokens of each of them, normalised: see [`Model::normalized`].
    tokens: Vec<Tensor>,
    /// Those of samples that were drawn from other processes.
    drawn: BTreeMap<usize, Tensor>,
    /// As the ViT gave them, where every row is asked for.
    vit: Vec<Tensor>,
    /// Captions of all.
    texts: Vec<Vec<u32>>,
    /// Features of all: images `[W B Q, E]`, texts `[W B, E]`.
    image: Tensor,
    text: Tensor,
    ids: Option<Vec<i64>>,
    negatives: Negatives,
    /// Whether rows that no loss reads are left out.
    trim: bool,
}

impl Model {
    /// The mean over micro-batches of their losses, each compared with all; gradients are added to `grads`. All must have as
    /// many samples. The image encoder is frozen. `batches` are those of this process; the losses are, too.
    pub fn step_world(
        &self,
        params: &Params,
        batches: &[Batch],
        plan: StepPlan,
        group: &Group,
        grads: &mut Gradients,
    ) -> Result<Unread> {
        let world = World::new(self, params, batches, plan, group, None)?;
        let (share, mut sum) = (1.0 / world.count as f64, Unread::default());
        let mut own = Vec::new();
        for i in 0..batches.len() {
            let (tape, mut one) = (Tape::new(), Gradients::new());
            let pass = Pass::training(params, &tape, plan.drop).at_site(micro_batch(world.first + i));
            let (rank, right) = world.rank(&pass, i)?;
            tape.backward(&rank.losses[0], share * plan.scale, &mut one)?;
            sum.push(share, rank.losses.each_ref(), right);
            if group.size() == 1 { grads.absorb(one)? } else { own.push(one) }
        }
        sum_gradients(group, params, own, grads)?;
        Ok(sum)
    }

    /// A step of all processes with given negatives, whose indices count all samples, and every micro-batch shown with all of its rows: `each` gets
    /// its number among those of all processes and what it computed, before its gradient is taken.
    pub fn step_world_given(
        &self,
        params: &Params,
        batches: &[Batch],
        (plan, negatives, group): (StepPlan, &Negatives, &Group),
        grads: &mut [Gradients],
        mut each: impl FnMut(usize, Rank) -> Result<()>,
    ) -> Result<()> {
        let world = World::new(self, params, batches, plan, group, Some(negatives))?;
        for (i, grads) in (0..batches.len()).zip(grads) {
            let tape = Tape::new();
            let pass = Pass::training(params, &tape, plan.drop).at_site(micro_batch(world.first + i));
            let (mut rank, _) = world.rank(&pass, i)?;
            tape.backward(&rank.losses[0], plan.scale, grads)?;
            rank.trace.image_embeds =
                Some(self.image_embeds(&Pass::inference(params), &world.vit[i].detach())?);
            each(world.first + i, rank)?;
        }
        Ok(())
    }
}

impl<'a> World<'a> {
    fn new(
        model: &'a Model,
        params: &Params,
        batches: &'a [Batch<'a>],
        plan: StepPlan,
        group: &Group,
        given: Option<&Negatives>,
    ) -> Result<World<'a>> {
        if model.trains_vit() {
            let want = "a frozen image encoder";
            return Err(Error::argument("train", "contrastive_over", want, "a trained one"));
        }
        let size = batches.first().map_or(0, |b| b.text.len());
        if size == 0 || batches.iter().any(|b| b.text.len() != size) {
            let sizes: Vec<usize> = batches.iter().map(|b| b.text.len()).collect();
            return Err(Error::argument(
                "train",
                "micro-batches",
                "as many samples in each",
                format!("{sizes:?}"),
            ));
        }
        let frozen = Pass::inference(params);
        let (first, count, trim) =
            (group.rank() * batches.len(), group.size() * batches.len(), given.is_none());
        let (mut vit, mut tokens, mut features) = (Vec::new(), Vec::new(), Vec::new());
        for (i, batch) in batches.iter().enumerate() {
            let seen = model.tokens_of(&frozen, &batch.image, |_, _| {})?;
            let pass = Pass::untracked(params, plan.drop).at_site(micro_batch(first + i));
            let merged = model.merged_pass(&pass, &seen, batch.text, trim, size)?;
            features.push(model.contrastive_features(&pass, &merged)?);
            tokens.push(model.normalized(&frozen, &seen)?);
            vit.extend((!trim).then_some(seen));
        }
        let image = ops::concat_rows(&features.iter().map(|f| &f.0).collect::<Vec<_>>())?;
        let text = ops::concat_rows(&features.iter().map(|f| &f.1).collect::<Vec<_>>())?;
        let image = gather_rows(group, "gather features of pictures", &image)?;
        let text = gather_rows(group, "gather features of captions", &text)?;
        let own: Vec<Vec<u32>> = batches.iter().flat_map(|b| b.text).cloned().collect();
        let texts = gather_lists(group, "gather captions", &own)?;
        if texts.len() != count * size {
            let want = format!("{} captions of {count} micro-batches", count * size);
            return Err(Error::argument("train", "micro-batches", want, texts.len()));
        }
        let ids: Option<Vec<i64>> =
            batches.iter().map(|b| b.image_id).collect::<Option<Vec<_>>>().map(|v| v.concat());
        let ids = ids.filter(|_| plan.profile == crate::model::Profile::LavisImageId);
        let all_ids = |own: Vec<i64>| Ok(group.gather("gather pictures' numbers", &own)?.concat());
        let ids = ids.map(all_ids).transpose()?;
        let (i2t, t2i) = model.similarities(&frozen, &image, &text)?;
        let sampling = match given {
            Some(given) => Sampling::Given(given),
            None => Sampling::Draw { seed: plan.seed, step: plan.step, site: micro_batch(0) },
        };
        let negatives = NegativeWeights { i2t: &i2t, t2i: &t2i, ids: ids.as_deref() }.choose(sampling)?;
        let held = batches.len() * size;
        let drawn = drawn_tokens(group, &tokens, size, |rank| {
            elsewhere(&negatives, rank * held..(rank + 1) * held, rank * held..(rank + 1) * held)
        })?;
        Ok(World {
            model,
            batches,
            plan,
            first,
            count,
            size,
            tokens,
            drawn,
            vit,
            texts,
            image,
            text,
            ids,
            negatives,
            trim,
        })
    }

    fn rank(&self, pass: &Pass, r: usize) -> Result<(Rank, [Right; 4])> {
        let (m, text) = (self.model, self.batches[r].text);
        let (n, first) = (self.size, (self.first + r) * self.size);
        let own = first..first + n;
        let (foreign, tokens) = self.with_drawn(r)?;
        let merged = m.merged_normalized(pass, tokens, (text, self.trim, n))?;
        let (image_feats, text_feat) = m.contrastive_features(pass, &merged)?;
        let all = [&self.image, &self.text];
        let (i2t, t2i) = m.similarities_of(pass, [&image_feats, &text_feat], all, None)?;
        let (itc, itc_right) = m.itc_loss_at(&i2t, &t2i, self.plan.profile, first, self.ids.as_deref())?;
        // Images by their place among this micro-batch's and those drawn from elsewhere.
        let place = |i: usize| match i.checked_sub(first).filter(|i| *i < n) {
            Some(i) => i,
            None => n + foreign.iter().position(|f| *f == i).unwrap_or_default(),
        };
        let drawn = self.negatives.image[own.clone()].iter().map(|i| place(*i as usize));
        let images: Vec<usize> = (0..n).chain(drawn).chain(0..n).collect();
        let elsewhere = self.negatives.text[own].iter().map(|i| self.texts[*i as usize].as_slice());
        let texts: Vec<&[u32]> = text.iter().chain(text).map(Vec::as_slice).chain(elsewhere).collect();
        let all = n + foreign.len();
        let Matching { loss: itm, right, hidden, layout, logits } =
            m.matching(pass, &merged.keys, all, (&images, &texts), self.trim)?;
        let (lm, lm_right) = m.lm_loss(pass, &merged, text)?;
        let loss = ops::add(&ops::add(&itc, &itm)?, &lm)?;
        let [t2i_right, i2t_right] = itc_right;
        let rights = [t2i_right, i2t_right, right, lm_right];
        let trace = Trace {
            merged: Some((merged.hidden, merged.layout)),
            pairs: Some((hidden, layout)),
            image_feats: Some(image_feats),
            text_feat: Some(text_feat),
            sim_i2t: Some(i2t),
            sim_t2i: Some(t2i),
            itm_logits: Some(logits),
            ..Trace::default()
        };
        let rank = Rank { losses: [loss, itc, itm, lm], trace };
        Ok((rank, rights))
    }

    /// The images that micro-batch `r` of this process draws from others, each once, and the tokens of its own with theirs behind.
    fn with_drawn(&self, r: usize) -> Result<(Vec<usize>, Tensor)> {
        let n = self.size;
        let own = (self.first + r) * n..(self.first + r + 1) * n;
        let foreign = elsewhere(&self.negatives, own.clone(), own);
        let per = self.tokens[r].rows().0 / n;
        let rows = |i: &usize| {
            if let Some(drawn) = self.drawn.get(i) {
                return Ok(drawn.clone());
            }
            let at = i % n * per;
            self.tokens[i / n - self.first].slice_rows(at..at + per)
        };
        let drawn: Vec<Tensor> = foreign.iter().map(rows).collect::<Result<_>>()?;
        let all: Vec<&Tensor> = std::iter::once(&self.tokens[r]).chain(&drawn).collect();
        Ok((foreign, ops::concat_rows(&all)?))
    }
}

/// The images that the texts `of` draw, each once, ascending, without those `own`.
fn elsewhere(negatives: &Negatives, of: Range<usize>, own: Range<usize>) -> Vec<usize> {
    let mut images: Vec<usize> = negatives.image[of].iter().map(|i| *i as usize).collect();
    images.retain(|i| !own.contains(i));
    images.sort_unstable();
    images.dedup();
    images
}
