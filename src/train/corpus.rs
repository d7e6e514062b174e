//! The captioned pictures of a run, all data sets end to end, and how one of them becomes a training sample.
//!
//! A sample depends on (seed, micro-batch, index) alone: crop and flip are drawn from them, never from a thread's state.

use super::cache::{Cache, Record, Source, View};
use super::config::{Config, DataSource};
use super::trainer::Micro;
use crate::data::random::Draws;
use crate::data::{Batch, Dataset, Image, Order, Pair, Sample};
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
    /// Its number among all pictures.
    pub picture: usize,
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

    /// Pictures of all data sets.
    pub fn pictures(&self) -> usize {
        self.sets.iter().map(|s| s.samples.len()).sum()
    }

    /// Picture `number` of all, to be read.
    pub fn picture(&self, number: usize) -> Option<Image> {
        self.sample(number).map(Sample::image)
    }

    /// Picture `number` of all.
    fn sample(&self, number: usize) -> Option<&Sample> {
        let mut left = number;
        for set in &self.sets {
            match left.checked_sub(set.samples.len()) {
                Some(rest) => left = rest,
                None => return set.samples.get(left),
            }
        }
        None
    }

    /// blake3 of the names of a data set's pictures.
    pub fn pictures_of(&self, set: usize) -> String {
        let mut hash = blake3::Hasher::new();
        for sample in self.sets.get(set).map(|s| s.samples.as_slice()).unwrap_or_default() {
            hash.update(sample.name.as_bytes()).update(&[0]);
        }
        hash.finalize().to_hex().to_string()
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
        let before: usize = self.sets[..*set].iter().map(|s| s.samples.len()).sum();
        Some(Entry { sample, picture: before + pair.sample as usize, caption, image_id })
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
