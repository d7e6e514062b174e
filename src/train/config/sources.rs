//! Data sets in a configuration: our `images`, `captions` and `ratio`, or LAVIS's `build_info` and processors.

use super::values::{self, Read};
use super::{Config, OPERATION};
use crate::vision::RandAugment;
use crate::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A data set: a folder of pictures and a file of captions (or a folder that holds both).
#[derive(Clone, Debug, PartialEq)]
pub struct DataSource {
    /// Of the data set.
    pub name: String,
    /// Where the configuration first speaks of it.
    pub place: String,
    /// The folder of its pictures, or the files that hold them.
    pub images: Option<PathBuf>,
    /// The file of its captions.
    pub captions: Option<PathBuf>,
    /// How often its batches are drawn, relative to the others'.
    pub ratio: Option<f64>,
    /// What the picture processor was told; compared with the model's.
    pub image_size: Option<usize>,
}

impl DataSource {
    /// A data set of which nothing else is said yet.
    pub fn new(name: &str, place: &str) -> DataSource {
        DataSource {
            name: name.into(),
            place: place.into(),
            images: None,
            captions: None,
            ratio: None,
            image_size: None,
        }
    }

    /// Fills in what one of the two paths says about the other, or says what is missing.
    pub(super) fn check(&mut self) -> Result<()> {
        let missing = |what: &str, fix: &str| {
            Err(Error::argument(OPERATION, format!("data set {} ({})", self.name, self.place), what, "none")
                .fix(fix))
        };
        match (&self.images, &self.captions) {
            (Some(_), Some(_)) => Ok(()),
            (Some(folder), None) => {
                self.captions = Some(folder.clone()); // beside the pictures, or inside with them
                Ok(())
            }
            (None, Some(captions)) if crate::data::holds_pictures(captions) => {
                self.images = Some(captions.clone());
                Ok(())
            }
            (None, Some(_)) => missing(
                "the folder its pictures lie in",
                "add images: DIR (LAVIS: build_info.images.storage), or give --images DIR",
            ),
            (None, None) => missing(
                "files",
                "add images: DIR and captions: FILE (LAVIS: build_info.images.storage and \
                 build_info.annotations.train.storage), or give --images DIR --captions FILE",
            ),
        }
    }
}

/// Names inside a data set, for suggestions.
pub(super) const NAMES: [&str; 6] = [
    "images",
    "captions",
    "ratio",
    "build_info.images.storage",
    "build_info.annotations.train.storage",
    "vis_processor.train.image_size",
];

/// Sets `key` of a data set; `None` if there is no such key.
pub(super) fn set(c: &mut Config, name: &str, key: &str, v: &Value, place: &str) -> Option<Read<()>> {
    let at = c.data.iter().position(|d| d.name == name).unwrap_or_else(|| {
        c.data.push(DataSource::new(name, place));
        c.data.len() - 1
    });
    let source = &mut c.data[at];
    if v.is_null() && (key.is_empty() || NAMES.contains(&key)) {
        return Some(Ok(()));
    }
    let part: Vec<&str> = key.split('.').collect();
    Some(match part.as_slice() {
        ["images"] | ["build_info", "images", "storage"] => one_path(v).map(|p| source.images = Some(p)),
        ["captions"] | ["build_info", "annotations", "train", "storage"] => {
            one_path(v).map(|p| source.captions = Some(p))
        }
        ["ratio" | "sample_ratio"] => {
            let want = || "a number above 0".to_string();
            v.as_f64().filter(|r| *r > 0.0 && r.is_finite()).ok_or_else(want).map(|r| source.ratio = Some(r))
        }
        ["vis_processor", "train", "image_size"] => values::count(v, 1).map(|n| source.image_size = Some(n)),
        ["vis_processor", "train", "name"] => match v.as_str() {
            Some("blip2_image_train") => Ok(()),
            Some("blip_image_train") => {
                c.rand_augment = Some(RandAugment::default());
                c.notes.push(format!("{place}: blip_image_train: RandAugment, of all data sets' pictures"));
                Ok(())
            }
            _ => Err("blip2_image_train or blip_image_train".to_string()),
        },
        ["vis_processor", "train", "min_scale"] => values::share(v).map(|s| c.augment.scale.0 = s),
        ["vis_processor", "train", "max_scale"] => values::share(v).map(|s| c.augment.scale.1 = s),
        ["text_processor", "train", "name"] => values::choice(v, &[("blip_caption", ())]),
        ["text_processor", "train", "prompt"] => {
            if v.as_str() == Some("") {
                Ok(())
            } else {
                Err("no prompt: \"\"".to_string())
            }
        }
        ["data_type"] => values::choice(v, &[("images", ())]),
        ["vis_processor" | "text_processor", "eval", _]
        | ["build_info", "annotations", "val" | "test", ..]
        | ["build_info", "annotations", "train", "url" | "md5"]
        | ["build_info", "images", "train" | "val" | "test", ..] => Ok(()),
        _ => return None,
    })
}

/// Sets `images` or `captions` of the validation set.
pub(super) fn set_validation(c: &mut Config, key: &str, v: &Value, place: &str) -> Option<Read<()>> {
    let source = c.validation.get_or_insert_with(|| DataSource::new("validation", place));
    Some(match key {
        "images" => values::path(v).map(|p| source.images = Some(p)),
        "captions" => values::path(v).map(|p| source.captions = Some(p)),
        _ => return None,
    })
}

/// A path, or LAVIS's list of one.
fn one_path(v: &Value) -> Read<PathBuf> {
    match v.as_array().map(Vec::as_slice) {
        Some([one]) => values::path(one),
        Some(_) => Err("one path (list the files as data sets of their own)".to_string()),
        None => values::path(v),
    }
}

/// The folder of a published model that lies in the local cache of Hugging Face, or that the name itself is.
pub(super) fn published(name: &str) -> Option<PathBuf> {
    if Path::new(name).is_dir() {
        return Some(name.into());
    }
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/huggingface"));
    let cache = std::env::var_os("HF_HUB_CACHE").map(PathBuf::from).or_else(|| {
        let root = std::env::var_os("HF_HOME").map(PathBuf::from).or_else(home)?;
        Some(root.join("hub"))
    })?;
    let model = cache.join(format!("models--{}", name.replace('/', "--")));
    let named = std::fs::read_to_string(model.join("refs/main")).ok()?;
    Some(model.join("snapshots").join(named.trim())).filter(|p| p.is_dir())
}
