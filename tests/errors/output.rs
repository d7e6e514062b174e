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

/// What a shell completes and what `man` shows is what there is.
#[test]
fn completions_and_pages_name_every_command() {
    let program = || Command::new(env!("CARGO_BIN_EXE_qformer"));
    let commands = ["train", "caption", "search", "convert", "doctor", "manual"];
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let out = program().args(["completions", shell]).output().unwrap();
        let script = String::from_utf8(out.stdout).unwrap();
        for word in commands.into_iter().chain(["exif-orientation"]) {
            assert!(out.status.success() && script.contains(word), "{shell}: {word}");
        }
    }
    let place = tempfile::tempdir().unwrap();
    let out = program().arg("manual").arg(place.path().join("man1")).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    for page in ["qformer.1", "qformer-train.1", "qformer-search-index.1"] {
        let text = std::fs::read_to_string(place.path().join("man1").join(page)).unwrap();
        assert!(text.contains(".SH SYNOPSIS") && !text.contains('\u{1b}'), "{page}");
    }
    let pages = std::fs::read_dir(place.path().join("man1")).unwrap();
    let names = pages.map(|p| p.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().all(|n| !n.contains("help")), "help is a flag");
    // Written to a file in place of a folder.
    std::fs::write(place.path().join("file"), "kept").unwrap();
    let out = program().arg("manual").arg(place.path().join("file")).output().unwrap();
    assert!(!out.status.success());
    assert_eq!(std::fs::read_to_string(place.path().join("file")).unwrap(), "kept");
}
