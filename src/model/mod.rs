//! The model: configuration, image encoder, Q-Former over packed rows, and what is computed with them.

mod attended;
mod beams;
mod chunks;
mod config;
mod contrastive;
mod features;
mod generate;
mod layout;
#[allow(missing_docs)] // still to be written
pub mod llm;
mod negatives;
mod options;
mod qformer;
pub mod sites;

mod stage1;
#[allow(missing_docs)] // still to be written
mod stage2;
mod vit;

pub use attended::{Attended, Explained, Number};
pub use beams::Hypothesis;
pub use config::{CLS, Config, PAD, SEP};
pub use features::{Images, ItmScores, Retrieval, TextFeatures, mean_cosine, retrieval_scores};
pub use layout::Layout;
pub use llm::generate::{Answering, Profile as AnswerProfile};
pub(crate) use negatives::NegativeWeights;
pub use negatives::{Negatives, Sampling};
pub use options::Options as GenerateOptions;
pub(crate) use stage1::Matching;
pub use stage1::{Batch, Image, Outputs, Profile, Trace};
pub use stage2::LlmTrace;

use crate::nn::{Builder, Id, Init, LayerNorm, Linear, Part, Spec};
use crate::{Error, Result};
use llm::LlmConfig;
use qformer::Qformer;
use stage2::Stage2;
use vit::Vit;

/// The architecture; its numbers are in [`crate::nn::Params`], made from the specs that [`Model::new`] gives.
pub struct Model {
    /// Its sizes.
    pub config: Config,
    vit: Vit,
    ln_vision: LayerNorm,
    query_tokens: Id,
    qformer: Qformer,
    head: Head,
    train_vit: bool,
}

/// What reads the Q-Former.
enum Head {
    Stage1(Stage1),
    Stage2(Box<Stage2>),
}

/// Projections and heads of the first stage.
struct Stage1 {
    vision_proj: Linear,
    text_proj: Linear,
    itm_head: Linear,
    temp: Id,
}

/// A second stage is asked for what only a first one has.
fn no_texts() -> Error {
    let want = "a model of stage 1: search, features and matching are its";
    Error::argument("model", "stage", want, "a model of stage 2, which has a language model")
        .fix("caption, ask and evaluate captions with it, or give the stage-1 model it began from")
}

/// What a second stage has of its own, in front of its projection.
fn second_parts(b: &mut Builder, c: &Config, train_vit: bool) -> (Id, Vit, LayerNorm, Qformer) {
    b.trained(true);
    let query_tokens = b.dense("query_tokens", &[1, c.num_query, c.hidden], Init::Normal(0.02));
    b.trained(train_vit);
    b.part(Part::Vit);
    let vit = Vit::new(b, c);
    b.part(Part::Rest);
    b.trained(true);
    let ln_vision = b.norm("ln_vision", c.vit_width, 1e-5);
    (query_tokens, vit, ln_vision, Qformer::of_queries(b, c))
}

/// The parameters of a second stage without its language model, which reads `width` columns behind a projection of this name.
pub fn second_specs(config: &Config, projection: &str, width: usize) -> Vec<Spec> {
    let mut b = Builder::default();
    second_parts(&mut b, config, false);
    b.plain_linear(projection, config.hidden, width);
    b.specs
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
        let ln_vision = b.norm("ln_vision", c.vit_width, 1e-5);
        let qformer = Qformer::new(&mut b, c);
        let head = Head::Stage1(Stage1 {
            vision_proj: b.plain_linear("vision_proj", c.hidden, c.embed_dim),
            text_proj: b.plain_linear("text_proj", c.hidden, c.embed_dim),
            itm_head: b.plain_linear("itm_head", c.hidden, 2),
            temp,
        });
        Ok((Model { vit, ln_vision, query_tokens, qformer, head, train_vit, config }, b.specs))
    }

    /// Lays out a second stage: the query side of the Q-Former, a projection, and a frozen language model. Of every text the first
    /// `prompt` tokens are no targets.
    pub fn with_llm(
        config: Config,
        llm: LlmConfig,
        prompt: usize,
        train_vit: bool,
    ) -> Result<(Model, Vec<Spec>)> {
        config.check()?;
        let c = &config;
        let mut b = Builder::default();
        let (query_tokens, vit, ln_vision, qformer) = second_parts(&mut b, c, train_vit);
        let head = Head::Stage2(Box::new(Stage2::new(&mut b, c, llm, prompt)));
        Ok((Model { vit, ln_vision, query_tokens, qformer, head, train_vit, config }, b.specs))
    }

    /// The first stage's heads, or an error that says what this model is.
    fn first(&self) -> Result<&Stage1> {
        match &self.head {
            Head::Stage1(heads) => Ok(heads),
            Head::Stage2(_) => Err(no_texts()),
        }
    }

    /// How often training drops a branch of the image encoder's last block for a picture, and of those before it less often.
    pub fn set_drop_path(&mut self, rate: f64) {
        self.vit.drop_path = rate;
    }

    /// Whether results inside the language model's layers are computed again for its backward instead of kept: the same numbers in
    /// less memory.
    pub fn set_recompute(&mut self, on: bool) {
        if let Head::Stage2(second) = &mut self.head {
            second.llm.recompute = on;
        }
    }

    /// The language model's sizes, if there is one.
    pub fn llm(&self) -> Option<&LlmConfig> {
        match &self.head {
            Head::Stage1(_) => None,
            Head::Stage2(second) => Some(&second.llm.config),
        }
    }

    /// Whether the image encoder is trained, too.
    pub fn trains_vit(&self) -> bool {
        self.train_vit
    }
}
