//! Loads batches ahead of time on threads, in an order that does not depend on the threads.
//!
//! Samples are numbered through (batch after batch, slot after slot); sample k is loaded by thread
//! k mod N, which sends it down its own bounded channel, and the consumer takes from the channels in turn. So
//! batches are the same for any number of threads and any depth, and at most `prefetch` batches wait in memory.
//!
//! A sample that cannot be used (an error of kind File or Data) is replaced by `Order::spare`, or left out of an order
//! in turn; it is listed, and too many of them are an error. Any other error, a panic or a thread that hangs ends the walk.
//! Dropping the loader ends and joins its threads.

use super::Order;
use crate::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const OPERATION: &str = "load samples";
/// Replacements tried for one slot before giving up.
const TRIES: u64 = 64;

/// How samples are loaded.
#[derive(Clone, Debug)]
pub struct Options {
    /// Threads.
    pub workers: usize,
    /// Batches loaded ahead, all threads together.
    pub prefetch: usize,
    /// The first step, and the step to stop before (never, for training).
    pub first: u64,
    /// The batch behind the last one.
    pub end: u64,
    /// More unusable samples than this share of all are an error.
    pub bad_share: f64,
    /// How long one sample may take.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let workers = std::thread::available_parallelism().map_or(4, usize::from).min(16);
        let patience = Duration::from_secs(120);
        Options { workers, prefetch: 2, first: 0, end: u64::MAX, bad_share: 0.005, patience }
    }
}

/// The samples of one step. In an order in turn, unusable samples are missing from both lists.
#[derive(Debug)]
pub struct Batch<T> {
    /// Which batch of the order it is.
    pub step: u64,
    /// The places of its samples in the data set.
    pub indices: Vec<usize>,
    /// What was loaded of each.
    pub items: Vec<T>,
}

/// A sample that could not be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Bad {
    /// Its place in the data set.
    pub index: usize,
    /// Why.
    pub reason: Error,
}

/// What a thread sends for one slot.
enum Sent<T> {
    Loaded { index: usize, item: T, bad: Vec<Bad> },
    LeftOut(Vec<Bad>),
    Failed(Error),
}

/// Batches, prefetched on threads, in order.
pub struct Loader<T> {
    order: Arc<Order>,
    options: Options,
    channels: Vec<Receiver<Sent<T>>>,
    threads: Vec<JoinHandle<()>>,
    step: u64,
    /// Samples received so far.
    taken: u64,
    bad: BTreeMap<usize, Error>,
    failed: Option<Error>,
    hangs: bool,
    waited: Duration,
    since: Instant,
}

impl<T: Send + 'static> Loader<T> {
    /// Starts loading. `load(index, step)` must depend on its arguments alone.
    pub fn start<F>(order: Arc<Order>, options: Options, load: F) -> Result<Loader<T>>
    where
        F: Fn(usize, u64) -> Result<T> + Send + Sync + 'static,
    {
        if options.workers == 0 || options.prefetch == 0 {
            let got = format!("{} and {}", options.workers, options.prefetch);
            return Err(Error::argument(OPERATION, "workers and prefetch", "at least 1 each", got));
        }
        let load = Arc::new(load);
        let depth = (options.prefetch * order.batch_len(0)).div_ceil(options.workers).max(1);
        let (mut channels, mut threads) = (Vec::new(), Vec::new());
        for worker in 0..options.workers {
            let (sender, receiver) = sync_channel(depth);
            let (order, options, load) = (order.clone(), options.clone(), load.clone());
            let body = move || work(worker as u64, &order, &options, &*load, &sender);
            let thread = std::thread::Builder::new().name(format!("loader-{worker}")).spawn(body);
            threads.push(thread.map_err(|e| Error::new(Kind::Argument, OPERATION).about("workers").got(e))?);
            channels.push(receiver);
        }
        let step = options.first;
        let (waited, since) = (Duration::ZERO, Instant::now());
        let (bad, failed) = (BTreeMap::new(), None);
        Ok(Loader {
            order,
            options,
            channels,
            threads,
            step,
            taken: 0,
            bad,
            failed,
            hangs: false,
            waited,
            since,
        })
    }

    /// The next batch; `None` after the last. An error is final: every later call repeats it.
    pub fn next_batch(&mut self) -> Result<Option<Batch<T>>> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let start = Instant::now();
        let result = self.receive();
        self.waited += start.elapsed();
        self.failed = result.as_ref().err().cloned();
        result
    }

    fn receive(&mut self) -> Result<Option<Batch<T>>> {
        while self.step < self.options.end && self.order.batch_len(self.step) > 0 {
            let step = self.step;
            let (mut indices, mut items, mut bad) = (Vec::new(), Vec::new(), Vec::new());
            for slot in 0..self.order.batch_len(step) {
                match self.take(step, slot)? {
                    Sent::Loaded { index, item, bad: b } => {
                        indices.push(index);
                        items.push(item);
                        bad.extend(b);
                    }
                    Sent::LeftOut(b) => bad.extend(b),
                    Sent::Failed(error) => return Err(error),
                }
            }
            self.step += 1;
            self.count(bad)?;
            if !items.is_empty() {
                return Ok(Some(Batch { step, indices, items }));
            }
        }
        Ok(None)
    }

    fn take(&mut self, step: u64, slot: usize) -> Result<Sent<T>> {
        let worker = (self.taken % self.channels.len() as u64) as usize;
        let what = || format!("sample {:?} of step {step}", self.order.at(step, slot).unwrap_or_default());
        let received = self.channels.get(worker).map(|c| c.recv_timeout(self.options.patience));
        match received {
            Some(Ok(sent)) => {
                self.taken += 1;
                Ok(sent)
            }
            Some(Err(RecvTimeoutError::Timeout)) => {
                let error = Error::new(Kind::Data, OPERATION).about(what());
                self.hangs = true;
                Err(error
                    .expected(format!("a sample within {} s", self.options.patience.as_secs_f64()))
                    .got("none: its thread hangs")
                    .fix("check the disk or network drive the pictures lie on"))
            }
            _ => Err(Error::new(Kind::Data, OPERATION).about(what()).got("its thread ended early")),
        }
    }

    /// Lists unusable samples; an error when there are too many.
    fn count(&mut self, bad: Vec<Bad>) -> Result<()> {
        self.bad.extend(bad.into_iter().map(|b| (b.index, b.reason)));
        let total = self.order.total();
        if self.bad.len() as f64 <= self.options.bad_share * total as f64 {
            return Ok(());
        }
        let first: Vec<String> = self.bad.values().take(3).map(Error::to_string).collect();
        Err(Error::new(Kind::Data, OPERATION)
            .expected(format!("at most {} % unusable samples", self.options.bad_share * 100.0))
            .got(format!("{} of {total}; {}", self.bad.len(), first.join("; ")))
            .fix("repair or remove them, or allow a larger share"))
    }

    /// The unusable samples met so far, by index, each once.
    pub fn bad(&self) -> Vec<Bad> {
        self.bad.iter().map(|(&index, reason)| Bad { index, reason: reason.clone() }).collect()
    }

    /// The share of the time since the last call (or the start) that the consumer spent waiting for batches.
    pub fn waited_share(&mut self) -> f64 {
        let (waited, since) = (self.waited, self.since);
        (self.waited, self.since) = (Duration::ZERO, Instant::now());
        let elapsed = since.elapsed().as_secs_f64();
        if elapsed > 0.0 { (waited.as_secs_f64() / elapsed).min(1.0) } else { 0.0 }
    }
}

impl<T> Drop for Loader<T> {
    fn drop(&mut self) {
        // Without receivers the threads' next send fails, and they end.
        self.channels.clear();
        for thread in self.threads.drain(..) {
            // A hanging thread cannot be joined; it is left behind with what it holds.
            if !self.hangs || thread.is_finished() {
                let _ = thread.join();
            }
        }
    }
}

/// One thread: its share of the slots, in order, until nobody listens.
fn work<T, F>(worker: u64, order: &Order, options: &Options, load: &F, sender: &SyncSender<Sent<T>>)
where
    F: Fn(usize, u64) -> Result<T>,
{
    let mut number = 0;
    for step in options.first..options.end {
        let slots = order.batch_len(step);
        if slots == 0 {
            return;
        }
        for slot in 0..slots {
            let mine = number % options.workers as u64 == worker;
            number += 1;
            if mine {
                let sent = fill(order, load, step, slot);
                let last = matches!(sent, Sent::Failed(_));
                if sender.send(sent).is_err() || last {
                    return;
                }
            }
        }
    }
}

/// Loads the sample of one slot, or the first usable spare.
fn fill<T, F>(order: &Order, load: &F, step: u64, slot: usize) -> Sent<T>
where
    F: Fn(usize, u64) -> Result<T>,
{
    let mut bad = Vec::new();
    for ahead in 0..if order.replaces() { TRIES } else { 1 } {
        let Some(index) = order.spare(step, slot, ahead) else { break };
        match catch_unwind(AssertUnwindSafe(|| load(index, step))) {
            Ok(Ok(item)) => return Sent::Loaded { index, item, bad },
            Ok(Err(reason)) if matches!(reason.kind(), Kind::File | Kind::Data) => {
                bad.push(Bad { index, reason });
            }
            Ok(Err(error)) => return Sent::Failed(error),
            Err(panic) => return Sent::Failed(panicked(index, step, panic.as_ref())),
        }
    }
    Sent::LeftOut(bad)
}

fn panicked(index: usize, step: u64, panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    Error::new(Kind::Data, OPERATION)
        .about(format!("sample {index} of step {step}"))
        .got(format!("a panic: {text}"))
        .fix("report this as a defect, with the picture")
}
