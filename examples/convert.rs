//! From a checkpoint as LAVIS saves it (`.pth`) and a folder with a vocabulary to a model's folder.
//!
//!     cargo run --example convert -- checkpoint.pth config.json VOCABULARY OUT

use qformer::model::{Config, Model};
use qformer::pretrained::{Pretrained, load};
use qformer::tensor::DType;
use qformer::text::Tokenizer;
use qformer::weights::{Set, start::Plan};
use qformer::{Error, Result};
use std::path::Path;

/// Writes the model. The image encoder's numbers are in one of the checkpoints, too.
pub fn run(checkpoints: &[&Path], config: Config, vocabulary: &Path, out: &Path) -> Result<()> {
    let sets = checkpoints.iter().map(|path| Set::open(path)).collect::<Result<Vec<_>>>()?;
    let (model, specs) = Model::new(config, false)?;
    let plan = Plan::new(sets, load::wants(&specs), false)?;
    print!("{}", plan.report);
    let params = load::params(specs, &plan, DType::F32, 0)?;
    Pretrained::save(out, &model, &params, &Tokenizer::open(vocabulary)?, None)
}

#[allow(dead_code)]
fn main() -> Result<()> {
    let [_, checkpoint, config, vocabulary, out] = &std::env::args_os().collect::<Vec<_>>()[..] else {
        return Err(Error::argument("convert", "arguments", "CHECKPOINT CONFIG VOCABULARY OUT", "others"));
    };
    let path = Path::new(config);
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("convert", path, &e))?;
    run(&[Path::new(checkpoint)], Config::from_json(&text)?, Path::new(vocabulary), Path::new(out))
}
