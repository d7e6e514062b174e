//! BLIP-2's second stage: a frozen language model reads the projected query rows of an image as its first inputs.
//!   x = proj(query rows);   rows [x | embeddings(text)], causal;   loss = mean cross-entropy of the tokens behind the prompt
//!
//! Row i predicts token i + 1, the last query row the first token. Query rows of all images come first, then all text rows;
//! two segments a sample make the causal order. A text's last token predicts nothing and nobody reads it: it has no row.
//! Of the last layer only rows that predict are computed.

use super::layout::Layout;
use super::llm::{Decoder, Kept, LlmConfig, Pack};
use super::qformer::Observer;
use super::{Batch, Config, Head, Model, sites};
use crate::nn::{Builder, Linear, Params, Pass};
use crate::ops::{self, Segment, Segments};
use crate::tensor::Tensor;
use crate::{Error, Result};
use std::ops::Range;

const OP: &str = "stage 2";

pub(super) struct Stage2 {
    pub proj: Linear,
    pub llm: Decoder,
    /// Tokens of every text that are no targets, its opening token among them.
    pub prompt: usize,
}

impl Stage2 {
    pub fn new(b: &mut Builder, c: &Config, llm: LlmConfig, prompt: usize) -> Stage2 {
        let proj = b.plain_linear(llm.projection(), c.hidden, llm.embed_width);
        b.trained(false);
        Stage2 { proj, llm: Decoder::new(b, llm), prompt }
    }
}

/// Everything `parity` compares, filled in when it is asked for.
#[derive(Default)]
pub struct LlmTrace {
    pub image_embeds: Option<Tensor>,
    pub query_hidden: Option<Tensor>,
    /// Projected query rows `[B*Q,E]`, and the same as an input whose gradient is found under the key behind the parameters'.
    pub inputs: Option<Tensor>,
    /// Results of every layer, query rows first, then text rows.
    pub layers: Vec<Tensor>,
    pub logits: Option<Tensor>,
    /// Text rows of every sample.
    pub text: Vec<Range<usize>>,
}

/// Where the rows of samples are: query rows of all, then text rows of each.
pub(super) struct Rows {
    pub queries: usize,
    pub text: Vec<Range<usize>>,
}

impl Rows {
    pub fn new(queries: usize, lens: impl IntoIterator<Item = usize>) -> Rows {
        let lens: Vec<usize> = lens.into_iter().collect();
        let mut at = queries * lens.len();
        let text = lens.into_iter().map(|n| {
            at += n;
            at - n..at
        });
        Rows { queries, text: text.collect() }
    }

    pub fn len(&self) -> usize {
        self.text.last().map_or(0, |r| r.end)
    }

    pub fn image(&self, b: usize) -> Range<usize> {
        b * self.queries..(b + 1) * self.queries
    }

    /// Positions count a sample's rows from 0.
    pub fn positions(&self) -> Vec<u32> {
        let queries = self.text.iter().flat_map(|_| 0..self.queries);
        let text = self.text.iter().flat_map(|r| self.queries..self.queries + r.len());
        queries.chain(text).map(|p| p as u32).collect()
    }

    pub fn pack(&self, llm: &Decoder, last: Option<Kept>) -> Result<Pack> {
        let (positions, n) = (self.positions(), self.len());
        let images = (0..self.text.len()).map(|b| self.causal(self.image(b), 0..0, self.image(b)));
        let texts =
            self.text.iter().enumerate().map(|(b, t)| self.causal(t.clone(), self.image(b), t.clone()));
        let segments = Segments::new(images.chain(texts).collect(), n, n)?;
        Ok(Pack { segments, rotary: llm.rotary(&positions), positions, last })
    }

    fn causal(&self, q: Range<usize>, a: Range<usize>, b: Range<usize>) -> Segment {
        Segment { q, a, b, causal: true }
    }

    /// Rows of the last layer: of each image the last query row, if it predicts, and all text rows.
    fn kept(&self, llm: &Decoder, queries_predict: bool) -> Result<Kept> {
        let (n, mut rows, mut list) = (self.text.len(), Vec::new(), Vec::new());
        let mut positions = Vec::new();
        if queries_predict {
            for b in 0..n {
                rows.push(self.image(b).end as u32 - 1);
                list.push(Segment { q: b..b + 1, a: self.image(b), b: 0..0, causal: false });
                positions.push(self.queries as u32 - 1);
            }
        }
        for (b, t) in self.text.iter().enumerate() {
            let at = rows.len();
            rows.extend(t.start as u32..t.end as u32);
            list.push(self.causal(at..rows.len(), self.image(b), t.clone()));
            positions.extend((self.queries..self.queries + t.len()).map(|p| p as u32));
        }
        let segments = Segments::new(list, rows.len(), self.len())?;
        Ok(Kept { rows, segments, rotary: llm.rotary(&positions) })
    }
}

impl Model {
    /// The second stage, or an error that says what this model is.
    pub(super) fn second(&self) -> Result<&Stage2> {
        match &self.head {
            Head::Stage2(second) => Ok(second),
            Head::Stage1(_) => {
                Err(Error::argument(OP, "model", "one with a language model", "one of stage 1")
                    .fix("train a second stage: qformer train --start MODEL --llm DIR"))
            }
        }
    }

    /// Query rows of images, from ViT tokens [B*N,W]: [B*Q,C].
    fn query_rows(&self, pass: &Pass, tokens: &Tensor, n: usize, eyes: &mut impl Observer) -> Result<Tensor> {
        let keys = self.keys_of(pass, tokens)?;
        let layout = Layout::merged(self.sizes(), n, &[], &[], false)?;
        let x = self.qformer.embed(pass, &pass.param(self.query_tokens), n, &[], sites::MERGED)?;
        self.qformer.forward_with(pass, x, &layout, &keys, sites::MERGED, eyes)
    }

    /// What the language model reads of images, from ViT tokens `[B*N,W]`: `[B*Q,E]`.
    pub fn llm_inputs(&self, pass: &Pass, tokens: &Tensor) -> Result<Tensor> {
        let (n, width) = (self.config.image_tokens(), self.config.vit_width);
        if !tokens.rows().0.is_multiple_of(n) || tokens.rows().1 != width {
            let want = format!("[a multiple of {n}, {width}]");
            return Err(Error::argument(OP, "image tokens", want, tokens.shape()));
        }
        let hidden = self.query_rows(pass, tokens, tokens.rows().0 / n, &mut ())?;
        self.second()?.proj.forward(pass, &hidden)
    }

    /// The rows that a language model reads, from pictures `[B,3,S,S]`; each is computed alone, so that no image's numbers depend on the others.
    pub fn llm_inputs_of_pictures(&self, params: &Params, image: &Tensor) -> Result<Tensor> {
        let &[count, planes, h, w] = image.shape().sizes() else {
            return Err(Error::argument(OP, "image", "[B, 3, S, S]", image.shape()));
        };
        let (pass, pixels) = (Pass::inference(params), image.reshape(&[count, planes * h * w])?);
        let one = |i: usize| {
            let picture = pixels.slice_rows(i..i + 1)?.reshape(&[1, planes, h, w])?;
            self.llm_inputs(&pass, &self.vit_tokens(&pass, &picture, |_, _| {})?)
        };
        let all: Vec<Tensor> = (0..count).map(one).collect::<Result<_>>()?;
        ops::concat_rows(&all.iter().collect::<Vec<_>>())
    }

    /// The loss of a batch, whose texts are prompt, caption and end. With a trace, every row is computed, also those that no
    /// loss reads.
    pub fn stage2(&self, pass: &Pass, batch: &Batch, trace: Option<&mut LlmTrace>) -> Result<Tensor> {
        let frozen = Pass::inference(pass.params());
        let vit_pass = if self.train_vit { pass } else { &frozen };
        let tokens = self.tokens_of(vit_pass, &batch.image, |_, _| {})?;
        let n = batch.image.count(self.config.image_tokens());
        self.check_texts_of(batch, n)?;
        let second = self.second()?;
        let hidden = self.query_rows(pass, &tokens, n, &mut ())?;
        let x = second.proj.forward(pass, &hidden)?;
        let Some(t) = trace else { return self.llm_loss(pass, &x, batch.text, second.prompt, None) };
        t.image_embeds = Some(self.image_embeds(&frozen, &tokens.detach())?);
        t.query_hidden = Some(hidden.detach());
        let x = if pass.tracks() { pass.input(&x.detach(), 0) } else { x };
        t.inputs = Some(x.detach());
        self.llm_loss(pass, &x, batch.text, second.prompt, Some(t))
    }

    /// Minus the mean log-probability of the tokens `range` of a text behind one image.
    pub(super) fn loss_of_tokens(
        &self,
        pass: &Pass,
        tokens: &Tensor,
        text: &[u32],
        range: &Range<usize>,
        eyes: &mut impl Observer,
    ) -> Result<Tensor> {
        let hidden = self.query_rows(pass, tokens, 1, eyes)?;
        let x = self.second()?.proj.forward(pass, &hidden)?;
        // What comes behind the tokens does not reach them, and those before are as a prompt.
        self.llm_loss(pass, &x, &[text[..range.end].to_vec()], range.start, None)
    }

    /// The loss of texts behind projected query rows [B*Q,E]; the first `prompt` tokens of each are no targets.
    fn llm_loss(
        &self,
        pass: &Pass,
        x: &Tensor,
        text: &[Vec<u32>],
        prompt: usize,
        trace: Option<&mut LlmTrace>,
    ) -> Result<Tensor> {
        let llm = &self.second()?.llm;
        let (trim, predicts) = (trace.is_none(), prompt == 0);
        let used = |t: &'_ Vec<u32>| if trim { t.len() - 1 } else { t.len() };
        let rows = Rows::new(self.config.num_query, text.iter().map(used));
        let ids: Vec<u32> = text.iter().flat_map(|t| &t[..used(t)]).copied().collect();
        let all = ops::concat_rows(&[x, &llm.embed(pass, &ids)?])?;
        let last = trim.then(|| rows.kept(llm, predicts)).transpose()?;
        let pack = rows.pack(llm, last)?;
        let mut layers = Vec::new();
        let hidden = llm.forward(pass, &all, &pack, |x| layers.extend((!trim).then(|| x.detach())), None)?;
        // The row of a sample's query row, and of its text rows, among those of the last layer.
        let back = if trim { rows.queries * text.len() - if predicts { text.len() } else { 0 } } else { 0 };
        let query = |b: usize| if trim { b } else { rows.image(b).end - 1 };
        let before = |b: usize, i: usize| if i == 0 { query(b) } else { rows.text[b].start - back + i - 1 };
        let first = text.iter().enumerate().filter(|_| predicts).map(|(b, t)| (before(b, 0), t[0]));
        let rest = text
            .iter()
            .enumerate()
            .flat_map(|(b, t)| (usize::from(predicts).max(prompt)..t.len()).map(move |i| (b, i, t[i])));
        let (index, labels): (Vec<u32>, Vec<u32>) =
            first.chain(rest.map(|(b, i, id)| (before(b, i), id))).map(|(row, id)| (row as u32, id)).unzip();
        let everyone =
            index.len() == hidden.rows().0 && index.iter().enumerate().all(|(i, r)| i as u32 == *r);
        let read = if everyone { hidden.clone() } else { ops::gather_rows(&hidden, &index)? };
        let loss = ops::head_loss(&read, &llm.head(pass), &labels)?;
        if let Some(t) = trace {
            t.logits = Some(llm.logits(
                &Pass::inference(pass.params()),
                &hidden.detach(),
                super::llm::Sums::Matmul,
            )?);
            (t.layers, t.text) = (layers, rows.text);
        }
        Ok(loss)
    }

    fn check_texts_of(&self, batch: &Batch, n: usize) -> Result<()> {
        let Stage2 { llm, prompt, .. } = self.second()?;
        let c = &llm.config;
        if n == 0 || batch.text.len() != n {
            let want = format!("a caption for each of {n} images");
            return Err(Error::argument(OP, "text", want, batch.text.len()));
        }
        let most = c.positions.saturating_sub(self.config.num_query);
        for (i, t) in batch.text.iter().enumerate() {
            if t.len() <= *prompt || t.len() > most {
                let want = format!("{} to {most} tokens", prompt + 1);
                return Err(Error::argument(OP, format!("caption {i}"), want, t.len()));
            }
            if let Some(id) = t.iter().find(|id| **id as usize >= c.vocab) {
                let want = format!("ids below the language model's vocab_size {}", c.vocab);
                return Err(Error::argument(OP, format!("caption {i}"), want, id)
                    .fix("use the tokenizer that belongs to this language model"));
            }
        }
        Ok(())
    }
}
