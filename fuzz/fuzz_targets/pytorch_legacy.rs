#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if data.starts_with(&[0x80, 2, 0x8a, 10]) {
        read_all(data);
    }
});

include!("read_all.rs");
