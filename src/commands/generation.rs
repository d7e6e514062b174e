//! The options of generation as `caption` and `evaluate` take them: the names and meanings of transformers' `generate`.

use crate::model::GenerateOptions;
use crate::model::llm::LlmConfig;
use crate::{Error, Result};

/// Over HTTP the names are the same, with `_` for `-`.
#[derive(clap::Args, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Generation (as transformers' generate)")]
pub struct Generation {
    /// Beams of the search; 1 is greedy [default: 3, with a language model 5; 1 with --sample]
    #[arg(long, value_name = "N")]
    num_beams: Option<usize>,
    /// Draw captions at random (nucleus sampling) instead of searching for the most probable
    #[arg(long)]
    sample: bool,
    /// Draw from the most probable tokens that together reach this probability [default: 0.9]
    #[arg(long, value_name = "P", requires = "sample")]
    top_p: Option<f64>,
    /// Draw from the K most probable tokens, 0 for all [default: 50]
    #[arg(long, value_name = "K", requires = "sample")]
    top_k: Option<usize>,
    /// Below 1 draws the probable more often, above 1 the improbable [default: 1]
    #[arg(long, value_name = "T", requires = "sample")]
    temperature: Option<f64>,
    /// Most tokens of a caption, the first ([DEC]) counted [default: 30; of an answer 11]
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
    /// Fewest tokens of a caption, the first ([DEC]) counted [default: 10; with a language model 1]
    #[arg(long, value_name = "N")]
    min_length: Option<usize>,
    /// Above 1 makes tokens that are already there less probable
    #[arg(long, default_value_t = DEFAULT.repetition_penalty, value_name = "X")]
    repetition_penalty: f64,
    /// Above 0 prefers long captions, below 0 short ones (beam search) [default: 1; of an answer 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    length_penalty: Option<f64>,
    /// Captions for each picture, best first
    #[arg(long, default_value_t = DEFAULT.num_captions, value_name = "N")]
    num_captions: usize,
    /// Of the random draws: the same seed gives a picture the same captions, whatever else is captioned
    #[arg(long, default_value_t = DEFAULT.seed, value_name = "N")]
    seed: u64,
}

const DEFAULT: Generation = Generation {
    num_beams: None,
    sample: false,
    top_p: None,
    top_k: None,
    temperature: None,
    max_length: None,
    min_length: None,
    repetition_penalty: 1.0,
    length_penalty: None,
    num_captions: 1,
    seed: 0,
};

impl Default for Generation {
    fn default() -> Generation {
        DEFAULT
    }
}

impl Generation {
    /// What `generate` is given, for a model of `vocab` tokens and `positions` text positions.
    pub fn options(&self, vocab: usize, positions: usize) -> Result<GenerateOptions> {
        self.options_over(GenerateOptions::default(), vocab, positions)
    }

    /// For a language model, with LAVIS's defaults: of captions, or of answers to questions.
    pub fn options_of_llm(&self, llm: &LlmConfig, answers: bool) -> Result<GenerateOptions> {
        let captions = GenerateOptions { num_beams: 5, min_length: 1, ..GenerateOptions::default() };
        let base = match answers {
            // 10 new tokens, and the one that a search starts from.
            true => GenerateOptions { max_length: 11, length_penalty: 0.0, ..captions },
            false => captions,
        };
        self.options_over(base, llm.vocab, llm.positions)
    }

    fn options_over(&self, base: GenerateOptions, vocab: usize, positions: usize) -> Result<GenerateOptions> {
        let drawn = [("top-p", self.top_p.is_some()), ("top-k", self.top_k.is_some())];
        let mut drawn = drawn.into_iter().chain([("temperature", self.temperature.is_some())]);
        if let Some((name, _)) = drawn.find(|(_, given)| *given && !self.sample) {
            return Err(Error::argument("caption", name, "sample with it", "none")
                .fix("give sample, too, or leave it out"));
        }
        let num_beams = if self.sample { 1 } else { base.num_beams };
        let options = GenerateOptions {
            num_beams: self.num_beams.unwrap_or(num_beams),
            do_sample: self.sample,
            top_p: self.top_p.unwrap_or(base.top_p),
            top_k: self.top_k.unwrap_or(base.top_k),
            temperature: self.temperature.unwrap_or(base.temperature),
            max_length: self.max_length.unwrap_or(base.max_length),
            min_length: self.min_length.unwrap_or(base.min_length),
            repetition_penalty: self.repetition_penalty,
            length_penalty: self.length_penalty.unwrap_or(base.length_penalty),
            num_return_sequences: self.num_captions,
            seed: self.seed,
        };
        if !options.do_sample && options.num_return_sequences > options.num_beams {
            let expected = format!("at most the number of beams, {}", options.num_beams);
            return Err(Error::argument("caption", "num-captions", expected, options.num_return_sequences)
                .fix(format!(
                    "give --num-beams {} too, or draw captions with --sample",
                    options.num_return_sequences
                )));
        }
        options.check(vocab, positions)?;
        Ok(options)
    }
}
