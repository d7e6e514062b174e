//! Tensors as bytes of another precision: what is kept of them in files.

use super::{Device, Storage, Tensor};
use crate::{Error, Result, on};
use half::f16;
use half::slice::HalfFloatSliceExt;

const OP: &str = "stored tensor";

impl Tensor {
    /// The bytes of the elements as they lie, little-endian, wherever they are.
    pub fn raw(&self) -> Result<Vec<u8>> {
        match self.array() {
            Some(a) => a.read::<u8>(),
            None => Ok(on!(self.dtype(), T => bytemuck::cast_slice(self.data::<T>()).to_vec())),
        }
    }

    /// How many bytes [`Tensor::raw`] has.
    pub fn raw_bytes(&self) -> usize {
        self.array().map_or(self.len() * on!(self.dtype(), T => size_of::<T>()), |a| a.bytes())
    }

    /// A tensor of such bytes, where this one lies and as it is stored; a constant.
    pub fn of_raw(&self, bytes: &[u8], sizes: &[usize]) -> Result<Tensor> {
        match self.array() {
            Some(a) => Tensor::of_array(a.gpu().upload(OP, a.storage(), bytes)?, sizes),
            None => on!(self.dtype(), T => Tensor::new(bytemuck::pod_collect_to_vec::<u8, T>(bytes), sizes)),
        }
    }

    /// The elements in f16 or f32, little-endian, wherever they are.
    pub fn stored(&self, storage: Storage) -> Result<Vec<u8>> {
        match (storage, self.array()) {
            (Storage::F16, Some(a)) => a.cast(OP, Storage::F16)?.read::<u8>(),
            (Storage::F16, None) => {
                let mut half = vec![f16::ZERO; self.len()];
                half.convert_from_f32_slice(&self.to_f32()?);
                Ok(bytemuck::cast_slice(&half).to_vec())
            }
            (Storage::F32, _) => Ok(bytemuck::cast_slice::<f32, u8>(&self.to_f32()?).to_vec()),
            _ => Err(Error::argument(OP, "storage", "f16 or f32", storage.name())),
        }
    }

    /// A tensor of such bytes, in f32, on a device.
    pub fn of_stored(device: &Device, storage: Storage, bytes: &[u8], sizes: &[usize]) -> Result<Tensor> {
        let wanted = sizes.iter().product::<usize>() * storage.bytes();
        if bytes.len() != wanted {
            return Err(Error::argument(OP, "bytes", wanted, bytes.len()));
        }
        match (device, storage) {
            (Device::Gpu(gpu), Storage::F16 | Storage::F32) => {
                let there = gpu.upload(OP, storage, bytes)?;
                Tensor::of_array(there.cast(OP, Storage::F32)?, sizes)
            }
            (Device::Cpu, Storage::F16) => {
                let half: Vec<f16> = bytemuck::allocation::pod_collect_to_vec(bytes);
                let mut wide = vec![0f32; half.len()];
                half.convert_to_f32_slice(&mut wide);
                Tensor::new(wide, sizes)
            }
            (Device::Cpu, Storage::F32) => {
                Tensor::new(bytemuck::allocation::pod_collect_to_vec::<u8, f32>(bytes), sizes)
            }
            _ => Err(Error::argument(OP, "storage", "f16 or f32", storage.name())),
        }
    }
}
