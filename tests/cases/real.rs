//! exp and erf in f32 against f64, over the whole range (the bounds are promised by `device::Real`)

use qformer::device::Real;

/// Distance in units of the last place of the true value.
fn ulps(got: f32, want: f64) -> f64 {
    let near = want as f32;
    let ulp = f64::from(f32::from_bits(near.to_bits() + 1)) - f64::from(near);
    (f64::from(got) - want).abs() / ulp
}

/// Every 1009th float of a range of bits (a prime: no pattern of low bits is left out).
fn floats(from: f32, to: f32) -> impl Iterator<Item = f32> {
    (from.to_bits()..=to.to_bits()).step_by(1009).map(f32::from_bits)
}

#[test]
fn exp_is_within_2_ulp() {
    let all = floats(1e-30, 88.2).chain(floats(1e-30, 87.2).map(|x| -x));
    let worst = all
        .map(|x| (ulps(Real::exp(x), f64::from(x).exp()), x))
        .fold((0.0, 0.0), |a, b| if b.0 > a.0 { b } else { a });
    assert!(worst.0 <= 2.0, "off by {} ulp at {}", worst.0, worst.1);
    assert_eq!(Real::exp(0f32), 1.0);
    assert_eq!([-88.0, -1e30, f32::NEG_INFINITY].map(|x: f32| Real::exp(x)), [0.0; 3]);
    assert_eq!([89.0, 1e30, f32::INFINITY].map(|x: f32| Real::exp(x)), [f32::INFINITY; 3]);
    assert!(Real::exp(f32::NAN).is_nan());
}

#[test]
fn erf_is_within_4e_7() {
    let error = |x: f32| ((f64::from(Real::erf(x)) - libm::erf(f64::from(x))).abs(), x);
    let all = floats(1e-30, 30.0).flat_map(|x| [error(x), error(-x)]);
    let worst = all.fold((0.0, 0.0), |a, b| if b.0 > a.0 { b } else { a });
    assert!(worst.0 <= 4e-7, "off by {:e} at {}", worst.0, worst.1);
    assert_eq!([0.0, f32::INFINITY, f32::NEG_INFINITY].map(|x: f32| Real::erf(x)), [0.0, 1.0, -1.0]);
    assert!(Real::erf(f32::NAN).is_nan());
}
