#![no_main]

use libfuzzer_sys::fuzz_target;
use qformer::data::Dataset;

fuzz_target!(|data: &[u8]| {
    let Ok(folder) = tempfile::tempdir() else { return };
    let path = folder.path().join("captions.json");
    if std::fs::write(&path, data).is_ok() {
        let _ = Dataset::read(&path, folder.path(), 1.0);
    }
});
