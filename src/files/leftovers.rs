//! Half-written files of programs that were killed: found by their names, removed by the next one that writes there.
//!
//! A file that is being written is locked by its writer, so one whose lock is free belongs to nobody. Between its creation
//! and its lock there is a moment, in which its writer's process tells that it lives; on a file system without locks, and for
//! processes that this machine does not see, its age decides.

use super::{Disk, lock, retry, write_error};
use crate::Result;
use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// A temporary file is called PREFIX, process, `-`, count, PARTIAL: at most 40 bytes, whatever it will be called.
pub(super) const PARTIAL_PREFIX: &str = ".qformer.";
pub(super) const PARTIAL: &str = ".partial";
/// Nobody writes one file for so long where no lock can be seen.
const OLD: Duration = Duration::from_secs(24 * 60 * 60);

/// Removes the half-written files of programs that were killed, and returns their paths. Only for the one who
/// owns the folder: a file that is being written looks the same.
pub fn remove_leftovers(disk: &dyn Disk, folder: &Path) -> Result<Vec<PathBuf>> {
    let names = retry(|| disk.list(folder)).map_err(|e| write_error("list", folder, &e))?;
    let mut removed = Vec::new();
    for name in names.iter().filter(|n| n.starts_with('.') && n.ends_with(PARTIAL)) {
        let path = folder.join(name);
        retry(|| disk.remove(&path)).map_err(|e| write_error("remove a half-written file", &path, &e))?;
        removed.push(path);
    }
    Ok(removed)
}

/// Removes those that nobody writes any more, the first time this process writes into the folder.
pub(super) fn sweep_once(folder: &Path) {
    static SWEPT: Mutex<Option<HashSet<PathBuf>>> = Mutex::new(None);
    let mut swept = SWEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if swept.get_or_insert_default().insert(folder.to_owned()) {
        drop(swept);
        sweep(folder);
    }
}

/// Best effort: whatever fails, the files stay for the next time.
pub(super) fn sweep(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        if writer(name).is_some_and(|process| abandoned(&entry.path(), process)) {
            let _ = std::fs::remove_file(entry.path());
        } else if lock::is_lock(name) {
            lock::remove(&entry.path());
        }
    }
}

/// The process that a temporary file is named after.
fn writer(name: &str) -> Option<i32> {
    let numbers = name.strip_prefix(PARTIAL_PREFIX)?.strip_suffix(PARTIAL)?;
    let (process, count) = numbers.split_once('-')?;
    count.parse::<u64>().ok()?;
    process.parse().ok()
}

fn abandoned(path: &Path, process: i32) -> bool {
    let Ok(about) = std::fs::symlink_metadata(path) else { return false };
    let Ok(file) = File::open(path) else { return false };
    let old =
        about.modified().ok().and_then(|t| SystemTime::now().duration_since(t).ok()).is_some_and(|d| d > OLD);
    let free = match file.try_lock() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => return false,
        Err(TryLockError::Error(_)) => false,
    };
    about.is_file() && (old || free && !lives(process))
}

fn lives(process: i32) -> bool {
    let id = rustix::process::Pid::from_raw(process);
    id.is_some_and(|id| rustix::process::test_kill_process(id) != Err(rustix::io::Errno::SRCH))
}
