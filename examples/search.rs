//! Makes an index of the pictures of a folder, and searches in it.
//!
//!     cargo run --example search -- MODEL PICTURES INDEX 右下に紫の四角が二つ描かれている

use qformer::data::{Unread, walk};
use qformer::pretrained::Pretrained;
use qformer::search::{Index, Query, Rank, search};
use qformer::{Error, Result};
use std::path::Path;

/// Prints the five best pictures; returns their paths.
pub fn run(from: &Path, pictures: &Path, index: &Path, text: &str) -> Result<Vec<String>> {
    let model = Pretrained::open(from)?;
    let found = walk(pictures, &mut Unread::default())?.pictures;
    let index =
        Index::build(index, (&model, from), &found, |path, why| println!("{}: {why}", path.display()))?;
    let query = Query::of_text(&model, text)?;
    // The best 16 by itc are looked at again together with the text.
    let ranked = search(&model, &index, &query, (16, Rank::ItmPlusItc), 16)?;
    let best = ranked.found.iter().take(5).map(|f| {
        let picture = index.picture(f.picture);
        println!("itc {:.4}  itm {:.4}  {}", f.itc, f.itm.unwrap_or(f32::NAN), picture.name);
        picture.path.clone()
    });
    Ok(best.collect())
}

#[allow(dead_code)]
fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, model, pictures, index, text] = &arguments[..] else {
        return Err(Error::argument("search", "arguments", "MODEL PICTURES INDEX TEXT", "others"));
    };
    run(Path::new(model), Path::new(pictures), Path::new(index), text).map(drop)
}
