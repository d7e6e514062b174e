//! `--group` and `--group-timeout`: which processes compute together, and how long one waits for another.

use crate::Result;
use crate::group::{Ask, Group};
use std::time::Duration;

#[derive(clap::Args)]
pub struct GroupArgs {
    /// What processes compute together by: auto (MPI where this build has it, feature mpi, and mpirun has started several), mpi, or none
    #[arg(long, value_enum, default_value_t = Engine::Auto, help_heading = "Several processes")]
    group: Engine,
    /// Seconds to wait for another process before this one ends with exit code 8
    #[arg(long, default_value_t = 600.0, value_name = "SECONDS", value_parser = seconds, help_heading = "Several processes")]
    group_timeout: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Engine {
    Auto,
    None,
    Mpi,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if (0.1..=1e9).contains(&s) => Ok(s),
        _ => Err("expected seconds, at least 0.1".into()),
    }
}

impl GroupArgs {
    pub fn open(&self) -> Result<Group> {
        let ask = match self.group {
            Engine::Auto => Ask::Auto,
            Engine::None => Ask::None,
            Engine::Mpi => Ask::Mpi,
        };
        Group::open(ask, Duration::from_secs_f64(self.group_timeout))
    }
}
