//! A folder of files that belong together: it appears, or is replaced, as a whole.
//!
//!   write all files into `.folder-PID-N.partial/` beside -> fsync -> rename it into place, or exchange it with the old one
//!
//! Where the folder holds files that are none of ours, or cannot be renamed (a mount point, a parent that may not be written
//! to, a file system that knows no exchange), the files are renamed one by one instead. What stops in between then leaves
//! parts of two sets, which whoever reads them tells apart by the identities they carry.

use super::{Disk, RealDisk, folder_of, make_folders, retry, write_error};
use crate::{Error, Result};
use rustix::fs::{Access, CWD, RenameFlags, access, renameat_with};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const OP: &str = "write a folder";
/// Beginning and end of the name of a folder that is being written.
const PREFIX: &str = ".folder-";
const PARTIAL: &str = ".partial";

/// Writes a folder through `write`, which is given an empty folder to write into. `own` names the files that such a folder may
/// hold; all others in a folder that is replaced stay where they are. On an error the old folder is as it was, unless the
/// files are renamed one by one.
pub fn write_folder(folder: &Path, own: &[&str], write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let failed = |e: io::Error| write_error(OP, folder, &e);
    // A link is followed: what it leads to is replaced.
    let target = if folder.exists() { folder.canonicalize().map_err(failed)? } else { folder.to_path_buf() };
    make_folders(&RealDisk, folder_of(&target))?;
    let staged = stage(&target).map_err(failed)?;
    let done = write(&staged).and_then(|()| {
        retry(|| RealDisk.sync_folder(&staged)).map_err(failed)?;
        put_in_place(&staged, &target, own).map_err(failed)
    });
    if done.is_err() || staged.exists() {
        // Best effort: what stays behind is known by its name.
        let _ = std::fs::remove_dir_all(&staged);
    }
    done
}

/// Refuses a folder that could not be made or written into, without making it.
pub fn check_writable(folder: &Path) -> Result<()> {
    let there = folder.ancestors().find(|p| p.exists()).unwrap_or(Path::new("."));
    let there = if there == Path::new("") { Path::new(".") } else { there };
    let failed = |e: io::Error| write_error("write", folder, &e);
    if !there.is_dir() {
        return Err(failed(ErrorKind::NotADirectory.into()));
    }
    access(there, Access::WRITE_OK | Access::EXEC_OK).map_err(|e| failed(e.into()))
}

/// Removes what killed processes left of folders in this one. Only for the one who owns the folder they lie in.
pub fn remove_partial_folders(folder: &Path) -> Result<()> {
    let failed = |e: io::Error| write_error("remove a half-written folder", folder, &e);
    for found in retry(|| RealDisk.list(folder)).map_err(failed)? {
        let path = folder.join(&found);
        if found.starts_with(PREFIX) && found.ends_with(PARTIAL) && path.is_dir() {
            std::fs::remove_dir_all(path).map_err(failed)?;
        }
    }
    Ok(())
}

/// An empty folder on the same file system: beside the target if that can be, else inside.
fn stage(target: &Path) -> io::Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = format!("{PREFIX}{}-{}{PARTIAL}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let parent = folder_of(target);
    let Ok(old) = target.metadata() else {
        let staged = parent.join(name);
        return std::fs::create_dir(&staged).map(|()| staged);
    };
    if parent.metadata()?.dev() == old.dev() {
        let staged = parent.join(&name);
        if std::fs::create_dir(&staged).is_ok() {
            std::fs::set_permissions(&staged, old.permissions())?;
            return Ok(staged);
        }
    }
    let staged = target.join(name);
    std::fs::create_dir(&staged).map(|()| staged)
}

fn put_in_place(staged: &Path, target: &Path, own: &[&str]) -> io::Result<()> {
    let there = match std::fs::read_dir(target) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            retry(|| std::fs::rename(staged, target))?;
            return retry(|| RealDisk.sync_folder(folder_of(target)));
        }
        there => there?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?,
    };
    let beside = folder_of(staged) != target;
    let all_own = there.iter().all(|name| own.iter().any(|o| name == *o));
    if beside && all_own && renameat_with(CWD, staged, CWD, target, RenameFlags::EXCHANGE).is_ok() {
        // The old folder now bears the name of the new one, and goes.
        return retry(|| RealDisk.sync_folder(folder_of(target)));
    }
    one_by_one(staged, target, own)
}

/// Renames the files, in the order of `own`, and removes those of the old set that the new one lacks.
fn one_by_one(staged: &Path, target: &Path, own: &[&str]) -> io::Result<()> {
    let fresh = RealDisk.list(staged)?;
    let place = |name: &String| own.iter().position(|o| o == name).unwrap_or(0);
    let mut order = fresh.clone();
    order.sort_by_key(place);
    for name in &order {
        retry(|| std::fs::rename(staged.join(name), target.join(name)))?;
    }
    for name in own.iter().filter(|o| !fresh.iter().any(|f| f == *o)) {
        match std::fs::remove_file(target.join(name)) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    retry(|| RealDisk.sync_folder(target))
}

/// Refuses to replace files of ours, unless the caller was told to (`force`).
pub fn refuse_replacing(operation: &str, folder: &Path, own: &[&str], force: bool) -> Result<()> {
    let taken = own.iter().map(|name| folder.join(name)).find(|path| path.exists());
    match taken {
        Some(path) if !force => {
            Err(Error::argument(operation, "--out", "a folder without a model", path.display())
                .fix("choose another folder, or replace it with --force"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    const OWN: [&str; 3] = ["a", "b", "c"];

    fn put(folder: &Path, names: &[&str], text: &str) -> Result<()> {
        names.iter().for_each(|n| std::fs::write(folder.join(n), text).unwrap());
        Ok(())
    }

    fn content(folder: &Path) -> Vec<(String, String)> {
        let mut names = RealDisk.list(folder).unwrap();
        names.sort();
        names.into_iter().map(|n| (n.clone(), std::fs::read_to_string(folder.join(n)).unwrap())).collect()
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect()
    }

    #[test]
    fn a_folder_is_made_and_replaced_as_a_whole() {
        let top = tempfile::tempdir().unwrap();
        let folder = top.path().join("deep/model");
        write_folder(&folder, &OWN, |f| put(f, &["a", "b"], "old")).unwrap();
        assert_eq!(content(&folder), pairs(&[("a", "old"), ("b", "old")]));
        write_folder(&folder, &OWN, |f| put(f, &["a", "c"], "new")).unwrap();
        assert_eq!(content(&folder), pairs(&[("a", "new"), ("c", "new")]));
        // Through a link, which stays one.
        let link = top.path().join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        write_folder(&link, &OWN, |f| put(f, &["a"], "newer")).unwrap();
        assert!(link.is_symlink());
        assert_eq!(content(&folder), pairs(&[("a", "newer")]));
        assert_eq!(RealDisk.list(&top.path().join("deep")).unwrap(), ["model"]);
    }

    #[test]
    fn files_of_others_stay_and_a_failure_changes_nothing() {
        let top = tempfile::tempdir().unwrap();
        let folder = top.path().join("model");
        write_folder(&folder, &OWN, |f| put(f, &["a", "b"], "old")).unwrap();
        put(&folder, &["README"], "mine").unwrap();
        let before = content(&folder);
        let failed = write_folder(&folder, &OWN, |f| {
            put(f, &["a"], "half")?;
            Err(Error::new(Kind::Write, "test"))
        });
        assert!(failed.is_err());
        assert_eq!(content(&folder), before);
        write_folder(&folder, &OWN, |f| put(f, &["b", "c"], "new")).unwrap();
        assert_eq!(content(&folder), pairs(&[("README", "mine"), ("b", "new"), ("c", "new")]));
        assert_eq!(RealDisk.list(top.path()).unwrap(), ["model"]);
        // What a killed process left is removed by the owner.
        std::fs::create_dir(top.path().join(".folder-1-0.partial")).unwrap();
        remove_partial_folders(top.path()).unwrap();
        assert_eq!(RealDisk.list(top.path()).unwrap(), ["model"]);
    }
}
