//! What tells a set of tensors from any other: one blake3 over their names, shapes and numbers.
//!   line of a tensor = NAME DTYPE SHAPE blake3(its numbers in DTYPE), DTYPE is F16 if that holds each of them exactly, else F32
//!   identity         = blake3(the lines, sorted by name)
//! It is the same whatever dtype and order a file has them in. A file carries it in its metadata, so that parts of two
//! models are told apart without reading a tensor.

use super::{Dtype, to_f32};
use std::collections::BTreeMap;

/// Numbers in the smallest dtype that holds them exactly.
pub type Narrow = (Dtype, blake3::Hash);

/// What numbers files hold, wherever and however they are stored.
#[derive(Default)]
pub struct Identity(BTreeMap<String, String>);

impl Identity {
    /// Takes a tensor in.
    pub fn add(&mut self, name: &str, shape: &[usize], (dtype, hash): Narrow) {
        self.0.insert(name.to_string(), format!("{name} {dtype} {shape:?} {}\n", hash.to_hex()));
    }

    /// None if nothing was added.
    pub fn finish(&self) -> Option<String> {
        let lines: String = self.0.values().map(String::as_str).collect();
        (!self.0.is_empty()).then(|| blake3::hash(lines.as_bytes()).to_hex().to_string())
    }
}

/// The numbers in f16 where that loses nothing, and their hash.
pub fn narrow(values: &[f32]) -> Narrow {
    let half = |x: &f32| half::f16::from_f32(*x);
    if values.iter().all(|x| half(x).to_f32().to_bits() == x.to_bits()) {
        let halves: Vec<half::f16> = values.iter().map(half).collect();
        return (Dtype::F16, blake3::hash(bytemuck::cast_slice(&halves)));
    }
    (Dtype::F32, blake3::hash(bytemuck::cast_slice(values)))
}

/// Of numbers as they lie in a file; None if they are no floating point numbers.
pub fn narrow_bytes(dtype: Dtype, bytes: &[u8]) -> Option<Narrow> {
    if dtype == Dtype::F16 {
        return Some((dtype, blake3::hash(bytes)));
    }
    to_f32(dtype, bytes).map(|values| narrow(&values))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(tensors: &[(&str, &[usize], Narrow)]) -> Option<String> {
        let mut all = Identity::default();
        tensors.iter().for_each(|(name, shape, narrow)| all.add(name, shape, *narrow));
        all.finish()
    }

    #[test]
    fn the_same_numbers_have_one_identity_in_any_dtype_and_order() {
        let values = [1.0f32, -0.5, 65504.0];
        let halves: Vec<half::f16> = values.iter().map(|x| half::f16::from_f32(*x)).collect();
        let (wide, short) = (bytemuck::cast_slice(&values), bytemuck::cast_slice(&halves));
        let f32 = narrow_bytes(Dtype::F32, wide).unwrap();
        assert_eq!(f32, narrow_bytes(Dtype::F16, short).unwrap());
        let other = narrow(&[1.0, -0.5, 65504.5]);
        assert_eq!(other.0, Dtype::F32);
        let both = identity(&[("a", &[3], f32), ("b", &[1, 3], other)]);
        assert_eq!(both, identity(&[("b", &[1, 3], other), ("a", &[3], f32)]));
        for changed in [
            identity(&[("a", &[3], other), ("b", &[1, 3], f32)]),
            identity(&[("a", &[1, 3], f32), ("b", &[1, 3], other)]),
            identity(&[("a", &[3], f32)]),
        ] {
            assert_ne!(both, changed);
        }
        assert_eq!(identity(&[]), None);
    }
}
