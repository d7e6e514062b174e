//! Retrieval over a whole data set: every picture's features once, the candidates of all searches both ways matched picture
//! by picture, so that the keys and values of one picture at a time are in memory.

use crate::model::{Images, Retrieval, retrieval_scores};
use crate::nn::Pass;
use crate::pretrained::Pretrained;
use crate::pretrained::pictures::{self, Seen};
use crate::pretrained::scores::Texts;
use crate::tensor::{Chunk, Tensor};
use crate::{Error, Kind, Result};
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

/// Pairs matched in one pass.
const PAIRS: usize = 64;
/// Pictures whose similarities to all texts are computed at a time.
const ROWS: usize = 16;

/// Pictures to be searched in.
pub struct Gallery {
    /// Tokens of the image encoder [N,W] of each picture, in f32, in a file without a name: they are what takes long.
    tokens: File,
    /// Elements of one picture's tokens.
    size: usize,
    /// Normalised features [I*Q,E].
    proj: Vec<f32>,
    count: usize,
}

impl Gallery {
    /// An empty one.
    pub fn new(model: &Pretrained) -> Result<Gallery> {
        let tokens = tempfile::tempfile().map_err(|e| failed(&e))?;
        let size = model.model.config.image_tokens() * model.model.config.vit_width;
        Ok(Gallery { tokens, size, proj: Vec::new(), count: 0 })
    }

    /// Takes pictures in; returns their features.
    pub fn add(&mut self, model: &Pretrained, seen: &[&Seen]) -> Result<Images> {
        let (pass, m) = (Pass::inference(&model.params), &model.model);
        let mut parts = Vec::new();
        for some in seen.chunks(Chunk::of(model.params.device()).pictures) {
            let (tokens, images) = m.tokens_and_features(&pass, &pictures::planes(model, some)?)?;
            self.tokens.write_all(bytemuck::cast_slice(&tokens.to_f32()?)).map_err(|e| failed(&e))?;
            self.proj.extend(images.proj.to_f32()?);
            self.count += some.len();
            parts.push(images);
        }
        Images::stack(&parts)
    }

    /// The features of a picture again.
    fn images(&self, model: &Pretrained, i: usize) -> Result<Images> {
        let mut tokens = vec![0f32; self.size];
        let at = (i * self.size * 4) as u64;
        self.tokens.read_exact_at(bytemuck::cast_slice_mut(&mut tokens), at).map_err(|e| failed(&e))?;
        let width = model.model.config.vit_width;
        let tokens = Tensor::new(tokens, &[self.size / width, width])?;
        model.model.image_features_of(&Pass::inference(&model.params), &tokens)
    }

    /// How many pictures were taken in.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none was taken in.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The scores of all searches, both ways, the best `k` re-ranked; `done` is called for each picture that is.
    pub fn scores(
        &self,
        model: &Pretrained,
        texts: &Texts,
        k: usize,
        mut done: impl FnMut(),
    ) -> Result<Retrieval> {
        let itc = self.itc(model, texts)?;
        // Which pairs will be asked for depends on itc alone: a first go collects them.
        let mut wanted: Vec<Vec<usize>> = vec![Vec::new(); self.count];
        retrieval_scores(&itc, k, |pairs| {
            pairs.iter().for_each(|(i, t)| wanted[*i].push(*t));
            Ok(vec![0.0; pairs.len()])
        })?;
        let mut itm: HashMap<(usize, usize), f64> = HashMap::new();
        for (i, mut which) in wanted.into_iter().enumerate() {
            which.sort_unstable();
            which.dedup();
            let image = self.images(model, i)?;
            for some in which.chunks(PAIRS) {
                let ids: Vec<Vec<u32>> = some.iter().map(|t| texts.ids[*t].clone()).collect();
                let pairs: Vec<(usize, usize)> = (0..ids.len()).map(|t| (0, t)).collect();
                let pass = Pass::inference(&model.params);
                let logits = model.model.match_pairs(&pass, &image, &ids, &pairs)?.logits.to_f64()?;
                itm.extend(some.iter().enumerate().map(|(n, t)| ((i, *t), logits[2 * n + 1])));
            }
            done();
        }
        retrieval_scores(&itc, k, |pairs| {
            Ok(pairs.iter().map(|p| itm.get(p).copied().unwrap_or(f64::NAN)).collect())
        })
    }

    fn itc(&self, model: &Pretrained, texts: &Texts) -> Result<Vec<Vec<f64>>> {
        let c = &model.model.config;
        let mut all = Vec::with_capacity(self.count);
        for some in self.proj.chunks(ROWS * c.num_query * c.embed_dim) {
            let some = Tensor::new(some.to_vec(), &[some.len() / c.embed_dim, c.embed_dim])?;
            let scores = model.model.itc_scores(&some, &texts.cls)?.to_f64()?;
            all.extend(scores.chunks(texts.ids.len()).map(<[f64]>::to_vec));
        }
        Ok(all)
    }
}

fn failed(e: &std::io::Error) -> Error {
    let folder = std::env::temp_dir();
    Error::new(Kind::Write, "evaluate")
        .about(format!("a temporary file in {}", folder.display()))
        .got(e)
        .fix("free some space there, or name another folder in the environment variable TMPDIR")
}
