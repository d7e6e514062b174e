//! Random numbers without state: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11).
//!
//!   block = philox(counter, key): ten rounds of
//!     (c0, c1, c2, c3) <- (hi(M1*c2) ^ c1 ^ k0, lo(M1*c2), hi(M0*c0) ^ c3 ^ k1, lo(M0*c0)),   k += W
//!
//! The key is the seed, the counter says which draw it is, so any draw of any epoch can be had at
//! once and in any order, and nothing has to be saved to resume.

const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;

/// Four words of random bits for this counter under this key.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let p0 = u64::from(M0) * u64::from(c0);
        let p1 = u64::from(M1) * u64::from(c2);
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(W0);
        k1 = k1.wrapping_add(W1);
    }
    [c0, c1, c2, c3]
}

/// One endless row of draws, named by a seed and three words (site, epoch, data set).
#[derive(Clone, Copy, Debug)]
pub struct Draws {
    key: [u32; 2],
    name: [u32; 3],
}

impl Draws {
    pub fn new(seed: u64, name: [u32; 3]) -> Self {
        Draws { key: [seed as u32, (seed >> 32) as u32], name }
    }

    /// Draw number `n`: 64 random bits.
    pub fn bits(&self, n: u32) -> u64 {
        let [a, b, c] = self.name;
        let [x, y, ..] = philox([n, a, b, c], self.key);
        u64::from(x) << 32 | u64::from(y)
    }

    /// Draw number `n` as a whole number below `bound` (0 where `bound` is 0). Its bias is below `bound` / 2^64.
    pub fn below(&self, n: u32, bound: u32) -> u32 {
        ((u128::from(self.bits(n)) * u128::from(bound)) >> 64) as u32
    }

    /// Draw number `n` as a number in [0, 1).
    pub fn unit(&self, n: u32) -> f64 {
        (self.bits(n) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// The numbers 0..n in random order (Fisher-Yates, from the back).
    pub fn permutation(&self, n: u32) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i as usize, self.below(i, i + 1) as usize);
        }
        order
    }
}
