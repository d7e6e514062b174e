//! What decoding asks: dense layers of few rows, the best tokens, and attention of single rows over listed keys.

use crate::harness::*;
use half::{bf16, f16};
use qformer::device::emulator::Schedule;
use qformer::device::launch::Arg;
use qformer::ops::{self, Options, Weight};
use qformer::tensor::{DType, Tensor};

/// (values, indices, norm) of the kernel.
fn top<T: Storage>(
    x: &[T],
    rows: usize,
    k: usize,
    threads: usize,
    s: Schedule,
) -> (Vec<f32>, Vec<i32>, Vec<f32>) {
    let v = x.len() / rows;
    let (dev, values, indices, norm) =
        (on_device(x), fresh::<f32>(rows * k), fresh::<i32>(rows * k), fresh::<f32>(rows));
    let args = [
        Arg::from(&dev),
        (&values).into(),
        (&indices).into(),
        (&norm).into(),
        (v as i32).into(),
        (k as i32).into(),
    ];
    run1(&format!("top_k_{}", T::NAME), rows, threads, &args, s);
    (read(&values), read(&indices), read(&norm))
}

#[test]
fn top_k() {
    fn go<T: Storage>(rows: usize, v: usize, k: usize, threads: usize) {
        let x = random::<T>(rows * v, v as u64, 4.0); // 16 bits: many ties
        let (values, indices, norm) = everywhere(|s| top(&x, rows, k, threads, s));
        for (i, row) in floats(&x).chunks(v).enumerate() {
            let mut order: Vec<usize> = (0..v).collect();
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a])); // stable: ties to the lower index
            for j in 0..k {
                assert_eq!(indices[i * k + j], order[j] as i32, "row {i}, place {j}");
                assert_eq!(values[i * k + j], row[order[j]]);
            }
            let total: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let naive = top + row.iter().fold(0f32, |s, x| s + (x - top).exp()).ln();
            assert_close_f32("norm", &norm[i..=i], &[total.ln()], &[naive]);
        }
    }
    go::<f32>(2, 32001, 6, 512);
    go::<bf16>(3, 1000, 10, 64);
    go::<f16>(2, 37, 37, 32);
    go::<f32>(1, 1, 1, 1024);
}

#[test]
fn top_k_of_special_values() {
    let x = [0.0, f32::NEG_INFINITY, -0.0, f32::INFINITY, f32::NAN, -1.0, f32::NAN, 0.0];
    let (_, indices, norm) = top(&x, 1, 8, 32, Schedule::default());
    assert_eq!(indices, [4, 6, 3, 0, 2, 7, 5, 1]);
    assert!(norm[0].is_nan());
    let (values, _, norm) = top(&[f32::NEG_INFINITY, 2.0, f32::NEG_INFINITY], 1, 2, 32, Schedule::default());
    assert_eq!((values[0], values[1], norm[0]), (2.0, f32::NEG_INFINITY, 2.0));
}

#[test]
fn attend_rows() {
    fn go<T: Storage>(keys: usize, heads: usize, d: usize, lists: &[Vec<u32>]) {
        let (n, w, scale) = (lists.len(), heads * d, 1.0 / (d as f32).sqrt());
        let (q, k, v) =
            (random::<T>(n * w, 1, 1.0), random::<T>(keys * w, 2, 1.0), random::<T>(keys * w, 3, 1.0));
        let rows: Vec<i32> = lists.iter().flatten().map(|r| *r as i32).collect();
        let rows = if rows.is_empty() { vec![0] } else { rows };
        let starts: Vec<i32> =
            (0..=n).map(|i| lists[..i].iter().map(Vec::len).sum::<usize>() as i32).collect();
        let y: Vec<T> = everywhere(|s| {
            let [qd, kd, vd] = [&q, &k, &v].map(|x| on_device(x));
            let (rows, starts, y) = (on_device(&rows), on_device(&starts), fresh::<T>(n * w));
            let stride = Arg::from(w as i32);
            let args = [
                Arg::from(&qd),
                (&kd).into(),
                stride,
                (&vd).into(),
                stride,
                (&rows).into(),
                (&starts).into(),
                (&y).into(),
                (d as i32).into(),
                scale.into(),
                1i32.into(),
            ];
            let grid = [n as u32, heads as u32, 1];
            run(&launch_of(&format!("attend_rows_{}", T::NAME), grid, [128, 1, 1]), &args, s);
            read(&y)
        });
        let tensor = |x: &[T], rows: usize| Tensor::of(DType::F64, &values(x), &[rows, w]).expect("a tensor");
        let (qt, kt, vt) = (tensor(&q, n), tensor(&k, keys), tensor(&v, keys));
        let want =
            ops::attend_rows([&qt, &kt, &vt], &ops::Lists::new(lists.to_vec()), heads, f64::from(scale))
                .expect("the definition");
        let (q, k, v) = (floats(&q), floats(&k), floats(&v));
        let mut naive = vec![0f32; n * w];
        for (i, list) in lists.iter().enumerate() {
            for h in 0..heads {
                let dot = |l: &u32| {
                    let at = *l as usize * w + h * d;
                    r::<T>(r::<T>((0..d).fold(0f32, |s, c| s + q[i * w + h * d + c] * k[at + c])) * scale)
                };
                let s: Vec<f32> = list.iter().map(dot).collect();
                let top = s.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let e: Vec<f32> = s.iter().map(|s| (s - top).exp()).collect();
                let sum: f32 = e.iter().sum();
                let p: Vec<f32> = e.iter().map(|e| r::<T>(e / sum)).collect();
                for c in h * d..(h + 1) * d {
                    let terms = list.iter().zip(&p).map(|(l, p)| p * v[*l as usize * w + c]);
                    naive[i * w + c] = r::<T>(terms.fold(0f32, |s, x| s + x));
                }
            }
        }
        assert_close("attend_rows", &y, &want.to_f64().unwrap(), &naive);
    }
    let beams = [(0..32).chain([40, 41]).collect(), (0..32).chain([40, 42]).collect(), vec![7], vec![]];
    go::<f16>(50, 3, 64, &beams);
    go::<f32>(50, 2, 13, &beams);
    go::<bf16>(300, 1, 128, &[(0..300).rev().collect()]); // several rounds of keys
    go::<f16>(1, 1, 8, &[vec![0]]);
    go::<bf16>(40, 2, 88, &[(0..40).collect(), vec![3, 39]]);
    go::<f16>(20, 2, 65, &[(0..19).collect(), vec![3]]);
}

/// Up to three layers of the same x.
struct Layers {
    rows: usize,
    n: usize,
    k: usize,
    parts: usize,
    bias: bool,
    gelu: bool,
}

impl Layers {
    fn new(rows: usize, n: usize, k: usize) -> Layers {
        Layers { rows, n, k, parts: 1, bias: true, gelu: false }
    }

    /// The kernel's results for x [R,K], which begins `skip` elements behind an aligned place.
    fn run<T: Storage>(&self, x: &[T], w: &[Vec<T>], b: &[Vec<T>], skip: usize, s: Schedule) -> Vec<Vec<T>> {
        let (rows, n, k) = (self.rows, self.n, self.k);
        let shifted = [&x[..skip], x].concat();
        let dev = on_device(&shifted);
        let weights: Vec<_> = w.iter().map(|w| on_device(w)).collect();
        let biases: Vec<_> = b.iter().map(|b| on_device(b)).collect();
        let y: Vec<_> = (0..self.parts).map(|_| fresh::<T>(rows * n)).collect();
        let mut args = vec![Arg::NULL; 10];
        args[0] = dev.at::<T>(skip);
        for p in 0..self.parts {
            args[1 + p] = (&weights[p]).into();
            args[4 + p] = if self.bias { (&biases[p]).into() } else { Arg::NULL };
            args[7 + p] = (&y[p]).into();
        }
        let numbers = [rows, n, k, self.parts, usize::from(self.gelu)];
        args.extend(numbers.map(|v| Arg::from(v as i32)));
        let grid = [n.div_ceil(8) as u32, (self.parts * rows.div_ceil(16)) as u32, 1];
        let threads = if k > 1536 { 384 } else { 256 };
        run(&launch_of(&format!("linear_exact_{}", T::NAME), grid, [threads, 1, 1]), &args, s);
        y.iter().map(read).collect()
    }

    fn check<T: Storage>(&self) {
        let (rows, n, k) = (self.rows, self.n, self.k);
        let x = random::<T>(rows * k, 1, 1.0);
        let w: Vec<Vec<T>> = (0..self.parts as u64).map(|p| random(n * k, 2 + p, 0.2)).collect();
        let b: Vec<Vec<T>> = (0..self.parts as u64).map(|p| random(n, 5 + p, 1.0)).collect();
        let y = everywhere(|s| self.run(&x, &w, &b, 0, s));
        let tensor = |x: &[T], sizes: &[usize]| Tensor::of(DType::F64, &values(x), sizes).expect("a tensor");
        for p in 0..self.parts {
            let bias = self.bias.then(|| tensor(&b[p], &[n]));
            let few_rows = |x: &Tensor, w: &Tensor, b: Option<&Tensor>| {
                ops::linear(x, Weight::Dense(w, b), Options::batch_invariant())
            };
            let u = few_rows(&tensor(&x, &[rows, k]), &tensor(&w[p], &[n, k]), bias.as_ref());
            let u = u.expect("the definition");
            let want = if self.gelu { ops::gelu(&u).expect("the definition") } else { u };
            let (x, w, b) = (floats(&x), floats(&w[p]), floats(&b[p]));
            let naive = |i: usize, j: usize| {
                let sum = (0..k).fold(0f32, |s, l| s + x[i * k + l] * w[j * k + l]);
                let u = r::<T>(if self.bias { sum + b[j] } else { sum });
                let cdf = 0.5 * (1.0 + libm::erff(u * std::f32::consts::FRAC_1_SQRT_2));
                if self.gelu { r::<T>(u * cdf) } else { u }
            };
            let naive: Vec<f32> = (0..rows * n).map(|i| naive(i / n, i % n)).collect();
            assert_close("linear_exact", &y[p], &want.to_f64().unwrap(), &naive);
        }
        // A row alone, and one of a matrix that no 16 bytes are aligned in: the same bits.
        for i in 0..rows {
            let one = Layers { rows: 1, ..*self };
            let alone = one.run(&x[i * k..][..k], &w, &b, 1, Schedule::default());
            for (alone, y) in alone.iter().zip(&y) {
                assert!(alone[..] == y[i * n..][..n], "row {i} of {rows}, {n} x {k} in {}", T::NAME);
            }
        }
    }
}

#[test]
fn linear_exact() {
    let new = Layers::new;
    let three = |rows, n, k| Layers { parts: 3, ..new(rows, n, k) };
    for layers in [
        new(1, 1, 1),
        new(3, 13, 24),
        three(5, 9, 64),
        three(18, 16, 100),
        Layers { gelu: true, ..new(4, 24, 768) },
        Layers { bias: false, ..new(3, 8, 1600) },
        Layers { gelu: true, ..new(33, 7, 37) },
    ] {
        layers.check::<f32>();
        layers.check::<f16>();
        layers.check::<bf16>();
    }
}

/// What is not a number stays in its row and column; nothing is summed where there is nothing.
#[test]
fn linear_exact_of_special_values() {
    let layers = Layers { bias: false, ..Layers::new(3, 9, 40) };
    let mut x = vec![f16::ONE; 3 * 40];
    let mut w = vec![f16::ONE; 9 * 40];
    (x[40 + 39], w[8 * 40]) = (f16::NAN, f16::INFINITY);
    let y = layers.run(&x, &[w], &[vec![]], 0, Schedule::default());
    for (i, y) in y[0].iter().enumerate() {
        match (i / 9, i % 9) {
            (1, _) => assert!(y.is_nan(), "{i}"),
            (_, 8) => assert_eq!(*y, f16::INFINITY, "{i}"),
            _ => assert_eq!(y.to_f32(), 40.0, "{i}"),
        }
    }
    let y = Layers::new(2, 3, 0).run::<f32>(&[], &[vec![]], &[vec![1.0, 2.0, 3.0]], 0, Schedule::default());
    assert_eq!(y, [[1.0, 2.0, 3.0, 1.0, 2.0, 3.0]]);
}
