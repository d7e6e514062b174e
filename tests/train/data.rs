//! Data sets that are wrong in one way or another: each gives one clear message or a counted, listed skip.

use super::world::{Done, World};
use serde_json::{Value, json};

fn captions(world: &World, entries: &Value) {
    world.write("captions.json", entries.to_string());
}

fn entries(world: &World) -> Vec<Value> {
    serde_json::from_str(&std::fs::read_to_string(world.path("captions.json")).unwrap()).unwrap()
}

#[test]
fn annotation_files_that_are_wrong_are_refused() {
    let world = World::new();
    let text = std::fs::read_to_string(world.path("captions.json")).unwrap();
    let good = entries(&world);
    let with = |entry: Value| json!([good.clone(), vec![entry]].concat()).to_string();
    let coco = |annotations: &str| {
        format!(
            "{{\"images\": [{{\"id\": 1, \"file_name\": \"00.png\"}}], \"annotations\": [{annotations}]}}"
        )
    };
    for (bad, words) in [
        (text[..text.len() / 2].to_string(), &["captions.json", "line"][..]),
        (text.replacen("\"image_id\":3", "\"image_id\":NaN", 1), &["captions.json"]),
        (coco("{\"id\": 1, \"image_id\": NaN, \"caption\": \"猫\"}"), &["captions.json"]),
        (with(json!({"image": "../secret.png", "caption": "猫"})), &["../secret.png", "climbs out"]),
        (with(json!({"image": "/etc/secret.png", "caption": "猫"})), &["absolute path", "/etc/secret.png"]),
        (
            coco(
                "{\"id\": 7, \"image_id\": 1, \"caption\": \"猫\"}, {\"id\": 7, \"image_id\": 1, \"caption\": \"犬\"}",
            ),
            &["猫", "犬"],
        ),
        ("[]".to_string(), &["at least one caption"]),
        (String::new(), &["captions.json"]),
    ] {
        world.write("captions.json", &bad);
        let done = world.train("no", &["--steps", "1"]);
        done.refused(3, words);
        assert!(!world.path("no").exists(), "nothing is written before the data is read");
    }
    world.write(
        "captions.json",
        [b"[{\"image\": \"00.png\", \"caption\": \"".as_slice(), &[0x93, 0xfa], b"\"}]"].concat(),
    );
    world.train("no", &[]).refused(3, &["UTF-8", "offset 33"]);
    std::fs::remove_file(world.path("captions.json")).unwrap();
    world.train("no", &[]).refused(3, &["captions.json", "check the path"]);
    captions(&world, &json!(good));
    std::fs::rename(world.path("images"), world.path("elsewhere")).unwrap();
    world.train("no", &[]).refused(3, &["images"]);
}

#[test]
fn captions_that_are_empty_or_huge_are_counted_and_said() {
    let world = World::new();
    let mut all = entries(&world);
    all.push(json!({"image": "00.png", "caption": "  ", "image_id": 0}));
    all.push(json!({"image": "01.png", "caption": "猫".repeat(3_500_000), "image_id": 1}));
    captions(&world, &json!(all));
    let done = world.train("run", &["--steps", "2"]).good();
    let errors = done.errors();
    assert!(errors.contains("24 pictures, 49 captions; skipped: 1 empty captions"), "{errors}");
    assert!(errors.contains("cut: 1 captions"), "{errors}");
}

#[test]
fn too_many_missing_pictures_are_refused_and_few_are_said() {
    let world = World::new();
    std::fs::remove_file(world.path("images/07.png")).unwrap();
    world.train("no", &[]).refused(3, &["1 of 24", "07.png", "missing"]);
    let done = world.train("run", &["--steps", "2", "--set", "missing_share=0.05"]).good();
    assert!(done.errors().contains("1 missing pictures"), "{}", done.errors());
    // A wrong folder: doctor names a picture that is not there, and the folder.
    std::fs::create_dir(world.path("empty")).unwrap();
    let doctor = world.run(&["doctor", "--images", "empty", "--captions", "captions.json"]);
    doctor.refused(3, &["at least one caption", "00.png", "empty", "no picture lies there"]);
}

#[test]
fn unusable_pictures_are_listed_and_too_many_stop_the_run_with_everything_saved() {
    let world = World::new();
    let png = std::fs::read(world.path("images/05.png")).unwrap();
    world.write("images/05.png", &png[..png.len() / 2]);
    world.write("images/11.png", "<!DOCTYPE html><title>404</title>");
    // 4 of 48 captions are 8.3 %
    let done = world.train("no", &["--set", "save_every=1"]);
    done.refused(3, &["of 48", ".png", "bad_share"]);
    let listed = std::fs::read_to_string(world.path("no/bad.jsonl")).unwrap();
    assert!(listed.lines().count() >= 1, "{listed}");

    world.train("run", &["--set", "bad_share=0.1"]).good();
    let listed = std::fs::read_to_string(world.path("run/bad.jsonl")).unwrap();
    let lines: Vec<Value> = listed.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{listed}");
    assert!(lines[0]["picture"].as_str().unwrap().ends_with("05.png"));
    assert!(lines[1]["reason"].as_str().unwrap().contains("an HTML page"), "{listed}");
    // with spares in their places the run still depends on nothing but its settings
    world.train("again", &["--set", "bad_share=0.1", "--set", "workers=1", "--steps", "7"]).good();
    world.train("again", &["--set", "bad_share=0.1", "--steps", "16", "--resume"]).good();
    assert_eq!(world.log("run"), world.log("again"));
    assert!(world.newest("run") == world.newest("again"));
}

/// Whatever becomes of picture files while a run goes on: a few are left out and listed.
#[test]
fn pictures_that_go_away_during_a_run_are_left_out_and_listed() {
    let world = World::new();
    let run = world.start("run", &["--epochs", "20", "--set", "bad_share=0.1"]);
    world.wait_for_lines("run", 3);
    std::fs::remove_file(world.path("images/03.png")).unwrap();
    std::fs::remove_file(world.path("images/04.png")).unwrap();
    std::fs::create_dir(world.path("images/04.png")).unwrap();
    let done = Done(run.wait_with_output().unwrap()).good();
    assert_eq!(world.log("run").len(), 160);
    let listed = std::fs::read_to_string(world.path("run/bad.jsonl")).unwrap();
    let lines: Vec<Value> = listed.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let reason = |n: usize| lines[n]["reason"].as_str().unwrap();
    assert_eq!(lines.len(), 2, "{listed}");
    assert!(reason(0).contains("03.png") && reason(0).contains("No such file"), "{listed}");
    assert!(reason(1).contains("04.png") && reason(1).contains("a folder"), "{listed}");
    assert!(done.errors().contains("2 pictures could not be used"), "{}", done.errors());
}

#[test]
fn a_folder_that_cannot_be_written_to_is_said_and_a_foreign_checkpoint_refused() {
    let world = World::new();
    world.write("file", "");
    world.train("file/run", &["--steps", "1"]).refused(4, &["file"]);
    world.train("/proc/run", &["--steps", "1"]).refused(4, &["/proc/run"]);
    // a checkpoint of a model of other sizes, put into this run's folder
    world.train("small", &["--steps", "1"]).good();
    world.train("large", &["--steps", "1", "--set", "model.hidden=64"]).good();
    let file = "checkpoints/step-000000001.safetensors";
    std::fs::copy(world.path("large").join(file), world.path("small").join(file)).unwrap();
    world.train("small", &["--resume"]).refused(2, &["model.hidden: saved with 64, now 32"]);
    // a torn one is passed over
    world.train("small", &["--out", "torn", "--steps", "1"]).refused(2, &[]);
    world.train("torn", &["--steps", "2", "--set", "save_every=1"]).good();
    let newest = world.path("torn/checkpoints/step-000000002.safetensors");
    let bytes = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &bytes[..bytes.len() - 9]).unwrap();
    let done = world.train("torn", &["--steps", "2", "--resume"]).good();
    assert!(
        done.errors().contains("passed over") && done.errors().contains("going on after step 1"),
        "{}",
        done.errors()
    );
    assert!(std::fs::read(&newest).unwrap() == bytes);
}

#[test]
fn a_full_disk_keeps_the_old_checkpoint_and_the_log_warns_once() {
    let world = World::new();
    std::fs::create_dir(world.path("disk")).unwrap();
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=5m", "tmpfs"])
        .arg(world.path("disk"))
        .status();
    if !mount.is_ok_and(|s| s.success()) {
        eprintln!("SKIPPED: no right to mount a small file system, so no disk was really filled");
        return;
    }
    // 1. The disk fills up with checkpoints: what is there stays, the log has every step.
    let done = world.train("disk/run", &["--set", "save_every=1", "--set", "keep_last=40"]);
    let (kept, log) = (world.checkpoints("disk/run"), world.log("disk/run"));
    std::fs::remove_dir_all(world.path("disk/run")).unwrap();
    // 2. It fills up beside a run: steps go on without their lines, up to the next checkpoint.
    let run = world.start("disk/run", &["--epochs", "40", "--set", "save_every=40"]);
    world.wait_for_lines("disk/run", 45);
    fill(&world);
    let full = Done(run.wait_with_output().unwrap());
    let left = world.checkpoints("disk/run");
    std::fs::remove_file(world.path("disk/fill")).unwrap();
    let again = world.train("disk/run", &["--epochs", "40", "--resume", "--steps", "85"]);
    let unmounted = std::process::Command::new("umount").arg(world.path("disk")).status();
    assert!(unmounted.unwrap().success());

    done.refused(4, &["bytes free", "nothing saved before is lost"]);
    assert!(kept.len() >= 2 && log.len() == kept.len() + 1, "{kept:?}, {} lines", log.len());
    full.refused(4, &["nothing saved before is lost"]);
    assert_eq!(full.errors().matches("training goes on without these lines").count(), 1, "{}", full.errors());
    assert!(!left.is_empty(), "{}", full.errors());
    again.good();
}

/// Writes until nothing fits any more.
fn fill(world: &World) {
    use std::io::Write;
    let mut file = std::fs::File::create(world.path("disk/fill")).unwrap();
    let mut size = 1 << 20;
    while size > 0 {
        if file.write_all(&vec![1; size]).is_err() {
            size /= 2;
        }
    }
}
