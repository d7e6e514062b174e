//! A model as LAVIS saves and loads one: the trained tensors under its names, tied names included, in a `.pth` that
//! `model.load_checkpoint` reads - or, by the name's ending, in a safetensors file.

use super::write::{Job, Piece, Pieces};
use super::{OP, is_vit};
use crate::commands::output::say;
use crate::files::RealDisk;
use crate::model::Config;
use crate::terminal::note;
use crate::weights::names::{POSITION_IDS, TWINS};
use crate::weights::{Dtype, Info, write_pytorch};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// Which of the two a name asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Pytorch,
    Safetensors,
}

pub fn form(out: &Path) -> Result<Form> {
    match out.extension().and_then(|e| e.to_str()) {
        Some("pth" | "pt" | "bin" | "ckpt") => Ok(Form::Pytorch),
        Some("safetensors") => Ok(Form::Safetensors),
        _ => {
            let expected = "a name ending in .pth (as LAVIS loads it) or .safetensors";
            Err(Error::argument(OP, "--out", expected, out.display()))
        }
    }
}

impl Job {
    /// Writes the file, and prints how LAVIS loads it.
    pub fn lavis(&self, out: &Path) -> Result<()> {
        let pieces = self.lavis_pieces();
        let form = form(out)?;
        match form {
            Form::Safetensors => {
                self.write(out, &pieces, &BTreeMap::from([("format".into(), "pt".into())]), None)?;
            }
            Form::Pytorch => {
                let infos: Vec<Info> = pieces.values().map(|(info, _)| info.clone()).collect();
                write_pytorch(&RealDisk, out, &infos, |info| {
                    let mut bytes = Vec::with_capacity(info.bytes());
                    self.bytes(out, info, &pieces, &mut bytes)?;
                    Ok(bytes)
                })?;
            }
        }
        note!("wrote {}: {} tensors", out.display(), pieces.len());
        let has = |projection: &str| self.specs.iter().any(|s| s.name == projection);
        if has("opt_proj.weight") {
            return say!("LAVIS loads it with load_checkpoint into lavis.models' blip2_opt");
        }
        if has("llm_proj.weight") {
            note!("note: LAVIS has no class for this language model; the names are its Vicuna's");
            return Ok(());
        }
        // JSON's quotes and escapes are Python's, too.
        let path = serde_json::json!(out.display().to_string());
        let (import, load) = match form {
            Form::Pytorch => ("", format!("load_checkpoint({path})")),
            Form::Safetensors => (
                ", safetensors.torch",
                format!("load_state_dict(safetensors.torch.load_file({path}), strict=False)"),
            ),
        };
        say!(
            "import lavis.models{import}\n\
             model = lavis.models.load_model(\"blip2\", \"pretrain\")\n\
             model.Qformer.resize_token_embeddings({})\n\
             missing, unexpected = model.{load}\n\
             assert not unexpected and all(n.startswith(\"visual_encoder.\") for n in missing)",
            self.config.vocab,
        )?;
        let Config { vocab, max_txt_len, .. } = self.config;
        if self.config != (Config { vocab, max_txt_len, ..Config::full() }) {
            note!(
                "note: LAVIS builds this class in one size, and this model has another: it will not load there"
            );
        }
        Ok(())
    }

    fn lavis_pieces(&self) -> Pieces {
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
        pieces
    }
}
