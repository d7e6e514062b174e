//! `qformer bench caption --pictures FOLDER`: files to captions, decoding beside captioning, and what captioning waited for. The
//! model's numbers are random, and captions have exactly as many tokens as are asked for.

use super::{Args, Captioner, meter};
use crate::commands::output::say;
use crate::data::{Image, Loader, Options, Order};
use crate::model::Config;
use crate::nn::{Pass, Precision};
use crate::ops;
use crate::tensor::{Chunk, Device};
use crate::vision::{Normalise, Resampling, Turn};
use crate::{Error, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

#[derive(Serialize)]
struct Measured {
    what: &'static str,
    config: String,
    batch: usize,
    text: usize,
    beams: usize,
    pictures: usize,
    /// Files that are no pictures.
    left_out: usize,
    workers: usize,
    device: String,
    dtype: &'static str,
    seconds: f64,
    samples_per_s: f64,
    /// Of it: waiting for pictures.
    waiting: f64,
    processor_seconds: f64,
}

pub(super) fn run(args: &Args, folder: &Path, config: Config, place: &(Device, Precision)) -> Result<()> {
    let files = Arc::new(files(folder)?);
    let side = config.image_size;
    let captioner = Captioner::new(args, config, place)?;
    let batch = Chunk::of(&place.0).whole(args.batch);
    let options = Options { bad_share: 1.0, ..Options::default() };
    let workers = options.workers;
    let source = Arc::clone(&files);
    let order = Arc::new(Order::in_turn(batch, files.len())?);
    let (begun, processor) = (Instant::now(), meter::processor_seconds()?);
    let mut loader = Loader::start(order, options, move |i, _| {
        let photo = Image::File(source[i].clone()).photo(Turn::AsStored)?;
        Ok(photo.resized(&photo.whole(), side, side, Resampling::Exact)?.rgb)
    })?;
    let (mut pictures, mut waiting) = (0, 0.0);
    let Normalise { mean, std } = Normalise::default();
    loop {
        let since = Instant::now();
        let Some(batch) = loader.next_batch()? else { break };
        waiting += since.elapsed().as_secs_f64();
        let image = ops::pixel_planes(&place.0, &batch.items.concat(), side, mean, std)?;
        let pass = Pass::inference(&captioner.params);
        let images = captioner.model.image_features(&pass, &image)?;
        let identities: Vec<u32> = batch.indices.iter().map(|i| *i as u32).collect();
        captioner.model.generate(&captioner.params, &images, &captioner.options, &identities)?;
        pictures += batch.items.len();
    }
    if pictures == 0 {
        let got = format!("{} files, none of them a picture", files.len());
        return Err(Error::argument("bench", "--pictures", "a folder of pictures", got));
    }
    let seconds = begun.elapsed().as_secs_f64();
    let measured = Measured {
        what: "caption",
        config: args.config.clone(),
        batch,
        text: args.text,
        beams: args.beams,
        pictures,
        left_out: loader.bad().len(),
        workers,
        device: if let Device::Gpu(gpu) = &place.0 { gpu.name() } else { "cpu".into() },
        dtype: place.1.name(),
        seconds,
        samples_per_s: pictures as f64 / seconds,
        waiting,
        processor_seconds: meter::processor_seconds()? - processor,
    };
    if args.json { super::json(&measured) } else { print(&measured) }
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e: std::io::Error| Error::io("bench", folder, &e);
    let entries = std::fs::read_dir(folder).map_err(failed)?;
    let mut files = entries.map(|e| Ok(e.map_err(failed)?.path())).collect::<Result<Vec<PathBuf>>>()?;
    files.retain(|path| path.is_file());
    files.sort();
    if files.is_empty() {
        return Err(Error::argument("bench", "--pictures", "a folder of pictures", "one without files"));
    }
    Ok(files)
}

fn print(m: &Measured) -> Result<()> {
    say!(
        "caption {} from picture files, batch {}, {} tokens, {} beams, {} loader threads, {} in {}",
        m.config,
        m.batch,
        m.text,
        m.beams,
        m.workers,
        m.device,
        m.dtype
    )?;
    say!(
        "  time        {:.2} s (processor {:.2} s) for {} pictures",
        m.seconds,
        m.processor_seconds,
        m.pictures
    )?;
    if m.left_out > 0 {
        say!("  left out    {} files that are no pictures", m.left_out)?;
    }
    say!("  samples     {:.2} per second", m.samples_per_s)?;
    say!("  waiting     {:.2} s of it for pictures", m.waiting)
}
