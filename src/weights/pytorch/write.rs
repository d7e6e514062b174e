//! PyTorch files written tensor by tensor: `{"model": {name: tensor}}`, as LAVIS saves a checkpoint.
//!
//! A zip archive of entries that are stored, each tensor's data at a multiple of 64 as PyTorch has it: `data.pkl`, `byteorder`,
//! `data/0`, `data/1`, ..., `version`, then the directory. Everything stays below 4 GiB, which needs no zip64.

use super::super::safetensors::MOST_TENSORS;
use super::super::{Dtype, Info};
use crate::files::{self, Disk};
use crate::{Error, Result};
use std::io::{self, Write};
use std::path::Path;

const OP: &str = "write weights";
const ROOT: &str = "archive";
const ALIGNMENT: u64 = 64;

/// Writes `path` whole or not at all. `bytes` is asked for every tensor once, in their order, for exactly its bytes.
pub fn write(
    disk: &dyn Disk,
    path: &Path,
    tensors: &[Info],
    mut bytes: impl FnMut(&Info) -> Result<Vec<u8>>,
) -> Result<()> {
    let data: u64 = tensors.iter().map(|t| t.bytes() as u64).sum();
    // Of an entry beside its bytes: both headers, a name and padding.
    let size = data + pickle(tensors).len() as u64 + 512 * (tensors.len() as u64 + 4);
    if size > u64::from(u32::MAX) || tensors.len() > MOST_TENSORS - 4 {
        let got = format!("{} tensors, {data} bytes", tensors.len());
        return Err(Error::argument(OP, path.display().to_string(), "less than 4 GiB", got)
            .fix("give a name ending in .safetensors"));
    }
    // An error of ours inside the writer is kept here, since only io::Error passes through it.
    let mut failed = None;
    let done = files::write_atomic(disk, path, size, |w| {
        let mut zip = Zip { to: w, at: 0, directory: Vec::new(), entries: 0 };
        zip.entry("data.pkl", &pickle(tensors))?;
        zip.entry("byteorder", b"little")?;
        for (i, info) in tensors.iter().enumerate() {
            let data = bytes(info).and_then(|data| match data.len() == info.bytes() {
                true => Ok(data),
                false => Err(Error::argument(OP, &info.name, format!("{} bytes", info.bytes()), data.len())),
            });
            let data = data.map_err(|e| {
                failed = Some(e);
                io::Error::other("no bytes to write")
            })?;
            zip.entry(&format!("data/{i}"), &data)?;
        }
        zip.entry("version", b"3\n")?;
        zip.end()
    });
    match failed {
        Some(e) => Err(e),
        None => done,
    }
}

/// The object: an ordered dictionary of tensors, each in a storage of its own, under `model`.
fn pickle(tensors: &[Info]) -> Vec<u8> {
    let mut p = vec![0x80, 2, b'}'];
    text(&mut p, "model");
    p.extend(b"ccollections\nOrderedDict\n)R(");
    for (i, info) in tensors.iter().enumerate() {
        text(&mut p, &info.name);
        p.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut p, "storage");
        p.extend(format!("ctorch\n{}\n", storage(info.dtype)).bytes());
        text(&mut p, &i.to_string());
        text(&mut p, "cpu");
        int(&mut p, info.elements());
        p.extend(b"tQK\0"); // that storage, from its beginning
        let strides = (1..=info.shape.len()).map(|axis| info.shape.iter().skip(axis).product());
        let strides: Vec<usize> = strides.collect();
        for numbers in [&info.shape, &strides] {
            p.push(b'(');
            numbers.iter().for_each(|n| int(&mut p, *n));
            p.push(b't');
        }
        p.extend(b"\x89ccollections\nOrderedDict\n)RtR"); // no gradient, no hooks
    }
    p.extend(b"us.");
    p
}

fn text(p: &mut Vec<u8>, text: &str) {
    p.push(b'X');
    p.extend((text.len() as u32).to_le_bytes());
    p.extend(text.bytes());
}

fn int(p: &mut Vec<u8>, n: usize) {
    match i32::try_from(n) {
        Ok(n) => {
            p.push(b'J');
            p.extend(n.to_le_bytes());
        }
        Err(_) => {
            p.extend([0x8a, 8]);
            p.extend((n as u64).to_le_bytes());
        }
    }
}

fn storage(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F64 => "DoubleStorage",
        Dtype::F32 => "FloatStorage",
        Dtype::F16 => "HalfStorage",
        Dtype::Bf16 => "BFloat16Storage",
        Dtype::I64 => "LongStorage",
        Dtype::I32 => "IntStorage",
        Dtype::I16 => "ShortStorage",
        Dtype::I8 => "CharStorage",
        Dtype::U8 => "ByteStorage",
        Dtype::Bool => "BoolStorage",
    }
}

struct Zip<'a> {
    to: &'a mut dyn Write,
    at: u64,
    directory: Vec<u8>,
    entries: u16,
}

impl Zip<'_> {
    fn entry(&mut self, name: &str, data: &[u8]) -> io::Result<()> {
        const HEADER: u64 = 30;
        let name = format!("{ROOT}/{name}");
        // An extra field of zeros before the data, called FB as PyTorch calls it.
        let after = self.at + HEADER + name.len() as u64 + 4;
        let padding = (after.next_multiple_of(ALIGNMENT) - after) as u16;
        let mut common = vec![20, 0, 0, 8, 0, 0, 0, 0, 0, 0]; // version, flags (UTF-8), stored, no time
        let (size, crc) = ((data.len() as u32).to_le_bytes(), crc32fast::hash(data).to_le_bytes());
        common.extend([crc, size, size].concat());
        common.extend((name.len() as u16).to_le_bytes());
        let local = [
            b"PK\x03\x04",
            &common[..],
            &(padding + 4).to_le_bytes(),
            name.as_bytes(),
            b"FB",
            &padding.to_le_bytes(),
        ];
        let local = [&local.concat()[..], &vec![0; usize::from(padding)]].concat();
        self.directory.extend(
            [b"PK\x01\x02\0\0", &common[..], &[0; 12], &(self.at as u32).to_le_bytes(), name.as_bytes()]
                .concat(),
        );
        self.entries += 1;
        self.to.write_all(&local)?;
        self.to.write_all(data)?;
        self.at += (local.len() + data.len()) as u64;
        Ok(())
    }

    fn end(self) -> io::Result<()> {
        let (count, size) = (self.entries.to_le_bytes(), (self.directory.len() as u32).to_le_bytes());
        self.to.write_all(&self.directory)?;
        self.to.write_all(
            &[&b"PK\x05\x06\0\0\0\0"[..], &count, &count, &size, &(self.at as u32).to_le_bytes(), &[0; 2]]
                .concat(),
        )
    }
}
