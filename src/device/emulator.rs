//! The kernels of `kernels/*.cu` on the CPU: compiled as C++, the threads of a block run as fibers that wait where a
//! GPU's threads would, in an order that a [`Schedule`] sets. With feature `host-check` every access to memory is
//! checked. Slow by design: it proves the kernels, on a machine without a GPU.
//!
//! Errors end the launch and come back as [`Error`]: accesses out of bounds, divergent barriers, deadlocks, and with the
//! checker races and reads of memory nobody wrote. Fresh memory is filled with NaN.

use super::launch::{Arg, Launch, Param, ParamKind, Signature};
use crate::{Error, Kind, Result};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{PoisonError, RwLock};

/// In which order threads and blocks run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// As they are numbered.
    #[default]
    InOrder,
    /// The last one first.
    Reverse,
    /// Any thread next.
    RandomThreads,
    /// Any thread of a warp that may run far ahead of the others.
    RandomWarps,
}

/// When an asynchronous copy takes place; each is legal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Copies {
    /// Where it is asked for.
    Early,
    /// Where it is waited for.
    Late,
    /// Somewhere between.
    #[default]
    Random,
}

/// One legal way to run a kernel. Two launches with the same schedule do exactly the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// Of threads and blocks.
    pub order: Order,
    /// When asynchronous copies take place.
    pub copies: Copies,
    /// Of the random orders.
    pub seed: u64,
}

impl Schedule {
    /// In order and reverse, copies early and late, and `random` seeded ones of both random orders.
    pub fn several(random: u64) -> Vec<Schedule> {
        let mut all = vec![
            Schedule { order: Order::InOrder, copies: Copies::Early, seed: 0 },
            Schedule { order: Order::Reverse, copies: Copies::Late, seed: 0 },
        ];
        all.extend((1..=random).map(Schedule::random));
        all
    }

    /// A schedule of a device `host:NUMBER`: 0 in order, 1 in reverse with late copies, then random ones.
    pub fn numbered(number: u64) -> Schedule {
        match number {
            0 => Schedule::default(),
            1 => Schedule { order: Order::Reverse, copies: Copies::Late, seed: 0 },
            n => Schedule::random(n - 1),
        }
    }

    fn random(seed: u64) -> Schedule {
        let order = if seed % 2 == 1 { Order::RandomThreads } else { Order::RandomWarps };
        Schedule { order, copies: Copies::Random, seed }
    }
}

#[repr(C)]
struct RawKernel {
    name: *const c_char,
    params: *const RawParam,
    param_count: i32,
    max_threads: i32,
    shared_bytes: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RawParam {
    size: u32,
    kind: c_char,
}

#[repr(C)]
struct RawSchedule {
    order: i32,
    copies: i32,
    seed: u64,
}

unsafe extern "C" {
    fn qformer_host_kernel_at(index: c_int, out: *mut RawKernel) -> c_int;
    fn qformer_host_launch(
        name: *const c_char,
        grid: *const u32,
        block: *const u32,
        args: *mut *mut c_void,
        schedule: *const RawSchedule,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn qformer_host_alloc(bytes: usize) -> *mut c_void;
    fn qformer_host_free(p: *mut c_void);
    fn qformer_host_written(p: *const c_void, bytes: usize);
    fn qformer_host_forget(p: *mut c_void, bytes: usize);
    fn qformer_host_unwritten(p: *const c_void, bytes: usize) -> usize;
    fn qformer_host_checked() -> c_int;
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlerror() -> *mut c_char;
}

/// Is the memory checker built in?
pub fn is_checked() -> bool {
    // SAFETY: takes nothing and reads a constant.
    unsafe { qformer_host_checked() != 0 }
}

static SIGNATURES: RwLock<Option<&'static [Signature]>> = RwLock::new(None);

/// What every kernel declares, sorted by name.
pub fn signatures() -> &'static [Signature] {
    if let Some(all) = *SIGNATURES.read().unwrap_or_else(PoisonError::into_inner) {
        return all;
    }
    collect_signatures()
}

/// As the registry has them now. A list that went before stays, for whoever holds it.
fn collect_signatures() -> &'static [Signature] {
    let mut known = SIGNATURES.write().unwrap_or_else(PoisonError::into_inner);
    // The newest are first; of one name the oldest counts.
    let mut all: Vec<Signature> = (0..).map_while(signature_at).collect();
    all.reverse();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all.dedup_by(|a, b| a.name == b.name);
    let all: &'static [Signature] = Vec::leak(all);
    *known = Some(all);
    all
}

/// Takes in the kernels of a shared object, see [`super::gpu::Gpu::load`]. An error if it has one of a name that is known;
/// that name keeps its meaning.
pub(super) fn load(path: &Path) -> Result<()> {
    const OPERATION: &str = "load kernels";
    const NOW: c_int = 2; // RTLD_NOW
    let failed = |got: &str| Error::file(OPERATION, path, "a shared object of kernels", got);
    let whole = std::path::absolute(path).map_err(|e| Error::io(OPERATION, path, &e))?;
    let name = CString::new(whole.as_os_str().as_bytes()).map_err(|e| failed(&e.to_string()))?;
    let (known, before) = (signatures(), (0..).map_while(signature_at).count());
    // SAFETY: the path ends with a zero; the caller vouches for the code that it runs.
    if unsafe { dlopen(name.as_ptr(), NOW) }.is_null() {
        // SAFETY: after a failure it is a text that ends with a zero, or null.
        let why = NonNull::new(unsafe { dlerror() })
            .map(|why| unsafe { CStr::from_ptr(why.as_ptr()) }.to_string_lossy().into_owned());
        return Err(failed(why.as_deref().unwrap_or("another file"))
            .fix("compile it with -shared -fPIC, and link the program with -rdynamic"));
    }
    let fresh = (0..).map_while(signature_at).count() - before;
    collect_signatures();
    let names = (0..).map_while(signature_at).take(fresh).map(|s| s.name);
    let twice: Vec<String> = names.filter(|name| known.iter().any(|k| k.name == *name)).collect();
    match (fresh, twice.as_slice()) {
        (0, _) => Err(failed("no kernel that is not loaded already").fix("declare kernels with DEV_KERNEL")),
        (_, []) => Ok(()),
        (_, twice) => {
            Err(failed(&format!("kernels of known names: {}", twice.join(", "))).fix("rename them"))
        }
    }
}

fn signature_at(index: c_int) -> Option<Signature> {
    let mut raw = RawKernel {
        name: std::ptr::null(),
        params: std::ptr::null(),
        param_count: 0,
        max_threads: 0,
        shared_bytes: 0,
    };
    // SAFETY: `raw` has the layout of the C structure; it is filled in when the call returns non-zero.
    if unsafe { qformer_host_kernel_at(index, &mut raw) } == 0 {
        return None;
    }
    let count = usize::try_from(raw.param_count).unwrap_or(0);
    // SAFETY: the registry's names and parameter lists are constants of the program.
    let (name, params) = unsafe { (CStr::from_ptr(raw.name), std::slice::from_raw_parts(raw.params, count)) };
    let kind = |k: c_char| match k as u8 {
        b'p' => ParamKind::Pointer,
        b'i' => ParamKind::Integer,
        b'f' => ParamKind::Float,
        _ => ParamKind::Structure,
    };
    Some(Signature {
        name: name.to_string_lossy().into_owned(),
        params: params.iter().map(|p| Param { kind: kind(p.kind), size: p.size }).collect(),
        max_threads: u32::try_from(raw.max_threads).unwrap_or(0),
        shared: u32::try_from(raw.shared_bytes).unwrap_or(0),
    })
}

/// Runs a kernel to its end.
///
/// # Safety
/// Every pointer among `args` must be null where the kernel's header allows it, or lie in a [`Memory`] that is alive, with
/// as many elements of the kernel's dtype after it as the header asks for, and no two launches may write the same memory
/// at a time. (Most violations are found and reported, not all.)
pub unsafe fn launch(launch: &Launch, args: &[Arg], schedule: Schedule) -> Result<()> {
    let operation = || format!("launch {}", launch.kernel);
    let all = signatures();
    let Ok(found) = all.binary_search_by(|s| s.name.as_str().cmp(launch.kernel)) else {
        return Err(Error::argument(operation(), "kernel", "a kernel of this build", "an unknown name"));
    };
    launch.check(&all[found], args)?;
    let name = CString::new(launch.kernel).map_err(|e| Error::new(Kind::Argument, operation()).got(e))?;
    let mut addresses: Vec<*mut c_void> = args.iter().map(Arg::address).collect();
    let raw =
        RawSchedule { order: schedule.order as i32, copies: schedule.copies as i32, seed: schedule.seed };
    let mut error: [c_char; 1024] = [0; 1024];
    // SAFETY: the launch was checked against the kernel's own signature; the caller vouches for the pointers.
    let failed = unsafe {
        qformer_host_launch(
            name.as_ptr(),
            launch.grid.as_ptr(),
            launch.block.as_ptr(),
            addresses.as_mut_ptr(),
            &raw,
            error.as_mut_ptr(),
            error.len(),
        )
    };
    if failed == 0 {
        return Ok(());
    }
    // SAFETY: the C side ends its message with a zero within the capacity it was given.
    let message = unsafe { CStr::from_ptr(error.as_ptr()) }.to_string_lossy().into_owned();
    Err(Error::new(Kind::Argument, operation()).got(message))
}

/// Memory for kernels, as [`Memory`] has it but without an owner; None where there is none left.
pub(super) fn allocate(bytes: usize) -> Option<*mut c_void> {
    // SAFETY: takes any size and returns null when there is no memory.
    NonNull::new(unsafe { qformer_host_alloc(bytes) }).map(NonNull::as_ptr)
}

pub(super) fn free(at: *mut c_void) {
    // SAFETY: an address that is not an allocation's is ignored.
    unsafe { qformer_host_free(at) }
}

/// Memory that is used anew: filled with NaN, and to the checker nobody has written there.
pub(super) fn forget(at: *mut c_void, bytes: usize) {
    // SAFETY: an allocation of that size, whose last user is done.
    unsafe { qformer_host_forget(at, bytes) }
}

/// Tells the checker that the host wrote there.
pub(super) fn written(at: *mut c_void, bytes: usize) {
    // SAFETY: only the checker's own tables are touched.
    unsafe { qformer_host_written(at, bytes) }
}

/// An error if the host is about to read what nobody wrote.
pub(super) fn check_written(at: *mut c_void, bytes: usize, op: &str) -> Result<()> {
    // SAFETY: only the checker's own tables are read.
    match unsafe { qformer_host_unwritten(at, bytes) } {
        0 => Ok(()),
        n => {
            let got = format!("{n} of {bytes} bytes were never written");
            Err(Error::argument(op, "memory", "written memory", got))
        }
    }
}

/// A buffer that kernels can use. Its end lies against an inaccessible page.
#[derive(Debug)]
pub struct Memory {
    start: NonNull<c_void>,
    bytes: usize,
}

// SAFETY: plain memory, owned alone; what is written through a shared reference is written by `launch`, whose caller
// vouches that launches do not overlap.
unsafe impl Send for Memory {}
unsafe impl Sync for Memory {}

impl Memory {
    /// `bytes` of fresh memory, filled with NaN (0xff).
    pub fn new(bytes: usize) -> Result<Memory> {
        // SAFETY: takes any size and returns null when there is no memory.
        let start = NonNull::new(unsafe { qformer_host_alloc(bytes) });
        let none =
            || Error::new(Kind::Argument, "allocate host memory").got(format!("no room for {bytes} bytes"));
        start.map(|start| Memory { start, bytes }).ok_or_else(none)
    }

    /// Memory that holds these values.
    pub fn from_slice<T: bytemuck::Pod>(values: &[T]) -> Result<Memory> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let memory = Memory::new(bytes.len())?;
        // SAFETY: both ranges are `bytes.len()` long, and fresh memory overlaps nothing.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory.start.as_ptr().cast::<u8>(), bytes.len());
            qformer_host_written(memory.start.as_ptr(), bytes.len());
        }
        Ok(memory)
    }

    /// All of it. With the checker it is an error if some byte was never written.
    pub fn to_vec<T: bytemuck::Pod>(&self) -> Result<Vec<T>> {
        // SAFETY: the range is this buffer.
        let unwritten = unsafe { qformer_host_unwritten(self.start.as_ptr(), self.bytes) };
        if unwritten > 0 {
            let got = format!("{unwritten} of {} bytes were never written", self.bytes);
            return Err(Error::argument("read host memory", "buffer", "written memory", got));
        }
        if !self.bytes.is_multiple_of(size_of::<T>().max(1)) {
            let expected = format!("a multiple of {} bytes", size_of::<T>());
            return Err(Error::argument("read host memory", "buffer", expected, self.bytes));
        }
        let mut values = vec![T::zeroed(); self.bytes / size_of::<T>().max(1)];
        let target: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
        // SAFETY: `target` is as long as this buffer and was made just now.
        unsafe {
            std::ptr::copy_nonoverlapping(self.start.as_ptr().cast::<u8>(), target.as_mut_ptr(), target.len())
        };
        Ok(values)
    }

    /// How large it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl From<&Memory> for Arg {
    fn from(memory: &Memory) -> Arg {
        Arg::Pointer(memory.start.as_ptr())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the start of an allocation of `qformer_host_alloc`, freed once.
        unsafe { qformer_host_free(self.start.as_ptr()) }
    }
}
