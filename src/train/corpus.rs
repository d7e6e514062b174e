//! The captioned pictures of a run, all data sets end to end.

use super::config::{Config, DataSource};
use crate::data::{Dataset, Image, Order, Pair, Sample};
use crate::{Error, Result};

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
    pub(super) fn sample(&self, number: usize) -> Option<&Sample> {
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
