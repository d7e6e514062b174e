//! The format before PyTorch 1.6: five pickles in a row (magic number, version, the machine, the object, the keys of its
//! storages), then for each key the number of elements in 8 bytes and the elements. It has no checksums.

use super::graph::{Dialect, Graph, Node};
use super::pickle;
use super::rebuild::{self, Described};
use super::{Record, Refusal, Source};
use std::collections::HashMap;

/// PROTO 2, LONG1 of 10 bytes: the magic number begins.
pub(super) const BEGINNING: [u8; 4] = [0x80, 2, 0x8a, 10];
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const VERSION: i64 = 1001;

pub(super) fn open(source: &Source) -> Result<(Described, Vec<Record>), Refusal> {
    let text = source.read(0, source.length().min(pickle::MOST_BYTES))?;
    let mut at = 0;
    let mut next = |part: &str, dialect| -> Result<Graph<'_>, Refusal> {
        let rest = text.get(at..).unwrap_or_default();
        let (graph, used) = pickle::run(rest, &format!("{part}, which begins at byte {at}"), dialect)?;
        at += used;
        Ok(graph)
    };
    let wrong = |got: &str| Err(Refusal::at(0, "the file", got).fix(Refusal::FETCH_AGAIN));
    if !matches!(next("the magic number", Dialect::Plain)?.root(), Node::Wide(n) if *n == MAGIC) {
        return wrong("a magic number that is not PyTorch's");
    }
    if !matches!(next("the version", Dialect::Plain)?.root(), Node::Int(VERSION)) {
        return wrong("an unknown version of the format before PyTorch 1.6");
    }
    if !is_little_endian(&next("the machine", Dialect::Plain)?) {
        return wrong("numbers that are not little-endian");
    }
    let described = rebuild::describe(&next("the object", Dialect::Legacy)?)?;
    let keys = storage_keys(&next("the storage keys", Dialect::Plain)?, &described)?;
    let records = find_records(source, at as u64, &keys, &described)?;
    Ok((described, records))
}

fn is_little_endian(machine: &Graph) -> bool {
    let Node::Dict(entries) = machine.root() else { return false };
    let mut found = entries.iter().filter(|(k, _)| machine.text(*k) == Some("little_endian"));
    matches!((found.next(), found.next()), (Some((_, v)), None) if matches!(machine.node(*v), Node::Bool(true)))
}

/// Indices of the described storages in the order of the file: each once, none unknown.
fn storage_keys(list: &Graph, described: &Described) -> Result<Vec<usize>, Refusal> {
    let Node::List(ids) = list.root() else {
        return Err(Refusal::whole("storage keys that are no list").fix(Refusal::FETCH_AGAIN));
    };
    let mut left: HashMap<&str, usize> =
        described.storages.iter().enumerate().map(|(i, s)| (s.key.as_str(), i)).collect();
    let mut order = Vec::with_capacity(left.len());
    for id in ids {
        let key = list.text(*id).unwrap_or("(not a text)");
        match left.remove(key) {
            Some(i) => order.push(i),
            None => {
                let shown: String = key.chars().take(40).collect();
                let got = format!("a storage {shown:?} that is listed twice or that no tensor is in");
                return Err(Refusal::whole(got).fix("the file is damaged or built to deceive"));
            }
        }
    }
    match left.keys().min() {
        None => Ok(order),
        Some(key) => {
            Err(Refusal::whole(format!("a tensor in storage {key:?}, which the file does not list"))
                .fix(Refusal::FETCH_AGAIN))
        }
    }
}

/// Walks over the storages' headers; they fill the file to its end.
fn find_records(
    source: &Source,
    mut at: u64,
    order: &[usize],
    described: &Described,
) -> Result<Vec<Record>, Refusal> {
    let mut records: Vec<Option<Record>> = described.storages.iter().map(|_| None).collect();
    for &i in order {
        let Some((storage, slot)) = described.storages.get(i).zip(records.get_mut(i)) else { continue };
        let mut eight = [0; 8];
        source.read_at(at, &mut eight)?;
        let len = u64::from_le_bytes(eight);
        if len != storage.len {
            let got = format!(
                "storage {:?} of {len} elements, which the pickle calls {}",
                storage.key, storage.len
            );
            return Err(Refusal::at(at, "the file", got).fix(Refusal::FETCH_AGAIN));
        }
        let start = at + 8;
        let bytes = len.checked_mul(storage.element.size() as u64);
        let Some(end) = bytes.and_then(|n| start.checked_add(n)).filter(|end| *end <= source.length()) else {
            let got = format!("storage {:?} of {len} elements, which the file does not hold", storage.key);
            return Err(Refusal::at(at, "the file", got).fix(Refusal::FETCH_AGAIN));
        };
        *slot = Some(Record { at: start, element: storage.element, len, checksum: None });
        at = end;
    }
    if at != source.length() {
        let got = format!("{} bytes after the last storage", source.length() - at);
        return Err(Refusal::at(at, "the file", got).fix("the file is damaged or hides something"));
    }
    Ok(records.into_iter().flatten().collect())
}
