//! Where writing to a path leads: to a regular file, there or not yet, behind any links; or straight into a device, a pipe or
//! an open file of `/proc`, which no file must replace.

use super::{folder_of, retry};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Links followed, as the kernel does.
const MAX_LINKS: usize = 40;

/// Where bytes that are written to a path go.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// A regular file, or the name of one to be made.
    File(PathBuf),
    /// Something that bytes are written into, in turn, and that is not read.
    Stream(PathBuf),
}

pub(super) fn follow(path: &Path) -> io::Result<Target> {
    let mut at = path.to_owned();
    for _ in 0..MAX_LINKS {
        let about = match retry(|| fs::symlink_metadata(&at)) {
            Ok(about) => about,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Target::File(at)),
            Err(e) => return Err(e),
        };
        if about.is_dir() {
            return Err(Errno::ISDIR.into());
        }
        if about.is_file() {
            return Ok(Target::File(at));
        }
        if !about.is_symlink() || is_open_file(&at) {
            return Ok(Target::Stream(at));
        }
        at = folder_of(&at).join(retry(|| fs::read_link(&at))?);
    }
    Err(Errno::LOOP.into())
}

/// Where temporary files on the way to a path may lie: on the same disk, if it is a file's.
pub fn scratch(path: &Path) -> PathBuf {
    match follow(path) {
        Ok(Target::File(file)) => folder_of(&file).to_owned(),
        _ => std::env::temp_dir(),
    }
}

/// A link of `/proc` stands for a file that some process has open, whatever the link reads.
fn is_open_file(link: &Path) -> bool {
    folder_of(link).canonicalize().is_ok_and(|folder| folder.starts_with("/proc"))
}

/// Opens what [`Target::Stream`] names; a pipe waits for its reader. What is in it stays, and what is written comes after it.
pub fn open_stream(path: &Path) -> io::Result<File> {
    let real = folder_of(path).canonicalize()?.join(path.file_name().unwrap_or_default());
    let own = |fd: u32| real == Path::new(&format!("/proc/{}/fd/{fd}", std::process::id()));
    // Our own are taken as they are: opened anew, a file would be written from its beginning, and a socket cannot be.
    match (own(1), own(2)) {
        (true, _) => io::stdout().as_fd().try_clone_to_owned().map(File::from),
        (_, true) => io::stderr().as_fd().try_clone_to_owned().map(File::from),
        _ => retry(|| OpenOptions::new().append(true).open(path)),
    }
}

/// The mode of one file for another, and the owner where we may; best effort where the file system has no such rights.
pub(super) fn copy_rights(old: &Path, new: &Path, more: u32) -> io::Result<()> {
    let old = match retry(|| fs::symlink_metadata(old)) {
        Ok(about) if about.is_file() => about,
        _ => return Ok(()),
    };
    let now = retry(|| fs::symlink_metadata(new))?;
    if (old.uid(), old.gid()) != (now.uid(), now.gid()) {
        let _ = std::os::unix::fs::chown(new, Some(old.uid()), Some(old.gid()));
    }
    let mode = (old.mode() | more) & 0o7777;
    if now.mode() & 0o7777 == mode {
        return Ok(());
    }
    match retry(|| fs::set_permissions(new, fs::Permissions::from_mode(mode))) {
        Err(e) if matches!(e.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => Ok(()),
        done => done,
    }
}
