//! `parity` on every recorded case at hand, and proof that it can fail: each recorded tensor, changed alone, is found.

use qformer::parity::{self, Report};
use qformer::tensor::DType;
use safetensors::tensor::{Metadata, TensorView};
use safetensors::{Dtype, SafeTensors};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

#[path = "parity/rounded.rs"]
mod rounded;

/// The small cases that live in this repository.
fn own(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/lavis/{kind}-small.safetensors"))
}

/// Cases of other sizes beside the repository, of real head sizes and with pictures; not everyone has them.
#[test]
fn cases_beside_the_repository() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/parity");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        println!("SKIPPED: no recorded cases at {}", folder.display());
        return;
    };
    let files =
        entries.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "safetensors"));
    let mut kinds = Vec::new();
    for file in files {
        for dtype in [DType::F32, DType::F64] {
            let report = parity::run(&file, &parity::Place::cpu(dtype)).unwrap();
            assert!(report.pass, "{dtype}\n{report}");
            kinds.push(report.kind);
        }
    }
    kinds.sort();
    kinds.dedup();
    let all = ["features", "generate", "images", "retrieval", "stage1", "stage1_ids", "train", "vit"];
    assert_eq!(kinds, all);
}

/// A case in memory, to change and to run.
#[derive(Clone)]
struct Recorded {
    metadata: Option<HashMap<String, String>>,
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Recorded {
    fn read(path: &Path) -> Recorded {
        let bytes = std::fs::read(path).unwrap();
        let (_, header): (usize, Metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file
            .tensors()
            .into_iter()
            .map(|(name, t)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec())));
        Recorded { metadata: header.metadata().clone(), tensors: tensors.collect() }
    }

    fn run(&self) -> qformer::Result<Report> {
        self.run_at(&parity::Place::cpu(DType::F32), None)
    }

    /// Somewhere, with a record of LAVIS's errors under autocast beside it, or without.
    fn run_at(&self, place: &parity::Place, beside: Option<&Path>) -> qformer::Result<Report> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("case.safetensors");
        let views =
            self.tensors.iter().map(|(n, (d, s, b))| (n.clone(), TensorView::new(*d, s.clone(), b).unwrap()));
        safetensors::serialize_to_file(views.collect::<Vec<_>>(), self.metadata.clone(), &path).unwrap();
        if let Some(beside) = beside {
            std::fs::copy(beside, folder.path().join("case.autocast.json")).unwrap();
        }
        parity::run(&path, place)
    }

    /// Multiplies all numbers of an f32 tensor.
    fn multiply(&mut self, name: &str, by: f32) {
        let (dtype, _, bytes) = self.tensors.get_mut(name).unwrap();
        assert_eq!(*dtype, Dtype::F32);
        for b in bytes.chunks_exact_mut(4) {
            let value = by * f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            b.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Moves the largest number of a tensor by a part of the tensor's length; ids by one.
    fn move_largest(&mut self, name: &str, part: f64) {
        // Rows of padding are not compared; the first row is never one.
        let padded = ["text_hidden", "itm_hidden", "lm_hidden", "lm_logits", "teacher_forced_logits"];
        let first = padded.iter().any(|p| name.ends_with(p));
        let (dtype, _, bytes) = self.tensors.get_mut(name).unwrap();
        let bytes = if first { &mut bytes[..8] } else { &mut bytes[..] };
        let part = if first { 1.0 } else { part };
        match dtype {
            Dtype::F32 => {
                change::<f32, 4>(bytes, part, f32::from_le_bytes, f64::from, |x| (x as f32).to_le_bytes())
            }
            Dtype::F64 => change::<f64, 8>(bytes, part, f64::from_le_bytes, |x| x, f64::to_le_bytes),
            Dtype::I64 => {
                let first = i64::from_le_bytes(bytes[..8].try_into().unwrap());
                let first = if first > 0 { first - 1 } else { 1 };
                bytes[..8].copy_from_slice(&first.to_le_bytes());
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

fn change<T: Copy, const N: usize>(
    bytes: &mut [u8],
    part: f64,
    read: fn([u8; N]) -> T,
    double: fn(T) -> f64,
    write: fn(f64) -> [u8; N],
) {
    let all: Vec<f64> = bytes.chunks_exact(N).map(|b| double(read(b.try_into().unwrap()))).collect();
    let length = all.iter().map(|x| x * x).sum::<f64>().sqrt();
    let at = (0..all.len()).fold(0, |m, i| if all[i].abs() > all[m].abs() { i } else { m });
    bytes[at * N..(at + 1) * N].copy_from_slice(&write(all[at] + part * length.max(1e-3)));
}

fn is_output(name: &str) -> bool {
    ["outputs.", "grads.", "after."].iter().any(|p| name.starts_with(p))
}

/// Changes every `nth` recorded result, one at a time, by `part` of its length: the report fails and names it.
fn finds_each(kind: &str, nth: usize, part: f64) {
    let case = Recorded::read(&own(kind));
    let whole = case.run().unwrap();
    assert!(whole.pass, "{whole}");
    let names: Vec<&String> = case
        .tensors
        .keys()
        .filter(|n| is_output(n) && !whole.skipped.iter().any(|s| &s.name == *n))
        .collect();
    assert!(names.len() / nth >= 2);
    for name in names.into_iter().step_by(nth) {
        let mut changed = case.clone();
        // The true gradient of a key bias is 0: what is recorded has a bound that is absolute.
        let part = if name.ends_with("attention.self.key.bias") { 1e3 } else { part };
        changed.move_largest(name, part);
        let report = changed.run().unwrap();
        let found = report.first_divergence.clone().unwrap_or_default();
        assert!(
            !report.pass && found.starts_with(name.as_str()),
            "{name} was changed, {found:?} found\n{report}"
        );
    }
}

#[test]
fn a_changed_result_is_found_and_named() {
    finds_each("vit", 1, 1e-3);
    finds_each("stage1", 3, 1e-3);
    finds_each("stage1_ids", 3, 1e-3);
    finds_each("features", 1, 1e-3);
    finds_each("retrieval", 1, 1e-3);
    finds_each("train", 13, 1e-2);
}

#[test]
fn other_ids_are_found() {
    let mut case = Recorded::read(&own("generate"));
    case.move_largest("outputs.ids.0", 0.0);
    let report = case.run().unwrap();
    assert!(!report.pass, "{report}");
}

#[test]
fn nothing_recorded_is_passed_over() {
    let case = Recorded::read(&own("stage1"));
    let mut more = case.clone();
    more.tensors.insert("outputs.unheard_of".into(), case.tensors["outputs.loss"].clone());
    let report = more.run().unwrap();
    assert!(!report.pass && report.missed == ["outputs.unheard_of"], "{report}");
    assert!(report.to_string().ends_with("DIFFERS: 1 recorded tensors were not compared"), "{report}");

    let mut less = case.clone();
    less.tensors.remove("outputs.loss_itm");
    let error = less.run().unwrap_err().to_string();
    assert!(error.ends_with("expected a tensor outputs.loss_itm, got none"), "{error}");

    let mut nan = case.clone();
    let (_, _, bytes) = nan.tensors.get_mut("outputs.itm_logits").unwrap();
    bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let report = nan.run().unwrap();
    assert_eq!(report.first_divergence.as_deref(), Some("outputs.itm_logits"), "{report}");

    let mut weights = case.clone();
    weights.tensors.remove("weights.text_proj.bias");
    assert!(
        weights.run().unwrap_err().to_string().contains("expected a tensor weights.text_proj.bias, got none")
    );
    let mut weights = case;
    let extra = weights.tensors["weights.text_proj.bias"].clone();
    weights.tensors.insert("weights.text_proj.gamma".into(), extra);
    let error = weights.run().unwrap_err().to_string();
    assert!(
        error.ends_with("expected weights of the case's configuration, got weights.text_proj.gamma"),
        "{error}"
    );
}

#[test]
fn files_that_are_no_case() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let said = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        parity::run(&path, &parity::Place::cpu(DType::F32))
            .err()
            .map_or_else(|| "no error".into(), |e| e.to_string())
    };
    let text = said(b"hello, this is text");
    assert!(text.contains("neither safetensors nor a PyTorch file"), "{text}");
    let whole = std::fs::read(own("vit")).unwrap();
    let torn = said(&whole[..whole.len() - 3]);
    assert!(torn.contains("x.safetensors") && torn.contains("ends at"), "{torn}");
    let kind = |kind: &str| {
        let mut case = Recorded::read(&own("vit"));
        case.metadata.as_mut().unwrap().insert("kind".into(), kind.into());
        case.run().err().map_or_else(|| "no error".into(), |e| e.to_string())
    };
    assert!(kind("\"vid\"").contains("expected a case of kind vit, stage1,"), "{}", kind("\"vid\""));
    let missing =
        parity::run(&folder.path().join("none"), &parity::Place::cpu(DType::F32)).err().unwrap().to_string();
    assert!(missing.ends_with("; check the path"), "{missing}");
}

/// A file that is no case is named, and the others are compared all the same.
#[test]
fn a_file_that_cannot_be_read_does_not_end_it() {
    let folder = tempfile::tempdir().unwrap();
    let torn = folder.path().join("torn.safetensors");
    std::fs::write(&torn, &std::fs::read(own("vit")).unwrap()[..1000]).unwrap();
    let run = |files: &[&Path]| {
        let qformer = std::process::Command::new(env!("CARGO_BIN_EXE_qformer"))
            .args(["parity", "--quiet"])
            .args(files)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (qformer.status.code(), text(qformer.stdout), text(qformer.stderr))
    };
    let (code, out, err) = run(&[&torn, &own("vit")]);
    assert_eq!(code, Some(3), "{err}");
    assert!(out.contains("vit-small.safetensors: ok"), "{out}");
    assert!(err.contains("not compared: ") && err.contains("torn.safetensors"), "{err}");
    assert!(err.contains("1 of 2 that cannot be read, listed above; the others agree"), "{err}");
    let (code, _, err) = run(&[&torn]);
    assert!(code == Some(3) && err.starts_with("qformer: ") && err.contains("torn.safetensors"), "{err}");
}
