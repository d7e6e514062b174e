//! How good a model is on data it is not trained on: the three losses, and recall at 1 of the contrastive search.
//!
//! One caption of each picture, whole pictures, no dropout, the same negatives every time: what changes from one
//! evaluation to the next is the model. Pictures that cannot be read are left out.

use super::loading::{Item, Loading};
use super::log::{EvaluationLine, Time};
use super::trainer::{Micro, Trainer};
use crate::data::Batch;
use crate::metrics;
use crate::model::{self, Images, Sampling, sites};
use crate::nn::Pass;
use crate::tensor::Tensor;
use crate::{Error, Kind, Result};
use rayon::prelude::*;

pub struct Validation {
    pub loading: Loading,
    /// Entries of the corpus.
    pub entries: Vec<usize>,
    pub batch: usize,
}

/// Features of everything: pictures [P*Q,E], texts [P,E], and whose they are.
#[derive(Default)]
struct Features {
    pictures: Vec<Tensor>,
    texts: Vec<f64>,
    ids: Vec<i64>,
}

/// Evaluates the trainer's model as it stands.
pub fn evaluate(trainer: &Trainer, on: &Validation) -> Result<EvaluationLine> {
    let (mut losses, mut pictures, mut features) = ([0.0; 4], 0, Features::default());
    for (i, entries) in on.entries.chunks(on.batch).enumerate() {
        let micro = load(on, entries)?;
        let n = micro.text.len();
        if n < 2 {
            continue; // a matching loss needs a negative
        }
        let pass = Pass::inference(&trainer.params);
        let some = if trainer.model.llm().is_some() {
            let loss = trainer.model.stage2(&pass, &batch_of(&micro), None)?.item()?;
            [loss, 0.0, 0.0, loss]
        } else {
            let (tokens, images) = trainer.model.tokens_and_features(&pass, micro.image.tensor())?;
            features.add(trainer, &micro, images)?;
            batch_losses(trainer, &micro, &tokens, sites::micro_batch(i))?
        };
        losses.iter_mut().zip(some).for_each(|(sum, x)| *sum += n as f64 * x);
        pictures += n;
    }
    if pictures == 0 {
        return Err(Error::new(Kind::Data, "evaluate")
            .about("validation data")
            .expected("two pictures that can be read")
            .got("fewer")
            .fix("check it with qformer doctor"));
    }
    let [loss, itc, itm, lm] = losses.map(|x| x / pictures as f64);
    let recall = match trainer.model.llm() {
        Some(_) => metrics::Recall::default(),
        None => features.recall(&trainer.model)?,
    };
    Ok(EvaluationLine {
        kind: "evaluation",
        step: trainer.step,
        loss,
        itc,
        itm,
        lm,
        recall_text_to_image: recall.text_to_image[0] / 100.0,
        recall_image_to_text: recall.image_to_text[0] / 100.0,
        pictures,
        time: Time { at: super::log::now(), ..Time::default() },
    })
}

fn load(on: &Validation, entries: &[usize]) -> Result<Micro> {
    let loaded: Vec<Result<Item>> = entries.par_iter().map(|i| on.loading.load(*i, 0)).collect();
    let unusable = |e: &Error| matches!(e.kind(), Kind::File | Kind::Data);
    let items = loaded.into_iter().filter(|r| !r.as_ref().is_err_and(unusable)).collect::<Result<_>>()?;
    on.loading.micro(Batch { step: 0, indices: entries.to_vec(), items })
}

fn batch_of(micro: &Micro) -> model::Batch<'_> {
    model::Batch { image: micro.image.clone(), text: &micro.text, image_id: micro.image_id.as_deref() }
}

fn batch_losses(trainer: &Trainer, micro: &Micro, tokens: &Tensor, site: u32) -> Result<[f64; 4]> {
    let pass = Pass::inference(&trainer.params);
    let sampling = Sampling::Draw { seed: trainer.options.seed, step: u32::MAX, site };
    let out =
        trainer.model.losses(&pass, tokens, &batch_of(micro), trainer.options.profile, sampling, None)?;
    Ok([out.loss.item()?, out.itc.item()?, out.itm.item()?, out.lm.item()?])
}

impl Features {
    fn add(&mut self, trainer: &Trainer, micro: &Micro, images: Images) -> Result<()> {
        let pass = Pass::inference(&trainer.params);
        self.pictures.push(images.proj);
        for text in trainer.model.text_features(&pass, &micro.text)? {
            self.texts.extend(text.proj.slice_rows(0..1)?.to_f64()?); // of [CLS]
        }
        self.ids.extend(micro.image_id.iter().flatten());
        Ok(())
    }

    fn recall(&self, model: &model::Model) -> Result<metrics::Recall> {
        let (n, e) = (self.ids.len(), model.config.embed_dim);
        let mut i2t = Vec::with_capacity(n * n);
        for pictures in &self.pictures {
            let texts = Tensor::of(pictures.dtype(), &self.texts, &[n, e])?;
            let scores = model.itc_scores(pictures, &texts)?;
            i2t.extend(scores.to_f32()?);
        }
        let t2i: Vec<f32> =
            (0..n).flat_map(|t| (0..n).map(move |i| (t, i))).map(|(t, i)| i2t[i * n + t]).collect();
        metrics::recall(&i2t, &t2i, &self.ids, &self.ids)
    }
}
