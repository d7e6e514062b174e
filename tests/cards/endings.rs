//! Runs that a GPU ends. The emulated GPU fails with a code of CUDA at its n-th call (`QFORMER_FAULT`).

use crate::world::{Done, World};
use qformer::files::RealDisk;
use qformer::train::checkpoint::{self, Checkpoint, Folder, Tensor};
use serde_json::Value;

/// A short run on the emulated GPU; a later setting wins over an earlier one.
fn arguments<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let run = ["train", "--images", "images", "--captions", "captions.json", "--size", "tiny", "--out", out];
    let small = ["--set", "model.layers=2", "--set", "model.vit_depth=1", "--set", "model.hidden=32"];
    let short = ["--set", "batch=4", "--set", "steps=4", "--set", "save_minutes=0"];
    [&run[..], &small, &short, &["--set", "device=host", "--set", "dtype=f32"], more].concat()
}

fn run_with(world: &World, fault: &str, out: &str, more: &[&str]) -> Done {
    Done(world.command(&arguments(out, more)).env("QFORMER_FAULT", fault).output().unwrap())
}

/// The first of ever later calls whose failure comes after a step is saved.
fn ended(world: &World, fault: &str, more: &[&str]) -> (String, Done) {
    let mut at = 200;
    loop {
        let out = format!("ended{at}");
        let done = run_with(world, &format!("{fault}@{at}"), &out, more);
        assert_eq!(done.code(), Some(6), "the fault was never met: {}", done.errors());
        assert!(!done.errors().contains("panicked"), "{}", done.errors());
        if done.errors().contains("is saved: resume with") {
            return (out, done);
        }
        at = at * 3 / 2;
    }
}

/// Follows the advice of the message.
fn resumed(world: &World, done: &Done) {
    let errors = done.errors();
    let command = errors.split("resume with qformer ").nth(1).unwrap();
    let words: Vec<&str> = command.split_whitespace().take(4).collect();
    assert_eq!(words[..3], ["train", "--resume", "--out"]);
    world.run(&[words[0], words[1], words[2], words[3].trim_end_matches([';', ','])]).good();
}

#[test]
fn a_gpu_that_fails_ends_a_run_that_resumes_bit_for_bit() {
    let world = World::new();
    world.run(&arguments("whole", &[])).good();
    for (fault, words) in [
        ("launch:700", ["CUDA_ERROR_ILLEGAL_ADDRESS", "QFORMER_SYNC=1"]),
        ("upload:999", ["CUDA_ERROR_UNKNOWN", "Xid 79"]),
    ] {
        let (out, done) = ended(&world, fault, &["--set", "save_every=1"]);
        done.refused(6, &words);
        for never in ["smaller batch", "memory is left", "repair the data"] {
            assert!(!done.errors().contains(never), "{}", done.errors());
        }
        resumed(&world, &done);
        assert!(world.newest(&out) == world.newest("whole"), "{fault}: the resumed run differs");
    }
}

/// Nothing was due to be saved: memory that runs out harms nothing, and what is there is saved first.
#[test]
fn out_of_memory_saves_first() {
    let world = World::new();
    world.run(&arguments("whole", &[])).good();
    let (out, done) = ended(&world, "allocate:2", &["--set", "save_every=0"]);
    done.refused(6, &["the largest holders", "where more memory is free", "--export", "--batch N"]);
    assert_eq!(world.checkpoints(&out).len(), 1);
    resumed(&world, &done);
    assert!(world.newest(&out) == world.newest("whole"), "the resumed run differs");
    // Another code of the same call is not called that.
    let other = run_with(&world, "allocate:700@300", "other", &[]);
    other.refused(6, &["allocate: a kernel used memory", "CUDA_ERROR_ILLEGAL_ADDRESS, 700"]);
    assert!(!other.errors().contains("smaller batch"), "{}", other.errors());
}

#[test]
fn a_gpu_that_fails_at_once_leaves_nothing_in_the_way() {
    let world = World::new();
    run_with(&world, "upload:46@1", "run", &[]).refused(6, &["the GPU was taken away"]);
    run_with(&world, "matmul:719@3", "run", &[])
        .refused(6, &["CUDA_ERROR_LAUNCH_FAILED", "no step is saved yet"]);
    world.run(&arguments("run", &["--steps", "1"])).good();
    run_with(&world, "launch:700", "other", &[]).refused(2, &["QFORMER_FAULT: expected CALL:CODE@N"]);
}

/// A run that is resumed by another GPU, or by the same kernels in another order, says so and goes on; on the CPU it is refused,
/// and the way that the message names works.
#[test]
fn a_run_that_is_resumed_elsewhere_says_so() {
    let world = World::new();
    world.run(&arguments("run", &["--steps", "1"])).good();
    let path = world.path("run/checkpoints").join(checkpoint::file_name(1));
    let saved = checkpoint::load(&RealDisk, &path).unwrap();
    assert_eq!(saved.progress.state["gpu"], "the kernels on the host");
    assert_eq!(saved.progress.state["instructions"], Value::Null);
    let resume = |more: &[&str]| world.run(&[&["train", "--resume", "--out", "run"], more].concat());
    let same = resume(&["--steps", "2"]).good();
    assert!(!same.errors().contains("last bits"), "{}", same.errors());
    let other = resume(&["--steps", "3", "--device", "host:1"]).good();
    let said = "GPU: saved with the kernels on the host, now the kernels on the host, schedule 1: the last bits of what is computed may differ";
    assert!(other.errors().contains(said), "{}", other.errors());

    let cpu = resume(&["--device", "cpu", "--dtype", "f32"]);
    cpu.refused(
        2,
        &["device: saved with \"host\", now \"cpu\"", "--export --out run --device cpu", "--start run/model"],
    );
    world.run(&["train", "--export", "--out", "run", "--device", "cpu"]).good();
    let data = ["train", "--images", "images", "--captions", "captions.json", "--batch", "4", "--steps", "1"];
    world.run(&[&data[..], &["--device", "cpu", "--start", "run/model", "--out", "next"]].concat()).good();
}

#[test]
fn an_infinite_loss_in_f16_advises_bf16() {
    let world = World::new();
    let wild = ["--set", "dtype=f16", "--set", "init_lr=1e30", "--set", "warmup_lr=1e30"];
    world.run(&arguments("run", &wild)).refused(7, &["not finite", "f16 ends at 65,504", "--dtype bf16"]);
}

/// Changes what a checkpoint says of loss scaling.
fn with_scale(world: &World, step: u64, scale: f64, skipped: u32) {
    let folder = world.path("run/checkpoints");
    let mut saved = checkpoint::load(&RealDisk, &folder.join(checkpoint::file_name(step))).unwrap();
    saved.progress.state["loss_scale"] = scale.into();
    saved.progress.state["skipped"] = skipped.into();
    let tensor = |(name, t): (&String, &checkpoint::Stored)| Tensor {
        name: name.clone(),
        dtype: t.dtype,
        shape: t.shape.clone(),
        bytes: t.bytes.clone().into(),
    };
    let tensors = saved.tensors.iter().map(tensor).collect();
    let again = Checkpoint { progress: saved.progress.clone(), tensors };
    Folder::own(&RealDisk, &folder).unwrap().save(&again).unwrap();
}

/// Gradients that overflow at every scale: a warning after 10 steps in a row, and the end after 50.
#[test]
fn steps_that_are_left_out_one_after_the_other_end_a_run() {
    let world = World::new();
    let f16 = ["--set", "dtype=f16", "--set", "model.layers=1", "--set", "batch=2", "--set", "steps=8"];
    world.run(&arguments("run", &[&f16[..], &["--steps", "1"]].concat())).good();
    // A scale at which nothing is finite in f32.
    with_scale(&world, 1, 2f64.powi(200), 8);
    let resume = |more: &[&str]| world.run(&[&["train", "--resume", "--out", "run"], more].concat());
    let done = resume(&["--steps", "3"]).good();
    let warning = format!(
        "warning: gradients in f16 were not finite in 10 steps in a row, which were left out; the loss scale is now {}",
        2f64.powi(198)
    );
    assert_eq!(done.errors().matches(&warning).count(), 1, "{}", done.errors());
    // The count is part of the checkpoint.
    let path = world.path("run/checkpoints").join(checkpoint::file_name(3));
    assert_eq!(checkpoint::load(&RealDisk, &path).unwrap().progress.state["skipped"], 10);
    with_scale(&world, 3, 2f64.powi(200), 48);
    let end = ["not finite in 50 steps in a row", "--dtype bf16", "step 3 is saved", "--start run/model"];
    resume(&[]).refused(7, &end);
    assert_eq!(world.log("run").len(), 5);
}
