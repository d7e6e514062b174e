//! Attention over segments, forward and backward, against `ops::attention` in f64.

use crate::harness::*;
use half::{bf16, f16};
use qformer::device::attention::{Entry, Segment, WorkLists};
use qformer::device::emulator::Schedule;
use qformer::device::launch::{Arg, Launch};
use qformer::ops::{self, Heads, Segments};
use qformer::tensor::{DType, Device, Dropout, Storage as Stored, Tensor};
use std::ops::Range;

#[derive(Debug)]
struct Case {
    spans: Vec<Segment>,
    q_rows: usize,
    k_rows: usize,
    heads: usize,
    d: usize,
    scale: f32,
    drop: Option<Dropout>,
    seed: u64,
    /// Forward by the kernel that holds all keys of a set.
    whole: bool,
}

fn span(q: Range<usize>, a: Range<usize>, b: Range<usize>, causal: bool) -> Segment {
    Segment { q, a, b, causal }
}

/// Rows of a wider buffer, NaN around them: from column `column`, `stride` elements from row to row.
struct Wide<T> {
    data: Vec<T>,
    stride: usize,
    column: usize,
}
impl<T: Storage> Wide<T> {
    fn new(rows: &[T], width: usize, [before, after]: [usize; 2]) -> Wide<T> {
        let mut data = Vec::new();
        for row in rows.chunks(width) {
            data.extend(std::iter::repeat_n(T::of(f64::NAN), before));
            data.extend_from_slice(row);
            data.extend(std::iter::repeat_n(T::of(f64::NAN), after));
        }
        Wide { data, stride: before + width + after, column: before }
    }
    /// The rows again; what lies around them must still be NaN.
    fn rows(&self, data: &[T], width: usize) -> Vec<T> {
        for row in data.chunks(self.stride) {
            let around = row[..self.column].iter().chain(&row[self.column + width..]);
            assert!(around.into_iter().all(|v| v.get().is_nan()), "a write outside the columns");
        }
        data.chunks(self.stride).flat_map(|r| r[self.column..self.column + width].to_vec()).collect()
    }
}

fn suffix<T: Storage>(d: usize) -> String {
    let size = match d {
        64 | 88 => d,
        ..=32 => 32,
        33..=80 => 80,
        81..=96 => 96,
        97..=112 => 112,
        113..=128 => 128,
        _ => 160,
    };
    if size_of::<T>() == 4 { "f32".into() } else { format!("{}_d{size}", T::NAME) }
}

struct Inputs<T> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    dy: Vec<T>,
}
impl<T: Storage> Inputs<T> {
    fn new(c: &Case) -> Inputs<T> {
        let (w, s) = (c.heads * c.d, c.seed * 4);
        Inputs {
            q: random(c.q_rows * w, s, 1.0),
            k: random(c.k_rows * w, s + 1, 1.0),
            v: random(c.k_rows * w, s + 2, 1.0),
            dy: random(c.q_rows * w, s + 3, 1.0),
        }
    }
}

/// y, dq, dk, dv of the kernels, dk and dv added to `before`.
fn kernels<T: Storage>(c: &Case, x: &Inputs<T>, before: Option<&[T]>, schedule: Schedule) -> [Vec<T>; 4] {
    let plan = WorkLists::new(&c.spans, c.q_rows, c.k_rows).expect("a plan");
    let (w, s) = (c.heads * c.d, suffix::<T>(c.d));
    let [q, k, v] =
        [(&x.q, [8, 0]), (&x.k, [0, w + 8]), (&x.v, [w + 8, 0])].map(|(x, pad)| Wide::new(x, w, pad));
    let [qm, km, vm] = [&q, &k, &v].map(|x| on_device(&x.data));
    let operands =
        [(&q, &qm), (&k, &km), (&v, &vm)].map(|(x, m)| [m.at::<T>(x.column), (x.stride as i32).into()]);
    let [blocks, strips, tiles, steps] =
        [&plan.blocks, &plan.strips, &plan.tiles, &plan.steps].map(|t| on_device::<Entry>(t));
    let n = c.q_rows * c.heads;
    let (y, lse, delta) = (
        fresh::<T>(c.q_rows * w),
        fresh::<f32>(if size_of::<T>() == 4 { 2 * n } else { n }),
        fresh::<f32>(n),
    );
    let dy = on_device(&x.dy);
    let go = |kernel: &str, grid: usize, warps: u32, args: &[&[Arg]]| {
        let kernel = format!("attention_{kernel}_{s}");
        let shared = shared_of(&kernel);
        let grid = [grid as u32, c.heads as u32, 1];
        run(&Launch { kernel: &kernel, grid, block: [32 * warps, 1, 1], shared }, &args.concat(), schedule);
    };
    let operands = operands.concat();
    let last = [&[(c.d as i32).into(), c.scale.into()][..], &drop_args(c.drop)].concat();
    // A key head for every query head: groups are the cases' of tests/ops.rs.
    let alone = [Arg::from(1i32)];
    let tables = [Arg::from(&blocks), (&strips).into()];
    let own = [Arg::from(&y), (&lse).into()];
    if c.whole {
        assert!(plan.most_keys <= 264);
        let (y_of_tiles, of_tiles) = (fresh::<T>(c.q_rows * w), fresh::<f32>(n));
        let own_of_tiles = [Arg::from(&y_of_tiles), (&of_tiles).into()];
        go("fwd", plan.blocks.len(), plan.warps, &[&operands, &own_of_tiles, &tables, &last, &alone]);
        let [sets, members] = [&plan.sets, &plan.members].map(|t| on_device::<Entry>(t));
        let tables = [Arg::from(&sets), (&members).into(), (&strips).into()];
        go("whole", plan.sets.len(), 4, &[&operands, &own, &tables, &last[1..]]);
        // f32 both of them: a key too many or too few shows, which it does not in 16 bits of y
        for (a, b) in read::<f32>(&lse).into_iter().zip(read::<f32>(&of_tiles)) {
            let same = a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= 1e-5 * (1.0 + b.abs());
            assert!(same, "lse of {c:?}: {a}, and {b} tile by tile");
        }
    } else {
        go("fwd", plan.blocks.len(), plan.warps, &[&operands, &own, &tables, &last, &alone]);
    }
    let padding = |width: usize| vec![T::of(f64::NAN); width];
    let dq_wide = Wide::new(&padding(c.q_rows * w), w, [8, 8]);
    let initial = before.map_or(padding(c.k_rows * w), <[T]>::to_vec);
    let (dk_wide, dv_wide) = (Wide::new(&initial, w, [0, 8]), Wide::new(&initial, w, [16, 0]));
    let [dq, dk, dv] = [&dq_wide, &dk_wide, &dv_wide].map(|x| on_device(&x.data));
    let to = |x: &Wide<T>, m: &Memory| [m.at::<T>(x.column), Arg::from(x.stride as i32)];
    let statistics = [Arg::from(&y), (&dy).into(), (&lse).into(), (&delta).into()];
    let all = [&operands[..], &statistics, &to(&dq_wide, &dq), &tables, &last, &alone];
    go("bwd_q", plan.blocks.len(), plan.warps, &all);
    let tables = [Arg::from(&tiles), (&steps).into()];
    let add = [Arg::from(i32::from(before.is_some()))];
    go(
        "bwd_kv",
        plan.tiles.len(),
        plan.key_warps,
        &[&operands, &statistics[1..], &to(&dk_wide, &dk), &to(&dv_wide, &dv), &tables, &last, &alone, &add],
    );
    let rows = |x: &Wide<T>, m: &Memory| x.rows(&read::<T>(m), w);
    [read(&y), rows(&dq_wide, &dq), rows(&dk_wide, &dk), rows(&dv_wide, &dv)]
}

/// y, dq, dk, dv of the definition in f64.
fn reference<T: Storage>(c: &Case, x: &Inputs<T>) -> [Vec<f64>; 4] {
    let w = c.heads * c.d;
    let list = c.spans.iter().cloned();
    let segments = Segments::new(list.collect(), c.q_rows, c.k_rows).expect("segments");
    let leaves = [exact(&x.q, &[c.q_rows, w]), exact(&x.k, &[c.k_rows, w]), exact(&x.v, &[c.k_rows, w])];
    let (y, grads) = definition(&leaves, &values(&x.dy), |t| {
        let heads = [0, 1, 2].map(|i| Heads { tensor: &t[i], column: 0 });
        ops::attention(heads, &segments, c.heads, f64::from(c.scale), c.drop)
    });
    let [dq, dk, dv] = <[Vec<f64>; 3]>::try_from(grads).expect("three gradients");
    [y, dq, dk, dv]
}

/// sum over the rows of by * x[row, column]
fn over<T: Storage>(x: &[f32], rows: &[usize], by: &[f32], width: usize, column: usize) -> f32 {
    r::<T>(rows.iter().zip(by).fold(0f32, |s, (row, by)| s + x[row * width + column] * by))
}
/// The product of two rows, summed up or down.
fn dot<T: Storage>(a: &[f32], b: &[f32], down: bool) -> f32 {
    let terms = a.iter().zip(b).map(|(a, b)| a * b);
    r::<T>(if down { terms.rev().fold(0f32, |s, x| s + x) } else { terms.fold(0f32, |s, x| s + x) })
}

/// y, dq, dk, dv of a plain implementation of the definition's formulas: every step rounded to T, sums in f32,
/// each in one of two orders.
fn naive<T: Storage>(c: &Case, x: &Inputs<T>, down: bool) -> [Vec<f32>; 4] {
    let (w, d) = (c.heads * c.d, c.d);
    let [q, k, v, dy] = [&x.q, &x.k, &x.v, &x.dy].map(|x| floats(x));
    let [mut y, mut dq] = [(); 2].map(|()| vec![0f32; c.q_rows * w]);
    let [mut dk, mut dv] = [(); 2].map(|()| vec![0f32; c.k_rows * w]);
    let dot = |a: &[f32], b: &[f32]| dot::<T>(a, b, down);
    for s in &c.spans {
        for head in 0..c.heads {
            let cut = |x: &[f32], row: usize| x[row * w + head * d..][..d].to_vec();
            let keys: Vec<usize> = s.a.clone().chain(s.b.clone()).collect();
            let (mut dk_part, mut dv_part) = (vec![0f32; keys.len() * d], vec![0f32; keys.len() * d]);
            for (i, row) in s.q.clone().enumerate() {
                let seen = s.a.len() + if s.causal { s.b.len().min(i + 1) } else { s.b.len() };
                let seen = &keys[..seen];
                let score: Vec<f32> =
                    seen.iter().map(|j| r::<T>(dot(&cut(&q, row), &cut(&k, *j)) * c.scale)).collect();
                let top = score.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let e: Vec<f32> = score.iter().map(|s| (s - top).exp()).collect();
                let sum: f32 = e.iter().sum();
                let p: Vec<f32> = e.iter().map(|e| r::<T>(e / sum)).collect();
                let m = |j: usize| drop_factor(c.drop, ((row * c.heads + head) << 16) as u64 + j as u64);
                let kept: Vec<f32> = p.iter().enumerate().map(|(j, p)| r::<T>(p * m(j))).collect();
                let dp: Vec<f32> = (seen.iter().enumerate())
                    .map(|(j, row_k)| r::<T>(dot(&cut(&dy, row), &cut(&v, *row_k)) * m(j)))
                    .collect();
                for t in 0..d {
                    y[row * w + head * d + t] = over::<T>(&v, seen, &kept, w, head * d + t);
                }
                let delta: f32 = cut(&y, row).iter().zip(&cut(&dy, row)).map(|(y, dy)| y * dy).sum();
                let ds: Vec<f32> =
                    p.iter().zip(&dp).map(|(p, dp)| r::<T>(r::<T>(p * (dp - delta)) * c.scale)).collect();
                for t in 0..d {
                    let at = row * w + head * d + t;
                    dq[at] = over::<T>(&k, seen, &ds, w, head * d + t);
                    for j in 0..seen.len() {
                        dk_part[j * d + t] += ds[j] * q[at];
                        dv_part[j * d + t] += kept[j] * dy[at];
                    }
                }
            }
            for (j, row) in keys.iter().enumerate() {
                for t in 0..d {
                    let at = row * w + head * d + t;
                    dk[at] = r::<T>(dk[at] + r::<T>(dk_part[j * d + t]));
                    dv[at] = r::<T>(dv[at] + r::<T>(dv_part[j * d + t]));
                }
            }
        }
    }
    [y, dq, dk, dv]
}

/// Of two naive results the one that is further off: the largest of a few rounding errors is a matter of luck.
fn larger<'a>(want: &[f64], [a, b]: [&'a [f32]; 2]) -> &'a [f32] {
    if worst(&wide(a), want) < worst(&wide(b), want) { b } else { a }
}

fn check<T: Storage>(c: &Case) {
    let x = Inputs::<T>::new(c);
    let got = everywhere(|schedule| kernels(c, &x, None, schedule));
    let (want, plain) = (reference(c, &x), [naive(c, &x, false), naive(c, &x, true)]);
    for (i, name) in ["y", "dq", "dk", "dv"].into_iter().enumerate() {
        // Where no row sees two keys, dP - delta is 0, and the rounding of y and of sums of D terms all there is:
        // D u |dy| |v| in dS at most. A naive implementation may have none.
        if want[i].iter().all(|v| v.abs() < 1e-12) {
            let largest = |x: &[T]| values(x).into_iter().fold(0f64, |m, v| m.max(v.abs()));
            let ds = c.d as f64 * unit_roundoff::<T>() * largest(&x.dy) * largest(&x.v);
            let rows = if name == "dk" { (c.q_rows as f64).sqrt() * largest(&x.q) } else { largest(&x.k) };
            let (error, bound) = (worst(&values(&got[i]), &want[i]), ds * f64::from(c.scale) * rows);
            assert!(error <= bound, "{name} of {c:?}: error {error:.3e}, allowed {bound:.3e}");
            continue;
        }
        assert_close(
            &format!("{name} of {c:?}"),
            &got[i],
            &want[i],
            larger(&want[i], [&plain[0][i], &plain[1][i]]),
        );
    }
}

fn case(spans: Vec<Segment>, [q_rows, k_rows]: [usize; 2], [heads, d]: [usize; 2], drop: bool) -> Case {
    let scale = 1.0 / (d as f32).sqrt();
    Case { spans, q_rows, k_rows, heads, d, scale, drop: drop.then(some_dropout), seed: 1, whole: false }
}

/// The same by the kernel that holds all keys of a set.
fn whole(c: Case) -> Case {
    Case { whole: has_warp_groups(), ..c }
}

#[test]
fn image_encoder() {
    let all = |heads, d, drop| case(vec![span(0..257, 0..257, 0..0, false)], [257, 257], [heads, d], drop);
    check::<f16>(&whole(all(1, 88, false)));
    check::<bf16>(&whole(all(1, 64, true)));
}

/// More keys than are held at once; two strips, and every head size.
#[test]
fn many_keys() {
    for d in [64, 88] {
        let c = case(vec![span(0..20, 0..290, 0..0, false)], [20, 290], [1, d], d == 88);
        check::<f16>(&c);
        check::<bf16>(&c);
    }
}

/// As many keys as a set may have and a little fewer, in two ranges, causal, two sets, one of them without keys; a negative
/// scale, and none.
#[test]
fn whole_sets() {
    for (a, b, causal, scale) in [(200, 64, true, 1.0), (3, 254, false, -1.0), (255, 0, false, 0.0)] {
        let first = 5 + a + b;
        let spans = vec![
            span(0..70, first..first + a, 2..2 + b, causal),
            span(80..81, first..first + a, 2..2 + b, false),
            span(81..90, 0..0, 0..0, false),
            span(90..100, 1..2, 2..20, true),
        ];
        let mut c = whole(case(spans, [103, first + a], [2, if causal { 64 } else { 88 }], b > 0));
        c.scale *= scale;
        check::<f16>(&c);
        check::<bf16>(&c);
    }
}

#[test]
fn image_encoder_f32() {
    check::<f32>(&case(vec![span(0..257, 0..257, 0..0, false)], [257, 257], [1, 88], false));
}

/// Two images of 7 queries, their captions of 5 and 9 tokens, and those captions predicted, in one pass.
#[test]
fn merged_pass() {
    let spans = || {
        let none = 0..0;
        vec![
            span(0..7, 0..7, none.clone(), false),
            span(7..14, 7..14, none.clone(), false),
            span(14..19, none.clone(), 14..19, false),
            span(19..28, none, 19..28, false),
            span(28..33, 0..7, 28..33, true),
            span(33..42, 7..14, 33..42, true),
        ]
    };
    check::<f16>(&case(spans(), [42, 42], [3, 64], true));
    check::<bf16>(&whole(case(spans(), [42, 42], [2, 88], true)));
    check::<bf16>(&case(spans(), [42, 42], [2, 16], true));
    check::<f32>(&case(spans(), [42, 42], [2, 24], true));
}

/// Pairs of 32 queries and a caption that see each other, and query rows of four groups at the tokens of two images.
#[test]
fn pairs_and_images() {
    let (q, t) = ([0..32, 32..64], [64..80, 80..101]);
    let pairs = (0..2).flat_map(|i| {
        [
            span(q[i].clone(), q[i].clone(), t[i].clone(), false),
            span(t[i].clone(), q[i].clone(), t[i].clone(), false),
        ]
    });
    check::<f16>(&case(pairs.collect(), [101, 101], [2, 64], true));
    let cross = [0, 1, 1, 0]
        .iter()
        .enumerate()
        .map(|(g, image)| span(g * 32..(g + 1) * 32, image * 257..(image + 1) * 257, 0..0, false));
    check::<bf16>(&whole(case(cross.collect(), [128, 514], [1, 64], true)));
}

#[test]
fn smallest() {
    for d in [8, 64, 88, 128] {
        check::<f16>(&case(vec![span(0..1, 0..1, 0..0, false)], [1, 1], [1, d], false));
        check::<bf16>(&case(vec![span(0..1, 0..2, 2..3, true)], [1, 3], [2, d], true));
        if [64, 88].contains(&d) {
            check::<f16>(&whole(case(vec![span(0..1, 0..1, 0..0, false)], [1, 1], [1, d], false)));
        }
        check::<f32>(&case(vec![span(1..2, 0..0, 1..3, true)], [3, 4], [1, d - 1], true));
    }
}

/// A table of segments with shared, empty, uneven and unused ranges.
fn random_case(seed: u64) -> Case {
    let mut x = Random::new(seed + 1000);
    let mut blocks: Vec<Range<usize>> = Vec::new();
    let mut k_rows = x.below(3);
    for _ in 0..x.within(1, 4) {
        let len = [x.below(5), x.below(20), x.below(70)][x.below(3)];
        blocks.push(k_rows..k_rows + len);
        k_rows += len + if x.below(4) == 0 { x.below(20) } else { 0 };
    }
    let (mut spans, mut q_rows) = (Vec::new(), x.below(3));
    for _ in 0..x.within(1, 6) {
        let len = [x.below(3), x.below(20), x.below(70)][x.below(3)];
        let (i, j) = (x.below(blocks.len()), x.below(blocks.len() + 1));
        let a = if x.below(4) == 0 { 0..0 } else { blocks[i].clone() };
        let b = if j == i || j == blocks.len() { 0..0 } else { blocks[j].clone() };
        spans.push(span(q_rows..q_rows + len, a, b, x.below(2) == 0));
        q_rows += len + if x.below(4) == 0 { x.below(20) } else { 0 };
    }
    let d = 8 * [x.within(1, 4), x.within(1, 16), 8, 11][x.below(4)];
    let mut c = case(spans, [q_rows.max(1), k_rows.max(1)], [x.within(1, 2), d], x.below(2) == 0);
    c.scale *= (0.5 + x.uniform()) as f32;
    c.seed = seed;
    c
}

#[test]
fn random_tables() {
    for i in 0..shapes(8) {
        let mut c = random_case(i as u64);
        c.whole = i % 4 != 3 && [64, 88].contains(&c.d) && has_warp_groups();
        match i % 4 {
            0 | 1 => check::<f16>(&c),
            2 => check::<bf16>(&c),
            _ => check::<f32>(&c),
        }
    }
}

#[test]
fn gradients_are_added_where_asked() {
    let c = case(vec![span(0..20, 0..33, 0..0, false)], [20, 35], [1, 64], false);
    let x = Inputs::<f32>::new(&c);
    let before: Vec<f32> = random(35 * 64, 9, 1.0);
    let set = kernels(&c, &x, None, Schedule::default());
    let added = kernels(&c, &x, Some(&before), Schedule::default());
    for i in [2, 3] {
        let sum: Vec<f32> = set[i].iter().zip(&before).map(|(a, b)| a + b).collect();
        assert!(worst(&values(&added[i]), &values(&sum)) < 1e-6);
    }
}

/// What is not finite shows in every row that sees it, and in no other; rows without keys give zeros.
#[test]
fn special_values() {
    fn go<T: Storage>(all: bool) {
        let spans = vec![
            span(0..4, 0..40, 0..0, false),
            span(4..8, 40..44, 0..0, false),
            span(8..9, 0..0, 0..0, false),
        ];
        let c = Case { whole: all && has_warp_groups(), ..case(spans, [9, 44], [1, 64], false) };
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut x = Inputs::<T>::new(&c);
            x.k[33 * 64] = T::of(bad);
            let [y, dq, dk, dv] = kernels(&c, &x, None, Schedule::default());
            // q is 0 nowhere: the score is not finite. One of -inf counts for nothing, as in the definition
            let q: Vec<f64> = (0..4).map(|i| x.q[i * 64].get() * bad).collect();
            let nan = |rows: &[T]| rows.iter().any(|v| v.get().is_nan());
            for (i, q) in q.iter().enumerate() {
                assert_eq!(nan(&y[i * 64..][..64]), *q != f64::NEG_INFINITY, "row {i}, score {q}");
                assert!(nan(&dq[i * 64..][..64]), "dq of row {i}");
            }
            assert!(
                !nan(&y[4 * 64..]) && !nan(&dq[4 * 64..]) && !nan(&dk[40 * 64..]) && !nan(&dv[40 * 64..])
            );
            assert!(y[8 * 64..].iter().chain(&dq[8 * 64..]).all(|v| v.get() == 0.0));
            assert!(dk[44 * 64..].is_empty());
        }
    }
    go::<f16>(false);
    go::<bf16>(false);
    go::<f32>(false);
    go::<f16>(true);
    go::<bf16>(true);
}

/// The operation takes the kernel that holds all keys of a set where they fit and are many, and there are warp groups.
#[test]
fn the_kernel_that_fits() {
    let gpu = open();
    let device = Device::Gpu(gpu.clone());
    let launched = |keys: usize, d: usize, storage| {
        let x = |rows: usize| Tensor::zeros(DType::F32, &[rows, d]).to(&device, storage).expect("a tensor");
        let (q, k) = (x(1), x(keys));
        let list = vec![Segment { q: 0..1, a: 0..keys, b: 0..0, causal: false }];
        let segments = Segments::new(list, 1, keys).expect("segments");
        gpu.take_counts();
        let of = |tensor| Heads { tensor, column: 0 };
        ops::attention([of(&q), of(&k), of(&k)], &segments, 1, 1.0, None).expect("attention");
        gpu.take_counts().launches.into_keys().find(|name| name.starts_with("attention")).expect("a launch")
    };
    for (keys, d, storage, name) in [
        (257, 88, Stored::F16, "attention_whole_f16_d88"),
        (264, 64, Stored::BF16, "attention_whole_bf16_d64"),
        (129, 64, Stored::F16, "attention_whole_f16_d64"),
        (128, 64, Stored::F16, "attention_fwd_f16_d64"),
        (265, 88, Stored::BF16, "attention_fwd_bf16_d88"),
        (257, 80, Stored::F16, "attention_fwd_f16_d80"),
        (257, 160, Stored::BF16, "attention_fwd_bf16_d160"),
        (257, 88, Stored::F32, "attention_fwd_f32"),
    ] {
        let name = if gpu.has_warp_groups() { name.into() } else { name.replace("whole", "fwd") };
        assert_eq!(launched(keys, d, storage), name);
    }
}
