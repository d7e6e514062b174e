//! What a step takes on a GPU, counted by going through one without computing it (`device::gpu`, the driver `plan`). It takes
//! as much of the host's memory and time as the batch is long, and no more than `LARGEST` captions are tried.

use super::config::{Config, Length};
use super::trainer::{Micro, Trainer};
use crate::Result;
use crate::model::llm::LlmConfig;
use crate::model::{self, CLS, Image, Model, SEP};
use crate::nn::{Params, Precision};
use crate::ops;
use crate::tensor::{Device, Storage, Tensor};
use std::fmt;

/// More than any GPU has.
const ENDLESS: &str = "plan:100000";
/// No larger batch is looked for, and no more steps are gone through for one.
const LARGEST: usize = 8_192;
const GUESSES: usize = 14;
/// Mean and deviation of pixels do not matter here.
const PLAIN: [f32; 3] = [1.0; 3];

/// Of a GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rehearsal {
    pub batch: usize,
    /// Bytes in use at most in a step, and all there are, if that is known.
    pub peak: u64,
    pub memory: Option<u64>,
    /// What the pools of both queues then have of the driver (see [`crate::tensor::Gpu::reserve`]).
    pub held: [[usize; 2]; 2],
    /// The largest batch that fits; None if not even two captions do.
    pub largest_batch: Option<usize>,
    /// Launches of kernels and of matmuls in a step.
    pub launches: u64,
    pub matmuls: u64,
}

/// What the steps of a run have in common; `text` is the length of the longest caption in tokens.
pub struct Run<'a> {
    /// Of a second stage: its language model, the tokens of its prompt, and whether its layers are computed twice.
    pub llm: Option<(&'a LlmConfig, usize, bool)>,
    pub config: &'a Config,
    pub sizes: &'a model::Config,
    pub length: Length,
    pub precision: Precision,
    pub text: usize,
}

/// What a step takes.
#[derive(Default)]
struct Step {
    peak: u64,
    held: [[usize; 2]; 2],
    launches: u64,
    matmuls: u64,
}

impl Run<'_> {
    /// Goes through a step. The largest batch is looked for, which takes more of them, if `search`, or if this one is too large.
    pub fn rehearse(&self, memory: Option<u64>, search: bool) -> Result<Rehearsal> {
        let batch = self.config.batch.max(2);
        let Step { peak, held, launches, matmuls } = self.step(batch)?;
        let largest_batch = match memory {
            Some(memory) if search || peak > memory => self.largest_batch((batch, peak), memory)?,
            _ => None,
        };
        Ok(Rehearsal { batch, peak, memory, held, largest_batch, launches, matmuls })
    }

    /// The largest batch found to fit, at most a hundredth below the largest there is. Memory is about a + b n + c n^2 (a
    /// step compares every caption with every picture), which three steps give.
    fn largest_batch(&self, first: (usize, u64), memory: u64) -> Result<Option<usize>> {
        let smallest = (2, self.step(2)?.peak);
        if smallest.1 > memory {
            return Ok(None);
        }
        let (mut low, mut high) = if first.1 > memory { (smallest, Some(first)) } else { (first, None) };
        for _ in 0..GUESSES {
            let end = high.map_or(LARGEST, |h| h.0 - 1);
            if low.0 >= end || high.is_some_and(|h| h.0 - low.0 <= h.0 / 100) {
                break;
            }
            let guess = match high {
                Some(high) => between([smallest, low, high], memory),
                None => beyond([smallest, low], memory).min(8 * low.0),
            };
            let guess = guess.clamp(low.0 + 1, end);
            let found = (guess, self.step(guess)?.peak);
            if found.1 > memory { high = Some(found) } else { low = found }
        }
        Ok(Some(low.0))
    }

    fn step(&self, batch: usize) -> Result<Step> {
        let Run { llm, config, sizes, length, precision, text } = *self;
        let device = Device::open(ENDLESS)?;
        let (mut model, specs) = match llm {
            Some((llm, prompt, _)) => {
                Model::with_llm(sizes.clone(), llm.clone(), prompt, config.trains_vit())?
            }
            None => Model::new(sizes.clone(), config.trains_vit())?,
        };
        model.set_drop_path(config.vit_drop_path);
        model.set_recompute(llm.is_some_and(|(_, _, recompute)| recompute));
        let params = Params::zeros(specs, &device, precision)?;
        let mut trainer = Trainer::new(model, params, config.options(length))?;
        let s = sizes.image_size;
        let caption: Vec<u32> =
            std::iter::once(CLS).chain((2..text.max(3)).map(|_| CLS)).chain([SEP]).collect();
        let image = || {
            if config.cache.is_some() {
                let rows = [batch * sizes.image_tokens(), sizes.vit_width];
                return Tensor::zeros_on(&device, Storage::F32, &rows).map(Image::Tokens);
            }
            ops::pixel_planes(&device, &vec![0; batch * 3 * s * s], s, PLAIN, PLAIN).map(Image::Pixels)
        };
        let micro = || -> Result<Micro> {
            Ok(Micro {
                image: image()?,
                text: vec![caption.clone(); batch],
                image_id: Some((0..batch as i64).collect()),
                names: vec![String::new(); batch],
            })
        };
        let micros = (0..config.accumulate).map(|_| micro()).collect::<Result<Vec<_>>>()?;
        let next = (0..config.accumulate).map(|_| micro()).collect::<Result<Vec<_>>>()?;
        trainer.step_ahead(&micros, &next)?;
        let first = device.take_counts();
        trainer.step_ahead(&micros, &next)?;
        let counts = device.take_counts();
        let peak = first.peak.max(counts.peak);
        let held = [device.held(), trainer.held_ahead()];
        Ok(Step { peak, held, launches: counts.launched(), matmuls: counts.multiplied() })
    }
}

/// Where the line through two batches and their memory reaches `memory`.
fn beyond([(b0, p0), (b1, p1)]: [(usize, u64); 2], memory: u64) -> usize {
    let each = p1.saturating_sub(p0) as f64 / b1.saturating_sub(b0).max(1) as f64;
    let more = memory.saturating_sub(p1) as f64 / each.max(p0 as f64 / 1000.0).max(1.0);
    b1.saturating_add(more as usize)
}

/// Where the parabola through three batches and their memory reaches `memory`, or a line where two of them are one.
fn between([smallest, low, high]: [(usize, u64); 3], memory: u64) -> usize {
    let slope = |a: (usize, u64), b: (usize, u64)| (b.1 as f64 - a.1 as f64) / (b.0 as f64 - a.0 as f64);
    let line = slope(low, high);
    let bend =
        if low.0 > smallest.0 { (line - slope(smallest, low)) / (high.0 - smallest.0) as f64 } else { 0.0 };
    // p(n) = low + line' (n - low) + bend (n - low)^2, with the slope at `low` that leads to `high`.
    let (start, rest) = (line - bend * (high.0 - low.0) as f64, memory.saturating_sub(low.1) as f64);
    let root = (start * start + 4.0 * bend * rest).max(0.0).sqrt();
    let more = 2.0 * rest / (start + root).max(1.0);
    // A little less, so that it fits.
    low.0 + (more * 0.998) as usize
}

impl fmt::Display for Rehearsal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use crate::files::bytes;
        write!(
            f,
            "on the GPU     {} at the peak of a step of {} captions; {} kernels and {} matmuls launched",
            bytes(self.peak),
            self.batch,
            self.launches,
            self.matmuls
        )?;
        match (self.memory, self.largest_batch) {
            (Some(m), Some(b)) if b >= LARGEST => {
                write!(f, "\n               it has {}: a batch of {b} fits, and more was not tried", bytes(m))
            }
            (Some(m), Some(b)) => write!(f, "\n               it has {}: a batch of {b} fits", bytes(m)),
            (Some(m), None) => write!(f, "\n               it has {}: not even a batch of 2 fits", bytes(m)),
            (None, _) => Ok(()),
        }
    }
}
