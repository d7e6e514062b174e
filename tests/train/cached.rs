//! Training on image tokens that are kept: the numbers are those of training on the same views, whatever was there before.

use super::world::{Done, World, signal};
use std::path::Path;

/// A model to start from, whose image encoder is frozen then.
fn world() -> World {
    let world = World::new();
    world.train("begin", &["--steps", "2"]).good();
    world
}

const RUN: [&str; 13] = [
    "train",
    "--images",
    "images",
    "--captions",
    "captions.json",
    "--start",
    "begin/model",
    "--batch",
    "6",
    "--epochs",
    "2",
    "--set",
    "warmup_steps=4",
];

fn arguments<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    RUN.iter().chain(&["--out", out]).chain(more).copied().collect()
}

fn run(world: &World, out: &str, more: &[&str]) -> Done {
    world.run(&arguments(out, more))
}

fn trained(world: &World, out: &str) -> Vec<u8> {
    std::fs::read(world.path(out).join("model/model.safetensors")).unwrap()
}

fn size(path: impl AsRef<Path>) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

/// All crops of such a picture are the whole of it, so the one view that is kept is what every step draws.
const WHOLE: [&str; 6] =
    ["--set", "crop_scale=[1.0, 1.0]", "--set", "crop_ratio=[1.25, 1.25]", "--set", "flip=0"];

#[test]
fn tokens_that_are_kept_are_those_of_the_pictures() {
    let world = world();
    for more in [
        &["--set", "dropout=0.1"][..],
        &["--set", "accumulate=2"],
        &["--set", "accumulate=2", "--set", "contrast=accumulated"],
    ] {
        let more = [&WHOLE[..], more].concat();
        run(&world, "plain", &more).good();
        let exact = [&more[..], &["--cache", "kept", "--set", "cache_dtype=f32"]].concat();
        run(&world, "cached", &exact).good();
        assert_eq!(world.log("plain"), world.log("cached"), "{more:?}");
        assert!(trained(&world, "plain") == trained(&world, "cached"), "{more:?}");
        for out in ["plain", "cached"] {
            std::fs::remove_dir_all(world.path(out)).unwrap();
        }
    }
    // In f16 they are rounded, and take half as much.
    let half = [&WHOLE[..], &["--cache", "half"]].concat();
    run(&world, "plain", &WHOLE).good();
    run(&world, "rounded", &half).good();
    assert!(trained(&world, "plain") != trained(&world, "rounded"));
    let [a, b] =
        ["plain", "rounded"].map(|out| world.log(out).iter().find_map(|l| l["loss"].as_f64()).unwrap());
    assert!((a - b).abs() < 1e-3 * a, "{a} and {b}");
    assert_eq!(size(world.path("half/tokens")) * 2, size(world.path("kept/tokens")));
}

/// All records in a GPU's memory, from which a batch is gathered: the numbers of records that are read for every batch. A damaged one is
/// computed again, and one that could not be used is not asked for.
#[cfg(feature = "host-kernels")]
#[test]
fn kept_tokens_on_a_gpu_are_those_of_the_disk() {
    let world = world();
    world.write("images/05.png", "no picture");
    let common = "train --images images --captions captions.json --start begin/model --batch 12 --epochs 1 \
                  --set warmup_steps=2 --set bad_share=0.1 --device host --cache kept --out";
    let common: Vec<&str> = common.split_whitespace().collect();
    world.run(&[&common[..], &["disk"]].concat()).good();
    let path = world.path("kept/tokens");
    let mut bytes = std::fs::read(&path).unwrap();
    let (record, good) = (bytes.len() / 24, bytes.clone());
    bytes[7 * record] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    world.run(&[&common[..], &["gpu", "--set", "cache_on_gpu=true"]].concat()).good();
    assert!(std::fs::read(&path).unwrap() == good, "the damaged record stands as it was");
    assert_eq!(world.log("disk"), world.log("gpu"));
    assert!(trained(&world, "disk") == trained(&world, "gpu"));
}

#[test]
fn tokens_are_kept_on_a_gpu_where_there_is_one() {
    let world = world();
    let on_gpu = ["--set", "cache_on_gpu=true"];
    run(&world, "none", &on_gpu).refused(2, &["cache_on_gpu: expected a cache, got none", "(cache)"]);
    run(&world, "cpu", &[&on_gpu[..], &["--cache", "kept"]].concat())
        .refused(2, &["train: cache_on_gpu: expected a GPU, got the CPU; leave it out"]);
    assert!(!world.path("cpu").exists() && !world.path("kept").exists());
}

#[test]
fn what_was_there_before_changes_nothing() {
    let world = world();
    let views = ["--set", "cache_views=3"];
    run(&world, "whole", &[&views[..], &["--cache", "kept"]].concat()).good();
    let said = run(&world, "warm", &[&views[..], &["--cache", "kept"]].concat()).good();
    assert!(
        said.errors().contains("training on 3 views of a picture, kept in kept: 72 of 72 are there"),
        "{}",
        said.errors()
    );
    // Some of it there, of every third picture, and a run that stops and goes on.
    let done = std::fs::read(world.path("kept/done")).unwrap();
    let some: Vec<u8> = done
        .chunks(4)
        .enumerate()
        .flat_map(|(i, sum)| if i % 3 == 0 { sum.to_vec() } else { vec![0; 4] })
        .collect();
    std::fs::write(world.path("kept/done"), some).unwrap();
    let more = [&views[..], &["--cache", "kept", "--steps", "5"]].concat();
    let said = run(&world, "pieces", &more).good();
    assert!(said.errors().contains("24 of 72 are there"), "{}", said.errors());
    world.run(&["train", "--resume", "--out", "pieces"]).good();
    for out in ["warm", "pieces"] {
        assert_eq!(world.log("whole"), world.log(out));
        assert!(trained(&world, "whole") == trained(&world, out), "{out}");
    }
    assert_eq!(std::fs::read(world.path("kept/done")).unwrap(), done);
    // Views differ, and other views are other numbers.
    assert_eq!(done.chunks(4).collect::<std::collections::BTreeSet<_>>().len(), 72);
    run(&world, "one", &["--cache", "one-view"]).good();
    assert!(trained(&world, "whole") != trained(&world, "one"));
}

#[test]
fn stopped_while_it_computes_a_cache_keeps_what_is_done() {
    let world = world();
    let many = arguments("run", &["--cache", "kept", "--set", "cache_views=200"]);
    let child = world.command(&many).spawn().unwrap();
    let file = world.path("kept/done");
    let done = || std::fs::read(&file).map_or(0, |d| d.chunks(4).filter(|s| *s != [0; 4]).count());
    let since = std::time::Instant::now();
    while done() == 0 {
        assert!(since.elapsed().as_secs() < 60);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    signal(&child, "TERM");
    let stopped = Done(child.wait_with_output().unwrap());
    stopped.refused(143, &["run the same command again; kept keeps what is done"]);
    let kept = done();
    assert!(kept > 0 && kept < 24 * 200, "{kept}");
    let said = run(&world, "run", &["--cache", "kept", "--set", "cache_views=200", "--steps", "1"]).good();
    assert!(said.errors().contains(&format!("{kept} of 4800 are there")), "{}", said.errors());
}

#[test]
fn a_complete_cache_is_read_by_several_and_filled_by_one() {
    let world = world();
    let filling =
        world.command(&arguments("long", &["--cache", "kept", "--set", "cache_views=300"])).spawn().unwrap();
    let since = std::time::Instant::now();
    while !world.path("kept/cache.json").exists() {
        assert!(since.elapsed().as_secs() < 60);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let other = arguments("other", &["--cache", "kept", "--set", "cache_views=300"]);
    world
        .run(&other)
        .refused(2, &["cache of image tokens: kept: expected a folder that no other training fills"]);
    signal(&filling, "KILL");
    filling.wait_with_output().unwrap();

    run(&world, "first", &["--cache", "small", "--steps", "1"]).good();
    let mut long =
        world.command(&arguments("longer", &["--cache", "small", "--set", "steps=100000"])).spawn().unwrap();
    world.wait_for_lines("longer", 2);
    run(&world, "second", &["--cache", "small", "--steps", "1"]).good();
    assert!(long.try_wait().unwrap().is_none(), "it has ended before the other");
    signal(&long, "KILL");
    long.wait_with_output().unwrap();
}

#[test]
fn a_cache_of_something_else_is_refused_and_bad_pictures_are_reported() {
    let world = world();
    run(&world, "first", &["--cache", "kept", "--steps", "1"]).good();
    run(&world, "other", &["--cache", "kept", "--set", "flip=0"])
        .refused(2, &["cache of image tokens: flip of kept/cache.json: expected 0.0, got 0.5"]);
    run(&world, "other", &["--cache", "kept", "--set", "seed=7"])
        .refused(2, &["seed of kept/cache.json", "remove this one"]);
    world.train("another", &["--steps", "2", "--set", "seed=3"]).good();
    let start = [&["--cache", "kept"][..], &["--start", "another/model"]].concat();
    let again: Vec<&str> = RUN
        .iter()
        .filter(|a| !["--start", "begin/model"].contains(*a))
        .chain(&["--out", "other"])
        .chain(&start)
        .copied()
        .collect();
    world.run(&again).refused(2, &["encoder of kept/cache.json"]);
    world.train("trained", &["--cache", "kept"]).refused(2, &["cache: expected a frozen image encoder"]);
    world.train("none", &["--set", "cache_views=0"]).refused(2, &["cache_views"]);
    // An older form, which knew only the pictures' names.
    let header = world.path("kept/cache.json");
    let text = std::fs::read_to_string(&header).unwrap();
    std::fs::write(&header, text.replace("\"format\": 2", "\"format\": 1")).unwrap();
    run(&world, "older", &["--cache", "kept"])
        .refused(2, &["format of kept/cache.json: expected 2, got 1", "remove it", "--cache"]);
    // A picture that cannot be read has no features, and is reported.
    world.write("images/05.png", "no picture");
    let said = run(&world, "bad", &["--cache", "fresh", "--set", "bad_share=0.1"]).good();
    assert!(
        said.errors().contains("warning: no features of a picture") && said.errors().contains("05.png"),
        "{}",
        said.errors()
    );
    // Those of the last batch, too.
    (18..24).for_each(|i| world.write(&format!("images/{i}.png"), "no picture"));
    let said = run(&world, "worse", &["--cache", "many", "--set", "bad_share=0.5"]).good();
    assert!(said.errors().contains("23.png"), "{}", said.errors());
    // Planned, not done.
    let plan = run(&world, "plan", &["--cache", "planned", "--dry-run"]).good();
    assert!(plan.text().contains("of tokens of 24 views in planned"), "{}", plan.text());
    assert!(!world.path("planned").exists());
}

#[test]
fn a_damaged_record_is_computed_again() {
    let world = world();
    let views = ["--set", "cache_views=2", "--cache", "kept"];
    run(&world, "whole", &views).good();
    let path = world.path("kept/tokens");
    let good = std::fs::read(&path).unwrap();
    let record = good.len() / 48;
    let mut bytes = good.clone();
    (0..48).step_by(5).for_each(|n| bytes[n * record + 5] ^= 1);
    std::fs::write(&path, &bytes).unwrap();
    let said = run(&world, "damaged", &views).good();
    assert!(
        said.errors().contains("damaged tokens of 05.png in the cache: computed again"),
        "{}",
        said.errors()
    );
    assert_eq!(world.log("whole"), world.log("damaged"));
    assert!(trained(&world, "whole") == trained(&world, "damaged"));
    // What was read is whole again; with two epochs of one view each, not all need have been.
    let now = std::fs::read(&path).unwrap();
    let wrong = |bytes: &[u8]| good.chunks(record).zip(bytes.chunks(record)).filter(|(a, b)| a != b).count();
    assert!(wrong(&now) < wrong(&bytes), "{} of {}", wrong(&now), wrong(&bytes));
}

/// Other bytes under the same name, size and time; the same bytes at another time; a folder that has moved.
#[test]
fn a_cache_follows_its_pictures() {
    let world = world();
    let views = ["--set", "cache_views=2", "--cache", "kept"];
    run(&world, "first", &views).good();
    let swap = |a: &str, b: &str| {
        let [a, b, between] = [a, b, "images/between"].map(|n| world.path(n));
        std::fs::rename(&a, &between).unwrap();
        std::fs::rename(&b, &a).unwrap();
        std::fs::rename(&between, &b).unwrap();
    };
    swap("images/03.png", "images/07.png");
    let said = run(&world, "swapped", &views).good();
    let reported = "44 of 48 are there; 2 pictures have changed since and are computed again";
    assert!(said.errors().contains(reported), "{}", said.errors());
    run(&world, "fresh", &["--set", "cache_views=2", "--cache", "new"]).good();
    assert_eq!(world.log("swapped"), world.log("fresh"));
    assert!(trained(&world, "swapped") == trained(&world, "fresh"));
    assert_ne!(world.log("swapped"), world.log("first"));
    // The time alone, of all; and the folder's place.
    for i in 0..24 {
        let path = world.path(&format!("images/{i:02}.png"));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    std::fs::rename(world.path("images"), world.path("moved")).unwrap();
    let moved: Vec<&str> =
        arguments("moved-run", &views).into_iter().map(|a| if a == "images" { "moved" } else { a }).collect();
    let said = world.run(&moved).good();
    assert!(said.errors().contains("48 of 48 are there\n"), "{}", said.errors());
    assert!(trained(&world, "moved-run") == trained(&world, "fresh"));
}

#[test]
fn a_picture_that_cannot_be_used_does_not_keep_a_cache_from_being_shared() {
    let world = world();
    world.write("images/05.png", "no picture");
    let more = ["--cache", "kept", "--set", "bad_share=0.1"];
    run(&world, "first", &[&more[..], &["--steps", "1"]].concat()).good();
    let mut long =
        world.command(&arguments("long", &[&more[..], &["--set", "steps=100000"]].concat())).spawn().unwrap();
    world.wait_for_lines("long", 2);
    run(&world, "second", &[&more[..], &["--steps", "1"]].concat()).good();
    // A picture that changes now waits for the training that uses the old one.
    world.write("images/06.png", std::fs::read(world.path("images/07.png")).unwrap());
    run(&world, "third", &more).refused(2, &["1 that have changed since", "another training"]);
    assert!(long.try_wait().unwrap().is_none(), "it has ended before the others");
    signal(&long, "KILL");
    long.wait_with_output().unwrap();
    // Repaired, it is used.
    world.write("images/05.png", std::fs::read(world.path("images/07.png")).unwrap());
    let said = run(&world, "repaired", &more).good();
    assert!(said.errors().contains("22 of 24 are there; 1 pictures have changed"), "{}", said.errors());
    assert!(!said.errors().contains("could not be used"), "{}", said.errors());
}

fn measured(world: &World, arguments: &[&str]) -> serde_json::Value {
    let done = world.run(&[arguments, &["--device", "cpu", "--json"]].concat()).good();
    serde_json::from_str(&done.text()).unwrap()
}

/// Loader and model together, timed as a run is, from files and from a cache.
#[test]
fn steps_are_timed_with_their_loader() {
    let world = World::new();
    let bench = ["bench", "train", "--config", "tiny", "--batch", "6", "--steps", "3"];
    let data = ["--captions", "captions.json", "--images", "images"];
    let bench = [&bench[..], &data].concat();
    let files = measured(&world, &bench);
    let cache = measured(&world, &[&bench[..], &["--cache", "kept"]].concat());
    assert_eq!(files["from"], "picture files");
    assert_eq!(cache["from"], "a cache of image tokens");
    for found in [&files, &cache] {
        let number = |key: &str| found[key].as_f64().unwrap();
        assert!(number("samples_per_s") > 0.0 && number("waiting") >= 0.0, "{found}");
        assert!(number("waiting") < number("seconds"), "{found}");
        assert!(number("batch_processor_seconds") > 0.0 && number("step_processor_seconds") > 0.0, "{found}");
    }
    assert!(size(world.path("kept/tokens")) > 0);
    world
        .run(&["bench", "train", "--config", "tiny"])
        .refused(2, &["bench train: --captions: expected captions, and where their pictures lie, got none"]);
}

#[test]
fn captions_of_files_are_timed_with_their_decoding() {
    let world = World::new();
    world.write("images/notes.txt", "no picture");
    let bench = ["bench", "caption", "--config", "tiny", "--batch", "5", "--text", "4", "--pictures"];
    let found = measured(&world, &[&bench[..], &["images"]].concat());
    let counts = ["pictures", "left_out"].map(|key| found[key].as_u64());
    assert_eq!(counts, [Some(24), Some(1)]);
    assert!(found["samples_per_s"].as_f64().unwrap() > 0.0, "{found}");
    std::fs::create_dir(world.path("empty")).unwrap();
    world
        .run(&[&bench[..], &["empty"]].concat())
        .refused(2, &["bench: --pictures: expected a folder of pictures, got one without files"]);
}
