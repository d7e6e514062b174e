//! The testers tested: every class of mistake, planted in `kernels/host/planted.cu`, must be found on every run, and
//! the wrappers of `dev.cuh` must do what the PTX ISA says.

use crate::place::*;
use half::{bf16, f16};
use qformer::device::emulator::{self, Schedule};
use qformer::device::launch::{Arg, Launch};

/// The errors a kernel gives under the schedules; None where it ran through.
fn outcomes(launch: &Launch, args: &[Arg]) -> Vec<Option<String>> {
    let run = |s| try_run(launch, args, s).err().map(|e| e.to_string());
    Schedule::several(6).into_iter().map(run).collect()
}

/// Where a mistake must be found: also without the checker, or only by it.
#[derive(PartialEq)]
enum By {
    Emulator,
    Checker,
}

#[track_caller]
fn found(by: By, kernel: &str, blocks: u32, threads: u32, shared: u32, args: &[Arg], text: &str) {
    let launch = Launch { kernel, grid: [blocks, 1, 1], block: [threads, 1, 1], shared };
    let all = outcomes(&launch, args);
    let hits = all.iter().flatten().filter(|e| e.contains(text)).count();
    if by == By::Emulator || emulator::is_checked() {
        assert_eq!(hits, all.len(), "{kernel}: found under {hits} of {} schedules: {all:?}", all.len());
    }
}

fn ones(n: usize) -> Memory {
    on_device(&vec![1f32; n])
}

#[test]
fn races_in_shared_memory() {
    let out = fresh::<f32>(64);
    let args = [Arg::from(&out)];
    // without the barrier a thread reads what is not yet written, or another's write races with its read
    let launch = launch_of("planted_no_barrier_after_write", [1, 1, 1], [64, 1, 1]);
    let all = outcomes(&launch, &args);
    assert!(
        !emulator::is_checked()
            || all.iter().flatten().all(|e| e.contains("uninitialised shared") || e.contains("race")),
        "{all:?}"
    );
    assert!(!emulator::is_checked() || all.iter().all(Option::is_some), "{all:?}");
    found(By::Checker, "planted_no_barrier_before_write", 1, 64, 0, &args, "data race on shared memory");
    found(By::Checker, "planted_no_syncwarp", 1, 32, 0, &args, "");
}

#[test]
fn a_missing_barrier_changes_the_result() {
    let wrong = |kernel: &str, right: &dyn Fn(usize) -> f32| {
        let schedules = Schedule::several(6).into_iter();
        schedules
            .filter(|&s| {
                let out = fresh::<f32>(64);
                let r = try_run(&launch_of(kernel, [1, 1, 1], [64, 1, 1]), &[Arg::from(&out)], s);
                r.is_err()
                    || out.to_vec::<f32>().expect("out").iter().enumerate().any(|(i, &v)| v != right(i))
            })
            .count()
    };
    assert_eq!(wrong("planted_no_barrier_after_write", &|_| 1.0), 8);
    assert!(wrong("planted_no_barrier_before_write", &|i| 63.0 - i as f32) >= 7);
}

#[test]
fn divergence() {
    let out = ones(128);
    let args = [Arg::from(&out)];
    found(
        By::Emulator,
        "planted_exit_before_barrier",
        1,
        128,
        0,
        &args,
        "deadlock: 64 threads waiting at the barrier",
    );
    found(By::Emulator, "planted_exit_before_shuffle", 1, 32, 0, &args, "lane");
    found(By::Emulator, "planted_two_barriers", 1, 64, 0, &args, "divergent barrier");
    found(By::Emulator, "planted_half_a_shuffle", 1, 32, 0, &args, "deadlock");
}

#[test]
fn bounds() {
    let (out, input) = (ones(32), ones(32));
    let (o, i) = (Arg::from(&out), Arg::from(&input));
    found(By::Checker, "planted_shared_read_past_end", 1, 32, 0, &[o], "outside every array");
    found(
        By::Emulator,
        "planted_shared_write_past_end",
        1,
        32,
        0,
        &[o],
        if emulator::is_checked() { "outside every array" } else { "past the end" },
    );
    let global = if emulator::is_checked() {
        "at offset 128 of a buffer of 128 bytes"
    } else {
        "offset 128 of a buffer of 128 bytes"
    };
    found(By::Emulator, "planted_global_read_past_end", 1, 64, 0, &[o, i, 32.into()], global);
    found(By::Emulator, "planted_global_write_past_end", 1, 64, 0, &[o, 32.into()], global);
    // 65537 * 65536 is 65536 in 32 bits
    found(By::Emulator, "planted_index_overflow", 1, 32, 0, &[o, 65537.into(), 65536.into()], "");
    found(By::Emulator, "planted_stack_overflow", 1, 32, 0, &[o], "stack overflow");
    let mut foreign = vec![0f32; 32];
    let foreign = Arg::Pointer(foreign.as_mut_ptr().cast());
    found(By::Checker, "planted_foreign_pointer", 1, 32, 0, &[foreign], "no device buffer");
}

#[test]
fn memory_nobody_wrote() {
    let (out, input) = (ones(32), fresh::<f32>(32));
    let o = Arg::from(&out);
    found(By::Checker, "planted_shared_uninitialised", 1, 32, 0, &[o], "uninitialised shared");
    found(
        By::Checker,
        "planted_global_uninitialised",
        1,
        32,
        0,
        &[o, Arg::from(&input)],
        "uninitialised global",
    );
    let hole = fresh::<f32>(32);
    run(
        &launch_of("planted_row_never_written", [1, 1, 1], [32, 1, 1]),
        &[Arg::from(&hole)],
        Schedule::default(),
    );
    match hole.to_vec::<f32>() {
        Ok(v) => assert!(!emulator::is_checked() && v[5].is_nan()),
        Err(e) => assert!(e.to_string().contains("4 of 128 bytes were never written"), "{e}"),
    }
}

#[test]
fn alignment_and_blocks() {
    let (out, input) = (ones(32), ones(64));
    found(By::Emulator, "planted_misaligned", 1, 32, 0, &[Arg::from(&out), Arg::from(&input)], "misaligned");
    found(By::Checker, "planted_blocks_race", 2, 32, 0, &[Arg::from(&out)], "data race on global memory");
}

#[test]
fn the_last_block() {
    let (left, out, counter) = (ones(3 * 64), ones(64), on_device(&[0u32]));
    let args = [&left, &out, &counter].map(Arg::from);
    let right = launch_of("wrapper_last_block", [3, 1, 1], [64, 1, 1]);
    assert_eq!(outcomes(&right, &args), vec![None; 8]);
    assert_eq!((read::<f32>(&out), read::<u32>(&counter)), (vec![3.0; 64], vec![0]));
    for kernel in ["planted_written_too_late", "planted_not_the_last"] {
        let counter = on_device(&[0u32]);
        let args = [&left, &out, &counter].map(Arg::from);
        let launch = launch_of(kernel, [3, 1, 1], [64, 1, 1]);
        let done = try_run(&launch, &args, Schedule::default());
        let found = done.err().is_some_and(|e| e.to_string().contains("data race on global memory"));
        assert_eq!(found, emulator::is_checked(), "{kernel}");
    }
    let unset = on_device(&[9u32]);
    let args = [Arg::from(&left), Arg::from(&out), Arg::from(&unset)];
    found(By::Emulator, "wrapper_last_block", 3, 64, 0, &args, "a counter is 9 where only 3 blocks come");
}

#[test]
fn asynchronous_copies() {
    let (out, input) = (ones(32), ones(128));
    let args = [Arg::from(&out), Arg::from(&input), 100.into()];
    let right = Launch { kernel: "planted_copies_right", grid: [1, 1, 1], block: [32, 1, 1], shared: 1024 };
    assert_eq!(outcomes(&right, &args), vec![None; 8]);
    found(By::Checker, "planted_no_zero_fill", 1, 32, 1024, &args, "uninitialised shared");
    found(By::Emulator, "planted_carve_too_large", 1, 32, 512, &args[..1], "past the 512 bytes");
    let (out_of_four, rows) = (ones(128), on_device(&vec![f16::ONE; 8 * 16 * 8]));
    let args_of_four = [Arg::from(&out_of_four), Arg::from(&rows)];
    let product =
        Launch { kernel: "planted_product_right", grid: [1, 1, 1], block: [128, 1, 1], shared: 2048 };
    assert_eq!(outcomes(&product, &args_of_four), vec![None; 8]);
    found(By::Checker, "planted_product_of_unwritten", 1, 128, 2048, &args_of_four, "uninitialised shared");
    // A wait that leaves a copy in flight shows only if that copy is late: in every schedule but the early one.
    let little = Launch { kernel: "planted_wait_too_little", ..right };
    let all = outcomes(&little, &args);
    if emulator::is_checked() {
        assert!(all[1..].iter().all(|e| e.as_ref().is_some_and(|e| e.contains("in flight"))), "{all:?}");
    }
    let never = Launch { kernel: "planted_never_waited", shared: 512, ..right };
    let all = outcomes(&never, &args[..2]);
    assert!(all[1..].iter().all(|e| e.as_ref().is_some_and(|e| e.contains("never waited for"))), "{all:?}");
}

#[test]
fn wrong_launches() {
    let out = ones(32);
    let o = Arg::from(&out);
    let right = launch_of("planted_blocks_race", [1, 1, 1], [32, 1, 1]);
    let error = |launch: Launch, args: &[Arg]| {
        try_run(&launch, args, Schedule::default()).expect_err("a wrong launch").to_string()
    };
    assert!(error(Launch { kernel: "no_such_kernel", ..right }, &[o]).contains("unknown name"));
    assert!(error(Launch { block: [33, 1, 1], ..right }, &[o]).contains("block: expected 1 to 32 threads"));
    assert!(error(Launch { block: [0, 1, 1], ..right }, &[o]).contains("block"));
    assert!(error(Launch { grid: [1, 65536, 1], ..right }, &[o]).contains("grid"));
    assert!(
        error(Launch { shared: 16, ..right }, &[o]).contains("shared memory: expected 0 bytes, got 16 bytes")
    );
    assert!(error(right, &[o, o]).contains("arguments: expected 1 of them, got 2"));
    assert!(error(right, &[3u64.into()]).contains("argument 0: expected Pointer of 8 bytes"));
}

#[test]
fn mma_multiplies_matrices() {
    // small integers: every product and sum is exact, so the layout is compared bit by bit
    let a: Vec<f16> = (0..256).map(|i| f16::from_f64(f64::from(i * 7 % 11) - 4.0)).collect();
    let b: Vec<f16> = (0..128).map(|i| f16::from_f64(f64::from(i * 5 % 13) - 6.0)).collect();
    let (da, db, d) = (on_device(&a), on_device(&b), fresh::<f32>(128));
    run(
        &launch_of("wrapper_mma_f16", [1, 1, 1], [32, 1, 1]),
        &[Arg::from(&da), Arg::from(&db), Arg::from(&d)],
        Schedule::default(),
    );
    let d = d.to_vec::<f32>().expect("d");
    for i in 0..16 {
        for j in 0..8 {
            let want: f64 = (0..16).map(|k| a[i * 16 + k].to_f64() * b[k * 8 + j].to_f64()).sum();
            assert_eq!(f64::from(d[i * 8 + j]), want, "row {i}, column {j}");
        }
    }
}

#[test]
fn a_warpgroup_multiplies_matrices() {
    let small = |n: i32, by: i32, of: i32| -> Vec<f16> {
        (0..n).map(|i| f16::from_f64(f64::from(i * by % of - of / 2))).collect()
    };
    let (a, b, c) = (small(64 * 16, 7, 11), small(136 * 16, 5, 13), small(16 * 88, 3, 17));
    let (s, o) = (fresh::<f32>(64 * 136), fresh::<f32>(64 * 88));
    let [da, db, dc] = [&a, &b, &c].map(|x| on_device(x));
    let launch =
        Launch { kernel: "wrapper_warpgroup_f16", grid: [1, 1, 1], block: [128, 1, 1], shared: 7200 };
    let args = [Arg::from(&da), (&db).into(), (&dc).into(), (&s).into(), (&o).into()];
    run(&launch, &args, Schedule::default());
    let (s, o) = (read::<f32>(&s), read::<f32>(&o));
    let product = |i: usize, other: &dyn Fn(usize) -> f16| -> f64 {
        (0..16).map(|k| 2.0 * a[i * 16 + k].to_f64() * other(k).to_f64()).sum()
    };
    for i in 0..64 {
        for j in 0..136 {
            assert_eq!(f64::from(s[i * 136 + j]), product(i, &|k| b[j * 16 + k]), "row {i}, row {j}");
        }
        for j in 0..88 {
            assert_eq!(f64::from(o[i * 88 + j]), product(i, &|k| c[k * 88 + j]), "row {i}, column {j}");
        }
    }
}

#[test]
fn sixteen_bit_conversions_are_those_of_ieee() {
    let n = 65536usize;
    let all: Vec<u16> = (0..=u16::MAX).collect();
    // and f32 patterns: every 16-bit value, its neighbours, and the midpoint to the next
    let mut x: Vec<f32> = Vec::new();
    for &b in &all {
        let (h, w) = (f16::from_bits(b).to_f32(), bf16::from_bits(b).to_f32());
        let middle = f32::from_bits((u32::from(b) << 16) | 0x8000);
        x.extend([
            h,
            w,
            middle,
            f32::from_bits(h.to_bits().wrapping_add(0x1000)),
            f32::from_bits(middle.to_bits() ^ 1),
        ]);
    }
    x.retain(|v| !v.is_nan());
    let grid = |n: usize| [(n as u32).div_ceil(256), 1, 1];
    let (bits, from_h, from_b) = (on_device(&all), fresh::<f32>(n), fresh::<f32>(n));
    let args =
        [Arg::from(&bits), Arg::from(&bits), Arg::from(&from_h), Arg::from(&from_b), (n as i32).into()];
    run(&launch_of("wrapper_from_16", grid(n), [256, 1, 1]), &args, Schedule::default());
    let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    let (from_h, from_b) = (from_h.to_vec::<f32>().expect("f16"), from_b.to_vec::<f32>().expect("bf16"));
    for (i, &b) in all.iter().enumerate() {
        assert!(
            same(from_h[i], f16::from_bits(b).to_f32()) && same(from_b[i], bf16::from_bits(b).to_f32()),
            "{b:#06x}"
        );
    }
    let (dx, h, b) = (on_device(&x), fresh::<u16>(x.len()), fresh::<u16>(x.len()));
    let args = [Arg::from(&dx), Arg::from(&h), Arg::from(&b), (x.len() as i32).into()];
    run(&launch_of("wrapper_to_16", grid(x.len()), [256, 1, 1]), &args, Schedule::default());
    let (h, b) = (h.to_vec::<u16>().expect("f16"), b.to_vec::<u16>().expect("bf16"));
    for (i, &v) in x.iter().enumerate() {
        assert_eq!((h[i], b[i]), (f16::from_f32(v).to_bits(), bf16::from_f32(v).to_bits()), "{v:e}");
    }
}

#[test]
fn philox_gives_the_known_answers() {
    // Random123 1.14, kat_vectors: philox4x32 10
    let cases: [([u32; 4], [u32; 2], [u32; 4]); 3] = [
        ([0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
        ([u32::MAX; 4], [u32::MAX; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
        (
            [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
            [0xa4093822, 0x299f31d0],
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
        ),
    ];
    for (counter, key, want) in cases {
        let (c, k, out) = (on_device(&counter), on_device(&key), fresh::<u32>(4));
        run(
            &launch_of("wrapper_philox", [1, 1, 1], [32, 1, 1]),
            &[Arg::from(&c), Arg::from(&k), Arg::from(&out)],
            Schedule::default(),
        );
        assert_eq!(out.to_vec::<u32>().expect("out"), want);
    }
}
