//! A model as users hold it: the architecture, its numbers and its tokenizer, in one folder.
//!
//! | file | what is in it |
//! |---|---|
//! | `config.json` | the sizes, [`Config`] |
//! | `model.safetensors` | the Q-Former and its heads under their LAVIS names; metadata: the blake3 of the image encoder it belongs to |
//! | `vit.safetensors` | the image encoder; instead of it, the metadata may name a file elsewhere (`qformer.vit`) |
//! | `vocab.txt`, `tokenizer_config.json` | the tokenizer |
//!
//! An image encoder other than the one a model was trained with is refused, unless the caller says so.

pub mod start;

use crate::files::{self, RealDisk};
use crate::model::{Config, GenerateOptions, Images, Model};
use crate::nn::{Params, Pass, Precision, Spec, Value};
use crate::tensor::{DType, Device, Tensor};
use crate::text::Tokenizer;

use crate::vision::{self, Normalise, Picture};
use crate::weights::names::VIT_HASH;
use crate::weights::start::Plan;
use crate::weights::{Dtype, Info, Set, VIT_FILE, Weights, write};
use crate::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const OP: &str = "model";
const MODEL_FILE: &str = "model.safetensors";
const CONFIG_FILE: &str = "config.json";
/// Metadata of `model.safetensors`: where the image encoder is, if it is not beside it.
const VIT_PATH: &str = "qformer.vit";

pub struct Pretrained {
    pub model: Model,
    pub params: Params,
    pub tokenizer: Tokenizer,
    /// blake3 of `model.safetensors`: two models with the same one give the same features.
    pub identity: String,
}

/// How to open a model.
#[derive(Clone, Debug, Default)]
pub struct Opening {
    /// The image encoder's file, in place of the model's own.
    pub vit: Option<PathBuf>,
    /// Take an image encoder that the model was not trained with.
    pub any_vit: bool,
    /// The image encoder is to be trained, too.
    pub train_vit: bool,
}

/// A caption of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Caption {
    pub text: String,
    pub ids: Vec<u32>,
    /// What captions of a picture are ranked by.
    pub score: f64,
    pub log_prob: f64,
}

impl Pretrained {
    pub fn open(folder: &Path) -> Result<Pretrained> {
        Pretrained::open_with(folder, &Opening::default())
    }

    pub fn open_with(folder: &Path, opening: &Opening) -> Result<Pretrained> {
        let config = read_config(folder)?;
        let tokenizer = Tokenizer::open(folder)?;
        check_vocabulary(&config, &tokenizer)?;
        let path = folder.join(MODEL_FILE);
        let (model, specs) = Model::new(config, opening.train_vit)?;
        let weights = Weights::open(&path)?;
        let trained_with = weights.metadata().get(VIT_HASH).cloned();
        let mut sets = vec![];
        if let Some(vit) = vit_path(folder, &weights, opening) {
            sets.push(Set::open(&vit)?);
        }
        sets.push(Set::of(vec![weights])?);
        let plan = Plan::new(sets, start::wants(&specs), false)?;
        if let (Some(wanted), false) = (trained_with, opening.any_vit) {
            let found = plan.vit_hash()?.unwrap_or_default();
            if found != wanted {
                let want = format!("the image encoder it was trained with (blake3 {wanted})");
                return Err(Error::file(OP, &path, want, format!("another ({found})"))
                    .fix("give the right file with --vit, or say --any-vit"));
            }
        }
        let params = start::params(specs, &plan, DType::F32, 0)?;
        let identity = files::hash_file(&RealDisk, &path).map_err(|e| Error::io(OP, &path, &e))?;
        Ok(Pretrained { model, params, tokenizer, identity: identity.to_hex().to_string() })
    }

    /// The same model on a device.
    pub fn to(self, device: &Device, precision: Precision) -> Result<Pretrained> {
        Ok(Pretrained { params: self.params.to(device, precision)?, ..self })
    }

    /// Writes a folder, file by file, each whole or not at all. `vit` names the file of a frozen image encoder that stays
    /// where it is; without it, the image encoder is written, too.
    pub fn save(
        folder: &Path,
        model: &Model,
        params: &Params,
        tokenizer: &Tokenizer,
        vit: Option<&Path>,
    ) -> Result<()> {
        check_vocabulary(&model.config, tokenizer)?;
        files::make_folders(&RealDisk, folder)?;
        let of_vit = |name: &str| name.starts_with("visual_encoder.");
        let mut metadata = BTreeMap::from([("format".to_string(), "qformer".to_string())]);
        let place = match vit {
            Some(path) => {
                let whole = path.canonicalize().map_err(|e| Error::io(OP, path, &e))?;
                metadata.insert(VIT_PATH.into(), whole.display().to_string());
                whole
            }
            None => {
                let path = folder.join(VIT_FILE);
                write_params(&path, params, of_vit, &BTreeMap::new())?;
                path
            }
        };
        if let Some(hash) = vit_hash(&place, params.specs())? {
            metadata.insert(VIT_HASH.into(), hash);
        }
        write_params(&folder.join(MODEL_FILE), params, |name| !of_vit(name), &metadata)?;
        tokenizer.save(folder)?;
        let config = serde_json::to_vec_pretty(&model.config)
            .map_err(|e| Error::new(Kind::Write, OP).about(CONFIG_FILE).got(e))?;
        let path = folder.join(CONFIG_FILE);
        files::write_atomic(&RealDisk, &path, config.len() as u64, |w| w.write_all(&config))
    }

    /// Pictures as evaluation sees them: resized to S x S, normalised.     -> [B,3,S,S]
    pub fn pixels(&self, pictures: &[Picture]) -> Result<Tensor> {
        let (s, normalise) = (self.model.config.image_size, Normalise::default());
        let mut planes = Vec::with_capacity(pictures.len() * 3 * s * s);
        for picture in pictures {
            planes.extend(normalise.planes(&vision::resize(picture, s, s)?)?);
        }
        Tensor::new(planes, &[pictures.len(), 3, s, s])
    }

    /// Features of pictures.
    pub fn images(&self, pictures: &[Picture]) -> Result<Images> {
        self.model.image_features(&Pass::inference(&self.params), &self.pixels(pictures)?)
    }

    /// Captions of every image, best first. `identities` tell the images apart where numbers are drawn.
    pub fn caption(
        &self,
        images: &Images,
        options: &GenerateOptions,
        identities: &[u32],
    ) -> Result<Vec<Vec<Caption>>> {
        let found = self.model.generate(&self.params, images, options, identities)?;
        let caption = |h: crate::model::Hypothesis| Caption {
            text: self.tokenizer.decode(&h.ids),
            ids: h.ids,
            score: h.score,
            log_prob: h.log_prob,
        };
        Ok(found.into_iter().map(|all| all.into_iter().map(caption).collect()).collect())
    }
}

/// The sizes of the model in a folder.
pub fn read_config(folder: &Path) -> Result<Config> {
    let path = folder.join(CONFIG_FILE);
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(OP, &path, &e))?;
    Config::from_json(&text).map_err(|e| e.fix(format!("in {}", path.display())))
}

/// The file of the image encoder of the model in a folder; None if `model.safetensors` itself holds it.
pub fn vit_file(folder: &Path) -> Result<Option<PathBuf>> {
    Ok(vit_path(folder, &Weights::open(&folder.join(MODEL_FILE))?, &Opening::default()))
}

fn check_vocabulary(config: &Config, tokenizer: &Tokenizer) -> Result<()> {
    if tokenizer.len() != config.vocab {
        let want = format!("a vocabulary of {}, as config.json says", config.vocab);
        return Err(Error::argument(OP, "vocab.txt", want, format!("{} with [DEC]", tokenizer.len())));
    }
    Ok(())
}

/// Where the image encoder is: as told, beside the model, or where its metadata says; None if in its own file.
fn vit_path(folder: &Path, weights: &Weights, opening: &Opening) -> Option<PathBuf> {
    let beside = || Some(folder.join(VIT_FILE)).filter(|p| p.exists());
    let named = || weights.metadata().get(VIT_PATH).map(|p| folder.join(p));
    opening.vit.clone().or_else(beside).or_else(named)
}

/// The hash of the image encoder in a file.
fn vit_hash(path: &Path, specs: &[Spec]) -> Result<Option<String>> {
    let wants = start::wants(specs).into_iter().filter(|w| w.name.starts_with("visual_encoder.")).collect();
    Plan::new(vec![Set::open(path)?], wants, false)?.vit_hash()
}

/// Writes the parameters whose names are asked for: f32, or f16 where they are frozen in half precision.
fn write_params(
    path: &Path,
    params: &Params,
    which: impl Fn(&str) -> bool,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let asked = || params.iter().filter(|(_, spec, _)| which(&spec.name));
    let info = |(id, spec, _): (crate::nn::Id, &Spec, &Tensor)| Info {
        name: spec.name.clone(),
        dtype: if params.comes_in_half(id) { Dtype::F16 } else { Dtype::F32 },
        shape: spec.shape.clone(),
    };
    let infos: Vec<Info> = asked().map(info).collect();
    write::write(&RealDisk, path, &infos, metadata, |info, w| {
        let Some(id) = params.find(&info.name) else {
            return Err(Error::argument(OP, &info.name, "a parameter", "none"));
        };
        let done = match params.stored(id)? {
            Value::Half(half) => w.write_all(half.bytes()),
            Value::Tensor(t) => write::put_f32(w, Dtype::F32, &t.to_f32()),
        };
        done.map_err(|e| files::write_error("write", path, &e))
    })
}
