//! Cross-entropy, similarities and the drawing of negatives, against `ops` in f64.

use crate::harness::*;
use half::{bf16, f16};
use qformer::device::emulator::Schedule;
use qformer::device::launch::Arg;
use qformer::ops::{self, Targets};
use qformer::tensor::{DType, Stream, Tensor};

enum Goal {
    Classes(Vec<Option<u32>>, f32),
    Soft(Vec<f32>),
}

struct Logits<T> {
    x: Vec<T>,
    rows: usize,
    v: usize,
    /// Elements from row to row.
    pitch: usize,
    goal: Goal,
    by: f32,
}

/// loss and right of each row, and the gradient; behind the vocabulary the gradient is 0.
fn kernel<T: Storage>(k: &Logits<T>, threads: usize, s: Schedule) -> (Vec<f32>, Vec<i32>, Vec<T>) {
    let behind: Vec<T> = random(k.pitch - k.v, 10, 50.0);
    let rows: Vec<T> = k.x.chunks(k.v).flat_map(|row| [row, &behind].concat()).collect();
    let (x, loss, right) = (on_device(&rows), fresh::<f32>(k.rows), fresh::<i32>(k.rows));
    let upstream = on_device(&[0.5f32]);
    let (classes, soft, smoothing) = match &k.goal {
        Goal::Classes(c, smoothing) => {
            let c: Vec<i32> = c.iter().map(|c| c.map_or(-1, |c| c as i32)).collect();
            (Some(on_device(&c)), None, *smoothing)
        }
        Goal::Soft(t) => (None, Some(on_device(t)), 0.0),
    };
    let or_null = |m: &Option<_>| m.as_ref().map_or(Arg::NULL, Arg::from);
    let args = [
        Arg::from(&x),
        or_null(&classes),
        or_null(&soft),
        (&loss).into(),
        (&right).into(),
        (k.v as i32).into(),
        (k.pitch as i32).into(),
        smoothing.into(),
        (2.0 * k.by).into(),
        (&upstream).into(),
        1.into(),
    ];
    run1(&format!("cross_entropy_{}", T::NAME), k.rows, threads, &args, s);
    let dx: Vec<T> = read(&x);
    assert!(dx.chunks(k.pitch).all(|row| row[k.v..].iter().all(|x| x.get() == 0.0)), "behind the vocabulary");
    (read(&loss), read(&right), dx.chunks(k.pitch).flat_map(|row| &row[..k.v]).copied().collect())
}

/// The loss and gradient of a plain implementation: log-softmax and softmax rounded to T.
fn naive<T: Storage>(k: &Logits<T>) -> (f32, Vec<f32>) {
    let (x, v) = (floats(&k.x), k.v);
    let (mut loss, mut dx) = (0f32, vec![]);
    for (i, x) in x.chunks(v).enumerate() {
        let target: Option<Vec<f32>> = match &k.goal {
            Goal::Classes(c, s) => c[i]
                .map(|c| (0..v).map(|j| s / v as f32 + if j as u32 == c { 1.0 - s } else { 0.0 }).collect()),
            Goal::Soft(t) => Some(t[i * v..][..v].to_vec()),
        };
        let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let norm = top + x.iter().fold(0f32, |s, x| s + (x - top).exp()).ln();
        let log_p: Vec<f32> = x.iter().map(|x| r::<T>(x - norm)).collect();
        let Some(target) = target else {
            dx.extend(vec![0.0; v]);
            continue;
        };
        let total: f32 = target.iter().sum();
        loss -= log_p.iter().zip(&target).fold(0f32, |s, (l, t)| s + l * t);
        dx.extend(log_p.iter().zip(&target).map(|(l, t)| r::<T>(k.by * (l.exp() * total - t))));
    }
    (loss * k.by, dx)
}

fn check<T: Storage>(k: &Logits<T>, threads: usize) {
    let (loss, right, dx) = everywhere(|s| kernel(k, threads, s));
    let leaf = exact(&k.x, &[k.rows, k.v]);
    let counted = match &k.goal {
        Goal::Classes(c, _) => c.iter().flatten().count().max(1),
        Goal::Soft(_) => k.rows,
    };
    let scale = f64::from(k.by) * counted as f64; // the definition takes the mean
    let (want, grads) = definition(&[leaf], &[scale], |t| match &k.goal {
        Goal::Classes(c, s) => ops::cross_entropy(&t[0], Targets::Classes(c, f64::from(*s))),
        Goal::Soft(s) => {
            ops::cross_entropy(&t[0], Targets::Soft(&Tensor::of(DType::F64, &wide(s), &[k.rows, k.v])?))
        }
    });
    let (naive_loss, naive_dx) = naive(k);
    let what = format!("[{}, {}]", k.rows, k.v);
    let sum = loss.iter().sum::<f32>() * k.by;
    assert_close_f32(&format!("loss {what}"), &[sum], &[want[0] * scale], &[naive_loss]);
    assert_close(&format!("dx {what}"), &dx, &grads[0], &naive_dx);
    if let Goal::Classes(c, _) = &k.goal {
        for (i, class) in c.iter().enumerate() {
            let row = &floats(&k.x)[i * k.v..][..k.v];
            let best = (0..k.v).fold(0, |best, j| if row[j] > row[best] { j } else { best });
            assert_eq!(right[i], i32::from(*class == Some(best as u32)), "row {i}");
        }
    }
}

fn logits<T: Storage>(rows: usize, v: usize, seed: u64, goal: Goal) -> Logits<T> {
    Logits { x: random(rows * v, seed, 3.0), rows, v, pitch: v, goal, by: 1.0 / rows as f32 }
}
/// Random classes, a few of them ignored.
fn classes(rows: usize, v: usize, seed: u64) -> Vec<Option<u32>> {
    let mut x = Random::new(seed);
    (0..rows).map(|i| (i % 5 != 3).then(|| x.below(v) as u32)).collect()
}

#[test]
fn cross_entropy() {
    // a Japanese BERT's vocabulary with [DEC], an English one's (3 more than a multiple of 8), ITM's two classes
    check(&logits::<bf16>(4, 32001, 1, Goal::Classes(classes(4, 32001, 1), 0.1)), 512);
    check(&logits::<f16>(2, 30523, 2, Goal::Classes(classes(2, 30523, 2), 0.1)), 512);
    check(&logits::<f32>(7, 2, 3, Goal::Classes(classes(7, 2, 3), 0.0)), 32);
    for i in 0..shapes(6) as u64 {
        let mut x = Random::new(i + 5);
        let (rows, v) = (x.within(1, 9), x.within(1, 300));
        let smoothing = if x.below(2) == 0 { 0.1 } else { 0.0 };
        let goal = || Goal::Classes(classes(rows, v, i), smoothing);
        match i % 3 {
            0 => check(&logits::<f16>(rows, v, i, goal()), 64),
            1 => check(&logits::<bf16>(rows, v, i, goal()), 128),
            _ => check(&logits::<f32>(rows, v, i, goal()), 32),
        }
    }
}

/// Rows with columns behind the vocabulary, whatever stands there: loss and gradient are those of rows without.
#[test]
fn rows_longer_than_the_vocabulary() {
    fn go<T: Storage>(rows: usize, v: usize, pitch: usize, threads: usize) {
        let goal = Goal::Classes(classes(rows, v, 9), 0.1);
        check(&Logits { pitch, ..logits::<T>(rows, v, 9, goal) }, threads);
    }
    go::<bf16>(6, 1001, 1008, 128);
    go::<f16>(6, 37, 40, 32);
    go::<f32>(6, 3, 34, 32);
}

#[test]
fn soft_targets() {
    let soft = |n: usize| Goal::Soft(random::<f32>(n * n, 3, 0.1).iter().map(|v| v.abs()).collect());
    check(&logits::<f32>(12, 12, 1, soft(12)), 32);
    check(&logits::<f16>(37, 37, 2, soft(37)), 64);
    check(&logits::<bf16>(1, 1, 3, soft(1)), 32);
}

#[test]
fn logits_that_are_not_finite() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut k = logits::<f32>(3, 40, 1, Goal::Classes(vec![Some(1), Some(2), None], 0.1));
        k.x[47] = bad;
        k.x[85] = bad; // in an ignored row
        let (loss, _, dx) = kernel(&k, 64, Schedule::default());
        assert!(loss[0].is_finite() && loss[1].is_nan() && loss[2] == 0.0);
        assert!(dx[..40].iter().all(|v| v.is_finite()) && dx[40..80].iter().any(|v| v.is_nan()));
        assert!(dx[80..].iter().all(|v| *v == 0.0));
    }
    // -inf: a token that cannot be
    let mut k = logits::<f32>(1, 40, 1, Goal::Classes(vec![Some(1)], 0.0));
    k.x[7] = f32::NEG_INFINITY;
    check(&k, 64);
}

#[test]
fn max_similarity() {
    fn go<T: Storage>(pictures: usize, q: usize, texts: usize, e: usize) {
        let (a, b) = (random::<T>(pictures * q * e, 1, 0.1), random::<T>(texts * e, 2, 0.1));
        let dy = random::<f32>(pictures * texts, 3, 1.0);
        let n = [pictures, q, texts, e].map(|n| Arg::from(n as i32));
        let (y, best, da, db) = everywhere(|s| {
            let (ad, bd, dyd) = (on_device(&a), on_device(&b), on_device(&dy));
            let (y, best) = (fresh::<f32>(pictures * texts), fresh::<i32>(pictures * texts));
            let (da, db) = (fresh::<T>(a.len()), fresh::<T>(b.len()));
            let args =
                [Arg::from(&ad), (&bd).into(), Arg::NULL, (&y).into(), (&best).into(), n[1], n[2], n[3]];
            let grid = [texts.div_ceil(64) as u32, pictures as u32, 1];
            run(&launch_of(&format!("max_similarity_fwd_{}", T::NAME), grid, [128, 1, 1]), &args, s);
            let args = [Arg::from(&dyd), (&best).into(), (&bd).into(), (&da).into(), n[2], n[3]];
            let grid = [q as u32, pictures as u32, 1];
            run(&launch_of(&format!("max_similarity_bwd_a_{}", T::NAME), grid, [128, 1, 1]), &args, s);
            let args = [Arg::from(&dyd), (&best).into(), (&ad).into(), (&db).into(), n[0], n[1], n[2], n[3]];
            run1(&format!("max_similarity_bwd_b_{}", T::NAME), texts, 128, &args, s);
            (read::<f32>(&y), read::<i32>(&best), read::<T>(&da), read::<T>(&db))
        });
        let leaves = [exact(&a, &[pictures * q, e]), exact(&b, &[texts, e])];
        let (want, grads) = definition(&leaves, &wide(&dy), |t| ops::max_similarity(&t[0], &t[1], q));
        let (a, b) = (floats(&a), floats(&b));
        let (mut naive, mut naive_da, mut naive_db) = (vec![], vec![0f32; a.len()], vec![0f32; b.len()]);
        for i in 0..pictures {
            for j in 0..texts {
                let dot = |k: usize| (0..e).fold(0f32, |s, t| s + a[(i * q + k) * e + t] * b[j * e + t]);
                naive.push((0..q).map(dot).fold(f32::NEG_INFINITY, f32::max));
                let row = i * q + best[i * texts + j] as usize;
                let d = r::<T>(dy[i * texts + j]);
                for t in 0..e {
                    naive_da[row * e + t] = r::<T>(naive_da[row * e + t] + r::<T>(d * b[j * e + t]));
                    naive_db[j * e + t] = r::<T>(naive_db[j * e + t] + r::<T>(d * a[row * e + t]));
                }
            }
        }
        assert_close_f32("max_similarity", &y, &want, &naive);
        assert_close("max_similarity da", &da, &grads[0], &naive_da);
        assert_close("max_similarity db", &db, &grads[1], &naive_db);
    }
    go::<f32>(3, 32, 5, 256);
    go::<f16>(2, 32, 70, 40);
    go::<bf16>(2, 37, 3, 33);
    go::<f32>(1, 1, 1, 1);
}

/// Of given queries, the product itself, whatever the others are: small integers, exact in every type.
#[test]
fn a_similarity_of_given_queries() {
    fn go<T: Storage>(pictures: usize, q: usize, texts: usize, e: usize) {
        let whole =
            |n: usize, by: usize| (0..n).map(|i| T::of((i * by % 7) as f64 - 3.0)).collect::<Vec<_>>();
        let (a, b) = (whole(pictures * q * e, 5), whole(texts * e, 3));
        let given: Vec<i32> = (0..pictures * texts).map(|at| (at * 11 % q) as i32).collect();
        let (y, best) = everywhere(|s| {
            let [ad, bd] = [&a, &b].map(|x| on_device(x));
            let (gd, y, best) = (on_device(&given), fresh::<f32>(given.len()), fresh::<i32>(given.len()));
            let sizes = [q, texts, e].map(|n| Arg::from(n as i32));
            let args = [&[&ad, &bd, &gd, &y, &best].map(Arg::from)[..], &sizes].concat();
            let grid = [texts.div_ceil(64) as u32, pictures as u32, 1];
            run(&launch_of(&format!("max_similarity_fwd_{}", T::NAME), grid, [128, 1, 1]), &args, s);
            (read::<f32>(&y), read::<i32>(&best))
        });
        assert_eq!(best, given);
        for (at, y) in y.iter().enumerate() {
            let (row, text) = (at / texts * q + given[at] as usize, at % texts);
            let want: f64 = (0..e).map(|k| a[row * e + k].get() * b[text * e + k].get()).sum();
            assert_eq!(f64::from(*y), want, "picture {}, caption {text} of {}", at / texts, T::NAME);
        }
    }
    go::<f32>(3, 33, 5, 40);
    go::<f16>(2, 1, 70, 7);
    go::<bf16>(2, 37, 3, 33);
}

#[test]
fn ties_and_nan_in_a_maximum() {
    let a = [1f32, 0.0, 2.0, f32::NAN, f32::NAN, 2.0]; // two pictures of three queries
    let (ad, bd) = (on_device(&a), on_device(&[1f32]));
    let (y, best) = (fresh::<f32>(2), fresh::<i32>(2));
    let sizes = [3.into(), 1.into(), 1.into()];
    let args = [&[Arg::from(&ad), (&bd).into(), Arg::NULL, (&y).into(), (&best).into()], &sizes[..]].concat();
    run(&launch_of("max_similarity_fwd_f32", [1, 2, 1], [128, 1, 1]), &args, Schedule::default());
    let y: Vec<f32> = read(&y);
    assert!(y[0] == 2.0 && y[1].is_nan());
    assert_eq!(read::<i32>(&best), [2, 0]);
    let same = on_device(&[3f32; 40]);
    let (y, best) = (fresh::<f32>(1), fresh::<i32>(1));
    let sizes = [40.into(), 1.into(), 1.into()];
    let args =
        [&[Arg::from(&same), (&bd).into(), Arg::NULL, (&y).into(), (&best).into()], &sizes[..]].concat();
    run(&launch_of("max_similarity_fwd_f32", [1, 1, 1], [128, 1, 1]), &args, Schedule::default());
    assert_eq!((read::<f32>(&y)[0], read::<i32>(&best)[0]), (3.0, 0));
}

/// What the definition draws.
fn drawn(sim: &[f32], ids: Option<&[i64]>, n: usize, stream: Stream) -> Vec<i32> {
    let sim = Tensor::new(sim.to_vec(), &[n, n]).expect("a tensor");
    let picked = ops::sample_negatives(&sim, ids, stream).expect("negatives");
    picked.into_iter().map(u32::cast_signed).collect()
}

#[test]
fn negatives() {
    for (n, with_ids) in [(2, false), (33, false), (40, true), (128, false)] {
        let sim = random::<f32>(n * n, n as u64, 5.0);
        let ids: Vec<i64> = (0..n as i64).map(|i| i / 3 * 7 - 5).collect();
        for step in 0..4 {
            let stream = Stream { seed: 1 << 40 | 99, step, site: 8192 };
            let got = everywhere(|s| {
                let (simd, idsd, picked) = (on_device(&sim), on_device(&ids), fresh::<i32>(n));
                let args = [
                    Arg::from(&simd),
                    if with_ids { (&idsd).into() } else { Arg::NULL },
                    (&picked).into(),
                    (n as i32).into(),
                    stream.seed.into(),
                    stream.site.into(),
                    stream.step.into(),
                ];
                run1("sample_negatives_f32", n, 32, &args, s);
                read::<i32>(&picked)
            });
            assert_eq!(got, drawn(&sim, with_ids.then_some(&ids[..]), n, stream));
        }
    }
}

#[test]
fn no_negative_to_draw() {
    let draw = |sim: &[f32], n: usize| {
        let (simd, picked) = (on_device(sim), fresh::<i32>(n));
        let tail = [0u64.into(), 0u32.into(), 0u32.into()];
        let args = [&[Arg::from(&simd), Arg::NULL, (&picked).into(), (n as i32).into()], &tail[..]].concat();
        run1("sample_negatives_f32", n, 32, &args, Schedule::default());
        read::<i32>(&picked)
    };
    assert_eq!(draw(&[1.0], 1), [-1]);
    assert_eq!(draw(&[1.0, f32::NAN, 1.0, 2.0], 2), [-1, 0]);
}
