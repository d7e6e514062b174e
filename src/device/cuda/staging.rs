//! Copies through page-locked memory. Uploads have two buffers in turns: while one is copied to the GPU, the next upload fills
//! the other. Small downloads have a third: all of them are asked for before the first is waited for.

use super::address;
use crate::terminal::note;
use cudarc::driver::result::{self as cu, DriverError};
use cudarc::driver::sys;
use std::ffi::c_void;

/// From this many bytes on, an upload goes through pinned memory.
pub(super) const LARGE: usize = 64 << 10;
/// As large as a pinned buffer becomes.
pub(super) const PIECE: usize = 32 << 20;

/// Two pinned buffers in turns: while the one is copied to the GPU, the next upload fills the other, and nobody waits.
#[derive(Default)]
pub(super) struct Staging {
    buffers: [Pinned; 2],
    next: usize,
    /// What downloads arrive in.
    down: Pinned,
    /// Page-locked memory was refused once.
    refused: bool,
}

/// Page-locked memory, and the event behind the last copy from it.
struct Pinned {
    at: *mut c_void,
    bytes: usize,
    copied: Option<sys::CUevent>,
}

impl Default for Pinned {
    fn default() -> Pinned {
        Pinned { at: std::ptr::null_mut(), bytes: 0, copied: None }
    }
}

impl Staging {
    /// Where page-locked memory is refused (WSL, a limit on locked memory), copies straight from `from`, which waits.
    pub fn upload(&mut self, to: *mut c_void, from: &[u8], stream: sys::CUstream) -> Result<(), DriverError> {
        let pinned = &mut self.buffers[self.next];
        self.next = 1 - self.next;
        if self.refused {
            // SAFETY: `Array` checked the length. From pageable memory the call returns when `from` has been read.
            return unsafe { cu::memcpy_htod_async(address(to), from, stream) };
        }
        // SAFETY: the buffer is this object's, as long as `bytes` says; nobody copies from it once its event is reached.
        unsafe {
            pinned.wait()?;
            if pinned.bytes < from.len() {
                pinned.free();
                match cu::malloc_host(from.len(), 0) {
                    Ok(at) => (pinned.at, pinned.bytes) = (at, from.len()),
                    Err(_) => {
                        self.refused = true;
                        note!(
                            "warning: page-locked memory was refused; uploads to the GPU are slower without it \
                             (ulimit -l, or .wslconfig under WSL)"
                        );
                        return cu::memcpy_htod_async(address(to), from, stream);
                    }
                }
            }
            std::ptr::copy_nonoverlapping(from.as_ptr(), pinned.at.cast::<u8>(), from.len());
            let bytes = std::slice::from_raw_parts(pinned.at.cast::<u8>(), from.len());
            cu::memcpy_htod_async(address(to), bytes, stream)?;
            let event = cu::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
            cu::event::record(event, stream)?;
            pinned.copied = Some(event);
        }
        Ok(())
    }

    /// Copies all parts from the GPU and waits once.
    pub fn download(
        &mut self,
        parts: &mut [(*mut c_void, &mut [u8])],
        stream: sys::CUstream,
    ) -> Result<(), DriverError> {
        // A part begins at a multiple of 16.
        let room = |to: &[u8]| to.len().next_multiple_of(16);
        let bytes: usize = parts.iter().map(|(_, to)| room(to)).sum();
        let pinned = &mut self.down;
        // SAFETY: the buffer is this object's, as long as `bytes` says, and nobody copies into it once this has waited; `Array`
        // checked the lengths of the parts.
        unsafe {
            if !self.refused && pinned.bytes < bytes {
                pinned.free();
                match cu::malloc_host(bytes, 0) {
                    Ok(at) => (pinned.at, pinned.bytes) = (at, bytes),
                    Err(_) => self.refused = true,
                }
            }
            if pinned.bytes < bytes {
                for (from, to) in parts.iter_mut() {
                    cu::memcpy_dtoh_async(to, address(*from), stream)?;
                }
                return cu::stream::synchronize(stream);
            }
            let mut at = pinned.at.cast::<u8>();
            for (from, to) in parts.iter() {
                let place = std::slice::from_raw_parts_mut(at, to.len());
                cu::memcpy_dtoh_async(place, address(*from), stream)?;
                at = at.add(room(to));
            }
            cu::stream::synchronize(stream)?;
            let mut at = pinned.at.cast::<u8>();
            for (_, to) in parts.iter_mut() {
                std::ptr::copy_nonoverlapping(at, to.as_mut_ptr(), to.len());
                at = at.add(room(to));
            }
        }
        Ok(())
    }

    pub fn close(&mut self) {
        for pinned in self.buffers.iter_mut().chain([&mut self.down]) {
            // SAFETY: as above; each buffer is freed once.
            unsafe {
                let _ = pinned.wait();
                pinned.free();
            }
        }
    }
}

impl Pinned {
    /// # Safety
    /// The GPU's context is current.
    unsafe fn wait(&mut self) -> Result<(), DriverError> {
        let Some(event) = self.copied.take() else { return Ok(()) };
        // SAFETY: an event that `upload` recorded, destroyed once.
        unsafe {
            let done = cu::event::synchronize(event);
            let _ = cu::event::destroy(event);
            done
        }
    }

    /// # Safety
    /// Nothing copies from it any more.
    unsafe fn free(&mut self) {
        if !self.at.is_null() {
            // SAFETY: `malloc_host` gave it.
            let _ = unsafe { cu::free_host(self.at) };
            (self.at, self.bytes) = (std::ptr::null_mut(), 0);
        }
    }
}
