//! Weight files as users have them, in and out: PyTorch's (zip and pre-1.6), safetensors, whole model folders.
//!
//! This room knows no tensors; it hands over names, shapes, dtypes and plain little-endian bytes.
//!
//! | file | what is in it |
//! |---|---|
//! | [`Weights`] | an open file of any kind: what is in it, and the bytes of one tensor when asked |
//! | `pytorch/` | the restricted reader of PyTorch files: no code is run, no name outside a closed list |
//! | `safetensors.rs` | the guard before safetensors: limits, duplicates, holes, overlaps |
//! | `source.rs` | bytes by offset from one open descriptor. No file is mapped: one that is cut or written over while it is in use is an error, or does not matter any more |
//! | `set.rs` `folder.rs` | the files of a folder as one: shards, and the index that names them |
//! | [`names`] `wrappers.rs` | LAVIS, Hugging Face BERT, EVA and Hugging Face BLIP-2 names onto each other, whatever wrapped them |
//! | [`start`] `report.rs` | where training starts: EVA, BERT and earlier checkpoints put together |
//! | [`identity`] | what tells a set of tensors from others, without reading it again |
//! | [`mod@write`], [`write_pytorch`] | safetensors and PyTorch files written tensor by tensor |
//!
//! A file is input that may be torn or hostile. Every length is checked before anything is allocated, nothing recurses
//! over what a file describes, and a refusal names the object, the byte it stands at and what to do.

mod dtype;
mod folder;
pub mod identity;
pub mod interpolate;
pub mod names;
mod pytorch;
mod report;
mod safetensors;
mod set;
pub mod sizes;
mod source;
pub mod start;
mod wrappers;
pub mod write;

pub use dtype::{Dtype, first_non_finite, to_f32};
pub use folder::{VIT_FILE, is_checkpoint};
pub use pytorch::write as write_pytorch;
pub use report::Report;
pub use set::Set;
pub use wrappers::wrappers;

use crate::{Error, Kind, Result};
use rayon::prelude::*;
use source::Source;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

/// What stands in a file under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its name in the file.
    pub name: String,
    /// How its numbers are stored.
    pub dtype: Dtype,
    /// Its sizes.
    pub shape: Vec<usize>,
}

impl Info {
    /// Elements; the readers have checked that this and [`Info::bytes`] do not overflow.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Of all its numbers.
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.size()
    }
}

/// The container a file turned out to be, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As Hugging Face has it.
    Safetensors,
    /// PyTorch since 1.6: a zip archive.
    Zip,
    /// PyTorch before 1.6: five pickles and raw storages.
    Legacy,
}

impl Format {
    /// How it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Format::Safetensors => "safetensors",
            Format::Zip => "PyTorch (zip)",
            Format::Legacy => "PyTorch (before 1.6)",
        }
    }
}

/// An open file of weights. Opening reads the description only; bytes of tensors are read when asked for.
pub struct Weights {
    source: Source,
    tensors: Vec<Info>,
    index: HashMap<String, usize>,
    content: Content,
}

enum Content {
    Safetensors(safetensors::Header),
    Pytorch(pytorch::Archive),
}

impl Weights {
    /// Opens a file of any kind known here; its kind is told by its first bytes, not by its name.
    pub fn open(path: &Path) -> Result<Weights> {
        Weights::from_source(Source::open(path)?)
    }

    /// Reads a file that is in memory; `name` stands for its path in messages.
    pub fn from_bytes(name: &str, bytes: impl Into<Arc<[u8]>>) -> Result<Weights> {
        Weights::from_source(Source::memory(name, bytes.into()))
    }

    fn from_source(source: Source) -> Result<Weights> {
        Weights::parse(&source)
            .map(|(tensors, content)| {
                let index = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
                (tensors, index, content)
            })
            .map_err(|refusal| refusal.of(source.path()))
            .map(|(tensors, index, content)| Weights { source, tensors, index, content })
    }

    fn parse(source: &Source) -> Result<(Vec<Info>, Content), Refusal> {
        let mut first = [0; 10];
        let n = source.length().min(10) as usize;
        source.read_at(0, first.get_mut(..n).unwrap_or_default())?;
        if n < 8 {
            let got = format!("{n} bytes, too few for any file of weights");
            return Err(Refusal::whole(got).fix(Refusal::FETCH_AGAIN));
        }
        if pytorch::is_pytorch(&first) {
            let (tensors, archive) = pytorch::open(source)?;
            return Ok((tensors, Content::Pytorch(archive)));
        }
        if first[8] == b'{' {
            let (tensors, header) = safetensors::read_header(source)?;
            return Ok((tensors, Content::Safetensors(header)));
        }
        Err(unknown_kind(&first))
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// The file's length.
    pub fn file_bytes(&self) -> u64 {
        self.source.length()
    }

    /// What sort of file it is.
    pub fn format(&self) -> Format {
        match &self.content {
            Content::Safetensors(_) => Format::Safetensors,
            Content::Pytorch(archive) => archive.format(),
        }
    }

    /// The tensors in the order of the file.
    pub fn tensors(&self) -> &[Info] {
        &self.tensors
    }

    /// A tensor by its name.
    pub fn get(&self, name: &str) -> Option<&Info> {
        self.tensors.get(*self.index.get(name)?)
    }

    /// `__metadata__` of a safetensors file.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        match &self.content {
            Content::Safetensors(header) => &header.metadata,
            Content::Pytorch(_) => &NONE,
        }
    }

    /// What a file holds beside the tensors that are read: `optimizer`, `config`, `epoch`, ...; tensors of other numbers.
    pub fn others(&self) -> &[String] {
        match &self.content {
            Content::Safetensors(header) => &header.others,
            Content::Pytorch(archive) => &archive.others,
        }
    }

    fn find(&self, name: &str) -> Result<(usize, &Info)> {
        let found = self.index.get(name).and_then(|i| Some((*i, self.tensors.get(*i)?)));
        found.ok_or_else(|| Error::file(source::OP, self.path(), format!("a tensor {name}"), "none"))
    }

    /// The bytes of a tensor: row-major, contiguous, little-endian.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let (i, info) = self.find(name)?;
        let read = match &self.content {
            Content::Safetensors(header) => header.read(&self.source, i, info),
            Content::Pytorch(archive) => archive.read(&self.source, i, info),
        };
        read.map_err(|refusal| refusal.of(self.path()))
    }

    /// A tensor of floating point numbers as f32 (f64 rounded, f16 and bf16 exactly). A number that is not finite is an error,
    /// looked for piece by piece while they are read and converted.
    pub fn f32(&self, name: &str) -> Result<Vec<f32>> {
        let (i, info) = self.find(name)?;
        if let (Content::Safetensors(header), Dtype::F32) = (&self.content, info.dtype) {
            let mut values = source::room::<f32>(info.elements());
            return self.read_finite(header, (i, info), &mut values).map(|()| values);
        }
        let wrong = |got: String| Error::file(source::OP, self.path(), "floating point numbers", got);
        let (bytes, mut values) = (self.bytes(name)?, Vec::with_capacity(info.elements()));
        for (p, piece) in bytes.chunks(PIECE * info.dtype.size()).enumerate() {
            self.check_finite(info, p * PIECE, piece)?;
            let some = to_f32(info.dtype, piece);
            values.extend(some.ok_or_else(|| wrong(format!("{} in {name}", info.dtype)))?);
        }
        Ok(values)
    }

    /// The bits of a tensor of f16 or bf16, all of them finite.
    pub fn halves(&self, name: &str) -> Result<Vec<u16>> {
        let (i, info) = self.find(name)?;
        if !matches!(info.dtype, Dtype::F16 | Dtype::Bf16) {
            let got = format!("{} in {name}", info.dtype);
            return Err(Error::file(source::OP, self.path(), "f16 or bf16", got));
        }
        let Content::Safetensors(header) = &self.content else {
            let bytes = self.bytes(name)?;
            self.check_finite(info, 0, &bytes)?;
            return Ok(bytemuck::pod_collect_to_vec(&bytes));
        };
        let mut bits = source::room::<u16>(info.elements());
        self.read_finite(header, (i, info), &mut bits).map(|()| bits)
    }

    /// Fills `to`, numbers of the tensor's own dtype, piece by piece on all cores.
    fn read_finite<T: bytemuck::Pod + Send>(
        &self,
        header: &safetensors::Header,
        (i, info): (usize, &Info),
        to: &mut [T],
    ) -> Result<()> {
        let fill = |(p, piece): (usize, &mut [T])| {
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(piece);
            let read = header.read_into(&self.source, (i, info), p * PIECE * size_of::<T>(), bytes);
            read.map_err(|refusal| refusal.of(self.path()))?;
            self.check_finite(info, p * PIECE, bytes)
        };
        // Of several errors the first in the file.
        to.par_chunks_mut(PIECE).enumerate().map(fill).find_first(Result::is_err).unwrap_or(Ok(()))
    }

    /// Of the numbers from element `at` on.
    fn check_finite(&self, info: &Info, at: usize, bytes: &[u8]) -> Result<()> {
        let bad = first_non_finite(info.dtype, bytes);
        bad.map_or(Ok(()), |n| Err(non_finite(self.path(), &info.name, at + n)))
    }

    /// blake3 of a tensor's bytes.
    pub fn hash(&self, name: &str) -> Result<blake3::Hash> {
        let (i, info) = self.find(name)?;
        let Content::Safetensors(header) = &self.content else {
            return Ok(blake3::hash(&self.bytes(name)?));
        };
        let mut hash = blake3::Hasher::new();
        let read = header.each_piece(&self.source, i, info, |piece| {
            hash.update(piece);
        });
        read.map(|()| hash.finalize()).map_err(|refusal| refusal.of(self.path()))
    }
}

/// Numbers that are read, checked and converted at a time: they stay in a cache.
const PIECE: usize = 1 << 16;

/// The error of a tensor that holds a number that is not finite.
pub fn non_finite(path: &Path, name: &str, element: usize) -> Error {
    Error::new(Kind::NonFinite, source::OP)
        .about(path.display().to_string())
        .expected(format!("finite numbers in {name}"))
        .got(format!("one that is not, element {element}"))
        .fix("its training failed before it was saved, or it is damaged: take an earlier checkpoint")
}

/// What a file that is none of ours seems to be.
fn unknown_kind(first: &[u8; 10]) -> Refusal {
    let (what, fix) = match first {
        [b'<', ..] => ("HTML or XML", "download the file itself, not the page about it"),
        [b'v', b'e', b'r', b's', b'i', b'o', b'n', b' ', ..] => {
            ("a git-lfs pointer", "fetch the file itself with `git lfs pull`")
        }
        [0x80, 3..=5, ..] => ("a pickle that PyTorch has not written", "save the state dict with torch.save"),
        [0x1f, 0x8b, ..] => ("a gzip archive", "unpack it first"),
        _ => ("neither safetensors nor a PyTorch file", "give a .safetensors, .pth, .pt or .bin file"),
    };
    Refusal::at(0, "the file", what).fix(fix)
}

/// Why a file is refused: what was found at which byte of which part, and what to do. [`Refusal::of`] makes it an error.
#[derive(Debug)]
pub(crate) struct Refusal {
    place: Option<(u64, String)>,
    got: String,
    fix: String,
}

impl Refusal {
    const FETCH_AGAIN: &'static str = "the file is cut short or damaged: copy or download it again";

    fn at(byte: u64, part: impl Display, got: impl Display) -> Refusal {
        Refusal { place: Some((byte, part.to_string())), got: got.to_string(), fix: String::new() }
    }

    fn whole(got: impl Display) -> Refusal {
        Refusal { place: None, got: got.to_string(), fix: String::new() }
    }

    fn fix(mut self, fix: impl Display) -> Refusal {
        self.fix = fix.to_string();
        self
    }

    fn of(self, path: &Path) -> Error {
        let place = self.place.map(|(byte, part)| format!(" (byte {byte} of {part})")).unwrap_or_default();
        let e = Error::new(crate::Kind::File, source::OP).about(path.display().to_string());
        let e = e.got(format!("{}{place}", self.got));
        if self.fix.is_empty() { e } else { e.fix(self.fix) }
    }
}
