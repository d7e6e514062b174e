//! Reading: every honest file gives PyTorch's tensors, bit for bit.

use super::shared;
use qformer::weights::{Format, Weights};
use std::path::Path;

/// All tensors equal those of `expected`, in name, dtype, shape and bytes; norms called gamma and beta are renamed.
fn compare(path: &Path, expected: &Path, format: Format) {
    let file = Weights::open(path).unwrap();
    assert_eq!(file.format(), format);
    let expected = shared::expected(expected);
    let renamed = |n: &str| {
        n.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    };
    let mut found: Vec<_> = file.tensors().iter().map(|t| (renamed(&t.name), t)).collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let names: Vec<&str> = found.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(names, expected.iter().map(|t| t.name.as_str()).collect::<Vec<_>>());
    for ((_, info), want) in found.iter().zip(&expected) {
        assert_eq!((info.dtype.name(), &info.shape), (want.dtype.as_str(), &want.shape), "{}", want.name);
        assert_eq!(file.bytes(&info.name).unwrap(), want.bytes, "{}", want.name);
        assert_eq!(file.hash(&info.name).unwrap(), blake3::hash(&want.bytes));
    }
}

#[test]
fn pytorch_files_give_pytorchs_tensors() {
    let Some(dir) = shared::file("weights") else { return };
    for (file, expected, format) in [
        ("odd.pth", "odd", Format::Zip),
        ("odd_legacy.pth", "odd", Format::Legacy),
        ("eva_vit_tiny.pth", "eva_vit_tiny", Format::Zip),
        ("lavis_checkpoint.pth", "lavis_checkpoint", Format::Zip),
        ("bert-tiny/pytorch_model.bin", "bert-tiny", Format::Legacy),
    ] {
        compare(&dir.join(file), &dir.join(format!("{expected}.expected.safetensors")), format);
    }
}

#[test]
fn safetensors_files_give_their_tensors() {
    let Some(dir) = shared::file("weights") else { return };
    for name in ["odd", "eva_vit_tiny", "lavis_checkpoint", "bert-tiny"] {
        let path = dir.join(format!("{name}.expected.safetensors"));
        compare(&path, &path, Format::Safetensors);
        let file = Weights::open(&path).unwrap();
        for t in file.tensors() {
            assert_eq!(*file.map(&t.name).unwrap(), file.bytes(&t.name).unwrap());
        }
    }
}

#[test]
fn a_checkpoint_tells_what_else_is_in_it() {
    let Some(dir) = shared::file("weights") else { return };
    let file = Weights::open(&dir.join("lavis_checkpoint.pth")).unwrap();
    assert_eq!(file.others(), ["optimizer", "config", "scaler", "epoch"]);
}
