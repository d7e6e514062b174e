//! A frozen matrix in half precision, as files have it: it is converted piece by piece inside a matmul
//! ([`crate::ops::linear_half`]) and never stands in memory as a whole. It is no [`super::Tensor`], so no other operation
//! can be given one.

use super::{Real, Storage};
use crate::device::cpu;
use crate::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// [rows, columns] of f16 or bf16, row-major.
#[derive(Clone)]
pub struct HalfMatrix {
    bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    storage: Storage,
    rows: usize,
    columns: usize,
}

impl HalfMatrix {
    /// Little-endian bytes of f16 at an even address.
    pub fn new(bytes: Arc<dyn AsRef<[u8]> + Send + Sync>, rows: usize, columns: usize) -> Result<HalfMatrix> {
        HalfMatrix::stored(Storage::F16, bytes, rows, columns)
    }

    /// Little-endian bytes of f16 or bf16, as `storage` says, at an even address.
    pub fn stored(
        storage: Storage,
        bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
        rows: usize,
        columns: usize,
    ) -> Result<HalfMatrix> {
        if storage == Storage::F32 {
            return Err(Error::argument("half matrix", "storage", "f16 or bf16", storage.name()));
        }
        let wanted = rows.checked_mul(columns);
        let found = bytemuck::try_cast_slice::<u8, u16>((*bytes).as_ref()).ok().map(<[u16]>::len);
        if wanted.is_none() || found != wanted {
            let got = format!("{} bytes", (*bytes).as_ref().len());
            return Err(Error::argument(
                "half matrix",
                "bytes",
                format!("aligned {} of [{rows}, {columns}]", storage.name()),
                got,
            ));
        }
        Ok(HalfMatrix { bytes, storage, rows, columns })
    }

    /// Which 16 bits they are.
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// Rows and columns.
    pub fn sizes(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// All elements, little-endian, row by row.
    pub fn bytes(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    /// Writes the elements of these rows and columns exactly, row and column exchanged: to[c * rows + r].
    pub fn turned<T: Real>(&self, rows: Range<usize>, columns: Range<usize>, to: &mut [T]) {
        /// Columns that are read at a time: of every row, a few lines of memory in a row.
        const PIECE: usize = 256;
        let all: &[u16] = bytemuck::try_cast_slice((*self.bytes).as_ref()).unwrap_or_default();
        let bf16 = self.storage == Storage::BF16;
        let (height, width) = (rows.len(), columns.len());
        let mut piece = vec![T::ZERO; height * PIECE];
        for first in (0..width).step_by(PIECE) {
            let count = PIECE.min(width - first);
            let to = &mut to[first * height..(first + count) * height];
            cpu::simd(
                #[inline(always)]
                || {
                    for (row, line) in rows.clone().zip(piece.chunks_exact_mut(PIECE)) {
                        let at = row * self.columns + columns.start + first;
                        for (to, x) in line.iter_mut().zip(&all[at..at + count]) {
                            let x = if bf16 { f32::from_bits(u32::from(*x) << 16) } else { widened(*x) };
                            *to = T::of(f64::from(x));
                        }
                    }
                    for (c, line) in to.chunks_exact_mut(height).enumerate() {
                        for (r, to) in line.iter_mut().enumerate() {
                            *to = piece[r * PIECE + c];
                        }
                    }
                },
            );
        }
    }
}

/// The number of a half's bits, exactly; in operations that vectorise, which a conversion by the processor's own
/// instruction, asked for number by number, does not.
#[inline(always)]
fn widened(half: u16) -> f32 {
    const RANGE: f32 = f32::from_bits((127 + 112) << 23); // 2^112: the exponents' offsets are 127 and 15
    let (sign, rest) = (u32::from(half & 0x8000) << 16, u32::from(half & 0x7fff) << 13);
    let number = (f32::from_bits(rest) * RANGE).to_bits();
    let endless = rest | 0x7f80_0000; // infinite, or none
    f32::from_bits(sign | if half & 0x7c00 == 0x7c00 { endless } else { number })
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn every_half_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let (found, wanted) = (widened(bits), f16::from_bits(bits).to_f32());
            assert!(found.to_bits() == wanted.to_bits() || found.is_nan() && wanted.is_nan(), "{bits:#06x}");
        }
    }

    #[test]
    fn rows_and_columns_are_exchanged() {
        let values: Vec<f16> = (0..7 * 600).map(|i| f16::from_f32(i as f32 * 0.25)).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        struct Aligned(Vec<u16>);
        impl AsRef<[u8]> for Aligned {
            fn as_ref(&self) -> &[u8] {
                bytemuck::cast_slice(&self.0)
            }
        }
        let aligned = |bytes: &[u8]| Arc::new(Aligned(bytemuck::pod_collect_to_vec(bytes)));
        let brains: Vec<u8> = values.iter().flat_map(|x| bf16::from_f32(x.to_f32()).to_le_bytes()).collect();
        let brains = HalfMatrix::stored(Storage::BF16, aligned(&brains), 7, 600).unwrap();
        assert!(HalfMatrix::stored(Storage::F32, aligned(&bytes), 7, 300).is_err());
        let matrix = HalfMatrix::new(aligned(&bytes), 7, 600).unwrap();
        for (rows, columns) in [(0..7, 0..600), (2..5, 3..300), (6..7, 255..258), (1..3, 599..600)] {
            let mut found = vec![0f32; rows.len() * columns.len()];
            matrix.turned(rows.clone(), columns.clone(), &mut found);
            let mut wide = vec![0f32; rows.len() * columns.len()];
            brains.turned(rows.clone(), columns.clone(), &mut wide);
            for (c, column) in columns.clone().enumerate() {
                for (r, row) in rows.clone().enumerate() {
                    let wanted = values[row * 600 + column].to_f32();
                    assert_eq!(found[c * rows.len() + r], wanted, "row {row} column {column}");
                    assert_eq!(wide[c * rows.len() + r], bf16::from_f32(wanted).to_f32());
                }
            }
        }
    }
}
