//! Attention over segments: y_i = sum over the keys j that row i sees of (softmax(scale q_i k_j) m) v_j, head by head

use super::dropout;
use super::harness::{
    Case, Input, Rng, STORAGES, device, distance, gradient_of, on_kernels_by_turns, places, prove, prove_one,
    t, there,
};
use qformer::device::Real;
use qformer::ops::{Grouped, Heads, Segment, Segments};
use qformer::tensor::{DType, Device, Dropout, Gradients, Storage, Stream, Tape, Tensor};
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

fn span(q: Range<usize>, a: Range<usize>, b: Range<usize>, causal: bool) -> Segment {
    Segment { q, a, b, causal }
}

const DROP: Dropout = Dropout { p: 0.1, stream: Stream { seed: 5, step: 2, site: 1 } };

/// q, k and v apart from one another, scaled as usual.
fn apart(
    segments: Vec<Segment>,
    rows: [usize; 2],
    [heads, d]: [usize; 2],
    drop: Option<Dropout>,
) -> Attention {
    let rng = &mut Rng::new((rows[0] * rows[1] * d) as u32);
    let c = heads * d;
    let values = vec![rng.values(rows[0] * c), rng.values(rows[1] * c), rng.values(rows[1] * c)];
    let scale = (d as f64).powf(-0.5);
    let (place, column, widths) = ([0, 1, 2], [0; 3], vec![c; 3]);
    Attention { heads, group: 1, d, rows, segments, place, column, widths, values, scale, drop }
}

/// More keys than dropout draws factors for at a time (256 backward, 512 forward), and vector loops with rests.
#[test]
fn many_keys() {
    for drop in [None, Some(Dropout { p: 0.3, ..DROP })] {
        let segments = vec![span(0..1, 0..1203, 0..0, false), span(1..3, 600..1199, 3..560, true)];
        prove_one(&apart(segments, [3, 1203], [2, 2], drop), 0, &mut Rng::new(77));
    }
}

/// The sizes of a picture: heads of 88 columns, 257 rows that see one another; heads of 64, queries of three texts at the
/// rows of two pictures.
#[test]
fn pictures() {
    let mut rng = Rng::new(78);
    let one = Attention {
        place: [0; 3],
        column: [0, 88, 176],
        widths: vec![264],
        values: vec![rng.values(257 * 264)],
        ..apart(vec![span(0..257, 0..257, 0..0, false)], [257; 2], [1, 88], None)
    };
    prove_one(&one, 0, &mut rng);
    let picture = |q: Range<usize>, rows: Range<usize>| span(q, rows, 0..0, false);
    let segments = vec![picture(0..32, 150..300), picture(32..64, 0..150), picture(64..96, 150..300)];
    let two = Attention {
        place: [0, 1, 1],
        column: [0, 0, 128],
        widths: vec![128, 256],
        values: vec![rng.values(96 * 128), rng.values(300 * 256)],
        ..apart(segments, [96, 300], [2, 64], Some(DROP))
    };
    prove_one(&two, 0, &mut rng);
}

/// Head sizes of language models, with one and several query heads to a key head, causal: two samples of 40 and 35 rows.
#[test]
fn heads_of_language_models() {
    let mut rng = Rng::new(79);
    let sizes = [(64, 4), (80, 1), (96, 2), (112, 2), (128, 3), (160, 2), (40, 2), (136, 1)];
    for (n, (d, group)) in sizes.into_iter().enumerate() {
        let segments = vec![span(0..40, 0..0, 0..40, true), span(40..75, 0..0, 40..75, true)];
        let case = Attention {
            heads: group,
            group,
            widths: vec![group * d, d, d],
            values: vec![rng.values(75 * group * d), rng.values(75 * d), rng.values(75 * d)],
            ..apart(segments, [75; 2], [1, d], (n == 4).then_some(DROP))
        };
        prove_one(&case, 0, &mut rng);
    }
}

/// Two images of 7 queries, their captions of 5 and 9 tokens, and those captions predicted, in one pass; pairs of 32 queries
/// and a caption; query rows of four groups at the tokens of two images; two strips at more keys than are held at once.
#[test]
fn passes_of_a_training_step_on_kernels() {
    let none = 0..0;
    let merged = || {
        vec![
            span(0..7, 0..7, none.clone(), false),
            span(7..14, 7..14, none.clone(), false),
            span(14..19, none.clone(), 14..19, false),
            span(19..28, none.clone(), 19..28, false),
            span(28..33, 0..7, 28..33, true),
            span(33..42, 7..14, 33..42, true),
        ]
    };
    let pairs = [(0..32, 64..80), (32..64, 80..101)]
        .into_iter()
        .flat_map(|(q, t)| [span(q.clone(), q.clone(), t.clone(), false), span(t.clone(), q, t, false)]);
    let images = [0, 1, 1, 0].into_iter().enumerate();
    let images = images.map(|(g, i)| span(g * 32..(g + 1) * 32, i * 257..(i + 1) * 257, 0..0, false));
    let long = |d| apart(vec![span(0..20, 0..290, 0..0, false)], [20, 290], [1, d], None);
    on_kernels_by_turns(
        &[Storage::F16, Storage::BF16, Storage::BF16, Storage::F32],
        [
            apart(merged(), [42, 42], [3, 64], Some(DROP)),
            apart(merged(), [42, 42], [2, 88], Some(DROP)),
            apart(merged(), [42, 42], [2, 16], None),
            apart(pairs.collect(), [101, 101], [2, 64], Some(DROP)),
            apart(images.collect(), [128, 514], [1, 64], Some(DROP)),
            long(64),
            Attention { drop: Some(DROP), ..long(88) },
        ],
    );
}

/// The smallest tables of every head size.
#[test]
fn smallest_on_kernels() {
    on_kernels_by_turns(
        &[Storage::F16, Storage::BF16, Storage::F32, Storage::BF16],
        [8, 24, 64, 88, 128].into_iter().flat_map(|d| {
            [
                apart(vec![span(0..1, 0..1, 0..0, false)], [1, 1], [1, d], None),
                apart(vec![span(0..1, 0..2, 2..3, true)], [1, 3], [2, d], Some(DROP)),
                apart(vec![span(1..2, 0..0, 1..3, true)], [3, 4], [1, d - 1], Some(DROP)),
            ]
        }),
    );
}

/// As many keys as the kernel that holds all keys of a set may have and a little fewer, in two ranges, causal, two sets, one
/// of them without keys; a negative scale, and none. The keys at the ends of the ranges, and those behind them, are the
/// first query: one too many or too few is a large part of its row.
#[test]
fn whole_sets_on_kernels() {
    let sets = [(200, 64, true, 1.0), (3, 254, false, -1.0), (255, 0, false, 0.0)];
    on_kernels_by_turns(
        &[Storage::F16, Storage::BF16],
        sets.into_iter().map(|(a, b, causal, scale)| {
            let first = 5 + a + b;
            let segments = vec![
                span(0..70, first..first + a, 2..2 + b, causal),
                span(80..81, first..first + a, 2..2 + b, false),
                span(81..90, 0..0, 0..0, false),
                span(90..100, 1..2, 2..20, true),
            ];
            let sizes = [2, if causal { 64 } else { 88 }];
            let mut case = apart(segments, [103, first + a + 1], sizes, (b > 0).then_some(DROP));
            let c = sizes[0] * sizes[1];
            let query = case.values[0][80 * c..81 * c].to_vec();
            for row in [first - 1, first, first + a - 1, first + a, 1, 2, 1 + b, 2 + b] {
                case.values[1][row * c..(row + 1) * c].copy_from_slice(&query);
            }
            case.scale *= scale;
            case
        }),
    );
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
            place: [0, 1, 1],
            column: [0, 0, c],
            widths: vec![c, 2 * c],
            values: values.clone(),
            scale: 1.0,
            ..apart(segments, [q, k], [1, c], None)
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

/// What is not finite shows in every row that sees it, and in no other; rows without keys give zeros. A score of -inf counts
/// for nothing forward.
#[test]
fn what_is_not_finite_stays_in_the_rows_that_see_it() {
    let list = || {
        vec![
            span(0..4, 0..140, 0..0, false),
            span(4..8, 140..144, 0..0, false),
            span(8..9, 0..0, 0..0, false),
        ]
    };
    let case = apart(list(), [9, 144], [1, 64], None);
    for (place, storage) in places().flat_map(|place| STORAGES.map(|s| (place, s))) {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut values = case.values.clone();
            values[1][133 * 64] = bad;
            let (tape, mut grads) = (Tape::new(), Gradients::new());
            let x: Vec<Tensor> = (case.inputs().iter().zip(&values).enumerate())
                .map(|(i, (input, v))| tape.leaf(&there(place, storage, v, &input.shape), i))
                .collect();
            let y = case.run(&x).unwrap();
            let dy = there(place, storage, &Rng::new(3).values(9 * 64), &[9, 64]);
            tape.backward_from(&[(&y, dy)], &mut grads).unwrap();
            let grad = |i: usize, rows: usize| {
                Tensor::of_buffer(grads.get(i).unwrap().clone(), &[rows, 64]).unwrap().to_f64().unwrap()
            };
            let (y, dq, dk, dv) = (y.to_f64().unwrap(), grad(0, 9), grad(1, 144), grad(2, 144));
            let nan = |rows: &[f64]| rows.iter().any(|v| v.is_nan());
            for i in 0..4 {
                let seen = values[0][i * 64] * bad != f64::NEG_INFINITY;
                let row = i * 64..(i + 1) * 64;
                assert_eq!(nan(&y[row.clone()]), seen, "row {i} of {bad}, {storage:?}, {place:?}");
                assert!(nan(&dq[row]), "dq of row {i}, {storage:?}, {place:?}");
            }
            assert!(!nan(&y[4 * 64..]) && !nan(&dq[4 * 64..]), "{storage:?}, {place:?}");
            assert!(!nan(&dk[140 * 64..]) && !nan(&dv[140 * 64..]), "{storage:?}, {place:?}");
            assert!(y[8 * 64..].iter().chain(&dq[8 * 64..]).all(|v| *v == 0.0), "{storage:?}, {place:?}");
        }
    }
}

/// The operation takes the kernel that holds all keys of a set where they fit and are many, and there are warp groups.
#[test]
fn the_kernel_that_fits() {
    let Some(Device::Gpu(gpu)) = device() else { return };
    // A handle that counts for itself.
    let gpu = qformer::tensor::Gpu::open(&std::env::var("QFORMER_TEST_DEVICE").unwrap_or("host".into()))
        .unwrap_or(gpu.clone());
    let device = Device::Gpu(gpu.clone());
    let launched = |keys: usize, d: usize, storage| {
        let x = |rows: usize| Tensor::zeros(DType::F32, &[rows, d]).to(&device, storage).unwrap();
        let segments = Segments::new(vec![span(0..1, 0..keys, 0..0, false)], 1, keys).unwrap();
        let (q, k) = (x(1), x(keys));
        gpu.take_counts();
        let of = |tensor| Heads { tensor, column: 0 };
        ops::attention([of(&q), of(&k), of(&k)], &segments, 1, 1.0, None).unwrap();
        gpu.take_counts().launches.into_keys().find(|name| name.starts_with("attention")).unwrap()
    };
    for (keys, d, storage, name) in [
        (257, 88, Storage::F16, "attention_whole_f16_d88"),
        (264, 64, Storage::BF16, "attention_whole_bf16_d64"),
        (129, 64, Storage::F16, "attention_whole_f16_d64"),
        (128, 64, Storage::F16, "attention_fwd_f16_d64"),
        (265, 88, Storage::BF16, "attention_fwd_bf16_d88"),
        (257, 80, Storage::F16, "attention_fwd_f16_d80"),
        (257, 160, Storage::BF16, "attention_fwd_bf16_d160"),
        (257, 88, Storage::F32, "attention_fwd_f32"),
    ] {
        let name = if gpu.has_warp_groups() { name.into() } else { name.replace("whole", "fwd") };
        assert_eq!(launched(keys, d, storage), name);
    }
}
