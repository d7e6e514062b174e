//! `qformer demo` from end to end, with too few steps to learn anything: what it leaves behind, and that it repeats itself.

#[path = "train/flat.rs"]
mod flat;

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

fn demo(out: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qformer"));
    command.args(["demo", "--steps", "2", "--json", "--quiet", "--out"]).arg(out).args(more);
    command.output().unwrap()
}

fn last_line(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[test]
fn it_leaves_a_model_and_a_report_and_repeats_itself() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
    let [a, b] = [&first, &second].map(|out| last_line(&demo(out, &[])));
    for key in ["caption_exact", "recall_at_1"] {
        let share = a[key].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&share), "{a}");
        assert_eq!(a[key], b[key]);
    }
    assert!(a["seconds"].as_f64().unwrap() > 0.0);
    for name in ["model/model.safetensors", "model/vit.safetensors", "train.json", "held-out.json"] {
        assert_eq!(
            std::fs::read(first.join(name)).unwrap(),
            std::fs::read(second.join(name)).unwrap(),
            "{name}"
        );
    }
    let page = std::fs::read_to_string(first.join("report.html")).unwrap();
    assert!(page.contains("qformer demo") && !page.contains("src=\"http") && !page.contains("href=\"http"));
}

#[test]
fn a_folder_with_files_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mine"), "1").unwrap();
    let output = demo(folder.path(), &[]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("--out") && text.contains("holds files"), "{text}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// The error names the command that was stopped, and the run it leaves behind can be gone on with.
#[test]
fn a_demo_that_is_stopped_says_how_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_qformer"));
    command.current_dir(folder.path()).args(["demo", "--steps", "12"]).stderr(Stdio::piped());
    let run = command.spawn().unwrap();
    let log = folder.path().join("qformer-demo/log.jsonl");
    while !std::fs::read_to_string(&log).is_ok_and(|text| text.contains('\n')) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let killed = Command::new("kill").args(["-s", "TERM", &run.id().to_string()]).status().unwrap();
    let output = run.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(killed.success() && output.status.code() == Some(143), "{text}");
    assert!(text.contains("demo: saved at step ") && text.contains(" of 12"), "{text}");
    let (_, after) = text.split_once("resume with: qformer ").unwrap();
    let (go_on, export) = after.trim().split_once("; ").unwrap();
    assert_eq!(go_on, "train --resume --out qformer-demo", "{text}");
    assert!(export.ends_with("qformer train --export --out qformer-demo"), "{text}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_qformer"));
    let output = command.current_dir(folder.path()).args(go_on.split(' ')).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && text.contains("trained all 12 steps"), "{text}");
}

/// A long run of the demo's model: `QFORMER_FLAT_STEPS=10000 cargo test --release --test demo -- --ignored --nocapture`
/// takes twenty minutes on two cores. The first tenth, with evaluations in it, is to warm up.
#[test]
#[ignore = "takes minutes"]
fn memory_threads_and_handles_stay_flat() {
    let steps: u64 = std::env::var("QFORMER_FLAT_STEPS").map_or(2000, |n| n.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_qformer"));
    command.current_dir(folder.path()).args(["demo", "--quiet", "--steps", &steps.to_string()]);
    let mut run = command.spawn().unwrap();
    let log = folder.path().join("qformer-demo/log.jsonl");
    let mut seen = Vec::new();
    for tenth in 1..=10 {
        let until = steps * tenth / 10 - 5;
        while !std::fs::read_to_string(&log).is_ok_and(|text| text.lines().count() as u64 >= until) {
            assert!(run.try_wait().unwrap().is_none(), "the demo ended early");
            std::thread::sleep(Duration::from_millis(500));
        }
        seen.extend(flat::held(run.id()));
    }
    assert!(run.wait().unwrap().success());
    flat::assert_flat(&seen, 10);
}
