//! The zip archive PyTorch 1.6 and later writes: entries stored as they are, never compressed.
//!
//! The archive must be exactly what PyTorch makes: the entries of the directory tile the file from its first byte to the
//! directory without gap or overlap, local and central names agree, no name occurs twice, all lie under one root and are
//! known ones (`data.pkl`, `data/NUMBER`, a few markers). So there is one way to read it, and nothing to hide in. Nothing
//! is ever unpacked to a path.

use super::graph::Dialect;
use super::pickle;
use super::read::Checksum;
use super::rebuild::{self, Described};
use super::{Record, Refusal, Source};
use std::collections::HashMap;

const DIRECTORY: &str = "the zip directory";
const MOST_ENTRIES: u64 = 65_536;
const MOST_DIRECTORY: u64 = 16 << 20;
const MOST_NAME: usize = 512;
const STREAMED: u16 = 0x0008;
const UTF8: u16 = 0x0800;

struct Entry {
    name: String,
    /// Of the local header.
    start: u64,
    /// Of the contents.
    at: u64,
    size: u64,
    crc: u32,
    flags: u16,
}

pub(super) fn open(source: &Source) -> Result<(Described, Vec<Record>), Refusal> {
    let (entries, end) = read_directory(source)?;
    let entries = check_layout(source, entries, end)?;
    let root = entries.first().and_then(|e| e.name.split_once('/')).map(|(root, _)| root.to_string());
    let root = root.filter(|r| !r.is_empty() && !r.contains("..") && !r.contains('\\'));
    let root = root.ok_or_else(|| {
        Refusal::whole("a zip archive, but not one of PyTorch's").fix("give the file that torch.save wrote")
    })?;
    let mut parts = HashMap::new();
    for entry in &entries {
        let part = entry.name.strip_prefix(&root).and_then(|n| n.strip_prefix('/'));
        let part = part.filter(|p| is_known(p)).ok_or_else(|| unknown_entry(entry))?;
        parts.insert(part, entry);
    }
    if let Some(order) = parts.get("byteorder")
        && (order.size > 16 || source.read(order.at, order.size)? != b"little")
    {
        return Err(Refusal::at(order.at, "the file", "numbers that are not little-endian")
            .fix("save it on a little-endian machine"));
    }
    let pickle = parts.get("data.pkl").ok_or_else(|| {
        Refusal::whole("a zip archive without data.pkl").fix("give the file that torch.save wrote")
    })?;
    if pickle.size > pickle::MOST_BYTES {
        let got = format!("a data.pkl of {} bytes (at most {})", pickle.size, pickle::MOST_BYTES);
        return Err(Refusal::at(pickle.at, "the file", got).fix("save the state dict alone"));
    }
    let text = source.read(pickle.at, pickle.size)?;
    if crc32fast::hash(&text) != pickle.crc {
        let got = "a data.pkl that does not match its checksum";
        return Err(Refusal::at(pickle.at, "the file", got).fix(Refusal::FETCH_AGAIN));
    }
    let (graph, used) = pickle::run(&text, "data.pkl", Dialect::Zip)?;
    if used != text.len() {
        let got = format!("{} bytes after the end of the pickle", text.len() - used);
        return Err(Refusal::at(used as u64, "data.pkl", got).fix("the file hides something: do not use it"));
    }
    let described = rebuild::describe(&graph)?;
    let mut records = Vec::with_capacity(described.storages.len());
    for storage in &described.storages {
        let name = format!("data/{}", storage.key);
        let entry = parts.get(name.as_str()).ok_or_else(|| {
            Refusal::whole(format!("a storage {} that the archive does not hold", storage.key))
                .fix(Refusal::FETCH_AGAIN)
        })?;
        if storage.len.checked_mul(storage.element.size() as u64) != Some(entry.size) {
            let got = format!(
                "storage {} of {} bytes, which the pickle calls {} elements of {}",
                storage.key, entry.size, storage.len, storage.element
            );
            return Err(Refusal::at(entry.at, "the file", got).fix(Refusal::FETCH_AGAIN));
        }
        let checksum = Some(Checksum::new(entry.crc));
        records.push(Record { at: entry.at, element: storage.element, len: storage.len, checksum });
        parts.remove(name.as_str());
    }
    match parts.iter().find(|(part, _)| part.starts_with("data/")) {
        None => Ok((described, records)),
        Some((part, entry)) => {
            Err(Refusal::at(entry.at, "the file", format!("{part}, which no tensor is in"))
                .fix("the file hides something: do not use it"))
        }
    }
}

/// The names PyTorch gives to what is in an archive, below its root.
fn is_known(part: &str) -> bool {
    let markers = ["data.pkl", "byteorder", "version", ".format_version", ".storage_alignment"];
    let number = |n: &str| !n.is_empty() && n.len() <= 20 && n.bytes().all(|b| b.is_ascii_digit());
    markers.contains(&part)
        || part == ".data/serialization_id"
        || part.strip_prefix("data/").is_some_and(number)
}

fn unknown_entry(entry: &Entry) -> Refusal {
    let name: String = entry.name.chars().take(80).collect();
    let code = name.ends_with("constants.pkl") || name.contains("/code/");
    let got = match code {
        true => format!("a TorchScript program ({name:?})"),
        false => format!("{name:?}, which is not part of a file of weights"),
    };
    Refusal::at(entry.start, "the file", got)
        .fix("save the state dict alone: torch.save(model.state_dict(), path)")
}

fn le(bytes: &[u8], at: usize, n: usize) -> u64 {
    let part = bytes.get(at..at + n).unwrap_or_default();
    part.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b))
}

/// The entries as the directory lists them, and where the directory begins.
fn read_directory(source: &Source) -> Result<(Vec<Entry>, u64), Refusal> {
    const END: usize = 22;
    let length = source.length();
    let no_end = || {
        Refusal::at(length, "the file", "no end of a zip archive in its last 22 bytes")
            .fix(Refusal::FETCH_AGAIN)
    };
    let at = length.checked_sub(END as u64).ok_or_else(no_end)?;
    let end = source.read(at, END as u64)?;
    if !end.starts_with(b"PK\x05\x06") || le(&end, 20, 2) != 0 {
        return Err(no_end());
    }
    let mut fields = [le(&end, 8, 2), le(&end, 10, 2), le(&end, 12, 4), le(&end, 16, 4)];
    let mut parts = [le(&end, 4, 2), le(&end, 6, 2)];
    let mut stop = at;
    if let Some((zip64, start)) = read_zip64(source, at)? {
        let wide = [le(&zip64, 24, 8), le(&zip64, 32, 8), le(&zip64, 40, 8), le(&zip64, 48, 8)];
        for ((field, wide), limit) in
            fields.iter_mut().zip(wide).zip([0xffff, 0xffff, u64::from(u32::MAX), u64::from(u32::MAX)])
        {
            if *field != limit && *field != wide {
                let got = format!("two ends that differ: {field} and {wide}");
                return Err(
                    Refusal::at(start, DIRECTORY, got).fix("the file is built to deceive: do not use it")
                );
            }
            *field = wide;
        }
        parts = [le(&zip64, 16, 4), le(&zip64, 20, 4)];
        stop = start;
    }
    let [here, total, size, begin] = fields;
    if parts != [0, 0] || here != total {
        return Err(Refusal::at(at, "the file", "a zip archive in several parts").fix("join its parts first"));
    }
    if begin.checked_add(size) != Some(stop) {
        let got = format!("a directory of {size} bytes at {begin}, which should end at {stop}");
        return Err(Refusal::at(at, "the file", got).fix(Refusal::FETCH_AGAIN));
    }
    if total > MOST_ENTRIES || size > MOST_DIRECTORY {
        let got = format!("{total} entries in {size} bytes (at most {MOST_ENTRIES} in {MOST_DIRECTORY})");
        return Err(Refusal::at(begin, DIRECTORY, got).fix("save the state dict alone"));
    }
    let bytes = source.read(begin, size)?;
    let mut entries = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        entries.push(read_entry(&bytes, &mut at)?);
    }
    if entries.len() as u64 != total {
        let got = format!("{} entries instead of {total}", entries.len());
        return Err(Refusal::at(begin, DIRECTORY, got).fix(Refusal::FETCH_AGAIN));
    }
    Ok((entries, begin))
}

/// The zip64 end before the end at `at`, if there is one, and where it begins.
fn read_zip64(source: &Source, at: u64) -> Result<Option<(Vec<u8>, u64)>, Refusal> {
    const LOCATOR: u64 = 20;
    const RECORD: u64 = 56;
    let Some(start) = at.checked_sub(LOCATOR + RECORD) else { return Ok(None) };
    let locator = source.read(at - LOCATOR, LOCATOR)?;
    if !locator.starts_with(b"PK\x06\x07") {
        return Ok(None);
    }
    let record = source.read(start, RECORD)?;
    let right = record.starts_with(b"PK\x06\x06")
        && le(&record, 4, 8) == RECORD - 12
        && le(&locator, 4, 4) == 0
        && le(&locator, 8, 8) == start
        && le(&locator, 16, 4) == 1;
    if !right {
        return Err(Refusal::at(start, "the file", "a broken zip64 end").fix(Refusal::FETCH_AGAIN));
    }
    Ok(Some((record, start)))
}

/// The entry of the directory at `at`, which moves behind it.
fn read_entry(bytes: &[u8], at: &mut usize) -> Result<Entry, Refusal> {
    const FIXED: usize = 46;
    let here = *at;
    let refuse = |got: String, fix: &str| Err(Refusal::at(here as u64, DIRECTORY, got).fix(fix));
    let Some(head) = bytes.get(here..here + FIXED).filter(|h| h.starts_with(b"PK\x01\x02")) else {
        return refuse("something that is no entry".into(), Refusal::FETCH_AGAIN);
    };
    let (flags, method, crc) = (le(head, 8, 2) as u16, le(head, 10, 2), le(head, 16, 4) as u32);
    let lens = [le(head, 28, 2), le(head, 30, 2), le(head, 32, 2)].map(|n| n as usize);
    let after = here + FIXED;
    let name = bytes.get(after..after + lens[0]).and_then(|n| std::str::from_utf8(n).ok());
    let extra = bytes.get(after + lens[0]..after + lens[0] + lens[1]);
    let (Some(name), Some(extra), true) = (name, extra, lens[0] <= MOST_NAME) else {
        return refuse("a name that is cut, too long or not UTF-8".into(), Refusal::FETCH_AGAIN);
    };
    if flags & !(STREAMED | UTF8) != 0 {
        return refuse(
            format!("entry {name:?} with flags {flags:#06x} (encrypted or patched)"),
            "give the file that torch.save wrote",
        );
    }
    if method != 0 {
        return refuse(
            format!("entry {name:?} compressed by method {method}"),
            "PyTorch stores its entries uncompressed: load it in PyTorch and save it again",
        );
    }
    if lens[2] != 0 || le(head, 34, 2) != 0 {
        return refuse(
            format!("entry {name:?} with a comment or on another disk"),
            "give the file that torch.save wrote",
        );
    }
    let (size, packed, start) = wide_fields(head, extra);
    if size != packed {
        return refuse(format!("entry {name:?} of {size} bytes stored in {packed}"), Refusal::FETCH_AGAIN);
    }
    *at = after + lens[0] + lens[1];
    Ok(Entry { name: name.into(), start, at: 0, size, crc, flags })
}

/// (size, packed size, start of the local header), each from the zip64 field where the short one says so.
fn wide_fields(head: &[u8], extra: &[u8]) -> (u64, u64, u64) {
    let mut at = 0;
    let mut zip64: &[u8] = &[];
    while let Some(field) = extra.get(at..at + 4) {
        let len = le(field, 2, 2) as usize;
        if le(field, 0, 2) == 1 {
            zip64 = extra.get(at + 4..at + 4 + len).unwrap_or_default();
        }
        at += 4 + len;
    }
    let mut next = 0;
    let mut wide = |short: u64| {
        if short != u64::from(u32::MAX) {
            return short;
        }
        next += 8;
        // A field that is not there stays at its limit and fails the check of the layout.
        if zip64.len() >= next { le(zip64, next - 8, 8) } else { short }
    };
    let size = wide(le(head, 24, 4));
    let packed = wide(le(head, 20, 4));
    let start = wide(le(head, 42, 4));
    (size, packed, start)
}

/// Sorts the entries by place and sees that with their local headers and descriptors they tile `0..end`.
fn check_layout(source: &Source, mut entries: Vec<Entry>, end: u64) -> Result<Vec<Entry>, Refusal> {
    entries.sort_by_key(|e| e.start);
    let mut names: HashMap<&str, u64> = HashMap::new();
    for e in &entries {
        if let Some(other) = names.insert(&e.name, e.start) {
            let got = format!("two entries {:?}, the other at byte {other}", e.name);
            return Err(
                Refusal::at(e.start, "the file", got).fix("the file is built to deceive: do not use it")
            );
        }
    }
    drop(names);
    entries.iter().for_each(|e| source.prefetch(e.start, 64));
    let mut at = 0;
    for entry in &mut entries {
        if entry.start != at {
            let what = if entry.start < at { "an overlap" } else { "a gap" };
            let got = format!("{what} before entry {:?}, which should begin at byte {at}", entry.name);
            return Err(
                Refusal::at(entry.start, "the file", got).fix("the file is damaged or hides something")
            );
        }
        at = check_local(source, entry, end)?;
    }
    if at != end {
        let got = format!("a gap of {} bytes before the directory", end.saturating_sub(at));
        return Err(Refusal::at(at, "the file", got).fix("the file is damaged or hides something"));
    }
    Ok(entries)
}

/// Compares an entry's local header with the directory, notes where its contents lie, and returns where it ends.
fn check_local(source: &Source, entry: &mut Entry, end: u64) -> Result<u64, Refusal> {
    const FIXED: u64 = 30;
    let refuse = |got: String| {
        let got = format!("entry {:?} {got}", entry.name);
        Err(Refusal::at(entry.start, "the file", got).fix("the file is damaged or built to deceive"))
    };
    let head = source.read(entry.start, FIXED)?;
    if !head.starts_with(b"PK\x03\x04") {
        return refuse("without a local header".into());
    }
    let (name_len, extra_len) = (le(&head, 26, 2), le(&head, 28, 2));
    let name = source.read(entry.start + FIXED, name_len)?;
    if name != entry.name.as_bytes() {
        return refuse(format!("called {:?} in its own header", String::from_utf8_lossy(&name)));
    }
    let streamed = entry.flags & STREAMED != 0;
    let crc_differs = le(&head, 14, 4) != u64::from(entry.crc) && !(streamed && le(&head, 14, 4) == 0);
    if le(&head, 6, 2) != u64::from(entry.flags) || le(&head, 8, 2) != 0 || crc_differs {
        return refuse("whose header and directory differ".into());
    }
    for size in [le(&head, 18, 4), le(&head, 22, 4)] {
        let left_open = (streamed && size == 0) || size == u64::from(u32::MAX);
        if size != entry.size && !left_open {
            return refuse(format!("of {size} bytes in its header and {} in the directory", entry.size));
        }
    }
    let at = entry.start + FIXED + name_len + extra_len;
    let Some(stop) = at.checked_add(entry.size).filter(|stop| *stop <= end) else {
        return refuse(format!("of {} bytes, which reach into the directory", entry.size));
    };
    entry.at = at;
    if streamed { skip_descriptor(source, entry, stop, end) } else { Ok(stop) }
}

/// The descriptor behind a streamed entry: an optional signature, the checksum and both sizes in 4 or 8 bytes.
fn skip_descriptor(source: &Source, entry: &Entry, at: u64, end: u64) -> Result<u64, Refusal> {
    let room = (end - at).min(24);
    let bytes = source.read(at, room)?;
    let signed = if bytes.starts_with(b"PK\x07\x08") { 4 } else { 0 };
    for width in [8, 4] {
        let len = signed + 4 + 2 * width;
        let sizes = [le(&bytes, signed + 4, width), le(&bytes, signed + 4 + width, width)];
        if bytes.len() >= len && le(&bytes, signed, 4) == u64::from(entry.crc) && sizes == [entry.size; 2] {
            return Ok(at + len as u64);
        }
    }
    let got = format!("entry {:?} without the descriptor of its size and checksum", entry.name);
    Err(Refusal::at(at, "the file", got).fix(Refusal::FETCH_AGAIN))
}
