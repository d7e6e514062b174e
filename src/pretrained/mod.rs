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

#[allow(missing_docs)] // still to be written
pub mod llm;
pub mod load;
pub mod parts;
pub mod pictures;
pub mod scores;

use crate::files::{self, RealDisk};
use crate::model::{AnswerProfile, Answering, Config, GenerateOptions, Images, Model};
use crate::nn::{Params, Pass, Precision, Spec, Value};
use crate::tensor::{DType, Device, Tensor};
use crate::text::{self, Tokenizer};
use crate::vision::{self, Normalise, Picture};
use crate::weights::names::VIT_HASH;
use crate::weights::start::Plan;
use crate::weights::{Dtype, Info, Set, VIT_FILE, Weights, write};
use crate::{Error, Kind, Result};
use llm::{LlmFolder, LlmPart, Second};
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
    /// Of a second stage: its language model's tokenizer, and what its folder says of the model.
    pub second: Option<Second>,
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
    /// Where the language model of a second stage is, in place of where the folder says.
    pub llm: Option<PathBuf>,
    /// It is for a device that stores 16 bits: a language model's matrices stay in those of their files.
    pub in_16_bits: bool,
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
        let (json, config, part) = config_of(folder)?;
        let llm = part.as_ref().map(|p| LlmFolder::of_part(p, opening.llm.as_deref(), folder)).transpose()?;
        // A second stage that came from elsewhere reads no words of its own.
        let tokenizer = match &llm {
            Some(_) if !folder.join("vocab.txt").exists() => {
                let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(str::to_owned);
                Tokenizer::new(special.to_vec(), text::Settings::default())?
            }
            _ => Tokenizer::open(folder)?,
        };
        parts::check_vocabulary(folder, &config, tokenizer.len())?;
        let path = folder.join(MODEL_FILE);
        let (model, specs) = match (&llm, &part) {
            (Some(llm), Some(part)) => {
                let prompt = llm.tokenizer.row(&part.prompt, "", config.max_txt_len)?.prompt;
                Model::with_llm(config, llm.config.clone(), prompt, opening.train_vit)?
            }
            _ => Model::new(config, opening.train_vit)?,
        };
        let weights = Weights::open(&path)?;
        let metadata = weights.metadata().clone();
        let mut sets = vec![];
        let vit = opening.vit.clone().map_or_else(|| parts::find_vit(folder, &weights), |p| Ok(Some(p)))?;
        if let Some(vit) = &vit {
            sets.push(Set::open(vit)?);
        }
        sets.push(Set::of(vec![weights])?);
        let plan = Plan::new(sets, load::wants(&specs[..own(&specs)]), true)?;
        let found = vit_identity(&plan, metadata.get(VIT_HASH), opening.any_vit)?;
        if let Some((wanted, found)) = metadata.get(VIT_HASH).zip(found.as_ref()).filter(|(a, b)| a != b) {
            let want = format!("the image encoder it was trained with (blake3 {wanted})");
            let at = vit.as_deref().unwrap_or(&path).display();
            return Err(Error::file(OP, &path, want, format!("another, {at} ({found})"))
                .fix(format!("copy the one it was trained with into {}", folder.display())));
        }
        parts::check_tensors(folder, &plan.report)?;
        if let Some(weights) = plan.sets().iter().flat_map(Set::files).find(|f| f.path() == path) {
            parts::check_beside(folder, &json, &tokenizer, weights)?;
        }
        let params = load::params_with(
            specs,
            &plan,
            DType::F32,
            0,
            llm.as_ref().map(|llm| (llm, opening.in_16_bits)),
        )?;
        let second = llm.zip(part).map(|(llm, part)| Second { part, tokenizer: llm.tokenizer });
        let identity = match parts::whole(&metadata, found.as_deref()) {
            Some(identity) => identity,
            None => {
                files::hash_file(&RealDisk, &path).map_err(|e| Error::io(OP, &path, &e))?.to_hex().to_string()
            }
        };
        Ok(Pretrained { model, params, tokenizer, second, identity })
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
        Pretrained::save_stage(folder, model, params, (tokenizer, None), vit)
    }

    /// [`Pretrained::save`] of a model that may have a language model, which stays where it is.
    pub fn save_stage(
        folder: &Path,
        model: &Model,
        params: &Params,
        (tokenizer, llm): (&Tokenizer, Option<&LlmPart>),
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
            let json = config_json(&model.config, llm)?;
            let config = serde_json::to_vec_pretty(&json)
                .map_err(|e| Error::new(Kind::Write, OP).about(CONFIG_FILE).got(e))?;
            let path = staged.join(CONFIG_FILE);
            files::write_atomic(&RealDisk, &path, config.len() as u64, |w| w.write_all(&config))?;
            if vit.is_none() {
                let file = staged.join(VIT_FILE);
                beside.vit = Some(write_params(&file, params, of_vit, &BTreeMap::new(), VIT_HASH)?);
            }
            let metadata = beside.metadata(&json)?;
            let file = staged.join(MODEL_FILE);
            write_params(&file, params, |name| !of_vit(name) && !llm::is_llm(name), &metadata, parts::TENSORS)
                .map(drop)
        })
    }

    /// Pictures as evaluation sees them: resized to S x S, normalised.     -> `[B,3,S,S]`
    pub fn pixels(&self, pictures: &[Picture]) -> Result<Tensor> {
        let (s, normalise) = (self.model.config.image_size, Normalise::default());
        let mut planes = Vec::with_capacity(pictures.len() * 3 * s * s);
        for picture in pictures {
            planes.extend(normalise.planes(&vision::resize(picture, s, s)?)?);
        }
        Tensor::new(planes, &[pictures.len(), 3, s, s])
    }

    /// Features of pictures: of each the same beside any others.
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

    /// What a second stage says of pictures `[B,3,S,S]` behind a prompt each, best first.
    pub fn answer(
        &self,
        pixels: &Tensor,
        prompts: &[String],
        (options, profile): (&GenerateOptions, AnswerProfile),
        identities: &[u32],
    ) -> Result<Vec<Vec<Caption>>> {
        let Some(Second { tokenizer, .. }) = &self.second else {
            return Err(Error::argument(
                OP,
                "model",
                "one of stage 2, which has a language model",
                "one of stage 1",
            )
            .fix("leave the prompt out, or train a second stage: qformer train --start MODEL --llm DIR"));
        };
        let prompts: Vec<Vec<u32>> = prompts.iter().map(|p| tokenizer.prompt(p)).collect::<Result<_>>()?;
        let end = tokenizer.end().ok_or_else(|| Error::argument(OP, "tokenizer", "an end token", "none"))?;
        let inputs = self.model.llm_inputs_of_pictures(&self.params, pixels)?;
        // The model never reads the token that a search starts from.
        let bos = tokenizer.opening().unwrap_or(end);
        let ask =
            Answering { inputs: &inputs, prompts: &prompts, options, profile, bos, eos: end, identities };
        let found = self.model.answers(&self.params, &ask)?;
        if found.iter().flatten().any(|h| h.log_prob.is_nan() || h.score.is_nan()) {
            return Err(Error::new(Kind::NonFinite, "caption")
                .expected("probabilities of words")
                .got("numbers that are not finite")
                .fix("the model's numbers are too large: take an earlier checkpoint, or --dtype f32"));
        }
        let caption = |h: crate::model::Hypothesis| {
            let text = tokenizer.decode(&h.ids)?.trim().to_string();
            Ok(Caption { text, ids: h.ids, score: h.score, log_prob: h.log_prob })
        };
        found.into_iter().map(|all| all.into_iter().map(caption).collect()).collect()
    }
}

/// The parameters of a second stage from a folder of a first (or of a second) one and a language model; what the folder lacks of
/// the projection begins fresh. For a device that stores 16 bits, or one that does not.
pub fn second_stage(
    folder: &Path,
    specs: Vec<Spec>,
    (llm, in_16_bits): (&LlmFolder, bool),
    seed: u64,
) -> Result<Params> {
    let path = folder.join(MODEL_FILE);
    let weights = Weights::open(&path)?;
    let wanted = weights.metadata().get(VIT_HASH).cloned();
    let mut sets =
        parts::find_vit(folder, &weights)?.iter().map(|vit| Set::open(vit)).collect::<Result<Vec<_>>>()?;
    sets.push(Set::of(vec![weights])?);
    let plan = Plan::new(sets, load::wants(&specs[..own(&specs)]), true)?;
    let found = vit_identity(&plan, wanted.as_ref(), false)?;
    if let Some((wanted, found)) = wanted.zip(found).filter(|(a, b)| a != b) {
        let want = format!("the image encoder it was trained with (blake3 {wanted})");
        return Err(Error::file(OP, &path, want, format!("another ({found})")));
    }
    let fresh = |name: &&String| !name.starts_with(llm.config.projection());
    let lists = [&plan.report.missing, &plan.report.lacking, &plan.report.fresh];
    if let Some(name) = lists.into_iter().flatten().find(fresh) {
        return Err(Error::file(OP, &path, format!("a tensor {name}"), "none")
            .fix("start from a model directory, as qformer train and qformer convert make them"));
    }
    if let Some((name, want, got)) = plan.report.misshapen.first() {
        return Err(Error::file(OP, &path, format!("{name} of {want:?}"), format!("{got:?}")).fix(
            "a second stage begins with a first one, or with a second one for the same language model",
        ));
    }
    load::params_with(specs, &plan, DType::F32, seed, Some((llm, in_16_bits)))
}

/// The sizes of the model in a folder.
pub fn read_config(folder: &Path) -> Result<Config> {
    config_of(folder).map(|(_, config, _)| config)
}

/// The keys of a `config.json`: sizes, and what is said of a language model.
pub(crate) fn config_json(config: &Config, llm: Option<&LlmPart>) -> Result<serde_json::Value> {
    let failed = |e: serde_json::Error| Error::new(Kind::Write, OP).about(CONFIG_FILE).got(e);
    let mut json = serde_json::to_value(config).map_err(failed)?;
    if let Some(part) = llm {
        json["llm"] = serde_json::to_value(part).map_err(failed)?;
    }
    Ok(json)
}

/// What a second stage's folder says of its language model; None of a first stage's.
pub fn llm_part(folder: &Path) -> Result<Option<LlmPart>> {
    config_of(folder).map(|(_, _, part)| part)
}

/// How many of the parameters are the model's own; a language model's stand behind them.
fn own(specs: &[Spec]) -> usize {
    specs.iter().position(|s| llm::is_llm(&s.name)).unwrap_or(specs.len())
}

/// The text of `config.json`, the sizes in it, and what it says of a language model.
fn config_of(folder: &Path) -> Result<(String, Config, Option<LlmPart>)> {
    let path = folder.join(CONFIG_FILE);
    let text = String::from_utf8_lossy(&files::read_regular(&path, MOST_CONFIG, OP)?).into_owned();
    let place = |e: Error| e.fix(format!("in {}", path.display()));
    let wrong = |e: serde_json::Error| place(Error::argument(OP, "llm", "path, blake3 and prompt", e));
    let (mut sizes, mut part) = (text.clone(), None);
    if let Ok(serde_json::Value::Object(mut keys)) = serde_json::from_str(&text)
        && let Some(llm) = keys.remove("llm")
    {
        part = Some(serde_json::from_value(llm).map_err(wrong)?);
        sizes = serde_json::Value::Object(keys).to_string();
    }
    let config = Config::from_json(&sizes).map_err(place)?;
    Ok((text, config, part))
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
