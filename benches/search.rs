//! One search in an index of 100,000 pictures: milliseconds once warm, memory, and whether the order is that of 32 bits.
//!
//! `cargo bench --bench search`; with QFORMER_COUNT=N for another number. The features are drawn: 32 rows of 256 a picture, of norm 1, of
//! which half is common to all pictures, so that scores lie as close together as those of photographs. They take 5 GB on the disk per 100,000
//! pictures, in a folder of `TMPDIR` that is removed at the end, and a third of that in the page cache.

use qformer::files::RealDisk;
use qformer::model::{Config, Model};
use qformer::random::Stream;
use qformer::search::index::{Identity, Picture};
use qformer::search::{Index, scan};
use qformer::tensor::Tensor;
use rayon::prelude::*;
use std::error::Error;
use std::time::Instant;

const QUERIES: usize = 32;
const WIDTH: usize = 256;
const WANTED: usize = 32;
const RUNS: usize = 20;
/// Pictures drawn at a time.
const SOME: usize = 512;

fn normalised(row: &mut [f32]) {
    let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
    row.iter_mut().for_each(|x| *x /= norm);
}

fn drawn(seed: u64) -> Stream {
    Stream { seed, step: 0, site: 0 }
}

/// Row `n` of a stream, numbers between -1 and 1.
fn row(stream: &Stream, n: u64) -> Vec<f32> {
    let blocks = (n * WIDTH as u64 / 4..).map(|i| stream.block(i));
    blocks.take(WIDTH / 4).flatten().map(|bits| bits as i32 as f32 / 2f32.powi(31)).collect()
}

fn picture(stream: &Stream, common: &[f32], n: usize) -> Vec<f32> {
    let mut all = Vec::with_capacity(QUERIES * WIDTH);
    for (q, centre) in common.chunks(WIDTH).enumerate() {
        let mut own = row(stream, (n * QUERIES + q) as u64);
        own.iter_mut().zip(centre).for_each(|(x, c)| *x += c);
        normalised(&mut own);
        all.extend(own);
    }
    all
}

/// Resident memory that is no page of a file, in MB.
fn memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("RssAnon:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) / 1e3
}

/// Milliseconds of processor time so far.
fn processor() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    now.tv_sec as f64 * 1e3 + now.tv_nsec as f64 / 1e6
}

fn main() -> Result<(), Box<dyn Error>> {
    let count: usize = std::env::var("QFORMER_COUNT").ok().map_or(Ok(100_000), |n| n.parse())?;
    let folder = tempfile::tempdir()?;
    let config = Config { num_query: QUERIES, embed_dim: WIDTH, ..Config::tiny() };
    let (model, _) = Model::new(config, false)?;
    let identity =
        Identity { folder: String::new(), model: "drawn".into(), num_query: QUERIES, embed_dim: WIDTH };
    let begun = Instant::now();
    let (common, own, asked) = (drawn(1), drawn(2), drawn(3));
    let common: Vec<f32> = (0..QUERIES as u64).flat_map(|q| row(&common, q)).collect();
    let mut index = Index::own(&RealDisk, folder.path(), &identity, false)?;
    for first in (0..count).step_by(SOME) {
        let some: Vec<usize> = (first..count.min(first + SOME)).collect();
        let drawn: Vec<Vec<f32>> = some.par_iter().map(|n| picture(&own, &common, *n)).collect();
        for (n, features) in some.into_iter().zip(drawn) {
            let name = format!("{n}.jpg");
            let picture =
                Picture { path: format!("/{name}"), hash: name.clone(), name, bytes: 1, modified: 1 };
            index.add(picture, &features)?;
        }
        if index.full() {
            index.save(&RealDisk)?;
        }
    }
    index.save(&RealDisk)?;
    drop(index);
    println!(
        "{count} pictures in {} parts, written in {:.1} s",
        Index::read(folder.path())?.parts().len(),
        begun.elapsed().as_secs_f64()
    );

    let index = Index::read(folder.path())?;
    // A text lies as near to what is common as pictures do; a picture as query has all its rows.
    let query = |n: u64, rows: usize| -> Result<Tensor, qformer::Error> {
        let mut all = Vec::new();
        for r in 0..rows {
            let mut one = row(&asked, n * QUERIES as u64 + r as u64);
            one.iter_mut().zip(&common[r * WIDTH..]).for_each(|(x, c)| *x += c);
            normalised(&mut one);
            all.extend(one);
        }
        Tensor::new(all, &[rows, WIDTH])
    };
    let begun = Instant::now();
    scan::best(&model, &index, &query(0, 1)?, WANTED)?;
    println!("first search, which checks every part: {:.0} ms", begun.elapsed().as_secs_f64() * 1e3);
    for (name, rows) in [("text", 1), ("picture", QUERIES)] {
        let mut times = Vec::new();
        let (before, processor) = (memory(), processor());
        for n in 0..RUNS as u64 {
            let query = query(n, rows)?;
            let begun = Instant::now();
            scan::best(&model, &index, &query, WANTED)?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        let used = (self::processor() - processor) / RUNS as f64;
        let (median, most) = (times[RUNS / 2], times[RUNS - 1]);
        println!(
            "{name}: median {median:.0} ms, longest {most:.0} ms of {RUNS}, {used:.0} ms of processor time each; memory {before:.0} MB, then {:.0} MB",
            memory()
        );
    }
    for n in 0..3 {
        let rows = query(n, 1)?;
        let found: Vec<usize> =
            scan::best(&model, &index, &rows, WANTED)?.iter().map(|s| s.picture).collect();
        let mut exact: Vec<(f32, usize)> = Vec::with_capacity(count);
        for (number, places) in index.places() {
            let features = index.part(number)?.features;
            let height = features.len() / WIDTH;
            let scores = model.itc_scores(&Tensor::new(features, &[height, WIDTH])?, &rows)?.to_f32()?;
            exact.extend(places.into_iter().map(|(row, place)| (scores[row], place)));
        }
        exact.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let exact: Vec<usize> = exact.iter().take(WANTED).map(|e| e.1).collect();
        println!(
            "query {n}: the order of the best {WANTED} is {}",
            if exact == found { "that of 32 bits" } else { "ANOTHER than that of 32 bits" }
        );
    }
    Ok(())
}
