//! What a GPU's driver does.

use super::Matmul;
use crate::Result;
use crate::device::cards::Card;
use crate::device::launch::{Arg, Launch};
use std::ffi::c_void;
use std::path::Path;

/// Kernels that this crate does not have, for [`super::Gpu::load`].
#[derive(Clone, Copy, Debug)]
pub enum Kernels<'a> {
    /// For a GPU: PTX text, or machine code (a cubin) for this GPU.
    Ptx(&'a [u8]),
    /// For the host driver: a shared object, compiled as C++ with `kernels/dev.cuh` ([`super::Gpu::load`] says how).
    Object(&'a Path),
}

/// A GPU's memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What a run may plan with: what is free, less a margin (see [`crate::device::setup::usable`]).
    pub usable: u64,
    /// What nobody has.
    pub free: u64,
    /// All there is.
    pub total: u64,
    /// Whether it is the system's, too: an integrated GPU, or one under WSL.
    pub shared: bool,
}

/// A GPU as seen from its memory and its queue of work. Pointers are addresses on the device: [`super::Array`] keeps them
/// alive and in bounds. Everything happens in the order of the calls.
pub trait Driver: Send + Sync {
    /// What it is called.
    fn name(&self) -> String;
    /// Whether it is no GPU, but the CPU.
    fn is_emulated(&self) -> bool {
        false
    }
    /// Whether there are results.
    fn computes(&self) -> bool {
        true
    }
    /// Whether it has the matmuls of warp groups (compute capability 9.0).
    fn has_warp_groups(&self) -> bool {
        true
    }
    /// Where it sits, as nvidia-smi writes it: `00000000:65:00.0`.
    fn bus_id(&self) -> Option<String> {
        None
    }
    /// Versions of what its numbers depend on: `driver 580.65.06 (CUDA 13.0), cuBLASLt 13.0.2`.
    fn versions(&self) -> Option<String> {
        None
    }
    /// Its figures by the maker's data sheet, if they are known.
    fn card(&self) -> Option<&'static Card> {
        None
    }
    /// Its memory, if it has one of its own.
    fn memory(&self) -> Option<Memory> {
        None
    }
    /// Blocks that run well side by side.
    fn blocks(&self) -> usize;
    /// Memory is asked for in multiples of this; 1 if exactly as much as needed (so that a checker sees the end).
    fn granule(&self) -> usize;
    /// None if there is not as much left; any other failure is an error of its own.
    fn allocate(&self, bytes: usize) -> Result<Option<*mut c_void>>;
    /// Gives memory back that `allocate` gave.
    fn free(&self, at: *mut c_void);
    /// Memory of before is about to be used for something else.
    fn fresh(&self, at: *mut c_void, bytes: usize);
    /// Copies from the host.
    fn upload(&self, to: *mut c_void, from: &[u8]) -> Result<()>;
    /// Page-locked memory of the host, which the device copies from by itself; None where there is none.
    fn pin(&self, _bytes: usize) -> Result<Option<*mut c_void>> {
        Ok(None)
    }
    /// Gives such memory back.
    fn unpin(&self, _at: *mut c_void) {}
    /// From page-locked memory, which stays as it is until this queue has reached what comes next: nobody waits.
    fn upload_pinned(&self, to: *mut c_void, from: &[u8]) -> Result<()> {
        self.upload(to, from)
    }
    /// Copies to the host; waits for it.
    fn download(&self, from: *mut c_void, to: &mut [u8]) -> Result<()>;
    /// Several at once, with one wait for all of them.
    fn download_all(&self, parts: &mut [(*mut c_void, &mut [u8])]) -> Result<()> {
        parts.iter_mut().try_for_each(|(from, to)| self.download(*from, to))
    }
    /// Copies on the device.
    fn copy(&self, from: *mut c_void, to: *mut c_void, bytes: usize) -> Result<()>;
    /// Writes zeros.
    fn zero(&self, at: *mut c_void, bytes: usize) -> Result<()>;
    /// Runs a kernel.
    fn launch(&self, launch: &Launch, args: &[Arg]) -> Result<()>;
    /// Takes in kernels besides its own, which keep their names.
    fn load(&self, kernels: Kernels) -> Result<()>;
    /// Multiplies matrices.
    fn matmul(&self, matmul: &Matmul) -> Result<()>;
    /// Waits for everything; what failed meanwhile is an error here.
    fn synchronize(&self) -> Result<()>;
    /// This device, with a stream of its own.
    fn side(&self) -> Result<Box<dyn Driver>>;
    /// A point in this queue, for `wait` of another one, once.
    fn mark(&self) -> Result<u64>;
    /// What comes next in this queue waits until another one has reached that point.
    fn wait(&self, mark: u64) -> Result<()>;
    /// Waits until a point of this queue is reached, once.
    fn reach(&self, _mark: u64) -> Result<()> {
        self.synchronize()
    }
    /// A point in this queue whose time is taken, for `between`, once.
    fn stamp(&self) -> Result<u64>;
    /// Seconds from one stamp to a later one, when the device has reached both.
    fn between(&self, start: u64, end: u64) -> Result<f64>;
}

/// The folder with `dev.cuh`, which kernels for the host driver include, where this crate was built.
pub fn kernel_headers() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels"))
}
