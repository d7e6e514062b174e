//! Host memory that a GPU copies from: used again, and not before the GPU is done with it; reads that are waited for once.

use super::device;
use qformer::tensor::{Array, Device, Flight, Slots, Storage};

#[test]
fn slots_are_used_again_when_they_have_landed() {
    let Device::Gpu(gpu) = device() else { panic!("a CPU") };
    let side = gpu.side().unwrap();
    let slots = Slots::new(Some(side.clone()), 8);
    let to = side.array("test", Storage::U8, 24).unwrap();
    let filled = |first: u8| {
        let mut slot = slots.take().unwrap();
        slot.bytes_mut().iter_mut().zip(first..).for_each(|(to, i)| *to = i);
        slot
    };
    let flight = Flight::start(vec![filled(0), filled(8), filled(16)], &to).unwrap();
    gpu.wait_for(side.mark().unwrap()).unwrap();
    assert_eq!(slots.free(), 0, "a slot was given back while it may be read");
    assert_eq!(to.on(&gpu).read::<u8>().unwrap(), (0..24).collect::<Vec<u8>>());
    flight.land().unwrap();
    assert_eq!(slots.free(), 3);
    // A flight that is dropped lands first.
    drop(Flight::start(vec![filled(1), filled(1), filled(1)], &to).unwrap());
    assert_eq!(slots.free(), 3);
    let short = Flight::start(vec![filled(0)], &to).err().unwrap().to_string();
    assert_eq!(short, "upload: bytes: expected 24, got 8");
    assert_eq!(slots.free(), 3);
}

#[test]
fn arrays_are_read_together_in_one_wait() {
    let Device::Gpu(gpu) = device() else { panic!("a CPU") };
    let numbers = gpu.upload("test", Storage::F32, &[1.5f32, -2.0]).unwrap();
    let half = numbers.cast("test", Storage::F16).unwrap();
    let whole = gpu.upload("test", Storage::I32, &[7i32, -1, 3]).unwrap();
    let none = gpu.array("test", Storage::F32, 0).unwrap();
    gpu.take_counts();
    let all = [numbers.clone(), none, half, whole.part(1..3).unwrap()];
    let read = Array::read_together(&all).unwrap();
    assert_eq!(read, [vec![1.5, -2.0], vec![], vec![1.5, -2.0], vec![-1.0, 3.0]]);
    let counts = gpu.take_counts();
    assert_eq!((counts.waits, counts.downloaded), (1, 8 + 4 + 8));
    assert!(Array::read_together(&[]).unwrap().is_empty());
    let other = numbers.on(&gpu.side().unwrap());
    let apart = Array::read_together(&[numbers, other]).err().unwrap().to_string();
    assert!(apart.starts_with("download: arrays: expected those of one stream"), "{apart}");
}
