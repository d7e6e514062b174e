//! `--shard i/n`: one machine's share of the pictures, and what is noted of it for `qformer merge`.

use super::inputs::{Found, Picture};
use crate::files::RealDisk;
use crate::results::shard::{Maker, Record, Shard};
use crate::terminal::note;
use crate::{Error, Result};
use std::path::Path;

/// What Slurm sets in the tasks of an array.
const TASK: &str = "SLURM_ARRAY_TASK_ID";
const COUNT: &str = "SLURM_ARRAY_TASK_COUNT";
const MIN: &str = "SLURM_ARRAY_TASK_MIN";
const STEP: &str = "SLURM_ARRAY_TASK_STEP";

#[derive(clap::Args)]
pub struct ShardArgs {
    /// Only share I of N of the pictures, I from 1, by a hash of their names: pictures that are added later move no other. Each share
    /// needs an --out of its own; `qformer merge` makes one of them [default: in a job array of Slurm, that of the task, else all]
    #[arg(long, value_name = "I/N", help_heading = "Running")]
    shard: Option<Shard>,
}

/// A share that was taken, and what is to be noted of it.
pub struct Taken {
    shard: Shard,
    record: Record,
}

impl ShardArgs {
    /// Leaves the pictures of the share, if there is one.
    pub fn take(&self, found: &mut Found, quiet: bool) -> Result<Option<Taken>> {
        let (shard, whence) = match self.shard {
            Some(shard) => (shard, ""),
            None => match of_slurm(|name| std::env::var(name).ok())? {
                Some(shard) => (shard, ", as Slurm's array says; --shard 1/1 takes all"),
                None => return Ok(None),
            },
        };
        let all = found.pictures.len();
        let record = Record::of(shard, found.pictures.iter().map(|p| p.name.as_str()));
        found.pictures.retain(|p: &Picture| shard.has(&p.name));
        if !quiet {
            note!("shard {shard}: {} of {all} pictures{whence}", found.pictures.len());
        }
        Ok(Some(Taken { shard, record }))
    }
}

impl Taken {
    /// The share.
    pub fn shard(&self) -> Shard {
        self.shard
    }

    /// Notes beside a file of captions, or in an index, what share it holds. `anew`: what is there is replaced, by the flag `again`.
    pub fn note(self, out: &Path, maker: Option<Maker>, anew: bool, again: &str) -> Result<()> {
        self.record.write(&RealDisk, out, maker, (anew, again))
    }
}

/// The share of a task of an array. An array of one task is none: so a task that is run again by itself has to say its share.
fn of_slurm(var: impl Fn(&str) -> Option<String>) -> Result<Option<Shard>> {
    let Some(task) = var(TASK) else { return Ok(None) };
    let wrong = |name: &str, want: &str, got: String| {
        Error::argument("--shard", name, want, got).fix("say which share it is with --shard I/N")
    };
    let number = |name: &str, text: Option<String>| {
        let text =
            text.ok_or_else(|| wrong(name, &format!("a number, as {TASK} is set"), "nothing".into()))?;
        text.trim().parse::<u32>().map_err(|_| wrong(name, "a number", format!("{text:?}")))
    };
    let (task, count) = (number(TASK, Some(task))?, number(COUNT, var(COUNT))?);
    if count <= 1 {
        return Ok(None);
    }
    let min = number(MIN, var(MIN))?;
    let step = var(STEP).map_or(Ok(1), |s| number(STEP, Some(s)))?.max(1);
    let place = task.checked_sub(min).filter(|d| d % step == 0).map(|d| d / step).filter(|d| *d < count);
    match place {
        Some(place) => {
            Shard::new(place + 1, count).map(Some).map_err(|e| wrong(COUNT, "a number of shares", e))
        }
        None => {
            let want = format!("{count} numbers from {min} in steps of {step}");
            Err(wrong(TASK, &want, task.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slurm(vars: &[(&str, &str)]) -> Result<Option<String>> {
        let var = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string());
        Ok(of_slurm(var)?.map(|s| s.to_string()))
    }

    #[test]
    fn an_array_of_slurm_is_a_division() {
        let array = |id, count, min, step| slurm(&[(TASK, id), (COUNT, count), (MIN, min), (STEP, step)]);
        assert_eq!(array("0", "16", "0", "1").unwrap().as_deref(), Some("1/16"));
        assert_eq!(array("15", "16", "0", "1").unwrap().as_deref(), Some("16/16"));
        assert_eq!(array("1", "4", "1", "1").unwrap().as_deref(), Some("1/4"));
        assert_eq!(array("9", "4", "3", "2").unwrap().as_deref(), Some("4/4"));
        assert_eq!(slurm(&[]).unwrap(), None);
        // A single task, as when one is run again.
        assert_eq!(array("5", "1", "5", "1").unwrap(), None);
        // An array of chosen numbers is no division.
        for (id, count, min, step, name) in [
            ("7", "3", "1", "1", TASK),
            ("4", "4", "3", "2", TASK),
            ("x", "4", "0", "1", TASK),
            ("0", "y", "0", "1", COUNT),
        ] {
            let e = array(id, count, min, step).unwrap_err().to_string();
            assert!(e.contains(name) && e.contains("--shard I/N"), "{e}");
        }
        let e = slurm(&[(TASK, "3")]).unwrap_err().to_string();
        assert!(e.contains(COUNT), "{e}");
        let e = slurm(&[(TASK, "3"), (COUNT, "4")]).unwrap_err().to_string();
        assert!(e.contains(MIN), "{e}");
    }
}
