//! Trainings that are shown: their logs, read on each time somebody looks.

use crate::report::{Log, Look, Story, curves};
use crate::{Error, Kind, Result};
use std::path::PathBuf;
use std::sync::Mutex;

/// Points kept of a curve: more than a chart draws, and memory does not grow with a training.
const POINTS: usize = 4096;

pub struct Runs {
    all: Vec<(String, Mutex<Log>)>,
}

impl Runs {
    pub fn open(folders: &[PathBuf]) -> Result<Runs> {
        let open = |folder: &PathBuf| {
            let name = folder.display().to_string();
            Ok((name, Mutex::new(Log::open(folder, POINTS)?)))
        };
        Ok(Runs { all: folders.iter().map(open).collect::<Result<_>>()? })
    }

    pub fn names(&self) -> Vec<&str> {
        self.all.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// The charts of some of the runs, as they are now.
    pub fn charts(&self, which: &[usize], look: Look) -> Result<String> {
        let mut stories: Vec<Story> = Vec::with_capacity(which.len());
        for i in which {
            let Some((_, log)) = self.all.get(*i) else {
                let want = format!("places below {}", self.all.len());
                return Err(Error::argument("training", "runs", want, i));
            };
            let failed = |_| Error::new(Kind::File, "training").got("a run that could not be read before");
            let mut log = log.lock().map_err(failed)?;
            log.read()?;
            stories.push(log.story.clone());
        }
        Ok(curves(&stories.iter().collect::<Vec<_>>(), look))
    }
}
