//! Philox4x32-10 (Salmon et al., SC 2011): random numbers without state, the same on every device.
//!
//! A number is named by (seed, step, site, element): key = seed (low, high), counter = (element / 4 low, high, site, step),
//! word element % 4. A *site* is one place in the model that draws (a dropout, the sampling of negatives, ...).

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// The four words of one counter.
#[inline(always)]
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        counter = round(counter, key);
        key = next(key);
    }
    counter
}

#[inline(always)]
fn round([c0, c1, c2, c3]: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (a, b) = (u64::from(c0) * u64::from(MULTIPLIERS[0]), u64::from(c2) * u64::from(MULTIPLIERS[1]));
    [(b >> 32) as u32 ^ c1 ^ key[0], b as u32, (a >> 32) as u32 ^ c3 ^ key[1], a as u32]
}

#[inline(always)]
fn next([a, b]: [u32; 2]) -> [u32; 2] {
    [a.wrapping_add(KEY_STEPS[0]), b.wrapping_add(KEY_STEPS[1])]
}

/// One stream of numbers: a seed, a step and a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Of the run.
    pub seed: u64,
    /// Of the run.
    pub step: u32,
    /// Which of a step's draws.
    pub site: u32,
}

impl Stream {
    /// The four words of elements 4 index to 4 index + 3.
    #[inline(always)]
    pub fn block(&self, index: u64) -> [u32; 4] {
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

    /// The blocks `index ..` of LANES consecutive counters: out`[w][i]` is word w of block index + i. Lane by lane, so that
    /// the rounds vectorise.
    #[inline(always)]
    pub fn blocks<const LANES: usize>(&self, index: u64, out: &mut [[u32; LANES]; 4]) {
        let mut key = [self.seed as u32, (self.seed >> 32) as u32];
        let [c0, c1, c2, c3] = out;
        for i in 0..LANES {
            let n = index.wrapping_add(i as u64);
            (c0[i], c1[i], c2[i], c3[i]) = (n as u32, (n >> 32) as u32, self.site, self.step);
        }
        for _ in 0..ROUNDS {
            for i in 0..LANES {
                [c0[i], c1[i], c2[i], c3[i]] = round([c0[i], c1[i], c2[i], c3[i]], key);
            }
            key = next(key);
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
    fn normals_are_normal() {
        let stream = Stream { seed: 1, step: 0, site: 0 };
        let x: Vec<f64> = (0..100_000).map(|i| stream.normal(i)).collect();
        let mean = x.iter().sum::<f64>() / 1e5;
        let var = x.iter().map(|x| x * x).sum::<f64>() / 1e5;
        assert!(mean.abs() < 5.0 / 1e5f64.sqrt(), "mean {mean}");
        assert!((var - 1.0).abs() < 5.0 * (2.0 / 1e5f64).sqrt(), "variance {var}");
    }
}
