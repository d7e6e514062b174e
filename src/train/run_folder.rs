//! What of a run lies in its folder besides checkpoints and logs: its settings, its vocabulary and, at the end, its model.

use super::checkpoint::{self, Folder};
use super::config::{self, Config};
use super::run;
use crate::files::{self, RealDisk};
use crate::pretrained;
use crate::text::Tokenizer;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// The run's own settings and vocabulary in its folder.
pub const CONFIG: &str = "config.yaml";
/// The folder of the run's vocabulary.
pub const VOCABULARY: &str = "vocabulary";
/// Where in a run's folder its trained model is.
pub const MODEL: &str = "model";

/// The run's checkpoints for this process alone, if they are those that were read.
pub fn own(out: &Path, before: &[(u64, PathBuf)]) -> Result<Folder<'static>> {
    let path = out.join(run::CHECKPOINTS);
    let folder = Folder::own(&RealDisk, &path)?;
    if checkpoint::steps(&RealDisk, &path)? != before {
        let want = "the checkpoints that were read";
        return Err(Error::argument("train", path.display().to_string(), want, "others")
            .fix("another training wrote there meanwhile: run the same command again"));
    }
    files::remove_partial_folders(out)?;
    Ok(folder)
}

/// Puts the settings and the vocabulary of a run that begins into its folder.
pub fn keep(out: &Path, config: &Config, tokenizer: &Tokenizer, resume: bool) -> Result<()> {
    let vocabulary = out.join(VOCABULARY);
    if !resume || !out.join(CONFIG).is_file() {
        write_settings(out, config)?;
    }
    if !resume || !vocabulary.is_dir() {
        let own: Vec<&str> =
            pretrained::parts::PARTS.into_iter().chain(tokenizer.dictionary_name()).collect();
        files::write_folder(&vocabulary, &own, |staged| tokenizer.save(staged))?;
    }
    Ok(())
}

pub fn write_settings(out: &Path, config: &Config) -> Result<()> {
    let text = config::resolved(&absolute(config)?);
    files::write_atomic(&RealDisk, &out.join(CONFIG), text.len() as u64, |w| w.write_all(text.as_bytes()))
}

/// These settings with absolute paths, which mean the same from wherever a run is resumed.
fn absolute(config: &Config) -> Result<Config> {
    let mut config = config.clone();
    let data = config.data.iter_mut().chain(&mut config.validation);
    let data = data.flat_map(|d| [&mut d.images, &mut d.captions]);
    let own = [&mut config.out, &mut config.start, &mut config.llm, &mut config.vocab, &mut config.cache];
    for path in data.chain(own).flatten() {
        *path = std::path::absolute(&*path).map_err(|e| Error::io("train", &*path, &e))?;
    }
    Ok(config)
}
