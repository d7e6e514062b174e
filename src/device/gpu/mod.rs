//! A GPU: kernels by name, matmuls, copies, and memory from a pool. Behind it stands a driver: `cuda`, a real one,
//! `host`, which runs the same kernels on the CPU (feature `host-kernels`), slowly and checked, or `plan`, which only counts.
//!
//! Everything runs in one order (a CUDA stream), so memory that is given back may be handed out again at once: what uses
//! it next comes later in that order. Launches, bytes and the peak of memory are counted ([`Counts`]).

mod array;
mod counts;
mod driver;
#[cfg(feature = "host-kernels")]
mod fault;
#[cfg(feature = "host-kernels")]
pub(super) mod host;
mod matmul;
pub(super) mod plan;
mod pool;
mod slots;

pub use super::storage::Storage;
pub use array::Array;
pub use counts::{Counts, Launches};
pub use driver::{Driver, Kernels, Memory, kernel_headers};
pub use matmul::{Matmul, Operand};
pub use pool::Holder;
pub use slots::{Flight, Mark, Slot, Slots};

use super::cards::Card;
use super::launch::{Arg, Launch};
use crate::{Error, Kind, Result};
use counts::Tally;
use pool::{Pool, Usage};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Arguments of a launch: `args![&x, n as u64, 1f32]`. An `Option` of an array is null if it is none.
#[macro_export]
macro_rules! args {
    ($($arg:expr),* $(,)?) => {
        &[$($crate::device::launch::Arg::from($arg)),*] as &[$crate::device::launch::Arg]
    };
}

struct Inner {
    driver: Box<dyn Driver>,
    pool: Mutex<Pool>,
    /// Of all queues of a device.
    counts: Arc<Mutex<Tally>>,
    usage: Arc<Mutex<Usage>>,
    /// What [`Gpu::counters`] hands out, once somebody asked for it.
    counters: Mutex<Option<Counters>>,
    /// What was launched, with the stamps around it, while [`Gpu::profile`] runs.
    stamps: Mutex<Option<Vec<(String, u64, u64)>>>,
}

/// Where they lie on the device.
struct Counters(*mut c_void);

// SAFETY: an address on the device, which any thread may pass to a launch.
unsafe impl Send for Counters {}

/// No array is larger.
const MOST_BYTES: usize = 1 << 60;

/// How many counters there are.
const COUNTERS: usize = 1 << 14;

/// A handle; clones are the same GPU.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.name())
    }
}

pub(super) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// A GPU behind a driver.
    pub fn of(driver: Box<dyn Driver>) -> Gpu {
        Gpu::with(driver, Arc::default(), Arc::default())
    }

    fn with(driver: Box<dyn Driver>, counts: Arc<Mutex<Tally>>, usage: Arc<Mutex<Usage>>) -> Gpu {
        let pool = Mutex::new(Pool::new(driver.granule(), usage.clone()));
        Gpu(Arc::new(Inner {
            driver,
            pool,
            counts,
            usage,
            counters: Mutex::default(),
            stamps: Mutex::default(),
        }))
    }

    /// What it is called by its maker.
    pub fn name(&self) -> String {
        self.0.driver.name()
    }

    /// Whether it is no GPU, but the CPU.
    pub fn is_emulated(&self) -> bool {
        self.0.driver.is_emulated()
    }

    /// Its memory, if it has one of its own.
    pub fn memory(&self) -> Option<Memory> {
        self.0.driver.memory()
    }

    /// Name, PCI bus id and free memory in a line, for a real GPU.
    pub fn greeting(&self) -> Option<String> {
        let (bus_id, memory) = (self.0.driver.bus_id()?, self.memory()?);
        let gb = |bytes: u64| bytes as f64 / 1e9;
        let (name, free, total) = (self.name(), gb(memory.free), gb(memory.total));
        let shared = if memory.shared { ", shared with the system" } else { "" };
        Some(format!("{name} ({bus_id}), {free:.1} GB free of {total:.1} GB{shared}"))
    }

    /// What the last bits of its numbers depend on: its name, the driver, the libraries.
    pub fn identity(&self) -> String {
        let name = self.name();
        self.0.driver.versions().map_or_else(|| name.clone(), |versions| format!("{name}, {versions}"))
    }

    /// Its figures by the maker's data sheet, if they are known.
    pub fn card(&self) -> Option<&'static Card> {
        self.0.driver.card()
    }

    /// Whether there are results: a plan computes nothing.
    pub fn computes(&self) -> bool {
        self.0.driver.computes()
    }

    /// Whether it has the matmuls of warp groups; kernels made for them run without, but are not the fastest there.
    pub fn has_warp_groups(&self) -> bool {
        self.0.driver.has_warp_groups()
    }

    /// Blocks that run well side by side: a few for every multiprocessor.
    pub fn blocks(&self) -> usize {
        self.0.driver.blocks()
    }

    /// Whether two handles are one GPU and one stream.
    pub fn same(&self, other: &Gpu) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Counts so far; they begin again.
    pub fn take_counts(&self) -> Counts {
        let live = lock(&self.0.pool).restart_peak();
        let Tally { counts, matmuls } = std::mem::take(&mut *lock(&self.0.counts));
        let matmuls = matmuls.into_iter().map(|(kind, l)| (kind.name(), l)).collect();
        Counts { peak: live, matmuls, ..counts }
    }

    /// Who holds how much, most first: by the operation that asked for it.
    pub fn holders(&self) -> Vec<Holder> {
        lock(&self.0.pool).holders()
    }

    fn count(&self, add: impl FnOnce(&mut Counts)) {
        add(&mut lock(&self.0.counts).counts);
    }

    /// Memory for `len` elements, asked for by operation `op`; nothing is written there.
    pub fn array(&self, op: &'static str, storage: Storage, len: usize) -> Result<Array> {
        // No memory has more, and sums of what is counted stay below 2^64.
        let bytes = len.checked_mul(storage.bytes()).filter(|n| *n <= MOST_BYTES);
        let bytes = bytes.ok_or_else(|| {
            let most = format!("at most {MOST_BYTES} bytes");
            Error::argument(op, "elements", most, format!("{len} of {}", storage.name()))
        })?;
        let block = self.block(op, bytes)?;
        Ok(Array::new(self.clone(), block, storage, len))
    }

    fn block(&self, op: &'static str, bytes: usize) -> Result<pool::Block> {
        let mut pool = lock(&self.0.pool);
        let size = pool.size_for(bytes);
        if let Some(block) = pool.take(op, size) {
            self.0.driver.fresh(block.at(), block.bytes());
            return Ok(block);
        }
        let (class, segments) = (pool.class(size), pool.segments_for(size));
        let mut given = self.segment(&mut pool, class, &segments)?;
        if !given {
            for segment in pool.release() {
                self.0.driver.free(segment);
            }
            given = self.segment(&mut pool, class, &segments)?;
        }
        let block = given.then(|| pool.take(op, size)).flatten();
        block.ok_or_else(|| self.no_memory(op, bytes, &pool))
    }

    /// Asks the driver for a segment for a class of blocks: the first of these sizes that it has.
    fn segment(&self, pool: &mut Pool, class: usize, segments: &[usize]) -> Result<bool> {
        self.count(|c| c.allocations += 1);
        for bytes in segments {
            if let Some(at) = self.0.driver.allocate(*bytes)? {
                pool.adopt(at, *bytes, class);
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn no_memory(&self, op: &str, bytes: usize, pool: &Pool) -> Error {
        let mb = |b: u64| format!("{} MB", b.div_ceil(1 << 20));
        let top: Vec<String> =
            pool.holders().iter().take(5).map(|h| format!("{} {}", h.op, mb(h.bytes))).collect();
        let held = pool.live();
        let advice = match held {
            0 => "use a smaller batch".to_string(),
            held => {
                let share = held as f64 / (held + bytes as u64) as f64;
                format!(
                    "use a smaller batch: at this operation, about {:.0} % of this one fitted",
                    100.0 * share
                )
            }
        };
        Error::new(Kind::Memory, op)
            .about(format!("memory of {}", self.name()))
            .expected(format!("room for {} beside {} in use", mb(bytes as u64), mb(held)))
            .got(format!("none; the largest holders: {}", top.join(", ")))
            .fix(advice)
    }

    /// Memory that holds these values.
    pub fn upload<T: bytemuck::Pod>(
        &self,
        op: &'static str,
        storage: Storage,
        values: &[T],
    ) -> Result<Array> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let array = self.array(op, storage, bytes.len() / storage.bytes())?;
        array.write(bytes)?;
        Ok(array)
    }

    /// Zeros.
    pub fn zeros(&self, op: &'static str, storage: Storage, len: usize) -> Result<Array> {
        let array = self.array(op, storage, len)?;
        array.zero()?;
        Ok(array)
    }

    /// A row of `len` times the same value in f32.
    pub fn row(&self, op: &'static str, value: f32, len: usize) -> Result<Array> {
        self.upload(op, Storage::F32, &vec![value; len])
    }

    /// `n` counters for a kernel whose last block finishes what the others began: they are 0, and such a kernel leaves them
    /// so. Launches come one after the other in this queue, and all use the same ones.
    pub fn counters(&self, op: &'static str, n: usize) -> Result<Arg> {
        if n > COUNTERS {
            return Err(Error::argument(op, "columns", format!("at most {COUNTERS} pieces of them"), n));
        }
        let mut counters = lock(&self.0.counters);
        let Some(Counters(at)) = &*counters else {
            let bytes = COUNTERS * size_of::<u32>();
            let at = self.0.driver.allocate(bytes)?;
            let at = at.ok_or_else(|| self.no_memory(op, bytes, &lock(&self.0.pool)))?;
            *counters = Some(Counters(at));
            self.0.driver.zero(at, bytes)?;
            return Ok(Arg::Pointer(at));
        };
        Ok(Arg::Pointer(*at))
    }

    /// Runs a kernel: its blocks, the threads of a block, its dynamic shared memory, its arguments (see its header).
    /// Nothing is launched where a grid is empty.
    ///
    /// # Safety
    /// Every pointer among `args` is null where the kernel's header allows it, or points to memory on this device that is
    /// alive until the launch is done, with as many elements behind it as the header asks for; nothing overlaps but what the
    /// header says may.
    pub unsafe fn launch(
        &self,
        kernel: &str,
        grid: (usize, usize),
        block: (u32, u32),
        shared: u32,
        args: &[Arg],
    ) -> Result<()> {
        self.run(kernel, grid, block, shared, 0, args)
    }

    /// Runs a kernel that multiplies matrices, in blocks of so many threads and bytes of shared memory: `flops` is its 2mnk.
    ///
    /// # Safety
    /// Every pointer among `args` is null where the kernel's header allows it, or points to memory on this device that is
    /// alive until the launch is done, with as many elements behind it as the header asks for; nothing overlaps but what the
    /// header says may.
    pub unsafe fn multiply(
        &self,
        kernel: &str,
        grid: (usize, usize),
        (block, shared): ((u32, u32), u32),
        flops: usize,
        args: &[Arg],
    ) -> Result<()> {
        self.run(kernel, grid, block, shared, flops as u64, args)
    }

    fn run(
        &self,
        kernel: &str,
        grid: (usize, usize),
        block: (u32, u32),
        shared: u32,
        flops: u64,
        args: &[Arg],
    ) -> Result<()> {
        if grid.0 == 0 || grid.1 == 0 {
            return Ok(());
        }
        let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let grid = [size(grid.0), size(grid.1), 1];
        let bytes: usize = args.iter().map(Arg::bytes).sum();
        self.count(|c| {
            c.flops += flops;
            match c.launches.get_mut(kernel) {
                Some(l) => l.add(bytes, flops),
                None => c.launches.entry(kernel.to_string()).or_default().add(bytes, flops),
            }
        });
        let launch = Launch { kernel, grid, block: [block.0, block.1, 1], shared };
        self.stamped(|| kernel.to_string(), || self.0.driver.launch(&launch, args))
    }

    /// Takes in kernels that this crate does not have; a name that it has keeps its meaning. [`Gpu::side`] loads its own.
    ///
    /// A GPU takes PTX (`nvcc -ptx`), or machine code for it; functions are `extern "C"`. The host driver takes a shared object
    /// whose kernels are declared with `DEV_KERNEL` of `dev.cuh`, which lies in [`kernel_headers`]. Compiled with
    /// `-fsanitize=thread`, but linked without, the checker of feature `host-check` sees every access. The program itself must
    /// be linked with `-rdynamic`. `examples/own_kernel.rs` does all of this.
    ///
    /// # Safety
    /// The code is run as it is, and its kernels must be what their launches take them for.
    pub unsafe fn load(&self, kernels: Kernels) -> Result<()> {
        self.0.driver.load(kernels)
    }

    /// Runs a kernel that takes `n` elements one by one, eight a thread.
    ///
    /// # Safety
    /// Every pointer among `args` is null where the kernel's header allows it, or points to memory on this device that is
    /// alive until the launch is done, with as many elements behind it as the header asks for; nothing overlaps but what the
    /// header says may.
    pub unsafe fn launch_each(&self, kernel: &str, n: usize, args: &[Arg]) -> Result<()> {
        // SAFETY: as the caller says.
        unsafe { self.launch(kernel, (n.div_ceil(2048), 1), (256, 1), 0, args) }
    }

    /// c = (c +) a b (+ bias), see [`Matmul`]. An error unless the arrays are long enough.
    pub fn matmul(&self, matmul: &Matmul) -> Result<()> {
        matmul.check()?;
        let (m, n, k) = matmul.sizes;
        if m == 0 || n == 0 {
            return Ok(());
        }
        let flops = 2 * (m * n * k) as u64;
        let mut tally = lock(&self.0.counts);
        tally.counts.flops += flops;
        tally.matmuls.entry(matmul.kind()).or_default().add(matmul.bytes(), flops);
        drop(tally);
        self.stamped(|| format!("matmul {}", matmul.name()), || self.0.driver.matmul(matmul))
    }

    /// Takes the time of what `work` asks for, if somebody wants to know.
    fn stamped(&self, name: impl Fn() -> String, work: impl Fn() -> Result<()>) -> Result<()> {
        if lock(&self.0.stamps).is_none() {
            return work();
        }
        let start = self.0.driver.stamp()?;
        work()?;
        let end = self.0.driver.stamp()?;
        lock(&self.0.stamps).iter_mut().for_each(|s| s.push((name(), start, end)));
        Ok(())
    }

    /// Seconds on the device of every kernel and matmul (by its name) that `work` asks this queue for.
    pub fn profile(&self, work: impl FnOnce() -> Result<()>) -> Result<BTreeMap<String, f64>> {
        *lock(&self.0.stamps) = Some(Vec::new());
        let done = work();
        let stamps = lock(&self.0.stamps).take().unwrap_or_default();
        done?;
        let mut seconds = BTreeMap::new();
        for (name, start, end) in stamps {
            *seconds.entry(name).or_insert(0.0) += self.0.driver.between(start, end)?;
        }
        Ok(seconds)
    }

    /// Waits until everything is done; what failed meanwhile is an error here.
    pub fn synchronize(&self) -> Result<()> {
        self.count(|c| c.waits += 1);
        self.0.driver.synchronize()
    }

    /// This device with a stream and a pool of its own, for work beside this one's. Memory of the one may be used by
    /// the other ([`Array::on`]) where `after` says that it is written, and until it is given back.
    pub fn side(&self) -> Result<Gpu> {
        let (counts, usage) = (self.0.counts.clone(), self.0.usage.clone());
        self.0.driver.side().map(|driver| Gpu::with(driver, counts, usage))
    }

    /// What comes next here waits for everything that the other queue was asked for so far.
    pub fn after(&self, other: &Gpu) -> Result<()> {
        self.0.driver.wait(other.0.driver.mark()?)
    }

    /// How long the device takes for what `work` asks of it, between two events.
    pub fn seconds(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        let start = self.0.driver.stamp()?;
        work()?;
        self.0.driver.between(start, self.0.driver.stamp()?)
    }

    fn give_back(&self, at: *mut c_void, bytes: usize) {
        lock(&self.0.pool).give_back(at, bytes);
    }

    fn driver(&self) -> &dyn Driver {
        &*self.0.driver
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(Counters(at)) = lock(&self.counters).take() {
            self.driver.free(at);
        }
        for block in lock(&self.pool).release() {
            self.driver.free(block);
        }
    }
}
