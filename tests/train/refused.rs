//! What is refused changes nothing: every file of every folder is byte for byte what it was. A dry run refuses the same.

use super::world::{Done, World, exists, signal};
use qformer::files::RealDisk;
use qformer::train::checkpoint::{self, Checkpoint, Folder, Loaded, Tensor};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Every file below a folder, hidden ones too, with what is in it.
fn snapshot(folder: &Path) -> BTreeMap<PathBuf, Option<blake3::Hash>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
        if entry.is_dir() && !entry.is_symlink() {
            found.extend(snapshot(&entry));
            found.insert(entry, None);
        } else {
            let hash = blake3::hash(&std::fs::read(&entry).unwrap());
            found.insert(entry, Some(hash));
        }
    }
    found
}

/// Runs what must be refused with this code, and sees that nothing has changed.
#[track_caller]
fn refused(world: &World, code: i32, words: &[&str], run: impl FnOnce() -> Done) {
    let before = snapshot(&world.path(""));
    run().refused(code, words);
    let after = snapshot(&world.path(""));
    for (path, hash) in &before {
        assert_eq!(after.get(path), Some(hash), "{words:?}: {}", path.display());
    }
    let added: Vec<&PathBuf> = after.keys().filter(|p| !before.contains_key(*p)).collect();
    assert!(added.is_empty(), "{words:?}: {added:?}");
}

/// The same of a training, then of its dry run.
#[track_caller]
fn train(world: &World, out: &str, code: i32, words: &[&str], more: &[&str]) {
    refused(world, code, words, || world.train(out, more));
    refused(world, code, words, || world.train(out, &[more, &["--dry-run"]].concat()));
}

/// Puts NaN over the first number of a tensor of a safetensors file.
fn spoil(file: &Path, tensor: &str) {
    let mut bytes = std::fs::read(file).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    let at = 8 + n + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(file, bytes).unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|e| e.unwrap()) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// The newest checkpoint of a run.
fn newest(world: &World, out: &str) -> Loaded {
    let path = world.path(out).join("checkpoints");
    let file = checkpoint::latest(&RealDisk, &path, |e| panic!("{e}")).unwrap().unwrap();
    checkpoint::load(&RealDisk, &file).unwrap()
}

/// A run like `from`, with a changed checkpoint in place of its newest.
fn with_checkpoint(world: &World, from: &str, to: &str, change: impl FnOnce(&mut Loaded)) {
    copy(&world.path(from), &world.path(to));
    let mut loaded = newest(world, from);
    change(&mut loaded);
    let path = world.path(to).join("checkpoints");
    std::fs::remove_file(path.join(checkpoint::file_name(loaded.progress.step))).unwrap();
    let tensor = |(name, stored): (&String, &checkpoint::Stored)| Tensor {
        name: name.clone(),
        dtype: stored.dtype,
        shape: stored.shape.clone(),
        bytes: Cow::Owned(stored.bytes.clone()),
    };
    let tensors = loaded.tensors.iter().map(tensor).collect();
    let mut folder = Folder::own(&RealDisk, &path).unwrap();
    folder.save(&Checkpoint { progress: loaded.progress.clone(), tensors }).unwrap();
}

#[test]
fn a_refused_training_changes_nothing() {
    let world = World::new();
    world.train("run", &["--steps", "3"]).good();
    let other = std::fs::read_to_string(world.path("captions.json")).unwrap().replace("赤い", "紅い");
    world.write("other.json", other);
    train(&world, "run", 2, &["stands at step 3", "--resume", "--out"], &[]);
    let on = |captions: &str, out: &str, more: &[&str]| {
        let data = ["train", "--images", "images", "--captions", captions, "--out", out, "--size", "tiny"];
        world.run(&[&data[..], more].concat())
    };
    refused(&world, 2, &["stands at step 3"], || on("other.json", "run", &["--batch", "3"]));
    refused(&world, 2, &["data.0.blake3: saved with"], || on("other.json", "run", &["--resume"]));
    refused(&world, 3, &["nowhere.json"], || on("nowhere.json", "new", &[]));
    for (words, more) in [
        ("init_lr: saved with", &["--set", "init_lr=3e-4"][..]),
        ("(seed): saved with", &["--set", "seed=7"]),
        ("model.hidden: saved with", &["--set", "model.hidden=64"]),
        ("epochs: saved with 2, now 1", &["--epochs", "1"]),
        ("epochs: saved with 2, now 3", &["--epochs", "3"]),
        ("warmup_steps: saved with 4, now 2", &["--set", "warmup_steps=2"]),
        ("--steps: expected at most 16", &["--steps", "99"]),
    ] {
        train(&world, "run", 2, &[words], &[&["--resume"], more].concat());
    }
    train(&world, "new", 2, &["--steps: expected at most 16", "--set steps=99"], &["--steps", "99"]);
    train(&world, "captions.json/run", 4, &["captions.json"], &[]);

    // A model that would be replaced, though no checkpoint is there any more.
    copy(&world.path("run"), &world.path("kept"));
    std::fs::remove_dir_all(world.path("kept/checkpoints")).unwrap();
    train(&world, "kept", 2, &["kept/model", "without checkpoints", "--start"], &[]);
    train(&world, "kept", 2, &["kept/model", "without checkpoints"], &["--resume"]);
    refused(&world, 2, &["a run with a checkpoint"], || world.train("kept", &["--export"]));

    // Numbers that are not finite.
    with_checkpoint(&world, "run", "nan", |loaded| {
        let tensor = loaded.tensors.get_mut("text_proj.weight").unwrap();
        tensor.bytes[4..8].copy_from_slice(&f32::INFINITY.to_le_bytes());
    });
    train(&world, "nan", 7, &["text_proj.weight", "element 1"], &["--resume"]);
    refused(&world, 7, &["text_proj.weight"], || world.train("nan", &["--export"]));
}

#[test]
fn a_start_that_cannot_be_taken_changes_nothing() {
    let world = World::new();
    world.train("begin", &["--steps", "2"]).good();
    let data =
        ["train", "--images", "images", "--captions", "captions.json", "--batch", "6", "--epochs", "1"];
    let into = |out: &str, start: &str, more: &[&str]| {
        world.run(&[&data[..], &["--start", start, "--out", out], more].concat())
    };
    let from = |start: &str, more: &[&str]| into("run", start, more);
    let both = |code: i32, words: &[&str], start: &str, more: &[&str]| {
        refused(&world, code, words, || from(start, more));
        refused(&world, code, words, || from(start, &[more, &["--dry-run"]].concat()));
    };
    both(3, &["nowhere"], "nowhere", &[]);
    copy(&world.path("begin/model"), &world.path("nan"));
    spoil(&world.path("nan/model.safetensors"), "query_tokens");
    both(7, &["nan/model.safetensors", "query_tokens", "element 0"], "nan", &[]);
    copy(&world.path("begin/model"), &world.path("joined"));
    let config = std::fs::read_to_string(world.path("joined/config.json")).unwrap();
    world.write("joined/config.json", config.replace("\"layers\": 2", "\"layers\": 1"));
    both(3, &["joined/model.safetensors", "layer.1.", "config.json"], "joined", &[]);
    world.write("joined/config.json", config.replace("\"max_txt_len\": 12", "\"max_txt_len\": 8"));
    both(3, &["config.json that model.safetensors was written with"], "joined", &[]);
    // A cache of something else.
    let cache = ["--cache", "tokens", "--set", "cache_views=2"];
    into("cached", "begin/model", &cache).good();
    let more = ["--cache", "tokens", "--set", "cache_views=3"];
    both(2, &["views", "cache.json"], "begin/model", &more);
    assert!(!exists(world.path("run")));
}

#[test]
fn a_second_training_in_a_folder_changes_nothing() {
    let world = World::new();
    let run = world.start("run", &["--epochs", "60"]);
    world.wait_for_lines("run", 2);
    let part = |name: &str| std::fs::read(world.path("run").join(name)).unwrap();
    let parts = || ["config.yaml", "vocabulary/vocab.txt", "checkpoints/.lock"].map(part);
    let before = parts();
    for more in [&[][..], &["--dry-run"], &["--resume"], &["--set", "vocab_size=30"]] {
        let words = ["no other training writes to", &format!("process {}", run.id())];
        world.train("run", more).refused(2, &words);
        assert!(parts() == before, "{more:?}");
    }
    signal(&run, "INT");
    let done = Done(run.wait_with_output().unwrap());
    done.refused(130, &["--resume --out run", "--export --out run"]);
    // Both pieces of advice can be followed.
    world.run(&["train", "--export", "--out", "run"]).good();
    let step = newest(&world, "run").progress.step + 1;
    world.run(&["train", "--resume", "--out", "run", "--steps", &step.to_string()]).good();
}

#[test]
fn a_run_is_resumed_from_any_folder() {
    let world = World::new();
    world.train("run", &["--steps", "2"]).good();
    std::fs::create_dir(world.path("elsewhere")).unwrap();
    let resume = ["train", "--resume", "--out", "../run", "--steps", "3"];
    Done(world.command(&resume).current_dir(world.path("elsewhere")).output().unwrap()).good();
    std::fs::rename(world.path("images"), world.path("moved")).unwrap();
    let gone = world.run(&["train", "--resume", "--out", "run"]);
    gone.refused(3, &["run/config.yaml", "--images", "--captions"]);
    world.run(&["train", "--resume", "--out", "run", "--images", "moved", "--steps", "4"]).good();
}

/// Behind the end of its schedule a run may go on at min_lr, if it is asked to by name.
#[test]
fn the_learning_rate_never_climbs_again() {
    let world = World::new();
    world.train("run", &[]).good();
    world.run(&["train", "--resume", "--out", "run", "--set", "steps=30"]).good();
    world.train("both", &["--set", "steps=30"]).good();
    for out in ["run", "both"] {
        let rates: Vec<f64> = world.log(out).iter().filter_map(|l| l["learning_rate"].as_f64()).collect();
        assert_eq!(rates.len(), 30);
        assert!(rates[4..].windows(2).all(|w| w[1] <= w[0]), "{out}: {rates:?}");
        assert_eq!(rates[16..], [1e-5; 14], "{out}");
    }
    assert!(world.newest("run") == world.newest("both"));
}

#[test]
fn another_instruction_set_is_reported() {
    let world = World::new();
    world.train("run", &["--steps", "2"]).good();
    let own = newest(&world, "run").progress.state["instructions"].as_str().unwrap().to_string();
    assert_eq!(own, qformer::device::cpu::instructions());
    with_checkpoint(&world, "run", "other", |loaded| loaded.progress.state["instructions"] = "NEON".into());
    let done = world.train("other", &["--resume", "--steps", "3"]).good();
    let words = format!("instruction set: saved with NEON, now {own}");
    assert!(done.errors().contains(&words), "{}", done.errors());
    // Checkpoints of earlier versions say nothing.
    with_checkpoint(&world, "run", "older", |loaded| {
        loaded.progress.state.as_object_mut().unwrap().remove("instructions");
    });
    let done = world.train("older", &["--resume", "--steps", "3"]).good();
    assert!(!done.errors().contains("instruction set"), "{}", done.errors());
}

#[test]
fn batches_that_repeat_a_picture_are_said_as_doctor_says_them() {
    let world = World::new();
    let flag = "--set profile=lavis-image-id";
    let done = world.train("run", &["--steps", "1"]).good();
    assert!(done.errors().contains("repeat a picture") && done.errors().contains(flag), "{}", done.errors());
    let doctor = world.run(&["doctor", "--images", "images", "--captions", "captions.json", "--batch", "6"]);
    assert!(doctor.text().contains(flag), "{}", doctor.text());
    let count = |text: &str, end: &str| -> u64 {
        let line = text.lines().find(|l| l.contains("repeat a picture")).unwrap();
        line.split(end).next().unwrap().split_whitespace().last().unwrap().parse().unwrap()
    };
    assert_eq!(count(&done.errors(), " of "), count(&doctor.text(), " of "));
    let ids = world.train("ids", &["--steps", "1", "--set", "profile=lavis-image-id"]).good();
    assert!(!ids.errors().contains("repeat a picture"), "{}", ids.errors());
}
