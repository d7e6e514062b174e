//! The optimizer, the folded norm, and pictures to tokens.

use crate::harness::*;
use half::{bf16, f16};
use qformer::device::emulator::Schedule;
use qformer::device::launch::Arg;
use qformer::ops::{self, Options, Weight};

const CHUNK: usize = 2048;

fn address(m: &Memory) -> u64 {
    m.address() as u64
}

/// p, m, v, g and the 16-bit copy of each parameter.
struct State {
    parts: Vec<[Memory; 5]>,
    slots: Memory,
    chunks: Memory,
    count: usize,
}
impl State {
    fn new<T: Storage>(params: &[[Vec<f32>; 4]], decay: &[bool]) -> State {
        let parts: Vec<[Memory; 5]> = (params.iter())
            .map(|[p, m, v, g]| [on_device(p), on_device(m), on_device(v), on_device(g), fresh::<T>(p.len())])
            .collect();
        let slot = |(i, m): (usize, &[Memory; 5])| {
            let copy = if T::NAME == "f32" { 0 } else { address(&m[4]) };
            [&m[0], &m[1], &m[2], &m[3]].map(address).into_iter().chain([
                copy,
                params[i][0].len() as u64,
                decay[i].into(),
            ])
        };
        let slots: Vec<u64> = parts.iter().enumerate().flat_map(slot).collect();
        let chunks = |(i, p): (usize, &[Vec<f32>; 4])| {
            (0..p[0].len().div_ceil(CHUNK)).map(move |c| [i as i32, c as i32])
        };
        let chunks: Vec<[i32; 2]> = params.iter().enumerate().flat_map(chunks).collect();
        State { parts, slots: on_device(&slots), chunks: on_device(&chunks), count: chunks.len() }
    }
}

const UNSCALE: f32 = 1.0 / 64.0;
const LR: f64 = 1e-2;
const DECAY: f64 = 0.05;
const BETAS: [f64; 2] = [0.9, 0.999];
const EPS: f64 = 1e-8;
/// After this many steps.
const STEPS: i32 = 7;

fn parameters() -> Vec<[Vec<f32>; 4]> {
    [5000usize, 1, 2048, 300]
        .iter()
        .enumerate()
        .map(|(i, n)| {
            let s = 10 * i as u64;
            let v = random::<f32>(*n, s + 2, 0.1).iter().map(|v| v.abs()).collect();
            [random(*n, s, 1.0), random(*n, s + 1, 0.1), v, random(*n, s + 3, 64.0)]
        })
        .collect()
}

const WITH_DECAY: [bool; 4] = [true, false, true, false];

fn step<T: Storage>(s: Schedule) -> Vec<Vec<f32>> {
    let state = State::new::<T>(&parameters(), &WITH_DECAY);
    let size = LR / (1.0 - BETAS[0].powi(STEPS));
    let root = (1.0 - BETAS[1].powi(STEPS)).sqrt();
    let hyper = [size, root, 1.0 - BETAS[0], BETAS[1], 1.0 - BETAS[1], EPS, 1.0 - LR * DECAY];
    let mut args = vec![Arg::from(&state.slots), (&state.chunks).into()];
    args.extend(hyper.map(|x| Arg::from(x as f32)));
    args.extend([UNSCALE.into(), Arg::NULL]);
    run1(&format!("adamw_{}", T::NAME), state.count, 256, &args, s);
    let mut out: Vec<Vec<f32>> = vec![vec![]; 3];
    for [p, m, v, _, copy] in &state.parts {
        for (out, part) in out.iter_mut().zip([p, m, v]) {
            out.extend(read::<f32>(part));
        }
        if T::NAME != "f32" {
            let p: Vec<f32> = read(p);
            assert_eq!(floats(&read::<T>(copy)), p.iter().map(|v| r::<T>(*v)).collect::<Vec<f32>>());
        }
    }
    out
}

/// p, m and v after the step, each result of an operation rounded by `of`.
fn formula(of: impl Fn(f64) -> f64) -> Vec<Vec<f64>> {
    let mut out = vec![vec![]; 3];
    for ([p, m, v, g], decay) in parameters().iter().zip(WITH_DECAY) {
        for i in 0..p.len() {
            let [p, m, v, g] = [p[i], m[i], v[i], g[i]].map(f64::from);
            let g = of(g * f64::from(UNSCALE));
            let m = of(of(BETAS[0] * m) + of((1.0 - BETAS[0]) * g));
            let v = of(of(BETAS[1] * v) + of((1.0 - BETAS[1]) * of(g * g)));
            let root = (1.0 - BETAS[1].powi(STEPS)).sqrt();
            let by = of(m / of(of(of(v.sqrt()) / root) + EPS));
            let p = of(p * if decay { 1.0 - LR * DECAY } else { 1.0 });
            out[0].push(of(p - of(LR / (1.0 - BETAS[0].powi(STEPS)) * by)));
            out[1].push(m);
            out[2].push(v);
        }
    }
    out
}

#[test]
fn adamw() {
    let want = formula(|x| x);
    let naive = formula(|x| f64::from(x as f32));
    let got = [everywhere(step::<f32>), step::<f16>(Schedule::default())];
    let more = step::<bf16>(Schedule::default());
    for got in got.iter().chain([&more]) {
        for (i, name) in ["p", "m", "v"].into_iter().enumerate() {
            let naive: Vec<f32> = naive[i].iter().map(|v| *v as f32).collect();
            assert_close_f32(name, &got[i], &want[i], &naive);
        }
    }
}

#[test]
fn gradient_norm() {
    let norm = |bad: Option<f32>, s: Schedule| {
        let mut params = parameters();
        if let Some(bad) = bad {
            params[2][3][2047] = bad;
        }
        let state = State::new::<f32>(&params, &WITH_DECAY);
        let (partial, total) = (fresh::<f32>(state.count), fresh::<f32>(1));
        let args = [&state.slots, &state.chunks, &partial].map(Arg::from);
        run1("adamw_norm", state.count, 256, &args, s);
        let count = Arg::from(state.count as i32);
        run1("adamw_norm_sum", 1, 256, &[(&partial).into(), (&total).into(), count, Arg::NULL], s);
        read::<f32>(&total)[0]
    };
    let total = everywhere(|s| norm(None, s));
    let g: Vec<f32> = parameters().iter().flat_map(|p| p[3].clone()).collect();
    let want: f64 = g.iter().map(|g| f64::from(*g).powi(2)).sum();
    let naive = g.iter().fold(0f32, |s, g| s + g * g);
    assert_close_f32("norm", &[total], &[want], &[naive]);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(!norm(Some(bad), Schedule::default()).is_finite());
    }
}

#[test]
fn norm_linear() {
    fn go<T: Storage>(rows: usize, n: usize, k: usize) {
        let x = random::<T>(rows * k, 1, 1.0);
        let [gamma, beta] = [2, 3].map(|s| random::<f32>(k, s, 1.0));
        let (weight, bias, dy) =
            (random::<f32>(n * k, 4, 0.3), random::<f32>(n, 5, 1.0), random::<f32>(rows * n, 6, 1.0));
        // the products G = dy^T x and s = sum(dy), which are not these kernels' business
        let at = |i: usize, j: usize| {
            (0..rows).map(|t| f64::from(dy[t * n + i]) * x[t * k + j].get()).sum::<f64>()
        };
        let g: Vec<f32> = (0..n * k).map(|i| at(i / k, i % k) as f32).collect();
        let s: Vec<f32> = (0..n).map(|i| (0..rows).map(|t| dy[t * n + i]).sum()).collect();
        let parts = 3;
        let (folded, offset, dw, sums) = everywhere(|schedule| {
            let [w, ga, be, bi, gd, sd] = [&weight, &gamma, &beta, &bias, &g, &s].map(|v| on_device(v));
            let (folded, offset, dw) = (fresh::<T>(n * k), fresh::<f32>(n), on_device(&vec![1f32; n * k]));
            let (partial, sums) = (fresh::<f32>(parts * 2 * k), fresh::<f32>(2 * k));
            let args = [
                Arg::from(&w),
                (&ga).into(),
                (&be).into(),
                (&bi).into(),
                (&folded).into(),
                (&offset).into(),
                (k as i32).into(),
            ];
            run1(&format!("norm_linear_fold_{}", T::NAME), n, 256, &args, schedule);
            let mut args: Vec<Arg> = [&w, &ga, &be, &gd, &sd, &dw, &partial].map(Arg::from).into();
            args.extend([Arg::from(n as i32), (k as i32).into(), 1.into()]);
            let grid = [k.div_ceil(32) as u32, parts as u32, 1];
            run(&launch_of("norm_linear_unfold", grid, [32, 8, 1]), &args, schedule);
            column_sum::<f32>(&partial, &sums, (parts, 2 * k), 1, false, schedule);
            (read::<T>(&folded), read::<f32>(&offset), read::<f32>(&dw), read::<f32>(&sums))
        });
        let constant = exact(&x, &[rows, k]);
        let leaves = [exact(&gamma, &[k]), exact(&beta, &[k]), exact(&weight, &[n, k]), exact(&bias, &[n])];
        let (_, grads) = definition(&leaves, &wide(&dy), |t| {
            let weight = Weight::AfterNorm { norm: [&t[0], &t[1]], layer: [&t[2], &t[3]] };
            ops::linear(&constant, weight, Options::default())
        });
        let w = |i: usize| f64::from(weight[i]);
        let want: Vec<f64> = (0..n * k).map(|i| w(i) * f64::from(gamma[i % k])).collect();
        let naive: Vec<f32> = (0..n * k).map(|i| r::<T>(weight[i] * gamma[i % k])).collect();
        assert_close("folded", &folded, &want, &naive);
        let want: Vec<f64> = (0..n)
            .map(|i| f64::from(bias[i]) + (0..k).map(|j| w(i * k + j) * f64::from(beta[j])).sum::<f64>())
            .collect();
        let naive: Vec<f32> =
            (0..n).map(|i| (0..k).fold(bias[i], |s, j| s + weight[i * k + j] * beta[j])).collect();
        assert_close_f32("offset", &offset, &want, &naive);
        // the inputs G and s were rounded to f32 themselves
        let naive: Vec<f32> =
            (0..n * k).map(|i| 1.0 + (g[i] * gamma[i % k] + s[i / k] * beta[i % k])).collect();
        assert_close_f32("dweight", &dw, &grads[2].iter().map(|v| v + 1.0).collect::<Vec<f64>>(), &naive);
        let down = |f: &dyn Fn(usize) -> f32| {
            (0..k).map(|j| (0..n).fold(0f32, |s, i| s + f(i * k + j))).collect::<Vec<f32>>()
        };
        assert_close_f32("dgamma", &sums[..k], &grads[0], &down(&|i| weight[i] * g[i]));
        assert_close_f32("dbeta", &sums[k..], &grads[1], &down(&|i| weight[i] * s[i / k]));
    }
    go::<f16>(9, 20, 70);
    go::<bf16>(3, 1, 1);
    go::<f32>(5, 33, 33);
}

#[test]
fn pictures_to_patches_and_tokens() {
    fn go<T: Storage>(b: usize, size: usize, p: usize, w: usize) {
        let side = size / p;
        let (g, k) = (side * side, 3 * p * p);
        let mut bits = Random::new(size as u64);
        let bytes: Vec<u8> = (0..b * size * size * 3).map(|_| bits.below(256) as u8).collect();
        let (mean, std) = ([0.48, 0.45, 0.40f32], [0.27, 0.26, 0.28f32]);
        let normal = |c: usize, v: u8| (f32::from(v) / 255.0 - mean[c]) / std[c];
        let planes: Vec<f32> = (0..b * 3 * size * size)
            .map(|i| {
                let (image, c, pixel) = (i / (3 * size * size), i / (size * size) % 3, i % (size * size));
                normal(c, bytes[(image * size * size + pixel) * 3 + c])
            })
            .collect();
        let want: Vec<T> = (0..b * g * k)
            .map(|i| {
                let (row, c, y, x) = (i / k, i % k / (p * p), i / p % p, i % p);
                let (image, y, x) = (row / g, row % g / side * p + y, row % g % side * p + x);
                T::of(planes[((image * 3 + c) * size + y) * size + x].into())
            })
            .collect();
        let sizes = [Arg::from(size as i32), (p as i32).into()];
        let product = random::<T>(b * g * w, 1, 1.0);
        let [bias, cls] = [2, 3].map(|s| random::<f32>(w, s, 1.0));
        let pos = random::<f32>((g + 1) * w, 4, 1.0);
        let (from_bytes, from_planes, tokens) = everywhere(|s| {
            let (bd, pd) = (on_device(&bytes), on_device(&planes));
            let out = (fresh::<f32>(b * g * k), fresh::<T>(b * g * k));
            let numbers = [mean, std].concat().into_iter().map(Arg::from).collect::<Vec<Arg>>();
            let args = [&[Arg::from(&bd), (&out.0).into()], &sizes[..], &numbers].concat();
            run1("patch_embed_bytes_f32", b * g, 128, &args, s);
            let args = [&[Arg::from(&pd), (&out.1).into()], &sizes[..]].concat();
            run1(&format!("patch_embed_planes_{}", T::NAME), b * g, 128, &args, s);
            let (prod, bi, cl, po) =
                (on_device(&product), on_device(&bias), on_device(&cls), on_device(&pos));
            let y = fresh::<T>(b * (g + 1) * w);
            let args = [
                Arg::from(&prod),
                (&bi).into(),
                (&cl).into(),
                (&po).into(),
                (&y).into(),
                (g as i32).into(),
                (w as i32).into(),
            ];
            run1(&format!("patch_embed_tokens_{}", T::NAME), b * (g + 1), 128, &args, s);
            (read::<f32>(&out.0), read::<T>(&out.1), read::<T>(&y))
        });
        let rounded: Vec<T> = from_bytes.iter().map(|v| T::of(f64::from(*v))).collect();
        assert_eq!(rounded, want);
        assert_eq!(from_planes, want);
        let (mut exact_y, mut naive) = (vec![], vec![]);
        for i in 0..b * (g + 1) * w {
            let (row, c) = (i / w, i % w);
            let (image, place) = (row / (g + 1), row % (g + 1));
            let at = pos[place * w + c];
            let x = if place == 0 { cls[c] } else { product[(image * g + place - 1) * w + c].get() as f32 };
            let extra = if place == 0 { 0.0 } else { bias[c] };
            exact_y.push(f64::from(x) + f64::from(extra) + f64::from(at));
            naive.push(r::<T>(r::<T>(x + extra) + at));
        }
        assert_close("tokens", &tokens, &exact_y, &naive);
    }
    go::<f16>(2, 29, 14, 40); // a pixel beyond the last whole patch
    go::<bf16>(1, 16, 16, 13);
    go::<f32>(1, 6, 2, 8);
}
