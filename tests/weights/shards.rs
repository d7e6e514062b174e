//! Checkpoints in several files: which of a folder's files are read, and what is said of those that are not there.

use super::craft;
use qformer::weights::Set;
use std::path::{Path, PathBuf};

/// A safetensors file of these tensors, each four bytes of this value.
fn file(folder: &Path, name: &str, tensors: &[(&str, u8)]) {
    let entry = |(i, (name, _)): (usize, &(&str, u8))| {
        format!(r#""{name}":{{"dtype":"U8","shape":[4],"data_offsets":[{},{}]}}"#, 4 * i, 4 * i + 4)
    };
    let entries: Vec<String> = tensors.iter().enumerate().map(entry).collect();
    let mut bytes = craft::safetensors(&format!("{{{}}}", entries.join(",")), 0);
    bytes.extend(tensors.iter().flat_map(|(_, value)| [*value; 4]));
    std::fs::write(folder.join(name), bytes).unwrap();
}

fn index(folder: &Path, name: &str, places: &[(&str, &str)]) {
    let map: serde_json::Map<_, _> = places.iter().map(|(t, f)| (t.to_string(), (*f).into())).collect();
    let json = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    std::fs::write(folder.join(name), json.to_string()).unwrap();
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_path_buf();
    (dir, path)
}

/// The first byte of each tensor, by name.
fn read(path: &Path) -> Result<Vec<(String, u8)>, String> {
    let set = Set::open(path).map_err(|e| format!("{} {e}", e.exit_code()))?;
    let mut found: Vec<_> = set.tensors().map(|t| (t.name.clone(), set.bytes(&t.name).unwrap()[0])).collect();
    found.sort();
    Ok(found)
}

fn tensors(expected: &[(&str, u8)]) -> Vec<(String, u8)> {
    expected.iter().map(|(name, value)| (name.to_string(), *value)).collect()
}

const ONE: &str = "model-00001-of-00002.safetensors";
const TWO: &str = "model-00002-of-00002.safetensors";
const INDEX: &str = "model.safetensors.index.json";

#[test]
fn an_index_says_what_is_read_from_where() {
    let (_dir, folder) = folder();
    file(&folder, ONE, &[("a", 1), ("b", 9)]);
    file(&folder, TWO, &[("b", 2)]);
    file(&folder, "model-00003-of-00003.safetensors", &[("a", 8), ("c", 8)]);
    index(&folder, INDEX, &[("a", ONE), ("b", TWO)]);
    for path in [&folder, &folder.join(INDEX)] {
        assert_eq!(read(path).unwrap(), tensors(&[("a", 1), ("b", 2)]), "{}", path.display());
    }
    // Our image encoder's file lies beside.
    file(&folder, "vit.safetensors", &[("v", 3)]);
    assert_eq!(read(&folder).unwrap(), tensors(&[("a", 1), ("b", 2), ("v", 3)]));
    // As transformers has it, one file comes before an index.
    file(&folder, "model.safetensors", &[("s", 4)]);
    assert_eq!(read(&folder).unwrap(), tensors(&[("s", 4), ("v", 3)]));
}

#[test]
fn shards_may_be_called_anything_that_the_index_says() {
    let (_dir, folder) = folder();
    file(&folder, "left", &[("a", 1)]);
    file(&folder, "right of it.bin", &[("b", 2)]);
    index(&folder, "pytorch_model.bin.index.json", &[("a", "left"), ("b", "right of it.bin")]);
    assert_eq!(read(&folder).unwrap(), tensors(&[("a", 1), ("b", 2)]));
}

#[test]
fn a_missing_shard_is_named() {
    let (_dir, folder) = folder();
    file(&folder, ONE, &[("a", 1)]);
    // with an index, and without: its neighbour's name counts it
    for with_index in [false, true] {
        if with_index {
            index(&folder, INDEX, &[("a", ONE), ("b", TWO)]);
        }
        let message = read(&folder).unwrap_err();
        assert!(message.starts_with("3 ") && message.contains(TWO), "{message}");
    }
    file(&folder, TWO, &[("c", 1)]);
    let message = read(&folder).unwrap_err();
    assert!(message.starts_with("3 ") && message.contains("a tensor b"), "{message}");
}

#[test]
fn shards_without_an_index_are_those_of_one_checkpoint() {
    let (_dir, folder) = folder();
    file(&folder, ONE, &[("a", 1)]);
    file(&folder, TWO, &[("b", 2)]);
    file(&folder, "model-00003-of-00003.safetensors", &[("a", 8), ("c", 8)]);
    assert_eq!(read(&folder).unwrap(), tensors(&[("a", 1), ("b", 2)]));
    for (name, tensor) in
        [("model-00001-of-00003.safetensors", "d"), ("model-00002-of-00003.safetensors", "e")]
    {
        file(&folder, name, &[(tensor, 1)]);
    }
    let message = read(&folder).unwrap_err();
    assert!(message.contains("shards of 2 checkpoints") && message.contains("index.json"), "{message}");
    // Names that count nothing are no shards.
    let (_dir, folder) = self::folder();
    for name in ["model-00003-of-00002.safetensors", "model-1-of-2.safetensors", "x-00001-of-00001.txt"] {
        file(&folder, name, &[("a", 1)]);
    }
    assert!(read(&folder).unwrap_err().contains("neither"));
}

#[test]
fn an_index_leads_to_no_other_folder() {
    let (_dir, folder) = folder();
    file(&folder, ONE, &[("a", 1)]);
    for name in ["../x", "/dev/zero", "..", "", "a\\b", "a\u{0}b"] {
        index(&folder, INDEX, &[("a", name)]);
        let message = read(&folder).unwrap_err();
        assert!(message.starts_with("3 ") && message.contains("the file name"), "{name:?}: {message}");
    }
    for text in ["", "{}", "[]", "{\"weight_map\": {\"a\": 1}}", "{\"weight_map\": {}}"] {
        std::fs::write(folder.join(INDEX), text).unwrap();
        let message = read(&folder).unwrap_err();
        assert!(message.starts_with("3 ") && message.contains(INDEX), "{text}: {message}");
    }
    std::fs::remove_file(folder.join(INDEX)).unwrap();
    std::os::unix::fs::symlink("/dev/zero", folder.join(INDEX)).unwrap();
    let message = read(&folder).unwrap_err();
    assert!(message.contains("a device"), "{message}");
}
