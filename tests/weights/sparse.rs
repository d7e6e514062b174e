//! Files of weights of many gigabytes that are mostly holes: honest headers, and tensors that take no room on the disk.

use super::craft::{self, join};
use std::fs::File;
use std::io::{Result, Seek, SeekFrom, Write};
use std::path::Path;

pub enum Content {
    Bytes(Vec<u8>),
    Hole(u64),
}

fn put(file: &mut File, content: &Content) -> Result<()> {
    match content {
        Content::Bytes(bytes) => file.write_all(bytes),
        Content::Hole(n) => {
            let end = file.seek(SeekFrom::Current(*n as i64))?;
            file.set_len(end)
        }
    }
}

/// `count` tensors of `each` bytes, named w.0, w.1, ...
pub fn safetensors(path: &Path, count: u64, each: u64) -> Result<()> {
    let entry = |i: u64| {
        let range = format!("[{},{}]", i * each, (i + 1) * each);
        format!(r#""w.{i}":{{"dtype":"F32","shape":[{}],"data_offsets":{range}}}"#, each / 4)
    };
    let header = format!("{{{}}}", (0..count).map(entry).collect::<Vec<_>>().join(","));
    let mut file = File::create(path)?;
    file.write_all(&craft::safetensors(&header, 0))?;
    put(&mut file, &Content::Hole(count * each))
}

/// The same as PyTorch writes it: a zip64 archive with a storage for every tensor.
pub fn pytorch(path: &Path, count: u64, each: u64) -> Result<()> {
    let n = (each / 4) as i64;
    let names: Vec<String> = (0..count).map(|i| format!("w.{i}")).collect();
    let tensor = |i: u64| {
        let storage = craft::storage("FloatStorage", &i.to_string(), n, false);
        craft::tensor_of(storage, 0, &[n], &[1])
    };
    let tensors: Vec<(&str, Vec<u8>)> =
        names.iter().zip(0..).map(|(name, i)| (name.as_str(), tensor(i))).collect();
    let pickle = craft::pickle(&craft::dict(&tensors));
    let mut entries = vec![("a/data.pkl".to_string(), Content::Bytes(pickle))];
    entries.push(("a/byteorder".into(), Content::Bytes(b"little".to_vec())));
    entries.extend((0..count).map(|i| (format!("a/data/{i}"), Content::Hole(each))));
    entries.push(("a/version".into(), Content::Bytes(b"3\n".to_vec())));
    zip64(&mut File::create(path)?, &entries)
}

fn zip64(file: &mut File, entries: &[(String, Content)]) -> Result<()> {
    let mut directory = Vec::new();
    for (name, content) in entries {
        let (size, crc) = match content {
            Content::Bytes(bytes) => (bytes.len() as u32, craft::crc32(bytes)),
            Content::Hole(n) => (*n as u32, 0),
        };
        let sizes = join(&[&crc.to_le_bytes(), &size.to_le_bytes(), &size.to_le_bytes()]);
        let head = join(&[&20u16.to_le_bytes(), &[0; 8], &sizes, &(name.len() as u16).to_le_bytes()]);
        let start = file.stream_position()?;
        file.write_all(&join(&[b"PK\x03\x04", &head, &[0; 2], name.as_bytes()]))?;
        put(file, content)?;
        // the start stands in a zip64 field, its short form at the limit
        directory.extend(join(&[b"PK\x01\x02\0\0", &head, &12u16.to_le_bytes(), &[0; 10], &[0xff; 4]]));
        directory.extend(join(&[name.as_bytes(), &[1, 0, 8, 0], &start.to_le_bytes()]));
    }
    let [begin, size, count] =
        [file.stream_position()?, directory.len() as u64, entries.len() as u64].map(u64::to_le_bytes);
    let end = (u64::from_le_bytes(begin) + u64::from_le_bytes(size)).to_le_bytes();
    file.write_all(&directory)?;
    file.write_all(&join(&[
        &join(&[
            b"PK\x06\x06",
            &44u64.to_le_bytes(),
            &[45, 0, 45, 0],
            &[0; 8],
            &count,
            &count,
            &size,
            &begin,
        ]),
        &join(&[b"PK\x06\x07", &[0; 4], &end, &1u32.to_le_bytes()]),
        &join(&[b"PK\x05\x06", &[0; 4], &[0xff; 4], &size[..4], &[0xff; 4], &[0; 2]]),
    ]))
}
