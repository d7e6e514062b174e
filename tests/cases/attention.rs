//! Attention over segments: y_i = sum over the keys j that row i sees of (softmax(scale q_i k_j) m) v_j, head by head

use super::dropout;
use super::harness::{Case, Input, Rng, distance, gradient_of, prove, prove_one, t};
use qformer::device::Real;
use qformer::ops::{Grouped, Heads, Segment, Segments};
use qformer::tensor::{Dropout, Stream, Tensor};
use qformer::{Result, ops};
use std::ops::Range;

#[derive(Debug)]
struct Attention {
    heads: usize,
    /// Query heads of a key head.
    group: usize,
    d: usize,
    /// Query and key rows.
    rows: [usize; 2],
    segments: Vec<Segment>,
    /// Which tensor q, k and v are in, from which column on, and how wide each tensor is.
    place: [usize; 3],
    column: [usize; 3],
    widths: Vec<usize>,
    values: Vec<Vec<f64>>,
    scale: f64,
    drop: Option<Dropout>,
}

/// A range within 0..n, sometimes empty.
fn range(rng: &mut Rng, from: usize, to: usize) -> Range<usize> {
    let (a, b) = (from + rng.below(to - from + 1), from + rng.below(to - from + 1));
    a.min(b)..a.max(b)
}

/// Query rows cut into pieces, in any order; a piece may belong to no segment. Keys are shared at random.
fn segments(rng: &mut Rng, q: usize, k: usize) -> Vec<Segment> {
    let (mut list, mut at) = (Vec::new(), 0);
    while at < q {
        let end = (at + 1 + rng.below(4)).min(q);
        if !rng.one_in(6) {
            let middle = rng.below(k + 1);
            let (mut a, mut b) = (range(rng, 0, middle), range(rng, middle, k));
            if rng.one_in(2) {
                std::mem::swap(&mut a, &mut b);
            }
            if rng.one_in(4) {
                a = 0..0;
            }
            if rng.one_in(4) {
                b = 0..0;
            }
            let place = rng.below(list.len() + 1);
            list.insert(place, Segment { q: at..end, a, b, causal: rng.one_in(2) });
        }
        at = end;
    }
    list
}

fn draw(rng: &mut Rng) -> Attention {
    let (key_heads, d) = (rng.pick(&[1, 1, 2, 3]), rng.pick(&[1, 2, 3, 5, 8, 16]));
    let group = rng.pick(&[1, 1, 1, 2, 3]);
    let heads = key_heads * group;
    let (c, kc) = (heads * d, key_heads * d);
    // Three tensors, one for keys and values, or one for all; then all have as many rows as one another.
    let kind = rng.below(3);
    let q = rng.pick(&[0, 1, 2, 3, 5, 7, 12]);
    let k = if kind == 2 { q } else { rng.pick(&[0, 1, 2, 3, 5, 8, 13, 19]) };
    let (place, column, widths) = match kind {
        0 => {
            let more = [0, 1, 2].map(|_| rng.pick(&[0, 0, 1, 4]));
            // One of them ends with its heads: that gives the head size.
            let (column, rest) = (more, [0, rng.below(2), rng.below(3)]);
            ([0, 1, 2], column, (0..3).map(|i| column[i] + if i == 0 { c } else { kc } + rest[i]).collect())
        }
        1 => ([0, 1, 1], [0, 0, kc], vec![c, 2 * kc]),
        _ => ([0, 0, 0], [kc, 0, kc + c], vec![2 * kc + c]),
    };
    let rows = |tensor: usize| if tensor == 0 { q } else { k };
    let values = (0..widths.len()).map(|i| rng.values(rows(i) * widths[i])).collect();
    let drop = rng.one_in(2).then(|| dropout::random(rng));
    let scale = rng.pick(&[1.0, 0.5, (d as f64).powf(-0.5)]);
    Attention {
        heads,
        group,
        d,
        rows: [q, k],
        segments: segments(rng, q, k),
        place,
        column,
        widths,
        values,
        scale,
        drop,
    }
}

impl Attention {
    /// Key rows that row i of a segment sees, with their position among the segment's keys.
    fn seen(s: &Segment, i: usize) -> Vec<(usize, usize)> {
        let b = if s.causal { s.b.start..s.b.end.min(s.b.start + i + 1) } else { s.b.clone() };
        s.a.clone().chain(b).enumerate().collect()
    }

    fn run_with(&self, x: &[Tensor], segments: Vec<Segment>) -> Result<Tensor> {
        let segments = Segments::new(segments, self.rows[0], self.rows[1])?;
        let heads = [0, 1, 2].map(|i| Heads { tensor: &x[self.place[i]], column: self.column[i] });
        let key_heads = self.heads / self.group;
        let grouped = Grouped { heads: self.heads, key_heads, size: self.d };
        ops::grouped_attention(heads, &segments, grouped, self.scale, self.drop)
    }
}

impl Case for Attention {
    fn inputs(&self) -> Vec<Input> {
        let rows = |i: usize| self.rows[usize::from(i > 0)];
        (0..self.widths.len())
            .map(|i| Input::new(&[rows(i), self.widths[i]], self.values[i].clone()))
            .collect()
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        self.run_with(x, self.segments.clone())
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let (h, d) = (self.heads, self.d);
        let element = |which: usize, row: usize, head: usize, j: usize| {
            let tensor = self.place[which];
            x[tensor][row * self.widths[tensor] + self.column[which] + head * d + j]
        };
        let mut y = vec![T::ZERO; self.rows[0] * h * d];
        for s in &self.segments {
            for (i, row) in s.q.clone().enumerate() {
                for head in 0..h {
                    let seen = Self::seen(s, i);
                    let score = |key: usize| {
                        let dot = (0..d).fold(T::ZERO, |sum, j| {
                            sum + element(0, row, head, j) * element(1, key, head / self.group, j)
                        });
                        (dot * T::of(self.scale)).exp()
                    };
                    let e: Vec<T> = seen.iter().map(|(_, key)| score(*key)).collect();
                    let total = e.iter().fold(T::ZERO, |sum, e| sum + *e);
                    for ((position, key), e) in seen.iter().zip(&e) {
                        let number = ((row * h + head) << 16) + position;
                        let m = self.drop.map_or(1.0, |drop| dropout::factor(drop, number as u64));
                        for j in 0..d {
                            y[(row * h + head) * d + j] +=
                                *e / total * T::of(m) * element(2, *key, head / self.group, j);
                        }
                    }
                }
            }
        }
        (vec![self.rows[0], h * d], y)
    }
}

#[test]
fn equals_its_definition_and_differences() {
    prove(draw);
}

/// More keys than dropout draws factors for at a time (256 backward, 512 forward), and vector loops with rests.
#[test]
fn many_keys() {
    for drop in [None, Some(Dropout { p: 0.3, stream: Stream { seed: 5, step: 2, site: 1 } })] {
        let mut rng = Rng::new(77);
        let (q, k, c) = (3, 1203, 4);
        let values = vec![rng.values(q * c), rng.values(k * c), rng.values(k * c)];
        let segment = |q: Range<usize>, a: Range<usize>, b: Range<usize>, causal| Segment { q, a, b, causal };
        let segments = vec![segment(0..1, 0..1203, 0..0, false), segment(1..3, 600..1199, 3..560, true)];
        let case = Attention {
            heads: 2,
            group: 1,
            d: 2,
            rows: [q, k],
            segments,
            place: [0, 1, 2],
            column: [0; 3],
            widths: vec![c; 3],
            values,
            scale: 0.7,
            drop,
        };
        prove_one(&case, 0, &mut rng);
    }
}

/// The sizes of a picture: heads of 88 columns, 257 rows that see one another; heads of 64, queries of three texts at the
/// rows of two pictures.
#[test]
fn pictures() {
    let mut rng = Rng::new(78);
    let segment = |q: Range<usize>, a: Range<usize>| Segment { q, a, b: 0..0, causal: false };
    let one = Attention {
        heads: 1,
        group: 1,
        d: 88,
        rows: [257; 2],
        segments: vec![segment(0..257, 0..257)],
        place: [0; 3],
        column: [0, 88, 176],
        widths: vec![264],
        values: vec![rng.values(257 * 264)],
        scale: 88f64.powf(-0.5),
        drop: None,
    };
    prove_one(&one, 0, &mut rng);
    let two = Attention {
        heads: 2,
        group: 1,
        d: 64,
        rows: [96, 300],
        segments: vec![segment(0..32, 150..300), segment(32..64, 0..150), segment(64..96, 150..300)],
        place: [0, 1, 1],
        column: [0, 0, 128],
        widths: vec![128, 256],
        values: vec![rng.values(96 * 128), rng.values(300 * 256)],
        scale: 0.125,
        drop: Some(Dropout { p: 0.1, stream: Stream { seed: 5, step: 2, site: 1 } }),
    };
    prove_one(&two, 0, &mut rng);
}

/// Head sizes of language models, with one and several query heads to a key head, causal: two samples of 40 and 35 rows.
#[test]
fn heads_of_language_models() {
    let mut rng = Rng::new(79);
    let sizes = [(64, 4), (80, 1), (96, 2), (112, 2), (128, 3), (160, 2), (40, 2), (136, 1)];
    for (n, (d, group)) in sizes.into_iter().enumerate() {
        let (q, k) = (group * d, d);
        let segment = |rows: Range<usize>| Segment { q: rows.clone(), a: 0..0, b: rows, causal: true };
        let case = Attention {
            heads: group,
            group,
            d,
            rows: [75; 2],
            segments: vec![segment(0..40), segment(40..75)],
            place: [0, 1, 2],
            column: [0; 3],
            widths: vec![q, k, k],
            values: vec![rng.values(75 * q), rng.values(75 * k), rng.values(75 * k)],
            scale: (d as f64).powf(-0.5),
            drop: (n == 4).then_some(Dropout { p: 0.1, stream: Stream { seed: 5, step: 2, site: 1 } }),
        };
        prove_one(&case, 0, &mut rng);
    }
}

/// Segments that share keys are one group; a chain of overlaps, first and last of which share nothing, is too.
#[test]
fn overlapping_keys_add_up() {
    let mut rng = Rng::new(5);
    let (q, k, c) = (5, 9, 3);
    let values = vec![rng.values(q * c), rng.values(k * 2 * c)];
    let segment = |q: usize, a: Range<usize>, b: Range<usize>| Segment { q: q..q + 1, a, b, causal: false };
    for segments in [
        vec![segment(0, 0..3, 0..0), segment(1, 2..5, 0..0), segment(2, 4..9, 0..0)],
        vec![segment(2, 6..9, 0..1), segment(0, 1..4, 5..6), segment(1, 0..1, 3..4), segment(3, 4..5, 0..0)],
        vec![segment(0, 0..9, 0..0), segment(4, 0..2, 0..0), segment(1, 3..4, 5..7), segment(3, 6..9, 0..0)],
        vec![segment(0, 0..0, 0..0), segment(1, 0..9, 0..0), segment(2, 0..0, 2..3)],
    ] {
        let case = Attention {
            heads: 1,
            group: 1,
            d: c,
            rows: [q, k],
            segments,
            place: [0, 1, 1],
            column: [0, 0, c],
            widths: vec![c, 2 * c],
            values: values.clone(),
            scale: 1.0,
            drop: None,
        };
        prove_one(&case, 0, &mut rng);
    }
}

/// One key has the probability 1; two keys with scores (ln 3, 0) have 3/4 and 1/4: arithmetic.
#[test]
fn known_answers() {
    let (q, k, v) = (t(&[1.0, 1.0], &[2, 1]), t(&[3f64.ln(), 0.0], &[2, 1]), t(&[8.0, 4.0], &[2, 1]));
    let list = vec![Segment { q: 0..2, a: 0..0, b: 0..2, causal: true }];
    let segments = Segments::new(list, 2, 2).unwrap();
    let (y, d) = gradient_of(&[&q, &k, &v], &[1.0, 16.0], |x| {
        ops::attention([0, 1, 2].map(|i| Heads { tensor: &x[i], column: 0 }), &segments, 1, 1.0, None)
    });
    assert!(distance(&y, &[8.0, 7.0]) < 1e-14, "{y:?}");
    let d: Vec<&[f64]> = d.iter().map(|d| d.as_deref().unwrap()).collect();
    // Row 1: dP = 16 v, delta = 16 * 7, dS = P (dP - delta) = (3/4 * 16, -1/4 * 48) = (12, -12).
    assert!(distance(d[0], &[0.0, 12.0 * 3f64.ln()]) < 1e-13, "{d:?}");
    assert!(distance(d[1], &[12.0, -12.0]) < 1e-13, "{d:?}");
    assert!(distance(d[2], &[1.0 + 12.0, 4.0]) < 1e-13, "{d:?}");
}

/// Rows of no segment and rows that see no key give zeros and finite gradients; scores beyond e^709 are stable.
#[test]
fn nothing_to_see_and_large_scores() {
    let x = t(&[1000.0, 999.0, 3.0, 4.0], &[4, 1]);
    let list = vec![
        Segment { q: 0..1, a: 0..2, b: 0..0, causal: false },
        Segment { q: 2..3, a: 0..0, b: 0..0, causal: true },
    ];
    let segments = Segments::new(list, 4, 4).unwrap();
    let (y, d) = gradient_of(&[&x], &[1.0, 1.0, 1.0, 1.0], |x| {
        let all = Heads { tensor: &x[0], column: 0 };
        ops::attention([all; 3], &segments, 1, 1.0, None)
    });
    assert_eq!(y, [1000.0, 0.0, 0.0, 0.0]);
    let d = d[0].as_deref().unwrap();
    assert_eq!((d[1], d[2], d[3]), (0.0, 0.0, 0.0));
    assert!(d[0].is_finite());
    let none = Segments::new(Vec::new(), 4, 4).unwrap();
    let all = Heads { tensor: &x, column: 0 };
    assert_eq!(ops::attention([all; 3], &none, 1, 1.0, None).unwrap().to_f64().unwrap(), [0.0; 4]);
}

#[test]
fn nan_stays_in_the_rows_that_see_it() {
    let x = t(&[1.0, f64::NAN, 1.0, 2.0], &[4, 1]);
    let segment = |q: Range<usize>, a: Range<usize>| Segment { q, a, b: 0..0, causal: false };
    let list = vec![segment(0..1, 0..2), segment(2..4, 2..4)];
    let y = ops::attention(
        [Heads { tensor: &x, column: 0 }; 3],
        &Segments::new(list, 4, 4).unwrap(),
        1,
        1.0,
        None,
    );
    let y = y.unwrap().to_f64().unwrap();
    assert!(y[0].is_nan() && y[1] == 0.0 && y[2].is_finite() && y[3].is_finite(), "{y:?}");
}
