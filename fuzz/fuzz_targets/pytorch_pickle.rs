#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../tests/weights/craft.rs"]
mod craft;

fuzz_target!(|data: &[u8]| read_all(&craft::zip(b"", &craft::entries(data))));

include!("read_all.rs");
