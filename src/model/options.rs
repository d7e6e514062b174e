//! The arguments of `generate`, and what follows from them.

use crate::{Error, Result};

/// The arguments of `generate`; the defaults are LAVIS's.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Beams of a picture.
    pub num_beams: usize,
    /// Tokens of a caption, at most, those that begin and end it included.
    pub max_length: usize,
    /// Tokens of a caption, at least.
    pub min_length: usize,
    /// Nucleus or top-k sampling instead of the most probable tokens (`num_beams` 1).
    pub do_sample: bool,
    /// Of sampling: the share of probability that is drawn from.
    pub top_p: f64,
    /// 0: all tokens. transformers' default.
    pub top_k: usize,
    /// Logits are divided by it.
    pub temperature: f64,
    /// Above 1, tokens that are there already become less likely.
    pub repetition_penalty: f64,
    /// A score is divided by the length to this power.
    pub length_penalty: f64,
    /// Captions of a picture.
    pub num_return_sequences: usize,
    /// Of sampling.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            num_beams: 3,
            max_length: 30,
            min_length: 10,
            do_sample: false,
            top_p: 0.9,
            top_k: 50,
            temperature: 1.0,
            repetition_penalty: 1.0,
            length_penalty: 1.0,
            num_return_sequences: 1,
            seed: 0,
        }
    }
}

impl Options {
    /// LAVIS's `use_nucleus_sampling`.
    pub fn nucleus() -> Options {
        Options { num_beams: 1, do_sample: true, ..Options::default() }
    }

    /// So many of the most probable tokens tell a search all it needs: those that can win, and [SEP], which may be forbidden.
    /// None: it needs the logits of all.
    pub(super) fn enough(&self) -> Option<usize> {
        let n = if self.num_beams == 1 { 1 } else { 2 * self.num_beams };
        (!self.do_sample && self.repetition_penalty == 1.0).then_some(n + 1)
    }

    /// Rows that are open at once.
    pub(super) fn width(&self) -> usize {
        if self.do_sample { self.num_return_sequences } else { self.num_beams }
    }

    /// Rows that an image has at most, in all steps together.
    pub(super) fn most_rows(&self) -> usize {
        1 + (self.max_length - 2) * self.width()
    }

    /// Refuses what cannot be searched with, for a model of `vocab` tokens and `positions` text positions.
    pub fn check(&self, vocab: usize, positions: usize) -> Result<()> {
        let wrong = |what: &str, want: String, got: String| Err(Error::argument("generate", what, want, got));
        let positive = |x: f64| x.is_finite() && x > 0.0;
        if self.num_beams == 0 || 2 * self.num_beams > vocab {
            return wrong("num_beams", format!("1 to {}", vocab / 2), self.num_beams.to_string());
        }
        if self.max_length < 2 || self.max_length > positions {
            return wrong(
                "max_length",
                format!("2 to {positions}, the model's text positions"),
                self.max_length.to_string(),
            );
        }
        if self.min_length > self.max_length {
            return wrong(
                "min_length",
                format!("at most max_length, {}", self.max_length),
                self.min_length.to_string(),
            );
        }
        if !(positive(self.top_p) && self.top_p <= 1.0) {
            return wrong("top_p", "above 0 and at most 1".into(), self.top_p.to_string());
        }
        if !positive(self.temperature) {
            return wrong("temperature", "a finite number above 0".into(), self.temperature.to_string());
        }
        if !positive(self.repetition_penalty) {
            return wrong(
                "repetition_penalty",
                "a finite number above 0".into(),
                self.repetition_penalty.to_string(),
            );
        }
        if !self.length_penalty.is_finite() {
            return wrong("length_penalty", "a finite number".into(), self.length_penalty.to_string());
        }
        if self.do_sample && self.num_beams > 1 {
            return wrong("num_beams", "1 when sampling".into(), self.num_beams.to_string());
        }
        let most = if self.do_sample { 1 << 16 } else { self.num_beams };
        if self.num_return_sequences == 0 || self.num_return_sequences > most {
            let want = format!("1 to {most}{}", if self.do_sample { "" } else { ", the number of beams" });
            return wrong("num_return_sequences", want, self.num_return_sequences.to_string());
        }
        Ok(())
    }
}
