//! The driver that runs kernels on the CPU, in the emulator (see `device::emulator`). Matmuls are the CPU's, of
//! operands widened to f32 and rounded to c's storage once, as a GPU's are.

use super::fault::{Call, Fault};
use super::{Driver, Kernels, Matmul, Operand, Storage};
use crate::device::cpu;
use crate::device::emulator::{self, Schedule};
use crate::device::gemm::{View, gemm};
use crate::device::launch::{Arg, Launch};
use crate::device::running::{self, OUT_OF_MEMORY};
use crate::{Error, Result};
use half::{bf16, f16};
use std::ffi::c_void;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

struct Host {
    schedule: Schedule,
    number: u64,
    /// Whoever reads or writes memory holds it: arrays are shared by threads, and by the streams beside this one.
    memory: Arc<Mutex<()>>,
    /// Of all streams.
    fault: Option<Arc<Fault>>,
}

/// Kernels are run by schedule `number`.
pub(in crate::device) fn open(number: u64) -> Result<Box<dyn Driver>> {
    let fault = Fault::from_environment()?.map(Arc::new);
    Ok(Box::new(Host { schedule: Schedule::numbered(number), number, memory: Arc::default(), fault }))
}

/// The elements of an operand as f32, with no gaps, as they stand in memory; the matmul sees [rows, columns].
fn widen(x: &Operand, rows: usize, columns: usize) -> Vec<f32> {
    let (r, c) = if x.transposed { (columns, rows) } else { (rows, columns) };
    let mut out = Vec::with_capacity(r * c);
    for i in 0..r {
        // SAFETY: `Matmul`'s contract: the operand has r rows of `row` elements (the last one of c).
        unsafe { read(x.at, x.storage, i * x.row, c, &mut out) };
    }
    out
}

/// What `widen` read of an operand, as the matmul sees it.
fn view<'a>(x: &Operand, data: &'a [f32], (rows, columns): (usize, usize)) -> View<'a, f32> {
    if x.transposed { View::rows(data, rows).transposed() } else { View::rows(data, columns) }
}

/// # Safety
/// `count` elements from `first` on must be the host's memory.
unsafe fn read(at: *mut c_void, storage: Storage, first: usize, count: usize, out: &mut Vec<f32>) {
    let at = at.wrapping_byte_add(first * storage.bytes());
    // SAFETY: as the caller says.
    unsafe {
        match storage {
            Storage::F32 => out.extend_from_slice(std::slice::from_raw_parts(at.cast::<f32>(), count)),
            Storage::F16 => {
                out.extend(std::slice::from_raw_parts(at.cast::<f16>(), count).iter().map(|x| x.to_f32()));
            }
            Storage::BF16 => {
                out.extend(std::slice::from_raw_parts(at.cast::<bf16>(), count).iter().map(|x| x.to_f32()));
            }
            Storage::I32 | Storage::U8 => out.resize(out.len() + count, f32::NAN),
        }
    }
}

/// # Safety
/// As for `read`, and nobody else may use the memory meanwhile.
unsafe fn write(at: *mut c_void, storage: Storage, first: usize, from: &[f32]) {
    let at = at.wrapping_byte_add(first * storage.bytes());
    // SAFETY: as the caller says.
    unsafe {
        match storage {
            Storage::F32 => {
                std::slice::from_raw_parts_mut(at.cast::<f32>(), from.len()).copy_from_slice(from);
            }
            Storage::F16 => {
                let to = std::slice::from_raw_parts_mut(at.cast::<f16>(), from.len());
                to.iter_mut().zip(from).for_each(|(t, f)| *t = f16::from_f32(*f));
            }
            Storage::BF16 => {
                let to = std::slice::from_raw_parts_mut(at.cast::<bf16>(), from.len());
                to.iter_mut().zip(from).for_each(|(t, f)| *t = bf16::from_f32(*f));
            }
            Storage::I32 | Storage::U8 => {}
        }
    }
    emulator::written(at, from.len() * storage.bytes());
}

impl Host {
    /// An error where this call is to fail.
    fn check(&self, call: Call, operation: &str) -> Result<()> {
        self.fault.as_ref().map_or(Ok(()), |fault| fault.check(call, operation))
    }

    /// a, b, and what their matmul is added to: c or zeros, and the bias.
    fn operands(&self, p: &Matmul) -> Result<(Vec<f32>, Vec<f32>, Vec<f32>)> {
        let (m, n, k) = p.sizes;
        let _alone = super::lock(&self.memory);
        for (name, x, rows, columns) in [("a", &p.a, m, k), ("b", &p.b, k, n)] {
            let (rows, columns) = if x.transposed { (columns, rows) } else { (rows, columns) };
            for i in 0..rows {
                let at = x.at.wrapping_byte_add(i * x.row * x.storage.bytes());
                emulator::check_written(at, columns * x.storage.bytes(), &format!("matmul, {name}"))?;
            }
        }
        if p.a.storage != p.b.storage {
            return Err(Error::argument("matmul", "b", p.a.storage.name(), p.b.storage.name()));
        }
        let mut c = if p.add { widen(&p.c, m, n) } else { vec![0.0; m * n] };
        if let Some(bias) = p.bias {
            let mut row = Vec::with_capacity(n);
            // SAFETY: `Matmul`'s contract.
            unsafe { read(bias, p.c.storage, 0, n, &mut row) };
            c.chunks_exact_mut(n).for_each(|c| c.iter_mut().zip(&row).for_each(|(c, b)| *c += b));
        }
        Ok((widen(&p.a, m, k), widen(&p.b, k, n), c))
    }
}

impl Driver for Host {
    fn name(&self) -> String {
        "the kernels on the host".into()
    }

    fn is_emulated(&self) -> bool {
        true
    }

    /// Kernels may add in another order under another schedule.
    fn versions(&self) -> Option<String> {
        (self.number > 0).then(|| format!("schedule {}", self.number))
    }

    fn blocks(&self) -> usize {
        8
    }

    fn granule(&self) -> usize {
        1
    }

    fn allocate(&self, bytes: usize) -> Result<Option<*mut c_void>> {
        match self.fault.as_ref().and_then(|fault| fault.meets(Call::Allocate)) {
            Some(OUT_OF_MEMORY) => Ok(None),
            Some(code) => Err(running::failure("allocate", code, "")),
            None => Ok(emulator::allocate(bytes)),
        }
    }

    fn free(&self, at: *mut c_void) {
        emulator::free(at);
    }

    fn fresh(&self, at: *mut c_void, bytes: usize) {
        emulator::forget(at, bytes);
    }

    fn upload(&self, to: *mut c_void, from: &[u8]) -> Result<()> {
        self.check(Call::Upload, "upload")?;
        let _alone = super::lock(&self.memory);
        // SAFETY: `Array` checked the length, and fresh host slices do not overlap device memory.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.cast::<u8>(), from.len()) };
        emulator::written(to, from.len());
        Ok(())
    }

    fn download(&self, from: *mut c_void, to: &mut [u8]) -> Result<()> {
        self.check(Call::Download, "download")?;
        let _alone = super::lock(&self.memory);
        emulator::check_written(from, to.len(), "download")?;
        // SAFETY: as in `upload`.
        unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn copy(&self, from: *mut c_void, to: *mut c_void, bytes: usize) -> Result<()> {
        let _alone = super::lock(&self.memory);
        emulator::check_written(from, bytes, "device copy")?;
        // SAFETY: `Array` checked the lengths; an overlap would be the same memory.
        unsafe { std::ptr::copy(from.cast::<u8>(), to.cast::<u8>(), bytes) };
        emulator::written(to, bytes);
        Ok(())
    }

    fn zero(&self, at: *mut c_void, bytes: usize) -> Result<()> {
        let _alone = super::lock(&self.memory);
        // SAFETY: `Array` knows its bytes.
        unsafe { std::ptr::write_bytes(at.cast::<u8>(), 0, bytes) };
        emulator::written(at, bytes);
        Ok(())
    }

    fn launch(&self, launch: &Launch, args: &[Arg]) -> Result<()> {
        self.check(Call::Launch, &format!("launch {}", launch.kernel))?;
        let _alone = super::lock(&self.memory);
        // SAFETY: arrays keep what pointers point to alive and are as long as the kernels' headers ask for; launches come
        // one after the other. The emulator reports what is violated all the same.
        unsafe { emulator::launch(launch, args, self.schedule) }
    }

    fn load(&self, kernels: Kernels) -> Result<()> {
        let _alone = super::lock(&self.memory);
        match kernels {
            Kernels::Object(path) => emulator::load(path),
            Kernels::Ptx(_) => Err(Error::argument("load kernels", "kernels", "a shared object", "PTX")
                .fix("PTX is for --device cuda; here compile the kernels with g++ into a shared object")),
        }
    }

    /// Memory is held while operands are read and c is written, not in between: the sums wait for threads that may want it.
    fn matmul(&self, p: &Matmul) -> Result<()> {
        self.check(Call::Matmul, "matmul")?;
        let (m, n, k) = p.sizes;
        let (a, b, mut c) = self.operands(p)?;
        gemm((m, n, k), 1.0, view(&p.a, &a, (m, k)), view(&p.b, &b, (k, n)), 1.0, &mut c, n, true);
        let c = if p.gelu { cpu::map(&c, cpu::gelu_tanh) } else { c };
        let _alone = super::lock(&self.memory);
        for (i, row) in c.chunks_exact(n).enumerate() {
            // SAFETY: `Matmul`'s contract.
            unsafe { write(p.c.at, p.c.storage, i * p.c.row, row) };
        }
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn side(&self) -> Result<Box<dyn Driver>> {
        let (memory, fault) = (Arc::clone(&self.memory), self.fault.clone());
        Ok(Box::new(Host { schedule: self.schedule, number: self.number, memory, fault }))
    }

    /// Everything is done when its call returns.
    fn mark(&self) -> Result<u64> {
        Ok(0)
    }

    fn wait(&self, _mark: u64) -> Result<()> {
        Ok(())
    }

    /// Nanoseconds since the first one.
    fn stamp(&self) -> Result<u64> {
        static FIRST: OnceLock<Instant> = OnceLock::new();
        Ok(u64::try_from(FIRST.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn between(&self, start: u64, end: u64) -> Result<f64> {
        Ok(end.saturating_sub(start) as f64 / 1e9)
    }
}
