//! From a picture's file to a model's input, one thread: `cargo bench --bench pictures -- FILE.jpg ...`; without files, drawn ones.
//!
//! `decode` is the whole picture as RGB; `input` is a random crop at 224 x 224, normalised, decoded on the way; `whole` the
//! picture resized exactly as Pillow does it. Rates count the picture's pixels.

use criterion::{BenchmarkId, Criterion, Throughput};
use qformer::vision::{Augment, Normalise, Photo, Resampling, Turn, decode, random_crop, thumbnail};

fn measure(c: &mut Criterion, files: &[(String, Vec<u8>)]) -> qformer::Result<()> {
    let (side, normalise, augment) = (224, Normalise::default(), Augment::default());
    for (name, bytes) in files {
        let (width, height) = Photo::new(bytes, name, Turn::AsStored)?.size();
        let mut group = c.benchmark_group("pictures");
        group.throughput(Throughput::Elements((width * height) as u64));
        group.bench_function(BenchmarkId::new("decode", name), |b| {
            b.iter(|| decode(bytes, name, Turn::AsStored))
        });
        group.bench_function(BenchmarkId::new("input", name), |b| {
            let mut draw = 1u32;
            b.iter(|| {
                let photo = Photo::new(bytes, name, Turn::AsStored)?;
                let crop = random_crop(width, height, &augment, || {
                    draw = draw.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    draw
                })?;
                normalise.planes(&photo.resized(&crop, side, side, Resampling::Fast)?)
            })
        });
        group.bench_function(BenchmarkId::new("whole", name), |b| {
            b.iter(|| {
                let photo = Photo::new(bytes, name, Turn::AsStored)?;
                photo.resized(&photo.whole(), side, side, Resampling::Exact)
            })
        });
    }
    Ok(())
}

/// JPEGs as `thumbnail` writes them, of a slope with noise.
fn drawn() -> qformer::Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for (width, height) in [(640usize, 480usize), (2048, 1536)] {
        let mut state = 1u32;
        let pixel = |i: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (x, y) = (i / 3 % width, i / 3 / width);
            ((x * 150 / width + y * 60 / height) as u32 + (state >> 27)) as u8
        };
        let rgb: Vec<u8> = (0..width * height * 3).map(pixel).collect();
        let png = qformer::vision::encode_png(width, height, &rgb)?;
        let photo = Photo::new(&png, "drawn", Turn::AsStored)?;
        files.push((format!("{width}x{height}.jpg"), thumbnail(&photo, width)?));
    }
    Ok(files)
}

fn main() -> qformer::Result<()> {
    let mut files = Vec::new();
    for path in std::env::args().skip(1).filter(|a| !a.starts_with('-')) {
        let bytes =
            std::fs::read(&path).map_err(|e| qformer::Error::argument("bench", path.clone(), "a file", e))?;
        files.push((path, bytes));
    }
    if files.is_empty() {
        files = drawn()?;
    }
    let mut c = Criterion::default().sample_size(20);
    measure(&mut c, &files)?;
    c.final_summary();
    Ok(())
}
