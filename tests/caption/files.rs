//! What `qformer caption` writes to, and what lies beside it: other commands, links, pipes, names, files that are no pictures.

use super::captions;
use super::commands::{Place, names};

/// Runs a caption command and returns it while it runs.
fn start(place: &Place, args: &[&str]) -> std::process::Child {
    std::process::Command::new(env!("CARGO_BIN_EXE_qformer"))
        .current_dir(place.dir.path())
        .args(["caption", "--model", "model", "-q", "--max-length", "12"])
        .args(args)
        .spawn()
        .unwrap()
}

#[test]
fn several_commands_add_to_one_file_and_lose_nothing() {
    let place = Place::new(21);
    (0..4).for_each(|i| place.pictures(&format!("p{i}"), 5));
    for out in ["c.json", "c.jsonl", "c.csv"] {
        let folders = ["p0", "p1", "p2", "p3"];
        let children = folders.map(|p| start(&place, &[p, "--relative-to", ".", "--out", out]));
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        let text = place.read(out);
        for name in folders.iter().flat_map(|p| (0..5).map(move |i| format!("{p}/p{i:02}.png"))) {
            assert_eq!(text.matches(&name).count(), 1, "{out}: {name} in {text}");
        }
    }
    assert!(!names(&place.path("")).iter().any(|n| n.starts_with('.')), "{:?}", names(&place.path("")));
}

#[test]
fn a_link_a_pipe_and_a_device_stay_what_they_are() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
    let place = Place::new(22);
    place.pictures("p", 3);
    place.write("store/real.json", "[]");
    std::fs::set_permissions(place.path("store/real.json"), std::fs::Permissions::from_mode(0o640)).unwrap();
    symlink("store/real.json", place.path("one.json")).unwrap();
    symlink("one.json", place.path("two.json")).unwrap();
    let base = ["caption", "--model", "model", "p", "-q", "--max-length", "12", "--format"];
    let to = |form: &str, out: &str| place.run(&[&base[..], &[form, "--out", out]].concat());
    assert_eq!(to("json", "two.json").code, 0);
    assert!(place.path("two.json").is_symlink() && place.path("one.json").is_symlink());
    assert_eq!(captions(&place.read("store/real.json")).len(), 3);
    assert_eq!(std::fs::metadata(place.path("one.json")).unwrap().permissions().mode() & 0o777, 0o640);
    // What goes through standard output is what a file would hold.
    symlink("/proc/self/fd/1", place.path("out")).unwrap();
    for form in ["json", "jsonl", "csv"] {
        assert_eq!(to(form, "file").code, 0);
        for out in ["out", "/dev/stdout"] {
            let ran = to(form, out);
            assert_eq!(ran.out.trim_end(), place.read("file").trim_end(), "{form} {out}: {}", ran.err);
        }
        std::fs::remove_file(place.path("file")).unwrap();
    }
    assert!(place.path("out").is_symlink());
    rustix::fs::mknodat(rustix::fs::CWD, place.path("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    let pipe = place.path("pipe");
    let reader = std::thread::spawn(move || std::fs::read_to_string(pipe).unwrap());
    assert_eq!(to("jsonl", "pipe").code, 0);
    assert_eq!(reader.join().unwrap().lines().count(), 3);
    assert!(std::fs::symlink_metadata(place.path("pipe")).unwrap().file_type().is_fifo());
    assert_eq!(to("jsonl", "/dev/null").code, 0);
    let full = to("jsonl", "/dev/full");
    assert!(full.code == 4 && full.err.contains("/dev/full"), "{}", full.err);
    // Into a folder that is not there, through a link.
    symlink("nowhere/c.json", place.path("dangling.json")).unwrap();
    assert!(place.fails(4, &[&base[..], &["json", "--out", "dangling.json"]].concat()).contains("nowhere"));
}

#[test]
fn a_text_that_cannot_be_written_does_not_keep_others_from_it() {
    use std::os::unix::fs::symlink;
    let place = Place::new(23);
    let long = "a".repeat(241);
    for (i, name) in ["blank", "dangling", "folder", "hand", "link", "pic", &long, "z"].iter().enumerate() {
        place.picture(&format!("p/{name}.png"), i as u8);
    }
    place.write("secret", "mine\n");
    place.write("p/blank.txt", "\u{feff}\r\n");
    place.write("p/hand.txt", "手書き\n");
    place.picture("picture.png", 40);
    std::fs::copy(place.path("picture.png"), place.path("p/pic.txt")).unwrap();
    std::fs::create_dir(place.path("p/folder.txt")).unwrap();
    symlink("../secret", place.path("p/link.txt")).unwrap();
    symlink("../nowhere", place.path("p/dangling.txt")).unwrap();
    let picture = std::fs::read(place.path("p/pic.txt")).unwrap();
    let run = |more: &[&str]| {
        place.fails(4, &[&["caption", "--model", "model", "p", "--max-length", "12", "--txt"], more].concat())
    };
    let err = run(&[]);
    for name in ["dangling", "folder", "pic"] {
        assert!(err.contains(&format!("no text for \"{name}.png\"")), "{name}: {err}");
    }
    assert!(err.contains("3 of 8 not") && err.contains("3 pictures captioned"), "{err}");
    let err = run(&["--overwrite", "--out", "c.json"]);
    assert!(err.contains("4 of 8 not") && err.contains("no text for \"link.png\""), "{err}");
    assert_eq!(captions(&place.read("c.json")).len(), 8, "the file has all of them");
    for name in ["blank", "hand", &long, "z"] {
        let text = place.read(&format!("p/{name}.txt"));
        assert!(text.trim().len() > 3 && !text.contains("手書き"), "{name}: {text}");
    }
    assert_eq!(place.read("secret"), "mine\n");
    assert_eq!(std::fs::read(place.path("p/pic.txt")).unwrap(), picture);
    assert!(!place.path("nowhere").exists() && place.path("p/link.txt").is_symlink());
    // A picture called .txt is its own text.
    place.fails(4, &["caption", "--model", "model", "p/pic.txt", "--txt", "--overwrite", "-q"]);
    assert_eq!(std::fs::read(place.path("p/pic.txt")).unwrap(), picture);
    // In another folder: a link inside it leads out, the others are written.
    place.pictures("q/a", 1);
    place.pictures("q/b", 1);
    std::fs::create_dir(place.path("texts")).unwrap();
    symlink("..", place.path("texts/a")).unwrap();
    let err = place.fails(4, &["caption", "--model", "model", "q", "--txt-dir", "texts", "-q"]);
    assert!(err.contains("texts/a is a link") && place.path("texts/b/p00.txt").exists(), "{err}");
    assert!(!place.path("p00.txt").exists());
}

#[test]
fn a_name_is_the_same_however_it_is_spelled() {
    let place = Place::new(24);
    place.picture("p/か\u{3099}.png", 1);
    place.picture("p/b.png", 2);
    place.write("done.json", r#"[{"image": "が.png", "caption": ["手で直した"]}]"#);
    let base = ["caption", "--model", "model", "-q", "--max-length", "12"];
    let run = |more: &[&str]| place.run(&[&base[..], more].concat());
    assert_eq!(run(&["p", "--out", "done.json"]).code, 0);
    let all = captions(&place.read("done.json"));
    assert!(all.len() == 2 && all["が.png"] == ["手で直した"], "{all:?}");
    // From elsewhere the same files have other names: those that lead to the same file are known, others warned of.
    assert_eq!(run(&["p/b.png", "p/./b.png", "./p/b.png", "--out", "c.json"]).code, 0);
    assert_eq!(captions(&place.read("c.json")).len(), 1);
    let absolute = place.path("p/b.png").display().to_string();
    let before = place.read("c.json");
    assert!(run(&[&absolute, "--out", "c.json"]).err.is_empty());
    assert!(run(&["p", "--relative-to", "p", "--out", "c.json"]).err.is_empty());
    assert_eq!(place.read("c.json").matches("b.png").count(), 1, "{}", place.read("c.json"));
    assert!(place.read("c.json").starts_with(before.trim_end_matches(']')));
    run(&["p", "--out", "inside.json"]);
    let ran = run(&["p/b.png", "--out", "inside.json"]);
    assert!(
        ran.code == 0 && ran.err.contains("other names") && ran.err.contains("--relative-to"),
        "{}",
        ran.err
    );
    // Two pictures of one name are two pictures; the second is reported.
    place.picture("p/が.png", 3);
    let ran = run(&["p"]);
    assert!(ran.code == 3 && ran.err.contains("NFD") && ran.out.lines().count() == 2, "{}", ran.err);
}

#[test]
fn what_is_no_picture_in_a_folder_is_passed_over_or_reported() {
    let place = Place::new(25);
    place.pictures("p", 2);
    for name in [
        "p/@eaDir/p00.png/SYNOPHOTO_THUMB_M.png",
        "p/#recycle/x.png",
        "p/$RECYCLE.BIN/x.png",
        "p/__MACOSX/x.png",
    ] {
        place.picture(name, 9);
    }
    let run = ["caption", "--model", "model", "p", "-q", "--max-length", "12"];
    assert_eq!(place.ok(&run).lines().count(), 2);
    rustix::fs::mknodat(rustix::fs::CWD, place.path("p/a.png"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    std::os::unix::fs::symlink("/dev/zero", place.path("p/b.png")).unwrap();
    let ran = place.run(&run);
    assert!(
        ran.code == 3 && ran.out.lines().count() == 2 && ran.err.contains("2 of 4 skipped"),
        "{}",
        ran.err
    );
    if !rustix::process::geteuid().is_root() {
        use std::os::unix::fs::PermissionsExt;
        place.pictures("p/closed", 1);
        let closed = place.path("p/closed");
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).unwrap();
        let ran = place.run(&run);
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(ran.code == 3 && ran.out.lines().count() == 2 && ran.err.contains("p/closed"), "{}", ran.err);
    }
}
