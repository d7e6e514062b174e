//! One rank of a group whose other ranks are not there: they answer with what they are sent. What travels is counted, as by a rank of a
//! group of any size; the numbers mean nothing.

use super::watchdog::Watchdog;
use super::{Engine, Group, Place};
use crate::Result;
use std::time::Duration;

struct Echo;

impl Group {
    /// A rank of a group of so many, to count by.
    pub fn counted(rank: usize, size: usize) -> Result<Group> {
        let watchdog = Watchdog::start((rank, size), Duration::from_secs(3600), |_| ())?;
        Ok(Group::of(Place { rank, size, local: 0 }, Echo, watchdog))
    }
}

impl Engine for Echo {
    fn send(&mut self, _: usize, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn receive(&mut self, _: usize, _: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn exchange(&mut self, out: &[&[u8]], into: &mut [Vec<u8>]) -> Result<()> {
        let same = out.iter().zip(into).filter(|(out, into)| out.len() == into.len());
        same.for_each(|(out, into)| into.copy_from_slice(out));
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        Ok(())
    }
}
