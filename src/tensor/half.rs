//! A frozen matrix in half precision, usually mapped from a file: it is converted piece by piece inside a product
//! ([`crate::ops::linear_half`]) and never stands in memory as a whole. It is no [`super::Tensor`], so no other operation
//! can be given one.

use super::{DType, Real};
use crate::{Error, Result};
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::ops::Range;
use std::sync::Arc;

/// [rows, columns] of f16, row-major.
#[derive(Clone)]
pub struct HalfMatrix {
    bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    rows: usize,
    columns: usize,
}

impl HalfMatrix {
    /// Little-endian bytes at an even address.
    pub fn new(bytes: Arc<dyn AsRef<[u8]> + Send + Sync>, rows: usize, columns: usize) -> Result<HalfMatrix> {
        let wanted = rows.checked_mul(columns);
        let found = bytemuck::try_cast_slice::<u8, f16>((*bytes).as_ref()).ok().map(<[f16]>::len);
        if wanted.is_none() || found != wanted {
            let got = format!("{} bytes", (*bytes).as_ref().len());
            return Err(Error::argument(
                "half matrix",
                "bytes",
                format!("aligned f16 of [{rows}, {columns}]"),
                got,
            ));
        }
        Ok(HalfMatrix { bytes, rows, columns })
    }

    pub fn sizes(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// All elements, little-endian, row by row.
    pub fn bytes(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    /// Writes row `row` into `to`, exactly.
    pub fn row<T: Real>(&self, row: usize, to: &mut [T]) {
        let range: Range<usize> = row * self.columns..(row + 1) * self.columns;
        let all: &[f16] = bytemuck::try_cast_slice((*self.bytes).as_ref()).unwrap_or_default();
        let from = all.get(range).unwrap_or_default();
        match T::DTYPE {
            DType::F32 => from.convert_to_f32_slice(bytemuck::cast_slice_mut(to)),
            DType::F64 => from.convert_to_f64_slice(bytemuck::cast_slice_mut(to)),
        }
    }
}
