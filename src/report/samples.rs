//! Captions that a model wrote, with small pictures: from a file of `[{"image": ..., "caption": ...}]` or JSON lines.

use super::OPERATION;
use crate::data::{quoted, read_text};
use crate::vision::{self, Photo, Turn};
use crate::{Error, Result};
use serde_json::Value;
use std::path::{Component, Path, PathBuf};

const SIDE: usize = 240;
const MAX_FILE: u64 = 256 << 20;

/// A picture, what was said of it, and a JPEG of it (or why there is none).
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub captions: Vec<String>,
    pub thumbnail: Result<Vec<u8>, String>,
    /// Marked: of pictures that a search found, the one it should find.
    pub right: bool,
}

impl Sample {
    /// A picture file with what was said of it.
    pub fn new(name: String, captions: Vec<String>, path: &Path) -> Sample {
        let thumbnail = Photo::open(path, Turn::Upright).and_then(|p| vision::thumbnail(&p, SIDE));
        Sample { name, captions, thumbnail: thumbnail.map_err(|e| e.to_string()), right: false }
    }
}

/// Samples that stand together on a page.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub title: String,
    pub samples: Vec<Sample>,
}

/// At most `count` samples, evenly over the file.
pub fn read(file: &Path, images: Option<&Path>, count: usize) -> Result<Vec<Sample>> {
    let text = read_text(OPERATION, file, MAX_FILE)?;
    let wrong = |got: String| {
        Error::file(OPERATION, file, "entries such as {\"image\": \"a.jpg\", \"caption\": [\"...\"]}", got)
    };
    let entries: Vec<Value> = if text.trim_start().starts_with('[') {
        serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?
    } else {
        let lines = text.lines().filter(|l| !l.trim().is_empty());
        lines.map(|l| serde_json::from_str(l).map_err(|e| wrong(e.to_string()))).collect::<Result<_>>()?
    };
    let stride = entries.len().div_ceil(count.max(1)).max(1);
    entries
        .iter()
        .step_by(stride)
        .map(|e| sample(e, images).ok_or_else(|| wrong(quoted(&e.to_string()))))
        .collect()
}

fn sample(entry: &Value, images: Option<&Path>) -> Option<Sample> {
    let name = entry.get("image")?.as_str()?.to_string();
    let captions = match entry.get("caption")? {
        Value::String(s) => vec![s.clone()],
        Value::Array(list) => list.iter().map(|c| c.as_str().map(str::to_string)).collect::<Option<_>>()?,
        _ => return None,
    };
    Some(match place(&name, images) {
        Ok(path) => Sample::new(name, captions, &path),
        Err(why) => Sample { name, captions, thumbnail: Err(why), right: false },
    })
}

/// Where a picture lies; names may not climb out of the folder of pictures.
fn place(name: &str, images: Option<&Path>) -> Result<PathBuf, String> {
    let Some(images) = images else { return Ok(PathBuf::from(name)) };
    if Path::new(name).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Ok(images.join(name));
    }
    Err("outside the folder of pictures".to_string())
}
