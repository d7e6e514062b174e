//! Memory and launches of the emulator, for tests of the emulator itself. Production's launches are tested in `tests/ops.rs`.

pub use qformer::device::emulator::Memory;
use qformer::device::emulator::{self, Schedule};
use qformer::device::launch::{Arg, Launch};

/// Uploads a slice.
pub fn on_device<T: bytemuck::Pod>(values: &[T]) -> Memory {
    Memory::from_slice(values).expect("memory")
}

/// Fresh memory for n elements of type T.
pub fn fresh<T>(n: usize) -> Memory {
    Memory::new(n * size_of::<T>()).expect("memory")
}

/// What a kernel wrote, all of it.
pub fn read<T: bytemuck::Pod>(memory: &Memory) -> Vec<T> {
    memory.to_vec().expect("written memory")
}

pub fn launch_of(kernel: &str, grid: [u32; 3], block: [u32; 3]) -> Launch<'_> {
    Launch { kernel, grid, block, shared: 0 }
}

/// One launch to its end, under that schedule.
pub fn try_run(launch: &Launch, args: &[Arg], schedule: Schedule) -> qformer::Result<()> {
    // SAFETY: the tests pass buffers of the sizes that the kernel's header asks for; what is wrong on purpose is so in ways
    // that the emulator takes: guard pages, canaries, the checker.
    unsafe { emulator::launch(launch, args, schedule) }
}

/// The launch must not fail.
pub fn run(launch: &Launch, args: &[Arg], schedule: Schedule) {
    try_run(launch, args, schedule).unwrap_or_else(|e| panic!("{schedule:?}: {e}"));
}
