//! A GPU that is opened: its context, what it is, and the kernels that were loaded, which all of its streams share.

use super::open::{bus_id, surroundings, unopened};
use super::{failed, images, module};
use crate::Result;
use crate::device::gpu::lock;
use crate::device::setup::{self, Image};
use crate::terminal::note;
use cudarc::driver::result as cu;
use cudarc::driver::sys;
use std::collections::HashMap;
use std::sync::Mutex;

/// A GPU that is opened, with its kernels: all streams share it.
pub struct Opened {
    pub name: String,
    pub bus_id: String,
    /// Whether its memory is also the system's: an integrated GPU, or one under WSL.
    pub shares_memory: bool,
    pub integrated: bool,
    pub context: sys::CUcontext,
    pub multiprocessors: usize,
    pub warp_groups: bool,
    /// The crate's own first, then those that were loaded.
    pub modules: Mutex<Vec<sys::CUmodule>>,
    pub functions: Mutex<HashMap<String, sys::CUfunction>>,
}

// SAFETY: handles of the driver API, which any thread may use once it has made the context current (`bind` does); what is changed
// stands behind mutexes.
unsafe impl Send for Opened {}
unsafe impl Sync for Opened {}

impl Opened {
    pub fn new(ordinal: i32) -> Result<Opened> {
        let wrong = unopened;
        let device = cu::device::get(ordinal).map_err(wrong)?;
        use sys::CUdevice_attribute_enum as Attribute;
        // SAFETY: `device` came from the driver just now.
        let attribute = |a| unsafe { cu::device::get_attribute(device, a) }.map_err(wrong);
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let image = setup::image(major, minor)?;
        let integrated = attribute(Attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED)? != 0;
        // SAFETY: as above; the primary context stays until the process ends.
        let context = unsafe { cu::primary_ctx::retain(device) }.map_err(wrong)?;
        // SAFETY: the context was retained just now.
        unsafe { cu::ctx::set_current(context) }.map_err(wrong)?;
        if image == Image::Ptx {
            note!(
                "the driver compiles the kernels for compute capability {major}.{minor}; this takes a moment"
            );
        }
        let opened = Opened {
            name: cu::device::get_name(device).map_err(wrong)?,
            bus_id: bus_id(ordinal)?,
            shares_memory: integrated || surroundings().wsl,
            integrated,
            context,
            multiprocessors: usize::try_from(multiprocessors).unwrap_or(1),
            warp_groups: (major, minor) == (9, 0),
            modules: Mutex::default(),
            functions: Mutex::default(),
        };
        for image in images(image) {
            lock(&opened.modules).push(module(image).map_err(wrong)?);
        }
        Ok(opened)
    }

    /// Every thread has a current context of its own.
    pub fn bind(&self) -> Result<()> {
        // SAFETY: the primary context stays until the process ends.
        unsafe { cu::ctx::set_current(self.context) }.map_err(|e| failed("use GPU", e))
    }
}
