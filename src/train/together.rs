//! A run of several processes: each reads its share of the micro-batches of a step, in the order in which one process would have read
//! them, and all agree on what they must have in common. Only the process that leads writes and speaks.

use super::config::Config;
use super::trainer::Contrast;
use super::watch::Watch;
use crate::data::{Bad, Order};
use crate::group::Group;
use crate::{Error, Kind, Result};
use serde_json::Value;

const OP: &str = "train in a group";

/// The processes of a run, seen from one of them.
#[derive(Clone, Default)]
pub struct Together {
    pub group: Group,
}

/// A picture that could not be used, by its entry in the data.
pub struct Unusable {
    pub index: usize,
    pub reason: String,
}

impl Together {
    pub fn alone(&self) -> bool {
        self.group.size() == 1
    }

    /// Refuses a run that cannot be shared out so that the numbers stay those of one process.
    pub fn check(&self, config: &Config) -> Result<()> {
        let size = self.group.size();
        let wrong = |name: &str, want: String, got: String, fix: String| {
            Err(Error::argument("train", name, want, got).fix(fix))
        };
        if self.alone() {
            return Ok(());
        }
        if config.contrast != Contrast::World {
            let fix = "give --set contrast=world, which is what LAVIS computes on several processes".into();
            let got = config.contrast.name().into();
            return wrong("contrast", format!("world, with {size} processes"), got, fix);
        }
        if !config.accumulate.is_multiple_of(size) {
            let want = format!("a multiple of {size}, the number of processes");
            let fix = format!(
                "give --set accumulate={size}: a micro-batch for each, or start as many processes as fit"
            );
            return wrong("accumulate", want, config.accumulate.to_string(), fix);
        }
        if config.cache().is_some() {
            let want = format!("none, with {size} processes");
            return wrong("cache", want, "a folder".into(), "leave it out, or train in one process".into());
        }
        Ok(())
    }

    /// How many of a step's micro-batches this process computes.
    pub fn own(&self, accumulate: usize) -> usize {
        accumulate / self.group.size()
    }

    /// Its share of an order.
    pub fn share(&self, order: Order, accumulate: usize) -> Order {
        let own = self.own(accumulate);
        if self.alone() { order } else { order.shared(own, accumulate, own * self.group.rank()) }
    }

    /// Whether any process was asked to stop.
    pub fn stop(&self, watch: &dyn Watch) -> Result<bool> {
        let all = self.group.all_gather("agree on stopping", &[u8::from(watch.stop())])?;
        Ok(all.concat().contains(&1))
    }

    /// What all processes could not use.
    pub fn bad(&self, own: Vec<Bad>) -> Result<Vec<Unusable>> {
        let list: Vec<(usize, String)> = own.into_iter().map(|b| (b.index, b.reason.to_string())).collect();
        let lists = if self.alone() { vec![list] } else { self.lists(&list)? };
        Ok(lists.concat().into_iter().map(|(index, reason)| Unusable { index, reason }).collect())
    }

    fn lists(&self, own: &[(usize, String)]) -> Result<Vec<Vec<(usize, String)>>> {
        let broken = |e| Error::new(Kind::Group, OP).about("unusable pictures").got(e);
        let bytes = if own.is_empty() { Vec::new() } else { serde_json::to_vec(own).map_err(broken)? };
        let all = self.group.all_gather("agree on unusable pictures", &bytes)?;
        let list = |b: &Vec<u8>| {
            if b.is_empty() { Ok(Vec::new()) } else { serde_json::from_slice(b).map_err(broken) }
        };
        all.iter().map(list).collect()
    }

    /// Refuses processes that have other settings, data or numbers than the one that leads. Alone, `own` is not asked for: it goes
    /// through all weights.
    pub fn compare(&self, own: impl FnOnce() -> Result<Value>) -> Result<()> {
        if self.alone() {
            return Ok(());
        }
        let own = own()?;
        let broken = |e| Error::new(Kind::Group, OP).about("settings").got(e);
        let all = self.group.all_gather("compare settings", &serde_json::to_vec(&own).map_err(broken)?)?;
        let all: Vec<Value> =
            all.iter().map(|b| serde_json::from_slice(b).map_err(broken)).collect::<Result<_>>()?;
        let first = all.first().unwrap_or(&own);
        for (rank, other) in all.iter().enumerate() {
            if let Some((name, want, got)) = difference("", first, other) {
                return Err(Error::new(Kind::Group, OP)
                    .about(format!("rank {rank} of {}: {name}", all.len()))
                    .expected(format!("{want}, as rank 0 has it"))
                    .got(got)
                    .fix("start all processes with the same arguments, data and files"));
            }
        }
        Ok(())
    }
}

/// The first place where two values are not the same, and what stands there.
fn difference(at: &str, a: &Value, b: &Value) -> Option<(String, String, String)> {
    if let (Value::Object(x), Value::Object(y)) = (a, b) {
        let keys = x.keys().chain(y.keys().filter(|k| !x.contains_key(*k)));
        let inside = |key: &String| {
            let name = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
            difference(&name, x.get(key).unwrap_or(&Value::Null), y.get(key).unwrap_or(&Value::Null))
        };
        return keys.map(inside).find(Option::is_some).flatten();
    }
    (a != b).then(|| (at.to_owned(), a.to_string(), b.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    #[test]
    fn the_first_difference_is_named() {
        let a = json!({"data": {"0": {"blake3": "x"}}, "init_lr": 1e-4});
        let found = |b: Value| difference("", &a, &b).map(|d| d.0);
        assert_eq!(found(a.clone()), None);
        assert_eq!(
            found(json!({"data": {"0": {"blake3": "y"}}, "init_lr": 1e-4})).as_deref(),
            Some("data.0.blake3")
        );
        assert_eq!(found(json!({"data": {"0": {"blake3": "x"}}})).as_deref(), Some("init_lr"));
        assert_eq!(found(json!({"data": 3, "init_lr": 1e-4})).as_deref(), Some("data"));
        let more = json!({"data": {"0": {"blake3": "x"}}, "init_lr": 1e-4, "seed": 1});
        assert_eq!(found(more).as_deref(), Some("seed"));
    }

    #[test]
    fn everyone_hears_of_the_rank_that_differs() {
        let groups = Group::of_threads(3, Duration::from_secs(60)).unwrap();
        let errors: Vec<Error> = std::thread::scope(|scope| {
            let threads: Vec<_> = groups
                .into_iter()
                .map(|group| {
                    scope.spawn(move || {
                        let rate = if group.rank() == 2 { 3e-4 } else { 1e-4 };
                        let together = Together { group };
                        assert!(together.compare(|| Ok(json!({"seed": 7}))).is_ok());
                        together.compare(|| Ok(json!({"seed": 7, "init_lr": rate}))).unwrap_err()
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(
            errors.iter().all(|e| e.exit_code() == 8 && e.to_string().contains("rank 2 of 3: init_lr")),
            "{errors:?}"
        );
    }
}
