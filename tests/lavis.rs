//! Cases recorded from LAVIS 1.0.2 (tests/lavis/record.py), small enough to live here: a clone alone can compare.
//! Sizes: heads of 8, 16, 24 and 40, odd numbers of queries, pictures that are no multiple of the patch, cross-attention in
//! every, every second, third or fourth layer, batches of 1 to 4.

use qformer::parity;
use qformer::tensor::DType;
use safetensors::{SafeTensors, tensor::TensorView};
use std::path::{Path, PathBuf};

fn case(name: &str) -> PathBuf {
    let name = if name.contains('-') { name.to_string() } else { format!("{name}-small") };
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/lavis/{name}.safetensors"))
}

fn agrees(name: &str) {
    for dtype in [DType::F32, DType::F64] {
        let report = parity::run(&case(name), &parity::Place::cpu(dtype)).unwrap();
        assert!(report.pass, "{dtype}\n{report}");
        assert!(report.lines.len() > 3, "{report}");
    }
}

#[test]
fn image_encoder() {
    agrees("vit");
}

#[test]
fn one_step() {
    agrees("stage1");
}

#[test]
fn one_step_with_image_ids() {
    agrees("stage1_ids");
}

#[test]
fn twelve_training_steps() {
    agrees("train");
}

#[test]
fn one_step_of_three_processes() {
    agrees("stage1_world");
}

#[test]
fn six_training_steps_of_three_processes() {
    agrees("train_world");
}

#[test]
fn captions() {
    agrees("generate");
}

#[test]
fn features() {
    agrees("features");
}

#[test]
fn retrieval() {
    agrees("retrieval");
}

/// Which of equal ones is a candidate is open; their scores are compared.
#[test]
fn retrieval_of_equal_captions_and_of_equal_pictures() {
    agrees("retrieval-captions");
    agrees("retrieval-pictures");
}

#[test]
fn maps_of_attention() {
    agrees("explain");
}

/// Activations so small that an eps decides: 1e-12 of the Q-Former, 1e-6 of the image encoder, 1e-5 of `ln_vision`.
#[test]
fn every_eps() {
    agrees("stage1-eps");
    agrees("vit-eps");
}

/// Decay 0.5, eps 1e-3, betas 0.8 and 0.95: which parameters decay, and where eps stands.
#[test]
fn the_settings_of_adamw() {
    agrees("train-adamw");
}

/// LAVIS was given the masks that are drawn here.
#[test]
fn one_step_with_dropout() {
    agrees("stage1-dropout");
    // Rows that a warp moves in whole pieces: another kernel.
    agrees("stage1-dropout-whole");
}

/// True gradients of 0 and norms of zeros: equal captions, equal pictures, both, and query tokens of 0.
#[test]
fn one_step_with_nothing_to_tell_apart() {
    ["captions", "pictures", "equal", "queries"].into_iter().for_each(|n| agrees(&format!("stage1-{n}")));
}

/// 39 + 12 layers, narrow.
#[test]
fn one_step_of_full_depth() {
    agrees("stage1-deep");
}

/// One weight moved by a thousandth of its matrix's size: the report names what it feeds first.
#[test]
fn a_changed_weight_is_found_where_it_enters() {
    let bytes = std::fs::read(case("stage1")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let changed = "weights.Qformer.bert.encoder.layer.2.output_query.dense.weight";
    let mut data: Vec<(String, Vec<u8>)> =
        file.tensors().iter().map(|(n, t)| (n.clone(), t.data().to_vec())).collect();
    let weight = data.iter_mut().find(|(n, _)| n == changed).unwrap();
    let first = f32::from_le_bytes(weight.1[..4].try_into().unwrap()) + 0.02;
    weight.1[..4].copy_from_slice(&first.to_le_bytes());
    let views = data.iter().map(|(n, d)| {
        let like = file.tensor(n).unwrap();
        (n.clone(), TensorView::new(like.dtype(), like.shape().to_vec(), d).unwrap())
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("changed.safetensors");
    safetensors::serialize_to_file(views.collect::<Vec<_>>(), header.metadata().clone(), &path).unwrap();
    let report = parity::run(&path, &parity::Place::cpu(DType::F32)).unwrap();
    assert!(!report.pass);
    assert_eq!(report.first_divergence.as_deref(), Some("outputs.query_hidden"), "{report}");
}
