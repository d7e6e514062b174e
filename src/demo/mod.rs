//! Pictures with captions that need nobody to take or write them: what `qformer demo` learns from.
//!
//! A folder of them holds
//!   pictures/train/*.png, train.json          several pictures of every scene that training may see
//!   pictures/held-out/*.png, held-out.json    one picture of every other scene
//! with captions as LAVIS lists them. The `image_id` of a training picture is its scene's: pictures that have the same
//! caption belong together.

mod scenes;

pub use scenes::{SIDE, Scene};

use crate::data::random::Draws;
use crate::files::{self, RealDisk};
use crate::{Error, Kind, Result, vision};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const OPERATION: &str = "draw pictures";
/// The draws of the split; those of pictures are in `scenes`.
const SPLIT: u32 = 0xD2;
/// A scene in so many is held out.
const HELD_OUT: usize = 5;

/// Scenes that training sees, and scenes it never does.
pub struct Split {
    /// What training sees.
    pub seen: Vec<Scene>,
    /// What it never sees.
    pub held_out: Vec<Scene>,
}

impl Split {
    /// The split of a seed.
    pub fn new(seed: u64) -> Split {
        let order = Draws::new(seed, [SPLIT, 0, 0]).permutation(Scene::ALL as u32);
        let (held_out, seen) = order.split_at(Scene::ALL / HELD_OUT);
        let scenes = |numbers: &[u32]| numbers.iter().map(|n| Scene::nth(*n as usize)).collect();
        Split { seen: scenes(seen), held_out: scenes(held_out) }
    }
}

/// Where a drawn set lies in a folder.
pub struct Places {
    /// The folder of all pictures.
    pub pictures: PathBuf,
    /// Captions of the pictures that training sees.
    pub train: PathBuf,
    /// Captions of the others.
    pub held_out: PathBuf,
}

impl Places {
    /// In this folder.
    pub fn of(folder: &Path) -> Places {
        let [pictures, train, held_out] = ["pictures", "train.json", "held-out.json"].map(|n| folder.join(n));
        Places { pictures, train, held_out }
    }
}

/// A held-out picture.
pub struct Test {
    /// Its file.
    pub path: PathBuf,
    /// What it shows.
    pub scene: Scene,
}

/// Draws the set of a seed, with `variants` pictures of every scene that training sees.
pub fn draw(folder: &Path, seed: u64, variants: u32) -> Result<Vec<Test>> {
    let (split, places) = (Split::new(seed), Places::of(folder));
    let train = sheets("train", &split.seen, variants);
    let held_out = sheets("held-out", &split.held_out, 1);
    for (sheets, captions, part) in
        [(&train, &places.train, "train"), (&held_out, &places.held_out, "held-out")]
    {
        files::make_folders(&RealDisk, &places.pictures.join(part))?;
        sheets.par_iter().try_for_each(|sheet| sheet.write(&places.pictures, seed))?;
        write_captions(captions, sheets)?;
    }
    let test = |sheet: Sheet| Test { path: places.pictures.join(sheet.name), scene: sheet.scene };
    Ok(held_out.into_iter().map(test).collect())
}

/// A picture to be drawn.
struct Sheet {
    name: String,
    scene: Scene,
    variant: u32,
}

fn sheets(part: &str, scenes: &[Scene], variants: u32) -> Vec<Sheet> {
    let sheet = |scene: &Scene, variant| {
        let name = format!("{part}/{:03}-{variant}.png", scene.number());
        Sheet { name, scene: *scene, variant }
    };
    scenes.iter().flat_map(|scene| (0..variants).map(move |variant| sheet(scene, variant))).collect()
}

impl Sheet {
    fn write(&self, folder: &Path, seed: u64) -> Result<()> {
        let picture = self.scene.draw(seed, self.variant);
        let png = vision::encode_png(picture.width, picture.height, &picture.rgb)?;
        let path = folder.join(&self.name);
        // Not one by one to the disk's platter, as `write_atomic` would: a lost picture is drawn again.
        std::fs::write(&path, png).map_err(|e| files::write_error(OPERATION, &path, &e))
    }
}

fn write_captions(file: &Path, sheets: &[Sheet]) -> Result<()> {
    let entry = |p: &Sheet| -> Value {
        json!({"image": p.name, "caption": p.scene.caption(), "image_id": p.scene.number()})
    };
    let text = serde_json::to_vec_pretty(&sheets.iter().map(entry).collect::<Vec<_>>())
        .map_err(|e| Error::new(Kind::Write, OPERATION).got(e))?;
    files::write_atomic(&RealDisk, file, text.len() as u64, |to| to.write_all(&text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn held_out_scenes_are_never_seen_but_all_their_words_are() {
        for seed in 0..20 {
            let split = Split::new(seed);
            assert_eq!((split.seen.len(), split.held_out.len()), (576, 144));
            let all: HashSet<Scene> = split.seen.iter().chain(&split.held_out).copied().collect();
            assert_eq!(all.len(), Scene::ALL, "seed {seed}");
            // any two properties of a held-out scene stand together in some scene that is seen
            for h in &split.held_out {
                let pairs = |s: &Scene| {
                    let p = s.properties();
                    (0..4).flat_map(move |i| (0..i).map(move |j| (i, p[i], j, p[j]))).collect::<HashSet<_>>()
                };
                let known: HashSet<_> = split.seen.iter().flat_map(pairs).collect();
                assert!(pairs(h).is_subset(&known), "seed {seed}: {h:?}");
            }
        }
        assert_ne!(Split::new(0).held_out, Split::new(1).held_out);
    }

    #[test]
    fn captions_tell_scenes_apart() {
        let captions: HashSet<String> = (0..Scene::ALL).map(|n| Scene::nth(n).caption()).collect();
        assert_eq!(captions.len(), Scene::ALL);
        assert_eq!(Scene::nth(0).caption(), "左上に赤い丸が一つ描かれている");
    }
}
