//! A model written as our folder, and what all forms have in common; those of others: `lavis.rs`, `hf.rs`.

use super::{Args, OP, is_vit};
use crate::files::{self, RealDisk};
use crate::model::Config;
use crate::nn::Spec;
use crate::pretrained::llm::{LlmFolder, LlmPart};
use crate::pretrained::{config_json, load::initial, parts};
use crate::terminal::note;
use crate::weights::names;
use crate::weights::start::Plan;
use crate::weights::{Dtype, Info, VIT_FILE, write};
use crate::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// A model to write, and where each of its numbers comes from.
pub struct Job {
    pub plan: Plan,
    /// Of the plan's parameters, in their order.
    pub specs: Vec<Spec>,
    pub config: Config,
    pub seed: u64,
    /// Of a second stage: its language model.
    pub llm: Option<LlmPart>,
    /// Nothing comes from files: the image encoder is written in half precision all the same.
    pub random: bool,
}

/// What a tensor of the output is made of.
pub enum Piece {
    Parameter(usize),
    /// 0, 1, 2, ...
    Positions,
    /// The biases of queries and values with zeros between.
    Joined(usize, usize),
    /// A tensor of a language model's files; of a row of it, a copy behind the last one.
    Language(Arc<LlmFolder>, String, Option<usize>),
}

pub type Pieces = BTreeMap<String, (Info, Piece)>;

impl Job {
    /// A model's folder, whole or not at all; `tokenizer` writes its own files into the folder it is given.
    pub fn folder(&self, folder: &Path, tokenizer: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let (vit, model): (Vec<usize>, Vec<usize>) =
            (0..self.specs.len()).partition(|i| is_vit(&self.specs[*i]));
        files::write_folder(folder, &parts::PARTS, |staged| {
            tokenizer(staged)?;
            let vocabulary = parts::vocabulary_in(staged, &self.config)?;
            let mut beside = parts::Beside { vocabulary, ..Default::default() };
            let json = config_json(&self.config, self.llm.as_ref())?;
            let config = serde_json::to_vec_pretty(&json)
                .map_err(|e| Error::new(Kind::Write, OP).about("config.json").got(e))?;
            file(&staged.join("config.json"), &config)?;
            if !vit.is_empty() {
                let pieces = self.parameters(&vit, |i| self.frozen_dtype(i));
                let key = Some(names::VIT_HASH);
                beside.vit = self.write(&staged.join(VIT_FILE), &pieces, &BTreeMap::new(), key)?;
            }
            let pieces = self.parameters(&model, |_| Dtype::F32);
            let metadata = beside.metadata(&json)?;
            self.write(&staged.join("model.safetensors"), &pieces, &metadata, Some(parts::TENSORS)).map(drop)
        })?;
        for (name, tensors) in [(VIT_FILE, vit.len()), ("model.safetensors", model.len())] {
            if tensors > 0 {
                note!("wrote {}: {tensors} tensors", folder.join(name).display());
            }
        }
        Ok(())
    }

    /// As the file has it; f16 for random numbers, biases and norms included.
    fn frozen_dtype(&self, i: usize) -> Dtype {
        let made = if self.random { Dtype::F16 } else { Dtype::F32 };
        self.plan.dtype(i).unwrap_or(made)
    }

    pub fn parameters(&self, which: &[usize], dtype: impl Fn(usize) -> Dtype) -> Pieces {
        let piece = |i: &usize| {
            let spec = &self.specs[*i];
            let info = Info { name: spec.name.clone(), dtype: dtype(*i), shape: spec.shape.clone() };
            (spec.name.clone(), (info, Piece::Parameter(*i)))
        };
        which.iter().map(piece).collect()
    }

    /// Writes a file; with a key of its metadata for it, the identity of its tensors is written and returned.
    pub fn write(
        &self,
        path: &Path,
        pieces: &Pieces,
        metadata: &BTreeMap<String, String>,
        identity: Option<&str>,
    ) -> Result<Option<String>> {
        let infos: Vec<Info> = pieces.values().map(|(info, _)| info.clone()).collect();
        let bytes = |info: &Info, w: &mut dyn Write| self.bytes(path, info, pieces, w);
        match identity {
            Some(key) => write::write_identified(&RealDisk, path, &infos, metadata, key, bytes).map(Some),
            None => write::write(&RealDisk, path, &infos, metadata, bytes).map(|()| None),
        }
    }

    pub fn bytes(&self, path: &Path, info: &Info, pieces: &Pieces, w: &mut dyn Write) -> Result<()> {
        let failed = |e: std::io::Error| files::write_error("write", path, &e);
        match pieces.get(&info.name).map(|(_, piece)| piece) {
            Some(Piece::Parameter(i)) if self.plan.dtype(*i) == Some(info.dtype) => {
                w.write_all(&self.plan.bytes(*i)?).map_err(failed)
            }
            Some(Piece::Parameter(i)) => write::put_f32(w, info.dtype, &self.f32(*i)?).map_err(failed),
            Some(Piece::Positions) => {
                (0..info.elements() as i64).try_for_each(|n| w.write_all(&n.to_le_bytes())).map_err(failed)
            }
            Some(Piece::Joined(q, v)) => {
                let (q, v) = (self.f32(*q)?, self.f32(*v)?);
                write::put_f32(w, Dtype::F32, &[&q[..], &vec![0.0; q.len()], &v].concat()).map_err(failed)
            }
            Some(Piece::Language(llm, name, again)) => {
                let all = llm.bytes(name)?;
                w.write_all(&all).map_err(failed)?;
                let Some(row) = again else { return Ok(()) };
                let row_bytes = all.len() / (info.shape[0] - 1).max(1);
                w.write_all(&all[row * row_bytes..(row + 1) * row_bytes]).map_err(failed)
            }
            None => Err(Error::argument(OP, &info.name, "a tensor of the model", "another")),
        }
    }

    fn f32(&self, i: usize) -> Result<Vec<f32>> {
        self.plan.f32(i, |range| initial(&self.specs[i], i, self.seed, range))
    }
}

/// Refuses to replace what is there, unless told to: a model's folder, or a file.
pub fn check_out(args: &Args) -> Result<()> {
    if args.to == "qformer" || args.out.is_dir() {
        return files::refuse_replacing(OP, &args.out, &parts::PARTS, args.force);
    }
    if args.out.exists() && !args.force {
        return Err(Error::argument(OP, "--out", "a new file", args.out.display())
            .fix("choose another name, or replace it with --force"));
    }
    Ok(())
}

/// A small file, whole or not at all.
pub fn file(path: &Path, bytes: &[u8]) -> Result<()> {
    files::write_atomic(&RealDisk, path, bytes.len() as u64, |w| w.write_all(bytes))
}
