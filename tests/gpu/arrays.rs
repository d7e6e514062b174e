//! Arrays on a device from safe code: sizes that no memory has, and several threads at one array.

use qformer::tensor::{Device, Gpu, Storage};

fn gpu(name: &str) -> Gpu {
    let Device::Gpu(gpu) = Device::open(name).unwrap() else { panic!("{name} is a CPU") };
    gpu
}

#[test]
fn more_elements_than_any_memory_has_are_refused() {
    for name in ["plan", "host"] {
        // 2^63 + 2 elements of 4 bytes would be 8 bytes if the sizes wrapped.
        for len in [usize::MAX / 2 + 3, usize::MAX, usize::MAX / 4, 1 << 59] {
            let message = gpu(name).array("test", Storage::F32, len).unwrap_err().to_string();
            assert!(message.contains("test"), "{name}, {len}: {message}");
        }
    }
    assert!(Device::open("plan:18446744073709551615").is_err(), "gigabytes that overflow");
}

/// Each write is whole to whoever reads, as the driver's stream has it: without order a reader sees parts of several.
#[test]
fn threads_that_share_an_array_take_turns() {
    const N: usize = 1 << 18;
    let array = gpu("host").zeros("test", Storage::F32, N).unwrap();
    std::thread::scope(|scope| {
        for thread in 1..4 {
            let array = array.clone();
            scope.spawn(move || {
                let bytes = bytemuck::cast_slice::<f32, u8>(&vec![thread as f32; N]).to_vec();
                for _ in 0..40 {
                    array.write(&bytes).unwrap();
                }
            });
        }
        for _ in 0..60 {
            let values = array.read::<f32>().unwrap();
            assert!(values.iter().all(|x| *x == values[0]), "parts of two writes");
        }
    });
}
