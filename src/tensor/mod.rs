//! Tensors: a shared buffer, a shape and, while a tape records, the place on it.
//!
//! Row-major and contiguous, at most four axes, no strides and no broadcasting. A tensor may begin anywhere in its
//! buffer, so a range of rows is a tensor too, without a copy. A tensor on a GPU ([`Tensor::array`]) counts as f32, which is
//! what arithmetic there is in, however it is stored; its elements are read through [`Tensor::to_f32`] and the like.

mod dropout;
mod feed;
mod half;
mod place;
mod stored;
mod tape;

pub use crate::device::gpu::{Array, Flight, Gpu, Mark, Slot, Slots, Storage};
pub use crate::device::{Chunk, DType, Device, Real};
pub use crate::random::Stream;
pub use dropout::Dropout;
pub use feed::Feed;
pub use half::HalfMatrix;
pub use tape::{Gradients, Grads, Tape, constant, constant_tensor, record, record_tensor, watch_non_finite};

use crate::{Error, Result};
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Runs an expression with the Rust type of a dtype: `on!(x.dtype(), T => forward::<T>(..))`.
#[macro_export]
macro_rules! on {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::tensor::DType::F32 => {
                type $t = f32;
                $body
            }
            $crate::tensor::DType::F64 => {
                type $t = f64;
                $body
            }
        }
    };
}

/// Owned elements of one dtype.
#[derive(Clone, Debug)]
pub enum Buffer {
    /// In the host's memory.
    F32(Vec<f32>),
    /// In the host's memory.
    F64(Vec<f64>),
    /// On a GPU.
    Gpu(Array),
}

impl Buffer {
    /// What arithmetic is in: f32 on a GPU, however elements are stored there.
    pub fn dtype(&self) -> DType {
        match self {
            Buffer::F32(_) | Buffer::Gpu(_) => DType::F32,
            Buffer::F64(_) => DType::F64,
        }
    }

    /// How many elements it has.
    pub fn len(&self) -> usize {
        match self {
            Buffer::F32(v) => v.len(),
            Buffer::F64(v) => v.len(),
            Buffer::Gpu(a) => a.len(),
        }
    }

    /// Its memory on a GPU, if that is where it is.
    pub fn array(&self) -> Option<&Array> {
        match self {
            Buffer::Gpu(a) => Some(a),
            _ => None,
        }
    }

    /// A buffer of these elements in the host's memory.
    pub fn to_cpu(&self) -> Result<Cow<'_, Buffer>> {
        Ok(match self {
            Buffer::Gpu(a) => Cow::Owned(Buffer::F32(a.read_f32()?)),
            own => Cow::Borrowed(own),
        })
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// These values.
    pub fn of<T: Real>(values: Vec<T>) -> Buffer {
        match T::DTYPE {
            DType::F32 => Buffer::F32(bytemuck::allocation::cast_vec(values)),
            DType::F64 => Buffer::F64(bytemuck::allocation::cast_vec(values)),
        }
    }

    /// So many zeros.
    pub fn zeros(dtype: DType, len: usize) -> Buffer {
        match dtype {
            DType::F32 => Buffer::F32(vec![0.0; len]),
            DType::F64 => Buffer::F64(vec![0.0; len]),
        }
    }

    /// The elements; empty if T is not the buffer's dtype or they are on a GPU (callers have checked it at their door).
    pub fn slice<T: Real>(&self) -> &[T] {
        match self {
            Buffer::F32(v) if T::DTYPE == DType::F32 => bytemuck::cast_slice(v),
            Buffer::F64(v) if T::DTYPE == DType::F64 => bytemuck::cast_slice(v),
            _ => &[],
        }
    }

    /// The elements for writing; empty as [`Buffer::slice`] is.
    pub fn slice_mut<T: Real>(&mut self) -> &mut [T] {
        match self {
            Buffer::F32(v) if T::DTYPE == DType::F32 => bytemuck::cast_slice_mut(v),
            Buffer::F64(v) if T::DTYPE == DType::F64 => bytemuck::cast_slice_mut(v),
            _ => &mut [],
        }
    }
}

/// At most four axes; [] is a scalar.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    sizes: [usize; 4],
    rank: u8,
}

impl Shape {
    /// More than four axes are folded into an error by [`Tensor::new`]; inside the crate ranks are literal.
    pub fn new(sizes: &[usize]) -> Shape {
        let mut s = [1; 4];
        for (to, from) in s.iter_mut().zip(sizes) {
            *to = *from;
        }
        Shape { sizes: s, rank: sizes.len().min(4) as u8 }
    }

    /// One size for each axis.
    pub fn sizes(&self) -> &[usize] {
        &self.sizes[..usize::from(self.rank)]
    }

    /// How many elements it has.
    pub fn len(&self) -> usize {
        self.sizes.iter().product()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// (rows, columns): the last axis and all before it. A scalar is one row of one.
    pub fn rows(&self) -> (usize, usize) {
        let columns = self.sizes().last().copied().unwrap_or(1);
        (self.sizes().iter().rev().skip(1).product(), columns)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.sizes())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.sizes())
    }
}

/// A shared buffer, a shape and, while a tape records, the place on it. Clones share all of it.
#[derive(Clone)]
pub struct Tensor {
    buffer: Arc<Buffer>,
    start: usize,
    shape: Shape,
    node: Option<tape::Node>,
}

impl Tensor {
    /// A tensor of these values; an error unless there are as many as the shape says.
    pub fn new<T: Real>(values: Vec<T>, sizes: &[usize]) -> Result<Tensor> {
        let len = sizes.iter().try_fold(1usize, |n, s| n.checked_mul(*s));
        if sizes.len() > 4 || len != Some(values.len()) {
            return Err(Error::argument(
                "tensor",
                "shape",
                format!("at most 4 axes with {} elements", values.len()),
                format!("{sizes:?}"),
            ));
        }
        Ok(Tensor::from_buffer(Buffer::of(values), Shape::new(sizes)))
    }

    /// Zeros in the host's memory.
    pub fn zeros(dtype: DType, sizes: &[usize]) -> Tensor {
        let shape = Shape::new(sizes);
        Tensor::from_buffer(Buffer::zeros(dtype, shape.len()), shape)
    }

    /// From f64 values, rounded to the dtype.
    pub fn of(dtype: DType, values: &[f64], sizes: &[usize]) -> Result<Tensor> {
        on!(dtype, T => Tensor::new::<T>(values.iter().map(|x| T::of(*x)).collect(), sizes))
    }

    pub(crate) fn from_buffer(buffer: Buffer, shape: Shape) -> Tensor {
        debug_assert_eq!(buffer.len(), shape.len());
        Tensor { buffer: Arc::new(buffer), start: 0, shape, node: None }
    }

    /// A tensor of a buffer's elements.
    pub fn of_buffer(buffer: Buffer, sizes: &[usize]) -> Result<Tensor> {
        match buffer {
            Buffer::F32(v) => Tensor::new(v, sizes),
            Buffer::F64(v) => Tensor::new(v, sizes),
            Buffer::Gpu(a) => Tensor::of_array(a, sizes),
        }
    }

    /// A tensor in a GPU's memory.
    pub fn of_array(array: Array, sizes: &[usize]) -> Result<Tensor> {
        let shape = Shape::new(sizes);
        if shape.len() != array.len() || sizes.len() > 4 {
            let want = format!("at most 4 axes with {} elements", array.len());
            return Err(Error::argument("tensor", "shape", want, format!("{sizes:?}")));
        }
        Ok(Tensor::from_buffer(Buffer::Gpu(array), shape))
    }

    /// Its memory on a GPU, if that is where it is.
    pub fn array(&self) -> Option<Array> {
        self.buffer.array().and_then(|a| a.part(self.start..self.start + self.len()).ok())
    }

    /// This tensor on a device, without history. On a GPU they are stored as told.
    pub fn to(&self, device: &Device, storage: Storage) -> Result<Tensor> {
        match (device, self.array()) {
            (Device::Cpu, None) => Ok(self.detach()),
            (Device::Cpu, Some(a)) => Tensor::new(a.read_f32()?, self.shape.sizes()),
            (Device::Gpu(gpu), None) => {
                let values = gpu.upload("upload", Storage::F32, &self.to_f32()?)?;
                Tensor::of_array(values.cast("upload", storage)?, self.shape.sizes())
            }
            (Device::Gpu(_), Some(a)) => Tensor::of_array(a.cast("cast", storage)?, self.shape.sizes()),
        }
    }

    /// This tensor where another one is, stored as that is, without history.
    pub fn like(&self, other: &Tensor) -> Result<Tensor> {
        match other.array() {
            Some(a) => self.to(&Device::Gpu(a.gpu().clone()), a.storage()),
            None => self.to_cpu(),
        }
    }

    /// This tensor in the host's memory, without history.
    pub fn to_cpu(&self) -> Result<Tensor> {
        self.to(&Device::Cpu, Storage::F32)
    }

    /// What arithmetic is in: f32 on a GPU, however elements are stored there.
    pub fn dtype(&self) -> DType {
        self.buffer.dtype()
    }

    /// The sizes of its axes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// (rows, columns), see [`Shape::rows`].
    pub fn rows(&self) -> (usize, usize) {
        self.shape.rows()
    }

    /// How many elements it has.
    pub fn len(&self) -> usize {
        self.shape.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements; empty if T is not the tensor's dtype.
    pub fn data<T: Real>(&self) -> &[T] {
        self.buffer.slice::<T>().get(self.start..self.start + self.len()).unwrap_or(&[])
    }

    /// The elements for writing, if no other tensor shares the buffer.
    pub fn data_mut<T: Real>(&mut self) -> Option<&mut [T]> {
        let range = self.start..self.start + self.shape.len();
        Arc::get_mut(&mut self.buffer)?.slice_mut::<T>().get_mut(range)
    }

    /// The elements in f64, wherever they are. A GPU that fails, now or before, says so here.
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        match self.array() {
            Some(a) => Ok(a.read_f32()?.into_iter().map(f64::from).collect()),
            None => Ok(on!(self.dtype(), T => self.data::<T>().iter().map(|x| x.to_f64()).collect())),
        }
    }

    /// The elements in f32, wherever they are; see [`Tensor::to_f64`].
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match self.array() {
            Some(a) => a.read_f32(),
            None => Ok(on!(self.dtype(), T => self.data::<T>().iter().map(|x| x.to_f64() as f32).collect())),
        }
    }

    /// The first element: the value of a tensor of one.
    pub fn item(&self) -> Result<f64> {
        let first = match self.array() {
            Some(a) if !a.is_empty() => a.part(0..1)?.read_f32()?.first().map(|x| f64::from(*x)),
            _ => on!(self.dtype(), T => self.data::<T>().first().map(|x| x.to_f64())),
        };
        first.ok_or_else(|| Error::argument("item", "tensor", "one element", self.shape))
    }

    /// This tensor without history: a constant.
    pub fn detach(&self) -> Tensor {
        Tensor { node: None, ..self.clone() }
    }

    /// Whether a tape records what is computed of it.
    pub fn tracked(&self) -> bool {
        self.node.is_some()
    }

    /// This tensor under another shape, with its history.
    pub fn reshape(&self, sizes: &[usize]) -> Result<Tensor> {
        let shape = Shape::new(sizes);
        if shape.len() != self.len() || sizes.len() > 4 {
            let want = format!("at most 4 axes with {} elements", self.len());
            return Err(Error::argument("reshape", "shape", want, format!("{sizes:?}")));
        }
        Ok(Tensor { shape, ..self.clone() })
    }

    /// Rows `range` of [rows, columns] as a tensor on the same buffer; gradients go back to their rows.
    pub fn slice_rows(&self, range: Range<usize>) -> Result<Tensor> {
        let (n, c) = self.rows();
        if range.start > range.end || range.end > n {
            return Err(Error::argument(
                "slice_rows",
                "range",
                format!("within 0..{n}"),
                format!("{range:?}"),
            ));
        }
        let shape = Shape::new(&[range.len(), c]);
        let part =
            Tensor { buffer: self.buffer.clone(), start: self.start + range.start * c, shape, node: None };
        if !self.tracked() {
            return Ok(part);
        }
        let at = range.start * c;
        record_tensor("slice_rows", &[self], part, move |dy, grads| match dy.array() {
            Some(dy) => grads.add_array_at(0, at, &dy),
            None => on!(dy.dtype(), T => grads.add_at(0, at, dy.data::<T>())),
        })
    }

    /// The first element that is not finite, if any.
    pub fn first_non_finite(&self) -> Result<Option<usize>> {
        match self.array() {
            Some(a) => Ok(a.read_f32()?.iter().position(|x| !x.is_finite())),
            None => Ok(on!(self.dtype(), T => self.data::<T>().iter().position(|x| !x.is_finite()))),
        }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {})", self.dtype(), self.shape)
    }
}
