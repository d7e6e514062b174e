#![no_main]

use libfuzzer_sys::fuzz_target;
use qformer::text::segment;

/// An honest dictionary, of which the input replaces one file.
const FILES: [(&str, &[u8]); 4] = [
    ("sys.dic", include_bytes!("../../tests/text/tiny/sys.dic")),
    ("matrix.bin", include_bytes!("../../tests/text/tiny/matrix.bin")),
    ("unk.dic", include_bytes!("../../tests/text/tiny/unk.dic")),
    ("char.bin", include_bytes!("../../tests/text/tiny/char.bin")),
];

fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = data.split_first() else { return };
    let Ok(folder) = tempfile::tempdir() else { return };
    for (i, (name, honest)) in FILES.iter().enumerate() {
        let bytes = if usize::from(*which) % FILES.len() == i { data } else { honest };
        if std::fs::write(folder.path().join(name), bytes).is_err() {
            return;
        }
    }
    let _ = segment::convert(folder.path());
});
