//! A restricted reader of PyTorch files. It runs nothing: a pickle is a list of instructions; those that describe tensors are
//! understood, and other objects become nodes that know only the name of their class (`pickle.rs`, `objects.rs`, `graph.rs`).
//! Names that belong to no data are refused. Which of a file's dictionaries is the model: `choose.rs`. Two containers: the zip archive of PyTorch 1.6 and later (`zip.rs`), and five pickles in a row
//! before (`legacy.rs`). Tensors are described by `rebuild.rs` and read by offset (`read.rs`). `write.rs` writes such files.

#![forbid(unsafe_code)]

mod choose;
mod graph;
mod legacy;
mod objects;
mod pickle;
mod read;
mod rebuild;
mod write;
mod zip;

use super::source::Source;
use super::{Dtype, Format, Info, Refusal};
use graph::Element;
use rebuild::View;

pub use write::write;

pub(super) fn is_pytorch(first: &[u8; 10]) -> bool {
    first.starts_with(b"PK") || first.starts_with(&legacy::BEGINNING) || is_tar(first)
}

/// PyTorch before 0.1.10 wrote tar archives, whose members begin with these names.
fn is_tar(first: &[u8; 10]) -> bool {
    first.starts_with(b"sys_info\0") || first.starts_with(b"storages\0") || first.starts_with(b"tensors\0")
}

/// The bytes of one storage in the file.
pub(super) struct Record {
    at: u64,
    element: Element,
    /// Elements.
    len: u64,
    /// The checksum the archive gives for them, and whether it was found right; None in files without checksums.
    checksum: Option<read::Checksum>,
}

/// An open PyTorch file: where its tensors lie.
pub(super) struct Archive {
    format: Format,
    records: Vec<Record>,
    views: Vec<View>,
    /// What the file's dictionary holds beside the weights.
    pub others: Vec<String>,
}

impl Archive {
    pub fn format(&self) -> Format {
        self.format
    }
}

pub(super) fn open(source: &Source) -> Result<(Vec<Info>, Archive), Refusal> {
    let mut first = [0; 10];
    source.read_at(0, &mut first[..source.length().min(10) as usize])?;
    if is_tar(&first) {
        return Err(Refusal::at(0, "the file", "a tar archive, as PyTorch wrote before 2017")
            .fix("load it in PyTorch and save it again with torch.save"));
    }
    let (format, described, records) = if first.starts_with(b"PK") {
        let (described, records) = zip::open(source)?;
        (Format::Zip, described, records)
    } else {
        let (described, records) = legacy::open(source)?;
        (Format::Legacy, described, records)
    };
    let rebuild::Described { tensors, views, others, .. } = described;
    rebuild::check_total(&tensors, source.length())?;
    Ok((tensors, Archive { format, records, views, others }))
}
