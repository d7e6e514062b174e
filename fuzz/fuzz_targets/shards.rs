#![no_main]

use libfuzzer_sys::fuzz_target;
use qformer::data::{Dataset, inside};

// A tar shard, or parquet where the file begins as one does: captions with their pictures, and pictures alone.
fuzz_target!(|data: &[u8]| {
    let Ok(folder) = tempfile::tempdir() else { return };
    let name = if data.starts_with(b"PAR1") { "a.parquet" } else { "a.tar" };
    let path = folder.path().join(name);
    if std::fs::write(&path, data).is_err() {
        return;
    }
    if let Ok(set) = Dataset::read(&path, &path, 1.0) {
        for sample in &set.samples {
            if let Ok(bytes) = sample.image().read(1 << 20) {
                assert!(bytes.len() <= 1 << 20);
            }
        }
    }
    let _ = inside(&path);
});
