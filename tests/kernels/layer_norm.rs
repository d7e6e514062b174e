//! Bias, dropout, residual and LayerNorm, and the column sums, against `ops` in f64.

use crate::harness::*;
use half::{bf16, f16};
use qformer::device::emulator::Schedule;
use qformer::device::launch::{Arg, Launch};
use qformer::ops;
use qformer::tensor::{DType, Dropout, Gradients, Tape, Tensor};

struct Case<T, R> {
    n: usize,
    c: usize,
    /// The parts that may be absent: x with its bias, and the residual.
    x: Option<Vec<T>>,
    bias: Vec<f32>,
    residual: Option<Vec<R>>,
    w: Vec<f32>,
    b: Vec<f32>,
    dy: Vec<T>,
    dsum: Vec<R>,
    drop: Option<Dropout>,
}

const EPS: f32 = 1e-6;

impl<T: Storage, R: Storage> Case<T, R> {
    fn new(n: usize, c: usize, seed: u64, drop: bool) -> Case<T, R> {
        let s = seed * 8;
        let wide = |v: Vec<f32>| v;
        Case {
            n,
            c,
            x: Some(random(n * c, s, 1.0)),
            bias: wide(random(c, s + 1, 0.5)),
            residual: Some(random(n * c, s + 2, 2.0)),
            w: wide(random(c, s + 3, 1.0)),
            b: wide(random(c, s + 4, 1.0)),
            dy: random(n * c, s + 5, 1.0),
            dsum: random(n * c, s + 6, 1.0),
            drop: drop.then(some_dropout),
        }
    }
    /// `blocks` of them, or fewer where there are not as many rows.
    fn launch<'a>(&self, kernel: &'a str, blocks: usize) -> Launch<'a> {
        let (warps, bytes) = (self.c.div_ceil(768), size_of::<T>() + size_of::<R>());
        let rows = 8 / warps;
        let shared = 8 * 768 * if bytes == 4 { 3 } else { 2 } * bytes;
        let grid = [self.n.div_ceil(rows).min(blocks) as u32, 1, 1];
        Launch { kernel, grid, block: [(32 * warps * rows) as u32, 1, 1], shared: shared as u32 }
    }
    /// x + bias, dropped out, and the residual, in the exactness of the caller.
    fn sum<F>(&self, i: usize, rounded: impl Fn(f64) -> f64, last: F) -> f64
    where
        F: Fn(f64) -> f64,
    {
        let x = self.x.as_ref().map_or(0.0, |x| {
            let u = rounded(x[i].get() + f64::from(self.bias[i % self.c]));
            rounded(u * f64::from(drop_factor(self.drop, i as u64)))
        });
        last(x + self.residual.as_ref().map_or(0.0, |v| v[i].get()))
    }
}

struct Out<T, R> {
    z: Vec<R>,
    y: Vec<T>,
    dz: Vec<R>,
    dx: Vec<T>,
    dw: Vec<f32>,
}
impl<T: Storage, R: Storage> PartialEq for Out<T, R> {
    fn eq(&self, o: &Self) -> bool {
        let bits = |s: &Self| [bytemuck::cast_slice::<R, u8>(&s.z), bytemuck::cast_slice(&s.dz)].concat();
        bits(self) == bits(o) && self.y == o.y && self.dx == o.dx && self.dw == o.dw
    }
}

fn kernels<T: Storage, R: Storage>(name: &str, k: &Case<T, R>, s: Schedule) -> Out<T, R> {
    kernels_in(name, k, 3, s)
}
fn kernels_in<T: Storage, R: Storage>(name: &str, k: &Case<T, R>, blocks: usize, s: Schedule) -> Out<T, R> {
    let (n, c) = (k.n, k.c);
    let x = k.x.as_ref().map(|x| on_device(x));
    let residual = k.residual.as_ref().map(|x| on_device(x));
    let or_null = |m: &Option<_>| m.as_ref().map_or(Arg::NULL, Arg::from);
    let [bias, w, b] = [&k.bias, &k.w, &k.b].map(|v| on_device(v));
    let (dy, dsum) = (on_device(&k.dy), on_device(&k.dsum));
    let (z, y, dz, dx) = (fresh::<R>(n * c), fresh::<T>(n * c), fresh::<R>(n * c), fresh::<T>(n * c));
    let (mean, rstd) = (fresh::<f32>(n), fresh::<f32>(n));
    let size = Arg::from(c as i32);
    let drop = drop_args(k.drop);
    let mut args =
        vec![or_null(&x), if x.is_some() { (&bias).into() } else { Arg::NULL }, or_null(&residual)];
    args.extend([Arg::from(&w), (&b).into(), (&z).into(), (&y).into(), (&mean).into(), (&rstd).into()]);
    args.extend([&[(n as i32).into(), size, EPS.into()], &drop[..]].concat());
    run(&k.launch(&format!("layer_norm_fwd_{name}"), 3), &args, s);
    let kernel = format!("layer_norm_bwd_{name}");
    let launch = k.launch(&kernel, blocks);
    let (parts, groups) = (launch.grid[0] as usize, launch.grid[0].div_ceil(17) as usize);
    let (partial, dw) = (fresh::<f32>((parts + groups) * 2 * c), fresh::<f32>(2 * c));
    let counters = on_device(&vec![0u32; groups + 1]);
    let mut args: Vec<Arg> =
        [&dy, &z, &mean, &rstd, &w, &dsum, &dz, &dx, &dw, &partial, &counters].map(Arg::from).into();
    args.extend([&[(n as i32).into(), size], &drop[..]].concat());
    run(&launch, &args, s);
    assert!(read::<u32>(&counters).iter().all(|n| *n == 0), "counters that are not 0 again");
    Out { z: read(&z), y: read(&y), dz: read(&dz), dx: read(&dx), dw: read(&dw) }
}

/// z, y, dz, dx, dw and db of the definition.
fn reference<T: Storage, R: Storage>(k: &Case<T, R>) -> [Vec<f64>; 5] {
    let (n, c) = (k.n, k.c);
    let sizes = [n, c];
    let tensor = |v: &[f64], sizes: &[usize]| Tensor::of(DType::F64, v, sizes).expect("a tensor");
    let u: Vec<f64> =
        (0..n * c).map(|i| k.x.as_ref().map_or(0.0, |x| x[i].get() + f64::from(k.bias[i % c]))).collect();
    let residual = k.residual.as_ref().map_or(vec![0.0; n * c], |v| values(v));
    let tape = Tape::new();
    let leaf = |v: &[f64], sizes: &[usize], i| tape.leaf(&tensor(v, sizes), i);
    let (u, residual) = (leaf(&u, &sizes, 0), leaf(&residual, &sizes, 1));
    let (w, b) = (leaf(&wide(&k.w), &[c], 2), leaf(&wide(&k.b), &[c], 3));
    let z = ops::add(&residual, &ops::dropout(&u, k.drop).expect("dropout")).expect("z");
    let y = ops::layer_norm(&z, &w, &b, f64::from(EPS)).expect("y");
    let mut grads = Gradients::new();
    let seeds = [(&y, tensor(&values(&k.dy), &sizes)), (&z, tensor(&values(&k.dsum), &sizes))];
    tape.backward_from(&seeds, &mut grads).expect("backward");
    let of = |i: usize| grads.get(i).expect("a gradient").slice::<f64>().to_vec();
    [z.to_f64().unwrap(), y.to_f64().unwrap(), of(1), of(0), [of(2), of(3)].concat()]
}

/// The same, rounded at every step; its sums over rows in one order or the other: which is the luckier is chance.
fn naive<T: Storage, R: Storage>(k: &Case<T, R>, reverse: bool) -> [Vec<f32>; 5] {
    let (n, c) = (k.n, k.c);
    let z: Vec<f32> =
        (0..n * c).map(|i| k.sum(i, |v| r::<T>(v as f32).into(), |v| round::<R>(v)) as f32).collect();
    let (mut y, mut dz, mut dx, mut dw, mut norms) = (vec![], vec![], vec![], vec![0f32; 2 * c], vec![]);
    for i in 0..n {
        let row = &z[i * c..][..c];
        let mean = row.iter().sum::<f32>() / c as f32;
        let var = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / c as f32;
        let rs = 1.0 / (var + EPS).sqrt();
        let norm: Vec<f32> = row.iter().map(|v| (v - mean) * rs).collect();
        let g: Vec<f32> = (0..c).map(|j| k.dy[i * c + j].get() as f32 * k.w[j]).collect();
        let (mg, mgn) = (
            g.iter().sum::<f32>() / c as f32,
            g.iter().zip(&norm).map(|(g, n)| g * n).sum::<f32>() / c as f32,
        );
        for j in 0..c {
            y.push(r::<T>(norm[j] * k.w[j] + k.b[j]));
            let d = r::<T>(rs * (g[j] - mg - norm[j] * mgn)) + k.dsum[i * c + j].get() as f32;
            dz.push(r::<R>(d));
            dx.push(r::<T>(r::<R>(d) * drop_factor(k.drop, (i * c + j) as u64)));
        }
        norms.extend(norm);
    }
    for row in 0..n {
        let i = if reverse { n - 1 - row } else { row };
        for j in 0..c {
            dw[j] += k.dy[i * c + j].get() as f32 * norms[i * c + j];
            dw[c + j] += k.dy[i * c + j].get() as f32;
        }
    }
    [z, y, dz, dx, dw]
}

/// How far off a row of two may be in dz = dsum + rstd f, f = g - mean(g) - n mean(g n). Its f is (g1 - g2) / 2 times
/// 1 - n^2 = eps rstd^2: nothing but the rounding of terms as large as G = max|g| is left, and a naive implementation may be
/// lucky with it. To first order, u = 2^-24 being what a step of f32 is off by, n <= 1, |mean(g)| + |g1 - g2| / 2 = G:
///   mean(z) by u Z, Z the largest |z| or |z - residual|: both n by u Z rstd, and f by G of that                rstd Z
///   z by 3 u Z (its bias, scale and residual): n by eps rstd^2 of that times rstd, f by 2 G of that    6 eps rstd^3 Z
///   n by 2 u (difference, product), in n and in mean(g n)                                                           4
///   rstd by 4.5 u (two differences' squares 3 and their sum 1, + eps 1: half of 5; root 1; quotient 1), twice       9
///   g, fused with the difference or not, mean(g), g - mean(g), the product n mean(g n): 1 each                      4
///   the products g n and their sum                                                                                  2
/// so dz by u rstd G (19 + rstd Z (1 + 6 eps rstd^2)).
fn allowance<T: Storage, R: Storage>(k: &Case<T, R>, row: usize) -> f64 {
    let of = |f: &dyn Fn(usize) -> f64| [f(2 * row), f(2 * row + 1)];
    let largest = |v: [f64; 2]| v[0].abs().max(v[1].abs());
    let z = of(&|i| k.sum(i, |v| v, |v| v));
    let residual = of(&|i| k.residual.as_ref().map_or(0.0, |r| r[i].get()));
    let larger = largest(z).max(largest([z[0] - residual[0], z[1] - residual[1]]));
    let g = largest(of(&|i| k.dy[i].get() * f64::from(k.w[i % 2])));
    let eps = f64::from(EPS);
    let rstd = ((z[0] - z[1]).powi(2) / 4.0 + eps).sqrt().recip();
    unit_roundoff::<f32>() * rstd * g * (19.0 + rstd * larger * (1.0 + 6.0 * eps * rstd * rstd))
}

/// dz and dx alone. Rows of two in f32 each for itself, as one may be a hundred times further off than another. Nothing is
/// allowed in wider rows, whose f is of the order of its terms, nor where z is stored in 16 bits, which counts for more.
fn check_dz<T: Storage, R: Storage>(
    name: &str,
    k: &Case<T, R>,
    got: &Out<T, R>,
    want: &[Vec<f64>; 5],
    plain: &[Vec<f32>; 5],
) {
    let cancels = k.c == 2 && R::NAME == "f32";
    let rows = if cancels { 1 } else { k.n };
    for row in (0..k.n).step_by(rows) {
        let (at, slack) = (row * k.c..(row + rows) * k.c, if cancels { allowance(k, row) } else { 0.0 });
        let what = |part: &str| format!("{part} of layer_norm_{name} [{}, {}] from row {row}", k.n, k.c);
        let part = |i: usize| (&want[i][at.clone()], &plain[i][at.clone()]);
        let (dz, dz_plain) = part(2);
        assert_close_but(slack, &what("dz"), &got.dz[at.clone()], dz, dz_plain);
        let (dx, dx_plain) = part(3);
        let slack = slack * k.drop.map_or(1.0, |d| f64::from(drop_scale(d)));
        assert_close_but(slack, &what("dx"), &got.dx[at.clone()], dx, dx_plain);
    }
}

fn check<T: Storage, R: Storage>(name: &str, k: &Case<T, R>) {
    let got = everywhere(|s| kernels(name, k, s));
    let (want, plain, other) = (reference(k), naive(k, false), naive(k, true));
    let what = |part: &str| format!("{part} of layer_norm_{name} [{}, {}]", k.n, k.c);
    assert_close(&what("z"), &got.z, &want[0], &plain[0]);
    assert_close(&what("y"), &got.y, &want[1], &plain[1]);
    check_dz(name, k, &got, &want, &plain);
    let far = |dw: &[f32]| worst(&wide(dw), &want[4]);
    let dw = if far(&other[4]) > far(&plain[4]) { &other[4] } else { &plain[4] };
    assert_close(&what("dw, db"), &got.dw, &want[4], dw);
}

#[test]
fn real_and_smallest_shapes() {
    for (n, c) in [(3, 768), (2, 1408), (1, 7), (5, 13), (30, 776)] {
        check("f16", &Case::<f16, f16>::new(n, c, 1, true));
        check("bf16_f32", &Case::<bf16, f32>::new(n, c, 2, true));
    }
    check("f32", &Case::<f32, f32>::new(3, 769, 3, true));
    check("bf16", &Case::<bf16, bf16>::new(1, 2048, 4, false));
    check("f16_f32", &Case::<f16, f32>::new(17, 40, 5, false));
}

#[test]
fn random_shapes() {
    for i in 0..shapes(6) {
        let mut x = Random::new(i as u64 + 77);
        let (n, c, seed, drop) = (x.within(1, 20), x.within(2, 300), i as u64 + 10, x.below(2) == 0);
        match i % 5 {
            0 => check("f16", &Case::<f16, f16>::new(n, c, seed, drop)),
            1 => check("bf16", &Case::<bf16, bf16>::new(n, c, seed, drop)),
            2 => check("f32", &Case::<f32, f32>::new(n, c, seed, drop)),
            3 => check("f16_f32", &Case::<f16, f32>::new(n, c, seed, drop)),
            _ => check("bf16_f32", &Case::<bf16, f32>::new(n, c, seed, drop)),
        }
    }
}

/// Rows whose dz is nothing but rounding, and the narrowest where it is not, in an f32 stream.
#[test]
fn gradients_of_narrow_rows() {
    fn go<T: Storage>(name: &str, (n, c): (usize, usize), seed: u64) {
        let k = Case::<T, f32>::new(n, c, seed, seed.is_multiple_of(3));
        let got = kernels(name, &k, Schedule::default());
        check_dz(name, &k, &got, &reference(&k), &naive(&k, false));
    }
    for i in 0..40 {
        let sizes = (Random::new(i).within(1, 20), 2 + i as usize % 2);
        go::<f32>("f32", sizes, 300 + i);
        go::<f16>("f16_f32", sizes, 600 + i);
        go::<bf16>("bf16_f32", sizes, 900 + i);
    }
}

#[test]
fn without_branch_or_residual() {
    let mut k = Case::<f16, f32>::new(4, 100, 1, false);
    k.residual = None;
    check("f16_f32", &k);
    let mut k = Case::<f16, f32>::new(4, 100, 2, false);
    k.x = None;
    let got = kernels("f16_f32", &k, Schedule::default());
    let (want, plain) = (reference(&k), naive(&k, false));
    assert_close("y of the residual alone", &got.y, &want[1], &plain[1]);
    assert_close("dz of the residual alone", &got.dz, &want[2], &plain[2]);
}

/// 23 blocks, so two groups of them; and 300, whose groups are added up in two goes.
#[test]
fn sums_of_many_blocks() {
    for (n, c) in [(180, 24), (2400, 3)] {
        let k = Case::<f32, f32>::new(n, c, 6, false);
        let got = kernels_in("f32", &k, 300, Schedule::default());
        let (want, plain) = (reference(&k), naive(&k, false));
        assert_close("dw, db", &got.dw, &want[4], &plain[4]);
        let reversed = Schedule::several(0)[1];
        assert!(kernels_in("f32", &k, 300, reversed) == got, "another order of the blocks, another result");
    }
}

/// E[x^2] - E[x]^2 would have no digit left.
#[test]
fn a_large_mean() {
    let mut k = Case::<f32, f32>::new(2, 769, 1, false);
    k.residual = Some(random::<f32>(2 * 769, 3, 1.0).iter().map(|v| v + 1000.0).collect());
    check("f32", &k);
}

#[test]
fn what_is_not_finite_stays_in_its_row() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut k = Case::<bf16, bf16>::new(3, 50, 1, false);
        k.x.as_mut().expect("x")[50 + 7] = bf16::from_f32(bad);
        let got = kernels("bf16", &k, Schedule::default());
        for (i, v) in got.y.iter().enumerate() {
            assert_eq!(v.to_f32().is_nan(), i / 50 == 1, "element {i}");
        }
    }
}

#[test]
fn sums_of_columns() {
    fn go<T: Storage>(n: usize, c: usize, parts: usize) {
        let x = random::<T>(n * c, 5, 1.0);
        let got = everywhere(|s| {
            let (dx, out) = (on_device(&x), on_device(&vec![2f32; c]));
            column_sum::<T>(&dx, &out, (n, c), parts, true, s);
            read::<f32>(&out)
        });
        let column = |j: usize| (0..n).map(move |i| i * c + j);
        let want: Vec<f64> = (0..c).map(|j| 2.0 + column(j).map(|i| x[i].get()).sum::<f64>()).collect();
        let naive: Vec<f32> =
            (0..c).map(|j| 2.0 + column(j).fold(0f32, |s, i| s + x[i].get() as f32)).collect();
        assert_close("column_sum", &got, &want, &naive);
    }
    go::<f16>(100, 33, 4);
    go::<bf16>(1, 1, 1);
    go::<f32>(257, 100, 7);
    go::<f32>(3, 5, 8); // more parts than rows
    go::<f16>(200, 520, 3);
}
