//! The three forms a model is written in: our folder, a file for LAVIS, a file under Hugging Face's names.

use super::{OP, is_vit};
use crate::commands::output::say;
use crate::files::{self, RealDisk};
use crate::model::Config;
use crate::nn::Spec;
use crate::pretrained::start::initial;
use crate::weights::names::{self, POSITION_IDS, TWINS};
use crate::weights::start::Plan;
use crate::weights::{Dtype, Info, VIT_FILE, write};
use crate::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// A model to write, and where each of its numbers comes from.
pub struct Job {
    pub plan: Plan,
    /// Of the plan's parameters, in their order.
    pub specs: Vec<Spec>,
    pub config: Config,
    pub seed: u64,
    /// Nothing comes from files: the image encoder is written in half precision all the same.
    pub random: bool,
}

/// What a tensor of the output is made of.
enum Piece {
    Parameter(usize),
    /// 0, 1, 2, ...
    Positions,
    /// The biases of queries and values with zeros between.
    Joined(usize, usize),
}

type Pieces = BTreeMap<String, (Info, Piece)>;

impl Job {
    /// `model.safetensors`, `vit.safetensors` and `config.json`.
    pub fn folder(&self, folder: &Path) -> Result<()> {
        files::make_folders(&RealDisk, folder)?;
        let (vit, model): (Vec<usize>, Vec<usize>) =
            (0..self.specs.len()).partition(|i| is_vit(&self.specs[*i]));
        let mut metadata = BTreeMap::from([("format".to_string(), "qformer".to_string())]);
        if !vit.is_empty() {
            let pieces = self.parameters(&vit, |i| self.frozen_dtype(i));
            self.write(&folder.join(VIT_FILE), &pieces, &BTreeMap::new())?;
            if let Some(hash) = self.vit_hash(folder)? {
                metadata.insert(names::VIT_HASH.into(), hash);
            }
        }
        let pieces = self.parameters(&model, |_| Dtype::F32);
        self.write(&folder.join("model.safetensors"), &pieces, &metadata)?;
        let config = serde_json::to_vec_pretty(&self.config)
            .map_err(|e| Error::new(Kind::Write, OP).about("config.json").got(e))?;
        file(&folder.join("config.json"), &config)
    }

    /// That of the plan's files; for random numbers, of the file that was written.
    fn vit_hash(&self, folder: &Path) -> Result<Option<String>> {
        if !self.random {
            return self.plan.vit_hash();
        }
        let set = crate::weights::Set::open(&folder.join(VIT_FILE))?;
        let wants =
            self.plan.wants().iter().filter(|w| w.name.starts_with("visual_encoder.")).cloned().collect();
        Plan::new(vec![set], wants, false)?.vit_hash()
    }

    /// One safetensors file of the trained tensors as LAVIS names them, tied names included, and how LAVIS loads it.
    pub fn lavis(&self, out: &Path) -> Result<()> {
        let trained: Vec<usize> = (0..self.specs.len()).filter(|i| !is_vit(&self.specs[*i])).collect();
        let mut pieces = self.parameters(&trained, |i| self.plan.dtype(i).unwrap_or(Dtype::F32));
        for (twin, of) in TWINS {
            if let Some((info, Piece::Parameter(i))) = pieces.get(of) {
                let (info, i) = (Info { name: twin.into(), ..info.clone() }, *i);
                pieces.insert(twin.into(), (info, Piece::Parameter(i)));
            }
        }
        let info = Info { name: POSITION_IDS.into(), dtype: Dtype::I64, shape: vec![1, self.config.max_pos] };
        pieces.insert(POSITION_IDS.into(), (info, Piece::Positions));
        self.write(out, &pieces, &BTreeMap::from([("format".into(), "pt".into())]))?;
        // JSON's quotes and escapes are Python's, too.
        say!(
            "import lavis.models, safetensors.torch\n\
             model = lavis.models.load_model(\"blip2\", \"pretrain\")\n\
             model.Qformer.resize_token_embeddings({})\n\
             missing, unexpected = model.load_state_dict(safetensors.torch.load_file({}), strict=False)\n\
             assert not unexpected and all(n.startswith(\"visual_encoder.\") for n in missing)",
            self.config.vocab,
            serde_json::json!(out.display().to_string())
        )?;
        let Config { vocab, max_txt_len, .. } = self.config;
        let full = Config { vocab, max_txt_len, ..Config::full() };
        if self.config != full {
            eprintln!(
                "note: LAVIS builds this class in one size, and this model has another: it will not load there"
            );
        }
        Ok(())
    }

    /// One safetensors file under the names of Hugging Face's BLIP-2; what it has no name for is listed and left out.
    pub fn hugging_face(&self, out: &Path) -> Result<()> {
        let mut pieces = Pieces::new();
        let mut left_out = Vec::new();
        for (i, spec) in self.specs.iter().enumerate() {
            let dtype = self.plan.dtype(i).unwrap_or(Dtype::F32);
            if let Some((v_bias, name)) = names::hugging_face_qkv_bias(&spec.name) {
                let v = self.specs.iter().position(|s| s.name == v_bias);
                let v = v.ok_or_else(|| Error::argument(OP, &v_bias, "a parameter", "none"))?;
                let info = Info { name: name.clone(), dtype: Dtype::F32, shape: vec![3 * spec.shape[0]] };
                pieces.insert(name, (info, Piece::Joined(i, v)));
            } else if let Some(name) = names::to_hugging_face(&spec.name) {
                let info = Info { name: name.clone(), dtype, shape: spec.shape.clone() };
                pieces.insert(name, (info, Piece::Parameter(i)));
            } else if !spec.name.ends_with(".attn.v_bias") {
                left_out.push(spec.name.as_str());
            }
        }
        if !left_out.is_empty() {
            eprintln!(
                "left out, since Hugging Face's BLIP-2 has no such parameters: {}",
                left_out.join(", ")
            );
        }
        self.write(out, &pieces, &BTreeMap::from([("format".into(), "pt".into())]))
    }

    /// As the file has it; f16 for random numbers, biases and norms included.
    fn frozen_dtype(&self, i: usize) -> Dtype {
        let made = if self.random { Dtype::F16 } else { Dtype::F32 };
        self.plan.dtype(i).unwrap_or(made)
    }

    fn parameters(&self, which: &[usize], dtype: impl Fn(usize) -> Dtype) -> Pieces {
        let piece = |i: &usize| {
            let spec = &self.specs[*i];
            let info = Info { name: spec.name.clone(), dtype: dtype(*i), shape: spec.shape.clone() };
            (spec.name.clone(), (info, Piece::Parameter(*i)))
        };
        which.iter().map(piece).collect()
    }

    fn write(&self, path: &Path, pieces: &Pieces, metadata: &BTreeMap<String, String>) -> Result<()> {
        let infos: Vec<Info> = pieces.values().map(|(info, _)| info.clone()).collect();
        write::write(&RealDisk, path, &infos, metadata, |info, w| {
            let failed = |e: std::io::Error| files::write_error("write", path, &e);
            match pieces.get(&info.name).map(|(_, piece)| piece) {
                Some(Piece::Parameter(i)) if self.plan.dtype(*i) == Some(info.dtype) => {
                    w.write_all(&self.plan.bytes(*i)?).map_err(failed)
                }
                Some(Piece::Parameter(i)) => write::put_f32(w, info.dtype, &self.f32(*i)?).map_err(failed),
                Some(Piece::Positions) => (0..info.elements() as i64)
                    .try_for_each(|n| w.write_all(&n.to_le_bytes()))
                    .map_err(failed),
                Some(Piece::Joined(q, v)) => {
                    let (q, v) = (self.f32(*q)?, self.f32(*v)?);
                    write::put_f32(w, Dtype::F32, &[&q[..], &vec![0.0; q.len()], &v].concat()).map_err(failed)
                }
                None => Err(Error::argument(OP, &info.name, "a tensor of the model", "another")),
            }
        })?;
        eprintln!("wrote {}: {} tensors", path.display(), infos.len());
        Ok(())
    }

    fn f32(&self, i: usize) -> Result<Vec<f32>> {
        self.plan.f32(i, |range| initial(&self.specs[i], i, self.seed, range))
    }
}

/// A small file, whole or not at all.
pub fn file(path: &Path, bytes: &[u8]) -> Result<()> {
    files::write_atomic(&RealDisk, path, bytes.len() as u64, |w| w.write_all(bytes))
}
