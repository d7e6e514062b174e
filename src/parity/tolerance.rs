//! How far a number may be from LAVIS's: the rule, with its derivation. It is written for any case, not for the cases at hand.
//!
//! # f32 and f64
//!
//! Relative L2 error 1e-4 of outputs and gradients, 1e-4 of losses, 1e-3 of a training run: LAVIS's own f32 is exact to about
//! 1e-6, and a mistake of one term in ten thousand shows.
//!
//! # 16 bits
//!
//! Let u be the unit roundoff (f16: 2^-11, bf16: 2^-8), t a tensor, T what LAVIS has, O ours, e = |O - T| / |T|.
//! Let a be the error that 16 bits make in t if nothing is wrong. Then t may be off by
//!
//! ```text
//! e <= 2 (1 + 3 / sqrt(k)) sqrt(max(a, m)^2 + u^2)                                                  (1)
//! ```
//!
//! - 2: ours and LAVIS's roundings are two draws from one distribution, and ours rounds at other places than autocast does: twice
//!   as many places would be 1.4. (There are more: hidden states between sublayers, embeddings, and their gradients are stored in 16
//!   bits here, in f32 by autocast.)
//! - k, how many independent errors e is the length of. The numbers of t are not independent: what a deep network amplifies most
//!   is one direction, and along it all numbers of a row are off together. Rows are independent: an output has k = its rows. A
//!   gradient is a sum over the samples of the batch, and everything upstream of it is common to all its numbers, and to all
//!   gradients: k = the pictures of the batch, or the numbers of t if those are fewer. So, too, a weight after training. The gradient
//!   with respect to attention, of a number of one picture (`outputs.*.gradient.*`), has k = 1.
//! - 1 + 3 / sqrt(k): the length of k independent errors varies by 1 / sqrt(2 k) of itself. e is one such draw and a another, so that
//!   their quotient varies by 1 / sqrt(k); three times that.
//! - m, the median of a over the outputs, or the gradients, of the case: a small tensor can be lucky, one in two cannot.
//! - u: ours stores every result once where autocast may keep it in f32 (the image encoder's output): one
//!   rounding more, of at most u, independent of the others and so in quadrature.
//!
//! How far k = the pictures of the batch is right was measured with LAVIS alone: over 8 runs of 39 + 12 layers with weights moved by a
//! hundredth (`autocast.py --draws`), all gradients of a run are off together, by 0.5 to 1.8 times their root mean square. The logarithm of
//! that has a deviation of 0.22 to 0.41; 1 / sqrt(2 k) is 0.41 with 3 pictures and 0.35 with 4.
//!
//! a comes from one of two places, and the last line says from which.
//!
//! *Recorded*: `CASE.autocast.json` beside the case holds LAVIS's own error under torch.autocast, tensor by tensor
//! (`tests/lavis/autocast.py`; `record.py` writes it with every case). Of texts it is LAVIS's error of the logits along them.
//!
//! *Derived*, without that file: how strongly roundings show is the condition of the case (temperature, depth, cancellation), and
//! that is measured on the CPU in f32, where nothing is rounded to 16 bits: once with the case's weights and [`DRAWS`] times
//! with every operand of a matmul off by a random part of itself with the deviation u sqrt(4 / 3). A matmul rounds four
//! things: the weight, its input, its result, and what stands between two matmuls (a GELU, a probability, a norm's output); each
//! rounding is spread evenly over at most u, which has the variance u^2 / 3; independent, they add up to 4 u^2 / 3, all of which is put
//! into the weight. The root mean square of the relative changes is a. Both runs share our code, so a mistake in it is no error here:
//! it does not widen the tolerance.
//!
//! # What no tolerance may let through
//!
//! A gradient that is all zero has e = 1; one of the opposite sign e >= 2 - a; twice too large e >= 1 - a; and beside a record twice
//! too large, e >= (1 - a) / 2. All four are refused if e is held below 1/3. So (1) is cut off at [`MOST`] = 0.3.
//! Where (1) is above it, 16 bits leave no digit of the norm, and t is held by (1) and by its *gain* g = O.T / T.T, |g - 1| <= 0.3:
//! errors of k numbers that point anywhere add only a / sqrt(k) to g, while the four mistakes have g = 0, -1, 2 and 1/2.
//!
//! Where k is small that is not little: g of one run may be off by more than 0.3 although nothing is wrong. Such a gradient is settled
//! by more runs, with all weights moved by a hundredth of themselves, beside the same in f32 on the CPU: g over N runs varies by
//! 2 a / sqrt(k N), and N is taken so that three times that is 0.3. The record itself is held to the CPU's f32 by the rule of f32.
//!
//! # True values of 0
//!
//! The gradient of a key bias is 0 (softmax ignores a constant), that of a projection is where all captions are equal, ...: what is
//! recorded is what rounding left of terms that cancel. A gradient none of whose numbers exceeds 1e-6 of the *size of the case's
//! gradients* (what nine tenths of its tensors have as their largest number at most: one that is blown up by a norm of zeros does
//! not count; of the temperature t, largest similarity / t, if that is more: its gradient adds up those times differences of
//! probabilities) is held absolutely: to 1e-5 of that size in f32, which is a sum of a few thousand terms of that size in which each is
//! off by 2^-24; in 16 bits to n = 16 layers roundings of u / sqrt(3) in quadrature, of terms a tenth of that size as they are on
//! average: 0.2 u sqrt(n / 3), if that is more. That much may hide a small gradient whose record was lost: in 16 bits the record is
//! also held to the CPU's f32, by the rule of f32 (but for key biases, whose true value is known).
//!
//! # Choices
//!
//! The query that answers a caption best is given, as negatives are: from the case (`inputs.best_query`), or computed in f64 from the
//! recorded features, or, where none are recorded, from those that the CPU computes in f32. So no tie sends a gradient elsewhere. That
//! our own choice is the same is a line of its own, of the pairs whose second best query is further off than twice what the
//! features may be by (1).
//! Words of a caption and candidates of a search may change places in 16 bits where they are nearly as probable: there the logits
//! along the recorded captions are compared, and the scores of the candidates that both chose.
//!
//! # How much must be compared
//!
//! A recorded tensor that is neither compared nor named as not comparable is a failure; so is a case of which more than a tenth is not
//! comparable. Not comparable are the key biases after training steps: AdamW makes steps of the noise around their gradient of 0.

use super::Place;
use super::case::{Case, unit};
use crate::tensor::Storage;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The largest relative error that proves anything.
pub const MOST: f64 = 0.3;
/// Runs with weights that are off, for a tolerance without a record.
pub const DRAWS: u64 = 3;
/// More runs than these are not tried to settle a gain.
pub const MANY: u64 = 16;
/// The largest number of a gradient that counts as 0, as a part of the size of the case's gradients.
pub const NOTHING: f64 = 1e-6;
/// How far such a gradient may be from the recorded one in f32, as a part of that size.
pub const ZERO: f64 = 1e-5;

/// What a case is held to.
pub enum Held {
    Exact,
    Rounded(Rounded),
}

/// In 16 bits.
#[derive(Debug)]
pub struct Rounded {
    unit: f64,
    errors: BTreeMap<String, f64>,
    /// Of the outputs, of the gradients, of the weights after training.
    medians: [f64; 3],
    /// `outputs.losses, worst of a step (relative)` and the like are only in a record.
    pub recorded: bool,
    pub from: String,
    layers: usize,
    /// Pictures of a batch.
    samples: usize,
}

fn group(name: &str) -> usize {
    if name.starts_with("outputs.grad_") || is_of_one_picture(name) {
        return 1;
    }
    ["outputs.", "grads.", "after."].iter().position(|p| name.starts_with(p)).unwrap_or(0)
}

/// A gradient of a number of one picture.
fn is_of_one_picture(name: &str) -> bool {
    name.starts_with("outputs.") && name.contains(".gradient.")
}

/// The recorded errors of LAVIS under autocast, if they lie beside the case.
fn recorded(case: &Case, at: &Place) -> Result<Option<(String, BTreeMap<String, f64>)>> {
    // LAVIS keeps the image encoder in f16 in both.
    if at.precision.vit != Storage::F16 {
        return Ok(None);
    }
    let path: PathBuf = case.path.with_extension("autocast.json");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("parity", &path, &e)),
    };
    let wrong = |got: String| Error::file("parity", &path, "what tests/lavis/autocast.py writes", got);
    let mut all: BTreeMap<String, BTreeMap<String, f64>> =
        serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    let dtype = if at.precision.rest == Storage::F16 { "f16" } else { "bf16" };
    let errors = all.remove(dtype).ok_or_else(|| wrong(format!("no errors of {dtype}")))?;
    if let Some((name, e)) = errors.iter().find(|(_, e)| !e.is_finite() || **e < 0.0) {
        return Err(wrong(format!("an error of {e} in {name}")));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(Some((format!("twice {name}"), errors)))
}

impl Held {
    /// `derive` gives the errors where none are recorded.
    pub fn of(
        case: &Case,
        at: &Place,
        layers: usize,
        derive: impl FnOnce() -> Result<BTreeMap<String, f64>>,
    ) -> Result<Held> {
        let unit = unit(at.precision.rest);
        if unit == 0.0 {
            return Ok(Held::Exact);
        }
        let recorded = recorded(case, at)?;
        let is_recorded = recorded.is_some();
        let (from, errors) = match recorded {
            Some(found) => found,
            None => (format!("a bound derived from {DRAWS} runs with weights off by roundings"), derive()?),
        };
        let medians = [0, 1, 2].map(|g| {
            let mut of: Vec<f64> = errors.iter().filter(|(n, _)| group(n) == g).map(|(_, e)| *e).collect();
            of.sort_by(f64::total_cmp);
            of.get(of.len() / 2).copied().unwrap_or(0.0)
        });
        let samples = case.samples()?;
        Ok(Held::Rounded(Rounded { unit, errors, medians, recorded: is_recorded, from, layers, samples }))
    }
}

impl Rounded {
    /// sqrt(max(a, m)^2 + u^2)
    pub fn expected(&self, name: &str) -> f64 {
        let median = self.medians[group(name)];
        let own = self.errors.get(name).map_or(median, |e| e.max(median));
        own.hypot(self.unit)
    }

    /// (1), before it is cut off.
    pub fn bound(&self, name: &str, shape: &[usize]) -> f64 {
        let n: usize = shape.iter().product();
        let k = match group(name) {
            0 => n / shape.last().copied().unwrap_or(1).max(1),
            _ if is_of_one_picture(name) => 1,
            _ => n.min(self.samples),
        };
        2.0 * (1.0 + 3.0 / (k.max(1) as f64).sqrt()) * self.expected(name)
    }

    /// How many runs settle the gain of a gradient.
    pub fn runs(&self, name: &str, shape: &[usize]) -> u64 {
        let k = shape.iter().product::<usize>().min(self.samples).max(1) as f64;
        let runs = (3.0 * 2.0 * self.expected(name) / MOST).powi(2) / k;
        (runs.ceil() as u64).clamp(2, MANY)
    }

    pub fn knows(&self, name: &str) -> bool {
        self.errors.contains_key(name)
    }

    /// The part of the size of the gradients that one whose true value is 0 may have.
    pub fn floor(&self) -> f64 {
        0.2 * self.unit * (16.0 * self.layers as f64 / 3.0).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::super::compare::Report;
    use super::*;
    use std::path::Path;

    fn rounded(error: f64) -> Rounded {
        let errors = [("outputs.x", error), ("grads.x", error), ("grads.y", error)];
        Rounded {
            unit: unit(Storage::BF16),
            errors: errors.map(|(n, e)| (n.to_string(), e)).into_iter().collect(),
            medians: [error, error, 0.0],
            recorded: true,
            from: "a test".into(),
            layers: 3,
            samples: 16,
        }
    }

    fn passes(error: f64, ours: &[f64], theirs: &[f64]) -> bool {
        let mut report = Report::new(Path::new("x"), "stage1", Held::Rounded(rounded(error)));
        report.close("grads.x", &[ours.len()], ours, theirs, 1e-4);
        report.lines.iter().all(|l| l.pass)
    }

    /// However large LAVIS's own error is: zero, twice, half and the opposite never pass, an error that points anywhere may.
    #[test]
    fn no_tolerance_lets_a_gross_mistake_through() {
        let theirs: Vec<f64> = (0..400).map(|i| ((i * 37) % 101) as f64 / 50.0 - 1.0).collect();
        let noise: Vec<f64> = (0..400).map(|i| if (i * 7919) % 13 < 6 { 0.6 } else { -0.5 }).collect();
        for error in [1e-4, 0.03, 0.2, 1.0, 1e3] {
            for by in [0.0, 2.0, 0.5, -1.0] {
                let ours: Vec<f64> = theirs.iter().map(|x| by * x).collect();
                assert!(!passes(error, &ours, &theirs), "times {by} at {error}");
            }
            let near: Vec<f64> = theirs.iter().zip(&noise).map(|(x, e)| x + error.min(0.5) * e).collect();
            assert!(passes(error, &near, &theirs), "noise at {error}");
        }
        let far: Vec<f64> = theirs.iter().zip(&noise).map(|(x, e)| x + 0.2 * e).collect();
        assert!(!passes(0.01, &far, &theirs));
    }

    /// A sum over few samples may be luckier than one over many, and none is held to less than the median.
    #[test]
    fn few_samples_have_more_room() {
        let mut r = rounded(0.01);
        let u = 2f64.powi(-8);
        assert!((r.bound("grads.x", &[64, 64]) - 2.0 * 1.75 * 0.01f64.hypot(u)).abs() < 1e-9);
        assert_eq!(r.bound("grads.unheard_of", &[64]), r.bound("grads.x", &[64, 64]));
        assert!((r.bound("outputs.x", &[3, 3, 64]) - 4.0 * 0.01f64.hypot(u)).abs() < 1e-9);
        assert_eq!(r.bound("outputs.x", &[]), 8.0 * r.expected("outputs.x"));
        assert_eq!(r.bound("outputs.grad_x", &[64, 64]), r.bound("grads.x", &[64, 64]));
        assert_eq!(r.bound("outputs.0.match.gradient.1", &[2, 8, 9]), 8.0 * r.expected("grads.unheard_of"));
        r.samples = 1;
        assert_eq!(r.bound("grads.x", &[64, 64]), 8.0 * r.expected("grads.x"));
    }
}
