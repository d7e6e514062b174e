//! Captions of images: rows of all open hypotheses run together, keys and values are kept.
//!
//! A cache holds, per layer, the keys and values of every image's query rows and, behind them, of every token run so
//! far, written where they stay. A hypothesis is a list of cache rows: the query rows of its image and its own tokens. So
//! beams share what they have in common, nothing is copied when beams are reordered, and a token is computed once.
//!
//! Dense layers are batch-invariant (each row's sum in an order of its own) and attention reads a row's list alone: a
//! caption is the same, bit for bit, in any batch.

use super::beams::{Hypothesis, Next, Outlook, Search, Special};
use super::features::Images;
use super::options::Options;
use super::{Model, SEP};
use crate::nn::{Params, Pass, Unnormed};
use crate::ops::{self, Gelu};
use crate::tensor::Tensor;
use crate::{Error, Result};

const OP: &str = "generate";

/// Keys and values of a layer, and how many rows there are so far.
struct Cache {
    layers: Vec<(Tensor, Tensor)>,
    rows: u32,
}

impl Cache {
    /// Of the query rows of images, with room for so many tokens.
    fn new(images: &Images, tokens: usize) -> Result<Cache> {
        let rows = images.past.first().map_or(0, |(k, _)| k.rows().0);
        let room = |x: &Tensor| ops::with_room(x, rows + tokens);
        let layers = images.past.iter().map(|(k, v)| Ok((room(k)?, room(v)?))).collect::<Result<_>>()?;
        Ok(Cache { layers, rows: rows as u32 })
    }
}

/// An open hypothesis: the cache rows it sees, and the token to run next.
#[derive(Clone)]
struct Row {
    seen: Vec<u32>,
    token: u32,
}

impl Model {
    /// The captions of every image, best first. `identities` tell the images apart where numbers are drawn.
    pub fn generate(
        &self,
        params: &Params,
        images: &Images,
        options: &Options,
        identities: &[u32],
    ) -> Result<Vec<Vec<Hypothesis>>> {
        options.check(self.config.vocab, self.config.max_pos)?;
        if identities.len() != images.count {
            let want = format!("one for each of {} images", images.count);
            return Err(Error::argument(OP, "identities", want, identities.len()));
        }
        let pass = Pass::inference(params).batch_invariant();
        let special = Special { bos: self.config.bos(), eos: SEP };
        let mut searches: Vec<Search> =
            identities.iter().map(|id| Search::new(options, special, *id)).collect();
        let mut open = self.first_rows(images);
        let mut cache = Cache::new(images, images.count * options.most_rows())?;
        let best = options.enough().map(|k| k.min(self.config.vocab));
        for place in 0..options.max_length {
            let rows: Vec<&mut Row> = open.iter_mut().flatten().collect();
            if rows.is_empty() {
                break;
            }
            let logits = self.run(&pass, rows, place, &mut cache)?;
            let mut outlooks = match best {
                Some(k) => ops::top_k(&logits, k)?.into_iter().map(Outlook::Best).collect::<Vec<_>>(),
                None => self.split(&logits)?.map(Outlook::All).collect(),
            }
            .into_iter();
            for (search, rows) in searches.iter_mut().zip(&mut open) {
                let own: Vec<Outlook> = outlooks.by_ref().take(rows.len()).collect();
                if !own.is_empty() {
                    let next = search.advance(own);
                    *rows = next
                        .iter()
                        .map(|n: &Next| Row { token: n.token, ..rows[n.parent].clone() })
                        .collect();
                }
            }
        }
        Ok(searches.into_iter().map(Search::finish).collect())
    }

    /// Logits after every token of given captions `[L][V]`, which begin with `[DEC]`: what `generate` sees on the way.
    pub fn caption_logits(
        &self,
        params: &Params,
        images: &Images,
        captions: &[Vec<u32>],
    ) -> Result<Vec<Vec<Vec<f64>>>> {
        let longest = captions.iter().map(Vec::len).max().unwrap_or(0);
        if captions.len() != images.count || longest > self.config.max_pos {
            let want = format!("{} captions of at most {} tokens", images.count, self.config.max_pos);
            return Err(Error::argument(
                OP,
                "captions",
                want,
                format!("{} of up to {longest}", captions.len()),
            ));
        }
        if let Some(id) = captions.iter().flatten().find(|id| **id as usize >= self.config.vocab) {
            return Err(Error::argument(OP, "captions", format!("ids below {}", self.config.vocab), id));
        }
        let pass = Pass::inference(params).batch_invariant();
        let mut rows = self.first_rows(images);
        let mut cache = Cache::new(images, captions.iter().map(Vec::len).sum())?;
        let mut all = vec![Vec::new(); captions.len()];
        for place in 0..longest {
            let mut open = Vec::new();
            for (row, ids) in rows.iter_mut().flatten().zip(captions).filter(|(_, ids)| ids.len() > place) {
                row.token = ids[place];
                open.push(row);
            }
            let logits = self.run(&pass, open, place, &mut cache)?;
            let which = captions.iter().enumerate().filter(|(_, ids)| ids.len() > place).map(|(i, _)| i);
            for (i, logits) in which.zip(self.split(&logits)?) {
                all[i].push(logits);
            }
        }
        Ok(all)
    }

    /// A row of [DEC] for every image.
    fn first_rows(&self, images: &Images) -> Vec<Vec<Row>> {
        let q = self.config.num_query as u32;
        let row = |i: u32| Row { seen: (i * q..(i + 1) * q).collect(), token: self.config.bos() };
        (0..images.count as u32).map(|i| vec![row(i)]).collect()
    }

    /// Logits [R,V], row by row.
    fn split(&self, logits: &Tensor) -> Result<impl Iterator<Item = Vec<f64>>> {
        let all = logits.to_f64()?;
        let v = self.config.vocab;
        Ok((0..all.len() / v).map(move |i| all[i * v..(i + 1) * v].to_vec()))
    }

    /// Runs the tokens of these rows, all at one place of their captions; returns their logits [R,V].
    fn run(&self, pass: &Pass, rows: Vec<&mut Row>, place: usize, cache: &mut Cache) -> Result<Tensor> {
        let tokens: Vec<(u32, u32)> = rows.iter().map(|r| (r.token, place as u32)).collect();
        let first = cache.rows as usize;
        let mut lists = Vec::with_capacity(rows.len());
        for row in rows {
            row.seen.push(cache.rows);
            cache.rows += 1;
            lists.push(row.seen.clone());
        }
        let (f, lists) = (&self.qformer, ops::Lists::new(lists));
        let words = f.words()?;
        let sum = ops::embedding_sum([&pass.param(words.word), &pass.param(words.position)], &tokens)?;
        let mut x = Unnormed { norm: &f.norm, branch: sum, stream: None };
        for (layer, (keys, values)) in f.layers.iter().zip(&mut cache.layers) {
            let (a, feed) = (&layer.attention, layer.text()?);
            let (stream, q) = pass.linear_cached(&x, [&a.query, &a.key, &a.value], [keys, values], first)?;
            let y = ops::attend_rows([&q, keys, values], &lists, f.heads, f.scale)?;
            x = Unnormed { norm: &a.norm, branch: a.dense.forward(pass, &y)?, stream: Some(stream) };
            let (stream, up) = pass.linear_of(&x, [feed.up.weight, feed.up.bias], Some(Gelu::Exact))?;
            x = Unnormed { norm: &feed.norm, branch: feed.down.forward(pass, &up)?, stream: Some(stream) };
        }
        words.logits(pass, &x)
    }
}
