//! Pictures, as Pillow 11 and torchvision made them of the files in `photos/` beside the case.
//!
//! Recorded: `FILE.evalS.u8` [S,S,3] the whole picture at S x S, `FILE.crop.u8` the crop that the metadata names (cut,
//! resized, mirrored), `FILE.evalS` [3,S,S] the same normalised.
//! Pixels are equal; normalised, they differ by 1e-6 at most.

use super::Report;
use super::case::Case;
use crate::vision::{self, Crop, Normalise, Picture, Resampling, Turn};
use crate::{Error, Result};
use std::path::Path;

#[derive(serde::Deserialize)]
struct Recorded {
    file: String,
    top: usize,
    left: usize,
    height: usize,
    width: usize,
    flip: bool,
}

pub fn images(case: &Case, report: &mut Report) -> Result<()> {
    let photos = case.path.parent().unwrap_or(Path::new(".")).join("photos");
    let crops: Vec<Recorded> = case.meta("crops")?;
    let normalise = Normalise { mean: case.meta("mean")?, std: case.meta("std")? };
    for name in case.names("outputs.") {
        let (file, what) = split(name).ok_or_else(|| {
            Error::file("parity", &case.path, "outputs named FILE.evalS, FILE.evalS.u8 or FILE.crop.u8", name)
        })?;
        let picture = vision::load(photos.join(file), Turn::AsStored)?;
        let shape = case.shape(name)?;
        let side = shape.get(1).copied().unwrap_or(0);
        let crop = match crops.iter().find(|c| c.file == file) {
            _ if what != "crop.u8" => Crop::whole(&picture),
            Some(c) => Crop { top: c.top, left: c.left, height: c.height, width: c.width, flip: c.flip },
            None => return Err(Error::file("parity", &case.path, format!("a crop of {file}"), "none")),
        };
        let resized = vision::resize_crop(&picture, &crop, side, side, Resampling::Exact)?;
        if what.ends_with("u8") {
            pixels(name, shape, &resized, &case.bytes(name)?, report);
        } else {
            let ours: Vec<f64> = normalise.planes(&resized)?.iter().map(|x| f64::from(*x)).collect();
            report.near(name, shape, &ours, &case.f64s(name)?, 1e-6);
        }
    }
    Ok(())
}

/// "outputs.a.jpg.eval224.u8" is ("a.jpg", "eval224.u8").
fn split(name: &str) -> Option<(&str, &str)> {
    let name = name.strip_prefix("outputs.")?;
    let stem = name.strip_suffix(".u8").unwrap_or(name);
    let at = stem.rfind('.')?;
    Some((&name[..at], &name[at + 1..]))
}

fn pixels(name: &str, shape: &[usize], ours: &Picture, theirs: &[u8], report: &mut Report) {
    let [ours, theirs] = [&ours.rgb[..], theirs].map(|x| x.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
    report.equal(name, shape, &ours, &theirs);
}
