//! Files that are either whole or not there, whatever stops the program: a full disk, `kill -9`, a power cut.
//!
//! [`write_atomic`] never touches the old file before the new one is safe:
//!   room on the disk? -> write `.qformer.PID-N.partial` beside it -> fsync -> open again and compare blake3
//!   -> rename over NAME -> fsync the folder -> Ok.
//! Ok means durable. An error means that the old file is as it was; only when the last step fails may the new one
//! (whole and verified) already stand in its place. A program that is killed leaves at most a `.partial` file,
//! which the next one that writes into the folder removes (`leftovers`). The temporary name is short, so a name of
//! 255 bytes can be written; the new file has the rights of the old one.
//!
//! A path that a user names is followed through links, and written straight to where it is no regular file (a device, a
//! pipe): `target`. A name that we choose beside a user's files is never followed: [`write_beside`].
//!
//! The operations go through the small trait [`Disk`], so that tests can fail any one of them or cut the power;
//! [`RealDisk`] is the file system. An interrupted call (EINTR) is repeated, a failed fsync never is: after it
//! nobody knows what the disk holds. The comparison reads what the kernel gives back, which may be its cache: it
//! finds a wrong write, not a disk that lies about fsync.

mod folder;
mod leftovers;
mod lock;
mod map;
mod target;
#[cfg(test)]
mod tests;

pub use folder::{check_writable, refuse_replacing, remove_partial_folders, write_folder};
pub use leftovers::remove_leftovers;
pub use lock::{Held, has_no_locks, hold, no_locks};
pub use map::Map;
pub use target::{Target, open_stream, scratch};

use crate::{Error, Kind, Result};
use leftovers::{PARTIAL, PARTIAL_PREFIX};
use rustix::io::Errno;
use std::any::Any;
use std::borrow::Cow;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use unicode_normalization::UnicodeNormalization;

/// The operations on a file system that saving needs.
pub trait Disk: Sync {
    /// A new, empty file; an error if the name is taken.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// A file that is there, to be read.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Another name; what had it is replaced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Takes a file away.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// One folder whose parent exists.
    fn make_folder(&self, folder: &Path) -> io::Result<()>;
    /// Makes the names in a folder (new, renamed, removed) survive a power cut.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
    /// The names in a folder, in any order; those that are not UTF-8 are none of ours and left out.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;
    /// Bytes an ordinary user may still write there.
    fn free_bytes(&self, folder: &Path) -> io::Result<u64>;
    /// Takes the lock of this file for as long as the returned value lives; `WouldBlock` when another process
    /// has it. `owner` is written into it for others to read. A file system without locks is reported once.
    fn lock(&self, path: &Path, owner: &str) -> io::Result<Box<dyn Any + Send>>;
    /// Where writing to a path leads.
    fn target(&self, path: &Path) -> io::Result<Target> {
        Ok(Target::File(path.to_owned()))
    }
    /// Gives a new file the rights of the one it will replace, if there is one, and `more` of them.
    fn copy_rights(&self, _old: &Path, _new: &Path, _more: u32) -> io::Result<()> {
        Ok(())
    }
    /// Removes what killed processes left half-written in a folder; best effort.
    fn sweep(&self, _folder: &Path) {}
}

/// An open file. Its length is asked once, so nothing is allocated for bytes that are not there.
pub trait DiskFile: Read + Write + Send {
    /// Its bytes.
    fn length(&self) -> io::Result<u64>;
    /// Returns when the contents are on the disk itself.
    fn sync(&mut self) -> io::Result<()>;
}

/// The file system of the machine.
pub struct RealDisk;

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        // Tells others that it is being written; where there are no locks, its age does.
        let _ = file.try_lock();
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(File::open(path)?))
    }

    /// Another name; what had it is replaced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    /// Takes a file away.
    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        std::fs::create_dir(folder)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        match File::open(folder)?.sync_all() {
            // Some network file systems have no such operation; they keep names safe by themselves.
            Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
            done => done,
        }
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn free_bytes(&self, folder: &Path) -> io::Result<u64> {
        let s = rustix::fs::statvfs(folder)?;
        Ok(s.f_bavail.saturating_mul(s.f_frsize))
    }

    /// The kernel's own lock on the open file: it ends with the process, however the process ends, so the lock
    /// of a dead process is never in the way, and a reused process number cannot be mistaken for it.
    fn lock(&self, path: &Path, owner: &str) -> io::Result<Box<dyn Any + Send>> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(e)) if has_no_locks(&e) => no_locks(folder_of(path)),
            Err(e) => return Err(e.into()),
        }
        file.set_len(0)?;
        file.write_all(owner.as_bytes())?;
        Ok(Box::new(file))
    }

    fn target(&self, path: &Path) -> io::Result<Target> {
        target::follow(path)
    }

    fn copy_rights(&self, old: &Path, new: &Path, more: u32) -> io::Result<()> {
        target::copy_rights(old, new, more)
    }

    fn sweep(&self, folder: &Path) {
        leftovers::sweep_once(folder);
    }
}

impl DiskFile for File {
    /// Its bytes.
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// Writes what a user named through `write` so that the file holds either all of it or what it held before. Links are
/// followed; what is no regular file is written straight to. `bytes` is the size to come: 1.1 times as much must be
/// free before anything is written.
pub fn write_atomic(
    disk: &dyn Disk,
    path: &Path,
    bytes: u64,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let failed = |e: io::Error| write_error("write", path, &e);
    match retry(|| disk.target(path)).map_err(failed)? {
        Target::File(file) => write_beside(disk, &file, bytes, write),
        Target::Stream(stream) => {
            let mut to = BufWriter::with_capacity(BUFFER, open_stream(&stream).map_err(failed)?);
            write(&mut to).and_then(|()| to.flush()).map_err(failed)
        }
    }
}

/// [`write_atomic`] for a name of our own choice: a link there is replaced, never followed.
pub fn write_beside(
    disk: &dyn Disk,
    path: &Path,
    bytes: u64,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    if path.file_name().is_none() {
        let got = path.display().to_string();
        return Err(Error::argument("write a file", got, "a path that ends in a name", "none"));
    }
    disk.sweep(folder_of(path));
    check_room(disk, path, bytes)?;
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let partial = path.with_file_name(format!("{PARTIAL_PREFIX}{}-{n}{PARTIAL}", std::process::id()));
    let done = write_and_rename(disk, &partial, path, write);
    if done.is_err() {
        // Best effort: what stays behind is known by its name.
        let _ = disk.remove(&partial);
    }
    done
}

const BUFFER: usize = 256 * 1024;
/// The owner may read and write.
const OWN: u32 = 0o600;

fn write_and_rename(
    disk: &dyn Disk,
    partial: &Path,
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let failed = |e: io::Error| write_error("write", path, &e);
    let file = retry(|| disk.create(partial)).map_err(failed)?;
    // Before there is anything to read in it.
    retry(|| disk.copy_rights(path, partial, OWN)).map_err(failed)?;
    let mut hashed = Hashed { file, hash: blake3::Hasher::new() };
    {
        let mut buffered = BufWriter::with_capacity(BUFFER, &mut hashed);
        write(&mut buffered).and_then(|()| buffered.flush()).map_err(failed)?;
    }
    retry(|| hashed.file.sync()).map_err(failed)?;
    let wanted = hashed.hash.finalize();
    let found = hash_file(disk, partial).map_err(failed)?;
    if found != wanted {
        return Err(Error::new(Kind::Write, "write")
            .about(path.display().to_string())
            .expected(format!("to read back the bytes written (blake3 {})", wanted.to_hex()))
            .got(format!("others ({})", found.to_hex()))
            .fix("the disk or the memory is faulty: choose another disk and test this one"));
    }
    retry(|| disk.copy_rights(path, partial, 0)).map_err(failed)?;
    retry(|| disk.rename(partial, path)).map_err(failed)?;
    // Its lock, which keeps others from removing it, ends here.
    drop(hashed);
    retry(|| disk.sync_folder(folder_of(path))).map_err(failed)
}

/// Passes bytes on to the file and hashes those that it took.
struct Hashed {
    file: Box<dyn DiskFile>,
    hash: blake3::Hasher,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.file.write(bytes)?;
        self.hash.update(bytes.get(..taken).unwrap_or(bytes));
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// blake3 of a file's contents, read in pieces.
pub fn hash_file(disk: &dyn Disk, path: &Path) -> io::Result<blake3::Hash> {
    let mut file = retry(|| disk.open(path))?;
    let mut hash = blake3::Hasher::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        let n = retry(|| file.read(&mut piece))?;
        if n == 0 {
            return Ok(hash.finalize());
        }
        hash.update(piece.get(..n).unwrap_or_default());
    }
}

/// The bytes of a regular file, or of a link to one: no device, no pipe, and no more than `most`.
pub fn read_regular(path: &Path, most: u64, operation: &str) -> Result<Vec<u8>> {
    let io = |e: io::Error| Error::io(operation, path, &e);
    // Asked before the opening: opening a pipe would wait for its writer.
    if !retry(|| std::fs::metadata(path)).map_err(io)?.is_file() {
        return Err(Error::file(operation, path, "a regular file", "a folder, a device or a pipe"));
    }
    read_most(path, most, operation)
}

/// The bytes of a file of any kind that the user names, at most so many.
pub fn read_most(path: &Path, most: u64, operation: &str) -> Result<Vec<u8>> {
    let io = |e: io::Error| Error::io(operation, path, &e);
    let mut bytes = Vec::new();
    let file = retry(|| File::open(path)).map_err(io)?;
    file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > most {
        let got = format!("a file of more than {most} bytes");
        return Err(Error::file(operation, path, format!("at most {most} bytes"), got));
    }
    Ok(bytes)
}

/// Refuses to begin what cannot end: 1.1 times the bytes must be free.
fn check_room(disk: &dyn Disk, path: &Path, bytes: u64) -> Result<()> {
    let folder = folder_of(path);
    let free = retry(|| disk.free_bytes(folder)).map_err(|e| write_error("write", path, &e))?;
    let needed = bytes.saturating_add(bytes / 10);
    if free >= needed {
        return Ok(());
    }
    Err(Error::new(Kind::Write, "write")
        .about(path.display().to_string())
        .expected(format!("{needed} bytes free (1.1 times the file)"))
        .got(format!("{free}"))
        .fix(format!(
            "free {} more bytes on the disk of {} or choose another; nothing saved before is lost",
            needed - free,
            folder.display()
        )))
}

/// Makes a folder and those above it, each of them durable.
pub fn make_folders(disk: &dyn Disk, folder: &Path) -> Result<()> {
    let failed = |e: io::Error| write_error("make a folder", folder, &e);
    match retry(|| disk.make_folder(folder)) {
        Ok(()) => retry(|| disk.sync_folder(folder_of(folder))).map_err(failed),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            // Best effort: a process may have died after making it and before this.
            let _ = disk.sync_folder(folder_of(folder));
            Ok(())
        }
        Err(e) if e.kind() == ErrorKind::NotFound && folder.parent().is_some_and(|p| p != Path::new("")) => {
            make_folders(disk, folder_of(folder))?;
            retry(|| disk.make_folder(folder)).map_err(failed)?;
            retry(|| disk.sync_folder(folder_of(folder))).map_err(failed)
        }
        Err(e) => Err(failed(e)),
    }
}

/// A name in Unicode's composed form (NFC), as names are compared: a Mac's file system takes letters apart (か + ゛ for が).
pub fn composed(name: &str) -> Cow<'_, str> {
    if name.is_ascii() { Cow::Borrowed(name) } else { Cow::Owned(name.nfc().collect()) }
}

/// Repeats a call for as long as a signal interrupts it.
pub fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// The folder a path lies in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if p != Path::new("") => p,
        _ => Path::new("."),
    }
}

/// The error of a write that failed: what, where, and what to do about it.
pub fn write_error(operation: &str, path: &Path, error: &io::Error) -> Error {
    let fix = format!("{}; nothing saved before is lost", remedy(folder_of(path), error));
    Error::new(Kind::Write, operation).about(path.display().to_string()).got(error).fix(fix)
}

/// What to do about an error of the system in a folder.
pub fn remedy(folder: &Path, error: &io::Error) -> String {
    let folder = folder.display();
    let errno = error.raw_os_error();
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            format!("free some space on the disk of {folder}")
        }
        ErrorKind::PermissionDenied => {
            format!("choose a folder you may use, or change the rights of {folder}")
        }
        ErrorKind::ReadOnlyFilesystem => "choose a folder you may write to".into(),
        ErrorKind::NotFound => format!("check that the folder {folder} exists"),
        _ if errno == Some(Errno::MFILE.raw_os_error()) || errno == Some(Errno::NFILE.raw_os_error()) => {
            "too many files are open: raise the limit (ulimit -n) or close some".into()
        }
        _ if errno == Some(Errno::IO.raw_os_error()) => {
            format!("the disk of {folder} reports a fault: look into the system log")
        }
        _ => format!("check the disk of {folder}"),
    }
}

/// A number of bytes as one reads it: `1.5 GiB`.
pub fn bytes(n: u64) -> String {
    match n {
        0..1_048_576 => format!("{:.1} KiB", n as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", n as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", n as f64 / 1_073_741_824.0),
    }
}
