//! What a run will take, worked out before anything large is allocated: steps, memory by part, the largest batch that fits.
//!
//! Memory is counted in numbers of 4 bytes. For a micro-batch of B pictures with texts of T tokens the tape keeps, a row
//! and a Q-Former layer (C hidden, F feed-forward):
//!   queries, keys, values, attention, two sums before a norm, two norms, the joined rows:  9 C + 2 F
//!   query rows of a layer with cross-attention:                                            4 C
//! over B (Q + 2 T) rows of the first pass and 3 B (Q + T) of the matching pass; per picture with N tokens the keys and
//! values of each layer with cross-attention and their gradients (4 N C), the normalised tokens (N W); logits and their
//! gradient (2 T V). A trained image encoder keeps 8 W + 2 M a token and block (M its feed-forward), a frozen one only
//! the largest block at a time. The backward pass adds what one layer needs.

use super::config::{Config, Length};
use crate::files::bytes;
use crate::model;
use crate::nn::Spec;
use std::fmt;

/// Bytes, part by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub weights: u64,
    pub gradients: u64,
    pub optimizer: u64,
    pub activations: u64,
    /// Pictures of the step and those loaded ahead.
    pub pictures: u64,
}

impl Memory {
    pub fn total(&self) -> u64 {
        self.weights + self.gradients + self.optimizer + self.activations + self.pictures
    }

    /// Of a model with these parameters, for micro-batches of `batch` captions of `text` tokens.
    pub fn of(config: &Config, sizes: &model::Config, specs: &[Spec], batch: usize, text: usize) -> Memory {
        let count = |s: &Spec| s.shape.iter().product::<usize>() as u64;
        let trained: u64 = specs.iter().filter(|s| s.trained).map(count).sum();
        let held = (config.accumulate + config.prefetch + 1) * batch * 3 * sizes.image_size.pow(2);
        let joint = config.contrast != super::trainer::Contrast::MicroBatch && config.accumulate > 1;
        let tokens =
            if joint { config.accumulate * batch * sizes.image_tokens() * sizes.vit_width } else { 0 };
        Memory {
            weights: 4 * specs.iter().map(count).sum::<u64>(),
            gradients: 4 * trained,
            optimizer: 8 * trained,
            activations: 4 * (activations(sizes, config.trains_vit(), batch, text) + tokens as u64),
            pictures: 4 * held as u64,
        }
    }

    /// The largest micro-batch that fits into this many bytes; `None` if not even two captions do.
    pub fn largest_batch(available: u64, of: impl Fn(usize) -> Memory) -> Option<usize> {
        let fits = |batch: usize| of(batch).total() <= available;
        if !fits(2) {
            return None;
        }
        let (mut low, mut high) = (2, 4);
        while high < 1 << 20 && fits(high) {
            (low, high) = (high, high * 2);
        }
        while high - low > 1 {
            let middle = low.midpoint(high);
            if fits(middle) { low = middle } else { high = middle }
        }
        Some(low)
    }
}

/// Numbers that the tape keeps, and what a layer's backward adds.
fn activations(c: &model::Config, train_vit: bool, batch: usize, text: usize) -> u64 {
    let (q, n, w, h, f) = (c.num_query, c.image_tokens(), c.vit_width, c.hidden, c.ffn);
    let cross = (0..c.layers).filter(|i| c.has_cross(*i)).count();
    let (rows, query_rows) = (q + 2 * text + 3 * (q + text), 4 * q);
    let layers = c.layers * rows * (9 * h + 2 * f) + cross * query_rows * 4 * h;
    let images = n * (w + cross * 4 * h);
    let block = n * (8 * w + 2 * c.vit_mlp);
    let encoder = if train_vit { (c.vit_depth + 1) * block } else { block };
    let head = text * (2 * c.vocab + 3 * h);
    let backward = rows * (2 * h + 2 * f);
    (batch * (layers + images + encoder + head + backward)) as u64
}

/// Bytes this process may still use: the machine's, or its container's if that is less.
pub fn available() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let free = line.split_whitespace().next()?.parse::<u64>().ok()? * 1024;
    let number = |file: &str| -> Option<u64> {
        std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse().ok()
    };
    let group = number("memory.max").map(|max| max.saturating_sub(number("memory.current").unwrap_or(0)));
    Some(group.map_or(free, |g| g.min(free)))
}

/// The plan of a run.
pub struct Plan {
    pub parameters: u64,
    pub trained: u64,
    /// Of the CPU, if it trains there: a GPU's is rehearsed (see [`super::rehearsal`]).
    pub memory: Option<Memory>,
    pub available: Option<u64>,
    pub largest_batch: Option<usize>,
    pub batch: usize,
    pub accumulate: usize,
    pub length: Length,
}

impl Plan {
    /// `text` is the length of the longest caption in tokens. Memory is planned where the CPU computes.
    pub fn new(
        config: &Config,
        sizes: &model::Config,
        specs: &[Spec],
        text: usize,
        length: Length,
        on_cpu: bool,
    ) -> Plan {
        let count = |s: &Spec| s.shape.iter().product::<usize>() as u64;
        let of = |batch| Memory::of(config, sizes, specs, batch, text);
        let available = available().filter(|_| on_cpu);
        Plan {
            parameters: specs.iter().map(count).sum(),
            trained: specs.iter().filter(|s| s.trained).map(count).sum(),
            memory: on_cpu.then(|| of(config.batch)),
            available,
            largest_batch: available.and_then(|bytes| Memory::largest_batch(bytes, of)),
            batch: config.batch,
            accumulate: config.accumulate,
            length,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let l = self.length;
        let millions = |n: u64| n as f64 / 1e6;
        writeln!(
            f,
            "parameters     {:.2} million, {:.2} million of them trained",
            millions(self.parameters),
            millions(self.trained)
        )?;
        write!(
            f,
            "steps          {} of {} x {} captions; {} in an epoch; warm-up over {}; schedule of {} epochs",
            l.steps, self.accumulate, self.batch, l.steps_per_epoch, l.warmup_steps, l.max_epoch
        )?;
        let Some(m) = self.memory else { return Ok(()) };
        writeln!(f)?;
        for (name, n) in [
            ("weights", m.weights),
            ("gradients", m.gradients),
            ("optimizer", m.optimizer),
            ("activations", m.activations),
            ("pictures", m.pictures),
            ("together", m.total()),
        ] {
            writeln!(f, "  {name:<12} {:>11}", bytes(n))?;
        }
        match (self.available, self.largest_batch) {
            (Some(free), Some(batch)) => {
                let more = if batch >= 1 << 20 { "any batch".into() } else { format!("a batch of {batch}") };
                write!(f, "memory         {} free: {more} fits", bytes(free))
            }
            (Some(free), None) => {
                write!(f, "memory         {} free: not even a batch of 2 fits", bytes(free))
            }
            _ => write!(f, "memory         what is free is not known on this system"),
        }
    }
}
