//! Reading: every honest file gives PyTorch's tensors, bit for bit.

use super::{craft, shared};
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
        match file.halves(&info.name) {
            Ok(bits) => assert_eq!(bytemuck::cast_slice::<u16, u8>(&bits), want.bytes, "{}", want.name),
            Err(_) => assert_ne!(want.dtype, "F16", "{}", want.name),
        }
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
    }
}

#[test]
fn a_checkpoint_tells_what_else_is_in_it() {
    let Some(dir) = shared::file("weights") else { return };
    let file = Weights::open(&dir.join("lavis_checkpoint.pth")).unwrap();
    assert_eq!(file.others(), ["optimizer", "config", "scaler", "epoch"]);
}

/// Numbers of kinds that are not read here: their tensors are named, the others are read.
#[test]
fn tensors_of_other_kinds_do_not_close_a_file() {
    let entry = |name: &str, dtype: &str, shape: &str, from: usize, to: usize| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let entries = [
        entry("f4", "F4", "[3]", 0, 2),
        entry("f8", "F8_E4M3", "[2,2]", 2, 6),
        entry("c64", "C64", "[1]", 6, 14),
        entry("w", "U8", "[4]", 14, 18),
    ];
    let file =
        Weights::from_bytes("x", craft::safetensors(&format!("{{{}}}", entries.join(",")), 18)).unwrap();
    assert_eq!(file.bytes("w").unwrap(), [7; 4]);
    assert_eq!(file.others(), ["f4 (a tensor of F4)", "f8 (a tensor of F8_E4M3)", "c64 (a tensor of C64)"]);
}
