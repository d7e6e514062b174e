//! How an entry of a corpus becomes a training sample.
//!
//! A sample depends on (seed, micro-batch, index) alone: crop and flip are drawn from them, never from a thread's state.

use super::cache::{Cache, Record, Source, View};
use super::corpus::Corpus;
use super::trainer::Micro;
use crate::data::Batch;
use crate::data::random::Draws;
use crate::model::{self, Model};
use crate::nn::Params;
use crate::ops;
use crate::tensor::{Device, Tensor};
use crate::vision::{self, Augment, Normalise, Photo, RandAugment, Resampling, Turn};
use crate::{Error, Kind, Result};
use std::sync::Arc;

/// Of the draws of [`Order`], of the cache and these, each site has its own: crops of a run, and of views that are kept.
const SITE_CROP: u32 = 3;
const SITE_VIEW: u32 = 5;
/// Draws of RandAugment stand behind those of the crop, which are fewer than this.
const FIRST_CHANGE: u32 = 64;

/// Caption to ids, `[CLS]` to `[SEP]`, cut to the model's length.
pub type Tokenize = Arc<dyn Fn(&str) -> Vec<u32> + Send + Sync>;

/// What is seen of a sample.
pub enum Seen {
    /// `[S, S, 3]`
    Pixels(Vec<u8>),
    /// What the cache holds instead.
    Kept(Record),
    /// That, damaged: its number and its picture's view, to compute it again.
    Damaged(usize, View),
}

/// One sample as the trainer takes it.
pub struct Item {
    pub image: Seen,
    pub text: Vec<u32>,
    pub image_id: i64,
    pub name: String,
}

/// Turns entries of a corpus into samples.
#[derive(Clone)]
pub struct Loading {
    pub corpus: Arc<Corpus>,
    pub tokenize: Tokenize,
    pub image_size: usize,
    pub turn: Turn,
    pub seed: u64,
    /// Where batches are put.
    pub device: Device,
    /// None: whole pictures, resized exactly, as in evaluation.
    pub augment: Option<(Augment, Resampling, Option<RandAugment>)>,
    /// Where image tokens are taken from instead of pictures.
    pub cache: Option<Arc<Cache>>,
}

impl Loading {
    /// Entry `index` as it looks in micro-batch `micro`.
    pub fn load(&self, index: usize, micro: u64) -> Result<Item> {
        let entry = self.corpus.get(index).ok_or_else(|| {
            Error::new(Kind::Argument, "load samples").about("index").expected("one of the data").got(index)
        })?;
        let image = match &self.cache {
            Some(cache) => {
                let view = cache.choose(self.seed, micro, index);
                let record = entry.picture * cache.views() + view;
                let named = |e: Error| e.about(entry.sample.image().path().display().to_string());
                match cache.load(record).map_err(named)? {
                    Some(kept) => Seen::Kept(kept),
                    None => Seen::Damaged(record, self.view(entry.picture, view)?),
                }
            }
            None => {
                let photo = entry.sample.image().photo(self.turn)?;
                Seen::Pixels(self.pixels(&photo, [SITE_CROP, micro as u32, index as u32])?)
            }
        };
        let text = (self.tokenize)(entry.caption);
        Ok(Item { image, text, image_id: entry.image_id, name: entry.sample.name.clone() })
    }

    /// Computes the tokens of a batch's damaged records again; returns the names of their pictures.
    pub fn repair(&self, batch: &mut Batch<Item>, encoder: (&Model, &Params)) -> Result<Vec<String>> {
        let mut again = Vec::new();
        for item in &mut batch.items {
            if let (Some(cache), Seen::Damaged(record, view)) = (&self.cache, &item.image) {
                item.image = Seen::Kept(cache.record_of(&cache.repair(*record, view, self, encoder)?)?);
                again.push(item.name.clone());
            }
        }
        Ok(again)
    }

    /// One of the views of a picture that are kept.
    pub fn view(&self, picture: usize, view: usize) -> Result<View> {
        let sample = self.corpus.sample(picture).ok_or_else(|| {
            Error::new(Kind::Argument, "load samples")
                .about("picture")
                .expected("one of the data")
                .got(picture)
        })?;
        let image = sample.image();
        let file = Source::file(image.file())?;
        let photo = image.photo(self.turn)?;
        let pixels = self.pixels(&photo, [SITE_VIEW, view as u32, picture as u32])?;
        Ok(View { pixels, source: Source::new(file, photo.hash()) })
    }

    /// `draw`: which random crop.
    fn pixels(&self, photo: &Photo, draw: [u32; 3]) -> Result<Vec<u8>> {
        let Some((augment, how, changes)) = &self.augment else {
            return Ok(photo
                .resized(&photo.whole(), self.image_size, self.image_size, Resampling::Exact)?
                .rgb);
        };
        let draws = Draws::new(self.seed, draw);
        let mut n = 0;
        let word = || {
            n += 1;
            draws.bits(n) as u32
        };
        let (width, height) = photo.size();
        let crop = vision::random_crop(width, height, augment, word)?;
        let mut small = photo.resized(&crop, self.image_size, self.image_size, *how)?;
        if let Some(changes) = changes {
            let mut n = FIRST_CHANGE;
            changes.apply(&mut small, || {
                n += 1;
                draws.unit(n)
            });
        }
        Ok(small.rgb)
    }

    /// A batch of samples as one micro-batch.
    pub fn micro(&self, batch: Batch<Item>) -> Result<Micro> {
        let (mut pixels, mut records) = (Vec::new(), Vec::new());
        let (mut text, mut ids, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for item in batch.items {
            match item.image {
                Seen::Pixels(own) => pixels.extend_from_slice(&own),
                Seen::Kept(record) => records.push(record),
                Seen::Damaged(..) => {
                    return Err(Error::argument(
                        "train",
                        "batch",
                        "records that were repaired",
                        "a damaged one",
                    ));
                }
            }
            text.push(item.text);
            ids.push(item.image_id);
            names.push(item.name);
        }
        let image = match &self.cache {
            Some(cache) => model::Image::Tokens(cache.tensor(records)?),
            None => model::Image::Pixels(self.planes(&pixels)?),
        };
        Ok(Micro { image, text, image_id: Some(ids), names })
    }

    /// Normalised planes [n,3,S,S] where they are to be computed with.
    pub fn planes(&self, pixels: &[u8]) -> Result<Tensor> {
        let Normalise { mean, std } = Normalise::default();
        ops::pixel_planes(&self.device, pixels, self.image_size, mean, std)
    }
}
