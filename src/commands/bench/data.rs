//! `qformer bench data`: how fast a data set is read, and how fast its pictures are, read alone and read and decoded.

use super::Args;
use super::meter;
use crate::commands::output::say;
use crate::data::Dataset;
use crate::vision::{MAX_FILE, Turn};
use crate::{Error, Kind, Result};
use rayon::prelude::*;
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// Pictures that are read and decoded.
const PICTURES: usize = 10_000;

#[derive(Serialize)]
struct Measured {
    source: String,
    pictures: usize,
    captions: usize,
    seconds: f64,
    captions_per_s: f64,
    peak_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    images: Option<Images>,
}

#[derive(Serialize)]
struct Images {
    pictures: usize,
    bytes: u64,
    /// Reading alone; reading and decoding.
    read_per_s: f64,
    decoded_per_s: f64,
    /// Time of reading, of the time of both.
    reading_share: f64,
}

pub fn run(args: &Args) -> Result<()> {
    let none =
        || Error::argument("bench data", "--captions", "a file of captions, shards or a folder", "none");
    let captions = args.captions.as_deref().ok_or_else(none)?;
    let begun = Instant::now();
    let data = match &args.images {
        Some(images) => Dataset::read(captions, images, 1.0)?,
        None => Dataset::read_captions(captions)?,
    };
    let seconds = begun.elapsed().as_secs_f64();
    let (peak_bytes, report) = (meter::peak_memory()?, &data.report);
    let measured = Measured {
        source: report.source.clone(),
        pictures: report.pictures,
        captions: report.captions,
        seconds,
        captions_per_s: report.captions as f64 / seconds,
        peak_bytes,
        images: args.images.as_deref().map(|_| images(&data)).transpose()?,
    };
    if args.json {
        let text = serde_json::to_string(&measured).map_err(|e| Error::new(Kind::Write, "bench").got(e))?;
        return say!("{text}");
    }
    say!(
        "{}: {} pictures, {} captions in {seconds:.3} s: {:.0} captions/s, peak {:.0} MB",
        shown(captions),
        measured.pictures,
        measured.captions,
        measured.captions_per_s,
        peak_bytes as f64 / 1e6,
    )?;
    let Some(i) = &measured.images else { return Ok(()) };
    say!(
        "{} pictures, {:.1} MB: read {:.0}/s, read and decoded {:.0}/s; reading is {:.1} % of it",
        i.pictures,
        i.bytes as f64 / 1e6,
        i.read_per_s,
        i.decoded_per_s,
        100.0 * i.reading_share,
    )
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Goes over pictures twice, on all threads.
fn images(data: &Dataset) -> Result<Images> {
    let some: Vec<_> = data.samples.iter().take(PICTURES).map(|s| s.image()).collect();
    let begun = Instant::now();
    let bytes: u64 =
        some.par_iter().map(|i| i.read(MAX_FILE).map(|b| b.len() as u64)).sum::<Result<u64>>()?;
    let read = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    some.par_iter().try_for_each(|i| i.photo(Turn::AsStored)?.check())?;
    let both = begun.elapsed().as_secs_f64();
    let n = some.len() as f64;
    Ok(Images {
        pictures: some.len(),
        bytes,
        read_per_s: n / read,
        decoded_per_s: n / both,
        reading_share: read / both,
    })
}
