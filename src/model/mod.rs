//! The model: configuration, image encoder, Q-Former over packed rows, and what is computed with them.

mod beams;
mod config;
mod features;
mod generate;
mod layout;
mod negatives;
mod options;
mod qformer;
pub mod sites;

mod stage1;
mod vit;

pub use beams::Hypothesis;
pub use config::{CLS, Config, PAD, SEP};
pub use features::{Images, ItmScores, Retrieval, TextFeatures, mean_cosine, retrieval_scores};
pub use layout::Layout;
pub(crate) use negatives::NegativeWeights;
pub use negatives::{Negatives, Sampling};
pub use options::Options as GenerateOptions;
pub use stage1::{Batch, Image, Outputs, Profile, Trace};

use crate::Result;
use crate::nn::{Builder, Id, Init, LayerNorm, Linear, Part, Spec};
use qformer::Qformer;
use vit::Vit;

/// The architecture; its numbers are in [`crate::nn::Params`], made from [`Model::specs`].
pub struct Model {
    /// Its sizes.
    pub config: Config,
    vit: Vit,
    ln_vision: LayerNorm,
    query_tokens: Id,
    qformer: Qformer,
    vision_proj: Linear,
    text_proj: Linear,
    itm_head: Linear,
    temp: Id,
    train_vit: bool,
}

impl Model {
    /// Lays out a model; the image encoder is frozen unless `train_vit`.
    pub fn new(config: Config, train_vit: bool) -> Result<(Model, Vec<Spec>)> {
        config.check()?;
        let c = &config;
        let mut b = Builder::default();
        b.trained(true);
        let query_tokens = b.dense("query_tokens", &[1, c.num_query, c.hidden], Init::Normal(0.02));
        let temp = b.param("temp", &[], Init::Constant(0.07));
        b.trained(train_vit);
        b.part(Part::Vit);
        let vit = Vit::new(&mut b, c);
        b.part(Part::Rest);
        b.trained(true);
        let model = Model {
            vit,
            ln_vision: b.norm("ln_vision", c.vit_width, 1e-5),
            query_tokens,
            qformer: Qformer::new(&mut b, c),
            vision_proj: b.plain_linear("vision_proj", c.hidden, c.embed_dim),
            text_proj: b.plain_linear("text_proj", c.hidden, c.embed_dim),
            itm_head: b.plain_linear("itm_head", c.hidden, 2),
            temp,
            train_vit,
            config,
        };
        Ok((model, b.specs))
    }

    /// Whether the image encoder is trained, too.
    pub fn trains_vit(&self) -> bool {
        self.train_vit
    }
}
