//! Where tensors lie: on which device, in which storage, beside which others. Rooms above the operations place tensors by
//! these, and so need not know what devices there are.

use super::{Buffer, DType, Device, HalfMatrix, Real, Shape, Storage, Tensor};
use crate::{Error, Result, on};
use std::sync::Arc;

impl Tensor {
    /// Zeros on a device: stored as told on a GPU, in f32 on the CPU.
    pub fn zeros_on(device: &Device, storage: Storage, sizes: &[usize]) -> Result<Tensor> {
        match device {
            Device::Cpu => Ok(Tensor::zeros(DType::F32, sizes)),
            Device::Gpu(gpu) => {
                Tensor::of_array(gpu.zeros("weights", storage, sizes.iter().product())?, sizes)
            }
        }
    }

    /// The elements on a device: this tensor if it is there already, else a constant in f32.
    pub fn at(&self, device: &Device) -> Result<Tensor> {
        match device {
            Device::Gpu(_) if self.array().is_none() => self.to(device, Storage::F32),
            _ => Ok(self.clone()),
        }
    }

    /// This tensor of rows with rows of zeros behind it, `rows` of them all in all; a constant.
    pub fn with_zero_rows(&self, rows: usize) -> Result<Tensor> {
        let (own, columns) = self.rows();
        if rows < own {
            return Err(Error::argument("with_zero_rows", "rows", format!("at least {own}"), rows));
        }
        let Some(from) = self.array() else {
            return on!(self.dtype(), T => {
                let mut values = self.data::<T>().to_vec();
                values.resize(rows * columns, T::ZERO);
                Tensor::new(values, &[rows, columns])
            });
        };
        let all = from.gpu().array("with_zero_rows", from.storage(), rows * columns)?;
        all.part(0..from.len())?.copy_from(&from)?;
        all.part(from.len()..all.len())?.zero()?;
        Tensor::of_array(all, &[rows, columns])
    }

    /// This constant and the next one as rows of one, if they lie one after the other in the same memory.
    pub fn joined(&self, next: &Tensor) -> Option<Tensor> {
        let (own, columns) = self.rows();
        let (more, same) = next.rows();
        let follows = Arc::ptr_eq(&self.buffer, &next.buffer) && self.start + self.len() == next.start;
        let constants = !self.tracked() && !next.tracked();
        let shape = Shape::new(&[own + more, columns]);
        (follows && constants && same == columns).then(|| Tensor { shape, ..self.clone() })
    }

    /// This tensor, on its memory, for another stream of its device (see [`Device::side`]), without history.
    pub fn on(&self, device: &Device) -> Tensor {
        match (self.array(), device) {
            (Some(a), Device::Gpu(gpu)) => Tensor::from_buffer(Buffer::Gpu(a.on(gpu)), self.shape),
            _ => self.detach(),
        }
    }

    /// Zeros for as many elements, where this tensor is: in f32 on a GPU, else in its dtype.
    pub fn zeros_beside(&self, op: &'static str) -> Result<Buffer> {
        match self.array() {
            Some(a) => a.gpu().zeros(op, Storage::F32, self.len()).map(Buffer::Gpu),
            None => Ok(Buffer::zeros(self.dtype(), self.len())),
        }
    }

    /// Writes another tensor's elements into this one's memory on a GPU.
    pub fn overwrite(&self, from: &Tensor) -> Result<()> {
        match (self.array(), from.array()) {
            (Some(to), Some(from)) => to.copy_from(&from),
            _ => Ok(()),
        }
    }

    /// A tensor on a GPU in memory of its own whose rows are a multiple of 8: this tensor, and all of the memory, in which
    /// rows of zeros are behind it. None where its rows are one, and on the CPU.
    pub fn padded_rows(&self) -> Result<Option<[Tensor; 2]>> {
        let sizes = self.shape.sizes();
        let rows = sizes.first().copied().filter(|n| !n.is_multiple_of(8));
        let (Some(rows), Some(array)) = (rows, self.array()) else { return Ok(None) };
        let padded = [&[rows.next_multiple_of(8)], &sizes[1..]].concat();
        let all = array.gpu().zeros("load weights", array.storage(), padded.iter().product())?;
        let own = all.part(0..array.len())?;
        own.copy_from(&array)?;
        Ok(Some([Tensor::of_array(own, sizes)?, Tensor::of_array(all, &padded)?]))
    }

    /// Tensors of one size and one storage on a GPU, copied one after the other into new memory; None where they are not.
    pub fn side_by_side(parts: [&Tensor; 3]) -> Result<Option<[Tensor; 3]>> {
        let [Some(a), Some(b), Some(c)] = parts.map(Tensor::array) else { return Ok(None) };
        let n = a.len();
        if [&b, &c].iter().any(|o| o.len() != n || o.storage() != a.storage()) {
            return Ok(None);
        }
        let all = a.gpu().array("load weights", a.storage(), 3 * n)?;
        let place = |i: usize, own| -> Result<Tensor> {
            let part = all.part(i * n..(i + 1) * n)?;
            part.copy_from(own)?;
            Tensor::of_array(part, parts[i].shape().sizes())
        };
        Ok(Some([place(0, &a)?, place(1, &b)?, place(2, &c)?]))
    }
}

impl HalfMatrix {
    /// As a tensor of a device that stores 16 bits; None on the CPU, where it stays what it is.
    pub fn to(&self, device: &Device, storage: Storage) -> Result<Option<Tensor>> {
        let Device::Gpu(gpu) = device else { return Ok(None) };
        let own = self.storage();
        let bytes = gpu.upload("load weights", own, self.bytes())?;
        // From one 16-bit storage to another by way of f32.
        let bytes = if storage == own { bytes } else { bytes.cast("load weights", Storage::F32)? };
        Tensor::of_array(bytes.cast("load weights", storage)?, &self.sizes()).map(Some)
    }
}
