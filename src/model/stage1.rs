//! BLIP-2's first stage: contrastive (ITC), matching (ITM) and captioning (LM) losses over a frozen image encoder.
//!
//! Two passes: queries, texts and captions to predict in one; the 3B matching pairs, whose negatives come from the
//! similarities of the first, in the other. Image keys and values are projected once for both. The contrastive gradient is
//! one-sided as in LAVIS: in sim_i2t the texts are constants, in sim_t2i the images are.

use super::layout::Sizes;
use super::negatives::{NegativeWeights, Negatives, Sampling};
use super::qformer::{ImageKeys, ImageTokens};
use super::{Layout, Model, sites};
use crate::nn::Pass;
use crate::ops::{self, Right, Targets};
use crate::tensor::{Storage, Tensor};
use crate::{Error, Result};

/// Label smoothing of the contrastive and the captioning loss.
pub(super) const SMOOTHING: f64 = 0.1;

/// How negatives and contrastive targets treat captions of the same image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Each caption's own image is its only positive.
    LavisDiagonal,
    /// Captions with the same image id are positives of each other's images, and never negatives.
    LavisImageId,
}

/// The images of a batch.
#[derive(Clone, Debug)]
pub enum Image {
    /// Pixels `[B,3,S,S]`, normalised.
    Pixels(Tensor),
    /// Tokens `[B*N,W]` that the image encoder made of them.
    Tokens(Tensor),
}

impl Image {
    /// The numbers, whichever they are.
    pub fn tensor(&self) -> &Tensor {
        match self {
            Image::Pixels(t) | Image::Tokens(t) => t,
        }
    }

    /// The numbers, to be changed.
    pub fn tensor_mut(&mut self) -> &mut Tensor {
        match self {
            Image::Pixels(t) | Image::Tokens(t) => t,
        }
    }

    /// How many images there are, of `tokens` tokens each.
    pub(super) fn count(&self, tokens: usize) -> usize {
        let first = self.tensor().shape().sizes().first().copied().unwrap_or(0);
        match self {
            Image::Pixels(_) => first,
            Image::Tokens(_) => first / tokens.max(1),
        }
    }
}

/// Images and their captions: ids from `[CLS]` to `[SEP]`, no padding.
pub struct Batch<'a> {
    /// Pixels, or tokens that are kept.
    pub image: Image,
    /// The tokens of each caption.
    pub text: &'a [Vec<u32>],
    /// Which picture each caption is of.
    pub image_id: Option<&'a [i64]>,
}

/// Everything `parity` compares, filled in when it is asked for.
#[derive(Default)]
pub struct Trace {
    /// What each block of the image encoder gave.
    pub vit_blocks: Vec<Tensor>,
    /// The picture's tokens behind `ln_vision`.
    pub image_embeds: Option<Tensor>,
    /// The rows of the merged pass.
    pub merged: Option<(Tensor, Layout)>,
    /// The rows of the pass of pairs.
    pub pairs: Option<(Tensor, Layout)>,
    /// Normalised features of the queries.
    pub image_feats: Option<Tensor>,
    /// Normalised features of the texts.
    pub text_feat: Option<Tensor>,
    /// Similarities of pictures with texts.
    pub sim_i2t: Option<Tensor>,
    /// Similarities of texts with pictures.
    pub sim_t2i: Option<Tensor>,
    /// What wrong texts are drawn by.
    pub weights_i2t: Option<Tensor>,
    /// What wrong pictures are drawn by.
    pub weights_t2i: Option<Tensor>,
    /// Of the matching head.
    pub itm_logits: Option<Tensor>,
    /// Of the captioning head.
    pub lm_logits: Option<Tensor>,
}

/// The losses of stage 1.
pub struct Outputs {
    /// The sum of the three.
    pub loss: Tensor,
    /// The contrastive loss.
    pub itc: Tensor,
    /// The matching loss.
    pub itm: Tensor,
    /// The captioning loss.
    pub lm: Tensor,
    /// Those that were drawn.
    pub negatives: Negatives,
    /// Of each loss.
    pub accuracy: Accuracy,
}

/// Right answers: text to image, image to text, matching, next token.
pub struct Accuracy(pub(crate) [Right; 4]);

impl Accuracy {
    /// Their shares.
    pub fn shares(&self) -> Result<[f64; 4]> {
        let [a, b, c, d] = self.0.each_ref().map(Right::share);
        Ok([a?, b?, c?, d?])
    }
}

/// What the first pass hands to the losses.
pub(crate) struct Merged {
    pub hidden: Tensor,
    pub layout: Layout,
    pub keys: ImageKeys,
}

impl Model {
    pub(super) fn sizes(&self) -> Sizes {
        Sizes { queries: self.config.num_query, image_tokens: self.config.image_tokens() }
    }

    /// ViT tokens `[B*N,W]` before `ln_vision`; `each` sees every block.
    pub fn vit_tokens(
        &self,
        pass: &Pass,
        image: &Tensor,
        each: impl FnMut(usize, &Tensor),
    ) -> Result<Tensor> {
        let c = &self.config;
        match image.shape().sizes() {
            &[_, 3, h, w] if h == c.image_size && w == c.image_size => self.vit.forward(pass, image, each),
            _ => {
                let want = format!("[batch, 3, {0}, {0}]", c.image_size);
                Err(Error::argument("image encoder", "image", want, image.shape()))
            }
        }
    }

    /// The tokens of a batch: the image encoder's, unless it is of tokens already.
    pub(crate) fn tokens_of(
        &self,
        pass: &Pass,
        image: &Image,
        each: impl FnMut(usize, &Tensor),
    ) -> Result<Tensor> {
        match image {
            Image::Pixels(pixels) => self.vit_tokens(pass, pixels, each),
            Image::Tokens(tokens) => match tokens.array() {
                Some(a) if a.storage() != Storage::F32 => tokens.to(pass.params().device(), Storage::F32),
                _ => pass.here(tokens),
            },
        }
    }

    /// `ln_vision` of the ViT's tokens `[B*N,W]`.
    pub fn image_embeds(&self, pass: &Pass, tokens: &Tensor) -> Result<Tensor> {
        self.ln_vision.forward(pass, tokens)
    }

    pub(super) fn keys_of(&self, pass: &Pass, tokens: &Tensor) -> Result<ImageKeys> {
        let tokens = &pass.here(tokens)?;
        let tokens = if tokens.tracked() || !pass.tracks() {
            ImageTokens::Tracked(self.image_embeds(pass, tokens)?)
        } else {
            ImageTokens::Frozen { normalized: self.normalized(pass, tokens)?, norm: &self.ln_vision }
        };
        self.qformer.image_keys(pass, &tokens)
    }

    /// The ViT's tokens as `ln_vision` has them before its affine part: all that a step reads of a frozen encoder's, row by row.
    pub(crate) fn normalized(&self, pass: &Pass, tokens: &Tensor) -> Result<Tensor> {
        let storage = pass.storage(self.ln_vision.weight);
        ops::normalize_rows_as(tokens, self.ln_vision.eps, Some(storage))
    }

    /// The losses of a batch. With a trace, every row is computed, also those that no loss reads.
    pub fn stage1(
        &self,
        pass: &Pass,
        batch: &Batch,
        profile: Profile,
        sampling: Sampling,
        trace: Option<&mut Trace>,
    ) -> Result<Outputs> {
        let frozen = Pass::inference(pass.params());
        let vit_pass = if self.train_vit { pass } else { &frozen };
        let mut blocks = Vec::new();
        let keep = trace.is_some();
        let tokens =
            self.tokens_of(vit_pass, &batch.image, |_, x| blocks.extend(keep.then(|| x.detach())))?;
        let mut unused = Trace::default();
        let trace_or = trace.unwrap_or(&mut unused);
        if keep {
            trace_or.vit_blocks = blocks;
            trace_or.image_embeds = Some(self.image_embeds(&frozen, &tokens.detach())?);
        }
        self.losses(pass, &tokens, batch, profile, sampling, keep.then_some(trace_or))
    }

    /// The losses from ViT tokens `[B*N,W]` that were computed before.
    pub fn losses(
        &self,
        pass: &Pass,
        tokens: &Tensor,
        batch: &Batch,
        profile: Profile,
        sampling: Sampling,
        trace: Option<&mut Trace>,
    ) -> Result<Outputs> {
        self.check_batch(batch, profile)?;
        let want = [batch.text.len() * self.config.image_tokens(), self.config.vit_width];
        if tokens.shape().sizes() != want {
            return Err(Error::argument("stage 1", "image tokens", format!("{want:?}"), tokens.shape()));
        }
        let merged = self.merged_pass(pass, tokens, batch.text, trace.is_none(), batch.text.len())?;
        let (image_feats, text_feat) = self.contrastive_features(pass, &merged)?;
        let queries = if let Sampling::Recorded { queries, .. } = &sampling { Some(*queries) } else { None };
        let own = [&image_feats, &text_feat];
        let (i2t, t2i) = self.similarities_of(pass, own, own, queries)?;
        let (itc, itc_right) = self.itc_loss(&i2t, &t2i, profile, batch.image_id)?;
        let ids = batch.image_id.filter(|_| profile == Profile::LavisImageId);
        let weights = NegativeWeights { i2t: &i2t, t2i: &t2i, ids };
        let negatives = weights.choose(sampling)?;
        let itm = self.itm_loss(pass, &merged.keys, batch, &negatives, trace.is_none())?;
        let (lm, lm_right) = self.lm_loss(pass, &merged, batch.text)?;
        let loss = ops::add(&ops::add(&itc, &itm.loss)?, &lm)?;
        let [t2i_right, i2t_right] = itc_right;
        let accuracy = Accuracy([t2i_right, i2t_right, itm.right, lm_right]);
        if let Some(t) = trace {
            [t.weights_i2t, t.weights_t2i] = weights.tensors()?.map(Some);
            (t.image_feats, t.text_feat) = (Some(image_feats), Some(text_feat));
            (t.sim_i2t, t.sim_t2i) = (Some(i2t.clone()), Some(t2i.clone()));
            let first = merged.layout.lm.first().map_or(merged.layout.rows, |r| r.start);
            let rows = merged.hidden.slice_rows(first..merged.hidden.rows().0)?;
            t.lm_logits = Some(self.qformer.logits(pass, &rows)?);
            t.pairs = Some((itm.hidden, itm.layout));
            t.itm_logits = Some(itm.logits);
            t.merged = Some((merged.hidden, merged.layout));
        }
        Ok(Outputs { loss, itc, itm: itm.loss, lm, negatives, accuracy })
    }

    fn check_batch(&self, batch: &Batch, profile: Profile) -> Result<()> {
        let n = batch.image.count(self.config.image_tokens());
        if n == 0 || batch.text.len() != n {
            return Err(Error::argument(
                "stage 1",
                "text",
                format!("a caption for each of {n} images"),
                batch.text.len(),
            ));
        }
        for (i, t) in batch.text.iter().enumerate() {
            if t.len() < 2 || t.len() > self.config.max_pos {
                let want = format!("2 to {} tokens", self.config.max_pos);
                return Err(Error::argument("stage 1", format!("caption {i}"), want, t.len()));
            }
        }
        match batch.image_id {
            Some(ids) if ids.len() != n => {
                Err(Error::argument("stage 1", "image_id", format!("{n} of them"), ids.len()))
            }
            None if profile == Profile::LavisImageId => {
                Err(Error::argument("stage 1", "image_id", "an id for every image", "none")
                    .fix("give image ids, or use the profile lavis-diagonal"))
            }
            _ => Ok(()),
        }
    }

    /// The first pass over `n` images and as many captions, or none. Tokens of more images may stand behind theirs: of them there are
    /// keys and values.
    pub(crate) fn merged_pass(
        &self,
        pass: &Pass,
        tokens: &Tensor,
        text: &[Vec<u32>],
        trim: bool,
        n: usize,
    ) -> Result<Merged> {
        let keys = self.keys_of(pass, tokens)?;
        self.merged_of(pass, keys, tokens.rows().0, (text, trim, n))
    }

    /// The first pass over tokens that [`Model::normalized`] gave.
    pub(crate) fn merged_normalized(
        &self,
        pass: &Pass,
        normalized: Tensor,
        text: (&[Vec<u32>], bool, usize),
    ) -> Result<Merged> {
        let rows = normalized.rows().0;
        let tokens = ImageTokens::Frozen { normalized, norm: &self.ln_vision };
        self.merged_of(pass, self.qformer.image_keys(pass, &tokens)?, rows, text)
    }

    fn merged_of(
        &self,
        pass: &Pass,
        keys: ImageKeys,
        rows: usize,
        (text, trim, n): (&[Vec<u32>], bool, usize),
    ) -> Result<Merged> {
        // A caption's last token predicts nothing and is seen by nobody: it needs no row.
        let captions: Vec<Vec<u32>> = text.iter().map(|t| self.caption_input(t, trim)).collect();
        let [text_lens, lm_lens] = [text, &captions].map(|x| x.iter().map(Vec::len).collect::<Vec<_>>());
        let all = rows / self.config.image_tokens();
        let layout = Layout::merged(self.sizes(), n, &text_lens, &lm_lens, trim)?.among(self.sizes(), all)?;
        let texts: Vec<&[u32]> = text.iter().chain(&captions).map(Vec::as_slice).collect();
        let x = self.qformer.embed(pass, &pass.param(self.query_tokens), n, &texts, sites::MERGED)?;
        let hidden = self.qformer.forward(pass, x, &layout, &keys, sites::MERGED)?;
        Ok(Merged { hidden, layout, keys })
    }

    /// [DEC] in place of [CLS]; without the last token if it is not asked for.
    fn caption_input(&self, text: &[u32], trim: bool) -> Vec<u32> {
        let end = if trim { text.len() - 1 } else { text.len() };
        std::iter::once(self.config.bos()).chain(text[1..end].iter().copied()).collect()
    }

    /// Matching of every own pair and two negative ones each.
    pub(crate) fn itm_loss(
        &self,
        pass: &Pass,
        keys: &ImageKeys,
        batch: &Batch,
        negatives: &Negatives,
        trim: bool,
    ) -> Result<Matching> {
        let n = batch.text.len();
        let (own, index) = (0..n, |v: &[u32]| v.iter().map(|i| *i as usize).collect::<Vec<_>>());
        let images: Vec<usize> = own.clone().chain(index(&negatives.image)).chain(own.clone()).collect();
        let texts: Vec<usize> = own.clone().chain(own).chain(index(&negatives.text)).collect();
        let texts: Vec<&[u32]> = texts.iter().map(|i| batch.text[*i].as_slice()).collect();
        self.matching(pass, keys, n, (&images, &texts), trim)
    }

    /// Matching of pairs of `all` images and texts, of which the first third match.
    pub(crate) fn matching(
        &self,
        pass: &Pass,
        keys: &ImageKeys,
        all: usize,
        (images, texts): (&[usize], &[&[u32]]),
        trim: bool,
    ) -> Result<Matching> {
        let (hidden, layout) = self.pair_pass(pass, keys, all, images, texts, trim)?;
        let logits = self.itm_logits(pass, &hidden, layout.query_rows)?;
        let n = images.len() / 3;
        let labels: Vec<Option<u32>> = (0..images.len()).map(|i| Some(u32::from(i < n))).collect();
        let loss = ops::cross_entropy(&logits, Targets::Classes(&labels, 0.0))?;
        let right = ops::right(&logits, &labels)?;
        Ok(Matching { loss, right, hidden, layout, logits })
    }

    /// Hidden rows of (image, text) pairs that see each other, among `all` images.
    pub(super) fn pair_pass(
        &self,
        pass: &Pass,
        keys: &ImageKeys,
        all: usize,
        images: &[usize],
        texts: &[&[u32]],
        trim: bool,
    ) -> Result<(Tensor, Layout)> {
        let lens: Vec<usize> = texts.iter().map(|t| t.len()).collect();
        let layout = Layout::pairs(self.sizes(), images, &lens, all, trim)?;
        let x =
            self.qformer.embed(pass, &pass.param(self.query_tokens), images.len(), texts, sites::PAIRS)?;
        Ok((self.qformer.forward(pass, x, &layout, keys, sites::PAIRS)?, layout))
    }

    /// Mean over a pair's queries of the matching head.     hidden [>= P*Q,C] -> [P,2]
    pub(super) fn itm_logits(&self, pass: &Pass, hidden: &Tensor, query_rows: usize) -> Result<Tensor> {
        let logits = self.first()?.itm_head.forward(pass, &hidden.slice_rows(0..query_rows)?)?;
        ops::mean_rows(&logits, self.config.num_query)
    }

    pub(crate) fn lm_loss(&self, pass: &Pass, m: &Merged, text: &[Vec<u32>]) -> Result<(Tensor, Right)> {
        let trimmed = m.layout.last.is_some();
        let labels: Vec<Option<u32>> = text.iter().flat_map(|t| &t[1..]).map(|id| Some(*id)).collect();
        let rows = if trimmed {
            let first = m.layout.query_rows + m.layout.text.len();
            m.hidden.slice_rows(first..m.hidden.rows().0)?
        } else {
            let index: Vec<u32> = m.layout.lm.iter().flat_map(|r| r.start as u32..r.end as u32 - 1).collect();
            ops::gather_rows(&m.hidden, &index)?
        };
        let (logits, v) = (self.qformer.padded_logits(pass, &rows)?, self.config.vocab);
        let loss = ops::cross_entropy_of(&logits, v, Targets::Classes(&labels, SMOOTHING))?;
        let right = ops::right_of(&logits, v, &labels)?;
        Ok((loss, right))
    }
}

/// The matching loss with what `parity` compares.
pub(crate) struct Matching {
    /// The sum of the three.
    pub loss: Tensor,
    pub right: Right,
    pub hidden: Tensor,
    pub layout: Layout,
    pub logits: Tensor,
}
