//! Matrix products, row-major:     c [m,n] = (c +) a [m,k] b [k,n] (+ bias [n]),  or GELU of it

use super::{Array, Storage};
use std::ffi::c_void;

/// A matrix on the device: `row` elements from row to row, and whether it stands there transposed.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    pub at: *mut c_void,
    pub storage: Storage,
    pub row: usize,
    pub transposed: bool,
}

impl Operand {
    /// Rows of `width` elements.
    pub fn rows(array: &Array, width: usize) -> Operand {
        Operand { at: array.pointer(), storage: array.storage(), row: width, transposed: false }
    }

    /// Columns of rows of `width` elements, from one on.
    pub fn columns(array: &Array, width: usize, from: usize) -> Operand {
        let at = array.pointer().wrapping_byte_add(from * array.storage().bytes());
        Operand { at, ..Operand::rows(array, width) }
    }

    #[must_use]
    pub fn transposed(self) -> Operand {
        Operand { transposed: !self.transposed, ..self }
    }
}

/// Sums are in f32 whatever the storages are; those of a and b are the same. Callers vouch for the sizes.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// m, n, k
    pub sizes: (usize, usize, usize),
    pub a: Operand,
    pub b: Operand,
    pub c: Operand,
    /// Added to every row; stored as c is.
    pub bias: Option<*mut c_void>,
    /// Whether the product is added to c, or replaces it.
    pub add: bool,
    /// c becomes GELU, in its tanh form, of the sums (see [`crate::device::cpu::gelu_tanh`]), rounded to c's storage behind
    /// it. Not of a product that is added.
    pub gelu: bool,
}

/// Sizes and storages of a product: what it has in common with others of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    sizes: (usize, usize, usize),
    storages: [Storage; 2],
    bias: bool,
    add: bool,
    gelu: bool,
}

impl Kind {
    pub fn name(self) -> String {
        let ((m, n, k), [from, to]) = (self.sizes, self.storages.map(Storage::name));
        let (bias, add) = (if self.bias { " + bias" } else { "" }, if self.add { ", added" } else { "" });
        let gelu = if self.gelu { ", gelu" } else { "" };
        format!("{from} [{m}, {k}] x [{k}, {n}]{bias}{gelu} -> {to}{add}")
    }
}

impl Product {
    /// c = a b: no bias, nothing added, no GELU.
    pub fn of(sizes: (usize, usize, usize), a: Operand, b: Operand, c: Operand) -> Product {
        Product { sizes, a, b, c, bias: None, add: false, gelu: false }
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
