//! Standard output that nobody reads, or that has no room.

use std::process::{Command, Stdio};

fn run(args: &[&str], stdout: Stdio) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qformer"));
    let run = command.args(args).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
    let out = run.wait_with_output().unwrap();
    (out.status.code(), String::from_utf8(out.stderr).unwrap())
}

/// As in `qformer inspect model.safetensors | head -1`.
#[test]
fn a_closed_pipe_is_a_quiet_end() {
    let case = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lavis/vit-small.safetensors");
    let bench = ["bench", "step", "--config", "tiny", "--batch", "2", "--steps", "1", "--device", "cpu"];
    for args in [&["inspect", case][..], &["parity", case], &bench] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(run(args, writer.into()), (Some(0), String::new()), "{args:?}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error() {
    let case = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lavis/vit-small.safetensors");
    for args in [["inspect", case], ["parity", case]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (code, said) = run(&args, full.into());
        assert_eq!(code, Some(4), "{said}");
        assert!(said.starts_with("qformer: write to standard output: "), "{said}");
    }
}
