//! Layer-wise learning rates of a trained image encoder: how far the first step moves each parameter.

use crate::tiny;
use qformer::tensor::DType;
use qformer::train::optimizer::Hyper;
use qformer::train::schedule::Schedule;
use qformer::train::trainer::{Contrast, Options, Trainer};

/// AdamW's first step moves an element by lr g / (|g| + eps): by lr, where the gradient is far above eps = 1e-8. Of an
/// encoder of two blocks and decay d that is lr d in the last block, lr d^2 in the first, lr d^3 before the blocks.
#[test]
fn each_block_learns_at_the_rate_of_its_depth() {
    let (lr, d) = (1e-2, 0.5f64);
    let (model, params) = tiny::model(tiny::config(), true, DType::F32);
    let before: Vec<(String, Vec<f64>)> =
        params.iter().map(|(_, s, v)| (s.name.clone(), v.to_f64().unwrap())).collect();
    let schedule = Schedule { init_lr: lr, min_lr: 0.0, warmup_lr: lr, warmup_steps: 1, max_epoch: 1 };
    let hyper = Hyper { weight_decay: 0.0, vit_layer_decay: d, ..Hyper::default() };
    let options = Options { hyper, ..tiny::options(Contrast::MicroBatch, schedule) };
    let mut trainer = Trainer::new(model, params, options).unwrap();
    trainer.step(&[tiny::micro(&tiny::config(), 4, 1)]).unwrap();
    let mut seen = [0; 4];
    for ((name, old), (_, _, new)) in before.iter().zip(trainer.params.iter()) {
        let below = match name.as_str() {
            n if n.starts_with("visual_encoder.blocks.1.") => 1,
            n if n.starts_with("visual_encoder.blocks.0.") => 2,
            n if n.starts_with("visual_encoder.") => 3,
            _ => 0,
        };
        let moved = old.iter().zip(new.to_f64().unwrap()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let want = lr * d.powi(below);
        // Rounding of values up to 2 in f32 is 1.2e-7, a hundred thousandth of the least step here.
        assert!(moved <= want * 1.001, "{name}: {moved} of {want}");
        seen[below as usize] += usize::from(moved > want * 0.99);
    }
    assert!(seen.iter().all(|n| *n >= 3), "few parameters have a gradient: {seen:?}");
}
