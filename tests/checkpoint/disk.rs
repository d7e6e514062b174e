//! A disk in memory that can fail any operation or lose its power.
//!
//! What is written is first only in the "live" state, as in a kernel's cache. fsync of a file makes its bytes
//! durable, fsync of the folder makes its names durable. `after_power_loss` builds what a machine finds when it
//! comes back: the durable state plus an arbitrary part of the rest. Of unsynced bytes each block of 512 or 4096
//! is there, lost, torn or garbage, in any order; of unsynced names any subset is there, so a rename may be lost
//! or may be ahead of the data.

use qformer::files::{Disk, DiskFile};
use std::any::Any;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

/// splitmix64: numbers for choosing, the same in every run.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// The operation fails with this errno.
    Errno(i32),
    /// A read or write moves fewer bytes than asked for.
    Short,
    PowerLoss,
}

/// A planted defect of the disk, by which the tests prove that they see one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lie {
    FileSync,
    FolderSync,
}

#[derive(Clone, Default)]
struct Content {
    live: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Clone)]
enum Change {
    Link(String, usize),
    Unlink(String),
    Rename(String, String, usize),
}

#[derive(Clone, Default)]
struct State {
    contents: Vec<Content>,
    live: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    unsynced: Vec<Change>,
    operations: usize,
    fault: Option<(usize, Fault)>,
    off: bool,
    lie: Option<Lie>,
    free: Option<u64>,
}

/// One flat folder; of a path only the last part counts.
#[derive(Default)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn copy(&self) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(self.state().clone())))
    }

    /// Operation number `n`, counted from 1 and from now, will meet the fault.
    pub fn fail_at(&self, n: usize, fault: Fault) {
        let mut s = self.state();
        s.operations = 0;
        s.fault = Some((n, fault));
    }

    pub fn heal(&self) {
        self.state().fault = None;
    }

    pub fn lie(&self, lie: Option<Lie>) {
        self.state().lie = lie;
    }

    pub fn set_free(&self, bytes: u64) {
        self.state().free = Some(bytes);
    }

    pub fn operations(&self) -> usize {
        self.state().operations
    }

    pub fn names(&self) -> Vec<String> {
        self.state().live.keys().cloned().collect()
    }

    pub fn contents(&self, name: &str) -> Vec<u8> {
        let s = self.state();
        s.contents[s.live[name]].live.clone()
    }

    /// Puts a file there, durably.
    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut s = self.state();
        let id = s.contents.len();
        s.contents.push(Content { live: bytes.clone(), durable: bytes });
        s.live.insert(name.into(), id);
        s.durable.insert(name.into(), id);
    }

    pub fn after_power_loss(&self, dice: &mut Dice) -> SimDisk {
        let old = self.state();
        let mut names = old.durable.clone();
        let in_order = dice.below(2) == 0;
        let reached = dice.below(old.unsynced.len() + 1);
        for (i, change) in old.unsynced.iter().enumerate() {
            let there = if in_order { i < reached } else { dice.below(2) == 0 };
            match change {
                Change::Link(name, id) if there => drop(names.insert(name.clone(), *id)),
                Change::Unlink(name) if there => drop(names.remove(name)),
                Change::Rename(from, to, id) if there => {
                    names.remove(from);
                    names.insert(to.clone(), *id);
                }
                _ => {}
            }
        }
        let contents = old.contents.iter().map(|c| {
            let found = if c.live == c.durable { c.live.clone() } else { mixed(c, dice) };
            Content { live: found.clone(), durable: found }
        });
        let contents = contents.collect();
        SimDisk(Arc::new(Mutex::new(State {
            contents,
            live: names.clone(),
            durable: names,
            ..State::default()
        })))
    }
}

/// The bytes of a file of which only `durable` was synced.
fn mixed(c: &Content, dice: &mut Dice) -> Vec<u8> {
    let (low, high) = (c.live.len().min(c.durable.len()), c.live.len().max(c.durable.len()));
    let length = [low, high, low + dice.below(high - low + 1)][dice.below(3)];
    let block = [512, 4096][dice.below(2)];
    let byte = |from: &[u8], i: usize| from.get(i).copied().unwrap_or(0);
    let mut found = Vec::with_capacity(length);
    while found.len() < length {
        let start = found.len();
        let end = (start + block).min(length);
        let torn_at = [end, start, start + dice.below(end - start), end][dice.below(4)];
        let garbage = dice.below(8) == 0;
        for i in start..end {
            found.push(if garbage {
                dice.next() as u8
            } else {
                byte(if i < torn_at { &c.live } else { &c.durable }, i)
            });
        }
    }
    found
}

impl State {
    /// Counts the operation; true if it is to move fewer bytes than asked for.
    fn begin(&mut self) -> io::Result<bool> {
        self.operations += 1;
        match self.fault {
            _ if self.off => Err(io::Error::other("the power is off")),
            Some((n, fault)) if n == self.operations => match fault {
                Fault::Errno(e) => Err(io::Error::from_raw_os_error(e)),
                Fault::Short => Ok(true),
                Fault::PowerLoss => {
                    self.off = true;
                    Ok(true) // this operation still reaches the cache, in part; the next do not
                }
            },
            _ => Ok(false),
        }
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        self.live.get(&name(path)).copied().ok_or_else(|| ErrorKind::NotFound.into())
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_string()
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut s = self.state();
        s.begin()?;
        if s.live.contains_key(&name(path)) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let id = s.contents.len();
        s.contents.push(Content::default());
        s.live.insert(name(path), id);
        s.unsynced.push(Change::Link(name(path), id));
        Ok(Box::new(SimFile { state: Arc::clone(&self.0), id, at: 0 }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut s = self.state();
        s.begin()?;
        Ok(Box::new(SimFile { state: Arc::clone(&self.0), id: s.find(path)?, at: 0 }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut s = self.state();
        s.begin()?;
        let id = s.find(from)?;
        s.live.remove(&name(from));
        s.live.insert(name(to), id);
        s.unsynced.push(Change::Rename(name(from), name(to), id));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut s = self.state();
        s.begin()?;
        s.find(path)?;
        s.live.remove(&name(path));
        s.unsynced.push(Change::Unlink(name(path)));
        Ok(())
    }

    fn make_folder(&self, _: &Path) -> io::Result<()> {
        self.state().begin()?;
        Err(ErrorKind::AlreadyExists.into())
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        let mut s = self.state();
        s.begin()?;
        if !s.off && s.lie != Some(Lie::FolderSync) {
            s.durable = s.live.clone();
            s.unsynced.clear();
        }
        if s.off { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }

    fn list(&self, _: &Path) -> io::Result<Vec<String>> {
        let mut s = self.state();
        s.begin()?;
        Ok(s.live.keys().cloned().collect())
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        let mut s = self.state();
        s.begin()?;
        Ok(s.free.unwrap_or(u64::MAX))
    }

    fn lock(&self, _: &Path, _: &str) -> io::Result<Box<dyn Any + Send>> {
        self.state().begin()?;
        Ok(Box::new(()))
    }
}

struct SimFile {
    state: Arc<Mutex<State>>,
    id: usize,
    at: usize,
}

/// Few bytes a time, so that one save is many operations.
const BITE: usize = 1000;

impl Read for SimFile {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut s = self.state.lock().unwrap();
        let most = if s.begin()? { 1 } else { 8 * BITE };
        let rest = &s.contents[self.id].live[self.at..];
        let n = rest.len().min(into.len()).min(most);
        into[..n].copy_from_slice(&rest[..n]);
        self.at += n;
        Ok(n)
    }
}

impl Write for SimFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut s = self.state.lock().unwrap();
        let most = if s.begin()? { BITE / 3 } else { BITE };
        let n = bytes.len().min(most);
        s.contents[self.id].live.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn length(&self) -> io::Result<u64> {
        let mut s = self.state.lock().unwrap();
        s.begin()?;
        Ok(s.contents[self.id].live.len() as u64)
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut s = self.state.lock().unwrap();
        s.begin()?;
        if s.off {
            return Err(io::Error::other("the power is off"));
        }
        if s.lie != Some(Lie::FileSync) {
            let content = &mut s.contents[self.id];
            content.durable = content.live.clone();
        }
        Ok(())
    }
}
