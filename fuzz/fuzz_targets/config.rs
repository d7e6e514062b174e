#![no_main]

use libfuzzer_sys::fuzz_target;
use qformer::train::config::Config;

fuzz_target!(|data: &[u8]| {
    let Ok(folder) = tempfile::tempdir() else { return };
    let path = folder.path().join("train.yaml");
    if std::fs::write(&path, data).is_ok() {
        let _ = Config::read(Some(&path), &[]);
    }
});
