//! A group of processes that compute one training together: each has a rank from 0, and what moves between them are plain bytes, in an
//! order that depends on nothing but ranks. So W processes get the numbers that one would.
//!
//! [`Group::alone`] is one process: every call gives back what it was given. Engines: MPI (feature `mpi`).
//!
//! A rank that fails ends by itself, with its own error; whoever waits for it is ended by its launcher, or by the watchdog after the
//! time-out, with exit code 8.

mod echo;
#[cfg(feature = "mpi")]
mod mpi;
mod place;
mod threads;
mod watchdog;

pub use place::Place;

use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use watchdog::Watchdog;

const OPERATION: &str = "group";
/// Bytes of a piece of a sum: while one is added, the next one travels.
const PIECE: usize = 1 << 20;

/// What carries bytes between ranks. Calls come from one thread at a time.
trait Engine: Send {
    fn send(&mut self, to: usize, bytes: &[u8]) -> Result<()>;
    fn receive(&mut self, from: usize, bytes: &mut [u8]) -> Result<()>;
    /// To and from every rank at once, as many bytes as the slices have.
    fn exchange(&mut self, out: &[&[u8]], into: &mut [Vec<u8>]) -> Result<()>;
    fn end(&mut self) -> Result<()>;
}

/// Bytes that this rank has sent and received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// To all others.
    pub sent: u64,
    /// From all others.
    pub received: u64,
}

/// Which engine a command asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// MPI where this build has it and a launcher has started several processes, else none.
    Auto,
    /// None.
    None,
    /// MPI.
    Mpi,
}

/// A group, seen from one of its processes. Clones are the same group.
#[derive(Clone)]
pub struct Group(Arc<Inner>);

struct Inner {
    place: Place,
    engine: Option<Mutex<Joined>>,
}

struct Joined {
    engine: Box<dyn Engine>,
    watchdog: Watchdog,
    /// By what messages call it.
    traffic: BTreeMap<&'static str, Traffic>,
}

impl Default for Group {
    fn default() -> Group {
        Group::alone()
    }
}

impl Group {
    /// One process.
    pub fn alone() -> Group {
        Group(Arc::new(Inner { place: Place::ALONE, engine: None }))
    }

    /// Seen from a process at this place.
    fn of(place: Place, engine: impl Engine + 'static, watchdog: Watchdog) -> Group {
        let joined = Joined { engine: Box::new(engine), watchdog, traffic: BTreeMap::new() };
        Group(Arc::new(Inner { place, engine: Some(Mutex::new(joined)) }))
    }

    /// The group that this process was started in.
    pub fn open(ask: Ask, patience: Duration) -> Result<Group> {
        let place = match ask {
            Ask::None => None,
            Ask::Auto if !cfg!(feature = "mpi") => None,
            Ask::Auto => Place::of(|name| std::env::var(name).ok(), false)?.filter(|p| p.size > 1),
            Ask::Mpi => Some(Place::of(|name| std::env::var(name).ok(), true)?.unwrap_or(Place::ALONE)),
        };
        place.map_or_else(|| Ok(Group::alone()), |place| join(place, patience))
    }

    /// This process's rank.
    pub fn rank(&self) -> usize {
        self.0.place.rank
    }

    /// How many processes there are.
    pub fn size(&self) -> usize {
        self.0.place.size
    }

    /// The device that this process takes: of several GPUs that of its number on its machine.
    pub fn device(&self, asked: &str) -> String {
        match asked {
            "cuda" if self.size() > 1 => format!("cuda:{}", self.0.place.local),
            asked => asked.to_owned(),
        }
    }

    /// Whether this is the process that writes and speaks.
    pub fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// The step that messages name.
    pub fn at_step(&self, step: u64) {
        if let Some(engine) = &self.0.engine {
            lock(engine).watchdog.step(step);
        }
    }

    /// What has travelled since it was last asked, by what messages call it.
    pub fn take_traffic(&self) -> BTreeMap<&'static str, Traffic> {
        self.0.engine.as_ref().map(|e| std::mem::take(&mut lock(e).traffic)).unwrap_or_default()
    }

    /// Runs a call of the engine under the watchdog.
    fn call<T>(
        &self,
        name: &'static str,
        run: impl FnOnce(&mut dyn Engine, &Watchdog, &mut Traffic) -> Result<T>,
    ) -> Result<Option<T>> {
        let Some(engine) = &self.0.engine else { return Ok(None) };
        let mut joined = lock(engine);
        let Joined { engine, watchdog, traffic } = &mut *joined;
        watchdog.begin(name);
        let done = run(engine.as_mut(), watchdog, traffic.entry(name).or_default());
        let done = done.map_err(|e| watchdog.locate((self.rank(), self.size()), e));
        watchdog.end();
        done.map(Some)
    }

    /// Bytes of every rank, in turn; each may have another number of them. `name` is what messages call it.
    pub fn all_gather(&self, name: &'static str, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let size = self.size();
        let gathered = self.call(name, |engine, _, traffic| {
            let length = (own.len() as u64).to_le_bytes();
            let mut lengths = vec![vec![0; 8]; size];
            engine.exchange(&vec![&length[..]; size], &mut lengths)?;
            let mut all: Vec<Vec<u8>> = lengths.iter().map(|l| vec![0; count(l)]).collect();
            engine.exchange(&vec![own; size], &mut all)?;
            let others = |n: usize| n as u64;
            traffic.sent += others(own.len()) * others(size - 1);
            traffic.received += all.iter().map(|a| others(a.len())).sum::<u64>() - others(own.len());
            Ok(all)
        })?;
        Ok(gathered.unwrap_or_else(|| vec![own.to_vec()]))
    }

    /// Numbers of every rank, in turn. They travel as they lie: all machines of a group have one order of bytes.
    pub fn gather<T: bytemuck::Pod>(&self, name: &'static str, own: &[T]) -> Result<Vec<Vec<T>>> {
        let all = self.all_gather(name, bytemuck::cast_slice(own))?;
        Ok(all.iter().map(|bytes| bytemuck::pod_collect_to_vec(bytes)).collect())
    }

    /// Sends `out[r]` to each rank r, and receives `lengths[r]` bytes from each.
    pub fn exchange(&self, name: &'static str, out: &[Vec<u8>], lengths: &[usize]) -> Result<Vec<Vec<u8>>> {
        let rank = self.rank();
        let got = self.call(name, |engine, _, traffic| {
            let mut into: Vec<Vec<u8>> = lengths.iter().map(|n| vec![0; *n]).collect();
            engine.exchange(&out.iter().map(Vec::as_slice).collect::<Vec<_>>(), &mut into)?;
            let others = |all: &[Vec<u8>]| {
                all.iter().enumerate().filter(|(r, _)| *r != rank).map(|(_, b)| b.len() as u64).sum::<u64>()
            };
            traffic.sent += others(out);
            traffic.received += others(&into);
            Ok(into)
        })?;
        Ok(got.unwrap_or_else(|| out.to_vec()))
    }

    /// Sums numbers over ranks in the order of ranks, so that the sum is that of one process: `sum` is what the ranks before have, and
    /// `add` adds this rank's to the piece of it that begins at that byte. All ranks get the whole. Alone, it is not called.
    pub fn sum_in_order(
        &self,
        name: &'static str,
        sum: &mut [u8],
        mut add: impl FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let (rank, last) = (self.rank(), self.size() - 1);
        self.call(name, |engine, watchdog, traffic| {
            // Up: each rank adds its own to what comes from the one before, and hands it on.
            for (i, piece) in sum.chunks_mut(PIECE).enumerate() {
                watchdog.begin(name);
                if rank > 0 {
                    engine.receive(rank - 1, piece)?;
                    traffic.received += piece.len() as u64;
                }
                add(i * PIECE, piece)?;
                if rank < last {
                    engine.send(rank + 1, piece)?;
                    traffic.sent += piece.len() as u64;
                }
            }
            // Round: the last one has the sum.
            for piece in sum.chunks_mut(PIECE) {
                watchdog.begin(name);
                if rank != last {
                    engine.receive(if rank == 0 { last } else { rank - 1 }, piece)?;
                    traffic.received += piece.len() as u64;
                }
                let to = if rank == last { 0 } else { rank + 1 };
                if to != last {
                    engine.send(to, piece)?;
                    traffic.sent += piece.len() as u64;
                }
            }
            Ok(())
        })
        .map(drop)
    }

    /// Waits until all are here.
    pub fn barrier(&self, name: &'static str) -> Result<()> {
        self.all_gather(name, &[]).map(drop)
    }

    /// Ends the group: all ranks have done their work. What ends with an error does not call it.
    pub fn end(&self) -> Result<()> {
        self.call("end", |engine, _, _| engine.end()).map(drop)
    }
}

fn lock(engine: &Mutex<Joined>) -> std::sync::MutexGuard<'_, Joined> {
    engine.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(bytes: &[u8]) -> usize {
    let mut all = [0; 8];
    all.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    u64::from_le_bytes(all) as usize
}

#[cfg(feature = "mpi")]
fn join(place: Place, patience: Duration) -> Result<Group> {
    let (engine, rank, size) = mpi::start()?;
    if (rank, size) != (place.rank, place.size) {
        let got = format!("rank {rank} of {size}");
        let want = format!("rank {} of {}, as the environment says", place.rank, place.size);
        return Err(Error::argument(OPERATION, "MPI", want, got)
            .fix("start it with mpirun, or with srun --mpi=pmix; this build's MPI must be the launcher's"));
    }
    let end = |e: &Error| watchdog::give_up(e, |code| mpi::leave(code));
    Ok(Group::of(place, engine, Watchdog::start((rank, size), patience, end)?))
}

#[cfg(not(feature = "mpi"))]
fn join(_: Place, _: Duration) -> Result<Group> {
    Err(Error::argument(OPERATION, "--group", "an engine of this build", "mpi")
        .fix("build with --features mpi, which needs mpicc (Debian: libopenmpi-dev)"))
}

#[cfg(test)]
mod tests;
