#![no_main]

use libfuzzer_sys::fuzz_target;
use qformer::vision::{Photo, Resampling, Turn};

// The whole picture, and resized while it is decoded: both work or neither does, and they show the same.
fuzz_target!(|data: &[u8]| {
    let Ok(photo) = Photo::new(data, "fuzz", Turn::Upright) else { return };
    let (width, height) = photo.size();
    if width * height > 1 << 20 {
        return;
    }
    let small = photo.resized(&photo.whole(), 7, 5, Resampling::Exact);
    match photo.picture() {
        Ok(picture) => {
            assert_eq!(picture.rgb.len(), width * height * 3);
            let again = qformer::vision::resize(&picture, 7, 5).ok();
            assert_eq!(small.ok(), again);
        }
        Err(_) => assert!(small.is_err()),
    }
});
