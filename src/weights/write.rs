//! safetensors files written tensor by tensor: the header is known before, the bytes come as they are made. What follows
//! from the bytes, their identity, is put in its place in the header afterwards.

use super::identity::{Identity, narrow_bytes};
use super::safetensors::{MOST_HEADER, MOST_NAME, MOST_TENSORS};
use super::{Dtype, Info, first_non_finite, non_finite};
use crate::files::{self, Disk};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

const OP: &str = "write weights";

/// Writes `path` whole or not at all. `bytes` is asked for every tensor once, in their order in the file - by size of
/// element, then by name, so that every tensor is aligned - and writes exactly its bytes.
pub fn write(
    disk: &dyn Disk,
    path: &Path,
    tensors: &[Info],
    metadata: &BTreeMap<String, String>,
    mut bytes: impl FnMut(&Info, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    let order = in_order(tensors);
    let header = header(&order, metadata)?;
    let data: u64 = order.iter().map(|t| t.bytes() as u64).sum();
    // An error of ours inside the writer is kept here, since only io::Error passes through it.
    let mut failed = None;
    let done = files::write_atomic(disk, path, header.len() as u64 + data, |w| {
        w.write_all(&header)?;
        for info in &order {
            let mut counted = Counted { inner: w, count: 0 };
            bytes(info, &mut counted).map_err(|e| {
                failed = Some(e);
                io::Error::other("no bytes to write")
            })?;
            if counted.count != info.bytes() as u64 {
                let got = format!("{} bytes of {}", counted.count, info.bytes());
                failed = Some(Error::argument(OP, &info.name, "all of its bytes", got));
                return Err(io::Error::other("too few or too many bytes"));
            }
        }
        Ok(())
    });
    match failed {
        Some(e) => Err(e),
        None => done,
    }
}

/// Writes a file whose metadata holds, under `key`, the identity of its tensors, which it returns. The key is filled in
/// after the file has its name: write where nobody reads yet.
pub fn write_identified(
    disk: &dyn Disk,
    path: &Path,
    tensors: &[Info],
    metadata: &BTreeMap<String, String>,
    key: &str,
    mut bytes: impl FnMut(&Info, &mut dyn Write) -> Result<()>,
) -> Result<String> {
    let room = "0".repeat(2 * blake3::OUT_LEN);
    let mut metadata = metadata.clone();
    metadata.insert(key.into(), room.clone());
    let (mut identity, mut buffer) = (Identity::default(), Vec::new());
    write(disk, path, tensors, &metadata, |info, w| {
        buffer.clear();
        bytes(info, &mut buffer)?;
        if let Some(element) = first_non_finite(info.dtype, &buffer) {
            return Err(non_finite(path, &info.name, element));
        }
        let narrow = narrow_bytes(info.dtype, &buffer)
            .ok_or_else(|| Error::argument(OP, &info.name, "floating point numbers", info.dtype))?;
        identity.add(&info.name, &info.shape, narrow);
        w.write_all(&buffer).map_err(|e| files::write_error("write", path, &e))
    })?;
    let found = identity.finish().unwrap_or(room);
    fill_in(path, &header(&in_order(tensors), &metadata)?, key, &found)
        .map_err(|e| files::write_error("write", path, &e))?;
    Ok(found)
}

fn in_order(tensors: &[Info]) -> Vec<&Info> {
    let mut order: Vec<&Info> = tensors.iter().collect();
    order.sort_by(|a, b| b.dtype.size().cmp(&a.dtype.size()).then_with(|| a.name.cmp(&b.name)));
    order
}

/// Writes a value over that of a key of the metadata, as long as it.
fn fill_in(path: &Path, header: &[u8], key: &str, value: &str) -> io::Result<()> {
    let before = format!("\"{key}\":\"").into_bytes();
    let at = header.windows(before.len()).position(|w| w == before);
    let at = at.ok_or_else(|| io::Error::other("no place for the identity"))? + before.len();
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(value.as_bytes(), at as u64)?;
    file.sync_all()
}

struct Counted<'a> {
    inner: &'a mut dyn Write,
    count: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.count += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The length and the JSON, padded so that the data begins at a multiple of 64.
fn header(order: &[&Info], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut map = Map::new();
    if !metadata.is_empty() {
        map.insert("__metadata__".into(), json!(metadata));
    }
    let mut at = 0;
    for info in order {
        let end = at + info.bytes();
        let entry = json!({"dtype": info.dtype.name(), "shape": info.shape, "data_offsets": [at, end]});
        let taken = info.name.len() > MOST_NAME || map.insert(info.name.clone(), entry).is_some();
        if taken {
            return Err(Error::argument(
                OP,
                &info.name,
                "a short name of its own",
                "one that is long or taken",
            ));
        }
        at = end;
    }
    let mut text = Value::Object(map).to_string().into_bytes();
    text.resize((text.len() + 8).next_multiple_of(64) - 8, b' ');
    if order.len() > MOST_TENSORS || text.len() as u64 > MOST_HEADER {
        return Err(Error::argument(OP, "tensors", format!("at most {MOST_TENSORS}"), order.len()));
    }
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text);
    Ok(header)
}

/// The bytes of numbers as they stand in files.
pub fn put_f32(w: &mut dyn Write, dtype: Dtype, values: &[f32]) -> io::Result<()> {
    match dtype {
        Dtype::F16 => {
            let halves: Vec<u16> = values.iter().map(|x| half::f16::from_f32(*x).to_bits()).collect();
            w.write_all(bytemuck::cast_slice(&halves))
        }
        _ => w.write_all(bytemuck::cast_slice(values)),
    }
}
