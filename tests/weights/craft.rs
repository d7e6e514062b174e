//! PyTorch and safetensors files made by hand, honest or not: the pieces of a pickle, the fields of a zip archive.

pub fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

pub fn text(s: &str) -> Vec<u8> {
    join(&[b"X", &(s.len() as u32).to_le_bytes(), s.as_bytes()])
}

pub fn int(n: i64) -> Vec<u8> {
    match n {
        0..=255 => vec![b'K', n as u8],
        _ if i32::try_from(n).is_ok() => join(&[b"J", &(n as i32).to_le_bytes()]),
        _ => join(&[&[0x8a, 8], &n.to_le_bytes()]),
    }
}

pub fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    join(&[b"(", &items.concat(), b"t"])
}

pub fn ints(items: &[i64]) -> Vec<u8> {
    tuple(&items.iter().map(|n| int(*n)).collect::<Vec<_>>())
}

pub fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

pub fn call(function: Vec<u8>, args: &[Vec<u8>]) -> Vec<u8> {
    join(&[&function, &tuple(args), b"R"])
}

/// A persistent id: storage `key` of `len` elements; `legacy` has a view behind.
pub fn storage(kind: &str, key: &str, len: i64, legacy: bool) -> Vec<u8> {
    let mut items = vec![text("storage"), global("torch", kind), text(key), text("cpu"), int(len)];
    if legacy {
        items.push(b"N".to_vec());
    }
    join(&[&tuple(&items), b"Q"])
}

pub fn tensor_of(storage: Vec<u8>, offset: i64, size: &[i64], stride: &[i64]) -> Vec<u8> {
    let hooks = call(global("collections", "OrderedDict"), &[]);
    let args = [storage, int(offset), ints(size), ints(stride), vec![0x89], hooks];
    call(global("torch._utils", "_rebuild_tensor_v2"), &args)
}

/// A tensor of floats in storage "0" of 4 elements.
pub fn tensor(offset: i64, size: &[i64], stride: &[i64]) -> Vec<u8> {
    tensor_of(storage("FloatStorage", "0", 4, false), offset, size, stride)
}

/// A tensor of the four floats.
pub fn good() -> Vec<u8> {
    tensor(0, &[2, 2], &[2, 1])
}

pub fn dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|(k, v)| join(&[&text(k), v])).collect();
    join(&[b"}(", &items, b"u"])
}

pub fn pickle(body: &[u8]) -> Vec<u8> {
    join(&[&[0x80, 2], body, b"."])
}

/// 1, -2, 0.5, 4
pub const FLOATS: [u8; 16] = [0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0, 0, 0, 0, 0x3f, 0, 0, 0x80, 0x40];

#[derive(Clone)]
pub struct Entry {
    pub name: String,
    pub local_name: String,
    pub data: Vec<u8>,
    pub method: u16,
    pub flags: u16,
    pub crc: u32,
    /// In the directory.
    pub size: u32,
    pub packed: u32,
    /// Bytes between this entry and the next.
    pub after: Vec<u8>,
    /// Begins where that entry begins instead of at its own place.
    pub start: Option<u32>,
}

pub fn entry(name: &str, data: &[u8]) -> Entry {
    Entry {
        name: name.into(),
        local_name: name.into(),
        data: data.to_vec(),
        method: 0,
        flags: 0,
        crc: crc32(data),
        size: data.len() as u32,
        packed: data.len() as u32,
        after: Vec::new(),
        start: None,
    }
}

pub fn zip(before: &[u8], entries: &[Entry]) -> Vec<u8> {
    let mut out = before.to_vec();
    let mut directory = Vec::new();
    for e in entries {
        let start = e.start.unwrap_or(out.len() as u32);
        let sizes = join(&[&e.crc.to_le_bytes(), &e.packed.to_le_bytes(), &e.size.to_le_bytes()]);
        let head =
            join(&[&20u16.to_le_bytes(), &e.flags.to_le_bytes(), &e.method.to_le_bytes(), &[0; 4], &sizes]);
        let lens = |name: &str| join(&[&(name.len() as u16).to_le_bytes(), &[0; 2]]);
        out.extend(join(&[
            b"PK\x03\x04",
            &head,
            &lens(&e.local_name),
            e.local_name.as_bytes(),
            &e.data,
            &e.after,
        ]));
        directory.extend(join(&[b"PK\x01\x02\0\0", &head, &lens(&e.name), &[0; 10], &start.to_le_bytes()]));
        directory.extend(e.name.as_bytes());
    }
    let (count, at) = ((entries.len() as u16).to_le_bytes(), (out.len() as u32).to_le_bytes());
    let size = (directory.len() as u32).to_le_bytes();
    out.extend(&directory);
    out.extend(join(&[b"PK\x05\x06\0\0\0\0", &count, &count, &size, &at, &[0; 2]]));
    out
}

/// The entries of an archive with this pickle and storage 0 of the four floats.
pub fn entries(pickle: &[u8]) -> Vec<Entry> {
    vec![
        entry("a/data.pkl", pickle),
        entry("a/byteorder", b"little"),
        entry("a/data/0", &FLOATS),
        entry("a/version", b"3\n"),
    ]
}

/// An archive whose root is what `body` describes.
pub fn archive(body: &[u8]) -> Vec<u8> {
    zip(b"", &entries(&pickle(body)))
}

pub struct Legacy {
    pub magic: Vec<u8>,
    pub version: Vec<u8>,
    pub machine: Vec<u8>,
    pub object: Vec<u8>,
    pub keys: Vec<u8>,
    pub storages: Vec<u8>,
}

pub fn list(items: &[Vec<u8>]) -> Vec<u8> {
    join(&[b"](", &items.concat(), b"e"])
}

pub fn legacy() -> Legacy {
    let magic = [0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
    let tensor = tensor_of(storage("FloatStorage", "94", 4, true), 0, &[4], &[1]);
    Legacy {
        magic: pickle(&magic),
        version: pickle(&join(&[b"M", &1001u16.to_le_bytes()])),
        machine: pickle(&dict(&[("protocol_version", int(100)), ("little_endian", vec![0x88])])),
        object: pickle(&dict(&[("w", tensor)])),
        keys: pickle(&list(&[text("94")])),
        storages: join(&[&4u64.to_le_bytes(), &FLOATS]),
    }
}

impl Legacy {
    pub fn bytes(&self) -> Vec<u8> {
        join(&[&self.magic, &self.version, &self.machine, &self.object, &self.keys, &self.storages])
    }
}

/// A safetensors file of this header.
pub fn safetensors(header: &str, data: usize) -> Vec<u8> {
    join(&[&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![7; data]])
}

/// CRC-32 (IEEE 802.3), bit by bit.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, b| {
        (0..8).fold(crc ^ u32::from(*b), |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 })
    })
}
