//! The elements of one tensor: from its storage's place in the file, gathered into row-major order.

use super::{Archive, Info, Record, Refusal, Source};
use std::sync::atomic::{AtomicBool, Ordering};

/// The checksum of a record, and whether its bytes were found to have it.
pub(super) struct Checksum {
    crc: u32,
    good: AtomicBool,
}

impl Checksum {
    pub fn new(crc: u32) -> Checksum {
        Checksum { crc, good: AtomicBool::new(false) }
    }
}

impl Archive {
    /// The bytes of tensor `i`, row-major. A record's checksum is verified when it is first read from.
    pub fn read(&self, source: &Source, i: usize, info: &Info) -> Result<Vec<u8>, Refusal> {
        let lost = || Refusal::whole(format!("no storage for tensor {:?}", info.name));
        let view = self.views.get(i).ok_or_else(lost)?;
        let record = self.records.get(view.storage).ok_or_else(lost)?;
        let (size, elements) = (record.element.size(), info.elements());
        if elements == 0 {
            return Ok(Vec::new());
        }
        let last: u64 = info.shape.iter().zip(&view.strides).map(|(n, s)| (*n as u64 - 1) * s).sum();
        let span = last + 1; // elements from the first to the last
        let bytes = source.read(record.at + view.offset * size as u64, span * size as u64)?;
        self.verify(source, record, (span == record.len).then_some(&bytes[..]), &info.name)?;
        if is_contiguous(&info.shape, &view.strides) {
            return Ok(bytes);
        }
        Ok(gather(&bytes, size, &info.shape, &view.strides, elements))
    }

    /// `whole` are the record's bytes if they were read anyway.
    fn verify(
        &self,
        source: &Source,
        record: &Record,
        whole: Option<&[u8]>,
        name: &str,
    ) -> Result<(), Refusal> {
        let Some(checksum) = &record.checksum else { return Ok(()) };
        let crc = match whole {
            Some(bytes) => crc32fast::hash(bytes),
            None if checksum.good.load(Ordering::Relaxed) => return Ok(()),
            None => crc_of(source, record)?,
        };
        if crc != checksum.crc {
            let got = format!("tensor {name:?} whose bytes do not match their checksum");
            return Err(Refusal::at(record.at, "the file", got)
                .fix("the file is damaged (or was saved with set_crc32_options(False)): copy it again"));
        }
        checksum.good.store(true, Ordering::Relaxed);
        Ok(())
    }
}

fn crc_of(source: &Source, record: &Record) -> Result<u32, Refusal> {
    const PIECE: u64 = 1 << 20;
    let mut hasher = crc32fast::Hasher::new();
    let (mut at, end) = (record.at, record.at + record.len * record.element.size() as u64);
    let mut piece = vec![0; PIECE.min(end - at) as usize];
    while at < end {
        let n = PIECE.min(end - at);
        let part = piece.get_mut(..n as usize).unwrap_or_default();
        source.read_at(at, part)?;
        hasher.update(part);
        at += n;
    }
    Ok(hasher.finalize())
}

/// Whether elements lie one after the other; strides of axes of one element do not matter.
fn is_contiguous(shape: &[usize], strides: &[u64]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(n, stride)| {
        let fits = *n == 1 || *stride == expected;
        expected *= *n as u64;
        fits
    })
}

fn gather(from: &[u8], size: usize, shape: &[usize], strides: &[u64], elements: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(elements * size);
    let mut index = vec![0; shape.len()];
    let mut at = 0; // in elements
    for _ in 0..elements {
        out.extend_from_slice(from.get(at * size..(at + 1) * size).unwrap_or_default());
        // the next index, the last axis first
        for axis in (0..shape.len()).rev() {
            let stride = strides[axis] as usize;
            index[axis] += 1;
            at += stride;
            if index[axis] < shape[axis] {
                break;
            }
            at -= stride * shape[axis];
            index[axis] = 0;
        }
    }
    out
}
