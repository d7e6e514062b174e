//! Training by several processes under mpirun: the bytes of one process, and how it ends when a process fails. Needs the feature `mpi`
//! and mpirun; skipped, loudly, without.

#[path = "train/world.rs"]
#[allow(dead_code)]
mod world;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use world::{Done, World, exists};

/// One at a time: each runs as many processes as there are ranks, and some wait for seconds only.
static ALONE: Mutex<()> = Mutex::new(());

/// Whether these tests can run; to be held while one does.
fn can_run() -> Option<MutexGuard<'static, ()>> {
    let there = Command::new("mpirun").arg("--version").output().is_ok_and(|o| o.status.success());
    if !cfg!(feature = "mpi") || !there {
        eprintln!("SKIPPED: no mpirun, or tests without the feature mpi: several processes are not tested");
    }
    (cfg!(feature = "mpi") && there).then(|| ALONE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A world with `base/model`, whose image encoder stays frozen.
fn started() -> World {
    let world = World::new();
    world.train("base", &["--steps", "1", "--device", "cpu"]).good();
    world
}

/// Later arguments win.
const COMMON: [&str; 16] = [
    "train",
    "--start",
    "base/model",
    "--quiet",
    "--set",
    "images=images",
    "--set",
    "captions=captions.json",
    "--set",
    "device=cpu",
    "--set",
    "save_minutes=0",
    "--set",
    "contrast=world",
    "--set",
    "workers=1",
];

fn train<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    COMMON.iter().chain(&["--out", out]).chain(more).copied().collect()
}

/// mpirun with one command for every rank: each runs `shell` first, if it is not empty.
fn launch(world: &World, ranks: &[(&str, Vec<&str>)]) -> Command {
    let mut command = Command::new("mpirun");
    command.current_dir(world.path("")).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.envs([
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
        ("RAYON_NUM_THREADS", "1"),
    ]);
    command.args(["--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]);
    for (i, (shell, args)) in ranks.iter().enumerate() {
        command.args(if i > 0 { &[":", "-n", "1"][..] } else { &["-n", "1"] });
        let program = env!("CARGO_BIN_EXE_qformer");
        if !shell.is_empty() {
            command.args(["bash", "-c", &format!("{shell}; exec \"$0\" \"$@\"")]);
        }
        command.arg(program).args(args);
    }
    command
}

fn many(world: &World, size: usize, args: &[&str]) -> Done {
    let ranks: Vec<_> = (0..size).map(|_| ("", args.to_vec())).collect();
    Done(launch(world, &ranks).output().unwrap())
}

fn same_run(world: &World, a: &str, b: &str) {
    assert_eq!(world.log(a), world.log(b), "logs of {a} and {b}");
    assert!(!world.log(a).is_empty());
    assert_eq!(world.checkpoints(a).last(), world.checkpoints(b).last());
    assert!(world.newest(a) == world.newest(b), "the last checkpoints of {a} and {b} differ");
    let model = |out: &str| std::fs::read(world.path(out).join("model/model.safetensors")).unwrap();
    assert!(model(a) == model(b), "the models of {a} and {b} differ");
}

/// The process of a rank, once it has begun to train.
fn process_of(world: &World, rank: usize) -> String {
    let here = world.path("").canonicalize().unwrap();
    let own = |pid: &Path| {
        let environment = std::fs::read(pid.join("environ")).unwrap_or_default();
        let wanted = format!("OMPI_COMM_WORLD_RANK={rank}");
        let program = std::fs::read_link(pid.join("exe")).is_ok_and(|e| e.ends_with("qformer"));
        program
            && std::fs::read_link(pid.join("cwd")).is_ok_and(|cwd| cwd == here)
            && environment.split(|b| *b == 0).any(|v| v == wanted.as_bytes())
    };
    let mut all = std::fs::read_dir("/proc").unwrap().map(|e| e.unwrap().path());
    let found = all.find(|p| own(p)).unwrap_or_else(|| panic!("no process of rank {rank}"));
    found.file_name().unwrap().to_string_lossy().into_owned()
}

fn signal(pid: &str, name: &str) {
    assert!(Command::new("kill").args(["-s", name, pid]).status().unwrap().success());
}

/// Waits for the end, but not for ever.
fn within(mut child: Child, most: Duration) -> Done {
    let since = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if since.elapsed() > most {
            let _ = child.kill();
            panic!("still running after {most:?}: {}", Done(child.wait_with_output().unwrap()).errors());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Done(child.wait_with_output().unwrap())
}

#[test]
fn several_processes_write_the_bytes_of_one() {
    let Some(_alone) = can_run() else { return };
    let world = started();
    // Dropout is on; evaluations, a picture that is none, more than one epoch, twelve micro-batches of two.
    world.write("images/05.png", "none");
    let more = [
        "--batch",
        "2",
        "--set",
        "accumulate=12",
        "--epochs",
        "4",
        "--set",
        "bad_share=0.2",
        "--set",
        "eval_every=3",
    ];
    let more: Vec<&str> = more
        .into_iter()
        .chain(["--set", "validation.images=images", "--set", "validation.captions=captions.json"])
        .collect();
    world.run(&train("one", &more)).good();
    assert!(world.log("one").iter().filter(|l| l["kind"] == "step").count() == 8);
    for size in [2, 3, 4] {
        let out = format!("of{size}");
        many(&world, size, &train(&out, &more)).good();
        same_run(&world, "one", &out);
        let bad = |out: &str| std::fs::read_to_string(world.path(out).join("bad.jsonl")).unwrap();
        assert_eq!(bad("one"), bad(&out));
    }
    // Begun by three, resumed by two, then by one, then by four.
    for (size, steps) in [(3, "1"), (2, "3"), (1, "4"), (4, "8")] {
        let mut more = more.clone();
        more.extend(["--steps", steps]);
        more.extend((size != 3).then_some("--resume"));
        if size == 1 {
            world.run(&train("pieces", &more)).good()
        } else {
            many(&world, size, &train("pieces", &more)).good()
        };
    }
    same_run(&world, "one", "pieces");
}

/// A hundred steps, and the kernels of a GPU on the host for a few.
#[test]
fn a_hundred_steps_are_the_same_and_so_are_the_kernels() {
    let Some(_alone) = can_run() else { return };
    let world = started();
    let more = ["--batch", "2", "--set", "accumulate=2", "--epochs", "9", "--steps", "100"];
    world.run(&train("one", &more)).good();
    many(&world, 2, &train("two", &more)).good();
    same_run(&world, "one", "two");
    if cfg!(feature = "host-kernels") {
        for dtype in ["f32", "bf16"] {
            let [one, two] = ["one", "two"].map(|n| format!("{n}-{dtype}"));
            let more = [
                "--batch",
                "2",
                "--set",
                "accumulate=2",
                "--steps",
                "2",
                "--device",
                "host",
                "--dtype",
                dtype,
            ];
            world.run(&train(&one, &more)).good();
            many(&world, 2, &train(&two, &more)).good();
            same_run(&world, &one, &two);
        }
    }
}

#[test]
fn recorded_cases_are_the_same_line_by_line() {
    let Some(_alone) = can_run() else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/parity-world");
    let cases: Vec<_> = std::fs::read_dir(&folder).into_iter().flatten().map(|e| e.unwrap().path()).collect();
    let cases: Vec<_> = cases.iter().filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    if cases.is_empty() {
        eprintln!("SKIPPED: no recorded cases of several processes in {}", folder.display());
    }
    let world = World::new();
    for case in cases {
        let text = case.to_str().unwrap();
        let size = text.rsplit("-w").next().unwrap().trim_end_matches(".safetensors").parse().unwrap();
        let one = world.run(&["parity", text]).good().text();
        assert!(one.contains("ok: "), "{one}");
        assert_eq!(many(&world, size, &["parity", text]).good().text(), one, "{text}");
        many(&world, size, &["parity", "--dtype", "f64", "--quiet", text]).good();
    }
}

#[test]
fn what_cannot_be_shared_out_is_refused() {
    let Some(_alone) = can_run() else { return };
    let world = started();
    let refused = |ranks: &[(&str, Vec<&str>)], code: i32, words: &[&str]| {
        Done(launch(&world, ranks).output().unwrap()).refused(code, words);
        assert!(!exists(world.path("no")), "{words:?}");
    };
    let both = |more: &[&'static str]| vec![("", train("no", more)), ("", train("no", more))];
    refused(
        &both(&["--set", "accumulate=3"]),
        2,
        &["accumulate: expected a multiple of 2", "--set accumulate=2"],
    );
    refused(&both(&["--set", "contrast=micro-batch"]), 2, &["contrast: expected world, with 2 processes"]);
    // Other settings, another seed, other data, another start, other numbers of steps.
    let two: [&str; 2] = ["--set", "accumulate=2"];
    let other = |more: &[&'static str]| {
        let all: Vec<&str> = two.iter().chain(more).copied().collect();
        vec![("", train("no", &two)), ("", train("no", &all))]
    };
    world.write(
        "other.json",
        std::fs::read_to_string(world.path("captions.json")).unwrap().replacen("赤い", "紅い", 1),
    );
    for (more, name) in [
        (&["--set", "init_lr=3e-4"][..], "init_lr"),
        (&["--set", "seed=7"], "seed"),
        (&["--batch", "3"], "batch"),
        (&["--set", "captions=other.json"], "data.0.blake3"),
        (&["--set", "epochs=3"], "epochs"),
        (&["--set", "dropout=0.2"], "dropout"),
    ] {
        refused(&other(more), 8, &["rank 1 of 2", name, "as rank 0 has it"]);
    }
    // Half a set of names.
    let alone = world.command(&train("no", &two)).env("RANK", "0").env("WORLD_SIZE", "2").output().unwrap();
    Done(alone).refused(2, &["LOCAL_RANK"]);
    let parity = World::new();
    Done(launch(&parity, &vec![("", vec!["parity", "none.safetensors"]); 2]).output().unwrap())
        .refused(3, &["none"]);
}

const LONG: [&str; 8] = ["--batch", "2", "--set", "accumulate=2", "--epochs", "40", "--set", "save_every=3"];

/// However a rank ends, all do, in time and with a word why; and what is saved resumes to the same bytes.
#[test]
fn a_rank_that_dies_hangs_or_cannot_write_ends_all() {
    let Some(_alone) = can_run() else { return };
    let world = started();
    let steps = [&LONG[..], &["--steps", "24"]].concat();
    world.run(&train("whole", &steps)).good();
    let long = [&LONG[..], &["--steps", "400", "--group-timeout", "3"]].concat();
    for (name, rank, words) in [
        ("KILL", 0, &[][..]),
        ("KILL", 1, &[]),
        ("STOP", 0, &["rank 1 of 2, step ", ": expected the other ranks within 3 s, got no answer"]),
        ("STOP", 1, &["rank 0 of 2, step ", ": expected the other ranks within 3 s, got no answer"]),
    ] {
        let out = format!("{name}-{rank}");
        let run = launch(&world, &vec![("", train(&out, &long)); 2]).spawn().unwrap();
        world.wait_for_lines(&out, 8);
        signal(&process_of(&world, rank), name);
        let done = within(run, Duration::from_secs(60));
        let code = if name == "KILL" { 137 } else { 8 };
        done.refused(code, words);
        // The newest checkpoint is whole, and others continue from it.
        let mut more = steps.clone();
        more.push("--resume");
        let last = world.checkpoints(&out).pop().unwrap();
        assert!(last.as_str() >= "step-000000006", "{last}");
        if last.as_str() <= "step-000000024.safetensors" {
            many(&world, 2, &train(&out, &more)).good();
            let at = |out: &str| {
                std::fs::read(world.path(out).join("checkpoints/step-000000024.safetensors")).unwrap()
            };
            assert!(at(&out) == at("whole"), "{out}");
        }
    }
    // A disk that is full for the rank that writes.
    let full = vec![("trap '' XFSZ; ulimit -f 60", train("full", &long)), ("", train("full", &long))];
    let run = launch(&world, &full).spawn().unwrap();
    within(run, Duration::from_secs(60)).refused(4, &["step"]);
    // A signal to any rank stops all of them after the same step, saved.
    let run = launch(&world, &vec![("", train("stopped", &long)); 2]).spawn().unwrap();
    world.wait_for_lines("stopped", 4);
    signal(&process_of(&world, 1), "TERM");
    let done = within(run, Duration::from_secs(60));
    assert!(done.code() != Some(8), "{}", done.errors());
    let last = world.log("stopped").iter().filter(|l| l["kind"] == "step").count();
    assert_eq!(world.checkpoints("stopped").pop(), Some(format!("step-{last:09}.safetensors")));
}
