//! Where random numbers are drawn: every place of the model has a site of its own, so that no two draw the same numbers
//! (see [`crate::random`]).
//!
//! | site of a micro-batch | what draws there |
//! |---|---|
//! | [`MERGED`] .. | dropout of the merged pass: queries, texts and captions |
//! | [`PAIRS`] .. | dropout of the pass over matching pairs |
//! | [`LLM`] .. | dropout of a language model, whose layers have `LAYER` sites each |
//! | [`VIT`] .. | drop path of the image encoder, two of each block |
//! | [`NEGATIVE_IMAGES`], [`NEGATIVE_TEXTS`] | the negatives of the matching loss |
//!
//! Of a pass, the first site is the embeddings'; each layer has eight behind it (`layer`). The micro-batches of a step
//! follow one another ([`micro_batch`]). Steps that no training has are others' own: u32::MAX is validation's and the first
//! values of parameters'. A search draws at site u32::MAX, its image as the step.

/// The pass of queries, texts and captions.
pub const MERGED: u32 = 0;
/// The pass of pairs.
pub const PAIRS: u32 = 1 << 12;
/// Draws of wrong pictures.
pub const NEGATIVE_IMAGES: u32 = 1 << 13;
/// Draws of wrong captions.
pub const NEGATIVE_TEXTS: u32 = NEGATIVE_IMAGES + 1;
/// Dropout of a language model.
pub const LLM: u32 = 1 << 14;
/// Drop path of the image encoder.
pub const VIT: u32 = 1 << 15;
/// Sites of one micro-batch.
const MICRO_BATCH: u32 = 1 << 16;
/// Sites of a layer.
const LAYER: u32 = 8;
/// The most layers that a pass has sites for: with more, two dropouts would draw the same numbers.
pub(super) const MAX_LAYERS: usize = ((PAIRS - MERGED - 1) / LAYER) as usize;

/// The most layers of a language model that a pass has sites for.
pub(super) const MAX_LLM_LAYERS: usize = ((VIT - LLM) / LAYER) as usize;

/// The first site of a language model's layer.
pub(super) fn llm(i: usize) -> u32 {
    LLM + LAYER * i as u32
}

/// The first site of a block of the image encoder: behind attention, then behind the MLP.
pub(super) fn vit(i: usize) -> u32 {
    VIT + 2 * i as u32
}

/// The first site of a micro-batch.
pub fn micro_batch(number: usize) -> u32 {
    (number as u32).wrapping_mul(MICRO_BATCH)
}

/// The sites of a layer.
#[derive(Clone, Copy)]
pub(super) struct Layer {
    /// The probabilities of self-attention, and what becomes of them.
    pub attention: u32,
    /// Behind self-attention.
    pub output: u32,
    /// The probabilities of cross-attention, and what becomes of them.
    pub cross: u32,
    /// Behind cross-attention.
    pub cross_output: u32,
    /// The feed-forwards of query rows and of text rows.
    pub query: u32,
    /// Behind the feed-forward network of text rows.
    pub text: u32,
}

/// Layer number `i` of a pass whose first site is `pass`.
pub(super) fn layer(pass: u32, i: usize) -> Layer {
    let at = pass + 1 + LAYER * i as u32;
    Layer { attention: at, output: at + 1, cross: at + 2, cross_output: at + 3, query: at + 4, text: at + 5 }
}
