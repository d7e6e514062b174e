//! The captioned pictures of a run, all data sets end to end, and how one of them becomes a training sample.
//!
//! A sample depends on (seed, micro-batch, index) alone: crop and flip are drawn from them, never from a thread's state.

use super::config::{Config, DataSource};
use super::trainer::Micro;
use crate::data::random::Draws;
use crate::data::{Batch, Dataset, Order, Pair, Sample};
use crate::nn;
use crate::tensor::{Device, Tensor};
use crate::vision::{self, Augment, Crop, Normalise, Resampling, Turn};
use crate::{Error, Kind, Result};
use rayon::prelude::*;
use std::path::Path;
use std::sync::Arc;

/// Of the draws of [`Order`] and these, each site has its own.
const SITE_CROP: u32 = 3;

/// Caption to ids, [CLS] to [SEP], cut to the model's length.
pub type Tokenize = Arc<dyn Fn(&str) -> Vec<u32> + Send + Sync>;

pub struct Corpus {
    pub names: Vec<String>,
    pub sets: Vec<Dataset>,
    /// A data set and a pair of it, by the index that [`Order`] counts.
    pairs: Vec<(usize, Pair)>,
    /// A number for every picture id, different in different data sets.
    numbers: Vec<Vec<i64>>,
}

/// A caption with its picture.
pub struct Entry<'a> {
    pub sample: &'a Sample,
    pub caption: &'a str,
    pub image_id: i64,
}

impl Corpus {
    pub fn read(sources: &[DataSource], missing_share: f64) -> Result<Corpus> {
        let mut sets = Vec::new();
        for source in sources {
            let (Some(captions), Some(images)) = (&source.captions, &source.images) else { continue };
            sets.push(Dataset::read(captions, images, missing_share)?);
        }
        if sets.is_empty() {
            return Err(Error::argument("train", "data", "pictures and captions", "none")
                .fix("give --images DIR --captions FILE, or data sets in the configuration"));
        }
        let names = sources.iter().map(|s| s.name.clone()).collect();
        let (mut pairs, mut numbers, mut first) = (Vec::new(), Vec::new(), 0i64);
        for (s, set) in sets.iter().enumerate() {
            pairs.extend(set.pairs().into_iter().map(|p| (s, p)));
            let own: Vec<i64> = set.image_numbers().into_iter().map(|n| first + i64::from(n)).collect();
            first = own.iter().max().map_or(first, |n| n + 1);
            numbers.push(own);
        }
        Ok(Corpus { names, sets, pairs, numbers })
    }

    /// One caption of each of at most `pictures` pictures, the first: what an evaluation goes over.
    pub fn first_captions(&self, pictures: usize) -> Vec<usize> {
        let firsts = self.pairs.iter().enumerate().filter(|(_, (_, p))| p.caption == 0);
        firsts.map(|(i, _)| i).take(pictures).collect()
    }

    /// Captions of each data set.
    pub fn sizes(&self) -> Vec<usize> {
        self.sets.iter().map(|s| s.report.captions).collect()
    }

    pub fn get(&self, index: usize) -> Option<Entry<'_>> {
        let (set, pair) = self.pairs.get(index)?;
        let sample = self.sets.get(*set)?.samples.get(pair.sample as usize)?;
        let caption = sample.captions.get(pair.caption as usize)?;
        let image_id = *self.numbers.get(*set)?.get(pair.sample as usize)?;
        Some(Entry { sample, caption, image_id })
    }

    pub fn captions(&self) -> impl Iterator<Item = &str> {
        self.sets.iter().flat_map(|s| s.samples.iter()).flat_map(|s| s.captions.iter().map(String::as_str))
    }

    /// blake3 of a data set's picture names, ids and captions: whether it is the one a run began with.
    pub fn fingerprint(&self, set: usize) -> String {
        let mut hash = blake3::Hasher::new();
        let mut add = |text: &str| {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        };
        for sample in self.sets.get(set).map(|s| s.samples.as_slice()).unwrap_or_default() {
            add(&sample.name);
            add(&sample.image_id);
            add(&sample.captions.len().to_string());
            sample.captions.iter().for_each(|c| add(c));
        }
        hash.finalize().to_hex().to_string()
    }

    /// The order that training walks in.
    pub fn order(&self, config: &Config) -> Result<Order> {
        let ratios = config.ratios().filter(|r| !r.is_empty());
        Order::shuffled(config.seed, config.batch, &self.sizes(), ratios.as_deref())
    }
}

/// One sample as the trainer takes it.
pub struct Item {
    /// `[S, S, 3]`
    pub pixels: Vec<u8>,
    pub text: Vec<u32>,
    pub image_id: i64,
    pub name: String,
}

/// Turns entries of a corpus into samples.
pub struct Loading {
    pub corpus: Arc<Corpus>,
    pub tokenize: Tokenize,
    pub image_size: usize,
    pub seed: u64,
    /// Where batches are put.
    pub device: Device,
    /// None: whole pictures, resized exactly, as in evaluation.
    pub augment: Option<(Augment, Resampling)>,
}

impl Loading {
    /// Entry `index` as it looks in micro-batch `micro`.
    pub fn load(&self, index: usize, micro: u64) -> Result<Item> {
        let entry = self.corpus.get(index).ok_or_else(|| {
            Error::new(Kind::Argument, "load samples").about("index").expected("one of the data").got(index)
        })?;
        let pixels = self.pixels(&entry.sample.image, index, micro)?;
        let text = (self.tokenize)(entry.caption);
        Ok(Item { pixels, text, image_id: entry.image_id, name: entry.sample.name.clone() })
    }

    fn pixels(&self, path: &Path, index: usize, micro: u64) -> Result<Vec<u8>> {
        let picture = vision::load(path, Turn::AsStored)?;
        let (crop, how) = match &self.augment {
            None => (Crop::whole(&picture), Resampling::Exact),
            Some((augment, how)) => {
                let draws = Draws::new(self.seed, [SITE_CROP, micro as u32, index as u32]);
                let mut n = 0;
                let word = || {
                    n += 1;
                    draws.bits(n) as u32
                };
                (vision::random_crop(picture.width, picture.height, augment, word)?, *how)
            }
        };
        let small = vision::resize_crop(&picture, &crop, self.image_size, self.image_size, how)?;
        Ok(small.rgb)
    }

    /// A batch of samples as one micro-batch.
    pub fn micro(&self, batch: Batch<Item>) -> Result<Micro> {
        let (n, s) = (batch.items.len(), self.image_size);
        let mut pixels: Vec<u8> = Vec::with_capacity(n * 3 * s * s);
        let (mut text, mut ids, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for item in batch.items {
            pixels.extend_from_slice(&item.pixels);
            text.push(item.text);
            ids.push(item.image_id);
            names.push(item.name);
        }
        let image = self.planes(&pixels)?;
        Ok(Micro { image, text, image_id: Some(ids), names })
    }

    /// Normalised planes [n,3,S,S] where they are to be computed with.
    fn planes(&self, pixels: &[u8]) -> Result<Tensor> {
        let (s, normalise) = (self.image_size, Normalise::default());
        if let Device::Gpu(gpu) = &self.device {
            return nn::pictures(gpu, pixels, s, normalise.mean, normalise.std);
        }
        let mut planes = vec![0f32; pixels.len()];
        let pictures = planes.par_chunks_mut(3 * s * s).zip(pixels.par_chunks(3 * s * s));
        pictures.try_for_each(|(to, rgb)| normalise.write(&vision::Picture::new(s, s, rgb.to_vec())?, to))?;
        Tensor::new(planes, &[pixels.len() / (3 * s * s), 3, s, s])
    }
}
