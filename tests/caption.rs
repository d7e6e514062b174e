//! `qformer caption`, from the command line to the files it writes.

mod commands;
#[path = "caption/files.rs"]
mod files;

use commands::{Place, broken, json, names};
use std::collections::HashMap;

/// Image to captions, of a JSON file of captions.
fn captions(text: &str) -> HashMap<String, Vec<String>> {
    let entry = |e: &serde_json::Value| {
        let captions =
            e["caption"].as_array().unwrap().iter().map(|c| c.as_str().unwrap().to_owned()).collect();
        (e["image"].as_str().unwrap().to_owned(), captions)
    };
    json(text).as_array().unwrap().iter().map(entry).collect()
}

#[test]
fn a_caption_never_depends_on_its_batch() {
    let place = Place::new(1);
    place.pictures("p", 7);
    for beams in ["1", "3", "5"] {
        let run = |batch: &str, more: &[&str]| {
            let mut args =
                vec!["caption", "--model", "model", "p", "-q", "--format", "jsonl", "--batch", batch];
            args.extend(["--num-beams", beams, "--max-length", "14", "--min-length", "4"]);
            args.extend(more);
            place.ok(&args)
        };
        let many = ["--num-captions", beams];
        let one = run("1", &many);
        assert_eq!(one.lines().count(), 7);
        for batch in ["2", "7"] {
            assert_eq!(
                run(batch, &many),
                one,
                "batch {batch}, {beams} beams: captions and scores, to the bit"
            );
        }
        if beams == "1" {
            let draw =
                ["--sample", "--seed", "5", "--num-captions", "3", "--top-p", "0.95", "--temperature", "2"];
            let one = run("1", &draw);
            assert_eq!(run("7", &draw), one);
            let again = place.ok(&[
                "caption",
                "--model",
                "model",
                "p/p03.png",
                "-q",
                "--format",
                "jsonl",
                "--batch",
                "1",
                "--num-beams",
                "1",
                "--max-length",
                "14",
                "--min-length",
                "4",
                "--sample",
                "--seed",
                "5",
                "--num-captions",
                "3",
                "--top-p",
                "0.95",
                "--temperature",
                "2",
            ]);
            let (alone, among) = (json(&again), json(one.lines().nth(3).unwrap()));
            assert_eq!(alone["caption"], among["caption"], "draws belong to the picture, not to its place");
            let other = run(
                "7",
                &["--sample", "--seed", "6", "--num-captions", "3", "--top-p", "0.95", "--temperature", "2"],
            );
            assert_ne!(other, one, "another seed draws others");
        }
    }
}

#[test]
fn the_outputs_say_the_same_and_scores_are_the_models() {
    let place = Place::new(2);
    place.pictures("p", 3);
    let base = [
        "caption",
        "--model",
        "model",
        "p",
        "-q",
        "--num-captions",
        "2",
        "--max-length",
        "12",
        "--min-length",
        "3",
    ];
    let with = |more: &[&str]| place.ok(&[&base[..], more].concat());
    with(&["--out", "c.json"]);
    with(&["--out", "c.jsonl"]);
    with(&["--out", "c.csv"]);
    with(&["--txt-dir", "txt"]);
    let plain = captions(&place.read("c.json"));
    assert_eq!(plain.len(), 3);
    // As Python's json.dump writes it.
    let first = &plain["p00.png"];
    let begins = format!(
        "[{{\"image\": \"p00.png\", \"caption\": [\"{}\", \"{}\"]}}, {{\"image\": \"p01.png\"",
        first[0], first[1]
    );
    assert!(place.read("c.json").starts_with(&begins), "{}", place.read("c.json"));
    let mut csv = csv::Reader::from_path(place.path("c.csv")).unwrap();
    let rows: Vec<csv::StringRecord> = csv.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 6);
    let model = place.open();
    for line in place.read("c.jsonl").lines().map(json) {
        let name = line["image"].as_str().unwrap();
        assert_eq!(line["caption"], serde_json::json!(plain[name]));
        assert_eq!(place.read(&format!("txt/{}", name.replace("png", "txt"))), plain[name].join("\n") + "\n");
        let image = {
            let picture = qformer::vision::load(place.path("p").join(name), Default::default()).unwrap();
            let pass = qformer::nn::Pass::inference(&model.params);
            model.model.image_features(&pass, &model.pixels(&[picture]).unwrap()).unwrap()
        };
        for (i, caption) in plain[name].iter().enumerate() {
            let pass = qformer::nn::Pass::inference(&model.params);
            let ids = [model.tokenizer.caption(caption, model.model.config.max_txt_len)];
            let cls = model.model.text_features(&pass, &ids).unwrap()[0].proj.slice_rows(0..1).unwrap();
            let itc = model.model.itc_scores(&image.proj, &cls).unwrap().item().unwrap();
            let itm =
                model.model.match_pairs(&pass, &image, &ids, &[(0, 0)]).unwrap().logits.to_f64().unwrap()[1];
            let row = rows.iter().find(|r| &r[0] == name && r[1] == (i + 1).to_string()).unwrap();
            assert_eq!(&row[2], caption);
            for (key, column, want) in [("itc", 4, itc), ("itm", 5, itm)] {
                let got = line[key][i].as_f64().unwrap();
                // The same sums in f32 in another order.
                assert!(
                    (got - want).abs() <= 1e-4 * (1.0 + want.abs()),
                    "{name} {key}: {got}, by hand {want}"
                );
                assert_eq!(row[column].parse::<f32>().unwrap(), got as f32);
            }
            assert!(line["log_prob"][i].as_f64().unwrap() < 0.0);
        }
    }
}

#[test]
fn spaces_can_be_left_out_and_text_goes_to_standard_output() {
    let place = Place::new(3);
    place.pictures("p", 2);
    let base = ["caption", "--model", "model", "-q", "--max-length", "12"];
    let run = |more: &[&str]| place.ok(&[&base[..], more].concat());
    let keep = run(&["p/p00.png"]);
    assert!(keep.trim_end().contains(' '), "{keep}");
    assert_eq!(
        run(&["p/p00.png", "--spaces", "join"]).trim_end(),
        qformer::results::join_japanese(keep.trim_end())
    );
    assert_eq!(run(&["p"]).lines().next().unwrap(), format!("p00.png\t{}", keep.trim_end()));
    let ascii = run(&["p", "--format", "json", "--ascii"]);
    assert!(ascii.is_ascii());
    assert_eq!(captions(&ascii), captions(&run(&["p", "--format", "json"])));
    // A list from standard input, with names as they are.
    let ran = place.run_with_input(&[&base[..], &["-"]].concat(), b"p/p01.png\np/p00.png\n");
    assert_eq!(
        ran.out.lines().map(|l| l.split('\t').next().unwrap()).collect::<Vec<_>>(),
        ["p/p01.png", "p/p00.png"]
    );
}

#[test]
fn a_run_goes_on_where_it_was_left() {
    let place = Place::new(4);
    place.pictures("p", 5);
    let base = ["caption", "--model", "model", "p", "--max-length", "12"];
    for out in ["c.json", "c.jsonl", "c.csv"] {
        let run = |more: &[&str]| place.run(&[&base[..], &["--out", out], more].concat());
        std::fs::rename(place.path("p/p04.png"), place.path("later.png")).unwrap();
        run(&[]);
        std::fs::rename(place.path("later.png"), place.path("p/p04.png")).unwrap();
        let before = place.read(out);
        let second = run(&[]);
        assert!(
            second.err.contains("4 of 5 pictures have captions already")
                && second.err.contains("1 pictures captioned")
        );
        let after = place.read(out);
        assert!(after.starts_with(before.trim_end_matches(']')), "what was there stays as it was");
        assert_ne!(after, before);
        assert!(run(&[]).err.contains("5 of 5"));
        assert_eq!(place.read(out), after);
        run(&["--overwrite"]);
        assert_eq!(place.read(out), after, "the same captions, in the same order");
    }
    // Hand-written captions are not lost.
    place.write("p/p01.txt", "手書き\n");
    place.ok(&[&base[..], &["--txt"]].concat());
    assert_eq!(place.read("p/p01.txt"), "手書き\n");
    assert!(place.path("p/p04.txt").exists());
    place.ok(&[&base[..], &["--txt", "--overwrite"]].concat());
    assert_ne!(place.read("p/p01.txt"), "手書き\n");
    assert_eq!(
        names(&place.path("")).iter().filter(|n| n.starts_with('.')).count(),
        0,
        "nothing half-written stays"
    );
}

#[test]
fn broken_pictures_are_told_of_and_the_others_captioned() {
    let place = Place::new(5);
    place.pictures("p", 3);
    for (name, bytes) in broken() {
        place.write(&format!("p/{name}"), bytes);
    }
    std::os::unix::fs::symlink("nowhere.png", place.path("p/link.png")).unwrap();
    place.write("p/notes.txt", "not a picture");
    let args = ["caption", "--model", "model", "p", "--max-length", "12", "--out", "c.json"];
    let err = place.fails(3, &args);
    for name in broken().iter().map(|b| b.0).chain(["link.png"]) {
        assert!(err.contains(&format!("skipped {name:?}: ")), "{name}: {err}");
    }
    assert!(err.contains("6 of 9 skipped") && err.contains("3 pictures captioned"), "{err}");
    assert_eq!(captions(&place.read("c.json")).len(), 3);
    // Repaired, it is captioned the next time.
    place.picture("p/cut.png", 9);
    assert!(place.fails(3, &args).contains("5 of 6 skipped"));
    assert_eq!(captions(&place.read("c.json")).len(), 4);
    // A single picture: its own error, and no file.
    let err = place.fails(3, &["caption", "--model", "model", "p/page.jpg", "--out", "one.json"]);
    assert!(err.contains("an HTML page") && !place.path("one.json").exists(), "{err}");
}

#[test]
fn names_are_kept_whatever_they_are() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new(6);
    let hostile = [
        "a \"b\", c.png",
        "new\nline.png",
        "=1+1.png",
        "犬 .png",
        "<script>.png",
        "--model.png",
        "tab\t.png",
        "'.png",
    ];
    hostile.iter().enumerate().for_each(|(i, n)| place.picture(&format!("p/{n}"), i as u8));
    let bytes = std::path::Path::new(std::ffi::OsStr::from_bytes(b"p/\xff\xfe.png"));
    std::fs::copy(place.path("p/'.png"), place.dir.path().join(bytes)).unwrap();
    for out in ["c.json", "c.jsonl", "c.csv"] {
        for _ in 0..2 {
            let err =
                place.fails(3, &["caption", "--model", "model", "p", "--max-length", "12", "--out", out]);
            assert!(err.contains("a name in UTF-8") && err.contains("1 of 9 skipped"), "{err}");
        }
        let found: Vec<String> = match out {
            "c.json" => captions(&place.read(out)).into_keys().collect(),
            "c.jsonl" => {
                place.read(out).lines().map(|l| json(l)["image"].as_str().unwrap().to_owned()).collect()
            }
            _ => csv::Reader::from_path(place.path(out))
                .unwrap()
                .records()
                .map(|r| r.unwrap()[0].to_owned())
                .collect(),
        };
        let (mut found, mut want) = (found, hostile.map(str::to_owned).to_vec());
        found.sort();
        want.sort();
        assert_eq!(found, want, "{out}");
    }
    let text = place.run(&["caption", "--model", "model", "p", "--max-length", "12"]).out;
    assert_eq!(text.lines().count(), 8, "control characters do not break lines: {text}");
}

#[test]
fn what_cannot_be_done_is_said_before_anything_is_computed() {
    let place = Place::new(7);
    place.pictures("p", 2);
    place.write("annotations.json", r#"{"images": [], "annotations": []}"#);
    place.write("file", "");
    let fails = |code, args: &[&str]| place.fails(code, &[&["caption", "--model", "model"], args].concat());
    assert!(fails(2, &["p", "--out", "c.xml"]).contains("--format"));
    assert!(fails(2, &[]).contains("PICTURES"));
    assert!(fails(3, &["nothere"]).contains("check the path"));
    assert!(fails(3, &["p/*.jpg"]).contains("files that the pattern fits"));
    assert!(fails(2, &["p", "--num-captions", "4"]).contains("--num-beams 4"));
    assert!(fails(2, &["p", "--top-p", "0.5"]).contains("--sample"));
    assert!(fails(2, &["p", "--max-length", "1"]).contains("max_length"));
    assert!(fails(2, &["p", "--temperature", "0", "--sample"]).contains("temperature"));
    assert!(fails(3, &["p", "--out", "annotations.json"]).contains("--overwrite"));
    assert_eq!(place.read("annotations.json"), r#"{"images": [], "annotations": []}"#);
    assert!(fails(4, &["p", "--out", "file/c.json"]).contains("file"));
    assert!(fails(4, &["p", "--out", "/proc/c.json"]).contains("/proc"));
    place.picture("p/p00.jpg", 1);
    assert!(fails(2, &["p", "--txt"]).contains("p00.png"));
    let err = place.fails(3, &["caption", "--model", "nothere", "p"]);
    assert!(err.contains("nothere"), "{err}");
}

/// `--vit-gelu tanh` is a matmul's end on a GPU: every command that runs a model has it, and none on the CPU.
#[test]
fn gelu_in_its_tanh_form_is_for_a_gpu() {
    let place = Place::new(9);
    place.pictures("p", 2);
    place.write(
        "val.json",
        r#"[{"image": "p00.png", "caption": "犬"}, {"image": "p01.png", "caption": "猫"}]"#,
    );
    place.ok(&["search", "index", "--model", "model", "--out", "p.index", "p", "-q"]);
    let features = ["features", "--model", "model", "p", "--mode", "image", "--out"];
    let case = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lavis/vit-small.safetensors");
    let commands: [&[&str]; 7] = [
        &["caption", "--model", "model", "p"],
        &["search", "index", "--model", "model", "--out", "new.index", "p"],
        &["search", "query", "--index", "p.index", "犬"],
        &["evaluate", "--model", "model", "--captions", "val.json", "--images", "p"],
        &["bench", "step", "--config", "tiny"],
        &["parity", case],
        &[&features[..], &["f.npy"]].concat(),
    ];
    for command in commands {
        let err = place.fails(2, &[command, &["--vit-gelu", "tanh"]].concat());
        assert!(err.contains("vit_gelu: expected exact on the CPU, got tanh; "), "{command:?}: {err}");
        let err = place.fails(2, &[command, &["--vit-gelu", "relu"]].concat());
        assert!(err.contains("--vit-gelu") && err.contains("exact, tanh"), "{command:?}: {err}");
    }
    assert!(!place.path("f.npy").exists() && !place.path("new.index").exists());
    #[cfg(feature = "host-kernels")]
    {
        let [exact, again, tanh] =
            [("a.npy", "exact"), ("b.npy", "exact"), ("c.npy", "tanh")].map(|(to, form)| {
                let more = ["--device", "host", "--dtype", "f32", "--vit-gelu", form];
                place.ok(&[&features[..], &[to], &more].concat());
                std::fs::read(place.path(to)).unwrap()
            });
        assert!(exact == again && exact.len() == tanh.len() && exact != tanh);
    }
}

#[test]
fn a_signal_saves_what_is_done() {
    let place = Place::new(8);
    place.pictures("p", 60);
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_qformer"))
        .current_dir(place.dir.path())
        .args([
            "caption",
            "--model",
            "model",
            "p",
            "--batch",
            "1",
            "--txt",
            "--out",
            "c.json",
            "--num-beams",
            "5",
        ])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // As soon as a picture is done.
    while !place.path("p/p00.txt").exists() {
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(child.try_wait().unwrap().is_none(), "it ended before a picture was captioned");
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    let (code, err) = (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert_eq!(code, Some(143), "{err}");
    assert!(err.contains("run the same command again"), "{err}");
    let done = captions(&place.read("c.json")).len();
    assert!((1..60).contains(&done), "{done} captioned before the signal");
    place.ok(&["caption", "--model", "model", "p", "--txt", "--out", "c.json", "--num-beams", "5", "-q"]);
    assert_eq!(captions(&place.read("c.json")).len(), 60);
}

/// A picture that a camera marked as turned: taken as it is stored, as LAVIS does, unless asked to turn it upright.
#[test]
fn exif_orientation_is_used_when_asked_for() {
    let place = Place::new(1);
    let pixels: Vec<u8> = (0..30 * 20 * 3).map(|i| (i * 37 % 251) as u8).collect();
    let stored = qformer::vision::encode_png(30, 20, &pixels).unwrap();
    // Orientation 6: the stored picture's last row is the upright one's first column.
    let exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let crc = crc32fast::hash(&[&b"eXIf"[..], exif].concat()).to_be_bytes();
    let chunk = [&(exif.len() as u32).to_be_bytes()[..], b"eXIf", exif, &crc].concat();
    place.write("turned/a.png", [&stored[..33], &chunk, &stored[33..]].concat());
    let upright: Vec<u8> = (0..30)
        .flat_map(|y| (0..20).flat_map(move |x| [0, 1, 2].map(|c| ((19 - x) * 30 + y) * 3 + c)))
        .map(|i| pixels[i])
        .collect();
    place.write("upright/a.png", qformer::vision::encode_png(20, 30, &upright).unwrap());
    place.write("stored/a.png", &stored);
    let features = |folder: &str, more: &[&str]| {
        let out = format!("{folder}{}.safetensors", more.len());
        let args = ["features", "--model", "model", "--mode", "image", folder, "--out", &out, "-q"];
        place.ok(&[&args[..], more].concat());
        std::fs::read(place.path(&out)).unwrap()
    };
    let asked = ["--exif-orientation"];
    assert!(features("turned", &[]) == features("stored", &[]));
    assert!(features("turned", &asked) == features("upright", &asked));
    assert!(features("turned", &asked) != features("stored", &asked));
}

#[test]
fn pictures_of_other_kinds_are_counted() {
    let place = Place::new(1);
    place.pictures("p", 1);
    for name in ["p/IMG_1.HEIC", "p/in/IMG_2.heic", "p/b.avif", "p/c.tif", "p/notes.txt"] {
        place.write(name, b"\0\0\0\x18ftypheic");
    }
    let ran = place.run(&["caption", "--model", "model", "p"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    for part in ["4 files", "2 .heic", "1 .avif", "1 .tif", "JPEG or PNG"] {
        assert!(ran.err.contains(part), "no {part:?} in {}", ran.err);
    }
    // One that is named is refused.
    let refused = place.fails(3, &["caption", "--model", "model", "p/IMG_1.HEIC"]);
    assert!(refused.contains("HEIC"), "{refused}");
}
