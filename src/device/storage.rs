//! How a GPU stores the elements of an array.

/// How elements are stored. Arithmetic is in f32 all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Storage {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
    BF16,
    /// Tables that kernels work from.
    I32,
    /// Pictures.
    U8,
}

impl Storage {
    /// Of an element.
    pub fn bytes(self) -> usize {
        match self {
            Storage::F32 | Storage::I32 => 4,
            Storage::F16 | Storage::BF16 => 2,
            Storage::U8 => 1,
        }
    }

    /// As the names of kernels end.
    pub fn name(self) -> &'static str {
        match self {
            Storage::F32 => "f32",
            Storage::F16 => "f16",
            Storage::BF16 => "bf16",
            Storage::I32 => "i32",
            Storage::U8 => "u8",
        }
    }
}
