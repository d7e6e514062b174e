//! `qformer bench step`: training steps of random numbers. The pictures of a batch lie on the device; with `--cached` image tokens lie
//! in the slots that a cache's records are read into, and each step uploads the next one's beside it, as `train --cache` does.

use super::{Args, noise, parameters, texts, trainer_of};
use crate::Result;
use crate::commands::bench::llm;
use crate::model::{Config, Image, Model};
use crate::nn::Precision;
use crate::tensor::{Device, Feed, Storage, Tensor};
use crate::train::trainer::{Micro, Trainer};

pub(super) struct Steps {
    trainer: Trainer,
    names: Vec<String>,
    text: Vec<Vec<u32>>,
    from: From,
    /// The batch of the next step.
    coming: Option<Micro>,
}

enum From {
    Pixels(Tensor),
    Slots(Feed),
}

impl Steps {
    pub(super) fn new(args: &Args, config: Config, place: &(Device, Precision)) -> Result<Steps> {
        let from = match args.cached {
            true => From::Slots(slots(&config, args.batch, &place.0)?),
            false => From::Pixels(noise(&config, args.batch)?.at(&place.0)?),
        };
        let text = texts(&config, args);
        let (mut model, specs) = match &args.llm {
            Some(name) => Model::with_llm(config, llm::named(name)?, 0, false)?,
            None => Model::new(config, false)?,
        };
        model.set_recompute(args.recompute);
        let trainer = trainer_of(model, parameters(specs, place)?)?;
        let names = (0..args.batch).map(|i| format!("noise {i}")).collect();
        Ok(Steps { trainer, names, text, from, coming: None })
    }

    fn batch(&self) -> Result<Micro> {
        let image = match &self.from {
            From::Pixels(pixels) => Image::Pixels(pixels.clone()),
            From::Slots(feed) => {
                let slots = self.names.iter().map(|_| feed.slot()).collect::<Result<_>>()?;
                Image::Tokens(feed.rows(slots)?)
            }
        };
        Ok(Micro { image, text: self.text.clone(), image_id: None, names: self.names.clone() })
    }

    /// The next batch: what it needs is on the device before what comes next there.
    fn take(&mut self) -> Result<Micro> {
        let micro = self.coming.take().map_or_else(|| self.batch(), Ok)?;
        if let From::Slots(feed) = &self.from {
            feed.settle()?;
        }
        Ok(micro)
    }

    /// A step, and the one behind it seen to.
    pub(super) fn run(&mut self) -> Result<()> {
        let own = [self.take()?];
        let next = self.coming.insert(self.batch()?);
        self.trainer.step_ahead(&own, std::slice::from_ref(next)).map(drop)
    }

    /// A step with nothing behind it.
    pub(super) fn last(&mut self) -> Result<()> {
        let own = [self.take()?];
        self.trainer.step(&own).map(drop)
    }
}

/// Slots for the batches under way, which hold numbers in place of an image encoder's. They are handed out again and again.
fn slots(c: &Config, batch: usize, device: &Device) -> Result<Feed> {
    let sizes @ [n, w] = [c.image_tokens(), c.vit_width];
    // As a cache keeps them if nothing else is said.
    let storage = Storage::F16;
    let feed = Feed::new(device, storage, sizes)?;
    let values = (0..(n * w) as u32).map(|i| (i % 1009) as f32 / 504.0 - 1.0).collect();
    let bytes = Tensor::new::<f32>(values, &sizes)?.stored(storage)?;
    let mut slots = (0..3 * batch).map(|_| feed.slot()).collect::<Result<Vec<_>>>()?;
    slots.iter_mut().for_each(|slot| slot.bytes_mut().copy_from_slice(&bytes));
    Ok(feed)
}
