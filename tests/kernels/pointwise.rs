//! GELU, element by element operations, picked rows, embeddings, means and norms, against `ops` in f64.

use crate::harness::*;
use half::{bf16, f16};
use qformer::device::emulator::Schedule;
use qformer::device::launch::Arg;
use qformer::ops;
use qformer::tensor::{DType, Tensor};

/// For each of the three storage types.
macro_rules! each_type {
    ($f:ident($($arg:expr),*)) => {
        $f::<f32>($($arg),*);
        $f::<f16>($($arg),*);
        $f::<bf16>($($arg),*);
    };
}

#[test]
fn gelu() {
    fn go<T: Storage>(n: usize) {
        let (x, dy) = (random::<T>(n, 1, 3.0), random::<T>(n, 3, 1.0));
        let (y, dx) = everywhere(|s| {
            let (dev, dyd) = (on_device(&x), on_device(&dy));
            let (y, dx) = (fresh::<T>(n), fresh::<T>(n));
            let (grid, count) = (n.div_ceil(4096), Arg::from(n as u64));
            let args = [Arg::from(&dev), (&y).into(), count];
            run1(&format!("gelu_fwd_{}", T::NAME), grid, 256, &args, s);
            let args = [Arg::from(&dev), (&dyd).into(), (&dx).into(), count];
            run1(&format!("gelu_bwd_{}", T::NAME), grid, 256, &args, s);
            (read::<T>(&y), read::<T>(&dx))
        });
        let (want, grads) = definition(&[exact(&x, &[n])], &values(&dy), |t| ops::gelu(&t[0]));
        let cdf = |u: f32| 0.5 * (1.0 + libm::erff(u * std::f32::consts::FRAC_1_SQRT_2));
        let naive: Vec<f32> = floats(&x).iter().map(|u| r::<T>(u * cdf(*u))).collect();
        let slope = |u: f32| cdf(u) + u * 0.398_942_3 * (-0.5 * u * u).exp();
        let naive_dx: Vec<f32> =
            floats(&x).iter().zip(&dy).map(|(u, d)| r::<T>(d.get() as f32 * r::<T>(slope(*u)))).collect();
        assert_close("gelu", &y, &want, &naive);
        assert_close("gelu dx", &dx, &grads[0], &naive_dx);
    }
    for n in [9216, 4096, 65, 9] {
        each_type!(go(n));
    }
}

#[test]
fn gelu_of_special_values() {
    fn go<T: Storage>() {
        let x = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 40.0, -40.0].map(T::of);
        let (dev, y) = (on_device(&x), fresh::<T>(7));
        let args = [Arg::from(&dev), (&y).into(), 7u64.into()];
        run1(&format!("gelu_fwd_{}", T::NAME), 1, 256, &args, Schedule::default());
        let y = values(&read::<T>(&y));
        assert!(y[0].is_nan() && y[1] == f64::INFINITY && y[2].is_nan()); // -inf * 0, as in PyTorch
        assert_eq!(y[3..], [0.0, 0.0, 40.0, 0.0]);
    }
    each_type!(go());
}

/// Every f16 there is: within half a unit in the last place and a 24th of it, of what is exact.
#[test]
fn gelu_of_every_f16() {
    let x: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|x| x.is_finite()).collect();
    let (dev, y) = (on_device(&x), fresh::<f16>(x.len()));
    let args = [Arg::from(&dev), (&y).into(), (x.len() as u64).into()];
    run1("gelu_fwd_f16", x.len().div_ceil(4096), 256, &args, Schedule::default());
    for (x, y) in values(&x).into_iter().zip(values(&read::<f16>(&y))) {
        let want = x * 0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
        let unit = 2f64.powi((want.abs().log2().floor() as i32).max(-14) - 10);
        assert!((y - want).abs() <= unit * (0.5 + 1.0 / 24.0), "gelu({x}): {y}, not {want}");
    }
}

#[test]
fn elementwise() {
    fn go<T: Storage>(n: usize) {
        let (a, b) = (random::<T>(n, 1, 1.0), random::<T>(n, 2, 2.0));
        let grid = n.div_ceil(2048);
        let out = |kernel: &str, args: &dyn Fn(Arg, Arg, Arg) -> Vec<Arg>| {
            everywhere(|s| {
                let (da, db, y) = (on_device(&a), on_device(&b), fresh::<T>(n));
                let args = args((&da).into(), (&db).into(), (&y).into());
                run1(&format!("{kernel}_{}", T::NAME), grid, 256, &args, s);
                values(&read::<T>(&y))
            })
        };
        let count = Arg::from(n as u64);
        // one rounding each: exactly what f32 arithmetic gives
        let exactly =
            |f: &dyn Fn(usize) -> f32| (0..n).map(|i| round::<T>(f(i).into())).collect::<Vec<f64>>();
        let (fa, fb) = (floats(&a), floats(&b));
        assert_eq!(out("add_fwd", &|a, b, y| vec![a, b, y, count]), exactly(&|i| fa[i] + fb[i]));
        assert_eq!(out("scale_fwd", &|a, _, y| vec![a, y, count, 0.3f32.into()]), exactly(&|i| fa[i] * 0.3));
        let drop = Some(some_dropout());
        let dropped = out("dropout_fwd", &|a, _, y| [&[a, y, count], &drop_args(drop)[..]].concat());
        assert_eq!(dropped, exactly(&|i| fa[i] * drop_factor(drop, i as u64)));
        assert!(n < 50 || dropped.iter().filter(|v| **v == 0.0).count() > n / 30);
    }
    for n in [1, 7, 4096 + 13] {
        each_type!(go(n));
    }
}

#[test]
fn division_by_a_temperature() {
    fn go<T: Storage>(n: usize) {
        let (x, dy, t) = (random::<T>(n, 1, 1.0), random::<T>(n, 2, 1.0), 0.07f32);
        let grid = n.div_ceil(2048);
        let (y, dx, dt) = everywhere(|s| {
            let (dev, dyd, td) = (on_device(&x), on_device(&dy), on_device(&[t]));
            let (y, dx, partial, dt) = (fresh::<T>(n), fresh::<T>(n), fresh::<f32>(grid), on_device(&[1f32]));
            let args = [Arg::from(&dev), (&td).into(), (&y).into(), (n as u64).into()];
            run1(&format!("divide_fwd_{}", T::NAME), grid, 256, &args, s);
            let args = [
                Arg::from(&dyd),
                (&y).into(),
                (&td).into(),
                (&dx).into(),
                (&partial).into(),
                (n as u64).into(),
            ];
            run1(&format!("divide_bwd_{}", T::NAME), grid, 256, &args, s);
            let args = [Arg::from(&partial), (&td).into(), (&dt).into(), (grid as i32).into(), 1.into()];
            run1("divide_bwd_t", 1, 256, &args, s);
            (read::<T>(&y), read::<T>(&dx), read::<f32>(&dt))
        });
        let leaves = [exact(&x, &[n]), Tensor::of(DType::F64, &[t.into()], &[1]).expect("t")];
        let (want, grads) = definition(&leaves, &values(&dy), |l| ops::divide(&l[0], &l[1]));
        let by_t = |v: &[T]| floats(v).iter().map(|v| r::<T>(v / t)).collect::<Vec<f32>>();
        assert_close("divide", &y, &want, &by_t(&x));
        assert_close("divide dx", &dx, &grads[0], &by_t(&dy));
        let sum = floats(&dy).iter().zip(by_t(&x)).fold(0f32, |s, (d, y)| s + d * y);
        assert_close("divide dt", &dt, &[1.0 + grads[1][0]], &[1.0 - sum / t]);
    }
    for n in [1, 100, 5000] {
        each_type!(go(n));
    }
}

#[test]
fn casts() {
    fn go<X: Storage, Y: Storage>() {
        let x = random::<X>(2500, 1, 100.0);
        let y = everywhere(|s| {
            let (dev, y) = (on_device(&x), fresh::<Y>(x.len()));
            let args = [Arg::from(&dev), (&y).into(), (x.len() as u64).into()];
            run1(&format!("cast_{}_{}", X::NAME, Y::NAME), 2, 256, &args, s);
            read::<Y>(&y)
        });
        assert_eq!(values(&y), x.iter().map(|v| round::<Y>(v.get())).collect::<Vec<f64>>());
    }
    go::<f32, f16>();
    go::<f32, bf16>();
    go::<f16, f32>();
    go::<bf16, f32>();
}

#[test]
fn transposed() {
    fn go<T: Storage>(rows: usize, columns: usize) {
        let x = random::<T>(rows * columns, 1, 1.0);
        let y = everywhere(|s| {
            let (dev, y) = (on_device(&x), fresh::<T>(x.len()));
            let args = [Arg::from(&dev), (&y).into(), (rows as i32).into(), (columns as i32).into()];
            let grid = [columns.div_ceil(32) as u32, rows.div_ceil(32) as u32, 1];
            run(&launch_of(&format!("transpose_fwd_{}", T::NAME), grid, [32, 8, 1]), &args, s);
            read::<T>(&y)
        });
        assert!((0..x.len()).all(|i| y[i % columns * rows + i / columns] == x[i]));
    }
    each_type!(go(33, 70));
    each_type!(go(1, 1));
}

/// The tables of `kernels/sorted_rows.cuh` for these targets: order, starts, targets.
fn sorted(index: &[i32]) -> [Vec<i32>; 3] {
    let mut order: Vec<i32> = (0..index.len() as i32).collect();
    order.sort_by_key(|i| index[*i as usize]);
    let (mut starts, mut targets) = (vec![], vec![]);
    for (at, i) in order.iter().enumerate() {
        if targets.last() != Some(&index[*i as usize]) {
            targets.push(index[*i as usize]);
            starts.push(at as i32);
        }
    }
    starts.push(order.len() as i32);
    [order, starts, targets]
}

/// The naive gradient of picking rows: added one after the other in T.
fn scattered<T: Storage>(dy: &[T], index: &[i32], rows: usize, c: usize) -> Vec<f32> {
    let mut out = vec![0f32; rows * c];
    for (i, row) in index.iter().enumerate() {
        for j in 0..c {
            let to = &mut out[*row as usize * c + j];
            *to = r::<T>(*to + dy[i * c + j].get() as f32);
        }
    }
    out
}

#[test]
fn picked_rows_and_embeddings() {
    fn go<T: Storage>(rows: usize, n: usize, c: usize) {
        let mut random_index = Random::new((rows * n) as u64);
        let index: Vec<i32> = (0..n).map(|_| random_index.below(rows) as i32).collect();
        let ids: Vec<u32> = index.iter().map(|i| *i as u32).collect();
        let (x, dy) = (random::<T>(rows * c, 1, 1.0), random::<T>(n * c, 2, 1.0));
        let tables = sorted(&index);
        let back = |kernel: &str, zeros: &Memory, s| {
            let [order, starts, targets] = tables.each_ref().map(|t| on_device(t));
            let dy = on_device(&dy);
            let args = [
                Arg::from(&dy),
                (&order).into(),
                (&starts).into(),
                (&targets).into(),
                zeros.into(),
                (c as i32).into(),
                1.into(),
            ];
            // several threads for the rows of a target, or one
            let block = if n > rows { [32, 8, 1] } else { [c.div_ceil(8).next_multiple_of(32) as u32, 1, 1] };
            let grid = [c.div_ceil(8 * block[0] as usize) as u32, tables[2].len() as u32, 1];
            run(&launch_of(&format!("{kernel}_{}", T::NAME), grid, block), &args, s);
        };
        let (y, e, dx, dtable) = everywhere(|s| {
            let (dev, i) = (on_device(&x), on_device(&index));
            let (y, e) = (fresh::<T>(n * c), fresh::<T>(n * c));
            let args = [Arg::from(&dev), (&i).into(), (&y).into(), (c as i32).into()];
            run1(&format!("gather_rows_fwd_{}", T::NAME), n, 128, &args, s);
            let last: Vec<i32> = index.iter().map(|i| rows as i32 - 1 - i).collect();
            let last = on_device(&last);
            let args =
                [Arg::from(&dev), (&i).into(), (&dev).into(), (&last).into(), (&e).into(), (c as i32).into()];
            run1(&format!("embedding_fwd_{}", T::NAME), n, 128, &args, s);
            let dx = on_device(&vec![T::of(0.0); rows * c]);
            back("gather_rows_bwd", &dx, s);
            let dtable = on_device(&vec![0f32; rows * c]);
            back("embedding_bwd", &dtable, s);
            (read::<T>(&y), read::<T>(&e), read::<T>(&dx), read::<f32>(&dtable))
        });
        let (want, grads) =
            definition(&[exact(&x, &[rows, c])], &values(&dy), |t| ops::gather_rows(&t[0], &ids));
        assert_eq!(values(&y), want);
        let both = |i: usize| {
            let (row, j) = (index[i / c] as usize, i % c);
            round::<T>(f64::from(x[row * c + j].get() as f32 + x[(rows - 1 - row) * c + j].get() as f32))
        };
        assert_eq!(values(&e), (0..n * c).map(both).collect::<Vec<f64>>());
        assert_close("rows dx", &dx, &grads[0], &scattered(&dy, &index, rows, c));
        let (_, grads) =
            definition(&[exact(&x, &[rows, c])], &values(&dy), |t| ops::embedding(&t[0], &ids, None));
        assert_close("dtable", &dtable, &grads[0], &scattered(&dy, &index, rows, c));
    }
    each_type!(go(5, 40, 33));
    each_type!(go(2, 90, 264));
    each_type!(go(50, 3, 768));
    each_type!(go(1, 1, 1));
}

#[test]
fn means_of_rows() {
    fn go<T: Storage>(groups: usize, n: usize, c: usize) {
        let (x, dy) = (random::<T>(groups * n * c, 1, 1.0), random::<T>(groups * c, 2, 1.0));
        let (y, dx) = everywhere(|s| {
            let (dev, dyd) = (on_device(&x), on_device(&dy));
            let (y, dx) = (fresh::<T>(groups * c), fresh::<T>(groups * n * c));
            let grid = |rows: usize| [c.div_ceil(256) as u32, rows as u32, 1];
            let size = [Arg::from(n as i32), (c as i32).into()];
            let args = [&[Arg::from(&dev), (&y).into()], &size[..]].concat();
            run(&launch_of(&format!("mean_rows_fwd_{}", T::NAME), grid(groups), [256, 1, 1]), &args, s);
            let args = [&[Arg::from(&dyd), (&dx).into()], &size[..]].concat();
            run(&launch_of(&format!("mean_rows_bwd_{}", T::NAME), grid(groups * n), [256, 1, 1]), &args, s);
            (read::<T>(&y), read::<T>(&dx))
        });
        let (want, grads) =
            definition(&[exact(&x, &[groups * n, c])], &values(&dy), |t| ops::mean_rows(&t[0], n));
        let x = floats(&x);
        let sum = |i: usize| (0..n).fold(0f32, |s, k| s + x[((i / c) * n + k) * c + i % c]);
        let naive: Vec<f32> = (0..groups * c).map(|i| r::<T>(sum(i) / n as f32)).collect();
        let dy = floats(&dy);
        let naive_dx: Vec<f32> =
            (0..groups * n * c).map(|i| r::<T>(dy[i / c / n * c + i % c] / n as f32)).collect();
        assert_close("mean_rows", &y, &want, &naive);
        assert_close("mean_rows dx", &dx, &grads[0], &naive_dx);
    }
    each_type!(go(3, 32, 2));
    each_type!(go(2, 5, 300));
    each_type!(go(1, 1, 1));
}

#[test]
fn rows_of_length_one() {
    fn go<T: Storage>(n: usize, c: usize, scale: f64) {
        let (x, dy) = (random::<T>(n * c, 1, scale), random::<T>(n * c, 2, 1.0));
        let (y, dx) = everywhere(|s| {
            let (dev, dyd, length) = (on_device(&x), on_device(&dy), fresh::<f32>(n));
            let (y, dx) = (fresh::<T>(n * c), fresh::<T>(n * c));
            let threads = c.div_ceil(8).next_multiple_of(32);
            let args = [Arg::from(&dev), (&y).into(), (&length).into(), (c as i32).into()];
            run1(&format!("l2_normalize_fwd_{}", T::NAME), n, threads, &args, s);
            let args = [Arg::from(&dyd), (&y).into(), (&length).into(), (&dx).into(), (c as i32).into()];
            run1(&format!("l2_normalize_bwd_{}", T::NAME), n, threads, &args, s);
            (read::<T>(&y), read::<T>(&dx))
        });
        let (want, grads) = definition(&[exact(&x, &[n, c])], &values(&dy), |t| ops::l2_normalize(&t[0]));
        let (x, dy) = (floats(&x), floats(&dy));
        let (mut naive, mut naive_dx) = (vec![], vec![]);
        for (x, dy) in x.chunks(c).zip(dy.chunks(c)) {
            let s = x.iter().fold(0f32, |s, v| s + v * v).sqrt().max(1e-12);
            let y: Vec<f32> = x.iter().map(|v| r::<T>(v / s)).collect();
            let along = r::<T>(dy.iter().zip(&y).fold(0f32, |s, (d, y)| s + d * y));
            naive_dx.extend(dy.iter().zip(&y).map(|(d, y)| r::<T>(r::<T>(d - r::<T>(y * along)) / s)));
            naive.extend(y);
        }
        assert_close("l2_normalize", &y, &want, &naive);
        if c > 1 {
            // of one column the gradient is 0, and rounding alone would be compared
            assert_close("l2_normalize dx", &dx, &grads[0], &naive_dx);
        }
    }
    for (n, c) in [(4, 256), (3, 13), (2, 1)] {
        each_type!(go(n, c, 1.0));
    }
    go::<f32>(2, 100, 1e-14); // below the floor of the length
}
