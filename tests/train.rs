//! Training as users run it: the program itself, on small drawn pictures.

#[path = "train/cached.rs"]
mod cached;
#[path = "train/config.rs"]
mod config;
#[path = "train/data.rs"]
mod data;
#[path = "train/decay.rs"]
mod decay;
#[path = "train/flat.rs"]
mod flat;
#[path = "train/forms.rs"]
mod forms;
#[path = "train/pages.rs"]
mod pages;
#[path = "train/refused.rs"]
mod refused;
#[path = "train/shards.rs"]
mod shards;
#[cfg(feature = "parquet")]
#[path = "train/tables.rs"]
mod tables;
#[path = "tiny/mod.rs"]
mod tiny;
#[path = "train/world.rs"]
mod world;

use flat::{assert_flat, held};
use std::time::Duration;
use world::{Done, World, exists, signal};

/// Dropout, accumulation over two micro-batches and an evaluation now and then: everything that could tell a resumed run
/// from another one. 24 pictures with 2 captions: 48 / (3 * 2) = 8 steps an epoch.
const BUSY: [&str; 8] = [
    "--batch",
    "3",
    "--set",
    "accumulate=2",
    "--set",
    "validation.images=images",
    "--set",
    "validation.captions=captions.json",
];

fn busy<'a>(more: &[&'a str]) -> Vec<&'a str> {
    BUSY.iter().copied().chain(["--set", "eval_every=5"]).chain(more.iter().copied()).collect()
}

fn same_run(world: &World, a: &str, b: &str) {
    assert_eq!(world.log(a), world.log(b), "logs of {a} and {b}");
    assert_eq!(world.checkpoints(a).last(), world.checkpoints(b).last());
    assert!(world.newest(a) == world.newest(b), "the last checkpoints of {a} and {b} differ");
    for file in ["model.safetensors", "vit.safetensors", "config.json", "vocab.txt"] {
        let read = |out: &str| std::fs::read(world.path(out).join("model").join(file)).unwrap();
        assert!(read(a) == read(b), "{file} of {a} and {b} differs");
    }
}

#[test]
fn resumed_after_every_step_a_run_ends_with_the_same_bytes() {
    let world = World::new();
    world.train("whole", &busy(&[])).good();
    let log = world.log("whole");
    let steps: Vec<u64> =
        log.iter().filter(|l| l["kind"] == "step").map(|l| l["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=16).collect::<Vec<u64>>());
    let evaluated: Vec<_> = log.iter().filter(|l| l["kind"] == "evaluation").map(|l| &l["step"]).collect();
    assert_eq!(evaluated, [5, 10, 15, 16]);

    for step in 1..=16 {
        let step = step.to_string();
        let mut more = vec!["--steps", &step, "--set", "workers=1"];
        more.extend((step != "1").then_some("--resume"));
        world.train("pieces", &busy(&more)).good();
    }
    same_run(&world, "whole", "pieces");
}

/// `--steps` stops a run that has a length of its own for now, and is the length of one that has none.
#[test]
fn a_run_stopped_by_steps_goes_on_to_its_own_end() {
    let world = World::new();
    world.train("whole", &busy(&[])).good();
    let stopped = world.train("stopped", &busy(&["--steps", "7"])).good();
    let words = "stopped after step 7 of 16; resume with: qformer train --resume --out stopped";
    assert!(stopped.errors().contains(words), "{}", stopped.errors());
    let resume = ["train", "--resume", "--out", "stopped"];
    let again = world.run(&[&resume[..], &["--steps", "7"]].concat()).good();
    assert!(again.errors().contains("nothing to do: step 7 of 16 is done"), "{}", again.errors());
    let done = world.run(&resume).good();
    assert!(done.errors().contains("going on after step 7 of 16"), "{}", done.errors());
    assert!(done.errors().contains("trained all 16 steps"), "{}", done.errors());
    same_run(&world, "whole", "stopped");

    // The settings' own steps are a length, too, and its schedule does not change with where a part of it stops.
    let length = ["--set", "steps=12"];
    world.train("file", &[&length[..], &["--steps", "5"]].concat()).good();
    world.run(&["train", "--resume", "--out", "file"]).good();
    world.train("at-once", &length).good();
    same_run(&world, "file", "at-once");

    let data = ["train", "--images", "images", "--captions", "captions.json", "--batch", "6"];
    let sizes = ["--set", "size=tiny", "--set", "model.layers=1", "--out", "short"];
    let short = world.run(&[&data[..], &sizes, &["--steps", "3"]].concat()).good();
    assert!(short.errors().contains("trained all 3 steps"), "{}", short.errors());
    let resume = ["train", "--resume", "--out", "short"];
    let done = world.run(&resume).good();
    assert!(done.errors().contains("nothing to do: all 3 steps are done"), "{}", done.errors());
    // more steps of the same epoch, and from then on they are the run's
    world.run(&[&resume[..], &["--steps", "5"]].concat()).good();
    let done = world.run(&resume).good();
    assert!(done.errors().contains("nothing to do: all 5 steps are done"), "{}", done.errors());
}

#[test]
fn stopped_by_a_signal_or_killed_a_run_goes_on_as_if_it_had_not_been() {
    let world = World::new();
    let long = busy(&["--epochs", "5", "--set", "save_every=3"]);
    let again: Vec<&str> = long.iter().copied().chain(["--resume"]).collect();
    world.train("whole", &long).good();
    let mut run = world.start("stopped", &long);
    for (signalled, lines, code) in
        [("TERM", 6, Some(143)), ("INT", 14, Some(130)), ("KILL", 22, None), ("KILL", 31, None)]
    {
        world.wait_for_lines("stopped", lines);
        signal(&run, signalled);
        let done = Done(run.wait_with_output().unwrap());
        assert_eq!(done.code(), code, "{signalled}: {}", done.errors());
        if code.is_some() {
            let last = world.log("stopped").iter().filter(|l| l["kind"] == "step").count();
            let words = format!("train: saved at step {last} of 40");
            assert!(
                done.errors().contains(&words) && done.errors().contains("--resume"),
                "{}",
                done.errors()
            );
            assert_eq!(world.checkpoints("stopped").pop(), Some(format!("step-{last:09}.safetensors")));
        }
        run = world.start("stopped", &again);
    }
    Done(run.wait_with_output().unwrap()).good();
    same_run(&world, "whole", "stopped");

    // the same again without threads to compute or to load with
    let alone: Vec<&str> = long.iter().copied().chain(["--set", "workers=1"]).collect();
    world.train_on("1", "one", &alone).good();
    same_run(&world, "whole", "one");
}

#[test]
fn a_second_signal_ends_at_once() {
    let world = World::new();
    // a step long enough to be signalled twice in: many micro-batches
    let run = world.start("run", &["--set", "accumulate=400", "--epochs", "400"]);
    std::thread::sleep(Duration::from_millis(1500));
    while !exists(world.path("run/log.jsonl")) {
        std::thread::sleep(Duration::from_millis(20));
    }
    signal(&run, "TERM");
    std::thread::sleep(Duration::from_millis(200));
    signal(&run, "TERM");
    let done = Done(run.wait_with_output().unwrap());
    assert_eq!(done.code(), Some(143), "{}", done.errors());
    assert_eq!(world.checkpoints("run"), [] as [String; 0]);
}

#[test]
fn other_settings_are_refused_when_a_run_goes_on() {
    let world = World::new();
    world.train("run", &["--steps", "2"]).good();
    let before = world.newest("run");
    world.train("run", &["--steps", "2"]).refused(2, &["step 2", "--resume", "--out"]);
    let other = world.train("run", &["--resume", "--set", "init_lr=3e-4", "--set", "dropout=0.2"]);
    other.refused(2, &["init_lr: saved with 0.0001, now 0.0003", "dropout: saved with 0.1, now 0.2"]);
    world
        .train("run", &["--resume", "--set", "model.hidden=64"])
        .refused(2, &["model.hidden: saved with 32, now 64"]);
    world.train("run", &["--resume", "--set", "seed=7"]).refused(2, &["(seed): saved with 42, now 7"]);
    let text = std::fs::read_to_string(world.path("captions.json")).unwrap();
    world.write("captions.json", text.replacen("赤い", "紅い", 1));
    world.train("run", &["--resume"]).refused(2, &["data.0.blake3: saved with"]);
    assert!(world.newest("run") == before);
}

#[test]
fn a_run_goes_on_by_its_folder_alone_and_its_model_can_be_started_from() {
    let world = World::new();
    world.train("run", &["--steps", "3"]).good();
    world.run(&["train", "--resume", "--out", "run", "--steps", "5"]).good();
    world.train("whole", &["--steps", "5"]).good();
    same_run(&world, "run", "whole");

    std::fs::remove_dir_all(world.path("run/model")).unwrap();
    world.run(&["train", "--export", "--out", "run"]).good();
    same_run(&world, "run", "whole");

    let data =
        ["train", "--images", "images", "--captions", "captions.json", "--batch", "6", "--epochs", "1"];
    let from = |out: &'static str, more: &[&'static str]| {
        world.run(&[&data[..], &["--start", "run/model", "--out", out, "--set", "min_lr=0"], more].concat())
    };
    from("frozen", &[]).good();
    let saved = world.newest("frozen");
    let saved = safetensors::SafeTensors::deserialize(&saved).unwrap();
    assert!(saved.names().iter().any(|n| n.contains("ln_vision")));
    assert!(
        !saved.names().iter().any(|n| n.contains("visual_encoder")),
        "a frozen image encoder is not saved again"
    );
    assert!(!exists(world.path("frozen/model/vit.safetensors")), "it is named, not copied");
    let again = ["--start", "frozen/model", "--out", "again", "--steps", "1"];
    world.run(&[&data[..], &again].concat()).good();
    from("joint", &["--set", "contrast=accumulated", "--set", "accumulate=2"]).good();
    from("sizes", &["--set", "model.hidden=64"]).refused(2, &["hidden", "expected 32", "got 64"]);
    let nowhere = world.run(&[&data[..], &["--start", "nowhere", "--out", "no"]].concat());
    nowhere.refused(3, &["nowhere", "qformer convert"]);
}

/// GELU of a frozen image encoder at the end of its matmuls: a run that began with it goes on with it, and with nothing else.
#[cfg(feature = "host-kernels")]
#[test]
fn a_run_keeps_the_gelu_it_began_with() {
    let world = World::new();
    world.train("run", &["--steps", "1"]).good();
    let data = [
        "train",
        "--images",
        "images",
        "--captions",
        "captions.json",
        "--batch",
        "6",
        "--start",
        "run/model",
    ];
    let on_host = ["--device", "host", "--dtype", "f32", "--set", "save_minutes=0"];
    let run = |out: &str, more: &[&str]| {
        world.run(&[&data[..], &on_host, &["--out", out, "--set", "steps=2"], more].concat())
    };
    let tanh = ["--vit-gelu", "tanh"];
    for (out, form) in [("exact", &[][..]), ("whole", &tanh)] {
        run(out, form).good();
    }
    run("pieces", &[&tanh[..], &["--steps", "1"]].concat()).good();
    assert!(
        std::fs::read_to_string(world.path("pieces/config.yaml")).unwrap().contains("vit_gelu: \"tanh\"")
    );
    let resume = ["train", "--resume", "--out", "pieces"];
    world
        .run(&[&resume[..], &["--vit-gelu", "exact"]].concat())
        .refused(2, &["vit_gelu: saved with \"tanh\", now nothing"]);
    world.run(&resume).good();
    assert!(world.newest("pieces") == world.newest("whole"), "a run that was gone on with differs");
    assert!(world.log("exact")[0]["loss"] != world.log("whole")[0]["loss"], "the exact form was taken");
    let other = world.run(&["train", "--resume", "--out", "exact", "--vit-gelu", "tanh"]);
    other.refused(2, &["vit_gelu: saved with nothing, now \"tanh\""]);

    let cpu = world.run(&[&data[..], &["--out", "cpu"], &tanh].concat());
    cpu.refused(2, &["vit_gelu: expected exact on the CPU, got tanh; "]);
    let trained = run("trained", &["--vit-gelu", "tanh", "--set", "train_vit=true"]);
    trained.refused(
        2,
        &["vit_gelu: expected exact where the image encoder is trained, got tanh", "train_vit: false"],
    );
    run("other", &["--vit-gelu", "relu"]).refused(2, &["vit_gelu (--vit-gelu): expected exact or tanh"]);
    assert!(!exists(world.path("cpu")) && !exists(world.path("trained")) && !exists(world.path("other")));
}

#[test]
fn memory_threads_and_handles_stay_flat() {
    let world = World::new();
    let steps: u64 = std::env::var("QFORMER_FLAT_STEPS").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    let epochs = (steps / 8 + 1).to_string();
    let total = steps.to_string();
    let mut run = world.start("run", &["--steps", &total, "--epochs", &epochs, "--set", "save_every=20"]);
    let mut seen = Vec::new();
    for tenth in 2..=10 {
        world.wait_for_lines("run", (steps * tenth / 10 - 5) as usize);
        seen.extend(held(run.id()));
    }
    assert!(run.wait().unwrap().success());
    assert!(seen.len() >= 8, "{seen:?}");
    // In so small a process a few blocks of the allocator are much; the demo's test has less room.
    assert_flat(&seen, 20);
}

#[test]
fn a_loss_that_is_not_finite_names_its_step_and_its_pictures() {
    let world = World::new();
    let wild = ["--set", "init_lr=1e30", "--set", "warmup_lr=1e30", "--set", "save_every=1"];
    let done = world.train("run", &wild);
    done.refused(7, &["train: step 2", "not finite", ".png", "lower init_lr"]);
    assert_eq!(world.log("run").len(), 1, "the step before is logged");
    assert_eq!(world.checkpoints("run").len(), 1, "and saved");
}

#[test]
fn captions_of_one_picture_can_be_positives() {
    let world = World::new();
    world.train("diagonal", &["--steps", "2"]).good();
    world.train("ids", &["--steps", "2", "--set", "profile=lavis-image-id", "--batch", "12"]).good();
    assert_eq!(world.log("ids").len(), 2);
    assert!(world.log("ids")[0]["itc"] != world.log("diagonal")[0]["itc"]);
}
