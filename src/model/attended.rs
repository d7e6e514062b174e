//! Where a number comes from: the attention of the query tokens to the image, and the number's gradient with respect to it.
//!
//! Of a layer with cross-attention, per head: A = softmax(scale q k^T) [Q,N], its result y = A v, so dA = dy v^T.
//! These are what the hooks in LAVIS's Qformer.py give (`get_attention_map`, `get_attn_gradients`); a Grad-CAM is A relu(dA)
//! (LAVIS, `compute_gradcam`; Selvaraju et al., Grad-CAM, 2017). Words never look at the image themselves, queries do: so a
//! map belongs to a number, not to a word. A language model of stage 2 reads the projected query rows, and the gradient of a
//! word's log-probability comes back through them.

use super::qformer::Observer;
use super::{Layout, Model, sites};
use crate::nn::{Params, Pass};
use crate::ops::{self, Targets};
use crate::tensor::{Gradients, Storage, Tape, Tensor};
use crate::{Error, Result};
use std::ops::Range;

const OPERATION: &str = "explain";

/// A number that the model gives an image and a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Number {
    /// The "match" logit of the matching head.
    Match,
    /// The largest cosine of a query's projection and the text's.
    Similarity,
    /// The log-probability of these tokens of a caption, each behind the image and the tokens before it. `[CLS]` is token 0; of a
    /// language model's text, token 0 is its first, behind the image alone.
    Tokens(Range<usize>),
}

/// One layer's cross-attention to an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Attended {
    /// Counted from 0.
    pub layer: usize,
    /// Attention heads.
    pub heads: usize,
    /// Query tokens.
    pub queries: usize,
    /// Image tokens, of which the first is the class token.
    pub tokens: usize,
    /// A `[heads, queries, tokens]`: every row adds up to 1.
    pub attention: Vec<f32>,
    /// d number / d A, of the same shape.
    pub gradient: Vec<f32>,
}

/// A number and all layers with cross-attention.
#[derive(Clone, Debug)]
pub struct Explained {
    /// The number.
    pub value: f64,
    /// From the first layer to the last.
    pub layers: Vec<Attended>,
}

/// Notes every cross-attention, and adds zeros to its result whose gradient is the result's.
struct Eyes<'a> {
    pass: &'a Pass<'a>,
    /// Layer, queries, keys and values.
    seen: Vec<(usize, [Tensor; 3])>,
}

impl Observer for Eyes<'_> {
    fn cross(&mut self, layer: usize, of: [&Tensor; 3], y: Tensor) -> Result<Tensor> {
        let zeros = Tensor::zeros(y.dtype(), y.shape().sizes()).like(&y)?;
        let y = ops::add(&y, &self.pass.input(&zeros, self.seen.len()))?;
        self.seen.push((layer, of.map(Tensor::detach)));
        Ok(y)
    }
}

impl Model {
    /// A number of one image, from its ViT tokens `[N,W]`, and of one text, ids from `[CLS]` to `[SEP]`: its value, and of every
    /// layer with cross-attention the attention and the number's gradient. Errors: another shape; tokens that the text lacks.
    pub fn explain(
        &self,
        params: &Params,
        tokens: &Tensor,
        text: &[u32],
        number: &Number,
    ) -> Result<Explained> {
        let tape = Tape::new();
        let pass = Pass::observing(params, &tape);
        let mut eyes = Eyes { pass: &pass, seen: Vec::new() };
        // Small gradients would vanish in f16, as in training.
        let scale = if pass.storage(self.query_tokens) == Storage::F16 { 1024.0 } else { 1.0 };
        let (y, weights) = match number {
            Number::Match => (self.pair_of(&pass, tokens, text, &mut eyes)?, vec![0.0, 1.0]),
            Number::Similarity => (self.similarity(&pass, tokens, text, &mut eyes)?, vec![1.0]),
            Number::Tokens(range) => {
                let count = range.len() as f64;
                (self.mean_loss(&pass, tokens, text, range, &mut eyes)?, vec![-count])
            }
        };
        let value = y.to_f64()?.iter().zip(&weights).map(|(y, w)| y * w).sum();
        let seed: Vec<f64> = weights.iter().map(|w| w * scale).collect();
        let seed = Tensor::of(y.dtype(), &seed, y.shape().sizes())?.like(&y)?;
        let mut grads = Gradients::new();
        tape.backward_from(&[(&y, seed)], &mut grads)?;
        let attended = |(nth, (layer, of)): (usize, &(usize, [Tensor; 3]))| {
            let dy = match grads.get(params.len() + nth) {
                Some(dy) => Tensor::of_buffer(dy.clone(), of[0].shape().sizes())?.to_f64()?,
                None => vec![0.0; of[0].len()],
            };
            let dy: Vec<f64> = dy.iter().map(|x| x / scale).collect();
            self.attended(*layer, of, &dy)
        };
        let layers = eyes.seen.iter().enumerate().map(attended).collect::<Result<_>>()?;
        Ok(Explained { value, layers })
    }

    /// A and dA of a layer, from queries and the result's gradient [Q,C], keys and values [N,C].
    fn attended(&self, layer: usize, [q, k, v]: &[Tensor; 3], dy: &[f64]) -> Result<Attended> {
        let (heads, c) = (self.qformer.heads, q.rows().1);
        let (queries, tokens, d) = (q.rows().0, k.rows().0, c / heads.max(1));
        let (q, k, v) = (q.to_f64()?, k.to_f64()?, v.to_f64()?);
        let (mut attention, mut gradient) = (Vec::new(), Vec::new());
        for head in 0..heads {
            let dot = |a: &[f64], i: usize, b: &[f64], j: usize| -> f64 {
                let [a, b] = [(a, i), (b, j)].map(|(x, row)| &x[row * c + head * d..][..d]);
                a.iter().zip(b).map(|(a, b)| a * b).sum()
            };
            for i in 0..queries {
                let scores: Vec<f64> = (0..tokens).map(|j| self.qformer.scale * dot(&q, i, &k, j)).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                attention.extend(scores.iter().map(|s| ((s - top).exp() / total) as f32));
                gradient.extend((0..tokens).map(|j| dot(dy, i, &v, j) as f32));
            }
        }
        Ok(Attended { layer, heads, queries, tokens, attention, gradient })
    }

    /// Matching logits [1,2].
    fn pair_of(&self, pass: &Pass, tokens: &Tensor, text: &[u32], eyes: &mut Eyes) -> Result<Tensor> {
        let keys = self.keys_of(pass, tokens)?;
        let layout = Layout::pairs(self.sizes(), &[0], &[text.len()], 1, true)?;
        let x = self.qformer.embed(pass, &pass.param(self.query_tokens), 1, &[text], sites::PAIRS)?;
        let hidden = self.qformer.forward_with(pass, x, &layout, &keys, sites::PAIRS, eyes)?;
        self.itm_logits(pass, &hidden, layout.query_rows)
    }

    /// The image's similarity to the text [1,1].
    fn similarity(&self, pass: &Pass, tokens: &Tensor, text: &[u32], eyes: &mut Eyes) -> Result<Tensor> {
        let still = Pass::inference(pass.params());
        let own = self.text_features(&still, &[text.to_vec()])?;
        let own = own.first().ok_or_else(|| Error::argument(OPERATION, "text", "a text", "none"))?;
        let keys = self.keys_of(pass, tokens)?;
        let layout = Layout::merged(self.sizes(), 1, &[], &[], false)?;
        let x = self.qformer.embed(pass, &pass.param(self.query_tokens), 1, &[], sites::MERGED)?;
        let hidden = self.qformer.forward_with(pass, x, &layout, &keys, sites::MERGED, eyes)?;
        let image = ops::l2_normalize(&self.first()?.vision_proj.forward(pass, &hidden)?)?;
        ops::max_similarity(&image, &own.proj.slice_rows(0..1)?, self.config.num_query)
    }

    /// Minus the mean log-probability of some tokens of a caption [1].
    fn mean_loss(
        &self,
        pass: &Pass,
        tokens: &Tensor,
        text: &[u32],
        range: &Range<usize>,
        eyes: &mut Eyes,
    ) -> Result<Tensor> {
        let first = usize::from(self.llm().is_none());
        if range.start < first || range.is_empty() || range.end > text.len() {
            let want = format!("tokens within {first}..{}", text.len());
            return Err(Error::argument(OPERATION, "tokens", want, format!("{range:?}")));
        }
        if self.llm().is_some() {
            return self.loss_of_tokens(pass, tokens, text, range, eyes);
        }
        let keys = self.keys_of(pass, tokens)?;
        let read: Vec<u32> =
            std::iter::once(self.config.bos()).chain(text[1..range.end - 1].iter().copied()).collect();
        let layout = Layout::merged(self.sizes(), 1, &[], &[read.len()], false)?;
        let x = self.qformer.embed(pass, &pass.param(self.query_tokens), 1, &[&read], sites::MERGED)?;
        let hidden = self.qformer.forward_with(pass, x, &layout, &keys, sites::MERGED, eyes)?;
        // Row i predicts token i + 1.
        let first = layout.query_rows + range.start - 1;
        let logits = self.qformer.logits(pass, &hidden.slice_rows(first..first + range.len())?)?;
        let labels: Vec<Option<u32>> = text[range.clone()].iter().copied().map(Some).collect();
        ops::cross_entropy(&logits, Targets::Classes(&labels, 0.0))
    }
}

impl Attended {
    /// A relu(dA), the mean over heads and over all queries or of one: a number for each patch of the image, row by row
    /// `[tokens - 1]`. `None`: there is no such query.
    pub fn grad_cam(&self, query: Option<usize>) -> Option<Vec<f32>> {
        self.mean(None, query, |a, g| a * g.max(0.0))
    }

    /// The attention to each patch, the mean over the heads and queries that are not given `[tokens - 1]`. `None`: there is no
    /// such head or query.
    pub fn map(&self, head: Option<usize>, query: Option<usize>) -> Option<Vec<f32>> {
        self.mean(head, query, |a, _| a)
    }

    fn mean(
        &self,
        head: Option<usize>,
        query: Option<usize>,
        of: impl Fn(f32, f32) -> f32,
    ) -> Option<Vec<f32>> {
        let within = |which: Option<usize>, n: usize| match which {
            Some(i) if i < n => Some(i..i + 1),
            Some(_) => None,
            None => Some(0..n),
        };
        let (heads, queries) = (within(head, self.heads)?, within(query, self.queries)?);
        let count = (heads.len() * queries.len()) as f64;
        let mut sums = vec![0f64; self.tokens.checked_sub(1)?];
        for row in heads.flat_map(|h| queries.clone().map(move |q| h * self.queries + q)) {
            let at = row * self.tokens + 1..(row + 1) * self.tokens;
            let row = self.attention.get(at.clone())?.iter().zip(self.gradient.get(at)?);
            for (sum, (a, g)) in sums.iter_mut().zip(row) {
                *sum += f64::from(of(*a, *g));
            }
        }
        Some(sums.iter().map(|s| (s / count) as f32).collect())
    }
}
