//! Computing what a cache lacks: all that is missing before a run, and a damaged record when it is met.

use super::{Cache, OPERATION, UNUSABLE, View};
use crate::data::{Loader, Options, Order};
use crate::model::Model;
use crate::nn::{Params, Pass};
use crate::tensor::Chunk;
use crate::train::loading::Loading;
use crate::train::watch::Watch;
use crate::{Error, Kind, Result};
use std::sync::Arc;

/// Pictures that change while their tokens are computed are computed again, so often.
const ROUNDS: usize = 3;

impl Cache {
    /// Computes what is missing, `batch` pictures at a time, until it is asked to stop. Pictures that cannot be used are
    /// reported and left out.
    pub fn fill(
        &self,
        loading: &Arc<Loading>,
        encoder: (&Model, &Params),
        (batch, options): (usize, Options),
        watch: &mut dyn Watch,
    ) -> Result<()> {
        let total = self.len() as u64;
        watch.count("features", total - self.missing().len() as u64, total);
        for _ in 0..ROUNDS {
            if !self.missing().is_empty() && !watch.stop() {
                self.fill_once(loading, encoder, (batch, options.clone()), watch)?;
            }
        }
        watch.finish();
        let missing = self.missing().len();
        if missing > 0 && !watch.stop() {
            return Err(Error::new(Kind::Data, OPERATION)
                .expected("pictures that stay as they are")
                .got(format!("some that change while they are read: {missing} views are missing"))
                .fix("run again when nothing writes to them"));
        }
        if missing == 0 { self.share(true) } else { Ok(()) }
    }

    fn fill_once(
        &self,
        loading: &Arc<Loading>,
        encoder: (&Model, &Params),
        (batch, options): (usize, Options),
        watch: &mut dyn Watch,
    ) -> Result<()> {
        let missing = Arc::new(self.missing());
        let batch = Chunk::of(&loading.device).whole(batch);
        let order = Arc::new(Order::in_turn(batch, missing.len())?);
        let (records, views, source) = (Arc::clone(&missing), self.views(), Arc::clone(loading));
        let mut loader = Loader::start(order, Options { bad_share: 1.0, ..options }, move |i, _| {
            source.view(records[i] / views, records[i] % views)
        })?;
        let mut told = 0;
        while !watch.stop() {
            let batch = loader.next_batch()?;
            let bad = loader.bad();
            for bad in &bad[told..] {
                watch.warn(&format!("warning: no features of a picture: {}", bad.reason));
                self.mark(missing[bad.index], UNUSABLE)?;
            }
            told = bad.len();
            let Some(batch) = batch else { break };
            let pixels = batch.items.iter().flat_map(|view| &view.pixels).copied().collect::<Vec<u8>>();
            let bytes = self.compute(loading, &pixels, encoder)?;
            let views = batch.indices.iter().zip(&batch.items).zip(bytes.chunks_exact(self.bytes()));
            for ((i, view), record) in views {
                let picture = missing[*i] / self.views();
                // Other views of it may be of other bytes.
                if self.sources.set(picture, view.source)? {
                    self.forget(&[picture], |_| true)?;
                }
                self.check_finite(missing[*i], record)?;
                self.store(missing[*i], record)?;
            }
            watch.advance(batch.indices.len(), &mut || loader.waited_share());
        }
        Ok(())
    }

    /// Computes the tokens of a damaged record from its view's pixels.
    pub fn repair(
        &self,
        record: usize,
        view: &View,
        loading: &Loading,
        (model, params): (&Model, &Params),
    ) -> Result<Vec<u8>> {
        let picture = record / self.views();
        if self.sources.of(picture).hash != view.source.hash {
            return Err(Error::new(Kind::Data, OPERATION)
                .about(format!("picture {picture}"))
                .expected("the picture that a damaged record was computed from")
                .got("another")
                .fix("run again: what has changed is computed again"));
        }
        let bytes = self.compute(loading, &view.pixels, (model, params))?;
        self.check_finite(record, &bytes)?;
        self.store(record, &bytes)?;
        Ok(bytes)
    }

    fn compute(
        &self,
        loading: &Loading,
        pixels: &[u8],
        (model, params): (&Model, &Params),
    ) -> Result<Vec<u8>> {
        let tokens = model.tokens_in_chunks(&Pass::inference(params), &loading.planes(pixels)?)?;
        tokens.stored(self.settings.storage)
    }
}
