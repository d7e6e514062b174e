//! One part of an index on the disk.

use crate::files::Disk;
use crate::results::{Array, write_safetensors};
use crate::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

const NAME: &str = "image_embeds_proj";
/// Its metadata: the model, and the blake3 of the features.
const MODEL: &str = "model";
const KEY: &str = "key";

/// Features of a part and whose they are.
pub struct Part {
    /// `[R,Q,E]`
    pub features: Vec<f32>,
    /// Row and place in the index of each picture, by row; rows of forgotten pictures are not listed.
    pub pictures: Vec<(usize, usize)>,
}

/// Writes a part and returns its key; the file says which model its features are of.
pub(super) fn write(
    disk: &dyn Disk,
    path: &Path,
    shape: &[usize],
    features: &[f32],
    model: &str,
) -> Result<String> {
    let key = blake3::hash(bytemuck::cast_slice(features)).to_hex().to_string();
    let notes = BTreeMap::from([(MODEL.to_owned(), model.to_owned()), (KEY.to_owned(), key.clone())]);
    write_safetensors(disk, path, vec![(NAME, Array::new(shape, features))], &notes)?;
    Ok(key)
}

pub(super) fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| Error::io("read index", path, &e))
}

/// One row of the only array of a part, of `size` numbers.
pub(super) fn row(file: &File, path: &Path, size: usize, row: usize) -> Result<Vec<f32>> {
    use std::os::unix::fs::FileExt;
    let failed = |e| Error::io("read index", path, &e);
    let mut header = [0; 8];
    file.read_exact_at(&mut header, 0).map_err(failed)?;
    let mut bytes = vec![0; size * 4];
    let at = (8u64.saturating_add(u64::from_le_bytes(header))).saturating_add((row * size * 4) as u64);
    file.read_exact_at(&mut bytes, at).map_err(failed)?;
    Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// Exactly an array of this shape, finite, and of this model and key if they are known.
pub(super) fn read(
    mut file: &File,
    path: &Path,
    shape: &[usize],
    own: Option<(&str, &str)>,
) -> Result<Vec<f32>> {
    let wrong = |got: String| {
        Error::file("read index", path, format!("{NAME} {shape:?} in f32"), got)
            .fix("the file was damaged or changed: make the index anew in another folder")
    };
    let failed = |e| Error::io("read index", path, &e);
    let elements = shape.iter().product::<usize>() as u64;
    let most = elements * 4 + (1 << 16);
    let length = file.metadata().map_err(failed)?.len();
    if length > most {
        return Err(wrong(format!("{length} bytes")));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.seek(SeekFrom::Start(0)).and_then(|_| file.take(most).read_to_end(&mut bytes)).map_err(failed)?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| wrong(e.to_string()))?;
    if let Some((model, key)) = own {
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| wrong(e.to_string()))?;
        let note = |name: &str| header.metadata().as_ref().and_then(|notes| notes.get(name).cloned());
        if (note(MODEL).as_deref(), note(KEY).as_deref()) != (Some(model), Some(key)) {
            return Err(wrong("the part of another index".into()));
        }
    }
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
