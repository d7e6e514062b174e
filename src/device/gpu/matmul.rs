//! Matmuls, row-major:     c [m,n] = (c +) a [m,k] b [k,n] (+ bias [n]),  or GELU of it

use super::{Array, Storage};
use crate::{Error, Result};
use std::ffi::c_void;
use std::marker::PhantomData;

/// A matrix in an array: `row` elements from row to row, and whether it stands there transposed.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    // Read by the drivers that compute.
    #[cfg_attr(not(any(feature = "cuda", feature = "host-kernels")), allow(dead_code))]
    pub(in crate::device) at: *mut c_void,
    pub(in crate::device) storage: Storage,
    pub(in crate::device) row: usize,
    pub(in crate::device) transposed: bool,
    /// Elements from `at` to the end of the array.
    pub(in crate::device) len: usize,
    pub(in crate::device) array: PhantomData<&'a Array>,
}

impl<'a> Operand<'a> {
    /// Rows of `width` elements.
    pub fn rows(array: &'a Array, width: usize) -> Operand<'a> {
        Operand::columns(array, width, 0)
    }

    /// Columns of rows of `width` elements, from one on.
    pub fn columns(array: &'a Array, width: usize, from: usize) -> Operand<'a> {
        let from = from.min(array.len());
        Operand {
            at: array.pointer().wrapping_byte_add(from * array.storage().bytes()),
            storage: array.storage(),
            row: width,
            transposed: false,
            len: array.len() - from,
            array: PhantomData,
        }
    }

    /// This matrix, transposed.
    #[must_use]
    pub fn transposed(self) -> Operand<'a> {
        Operand { transposed: !self.transposed, ..self }
    }

    /// Whether the array has all elements of a matrix of this shape.
    fn holds(&self, rows: usize, columns: usize) -> bool {
        let (r, c) = if self.transposed { (columns, rows) } else { (rows, columns) };
        let last = || (r - 1).checked_mul(self.row)?.checked_add(c);
        r == 0 || c == 0 || last().is_some_and(|n| n <= self.len)
    }
}

/// A matmul of matrices in arrays; sums are in f32 whatever the storages are, those of a and b are the same.
#[derive(Clone, Copy, Debug)]
pub struct Matmul<'a> {
    /// m, n, k
    pub(in crate::device) sizes: (usize, usize, usize),
    pub(in crate::device) a: Operand<'a>,
    pub(in crate::device) b: Operand<'a>,
    pub(in crate::device) c: Operand<'a>,
    pub(in crate::device) bias: Option<*mut c_void>,
    pub(in crate::device) bias_len: usize,
    pub(in crate::device) add: bool,
    pub(in crate::device) gelu: bool,
}

/// Sizes and storages of a matmul: what it has in common with others of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    sizes: (usize, usize, usize),
    storages: [Storage; 2],
    bias: bool,
    add: bool,
    gelu: bool,
}

impl Kind {
    /// How it is listed.
    pub fn name(self) -> String {
        let ((m, n, k), [from, to]) = (self.sizes, self.storages.map(Storage::name));
        let (bias, add) = (if self.bias { " + bias" } else { "" }, if self.add { ", added" } else { "" });
        let gelu = if self.gelu { ", gelu" } else { "" };
        format!("{from} [{m}, {k}] x [{k}, {n}]{bias}{gelu} -> {to}{add}")
    }
}

impl<'a> Matmul<'a> {
    /// c = a b, of m x n x k: no bias, nothing added, no GELU.
    pub fn of(sizes: (usize, usize, usize), a: Operand<'a>, b: Operand<'a>, c: Operand<'a>) -> Matmul<'a> {
        Matmul { sizes, a, b, c, bias: None, bias_len: 0, add: false, gelu: false }
    }

    /// With a bias added to every row, if there is one; it is stored as c is.
    #[must_use]
    pub fn with_bias(self, bias: Option<&'a Array>) -> Matmul<'a> {
        Matmul { bias: bias.map(Array::pointer), bias_len: bias.map_or(0, Array::len), ..self }
    }

    /// Whether it is added to c, or replaces it.
    #[must_use]
    pub fn added(self, add: bool) -> Matmul<'a> {
        Matmul { add, ..self }
    }

    /// Whether c becomes GELU, in its tanh form, of the sums (see [`crate::device::cpu::gelu_tanh`]), rounded to c's storage
    /// behind it. Not of one that is added.
    #[must_use]
    pub fn with_gelu(self, gelu: bool) -> Matmul<'a> {
        Matmul { gelu, ..self }
    }

    /// An error unless the arrays have all elements that it reads or writes.
    pub(super) fn check(&self) -> Result<()> {
        let (m, n, k) = self.sizes;
        for (name, x, r, c) in [("a", &self.a, m, k), ("b", &self.b, k, n), ("c", &self.c, m, n)] {
            if !x.holds(r, c) {
                let want = format!("[{r}, {c}] in rows of {}", x.row);
                return Err(Error::argument("matmul", name, want, format!("{} elements", x.len)));
            }
        }
        if self.bias.is_some() && self.bias_len < n {
            return Err(Error::argument("matmul", "bias", n, self.bias_len));
        }
        if self.gelu && self.add {
            return Err(Error::argument("matmul", "gelu", "a matmul that replaces c", self.name()));
        }
        Ok(())
    }

    pub(super) fn kind(&self) -> Kind {
        let storages = [self.a.storage, self.c.storage];
        Kind { sizes: self.sizes, storages, bias: self.bias.is_some(), add: self.add, gelu: self.gelu }
    }

    /// Sizes and storages.
    pub fn name(&self) -> String {
        self.kind().name()
    }

    /// Of a, b and c; c twice if it is added to.
    pub fn bytes(&self) -> usize {
        let (m, n, k) = self.sizes;
        let c = m * n * self.c.storage.bytes();
        (m * k + k * n) * self.a.storage.bytes() + if self.add { 2 * c } else { c }
    }
}
