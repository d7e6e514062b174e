//! Where the kernels of these tests run, as QFORMER_TEST_DEVICE says: nothing or `host` is the emulator, each launch under
//! every schedule, with the checker if it is built in. Anything else goes through `device::gpu`, as the crate's own launches
//! do: `cuda` (or `cuda:1`, ..) to a GPU; `gpu:host` to the emulator again, which shows on any machine that this way works.
//!
//! A device tells nobody of a write past the end or a read of what nobody wrote. So its memory is filled with NaN (0xff) as
//! the emulator's is, and has more of it behind, which must still be there when a result is read.

use qformer::device::emulator::{self, Schedule};
use qformer::device::gpu::{Array, Gpu, Storage};
use qformer::device::launch::{Arg, Launch};
use std::ffi::c_void;
use std::io::Write;
use std::sync::{Once, OnceLock};

/// The device that was asked for; none for the emulator under its schedules.
fn device() -> Option<String> {
    std::env::var("QFORMER_TEST_DEVICE").ok().filter(|name| !["", "host"].contains(&name.as_str()))
}
/// That device, or the emulator as one; a handle of its own, which counts for itself.
pub fn open() -> Gpu {
    let name = device().unwrap_or_else(|| "host".into());
    Gpu::open(name.strip_prefix("gpu:").unwrap_or(&name)).unwrap_or_else(|e| panic!("{e}"))
}
/// The device of these tests; none for the emulator.
fn gpu() -> Option<&'static Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| device().map(|_| open())).as_ref()
}

/// Past what collects a test's output.
fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "\n{what}");
}
/// Whether this is no test for a device, which is then said aloud.
pub fn needs_emulator(why: &str) -> bool {
    let Some(name) = device() else { return false };
    say(&format!("SKIPPED on {name}: {why}"));
    true
}
/// Whether there are products of warp groups; said aloud if not.
pub fn has_warp_groups() -> bool {
    static SAID: Once = Once::new();
    let Some(gpu) = gpu().filter(|gpu| !gpu.has_warp_groups()) else { return true };
    SAID.call_once(|| {
        let name = gpu.name();
        say(&format!("NOT TESTED: attention_whole, as {name} has no warp groups; its cases go tile by tile"));
    });
    false
}

/// Memory for kernels, wherever they run.
pub enum Memory {
    Host(emulator::Memory),
    Gpu(Array),
}

/// Bytes of NaN behind the memory on a device.
const BEHIND: usize = 1024;

impl Memory {
    /// As many bytes, filled with NaN.
    fn new(bytes: usize) -> qformer::Result<Memory> {
        match gpu() {
            None => emulator::Memory::new(bytes).map(Memory::Host),
            Some(gpu) => Memory::on(gpu, vec![0xff; bytes]),
        }
    }
    fn from_slice<T: bytemuck::Pod>(values: &[T]) -> qformer::Result<Memory> {
        match gpu() {
            None => emulator::Memory::from_slice(values).map(Memory::Host),
            Some(gpu) => Memory::on(gpu, bytemuck::cast_slice(values).to_vec()),
        }
    }
    fn on(gpu: &Gpu, mut bytes: Vec<u8>) -> qformer::Result<Memory> {
        bytes.resize(bytes.len() + BEHIND, 0xff);
        gpu.upload("kernel test", Storage::U8, &bytes).map(Memory::Gpu)
    }

    /// All of it. With the checker it is an error if some byte was never written.
    pub fn to_vec<T: bytemuck::Pod>(&self) -> qformer::Result<Vec<T>> {
        match self {
            Memory::Host(memory) => memory.to_vec(),
            Memory::Gpu(array) => {
                let bytes = array.len() - BEHIND;
                let behind: Vec<u8> = array.part(bytes..array.len())?.read()?;
                assert!(behind.iter().all(|b| *b == 0xff), "a write past the end of {bytes} bytes");
                array.part(0..bytes)?.read()
            }
        }
    }

    pub fn address(&self) -> *mut c_void {
        match self {
            Memory::Gpu(array) => array.pointer(),
            Memory::Host(memory) => match Arg::from(memory) {
                Arg::Pointer(p) => p,
                other => panic!("{other:?}"),
            },
        }
    }
    /// An argument that points `elements` into it.
    pub fn at<T>(&self, elements: usize) -> Arg {
        Arg::Pointer(self.address().wrapping_byte_add(elements * size_of::<T>()))
    }
}

impl From<&Memory> for Arg {
    fn from(memory: &Memory) -> Arg {
        memory.at::<u8>(0)
    }
}

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

/// The dynamic shared memory that a kernel declares.
pub fn shared_of(kernel: &str) -> u32 {
    emulator::signatures().iter().find(|s| s.name == kernel).expect("a kernel").shared
}

pub fn launch_of(kernel: &str, grid: [u32; 3], block: [u32; 3]) -> Launch<'_> {
    Launch { kernel, grid, block, shared: 0 }
}

/// One launch to its end: in the emulator under that schedule, on a device under its own.
pub fn try_run(launch: &Launch, args: &[Arg], schedule: Schedule) -> qformer::Result<()> {
    let Some(gpu) = gpu() else {
        // SAFETY: the tests pass buffers of the sizes that the kernel's header asks for; what is wrong on purpose in
        // `planted` is so in ways that the emulator takes: guard pages, canaries, the checker.
        return unsafe { emulator::launch(launch, args, schedule) };
    };
    // A GPU asks no kernel what it declares; the host's are the same.
    if let Some(signature) = emulator::signatures().iter().find(|s| s.name == launch.kernel) {
        launch.check(signature, args)?;
    }
    let ([x, y, 1], [bx, by, 1]) = (launch.grid, launch.block) else {
        panic!("three dimensions: {launch:?}")
    };
    // SAFETY: as above.
    unsafe { gpu.launch(launch.kernel, (x as usize, y as usize), (bx, by), launch.shared, args) }?;
    gpu.synchronize()
}
/// The same, which must not fail.
pub fn run(launch: &Launch, args: &[Arg], schedule: Schedule) {
    try_run(launch, args, schedule).unwrap_or_else(|e| panic!("{schedule:?}: {e}"));
}
/// The same with a one-dimensional grid and block.
pub fn run1(kernel: &str, grid: usize, block: usize, args: &[Arg], schedule: Schedule) {
    run(&launch_of(kernel, [grid as u32, 1, 1], [block as u32, 1, 1]), args, schedule);
}

pub fn long() -> bool {
    std::env::var_os("KERNELS_LONG").is_some_and(|v| v != "0")
}

/// Runs `once` under every schedule, on a device three times; all must give the same. Returns what the first gives.
pub fn everywhere<R: PartialEq>(once: impl Fn(Schedule) -> R) -> R {
    let schedules = if gpu().is_some() {
        vec![Schedule::default(); 3]
    } else {
        // the checker needs one schedule to find a race, and costs several times as much
        Schedule::several(match (long(), emulator::is_checked()) {
            (true, _) => 98,
            (false, true) => 1,
            (false, false) => 6,
        })
    };
    let mut schedules = schedules.into_iter();
    let first = once(schedules.next().expect("schedules"));
    #[allow(clippy::eq_op)]
    let whole = first == first;
    assert!(whole, "a NaN among the results: computed, or left where nobody wrote");
    for schedule in schedules {
        assert!(
            once(schedule) == first,
            "another result under {schedule:?}: the kernel is not deterministic"
        );
    }
    first
}
