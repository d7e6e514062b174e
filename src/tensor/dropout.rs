//! Inverted dropout: which elements are kept, by their number in a random stream.

use super::{Real, Stream};

/// Inverted dropout: an element is kept iff its word >= p * 2^32, and then divided by 1 - p.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// The probability that an element is dropped.
    pub p: f32,
    /// Where its random numbers come from.
    pub stream: Stream,
}

impl Dropout {
    /// Random words below it drop their element.
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
            self.stream.blocks(index, &mut words);
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
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn dropout_keeps_its_share() {
        let stream = Stream { seed: 1, step: 0, site: 0 };
        let mut f = vec![0f64; 100_000];
        Dropout { p: 0.1, stream }.factors(0, &mut f);
        let kept = f.iter().filter(|x| **x > 0.0).count() as f64 / 1e5;
        assert!((kept - 0.9).abs() < 5.0 * (0.09f64 / 1e5).sqrt(), "kept {kept}");
    }
}
