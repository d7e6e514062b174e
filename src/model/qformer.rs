//! The Q-Former: BERT whose query rows also attend to an image, over packed rows.

use super::{Config, Layout, sites};
use crate::nn::{Builder, Id, Init, LayerNorm, Linear, Pass, Unnormed};
use crate::ops::{self, Gelu, Heads, Options, Weight};
use crate::tensor::Tensor;
use crate::{Error, Result};

const EPS: f64 = 1e-12;

pub struct Qformer {
    /// What it has for texts; a second stage has none of it.
    words: Option<Words>,
    pub norm: LayerNorm,
    pub layers: Vec<Layer>,
    pub heads: usize,
    pub scale: f64,
}

/// Embeddings of texts, and the head that predicts them.
pub struct Words {
    pub word: Id,
    pub position: Id,
    transform: Linear,
    transform_norm: LayerNorm,
    head_bias: Id,
}

pub struct Layer {
    pub attention: Attention,
    pub cross: Option<Attention>,
    /// None in a second stage.
    text: Option<FeedForward>,
    pub query: FeedForward,
}

pub struct Attention {
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub dense: Linear,
    pub norm: LayerNorm,
}

pub struct FeedForward {
    pub up: Linear,
    pub down: Linear,
    pub norm: LayerNorm,
}

/// Keys and values of the images, a pair for every layer with cross-attention.
pub type ImageKeys = Vec<Option<(Tensor, Tensor)>>;

/// Sees a pass of the Q-Former go by.
pub trait Observer {
    /// Keys and values of a layer's self-attention.
    fn own(&mut self, _keys: Tensor, _values: Tensor) {}

    /// Queries, keys and values of a layer's cross-attention, and its result, which may be replaced.
    fn cross(&mut self, _layer: usize, _of: [&Tensor; 3], y: Tensor) -> Result<Tensor> {
        Ok(y)
    }
}

impl Observer for () {}

/// The keys and values of every layer's self-attention (decoding keeps them).
impl Observer for Vec<(Tensor, Tensor)> {
    fn own(&mut self, keys: Tensor, values: Tensor) {
        self.push((keys, values));
    }
}

/// Image tokens behind `ln_vision`.
pub enum ImageTokens<'a> {
    /// Normalised rows of a frozen image encoder, without the affine part, which `norm` holds.
    Frozen {
        normalized: Tensor,
        norm: &'a LayerNorm,
    },
    Tracked(Tensor),
}

impl Qformer {
    /// For images and texts.
    pub fn new(b: &mut Builder, c: &Config) -> Qformer {
        let (bert, normal) = ("Qformer.bert", Init::Normal(0.02));
        let word = b.dense(format!("{bert}.embeddings.word_embeddings.weight"), &[c.vocab, c.hidden], normal);
        let position =
            b.dense(format!("{bert}.embeddings.position_embeddings.weight"), &[c.max_pos, c.hidden], normal);
        let norm = b.norm(&format!("{bert}.embeddings.LayerNorm"), c.hidden, EPS);
        let layers = (0..c.layers).map(|i| Layer::new(b, c, i, true)).collect();
        let head = "Qformer.cls.predictions";
        let words = Words {
            word,
            position,
            transform: b.linear(&format!("{head}.transform.dense"), c.hidden, c.hidden),
            transform_norm: b.norm(&format!("{head}.transform.LayerNorm"), c.hidden, EPS),
            head_bias: b.dense(format!("{head}.bias"), &[c.vocab], Init::Constant(0.0)),
        };
        Qformer::of(c, Some(words), norm, layers)
    }

    /// For images alone: the query side, which a language model reads.
    pub fn of_queries(b: &mut Builder, c: &Config) -> Qformer {
        let norm = b.norm("Qformer.bert.embeddings.LayerNorm", c.hidden, EPS);
        let layers = (0..c.layers).map(|i| Layer::new(b, c, i, false)).collect();
        Qformer::of(c, None, norm, layers)
    }

    fn of(c: &Config, words: Option<Words>, norm: LayerNorm, layers: Vec<Layer>) -> Qformer {
        Qformer { words, norm, layers, heads: c.heads, scale: ((c.hidden / c.heads) as f64).powf(-0.5) }
    }

    /// What texts need, or an error where there is nothing of it.
    pub fn words(&self) -> Result<&Words> {
        self.words.as_ref().ok_or_else(super::no_texts)
    }

    /// Keys and values of all images: once per step, for every pass.
    pub fn image_keys(&self, pass: &Pass, tokens: &ImageTokens) -> Result<ImageKeys> {
        let project = |l: &Linear| match tokens {
            ImageTokens::Frozen { normalized, norm } => {
                let [g, b, w, wb] = [norm.weight, norm.bias, l.weight, l.bias].map(|id| pass.master(id));
                let weight = Weight::AfterNorm { norm: [&g, &b], layer: [&w, &wb] };
                ops::linear(normalized, weight, Options::default())
            }
            ImageTokens::Tracked(x) => l.forward(pass, x),
        };
        let pair =
            |l: &Layer| l.cross.as_ref().map(|c| Ok((project(&c.key)?, project(&c.value)?))).transpose();
        self.layers.iter().map(pair).collect()
    }

    /// Input rows: the query tokens `groups` times, then word and position embeddings of texts; one norm, dropout.
    pub fn embed(
        &self,
        pass: &Pass,
        queries: &Tensor,
        groups: usize,
        texts: &[&[u32]],
        site: u32,
    ) -> Result<Tensor> {
        let (_, q, c) = match queries.shape().sizes() {
            &[one, q, c] => (one, q, c),
            _ => {
                return Err(Error::argument(
                    "embed",
                    "query_tokens",
                    "[1, queries, hidden]",
                    queries.shape(),
                ));
            }
        };
        let index: Vec<u32> = (0..groups).flat_map(|_| 0..q as u32).collect();
        let queries = ops::gather_rows(&queries.reshape(&[q, c])?, &index)?;
        if texts.is_empty() && self.words.is_none() {
            let x = self.norm.forward(pass, &queries)?;
            return ops::dropout(&x, pass.dropout(site));
        }
        let words = self.words()?;
        let ids: Vec<u32> = texts.concat();
        let places: Vec<u32> = texts.iter().flat_map(|t| 0..t.len() as u32).collect();
        let word = ops::embedding(&pass.param(words.word), &ids, Some(super::PAD))?;
        let text = ops::add(&word, &ops::embedding(&pass.param(words.position), &places, None)?)?;
        let x = self.norm.forward(pass, &ops::concat_rows(&[&queries, &text])?)?;
        ops::dropout(&x, pass.dropout(site))
    }

    /// All layers over the rows of a layout; `images` may be empty if there are no query rows.
    pub fn forward(
        &self,
        pass: &Pass,
        x: Tensor,
        layout: &Layout,
        images: &ImageKeys,
        site: u32,
    ) -> Result<Tensor> {
        self.forward_with(pass, x, layout, images, site, &mut ())
    }

    /// All layers, under the eyes of an observer.
    pub fn forward_with(
        &self,
        pass: &Pass,
        x: Tensor,
        layout: &Layout,
        images: &ImageKeys,
        site: u32,
        observer: &mut impl Observer,
    ) -> Result<Tensor> {
        let mut x = x;
        for (i, layer) in self.layers.iter().enumerate() {
            let site = sites::layer(site, i);
            let last = layout.last.as_ref().filter(|_| i + 1 == self.layers.len());
            let reads = last.map(|l| ops::gather_rows(&x, &l.keep)).transpose()?;
            let (rows, segments) =
                (reads.as_ref().unwrap_or(&x), last.map_or(&layout.segments, |l| &l.segments));
            let a = &layer.attention;
            let [q, k, v] = if reads.is_some() {
                let q = a.query.forward(pass, rows)?;
                [(q, 0), (a.key.forward(pass, &x)?, 0), (a.value.forward(pass, &x)?, 0)]
            } else {
                pass.linears(&x, [&a.query, &a.key, &a.value])?
            };
            let heads = [&q, &k, &v].map(|(tensor, column)| Heads { tensor, column: *column });
            let y = ops::attention(heads, segments, self.heads, self.scale, pass.dropout(site.attention))?;
            observer.own(k.0, v.0);
            let y = a.output(pass, &y, rows, site.output)?;
            let mut query = y.slice_rows(0..layout.query_rows)?;
            let text = y.slice_rows(layout.query_rows..y.rows().0)?;
            if let Some(c) = layer.cross.as_ref().filter(|_| layout.query_rows > 0) {
                let (k, v) = images.get(i).and_then(Option::as_ref).ok_or_else(|| {
                    Error::argument("Q-Former", "image", "image tokens for the query rows", "none")
                })?;
                let q = c.query.forward(pass, &query)?;
                let heads = [&q, k, v].map(|tensor| Heads { tensor, column: 0 });
                let y =
                    ops::attention(heads, &layout.cross, self.heads, self.scale, pass.dropout(site.cross))?;
                let y = observer.cross(i, [&q, k, v], y)?;
                query = c.output(pass, &y, &query, site.cross_output)?;
            }
            let query = layer.query.forward(pass, &query, site.query)?;
            x = match &layer.text {
                Some(feed) => ops::concat_rows(&[&query, &feed.forward(pass, &text, site.text)?])?,
                None => query,
            };
        }
        Ok(x)
    }

    /// Logits for a loss: on a GPU with columns behind the vocabulary's that hold nothing.
    pub fn padded_logits(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let words = self.words()?;
        pass.linear_padded(&words.transformed(pass, x)?, words.word, words.head_bias)
    }

    /// Logits over the vocabulary; the decoder shares the word embeddings.     x [R,C] -> [R,V]
    pub fn logits(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let words = self.words()?;
        pass.linear(&words.transformed(pass, x)?, words.word, words.head_bias)
    }
}

impl Words {
    /// What the vocabulary's rows are compared with.
    fn transformed(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        self.transform_norm.forward(pass, &pass.linear_gelu(x, &self.transform)?)
    }

    /// Logits over the vocabulary of rows that are to be normalised.
    pub fn logits(&self, pass: &Pass, x: &Unnormed) -> Result<Tensor> {
        let (_, branch) =
            pass.linear_of(x, [self.transform.weight, self.transform.bias], Some(Gelu::Exact))?;
        let x = Unnormed { norm: &self.transform_norm, branch, stream: None };
        Ok(pass.linear_of(&x, [self.word, self.head_bias], None)?.1)
    }
}

impl Layer {
    /// The feed-forward of text rows.
    pub fn text(&self) -> Result<&FeedForward> {
        self.text.as_ref().ok_or_else(super::no_texts)
    }

    fn new(b: &mut Builder, c: &Config, i: usize, text: bool) -> Layer {
        let name = format!("Qformer.bert.encoder.layer.{i}");
        Layer {
            attention: Attention::within(b, &format!("{name}.attention"), c.hidden),
            cross: c
                .has_cross(i)
                .then(|| Attention::new(b, &format!("{name}.crossattention"), c.hidden, c.vit_width)),
            text: text.then(|| FeedForward::new(b, &name, "", c)),
            query: FeedForward::new(b, &name, "_query", c),
        }
    }
}

impl Attention {
    /// Queries, keys and values of the same rows: they are computed as one.
    fn within(b: &mut Builder, name: &str, hidden: usize) -> Attention {
        let attention = Attention::new(b, name, hidden, hidden);
        b.beside([attention.query, attention.key, attention.value]);
        attention
    }

    fn new(b: &mut Builder, name: &str, hidden: usize, keys: usize) -> Attention {
        Attention {
            query: b.linear(&format!("{name}.self.query"), hidden, hidden),
            key: b.linear(&format!("{name}.self.key"), keys, hidden),
            value: b.linear(&format!("{name}.self.value"), keys, hidden),
            dense: b.linear(&format!("{name}.output.dense"), hidden, hidden),
            norm: b.norm(&format!("{name}.output.LayerNorm"), hidden, EPS),
        }
    }

    pub fn output(&self, pass: &Pass, y: &Tensor, residual: &Tensor, site: u32) -> Result<Tensor> {
        self.norm.after(pass, &self.dense.forward(pass, y)?, residual, pass.dropout(site))
    }
}

impl FeedForward {
    fn new(b: &mut Builder, layer: &str, kind: &str, c: &Config) -> FeedForward {
        FeedForward {
            up: b.linear(&format!("{layer}.intermediate{kind}.dense"), c.hidden, c.ffn),
            down: b.linear(&format!("{layer}.output{kind}.dense"), c.ffn, c.hidden),
            norm: b.norm(&format!("{layer}.output{kind}.LayerNorm"), c.hidden, EPS),
        }
    }

    pub fn forward(&self, pass: &Pass, x: &Tensor, site: u32) -> Result<Tensor> {
        let y = self.down.forward(pass, &pass.linear_gelu(x, &self.up)?)?;
        self.norm.after(pass, &y, x, pass.dropout(site))
    }
}
