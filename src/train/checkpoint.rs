//! Checkpoints that survive a full disk, `kill -9` and a power cut, and say so when they did not.
//!
//! A checkpoint is **one file**, `step-000001200.safetensors`, not a folder: one rename makes it appear whole, so
//! there is no state in which some of its parts are new and others old or missing. Any safetensors tool reads it:
//!   8 bytes: length of the header | header: JSON, padded with spaces | data
//!   - `__metadata__.qformer`  the [`Manifest`] as JSON: progress, configuration, and blake3 of every tensor
//!   - tensor `qformer.seal`   blake3 of the 8 bytes and the header, `[32]` u8, the first tensor of the data
//!   - the tensors as given: weights under their LAVIS names, the optimizer's under [`EXP_AVG`] / [`EXP_AVG_SQ`] + name
//!
//! So every byte is under a hash: the seal holds the header, the header holds the hashes of the rest. There is no
//! clock and no path in it: the same state gives the same bytes.
//!
//! [`Folder`] is the writer: it holds the folder's lock, saves through [`files::write_atomic`] (Ok means durable)
//! and prunes. [`latest`] and [`load`] need no lock. The newest checkpoint is found by looking at all of them and
//! verifying, never by a pointer that could itself be torn. A torn file is reported and passed over; an error of
//! the system (too many open files, an unreadable disk) is returned, since passing over would lose work silently.

pub use super::manifest::{Manifest, Metric, Progress};
use crate::files::{self, Disk, DiskFile, RealDisk};
use crate::{Error, Kind, Result};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;
use std::any::Any;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

/// What stands before a parameter's name in the names of AdamW's running means.
pub const EXP_AVG: &str = "optimizer.exp_avg.";
pub const EXP_AVG_SQ: &str = "optimizer.exp_avg_sq.";
/// How many of the newest checkpoints to keep if nobody says otherwise.
pub const KEEP_LAST: usize = 2;

const FORMAT: u64 = 1;
const KEY: &str = "qformer";
const SEAL: &str = "qformer.seal";
const SEAL_BYTES: usize = 32;
const MAX_HEADER: u64 = 16 << 20;

/// A tensor to save: row-major, little-endian.
pub struct Tensor<'a> {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Cow<'a, [u8]>,
}

pub struct Checkpoint<'a> {
    pub progress: Progress,
    pub tensors: Vec<Tensor<'a>>,
}

/// A tensor that was loaded: row-major, little-endian.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    pub progress: Progress,
    pub tensors: BTreeMap<String, Stored>,
}

/// The folder of one run's checkpoints, owned by this process until dropped.
pub struct Folder<'d> {
    disk: &'d dyn Disk,
    path: PathBuf,
    /// Those this process has saved or read through, so that pruning need not read them again.
    intact: BTreeSet<PathBuf>,
    _lock: Box<dyn Any + Send>,
}

impl<'d> Folder<'d> {
    /// Makes the folder if need be, takes its lock, and removes what killed processes left half-written.
    pub fn own(disk: &'d dyn Disk, path: &Path) -> Result<Folder<'d>> {
        files::make_folders(disk, path)?;
        let file = path.join(LOCK);
        let owner = format!("process {}", std::process::id());
        let lock = files::retry(|| disk.lock(&file, &owner)).map_err(|e| match e.kind() {
            ErrorKind::WouldBlock => taken(disk, path, &file),
            _ => files::write_error("lock", &file, &e),
        })?;
        files::remove_leftovers(disk, path)?;
        Ok(Folder { disk, path: path.to_path_buf(), intact: BTreeSet::new(), _lock: lock })
    }

    /// Saves durably: once this returns Ok, a power cut cannot take the checkpoint away.
    pub fn save(&mut self, checkpoint: &Checkpoint) -> Result<PathBuf> {
        let step = checkpoint.progress.step;
        self.refuse_older(step)?;
        let path = self.path.join(file_name(step));
        let header = encode_header(checkpoint)?;
        let seal = blake3::hash(&header);
        let bytes: usize = checkpoint.tensors.iter().map(|t| t.bytes.len()).sum();
        self.intact.remove(&path);
        files::write_atomic(self.disk, &path, (header.len() + SEAL_BYTES + bytes) as u64, |w| {
            w.write_all(&header)?;
            w.write_all(seal.as_bytes())?;
            checkpoint.tensors.iter().try_for_each(|t| w.write_all(&t.bytes))
        })?;
        self.intact.insert(path.clone());
        Ok(path)
    }

    /// Going on from an older step beside newer ones would be lost at the next start, which takes the newest.
    fn refuse_older(&mut self, step: u64) -> Result<()> {
        for (newer, path) in steps(self.disk, &self.path)? {
            if newer > step && self.is_intact(&path)? {
                return Err(Error::argument(
                    "save checkpoint",
                    path.display().to_string(),
                    format!("no checkpoint newer than step {step}"),
                    format!("step {newer}"),
                )
                .fix("move the newer checkpoints away, or save into another folder"));
            }
        }
        Ok(())
    }

    /// Removes all but the newest `keep_last` and the `keep_best` best by their metric; only intact ones count,
    /// and as long as none is intact nothing is removed. Returns what was removed.
    pub fn prune(&mut self, keep_last: usize, keep_best: usize) -> Result<Vec<PathBuf>> {
        if keep_last == 0 {
            return Err(Error::argument("prune checkpoints", "keep_last", "1 or more", 0));
        }
        // Only what a power cut cannot take away may replace what is removed.
        files::retry(|| self.disk.sync_folder(&self.path))
            .map_err(|e| files::write_error("prune checkpoints", &self.path, &e))?;
        let all: Vec<PathBuf> = steps(self.disk, &self.path)?.into_iter().map(|(_, path)| path).collect();
        let mut kept = self.first_intact(&all, keep_last)?;
        if kept.is_empty() {
            return Ok(Vec::new());
        }
        if keep_best > 0 {
            kept.extend(self.first_intact(&best_first(self.disk, &all)?, keep_best)?);
        }
        let doomed: Vec<PathBuf> = all.into_iter().rev().filter(|path| !kept.contains(path)).collect();
        for path in &doomed {
            self.intact.remove(path);
            let removed = files::retry(|| self.disk.remove(path));
            removed.map_err(|e| files::write_error("prune checkpoints", path, &e))?;
        }
        Ok(doomed)
    }

    fn first_intact(&mut self, paths: &[PathBuf], count: usize) -> Result<BTreeSet<PathBuf>> {
        let mut found = BTreeSet::new();
        for path in paths {
            if found.len() < count && self.is_intact(path)? {
                found.insert(path.clone());
            }
        }
        Ok(found)
    }

    fn is_intact(&mut self, path: &Path) -> Result<bool> {
        if self.intact.contains(path) {
            return Ok(true);
        }
        match read(self.disk, path, false) {
            Ok(_) => Ok(self.intact.insert(path.to_path_buf())),
            Err(Bad::Torn(_) | Bad::Gone) => Ok(false),
            Err(Bad::System(e)) => Err(e),
        }
    }
}

/// What the checkpoint of a step is called.
pub fn file_name(step: u64) -> String {
    format!("step-{step:09}.safetensors")
}

const LOCK: &str = ".lock";

/// Refuses a folder that another process trains in, as [`Folder::own`] does, and writes nothing.
pub fn refuse_locked(folder: &Path) -> Result<()> {
    let file = folder.join(LOCK);
    let locked =
        File::open(&file).is_ok_and(|f| matches!(f.try_lock_shared(), Err(TryLockError::WouldBlock)));
    if locked { Err(taken(&RealDisk, folder, &file)) } else { Ok(()) }
}

fn taken(disk: &dyn Disk, folder: &Path, lock: &Path) -> Error {
    Error::new(Kind::Argument, "train")
        .about(folder.display().to_string())
        .expected("a folder no other training writes to")
        .got(format!("one locked by {}", lock_owner(disk, lock)))
        .fix("wait for it, stop it, or choose another folder")
}

fn lock_owner(disk: &dyn Disk, file: &Path) -> String {
    let mut text = String::new();
    let read = disk.open(file).and_then(|f| f.take(64).read_to_string(&mut text));
    if read.is_ok() && !text.is_empty() { text } else { "another process".into() }
}

/// The newest intact checkpoint of a folder; `torn` is called with each newer one that is damaged.
pub fn latest(disk: &dyn Disk, folder: &Path, mut torn: impl FnMut(&Error)) -> Result<Option<PathBuf>> {
    for (_, path) in steps(disk, folder)? {
        match read(disk, &path, false) {
            Ok(_) => return Ok(Some(path)),
            Err(Bad::Torn(e)) => torn(&e),
            Err(Bad::Gone) => {} // pruned by a running training since we listed it
            Err(Bad::System(e)) => return Err(e),
        }
    }
    Ok(None)
}

/// Loads a checkpoint, every byte verified.
pub fn load(disk: &dyn Disk, path: &Path) -> Result<Loaded> {
    read(disk, path, true).map_err(|bad| match bad {
        Bad::Torn(e) | Bad::System(e) => e,
        Bad::Gone => Error::io(LOAD, path, &ErrorKind::NotFound.into()),
    })
}

/// The checkpoints of a folder by name, newest first; none if there is no folder.
pub fn steps(disk: &dyn Disk, folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let names = match files::retry(|| disk.list(folder)) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        names => {
            names.map_err(|e| Error::io("list checkpoints", folder, &e).fix(files::remedy(folder, &e)))?
        }
    };
    let step = |n: &str| n.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse::<u64>().ok();
    let mut found: Vec<_> = names.iter().filter_map(|n| Some((step(n)?, folder.join(n)))).collect();
    found.sort_by(|a, b| b.cmp(a));
    Ok(found)
}

/// Those that carry the newest one's kind of metric, best first, and newest first among equals.
fn best_first(disk: &dyn Disk, newest_first: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut scored: Vec<(Metric, &PathBuf)> = Vec::new();
    for path in newest_first {
        match open(disk, path) {
            Ok(opened) => scored.extend(opened.manifest.progress.metric.map(|m| (m, path))),
            Err(Bad::Torn(_) | Bad::Gone) => {}
            Err(Bad::System(e)) => return Err(e),
        }
    }
    let Some((first, _)) = scored.first().cloned() else { return Ok(Vec::new()) };
    scored.retain(|(m, _)| m.name == first.name);
    scored.sort_by(|(a, _), (b, _)| match first.higher_is_better {
        true => b.value.total_cmp(&a.value),
        false => a.value.total_cmp(&b.value),
    });
    Ok(scored.into_iter().map(|(_, path)| path.clone()).collect())
}

/// The 8 bytes of the header's length and the header.
fn encode_header(checkpoint: &Checkpoint) -> Result<Vec<u8>> {
    let wrong = |about: &str, expected: &str, got: String| {
        Err(Error::argument("save checkpoint", about, expected, got))
    };
    if let Some(m) = checkpoint.progress.metric.as_ref().filter(|m| !m.value.is_finite()) {
        return wrong(&m.name, "a finite metric", m.value.to_string());
    }
    let mut tensors = BTreeMap::new();
    let seal = TensorInfo { dtype: Dtype::U8, shape: vec![SEAL_BYTES], data_offsets: (0, SEAL_BYTES) };
    let mut infos = vec![(SEAL.to_string(), seal)];
    let mut start = SEAL_BYTES;
    for t in &checkpoint.tensors {
        let bits = t.shape.iter().try_fold(t.dtype.bitsize(), |n, &d| n.checked_mul(d));
        if bits != t.bytes.len().checked_mul(8) {
            let expected = format!("the bytes of {:?} {:?}", t.dtype, t.shape);
            return wrong(&t.name, &expected, format!("{} bytes", t.bytes.len()));
        }
        let hash = blake3::hash(&t.bytes).to_hex().to_string();
        if t.name == SEAL || t.name == "__metadata__" || tensors.insert(t.name.clone(), hash).is_some() {
            return wrong(&t.name, "a name of its own", "a name that is taken".into());
        }
        let end = start + t.bytes.len();
        infos.push((
            t.name.clone(),
            TensorInfo { dtype: t.dtype, shape: t.shape.clone(), data_offsets: (start, end) },
        ));
        start = end;
    }
    let manifest = Manifest { format: FORMAT, progress: checkpoint.progress.clone(), tensors };
    let broken = |e: &dyn std::fmt::Display| Error::new(Kind::Argument, "save checkpoint").got(e);
    let manifest = serde_json::to_string(&manifest).map_err(|e| broken(&e))?;
    let map = Some(HashMap::from([(KEY.to_string(), manifest)]));
    let metadata = Metadata::new(map, infos).map_err(|e| broken(&e))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|e| broken(&e))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    if json.len() as u64 > MAX_HEADER {
        return wrong("header", "at most 16 MiB of names and settings", format!("{} bytes", json.len()));
    }
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    Ok(header)
}

/// Why a checkpoint cannot be used.
enum Bad {
    /// Its bytes are not those that were written.
    Torn(Error),
    /// There is no such file any more.
    Gone,
    /// The system did not let us read it, or another version wrote it: nothing is known against the file.
    System(Error),
}

const LOAD: &str = "load checkpoint";

fn torn(path: &Path, got: impl std::fmt::Display) -> Bad {
    let e = Error::file(LOAD, path, "a whole checkpoint", got);
    Bad::Torn(e.fix("remove it and resume from the newest whole one, or restore it from a copy"))
}

fn cannot_read(path: &Path, e: &io::Error) -> Bad {
    match e.kind() {
        ErrorKind::UnexpectedEof => torn(path, "one that is cut short"),
        ErrorKind::NotFound => Bad::Gone,
        _ => {
            let fix = format!(
                "{}, or move the file away to use the one before",
                files::remedy(files::folder_of(path), e)
            );
            Bad::System(Error::io(LOAD, path, e).fix(fix))
        }
    }
}

/// A checkpoint whose header is verified; the file stands at the first tensor after the seal.
struct Opened {
    file: Box<dyn DiskFile>,
    metadata: Metadata,
    manifest: Manifest,
}

fn open(disk: &dyn Disk, path: &Path) -> Result<Opened, Bad> {
    let failed = |e: io::Error| cannot_read(path, &e);
    let mut file = files::retry(|| disk.open(path)).map_err(failed)?;
    let length = files::retry(|| file.length()).map_err(failed)?;
    let mut eight = [0; 8];
    file.read_exact(&mut eight).map_err(failed)?;
    let n = u64::from_le_bytes(eight);
    if n > MAX_HEADER || n > length {
        return Err(torn(path, format!("a header of {n} bytes in a file of {length}")));
    }
    let mut json = vec![0; n as usize];
    file.read_exact(&mut json).map_err(failed)?;
    let mut seal = [0; SEAL_BYTES];
    file.read_exact(&mut seal).map_err(failed)?;
    if *blake3::Hasher::new().update(&eight).update(&json).finalize().as_bytes() != seal {
        return Err(torn(path, "a header whose hash differs"));
    }
    let metadata: Metadata = serde_json::from_slice(&json).map_err(|e| torn(path, e))?;
    let wanted = 8 + n + metadata.data_len() as u64;
    if length != wanted {
        return Err(torn(path, format!("{length} bytes instead of {wanted}")));
    }
    let text = metadata.metadata().as_ref().and_then(|m| m.get(KEY)).map_or("", String::as_str);
    let value: Value = serde_json::from_str(text).map_err(|e| torn(path, e))?;
    let format = value.get("format").and_then(Value::as_u64);
    if format != Some(FORMAT) {
        let got = format.map_or("none".to_string(), |f| f.to_string());
        let e = Error::file(LOAD, path, format!("format {FORMAT}"), got);
        return Err(Bad::System(e.fix("use the version of qformer that wrote it")));
    }
    let manifest = serde_json::from_value(value).map_err(|e| torn(path, e))?;
    Ok(Opened { file, metadata, manifest })
}

/// Reads and verifies every byte; the tensors' bytes are kept only if asked for.
fn read(disk: &dyn Disk, path: &Path, keep: bool) -> Result<Loaded, Bad> {
    let Opened { mut file, metadata, mut manifest } = open(disk, path)?;
    let mut piece = vec![0; 1 << 20];
    let mut tensors = BTreeMap::new();
    for name in metadata.offset_keys().into_iter().skip(1) {
        let info = metadata.info(&name).ok_or_else(|| torn(path, format!("no tensor {name}")))?;
        let mut left = info.data_offsets.1 - info.data_offsets.0;
        let mut bytes = Vec::with_capacity(if keep { left } else { 0 });
        let mut hash = blake3::Hasher::new();
        while left > 0 {
            let size = left.min(piece.len());
            let part = piece.get_mut(..size).unwrap_or_default();
            file.read_exact(part).map_err(|e| cannot_read(path, &e))?;
            hash.update(part);
            if keep {
                bytes.extend_from_slice(part);
            }
            left -= size;
        }
        if manifest.tensors.remove(&name) != Some(hash.finalize().to_hex().to_string()) {
            return Err(torn(path, format!("a tensor {name} whose hash differs")));
        }
        if keep {
            tensors.insert(name, Stored { dtype: info.dtype, shape: info.shape.clone(), bytes });
        }
    }
    if let Some((name, _)) = manifest.tensors.pop_first() {
        return Err(torn(path, format!("no tensor {name}")));
    }
    Ok(Loaded { progress: manifest.progress, tensors })
}
