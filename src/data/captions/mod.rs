//! Files of captions, in the forms of the field.
//!
//! | file | what is in it |
//! |---|---|
//! | `formats` | the table of formats, and which of them a file has |
//! | `text`, `scan` | a file through a window; JSON cut into values |
//! | `entry` | one entry, under the field's names for its parts |
//! | `json`, `table` | the formats |
//! | `builder` | entries to samples; `coco` other names of a picture |

mod builder;
mod coco;
mod entry;
mod formats;
mod ids;
mod json;
mod scan;
mod table;
mod text;

pub use builder::{Builder, Door, Want, twice};
pub use entry::Captions;
#[cfg(feature = "parquet")]
pub use entry::{CAPTIONS, IDS, Id, NAMES, rank};

use super::Dataset;
use crate::Result;
use entry::Entry;
use std::path::Path;

const OPERATION: &str = super::OPERATION;
use super::MAX_ENTRIES;

/// Reads a file of captions whose pictures lie behind a door.
pub fn read(file: &Path, door: Door, want: Want, missing_share: f64) -> Result<Dataset> {
    let mut builder = Builder::new(file, door, want);
    formats::read(file, &mut builder)?;
    builder.finish(missing_share)
}

/// A caption, or one that is null.
pub type Caption = Option<String>;

/// The captions in a JSON object about one picture; `None` if it says nothing of them.
pub fn caption_of_json(text: &str) -> Result<Option<Captions>, String> {
    let entry: Entry = scan::parse(text.as_bytes()).map_err(|e| e.to_string())?;
    Ok(entry.captions)
}
