//! What the fuzzers start from: honest small files, all of which are read.

use super::craft;
use qformer::weights::Weights;

#[test]
fn the_fuzzers_begin_with_files_that_are_read() {
    for target in ["pytorch_zip", "pytorch_pickle", "pytorch_legacy", "safetensors"] {
        let folder = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let mut count = 0;
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            if target == "pytorch_pickle" {
                bytes = craft::zip(b"", &craft::entries(&bytes));
            }
            let file = Weights::from_bytes(path.to_str().unwrap(), bytes).unwrap();
            for t in file.tensors() {
                assert_eq!(file.bytes(&t.name).unwrap().len(), t.bytes(), "{}", path.display());
            }
            count += file.tensors().len();
        }
        assert!(count >= 2, "{folder}");
    }
}

#[test]
fn the_fuzzer_of_configurations_begins_with_honest_ones() {
    let folder = format!("{}/fuzz/corpus/config", env!("CARGO_MANIFEST_DIR"));
    let read =
        |name: &str| qformer::train::config::Config::read(Some(format!("{folder}/{name}").as_ref()), &[]);
    let [lavis, ours, sets] = ["lavis.yaml", "ours.yaml", "sets.yaml"].map(|name| read(name).unwrap());
    assert_eq!((lavis.data.len(), lavis.accumulate), (2, 2));
    assert_eq!((ours.steps, ours.batch), (Some(100), 8));
    assert_eq!((sets.data.len(), sets.sizes["layers"]), (2, 1));
}
