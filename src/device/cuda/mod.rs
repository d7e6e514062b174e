//! The driver of NVIDIA GPUs: the only folder that names cudarc, which loads libcuda and cuBLASLt when they are asked for.
//! A build with feature `cuda` so starts on any machine, and says clearly where there is no GPU.
//!
//! One stream. A kernel that fails does so later, at a call that waits: that error names the kernels launched last, and
//! with QFORMER_SYNC=1 every launch waits and the kernel is named exactly.

mod matmuls;
mod open;
mod opened;
mod report;
mod staging;

use super::cards::{self, Card};
use super::gpu::{Driver, Kernels, Matmul, Memory, lock};
use super::launch::{Arg, Launch};
use super::running;
use super::setup::{self, Image};
use crate::{Error, Kind, Result};
use cudarc::driver::result::{self as cu, DriverError};
use cudarc::driver::sys;
use matmuls::Matmuls;
pub use open::open;
use open::{bus_id, unopened};
use opened::Opened;
pub use report::report;
use staging::{LARGE, PIECE, Staging};
use std::collections::VecDeque;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex};

include!(concat!(env!("OUT_DIR"), "/kernel_images.rs"));

/// From this much dynamic shared memory on, a kernel has to be told beforehand.
const ORDINARY_SHARED: u32 = 48 * 1024;

/// The most arguments of a kernel.
const MOST_ARGS: usize = 40;

/// A stream of a GPU.
struct Cuda {
    gpu: Arc<Opened>,
    stream: sys::CUstream,
    matmuls: Mutex<Matmuls>,
    /// The last functions that were launched, and null for a matmul.
    recent: Mutex<VecDeque<usize>>,
    staging: Mutex<Staging>,
    waits: bool,
}

// SAFETY: handles of the driver API, which any thread may use once it has made the context current (`bind` does, in every
// method); what is changed stands behind mutexes.
unsafe impl Send for Cuda {}
unsafe impl Sync for Cuda {}

fn failed(operation: &str, e: DriverError) -> Error {
    running::failure(operation, e.0 as u32, &format!("{e:?}"))
}

impl Cuda {
    fn new(ordinal: i32) -> Result<Cuda> {
        Opened::new(ordinal).and_then(|gpu| Cuda::stream_of(Arc::new(gpu)))
    }

    /// One more stream of a GPU.
    fn stream_of(gpu: Arc<Opened>) -> Result<Cuda> {
        gpu.bind()?;
        let stream = cu::stream::create(cu::stream::StreamKind::NonBlocking).map_err(unopened)?;
        Ok(Cuda {
            gpu,
            stream,
            matmuls: Mutex::new(Matmuls::new(stream)?),
            recent: Mutex::default(),
            staging: Mutex::default(),
            waits: std::env::var_os("QFORMER_SYNC").is_some_and(|v| v != "0"),
        })
    }

    fn bind(&self) -> Result<()> {
        self.gpu.bind()
    }

    /// Names what ran last: an error of a kernel shows at a later call.
    fn late(&self, operation: &str, e: DriverError) -> Error {
        let functions = lock(&self.gpu.functions);
        let name =
            |f: &usize| functions.iter().find(|(_, g)| **g as usize == *f).map(|(name, _)| name.as_str());
        let recent: Vec<&str> = lock(&self.recent).iter().map(|f| name(f).unwrap_or("a matmul")).collect();
        failed(operation, e)
            .about(format!("{}; launched last: {}", self.gpu.name, recent.join(", ")))
            .also("with QFORMER_SYNC=1 the kernel that failed is named exactly")
    }

    /// Records an event, which whoever waits for it destroys.
    fn event(&self, flags: sys::CUevent_flags) -> Result<u64> {
        self.bind()?;
        let event = cu::event::create(flags).map_err(|e| failed("record event", e))?;
        // SAFETY: made just now.
        unsafe { cu::event::record(event, self.stream) }.map_err(|e| failed("record event", e))?;
        Ok(event as u64)
    }

    /// Remembers what was launched; waits for it if it shall be known what fails.
    fn launched(&self, function: sys::CUfunction, what: impl Fn() -> String) -> Result<()> {
        let mut recent = lock(&self.recent);
        if recent.len() == 8 {
            recent.pop_front();
        }
        recent.push_back(function as usize);
        drop(recent);
        if self.waits {
            // SAFETY: the stream lives as long as this object.
            unsafe { cu::stream::synchronize(self.stream) }
                .map_err(|e| failed(&format!("launch {}", what()), e))?;
        }
        Ok(())
    }

    fn function(&self, launch: &Launch) -> Result<sys::CUfunction> {
        let mut known = lock(&self.gpu.functions);
        if let Some(f) = known.get(launch.kernel) {
            return Ok(*f);
        }
        let operation = format!("launch {}", launch.kernel);
        let name = CString::new(launch.kernel).map_err(|e| Error::new(Kind::Argument, &operation).got(e))?;
        // SAFETY: the modules are loaded as long as a stream of the GPU is there.
        let found = |m: &sys::CUmodule| unsafe { cu::module::get_function(*m, name.clone()) }.ok();
        let f = lock(&self.gpu.modules).iter().find_map(found).ok_or_else(|| {
            Error::argument(&operation, "kernel", "a kernel of this build", "an unknown name")
        })?;
        if launch.shared > ORDINARY_SHARED {
            let what = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = i32::try_from(launch.shared).unwrap_or(i32::MAX);
            // SAFETY: the function was found just now.
            unsafe { cu::function::set_function_attribute(f, what, bytes) }
                .map_err(|e| failed(&operation, e))?;
        }
        known.insert(launch.kernel.to_string(), f);
        Ok(f)
    }
}

/// A module of a cubin or a PTX text.
fn module(image: &[u8]) -> std::result::Result<sys::CUmodule, DriverError> {
    // The driver reads words; a copy is aligned to them, and a text ends with a zero.
    let mut words = vec![0u64; image.len() / 8 + 1];
    bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..image.len()].copy_from_slice(image);
    // SAFETY: made by this build, or what the caller of `Gpu::load` vouches for.
    unsafe { cu::module::load_data(words.as_ptr().cast()) }
}

/// The embedded files of an image.
fn images(image: Image) -> impl Iterator<Item = &'static [u8]> {
    let wanted = match image {
        Image::Code(architecture) => architecture,
        Image::Ptx => "ptx",
    };
    IMAGES.iter().filter(move |(architecture, _)| *architecture == wanted).map(|(_, bytes)| *bytes)
}

fn address(at: *mut c_void) -> sys::CUdeviceptr {
    at as sys::CUdeviceptr
}

impl Driver for Cuda {
    fn name(&self) -> String {
        self.gpu.name.clone()
    }

    fn has_warp_groups(&self) -> bool {
        self.gpu.warp_groups
    }

    fn bus_id(&self) -> Option<String> {
        Some(self.gpu.bus_id.clone())
    }

    fn memory(&self) -> Option<Memory> {
        self.bind().ok()?;
        let (free, total) = cu::mem_get_info().ok()?;
        let (total, shared) = (total as u64, self.gpu.shares_memory);
        // The memory of an integrated GPU is also that of all other programs.
        let free = if self.gpu.integrated { setup::at_most_available(free as u64) } else { free as u64 };
        Some(Memory { usable: setup::usable(free, total, shared), free, total, shared })
    }

    fn versions(&self) -> Option<String> {
        Some(format!("driver {}, cuBLASLt {}", report::driver_version(), report::cublaslt_version()))
    }

    fn card(&self) -> Option<&'static Card> {
        cards::titled(&self.gpu.name)
    }

    fn blocks(&self) -> usize {
        self.gpu.multiprocessors
    }

    fn granule(&self) -> usize {
        512
    }

    fn allocate(&self, bytes: usize) -> Result<Option<*mut c_void>> {
        self.bind()?;
        // SAFETY: fails where there is no memory.
        match unsafe { cu::malloc_sync(bytes) } {
            Ok(at) => Ok(Some(at as *mut c_void)),
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Ok(None),
            Err(e) => Err(self.late("allocate", e)),
        }
    }

    fn free(&self, at: *mut c_void) {
        // SAFETY: an address that `allocate` gave and the pool gives back once; cuMemFree waits for what uses it.
        let _ = self.bind().map(|()| unsafe { cu::free_sync(address(at)) });
    }

    fn fresh(&self, _at: *mut c_void, _bytes: usize) {}

    fn upload(&self, to: *mut c_void, from: &[u8]) -> Result<()> {
        self.bind()?;
        if from.len() >= LARGE {
            let mut staging = lock(&self.staging);
            for (i, piece) in from.chunks(PIECE).enumerate() {
                staging
                    .upload(to.wrapping_byte_add(i * PIECE), piece, self.stream)
                    .map_err(|e| self.late("upload", e))?;
            }
            return Ok(());
        }
        // SAFETY: `Array` checked the length. From pageable memory the call returns when `from` has been read.
        unsafe { cu::memcpy_htod_async(address(to), from, self.stream) }.map_err(|e| self.late("upload", e))
    }

    fn pin(&self, bytes: usize) -> Result<Option<*mut c_void>> {
        self.bind()?;
        // SAFETY: fails where page-locked memory is refused.
        Ok(unsafe { cu::malloc_host(bytes, 0) }.ok())
    }

    fn unpin(&self, at: *mut c_void) {
        // SAFETY: an address that `pin` gave, freed once, when nothing copies from it.
        let _ = self.bind().map(|()| unsafe { cu::free_host(at) });
    }

    fn upload_pinned(&self, to: *mut c_void, from: &[u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: `Flight` checked the length and keeps `from` until this stream has reached what comes next.
        unsafe { cu::memcpy_htod_async(address(to), from, self.stream) }.map_err(|e| self.late("upload", e))
    }

    fn download(&self, from: *mut c_void, to: &mut [u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: `Array` checked the length, and `to` lives until the copy is done.
        unsafe { cu::memcpy_dtoh_async(to, address(from), self.stream) }
            .map_err(|e| self.late("download", e))?;
        self.synchronize()
    }

    fn download_all(&self, parts: &mut [(*mut c_void, &mut [u8])]) -> Result<()> {
        self.bind()?;
        lock(&self.staging).download(parts, self.stream).map_err(|e| self.late("download", e))
    }

    fn copy(&self, from: *mut c_void, to: *mut c_void, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: `Array` checked both lengths.
        let done = unsafe { cu::memcpy_dtod_async(address(to), address(from), bytes, self.stream) };
        done.map_err(|e| self.late("device copy", e))
    }

    fn zero(&self, at: *mut c_void, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: `Array` knows its bytes.
        let done = unsafe { cu::memset_d8_async(address(at), 0, bytes, self.stream) };
        done.map_err(|e| self.late("device zero", e))
    }

    fn launch(&self, launch: &Launch, args: &[Arg]) -> Result<()> {
        self.bind()?;
        let function = self.function(launch)?;
        let mut addresses = [std::ptr::null_mut(); MOST_ARGS];
        let Some(addresses) = addresses.get_mut(..args.len()) else {
            let expected = format!("at most {MOST_ARGS}");
            return Err(Error::argument(
                format!("launch {}", launch.kernel),
                "arguments",
                expected,
                args.len(),
            ));
        };
        addresses.iter_mut().zip(args).for_each(|(to, arg)| *to = arg.address());
        let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
        let (grid, block) = ((gx, gy, gz), (bx, by, bz));
        // SAFETY: arrays keep alive what the arguments point to, in the order of the stream; the types of the arguments are
        // those that the same call on the host driver is checked for in the tests.
        let done = unsafe { cu::launch_kernel(function, grid, block, launch.shared, self.stream, addresses) };
        let operation = || format!("launch {}", launch.kernel);
        done.map_err(|e| self.late(&operation(), e).about(format!("grid {grid:?}, block {block:?}")))?;
        self.launched(function, || launch.kernel.into())
    }

    fn load(&self, kernels: Kernels) -> Result<()> {
        self.bind()?;
        let Kernels::Ptx(image) = kernels else {
            return Err(Error::argument("load kernels", "kernels", "PTX or machine code", "a shared object")
                .fix("compile the kernels with nvcc -ptx"));
        };
        let loaded = module(image).map_err(|e| {
            failed("load kernels", e)
                .fix("compile the kernels for this GPU, with an nvcc no newer than its driver")
        })?;
        lock(&self.gpu.modules).push(loaded);
        Ok(())
    }

    fn matmul(&self, matmul: &Matmul) -> Result<()> {
        self.bind()?;
        let (m, n, k) = matmul.sizes;
        if k == 0 && matmul.bias.is_none() {
            // A sum of nothing, which the library refuses.
            let bytes = m * n * matmul.c.storage.bytes();
            return if matmul.add { Ok(()) } else { self.zero(matmul.c.at, bytes) };
        }
        lock(&self.matmuls).run(matmul)?;
        self.launched(std::ptr::null_mut(), || matmul.name())
    }

    fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream lives as long as this object.
        unsafe { cu::stream::synchronize(self.stream) }.map_err(|e| self.late("wait for GPU", e))
    }

    fn side(&self) -> Result<Box<dyn Driver>> {
        Cuda::stream_of(Arc::clone(&self.gpu)).map(|c| Box::new(c) as Box<dyn Driver>)
    }

    fn mark(&self) -> Result<u64> {
        self.event(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn wait(&self, mark: u64) -> Result<()> {
        self.bind()?;
        let (event, flags) = (mark as sys::CUevent, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT);
        // SAFETY: an event of `mark`, used once; a destroyed event stays until it is reached.
        unsafe {
            let waits = cu::stream::wait_event(self.stream, event, flags);
            let _ = cu::event::destroy(event);
            waits.map_err(|e| failed("wait", e))
        }
    }

    fn reach(&self, mark: u64) -> Result<()> {
        self.bind()?;
        let event = mark as sys::CUevent;
        // SAFETY: an event of `mark`, used once.
        unsafe {
            let reached = cu::event::synchronize(event);
            let _ = cu::event::destroy(event);
            reached.map_err(|e| self.late("wait for GPU", e))
        }
    }

    fn stamp(&self) -> Result<u64> {
        self.event(sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn between(&self, start: u64, end: u64) -> Result<f64> {
        self.bind()?;
        let (start, end) = (start as sys::CUevent, end as sys::CUevent);
        // SAFETY: events of `stamp`, destroyed once.
        unsafe {
            cu::event::synchronize(end).map_err(|e| self.late("time on GPU", e))?;
            let ms = cu::event::elapsed(start, end).map_err(|e| failed("time on GPU", e))?;
            let _ = (cu::event::destroy(start), cu::event::destroy(end));
            Ok(f64::from(ms) / 1e3)
        }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // The process's primary context stays: other handles may use it, and the driver frees it at exit.
        let _ = self.synchronize();
        lock(&self.matmuls).close();
        lock(&self.staging).close();
        // SAFETY: nothing runs any more, and no handle is used again.
        unsafe {
            let _ = cu::stream::destroy(self.stream);
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let _ = self.bind();
        // SAFETY: the last stream is gone, and no kernel runs any more.
        lock(&self.modules).drain(..).for_each(|m| _ = unsafe { cu::module::unload(m) });
    }
}
