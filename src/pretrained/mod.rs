//! A model as users hold it: the architecture, its numbers and its tokenizer, in one folder.
//!
//! | file | what is in it |
//! |---|---|
//! | `config.json` | the sizes, [`Config`] |
//! | `model.safetensors` | the Q-Former and its heads under their LAVIS names; metadata: what the other parts are ([`parts`]) |
//! | `vit.safetensors` | the image encoder; instead of it, the metadata may name a file elsewhere |
//! | `vocab.txt`, `tokenizer_config.json` | the tokenizer |
//!
//! The folder appears, and is replaced, as a whole. Parts of two models are refused by name when it is opened; an image
//! encoder other than the one a model was trained with, unless the caller says so.

pub mod load;
pub mod parts;
pub mod pictures;
pub mod scores;

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
const MOST_CONFIG: u64 = 1 << 20;

/// A model that was trained, ready to be used.
pub struct Pretrained {
    /// Its architecture.
    pub model: Model,
    /// Its numbers.
    pub params: Params,
    /// Captions to ids and back.
    pub tokenizer: Tokenizer,
    /// Of the numbers and the vocabulary: two models with the same one give the same features.
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
    /// As people read it.
    pub text: String,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// What captions of a picture are ranked by.
    pub score: f64,
    /// The sum over its tokens.
    pub log_prob: f64,
}

impl Pretrained {
    /// Opens a model's folder.
    pub fn open(folder: &Path) -> Result<Pretrained> {
        Pretrained::open_with(folder, &Opening::default())
    }

    /// Opens a model's folder, with other than the usual choices.
    pub fn open_with(folder: &Path, opening: &Opening) -> Result<Pretrained> {
        let (text, config) = config_of(folder)?;
        let tokenizer = Tokenizer::open(folder)?;
        parts::check_vocabulary(folder, &config, tokenizer.len())?;
        let path = folder.join(MODEL_FILE);
        let (model, specs) = Model::new(config, opening.train_vit)?;
        let weights = Weights::open(&path)?;
        let metadata = weights.metadata().clone();
        let mut sets = vec![];
        let vit = opening.vit.clone().map_or_else(|| parts::find_vit(folder, &weights), |p| Ok(Some(p)))?;
        if let Some(vit) = &vit {
            sets.push(Set::open(vit)?);
        }
        sets.push(Set::of(vec![weights])?);
        let plan = Plan::new(sets, load::wants(&specs), true)?;
        let found = vit_identity(&plan, metadata.get(VIT_HASH), opening.any_vit)?;
        if let Some((wanted, found)) = metadata.get(VIT_HASH).zip(found.as_ref()).filter(|(a, b)| a != b) {
            let want = format!("the image encoder it was trained with (blake3 {wanted})");
            let at = vit.as_deref().unwrap_or(&path).display();
            return Err(Error::file(OP, &path, want, format!("another, {at} ({found})"))
                .fix(format!("copy the one it was trained with into {}", folder.display())));
        }
        parts::check_tensors(folder, &plan.report)?;
        if let Some(weights) = plan.sets().iter().flat_map(Set::files).find(|f| f.path() == path) {
            parts::check_beside(folder, &text, &tokenizer, weights)?;
        }
        let params = load::params(specs, &plan, DType::F32, 0)?;
        let identity = match parts::whole(&metadata, found.as_deref()) {
            Some(identity) => identity,
            None => {
                files::hash_file(&RealDisk, &path).map_err(|e| Error::io(OP, &path, &e))?.to_hex().to_string()
            }
        };
        Ok(Pretrained { model, params, tokenizer, identity })
    }

    /// This model on a device.
    pub fn to(self, device: &Device, precision: Precision) -> Result<Pretrained> {
        Ok(Pretrained { params: self.params.to(device, precision)?, ..self })
    }

    /// Writes a folder, whole or not at all. `vit` names the file of a frozen image encoder that stays where it is; without
    /// it, the image encoder is written, too.
    pub fn save(
        folder: &Path,
        model: &Model,
        params: &Params,
        tokenizer: &Tokenizer,
        vit: Option<&Path>,
    ) -> Result<()> {
        parts::check_vocabulary(folder, &model.config, tokenizer.len())?;
        let mut beside = parts::Beside {
            vocabulary: Some(tokenizer.fingerprint()),
            dictionary: tokenizer.dictionary_hash(),
            ..Default::default()
        };
        if let Some(path) = vit {
            let failed = |e: std::io::Error| Error::io(OP, path, &e);
            let (whole, from) =
                (path.canonicalize().map_err(failed)?, std::path::absolute(folder).map_err(failed)?);
            beside.vit = vit_hash(&whole, params.specs())?;
            beside.vit_path = Some((whole, from));
        }
        let own: Vec<&str> = parts::PARTS.into_iter().chain(tokenizer.dictionary_name()).collect();
        files::write_folder(folder, &own, |staged| {
            tokenizer.save(staged)?;
            let config = serde_json::to_vec_pretty(&model.config)
                .map_err(|e| Error::new(Kind::Write, OP).about(CONFIG_FILE).got(e))?;
            let path = staged.join(CONFIG_FILE);
            files::write_atomic(&RealDisk, &path, config.len() as u64, |w| w.write_all(&config))?;
            if vit.is_none() {
                let file = staged.join(VIT_FILE);
                beside.vit = Some(write_params(&file, params, of_vit, &BTreeMap::new(), VIT_HASH)?);
            }
            let metadata = beside.metadata(&model.config)?;
            let file = staged.join(MODEL_FILE);
            write_params(&file, params, |name| !of_vit(name), &metadata, parts::TENSORS).map(drop)
        })
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
        if found.iter().flatten().any(|h| h.log_prob.is_nan() || h.score.is_nan()) {
            return Err(Error::new(Kind::NonFinite, "caption")
                .expected("probabilities of words")
                .got("numbers that are not finite")
                .fix("the model's numbers are too large: take an earlier checkpoint, or --dtype f32"));
        }
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
    config_of(folder).map(|(_, config)| config)
}

/// The text of `config.json`, and the sizes in it.
fn config_of(folder: &Path) -> Result<(String, Config)> {
    let path = folder.join(CONFIG_FILE);
    let text = String::from_utf8_lossy(&files::read_regular(&path, MOST_CONFIG, OP)?).into_owned();
    let config = Config::from_json(&text).map_err(|e| e.fix(format!("in {}", path.display())))?;
    Ok((text, config))
}

/// The file of the image encoder of the model in a folder; None if `model.safetensors` itself holds it.
pub fn vit_file(folder: &Path) -> Result<Option<PathBuf>> {
    parts::find_vit(folder, &Weights::open(&folder.join(MODEL_FILE))?)
}

fn of_vit(name: &str) -> bool {
    name.starts_with("visual_encoder.")
}

/// The identity of a plan's image encoder: as its file says, or of its numbers where it does not say, if a model asks for one.
fn vit_identity(plan: &Plan, wanted: Option<&String>, any: bool) -> Result<Option<String>> {
    let said = plan.sets().iter().flat_map(Set::files).find(|f| f.tensors().iter().all(|t| of_vit(&t.name)));
    match said.and_then(|f| f.metadata().get(VIT_HASH)) {
        _ if any => Ok(None),
        Some(said) => Ok(Some(said.clone())),
        None if wanted.is_some() => Ok(Some(plan.vit_hash()?.unwrap_or_default())),
        None => Ok(None),
    }
}

/// The identity of the image encoder in a file.
fn vit_hash(path: &Path, specs: &[Spec]) -> Result<Option<String>> {
    let wants = load::wants(specs).into_iter().filter(|w| of_vit(&w.name)).collect();
    let plan = Plan::new(vec![Set::open(path)?], wants, true)?;
    Ok(vit_identity(&plan, Some(&String::new()), false)?.filter(|identity| !identity.is_empty()))
}

/// Writes the parameters whose names are asked for: f32, or f16 where they are frozen in half precision. Their identity,
/// which the metadata gets under `key`.
fn write_params(
    path: &Path,
    params: &Params,
    which: impl Fn(&str) -> bool,
    metadata: &BTreeMap<String, String>,
    key: &str,
) -> Result<String> {
    let asked = || params.iter().filter(|(_, spec, _)| which(&spec.name));
    let info = |(id, spec, _): (crate::nn::Id, &Spec, &Tensor)| Info {
        name: spec.name.clone(),
        dtype: if params.comes_in_half(id) { Dtype::F16 } else { Dtype::F32 },
        shape: spec.shape.clone(),
    };
    let infos: Vec<Info> = asked().map(info).collect();
    write::write_identified(&RealDisk, path, &infos, metadata, key, |info, w| {
        let Some(id) = params.find(&info.name) else {
            return Err(Error::argument(OP, &info.name, "a parameter", "none"));
        };
        let done = match params.stored(id)? {
            Value::Half(half) => w.write_all(half.bytes()),
            Value::Tensor(t) => write::put_f32(w, Dtype::F32, &t.to_f32()?),
        };
        done.map_err(|e| files::write_error("write", path, &e))
    })
}
