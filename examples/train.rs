//! Trains a small model on drawn pictures, a line per step; stopped half way and resumed, it ends the same.
//!
//!     cargo run --example train -- FOLDER

use qformer::demo::{self, Places};
use qformer::train::{StepLine, Training};
use qformer::{Error, Result};
use std::path::Path;

/// Draws pictures with captions into a new folder and trains on them; the model is in `run/model`.
pub fn run(folder: &Path) -> Result<()> {
    demo::draw(folder, 1, 2)?;
    let Places { pictures, train, .. } = Places::of(folder);
    let out = folder.join("run");
    let mut losses = Vec::new();
    let mut watch = |step: &StepLine| {
        println!(
            "step {:>2}  loss {:.3}  (itc {:.3} itm {:.3} lm {:.3})",
            step.step, step.loss, step.itc, step.itm, step.lm
        );
        losses.push(step.loss);
    };
    Training::new()
        .path("images", &pictures)
        .path("captions", &train)
        .path("out", &out)
        .set("profile", "lavis-image-id")
        .set("steps", 30)
        .set("batch", 16)
        .set("init_lr", 2e-3)
        .set("warmup_steps", 5)
        .set("vocab_size", 200)
        .set("model.image_size", 64)
        .set("model.vit_width", 64)
        .set("model.vit_mlp", 128)
        .set("model.hidden", 64)
        .set("model.layers", 2)
        .set("model.ffn", 128)
        .set("model.num_query", 8)
        .set("model.embed_dim", 32)
        .stop_after(20)
        .run(&mut watch)?;
    let outcome = Training::resume(&out).run(&mut watch)?;
    println!("{} steps; the model is in {}", outcome.step, outcome.model.display());
    let (first, last) = (losses[..5].iter().sum::<f64>(), losses[losses.len() - 5..].iter().sum::<f64>());
    assert!(losses.len() == 30 && last < first, "the loss did not fall");
    Ok(())
}

#[allow(dead_code)]
fn main() -> Result<()> {
    let folder = std::env::args_os()
        .nth(1)
        .ok_or_else(|| Error::argument("train", "FOLDER", "a new folder", "none"))?;
    run(Path::new(&folder))
}
