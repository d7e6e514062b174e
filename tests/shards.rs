//! `--shard` and `qformer merge`: many machines caption and index what one would, to the byte.

mod commands;

use commands::{Place, Ran, json, names};

const OF: usize = 3;

fn caption(place: &Place, what: &str, shard: Option<usize>, out: &str, more: &[&str]) -> Ran {
    let mut args = vec!["caption", "--model", "model", what, "-q", "--out", out];
    args.extend(["--num-beams", "1", "--max-length", "8", "--min-length", "3"]);
    args.extend(more);
    let text = shard.map(|i| format!("{i}/{OF}"));
    args.extend(text.iter().flat_map(|t| ["--shard", t.as_str()]));
    place.run(&args)
}

/// The files of all shards.
fn all_shards(place: &Place, what: &str, form: &str) -> Vec<String> {
    let one = |i| {
        let out = format!("c-{i}.{form}");
        let ran = caption(place, what, Some(i), &out, &[]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        out
    };
    (1..=OF).map(one).collect()
}

fn merge<'a>(out: &'a str, parts: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["merge", "--out", out];
    args.extend(parts.iter().map(String::as_str));
    args.extend(more);
    args
}

#[test]
fn captions_of_all_shards_are_those_of_one_command() {
    let place = Place::new(3);
    place.pictures("p", 11);
    // A picture that is no picture is left out by the shard it is in, and is a gap.
    for form in ["json", "jsonl", "csv"] {
        let parts = all_shards(&place, "p", form);
        let whole = format!("whole.{form}");
        assert_eq!(caption(&place, "p", None, &whole, &[]).code, 0);
        let out = format!("merged.{form}");
        // In whatever order they are named.
        let mixed: Vec<String> = parts.iter().rev().cloned().collect();
        let ran = place.run(&merge(&out, &mixed, &[]));
        assert_eq!(ran.code, 0, "{}", ran.err);
        assert!(ran.err.contains("11 pictures of 3 shards"), "{}", ran.err);
        assert_eq!(place.read(&out), place.read(&whole), "{form}");
        assert!(place.fails(2, &merge(&out, &parts, &[])).contains("--force"));
        place.ok(&merge(&out, &parts, &["--force"]));
    }
    // One command per picture list, as well.
    let list: String = (0..11).map(|i| format!("p/p{i:02}.png\n")).collect();
    place.write("list.txt", list);
    for i in 1..=OF {
        assert_eq!(caption(&place, "@list.txt", Some(i), &format!("l-{i}.json"), &[]).code, 0);
    }
    let parts: Vec<String> = (1..=OF).map(|i| format!("l-{i}.json")).collect();
    place.ok(&merge("l.json", &parts, &[]));
    assert_eq!(json(&place.read("l.json")).as_array().unwrap().len(), 11);
}

#[test]
fn pictures_that_are_added_move_no_other() {
    let place = Place::new(3);
    place.pictures("p", 6);
    let parts = all_shards(&place, "p", "json");
    let before: Vec<String> = parts.iter().map(|p| place.read(p)).collect();
    place.picture("p/a-new.png", 31);
    // Some shards know of it, others do not.
    assert_eq!(caption(&place, "p", Some(1), &parts[0], &[]).code, 0);
    let err = place.fails(3, &merge("m.json", &parts, &[]));
    assert!(err.contains("pictures came or went"), "{err}");
    assert!(!place.path("m.json").exists());
    let parts = all_shards(&place, "p", "json");
    for (before, part) in before.iter().zip(&parts) {
        let (before, now) = (json(before), json(&place.read(part)));
        let now = now.as_array().unwrap();
        assert!(before.as_array().unwrap().iter().all(|e| now.contains(e)), "what was there stays");
    }
    place.ok(&merge("m.json", &parts, &[]));
    caption(&place, "p", None, "whole.json", &[]);
    assert_eq!(place.read("m.json"), place.read("whole.json"));
    // A picture that went stays in the captions, as it does in one command's; at the end.
    std::fs::remove_file(place.path("p/p03.png")).unwrap();
    let parts = all_shards(&place, "p", "json");
    place.ok(&merge("less.json", &parts, &[]));
    let less = json(&place.read("less.json"));
    assert_eq!(less.as_array().unwrap().len(), 7);
    assert_eq!(less[6]["image"], "p03.png");
}

#[test]
fn gaps_doubles_and_parts_of_others_are_refused() {
    let place = Place::new(3);
    // None of them is of shard 2.
    place.pictures("p", 8);
    let parts = all_shards(&place, "p", "json");
    let says = |code, args: &[&str], part: &str| {
        let err = place.fails(code, args);
        assert!(err.contains(part), "{part}: {err}");
        assert!(!place.path("m.json").exists());
    };
    says(3, &merge("m.json", &parts[..2], &[]), "none of number 3");
    let twice: Vec<String> = parts.iter().chain(&parts[..1]).cloned().collect();
    says(3, &merge("m.json", &twice, &[]), "shard 1/3 once");
    // Something without a record; nothing at all; other forms.
    place.write("stray.json", "[]");
    says(3, &merge("m.json", &["stray.json".into()], &[]), "no record of a shard");
    says(3, &merge("m.json", &["none.json".into()], &[]), "nothing of this name");
    says(2, &merge("m.csv", &parts, &[]), "the form of m.csv");
    says(2, &merge("c-1.json", &parts, &["--force"]), "another name");
    // A shard that was stopped: its last picture is missing.
    let whole = place.read(&parts[0]);
    let mut entries = json(&whole);
    let last = entries.as_array_mut().unwrap().pop().unwrap();
    place.write(&parts[0], entries.to_string());
    says(3, &merge("m.json", &parts, &[]), last["image"].as_str().unwrap());
    let ran = place.run(&merge("some.json", &parts, &["--partial"]));
    assert!(ran.code == 0 && ran.err.contains("7 pictures of 3 shards, 1 missing"), "{}", ran.err);
    // The same picture twice, and one of another shard.
    let double = json(&whole);
    let mut double = double.as_array().unwrap().clone();
    double.push(double[0].clone());
    place.write(&parts[0], serde_json::Value::from(double).to_string());
    says(3, &merge("m.json", &parts, &[]), "twice");
    place.write(&parts[0], place.read(&parts[2]));
    says(3, &merge("m.json", &parts, &[]), "belongs to another");
    place.write(&parts[0], &whole);
    // Other options, another model, another division: refused where they are computed, and where they are merged.
    let other = caption(&place, "p", Some(3), "o-3.json", &["--num-captions", "1", "--seed", "9"]);
    assert_eq!(other.code, 0);
    let mixed = [parts[0].clone(), parts[1].clone(), "o-3.json".into()];
    says(3, &merge("m.json", &mixed, &[]), "o-3.json");
    place.model("model", 4);
    assert_eq!(caption(&place, "p", Some(3), "n-3.json", &[]).code, 0);
    let mixed = [parts[0].clone(), parts[1].clone(), "n-3.json".into()];
    says(3, &merge("m.json", &mixed, &[]), "of model");
    (40..52).for_each(|i| place.picture(&format!("p/more{i}.png"), i));
    for (shard, out) in [(Some(1), "c-3.json"), (None, "c-3.json"), (Some(1), "stray-full.json")] {
        place.write("stray-full.json", r#"[{"image": "x.png", "caption": ["a"]}]"#);
        let before = place.read(out);
        let ran = caption(&place, "p", shard, out, &[]);
        assert!(ran.code == 2 && ran.err.contains("--overwrite"), "{shard:?} {out}: {}", ran.err);
        assert_eq!(place.read(out), before);
    }
    // Another model adds nothing to a shard.
    let pictures = |i| {
        place.run(&[
            "caption",
            "--model",
            "model",
            "p",
            "-q",
            "--shard",
            &format!("{i}/{OF}"),
            "--out",
            &format!("c-{i}.json"),
        ])
    };
    let refused = (1..=OF).map(pictures).filter(|r| r.code == 3 && r.err.contains("of model")).count();
    assert!(refused >= 2, "shards 1 and 3 have captions of another model");
    for wrong in ["0/3", "4/3", "x", "1/0"] {
        let ran = place.run(&["caption", "--model", "model", "p", "--shard", wrong]);
        assert!(ran.code == 2 && ran.err.contains("i/n"), "{}", ran.err);
    }
}

#[test]
fn an_index_of_all_shards_finds_what_one_command_does() {
    let place = Place::new(5);
    place.pictures("p", 12);
    std::fs::copy(place.path("p/p03.png"), place.path("p/twin.png")).unwrap();
    let index = |shard: Option<usize>, out: &str| {
        let mut args = vec!["search", "index", "--model", "model", "p", "-q", "--out", out];
        let text = shard.map(|i| format!("{i}/{OF}"));
        args.extend(text.iter().flat_map(|t| ["--shard", t.as_str()]));
        place.run(&args)
    };
    let parts: Vec<String> = (1..=OF).map(|i| format!("x-{i}")).collect();
    for (i, part) in (1..).zip(&parts) {
        assert_eq!(index(Some(i), part).code, 0);
    }
    assert_eq!(index(None, "whole").code, 0);
    let query = |index: &str| {
        place.ok(&["search", "query", "--index", index, "二匹の犬", "-k", "20", "--rerank", "4", "--json"])
    };
    place.ok(&merge("all", &parts, &[]));
    assert_eq!(query("all"), query("whole"));
    assert_eq!(json(&query("all"))["pictures"], 13);
    // It is an index like any other: added to, pruned.
    place.picture("p/p99.png", 99);
    assert_eq!(index(None, "all").code, 0);
    let more = query("all");
    assert_eq!(json(&more)["pictures"], 14);
    std::fs::remove_file(place.path("p/p99.png")).unwrap();
    // The parts are as they were.
    assert_eq!(index(Some(2), "x-2").code, 0);
    place.ok(&merge("again", &parts, &[]));
    // What is refused leaves nothing.
    let says = |code, parts: &[String], part: &str| {
        let err = place.fails(code, &merge("no", parts, &[]));
        assert!(err.contains(part), "{part}: {err}");
        assert!(!place.path("no").exists());
    };
    says(3, &parts[..2], "none of number 3");
    says(2, &[parts[0].clone(), "p/p00.png".into()], "files of captions, or indexes");
    let ran = index(Some(1), "x-2");
    assert!(ran.code == 2 && ran.err.contains("shard 2/3"), "{}", ran.err);
    // A part whose bytes changed.
    let file = names(&place.path("x-1")).into_iter().find(|n| n.starts_with("part-")).unwrap();
    let path = place.path("x-1").join(file);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() - 6;
    bytes[at] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    says(3, &parts, "--rebuild");
    assert_eq!(query("all"), more, "a merged index does not change with its parts");
    // Of another model.
    place.model("model", 6);
    let ran = place.run(&[
        "search",
        "index",
        "--model",
        "model",
        "p",
        "-q",
        "--out",
        "x-1",
        "--shard",
        "1/3",
        "--rebuild",
    ]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    says(3, &parts, "of model");
}

#[test]
fn a_task_of_slurms_array_takes_its_share() {
    let place = Place::new(3);
    place.pictures("p", 6);
    let task = |id: &str, more: &[(&str, &str)], out: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_qformer"));
        command.current_dir(place.dir.path()).args(["caption", "--model", "model", "p", "--out", out]);
        command.args(["--num-beams", "1", "--max-length", "8", "--min-length", "3"]);
        command.env("SLURM_ARRAY_TASK_ID", id).envs(more.iter().copied()).output().unwrap()
    };
    let array =
        [("SLURM_ARRAY_TASK_COUNT", "3"), ("SLURM_ARRAY_TASK_MIN", "0"), ("SLURM_ARRAY_TASK_STEP", "1")];
    let parts: Vec<String> = (0..3).map(|i| format!("s-{i}.json")).collect();
    for (i, part) in parts.iter().enumerate() {
        let out = task(&i.to_string(), &array, part);
        let err = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success() && err.contains(&format!("shard {}/3", i + 1)), "{err}");
    }
    place.ok(&merge("all.json", &parts, &[]));
    assert_eq!(json(&place.read("all.json")).as_array().unwrap().len(), 6);
    // Half a set; the third task run again by itself, which would take all pictures.
    let out = task("2", &[], "h.json");
    assert!(
        out.status.code() == Some(2)
            && String::from_utf8_lossy(&out.stderr).contains("SLURM_ARRAY_TASK_COUNT")
    );
    let alone = [("SLURM_ARRAY_TASK_COUNT", "1"), ("SLURM_ARRAY_TASK_MIN", "2")];
    let out = task("2", &alone, "s-2.json");
    assert!(out.status.code() == Some(2) && String::from_utf8_lossy(&out.stderr).contains("--shard 3/3"));
}

/// Shards of webdataset are read by their members' names.
#[test]
fn members_of_tar_files_are_shared_out() {
    let place = Place::new(3);
    place.pictures("p", 9);
    for (tar, range) in [("t/00.tar", 0..5), ("t/01.tar", 5..9)] {
        std::fs::create_dir_all(place.path("t")).unwrap();
        let mut builder = tar::Builder::new(std::fs::File::create(place.path(tar)).unwrap());
        for i in range {
            builder
                .append_path_with_name(place.path(&format!("p/p{i:02}.png")), format!("p{i:02}.png"))
                .unwrap();
        }
        builder.finish().unwrap();
    }
    let parts = all_shards(&place, "t/{00..01}.tar", "jsonl");
    place.ok(&merge("all.jsonl", &parts, &[]));
    assert_eq!(caption(&place, "t/{00..01}.tar", None, "whole.jsonl", &[]).code, 0);
    assert_eq!(place.read("all.jsonl"), place.read("whole.jsonl"));
    assert_eq!(place.read("all.jsonl").lines().count(), 9);
}
