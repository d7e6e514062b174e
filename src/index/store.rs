//! One part of an index on the disk.

use crate::files::Disk;
use crate::results::{Array, write_safetensors};
use crate::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::Path;

const NAME: &str = "image_embeds_proj";

/// Features of a part and whose they are.
pub struct Part {
    /// [R,Q,E]
    pub features: Vec<f32>,
    /// Row and place in the index of each picture, by row; rows of forgotten pictures are not listed.
    pub pictures: Vec<(usize, usize)>,
}

pub(super) fn write(disk: &dyn Disk, path: &Path, shape: &[usize], features: &[f32]) -> Result<()> {
    write_safetensors(disk, path, vec![(NAME, Array::new(shape, features))], &BTreeMap::new())
}

/// Exactly an array of this shape, and finite.
pub(super) fn read(path: &Path, shape: &[usize]) -> Result<Vec<f32>> {
    let wrong = |got: String| {
        Error::file("read index", path, format!("{NAME} {shape:?} in f32"), got)
            .fix("the file was damaged or changed: make the index anew in another folder")
    };
    let elements = shape.iter().product::<usize>() as u64;
    let most = elements * 4 + (1 << 16);
    let length = std::fs::metadata(path).map_err(|e| Error::io("read index", path, &e))?.len();
    if length > most {
        return Err(wrong(format!("{length} bytes")));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io("read index", path, &e))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| wrong(e.to_string()))?;
    let tensor = tensors.tensor(NAME).map_err(|e| wrong(e.to_string()))?;
    if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
        return Err(wrong(format!("{:?} {:?}", tensor.shape(), tensor.dtype())));
    }
    let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    let features: Vec<f32> = tensor.data().chunks_exact(4).map(number).collect();
    match features.iter().position(|x| !x.is_finite()) {
        Some(i) => Err(wrong(format!("a number that is not finite, element {i}"))),
        None => Ok(features),
    }
}
