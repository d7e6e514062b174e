//! Captions the pictures of a folder.
//!
//!     cargo run --example caption -- MODEL PICTURES

use qformer::data::{Image, Unread, walk};
use qformer::model::{GenerateOptions, Images};
use qformer::pretrained::Pretrained;
use qformer::pretrained::pictures::{look, see};
use qformer::{Error, Result};
use std::path::Path;

/// Prints a caption for each picture; returns how many there were.
pub fn run(model: &Path, pictures: &Path) -> Result<usize> {
    let model = Pretrained::open(model)?;
    let options = GenerateOptions { min_length: 1, ..GenerateOptions::default() };
    let found = walk(pictures, &mut Unread::default())?.pictures;
    for some in found.chunks(8) {
        let seen =
            some.iter().map(|path| see(&model, &Image::File(path.clone()))).collect::<Result<Vec<_>>>()?;
        let images = Images::stack(&look(&model, &seen.iter().collect::<Vec<_>>())?)?;
        let identities: Vec<u32> = seen.iter().map(|s| s.identity).collect();
        for (path, captions) in some.iter().zip(model.caption(&images, &options, &identities)?) {
            println!("{}: {}", path.display(), captions[0].text);
        }
    }
    Ok(found.len())
}

#[allow(dead_code)]
fn main() -> Result<()> {
    let [_, model, pictures] = &std::env::args_os().collect::<Vec<_>>()[..] else {
        return Err(Error::argument("caption", "arguments", "MODEL PICTURES", "others"));
    };
    run(Path::new(model), Path::new(pictures)).map(drop)
}
