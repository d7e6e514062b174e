//! A group whose ranks are threads of one process: what is tested without a launcher, and what is counted for many ranks.

use super::watchdog::{Watchdog, give_up};
use super::{Engine, Group, OPERATION, Place};
use crate::{Error, Kind, Result};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

struct Threads {
    /// To every rank.
    to: Vec<Sender<Vec<u8>>>,
    /// From every rank.
    from: Vec<Receiver<Vec<u8>>>,
}

impl Group {
    /// The ranks of a group of this process's threads.
    pub fn of_threads(size: usize, patience: Duration) -> Result<Vec<Group>> {
        let mut to: Vec<Vec<Sender<Vec<u8>>>> = (0..size).map(|_| Vec::new()).collect();
        let mut from: Vec<Vec<Receiver<Vec<u8>>>> = (0..size).map(|_| Vec::new()).collect();
        for senders in &mut to {
            for receivers in &mut from {
                let (sender, receiver) = channel();
                senders.push(sender);
                receivers.push(receiver);
            }
        }
        let join = |(rank, (to, from))| {
            let end = |e: &Error| give_up(e, |code| std::process::exit(i32::from(code)));
            let watchdog = Watchdog::start((rank, size), patience, end)?;
            Ok(Group::of(Place { rank, size, local: rank }, Threads { to, from }, watchdog))
        };
        to.into_iter().zip(from).enumerate().map(join).collect()
    }
}

fn gone() -> Error {
    Error::new(Kind::Group, OPERATION).got("a rank has ended")
}

impl Engine for Threads {
    fn send(&mut self, to: usize, bytes: &[u8]) -> Result<()> {
        self.to.get(to).and_then(|to| to.send(bytes.to_vec()).ok()).ok_or_else(gone)
    }

    fn receive(&mut self, from: usize, bytes: &mut [u8]) -> Result<()> {
        let got = self.from.get(from).and_then(|from| from.recv().ok()).ok_or_else(gone)?;
        if got.len() != bytes.len() {
            return Err(Error::argument(OPERATION, "bytes", bytes.len(), got.len()));
        }
        bytes.copy_from_slice(&got);
        Ok(())
    }

    fn exchange(&mut self, out: &[&[u8]], into: &mut [Vec<u8>]) -> Result<()> {
        for (to, bytes) in out.iter().enumerate().filter(|(_, b)| !b.is_empty()) {
            self.send(to, bytes)?;
        }
        let mut ins = into.iter_mut().enumerate().filter(|(_, b)| !b.is_empty());
        ins.try_for_each(|(from, bytes)| self.receive(from, bytes))
    }

    fn end(&mut self) -> Result<()> {
        Ok(())
    }
}
