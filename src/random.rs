//! Philox4x32-10 (Salmon et al., SC 2011): random numbers without state, the same on every device.
//!
//! A number is named by (seed, step, site, element): key = seed (low, high), counter = (element / 4 low, high, site, step),
//! word element % 4. A *site* is one place in the model that draws (a dropout, the sampling of negatives, ...).

use super::Real;

/// The four words of one counter.
#[inline(always)]
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// One stream of numbers: a seed, a step and a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    pub seed: u64,
    pub step: u32,
    pub site: u32,
}

impl Stream {
    #[inline(always)]
    fn block(&self, index: u64) -> [u32; 4] {
        let counter = [index as u32, (index >> 32) as u32, self.site, self.step];
        philox(counter, [self.seed as u32, (self.seed >> 32) as u32])
    }

    /// 32 random bits.
    #[inline(always)]
    pub fn bits(&self, element: u64) -> u32 {
        self.block(element / 4)[(element % 4) as usize]
    }

    /// Uniform in [0, 1), 24 bits.
    pub fn uniform(&self, element: u64) -> f64 {
        f64::from(self.bits(element) >> 8) / f64::from(1 << 24)
    }

    /// Normal with mean 0 and variance 1 (Box-Muller; elements 2i and 2i+1 share two words).
    pub fn normal(&self, element: u64) -> f64 {
        let w = self.block(element / 2);
        let u = (f64::from(w[0]) + 0.5) / 4_294_967_296.0;
        let v = (f64::from(w[1]) + 0.5) / 4_294_967_296.0;
        let (r, a) = ((-2.0 * u.ln()).sqrt(), 2.0 * std::f64::consts::PI * v);
        if element.is_multiple_of(2) { r * a.cos() } else { r * a.sin() }
    }
}

/// Inverted dropout: an element is kept iff its word >= p * 2^32, and then divided by 1 - p.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    pub p: f32,
    pub stream: Stream,
}

impl Dropout {
    #[inline(always)]
    pub fn threshold(&self) -> u32 {
        (f64::from(self.p) * 4_294_967_296.0) as u32
    }

    /// The factors (0 or 1/(1-p)) of elements `first ..`, written into `out`.
    #[inline(always)]
    pub fn factors<T: Real>(&self, first: u64, out: &mut [T]) {
        const LANES: usize = 16; // whole counters at a time, so that the rounds vectorise
        let (keep, threshold) = (T::of(1.0 / (1.0 - f64::from(self.p))), self.threshold());
        let lead = ((4 - first % 4) % 4).min(out.len() as u64) as usize;
        let (head, body) = out.split_at_mut(lead);
        let pick = |w: u32| if w >= threshold { keep } else { T::ZERO };
        for (i, f) in head.iter_mut().enumerate() {
            *f = pick(self.stream.bits(first + i as u64));
        }
        let mut index = (first + lead as u64) / 4;
        let mut blocks = body.chunks_exact_mut(4 * LANES);
        for chunk in &mut blocks {
            let mut words = [[0u32; LANES]; 4];
            self.lanes(index, &mut words);
            for (i, four) in chunk.chunks_exact_mut(4).enumerate() {
                for (f, w) in four.iter_mut().zip(&words) {
                    *f = pick(w[i]);
                }
            }
            index += LANES as u64;
        }
        for four in blocks.into_remainder().chunks_mut(4) {
            let w = self.stream.block(index);
            for (f, w) in four.iter_mut().zip(w) {
                *f = pick(w);
            }
            index += 1;
        }
    }

    /// Multiplies elements `first ..` by their factors.
    #[inline(always)]
    pub fn apply<T: Real>(&self, first: u64, row: &mut [T]) {
        const PIECE: usize = 512;
        let mut factors = [T::ZERO; PIECE];
        let mut first = first;
        for part in row.chunks_mut(PIECE) {
            let f = &mut factors[..part.len()];
            self.factors(first, f);
            for (x, f) in part.iter_mut().zip(f) {
                *x *= *f;
            }
            first += part.len() as u64;
        }
    }

    /// `philox` of LANES consecutive counters, lane by lane.
    #[inline(always)]
    fn lanes<const LANES: usize>(&self, index: u64, out: &mut [[u32; LANES]; 4]) {
        let s = &self.stream;
        let mut key = [s.seed as u32, (s.seed >> 32) as u32];
        let [c0, c1, c2, c3] = out;
        for i in 0..LANES {
            let n = index.wrapping_add(i as u64);
            (c0[i], c1[i], c2[i], c3[i]) = (n as u32, (n >> 32) as u32, s.site, s.step);
        }
        for _ in 0..10 {
            for i in 0..LANES {
                let a = u64::from(c0[i]) * 0xD251_1F53;
                let b = u64::from(c2[i]) * 0xCD9E_8D57;
                c0[i] = (b >> 32) as u32 ^ c1[i] ^ key[0];
                c1[i] = b as u32;
                c2[i] = (a >> 32) as u32 ^ c3[i] ^ key[1];
                c3[i] = a as u32;
            }
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of Random123's kat_vectors, philox4x32 with 10 rounds.
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn factors_are_the_bits_of_their_elements() {
        let drop = Dropout { p: 0.1, stream: Stream { seed: 7 << 33 | 5, step: 3, site: 9 } };
        for first in [0u64, 1, 2, 3, 61, (1 << 34) + 1] {
            for len in [0usize, 1, 3, 4, 63, 64, 65, 200] {
                let mut f = vec![9f32; len];
                drop.factors(first, &mut f);
                for (i, f) in f.iter().enumerate() {
                    let kept = drop.stream.bits(first + i as u64) >= drop.threshold();
                    assert_eq!(*f, if kept { (1.0 / (1.0 - f64::from(0.1f32))) as f32 } else { 0.0 });
                }
            }
        }
    }

    #[test]
    fn dropout_keeps_its_share_and_normals_are_normal() {
        let stream = Stream { seed: 1, step: 0, site: 0 };
        let mut f = vec![0f64; 100_000];
        Dropout { p: 0.1, stream }.factors(0, &mut f);
        let kept = f.iter().filter(|x| **x > 0.0).count() as f64 / 1e5;
        assert!((kept - 0.9).abs() < 5.0 * (0.09f64 / 1e5).sqrt(), "kept {kept}");
        let x: Vec<f64> = (0..100_000).map(|i| stream.normal(i)).collect();
        let mean = x.iter().sum::<f64>() / 1e5;
        let var = x.iter().map(|x| x * x).sum::<f64>() / 1e5;
        assert!(mean.abs() < 5.0 / 1e5f64.sqrt(), "mean {mean}");
        assert!((var - 1.0).abs() < 5.0 * (2.0 / 1e5f64).sqrt(), "variance {var}");
    }
}
