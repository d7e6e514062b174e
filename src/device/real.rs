//! The two element types the CPU computes in: f32 (the working precision) and f64 (the oracle).
//!
//! `exp` and `erf` in f32 are polynomials without branches, so that loops over them vectorise and give the same bits on
//! every machine; in f64 they are `libm`'s. Errors of the f32 versions against f64: exp <= 2 ulp, erf <= 4e-7 absolute
//! (`tests/ops.rs` measures both over the whole range).

use std::fmt::{self, Debug};
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

/// The type of an element in the host's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// The working precision.
    F32,
    /// The oracle.
    F64,
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
        })
    }
}

/// An element that the CPU computes with.
pub trait Real:
    bytemuck::Pod
    + super::gemm::Element
    + Debug
    + Default
    + PartialOrd
    + Send
    + Sync
    + Sum
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
{
    /// Which of the two it is.
    const DTYPE: DType;
    /// 0
    const ZERO: Self;
    /// 1
    const ONE: Self;
    /// Rounded to this type.
    fn of(x: f64) -> Self;
    /// Without loss.
    fn to_f64(self) -> f64;
    /// e to this power.
    fn exp(self) -> Self;
    /// The natural logarithm.
    fn ln(self) -> Self;
    /// The error function.
    fn erf(self) -> Self;
    /// The square root.
    fn sqrt(self) -> Self;
    /// self * a + b with one rounding.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// Neither NaN nor infinite.
    fn is_finite(self) -> bool;
    /// Not a number.
    fn is_nan(self) -> bool;
}

impl Real for f64 {
    const DTYPE: DType = DType::F64;
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    #[inline(always)]
    fn of(x: f64) -> f64 {
        x
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn exp(self) -> f64 {
        libm::exp(self)
    }
    #[inline(always)]
    fn ln(self) -> f64 {
        libm::log(self)
    }
    #[inline(always)]
    fn erf(self) -> f64 {
        libm::erf(self)
    }
    #[inline(always)]
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }
    #[inline(always)]
    fn mul_add(self, a: f64, b: f64) -> f64 {
        f64::mul_add(self, a, b)
    }
    #[inline(always)]
    fn is_finite(self) -> bool {
        f64::is_finite(self)
    }
    fn is_nan(self) -> bool {
        f64::is_nan(self)
    }
}

impl Real for f32 {
    const DTYPE: DType = DType::F32;
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    #[inline(always)]
    fn of(x: f64) -> f32 {
        x as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    /// e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln 2 / 2, e^r by its Taylor polynomial of degree 7.
    #[inline(always)]
    fn exp(self) -> f32 {
        const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to the nearest integer
        const LN2_HIGH: f32 = 0.693_359_4; // 355/512, exact in 10 bits
        const LN2_LOW: f32 = -2.121_944_4e-4;
        let z = f32::mul_add(self, std::f32::consts::LOG2_E, ROUND);
        let n = z - ROUND;
        let r = f32::mul_add(n, -LN2_LOW, f32::mul_add(n, -LN2_HIGH, self));
        let mut p = 1.0 / 5040.0;
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = f32::mul_add(p, r, c);
        }
        let two_n = f32::from_bits((z.to_bits() << 23).wrapping_add(0x3f80_0000));
        // The comparisons are false for NaN, which then comes out of the polynomial.
        if self < -87.3 {
            0.0
        } else if self > 88.3 {
            f32::INFINITY
        } else {
            p * two_n
        }
    }
    #[inline(always)]
    fn ln(self) -> f32 {
        f32::ln(self)
    }
    /// Abramowitz and Stegun 7.1.26 is too coarse; this is erf(x) = 1 - e^(-x^2) P(t), t = 1 / (1 + x/2), the
    /// Chebyshev fit of erfc from Numerical Recipes (fractional error below 1.2e-7), and x's series near 0.
    #[inline(always)]
    fn erf(self) -> f32 {
        let a = self.abs();
        let t = 1.0 / f32::mul_add(0.5, a, 1.0);
        let mut p = 0.170_872_77;
        for c in [
            -0.822_152_2,
            1.488_515_9,
            -1.135_204,
            0.278_868_1,
            -0.186_288_06,
            0.096_784_18,
            0.374_091_96,
            1.000_023_7,
            -1.265_512_2,
        ] {
            p = f32::mul_add(p, t, c);
        }
        let far = 1.0 - t * Real::exp(f32::mul_add(-a, a, p));
        // 2/sqrt(pi) * (x - x^3/3 + x^5/10 - x^7/42 + x^9/216 - x^11/1320): below 0.5 its error is under 3e-8
        let s = a * a;
        let mut q = -1.0 / 1320.0;
        for c in [1.0 / 216.0, -1.0 / 42.0, 0.1, -1.0 / 3.0, 1.0] {
            q = f32::mul_add(q, s, c);
        }
        let near = a * q * std::f32::consts::FRAC_2_SQRT_PI;
        let y = if a < 0.5 { near } else { far };
        if self < 0.0 { -y } else { y }
    }
    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32) -> f32 {
        f32::mul_add(self, a, b)
    }
    #[inline(always)]
    fn is_finite(self) -> bool {
        f32::is_finite(self)
    }
    fn is_nan(self) -> bool {
        f32::is_nan(self)
    }
}
