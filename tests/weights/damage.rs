//! Damage: every file cut at every byte, every byte flipped. An error, or the tensors of before - never a panic. Where a
//! format has no checksum (safetensors, PyTorch before 1.6) a flipped byte can give other numbers, names or strides, but
//! no more bytes than the file may stand for.

use super::craft::{self, dict, good, legacy};
use super::shared;
use qformer::weights::{Dtype, Info, Weights, write};
use std::collections::BTreeMap;
use std::sync::Arc;

type Content = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Everything in a file; None if it is refused, when it is opened or when it is read.
fn content(bytes: Vec<u8>) -> Option<Content> {
    let file = Weights::from_bytes("damaged", bytes).ok()?;
    let read = |t: &Info| Some((t.name.clone(), (t.dtype, t.shape.clone(), file.bytes(&t.name).ok()?)));
    file.tensors().iter().map(read).collect()
}

fn small_files() -> Vec<(String, Vec<u8>)> {
    let mut files = vec![
        ("crafted.pth".to_string(), craft::archive(&dict(&[("w", good()), ("v", good())]))),
        ("crafted_legacy.pth".to_string(), legacy().bytes()),
        ("written.safetensors".to_string(), written()),
    ];
    if let Some(dir) = shared::file("weights") {
        for name in ["odd.pth", "odd_legacy.pth", "odd.expected.safetensors"] {
            files.push((name.to_string(), std::fs::read(dir.join(name)).unwrap()));
        }
    }
    files
}

fn written() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let info = |name: &str, dtype, shape: &[usize]| Info { name: name.into(), dtype, shape: shape.to_vec() };
    let tensors = [info("b", Dtype::F16, &[3]), info("a", Dtype::F32, &[2, 2]), info("e", Dtype::I64, &[0])];
    let metadata = BTreeMap::from([("kind".to_string(), "test".to_string())]);
    write::write(&qformer::files::RealDisk, &path, &tensors, &metadata, |info, w| {
        let bytes: Vec<u8> = (0..info.bytes() as u8).collect();
        w.write_all(&bytes).map_err(|e| qformer::Error::io("test", "w", &e))
    })
    .unwrap();
    std::fs::read(path).unwrap()
}

/// Runs `f(i)` for i in 0..n on all cores.
fn each(n: usize, f: impl Fn(usize) + Sync) {
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get());
    std::thread::scope(|s| {
        for t in 0..threads {
            let f = &f;
            s.spawn(move || (t..n).step_by(threads).for_each(f));
        }
    });
}

#[test]
fn every_cut_is_refused() {
    for (name, bytes) in small_files() {
        assert!(content(bytes.clone()).is_some(), "{name}");
        each(bytes.len(), |n| assert!(content(bytes[..n].to_vec()).is_none(), "{name} cut at {n}"));
    }
}

/// Bytes of tensors that differ; None if names, dtypes or shapes do.
fn differences(a: &Content, b: &Content) -> Option<usize> {
    let same =
        a.len() == b.len() && a.iter().zip(b).all(|((n, x), (m, y))| n == m && x.0 == y.0 && x.1 == y.1);
    let count = |x: &[u8], y: &[u8]| x.iter().zip(y).filter(|(a, b)| a != b).count();
    same.then(|| a.values().zip(b.values()).map(|(x, y)| count(&x.2, &y.2)).sum())
}

#[test]
fn every_flipped_byte_is_refused_or_harmless() {
    for (name, bytes) in small_files() {
        let good = content(bytes.clone()).unwrap();
        let checksums = bytes.starts_with(b"PK");
        each(bytes.len() * 3, |i| {
            let (at, flip) = (i / 3, [0x01, 0x80, 0xff][i % 3]);
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            let Some(found) = content(damaged) else { return };
            match differences(&good, &found) {
                Some(0) => {}
                _ if checksums => panic!("{name}: byte {at} flipped by {flip:#x} gives other tensors"),
                _ => {
                    let total: usize = found.values().map(|t| t.2.len()).sum();
                    assert!(total <= 2 * bytes.len(), "{name}: byte {at} gives {total} bytes");
                }
            }
        });
    }
}

/// Large files: all bytes of what describes the tensors near both ends, and every 997th between.
#[test]
fn large_files_with_flipped_bytes_are_refused_or_harmless() {
    let Some(dir) = shared::file("weights") else { return };
    for name in ["eva_vit_tiny.pth", "lavis_checkpoint.pth"] {
        let bytes: Arc<[u8]> = std::fs::read(dir.join(name)).unwrap().into();
        let good = content(bytes.to_vec()).unwrap();
        let places: Vec<usize> =
            (0..bytes.len()).filter(|i| i % 997 == 0 || *i < 64 || *i + 128 > bytes.len()).collect();
        each(places.len(), |i| {
            let mut damaged = bytes.to_vec();
            damaged[places[i]] ^= 0x10;
            if let Some(found) = content(damaged) {
                assert_eq!(differences(&good, &found), Some(0), "{name}: byte {}", places[i]);
            }
        });
    }
}
