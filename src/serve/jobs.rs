//! The line in front of the model. One thread owns it: it takes the first job that waits and those that came meanwhile, and
//! leaves out jobs whose client is gone.

use super::metrics::Metrics;
use super::{Answer, Ask, Engine, OPERATION, limits};
use crate::{Error, Kind, Result};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

struct Job {
    ask: Ask,
    to: oneshot::Sender<Result<Answer>>,
}

/// The way to the model.
#[derive(Clone)]
pub struct Jobs {
    line: SyncSender<Job>,
}

impl Jobs {
    pub fn start(
        engine: Arc<dyn Engine>,
        batch: usize,
        metrics: Arc<Metrics>,
    ) -> Result<(Jobs, JoinHandle<()>)> {
        let (line, waiting) = sync_channel(limits::WAITING);
        let worker = std::thread::Builder::new()
            .name("model".into())
            .spawn(move || work(&*engine, &waiting, batch.max(1), &metrics))
            .map_err(|e| Error::new(Kind::Device, OPERATION).about("the thread of the model").got(e))?;
        Ok((Jobs { line }, worker))
    }

    /// Puts a question into the line. `None` if the line is full.
    pub fn put(&self, ask: Ask) -> Option<oneshot::Receiver<Result<Answer>>> {
        let (to, answer) = oneshot::channel();
        match self.line.try_send(Job { ask, to }) {
            Ok(()) => Some(answer),
            // A worker that is gone drops what is sent, and the receiver hears of it.
            Err(TrySendError::Disconnected(_)) => Some(answer),
            Err(TrySendError::Full(_)) => None,
        }
    }
}

fn work(engine: &dyn Engine, waiting: &Receiver<Job>, batch: usize, metrics: &Metrics) {
    while let Ok(first) = waiting.recv() {
        let jobs = std::iter::once(first).chain(std::iter::from_fn(|| waiting.try_recv().ok())).take(batch);
        let (here, gone): (Vec<Job>, Vec<Job>) = jobs.partition(|job| !job.to.is_closed());
        metrics.cancelled(gone.len());
        if here.is_empty() {
            continue;
        }
        metrics.computed_together(here.len());
        let (asks, to): (Vec<Ask>, Vec<oneshot::Sender<_>>) = here.into_iter().map(|j| (j.ask, j.to)).unzip();
        let answers = engine.answer(&asks, &|i| to.get(i).is_none_or(oneshot::Sender::is_closed));
        for (to, answer) in to.into_iter().zip(answers) {
            if to.send(answer).is_err() {
                metrics.cancelled(1);
            }
        }
    }
}
