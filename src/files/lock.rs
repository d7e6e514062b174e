//! Locks between processes: the kernel's own on an open file, which end with the process however it ends.
//!
//! [`hold`] is for a short while, to read a file, add to it and replace it. The file itself cannot carry the lock, as
//! another takes its place; so one beside it does, `.qformer.HASH.lock`, made for this and removed by its holder.

use super::{Target, folder_of, retry, target, write_error};
use crate::terminal::note;
use crate::{Error, Kind, Result};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PREFIX: &str = ".qformer.";
const LOCK: &str = ".lock";
const DIGITS: usize = 16;
/// A writer that holds a file for longer than this is stuck.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(5);

/// Whether an error of locking says that the file system has no locks.
pub fn has_no_locks(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP))
        || error.kind() == io::ErrorKind::Unsupported
}

/// Says so, once.
pub fn no_locks(folder: &Path) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        note!(
            "warning: the file system of {} has no locks: nothing keeps a second process from writing there; run one at a time",
            folder.display()
        );
    }
}

/// The right to replace a file, as long as it lives.
pub struct Held {
    path: PathBuf,
    _file: File,
}

impl Drop for Held {
    fn drop(&mut self) {
        // While the lock is held: whoever waits for it finds that the file is gone, and makes another.
        let _ = fs::remove_file(&self.path);
    }
}

/// Waits until no other process holds `path`; `None` for what is no regular file and where there are no locks.
pub fn hold(path: &Path) -> Result<Option<Held>> {
    let failed = |e: io::Error| write_error("lock", path, &e);
    let Target::File(file) = target::follow(path).map_err(failed)? else { return Ok(None) };
    let real = folder_of(&file).canonicalize().map_err(failed)?.join(file.file_name().unwrap_or_default());
    let hash = blake3::hash(real.file_name().unwrap_or_default().as_encoded_bytes()).to_hex();
    let beside = real.with_file_name(format!("{PREFIX}{}{LOCK}", &hash.as_str()[..DIGITS]));
    let since = Instant::now();
    while since.elapsed() < PATIENCE {
        let lock = retry(|| OpenOptions::new().write(true).create(true).truncate(false).open(&beside))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) if same(&lock, &beside) => return Ok(Some(Held { path: beside, _file: lock })),
            Ok(()) => continue,
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            Err(TryLockError::Error(e)) if has_no_locks(&e) => {
                no_locks(folder_of(&real));
                let _ = fs::remove_file(&beside);
                return Ok(None);
            }
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
    }
    Err(Error::new(Kind::Write, "lock")
        .about(path.display().to_string())
        .got(format!("another process has held it for {} s ({})", PATIENCE.as_secs(), beside.display()))
        .fix("wait until it has ended, or stop it"))
}

/// Whether a name still stands for the file that was opened under it.
fn same(file: &File, path: &Path) -> bool {
    let id = |m: &fs::Metadata| (m.dev(), m.ino());
    matches!((file.metadata(), fs::metadata(path)), (Ok(a), Ok(b)) if id(&a) == id(&b))
}

/// Whether a file is named like the lock of one that is held.
pub(super) fn is_lock(name: &str) -> bool {
    let digits = name.strip_prefix(PREFIX).and_then(|n| n.strip_suffix(LOCK));
    digits.is_some_and(|d| d.len() == DIGITS && d.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Removes a lock whose holder was killed; best effort.
pub(super) fn remove(path: &Path) {
    let Ok(file) = OpenOptions::new().write(true).open(path) else { return };
    if file.try_lock().is_ok() && same(&file, path) {
        drop(Held { path: path.to_owned(), _file: file });
    }
}
