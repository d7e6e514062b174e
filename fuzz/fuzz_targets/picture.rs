#![no_main]

use libfuzzer_sys::fuzz_target;
use qformer::vision::{Turn, decode};

fuzz_target!(|data: &[u8]| {
    if let Ok(picture) = decode(data, "fuzz", Turn::AsStored) {
        assert_eq!(picture.rgb.len(), picture.width * picture.height * 3);
    }
});
