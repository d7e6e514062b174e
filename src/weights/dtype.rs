//! The element types of files.

use std::fmt;

/// How a number of a file is stored, as safetensors and PyTorch call it.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Dtype {
    /// Every one.
    pub const ALL: [Dtype; 10] = [
        Dtype::F64,
        Dtype::F32,
        Dtype::F16,
        Dtype::Bf16,
        Dtype::I64,
        Dtype::I32,
        Dtype::I16,
        Dtype::I8,
        Dtype::U8,
        Dtype::Bool,
    ];

    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F64 | Dtype::I64 => 8,
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::F16 | Dtype::Bf16 | Dtype::I16 => 2,
            Dtype::I8 | Dtype::U8 | Dtype::Bool => 1,
        }
    }

    /// As safetensors writes it.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F64 => "F64",
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::I64 => "I64",
            Dtype::I32 => "I32",
            Dtype::I16 => "I16",
            Dtype::I8 => "I8",
            Dtype::U8 => "U8",
            Dtype::Bool => "BOOL",
        }
    }

    /// By the name that safetensors has for it.
    pub fn named(name: &str) -> Option<Dtype> {
        Dtype::ALL.into_iter().find(|d| d.name() == name)
    }

    /// Whether it has a fraction.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Floating point bytes as f32: f64 rounded to nearest, the others exactly. None for integers.
pub fn to_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let two = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    Some(match dtype {
        Dtype::F32 => bytemuck::pod_collect_to_vec(bytes),
        Dtype::F16 => bytes.chunks_exact(2).map(|b| half::f16::from_bits(two(b)).to_f32()).collect(),
        Dtype::Bf16 => bytes.chunks_exact(2).map(|b| half::bf16::from_bits(two(b)).to_f32()).collect(),
        Dtype::F64 => bytemuck::pod_collect_to_vec::<u8, f64>(bytes).iter().map(|x| *x as f32).collect(),
        _ => return None,
    })
}

/// The first number of floating point bytes that is infinite or none.
pub fn first_non_finite(dtype: Dtype, bytes: &[u8]) -> Option<usize> {
    let two = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    match dtype {
        Dtype::F16 => bytes.chunks_exact(2).position(|b| two(b) & 0x7c00 == 0x7c00),
        Dtype::Bf16 => bytes.chunks_exact(2).position(|b| two(b) & 0x7f80 == 0x7f80),
        Dtype::F32 => bytes.chunks_exact(4).position(|b| u16::from_le_bytes([b[2], b[3]]) & 0x7f80 == 0x7f80),
        Dtype::F64 => bytes.chunks_exact(8).position(|b| u16::from_le_bytes([b[6], b[7]]) & 0x7ff0 == 0x7ff0),
        _ => None,
    }
}
