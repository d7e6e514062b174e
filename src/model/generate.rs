//! Captions of images: rows of all open hypotheses run together, keys and values are kept.
//!
//! A cache holds, per layer, the keys and values of every image's query rows and, behind them, of every token run so
//! far. A hypothesis is a list of cache rows: the query rows of its image and its own tokens. So beams share what they have
//! in common, nothing is copied when beams are reordered, and a token is computed once.
//!
//! Dense layers are the exact ones (each row's sum in an order of its own) and attention reads a row's list alone: a
//! caption is the same, bit for bit, in any batch.

use super::features::Images;
use super::search::{Hypothesis, Next, Options, Search, Special};
use super::{Model, SEP};
use crate::nn::{Params, Pass};
use crate::ops;
use crate::tensor::Tensor;
use crate::{Error, Result};

const OP: &str = "generate";

/// Keys and values of a layer, and how many rows there are.
struct Cache {
    layers: Vec<(Tensor, Tensor)>,
    rows: u32,
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
        let pass = Pass::inference(params).exact();
        let special = Special { bos: self.config.bos(), eos: SEP };
        let mut searches: Vec<Search> =
            identities.iter().map(|id| Search::new(options, special, *id)).collect();
        let mut open = self.first_rows(images);
        let mut cache =
            Cache { layers: images.past.clone(), rows: (images.count * self.config.num_query) as u32 };
        for place in 0..options.max_length {
            let rows: Vec<&mut Row> = open.iter_mut().flatten().collect();
            if rows.is_empty() {
                break;
            }
            let mut logits = self.run(&pass, rows, place, &mut cache)?.into_iter();
            for (search, rows) in searches.iter_mut().zip(&mut open) {
                let mut own: Vec<Vec<f64>> = logits.by_ref().take(rows.len()).collect();
                if !own.is_empty() {
                    let next = search.advance(&mut own);
                    *rows = next
                        .iter()
                        .map(|n: &Next| Row { token: n.token, ..rows[n.parent].clone() })
                        .collect();
                }
            }
        }
        Ok(searches.into_iter().map(Search::finish).collect())
    }

    /// Logits after every token of given captions [L][V], which begin with `[DEC]`: what `generate` sees on the way.
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
        let pass = Pass::inference(params).exact();
        let mut rows = self.first_rows(images);
        let mut cache =
            Cache { layers: images.past.clone(), rows: (images.count * self.config.num_query) as u32 };
        let mut all = vec![Vec::new(); captions.len()];
        for place in 0..longest {
            let mut open = Vec::new();
            for (row, ids) in rows.iter_mut().flatten().zip(captions).filter(|(_, ids)| ids.len() > place) {
                row.token = ids[place];
                open.push(row);
            }
            let logits = self.run(&pass, open, place, &mut cache)?;
            let which = captions.iter().enumerate().filter(|(_, ids)| ids.len() > place).map(|(i, _)| i);
            for (i, logits) in which.zip(logits) {
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

    /// Runs the tokens of these rows, all at one place of their captions; returns their logits.
    fn run(
        &self,
        pass: &Pass,
        rows: Vec<&mut Row>,
        place: usize,
        cache: &mut Cache,
    ) -> Result<Vec<Vec<f64>>> {
        let ids: Vec<u32> = rows.iter().map(|r| r.token).collect();
        let mut lists = Vec::with_capacity(rows.len());
        for row in rows {
            row.seen.push(cache.rows);
            cache.rows += 1;
            lists.push(row.seen.clone());
        }
        let f = &self.qformer;
        let word = ops::embedding(&pass.param(f.word), &ids, None)?;
        let position = ops::embedding(&pass.param(f.position), &vec![place as u32; ids.len()], None)?;
        let mut x = f.norm.forward(pass, &ops::add(&word, &position)?)?;
        for (layer, (keys, values)) in f.layers.iter().zip(&mut cache.layers) {
            let a = &layer.attention;
            *keys = ops::concat_rows(&[keys, &a.key.forward(pass, &x)?])?;
            *values = ops::concat_rows(&[values, &a.value.forward(pass, &x)?])?;
            let q = a.query.forward(pass, &x)?;
            let y = ops::attend_rows([&q, keys, values], &lists, f.heads, f.scale)?;
            x = layer.text.forward(pass, &a.output(pass, &y, &x, 0)?, 0)?;
        }
        let logits = f.logits(pass, &x)?.to_f64();
        Ok(logits.chunks(self.config.vocab).map(<[f64]>::to_vec).collect())
    }
}
