//! Draws of the data: an endless row of random numbers for each name, by Philox ([`crate::random`]).
//!
//! The key is the seed, the counter says which draw it is, so any draw of any epoch can be had at once and in any order, and
//! nothing has to be saved to resume.

use crate::random::philox;

/// One endless row of draws, named by a seed and three words (site, epoch, data set).
#[derive(Clone, Copy, Debug)]
pub struct Draws {
    key: [u32; 2],
    name: [u32; 3],
}

impl Draws {
    /// The draws of a seed and a name.
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
