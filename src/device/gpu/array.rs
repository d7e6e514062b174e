//! A run of elements in a GPU's memory. Clones share it; the last one gives it back to the pool.

use super::{Gpu, pool::Block};
use crate::device::launch::Arg;
use crate::device::storage::Storage;
use crate::{Error, Result};
use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

/// Holds a block and gives it back.
struct Held {
    gpu: Gpu,
    block: Block,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gpu.give_back(self.block.at(), self.block.bytes());
    }
}

/// Elements in a GPU's memory. Clones and parts share it; it goes back to the pool with the last of them.
#[derive(Clone)]
pub struct Array {
    held: Arc<Held>,
    /// Whose queue works on it; not always the one whose pool it is from.
    gpu: Gpu,
    /// In elements.
    start: usize,
    len: usize,
    storage: Storage,
}

impl std::fmt::Debug for Array {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Array({} x {})", self.storage.name(), self.len)
    }
}

impl Array {
    pub(super) fn new(gpu: Gpu, block: Block, storage: Storage, len: usize) -> Array {
        Array { held: Arc::new(Held { gpu: gpu.clone(), block }), gpu, start: 0, len, storage }
    }

    /// Whose memory it is.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// This array, on its memory, for another stream of the device (see [`Gpu::side`]).
    pub fn on(&self, gpu: &Gpu) -> Array {
        Array { gpu: gpu.clone(), ..self.clone() }
    }

    /// How an element is stored.
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// How many elements it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether nobody else can see this memory.
    pub fn is_unique(&self) -> bool {
        Arc::strong_count(&self.held) == 1
    }

    /// How many see this memory.
    pub fn seen_by(&self) -> usize {
        Arc::strong_count(&self.held)
    }

    /// A part, on the same memory.
    pub fn part(&self, range: Range<usize>) -> Result<Array> {
        if range.start > range.end || range.end > self.len {
            let want = format!("within 0..{}", self.len);
            return Err(Error::argument("device array", "range", want, format!("{range:?}")));
        }
        Ok(Array { start: self.start + range.start, len: range.len(), ..self.clone() })
    }

    /// This array and the next one as one, if they lie one after the other in the same memory.
    pub fn joined(&self, next: &Array) -> Option<Array> {
        let follows = Arc::ptr_eq(&self.held, &next.held)
            && self.storage == next.storage
            && self.start + self.len == next.start;
        follows.then(|| Array { len: self.len + next.len, ..self.clone() })
    }

    /// The address of the first element.
    pub fn pointer(&self) -> *mut c_void {
        let bytes = self.start * self.storage.bytes();
        self.held.block.at().wrapping_byte_add(bytes)
    }

    /// The address of element `at`, for kernels that take a column of a wider matrix.
    /// `used` is how many elements it reads or writes there.
    pub fn pointer_at(&self, at: usize, used: usize) -> Arg {
        let size = self.storage.bytes();
        Arg::Memory(self.pointer().wrapping_byte_add(at.min(self.len) * size), used * size)
    }

    /// Of all elements.
    pub fn bytes(&self) -> usize {
        self.len * self.storage.bytes()
    }

    /// From the host; as many bytes as the array has.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        self.check_bytes("upload", bytes.len())?;
        self.gpu.count(|c| c.uploaded += bytes.len() as u64);
        if bytes.is_empty() { Ok(()) } else { self.gpu.driver().upload(self.pointer(), bytes) }
    }

    /// To the host.
    pub fn read<T: bytemuck::Pod>(&self) -> Result<Vec<T>> {
        let size = size_of::<T>().max(1);
        let mut values = vec![T::zeroed(); self.bytes() / size];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
        self.check_bytes("download", bytes.len())?;
        if !bytes.is_empty() {
            self.gpu.count(|c| (c.downloaded, c.waits) = (c.downloaded + bytes.len() as u64, c.waits + 1));
            self.gpu.driver().download(self.pointer(), bytes)?;
        }
        Ok(values)
    }

    /// To the host, as f32.
    pub fn read_f32(&self) -> Result<Vec<f32>> {
        Ok(self.as_f32(&self.read::<u8>()?))
    }

    /// What was read of it, as f32.
    fn as_f32(&self, bytes: &[u8]) -> Vec<f32> {
        use bytemuck::pod_read_unaligned as number;
        let each = bytes.chunks_exact(self.storage.bytes());
        match self.storage {
            Storage::F32 => each.map(number::<f32>).collect(),
            Storage::F16 => each.map(|x| number::<half::f16>(x).to_f32()).collect(),
            Storage::BF16 => each.map(|x| number::<half::bf16>(x).to_f32()).collect(),
            Storage::I32 => each.map(|x| number::<i32>(x) as f32).collect(),
            Storage::U8 => bytes.iter().map(|x| f32::from(*x)).collect(),
        }
    }

    /// Several of one stream to the host, as f32, with one wait for all of them.
    pub fn read_together(arrays: &[Array]) -> Result<Vec<Vec<f32>>> {
        let Some(first) = arrays.first() else { return Ok(Vec::new()) };
        let gpu = &first.gpu;
        if let Some(other) = arrays.iter().find(|a| !a.gpu.same(gpu)) {
            return Err(Error::argument("download", "arrays", "those of one stream", other.gpu.name()));
        }
        let mut values: Vec<Vec<u8>> = arrays.iter().map(|a| vec![0; a.bytes()]).collect();
        let bytes: usize = values.iter().map(Vec::len).sum();
        if bytes > 0 {
            gpu.count(|c| (c.downloaded, c.waits) = (c.downloaded + bytes as u64, c.waits + 1));
            let parts = arrays.iter().zip(&mut values).map(|(a, to)| (a.pointer(), to.as_mut_slice()));
            let mut parts: Vec<_> = parts.filter(|(_, to)| !to.is_empty()).collect();
            gpu.driver().download_all(&mut parts)?;
        }
        Ok(arrays.iter().zip(&values).map(|(a, bytes)| a.as_f32(bytes)).collect())
    }

    /// All bytes zero.
    pub fn zero(&self) -> Result<()> {
        self.gpu.count(|c| c.copies += 1);
        if self.is_empty() {
            return Ok(());
        }
        self.gpu.stamped(|| "zero".into(), || self.gpu.driver().zero(self.pointer(), self.bytes()))
    }

    /// The elements of another array of the same length and storage.
    pub fn copy_from(&self, from: &Array) -> Result<()> {
        if from.storage != self.storage {
            let (want, got) = (self.storage.name(), from.storage.name());
            return Err(Error::argument("device copy", "storage", want, got));
        }
        self.check_bytes("device copy", from.bytes())?;
        self.gpu.count(|c| c.copies += 1);
        if self.is_empty() {
            return Ok(());
        }
        let copy = || self.gpu.driver().copy(from.pointer(), self.pointer(), self.bytes());
        self.gpu.stamped(|| "copy".into(), copy)
    }

    /// A copy of the values in memory of its own.
    pub fn duplicate(&self, op: &'static str) -> Result<Array> {
        let copy = self.gpu.array(op, self.storage, self.len)?;
        copy.copy_from(self)?;
        Ok(copy)
    }

    /// The values in another storage; f32 is one of the two, or they are the same (then nothing is done).
    pub fn cast(&self, op: &'static str, storage: Storage) -> Result<Array> {
        if storage == self.storage {
            return Ok(self.clone());
        }
        let to = self.gpu.array(op, storage, self.len)?;
        self.cast_into(&to)?;
        Ok(to)
    }

    /// Writes the values into an array of another storage.
    pub fn cast_into(&self, to: &Array) -> Result<()> {
        if to.storage == self.storage {
            return to.copy_from(self);
        }
        let kernel = format!("cast_{}_{}", self.storage.name(), to.storage.name());
        let args = crate::args![self, to, self.len as u64];
        // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
        unsafe { self.gpu.launch_each(&kernel, self.len, args) }
    }

    /// self += other, in self's storage; the other is cast if it is stored differently.
    pub fn add(&self, other: &Array) -> Result<()> {
        if other.len != self.len {
            return Err(Error::argument("device add", "elements", self.len, other.len));
        }
        let other = other.cast("add", self.storage)?;
        let kernel = format!("add_fwd_{}", self.storage.name());
        let args = crate::args![self, &other, self, self.len as u64];
        // SAFETY: every array is as long as the kernel's header asks for, which the sizes checked above see to.
        unsafe { self.gpu.launch_each(&kernel, self.len, args) }
    }

    fn check_bytes(&self, op: &str, bytes: usize) -> Result<()> {
        if bytes == self.bytes() {
            return Ok(());
        }
        Err(Error::argument(op, "bytes", self.bytes(), bytes))
    }
}

impl From<&Array> for Arg {
    fn from(array: &Array) -> Arg {
        Arg::Memory(array.pointer(), array.bytes())
    }
}

impl From<Option<&Array>> for Arg {
    fn from(array: Option<&Array>) -> Arg {
        array.map_or(Arg::NULL, Arg::from)
    }
}
