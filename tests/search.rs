//! `qformer search`: the index and what is found in it.

mod commands;

use commands::{Place, broken, json, names};
use qformer::model::{Images, mean_cosine};
use qformer::nn::Pass;
use qformer::pretrained::Pretrained;
use serde_json::Value;

fn image(model: &Pretrained, path: &std::path::Path) -> Images {
    let picture = qformer::vision::load(path, Default::default()).unwrap();
    model.model.image_features(&Pass::inference(&model.params), &model.pixels(&[picture]).unwrap()).unwrap()
}

/// itc, itm and mean_cosine of a picture and a text, straight from the model.
fn by_hand(model: &Pretrained, image: &Images, text: &str) -> [f64; 3] {
    let m = &model.model;
    let pass = Pass::inference(&model.params);
    let ids = [model.tokenizer.caption(text, m.config.max_txt_len)];
    let cls = m.text_features(&pass, &ids).unwrap()[0].proj.slice_rows(0..1).unwrap();
    let matched = m.match_pairs(&pass, image, &ids, &[(0, 0)]).unwrap();
    let cosine =
        mean_cosine(&image.embeds.to_f64().unwrap(), &matched.hidden.to_f64().unwrap(), m.config.hidden);
    [m.itc_scores(&image.proj, &cls).unwrap().item().unwrap(), matched.logits.to_f64().unwrap()[1], cosine]
}

/// The same sums in f32 in another order.
fn near(got: &Value, want: f64) {
    let got = got.as_f64().unwrap();
    assert!((got - want).abs() <= 1e-4 * (1.0 + want.abs()), "{got}, by hand {want}");
}

fn results(text: &str) -> Vec<Value> {
    json(text)["results"].as_array().unwrap().clone()
}

#[test]
fn the_ranking_is_that_of_the_scores() {
    let place = Place::new(11);
    place.pictures("p", 9);
    place.ok(&["search", "index", "--model", "model", "--out", "x", "p", "-q", "--batch", "4"]);
    let model = place.open();
    let text = "二匹の犬がいる";
    let truth: Vec<(String, [f64; 3])> = (0..9)
        .map(|i| {
            (
                format!("p{i:02}.png"),
                by_hand(&model, &image(&model, &place.path(&format!("p/p{i:02}.png"))), text),
            )
        })
        .collect();
    let ranked = |value: &dyn Fn(&[f64; 3]) -> f64, of: &[(String, [f64; 3])]| -> Vec<String> {
        let mut of = of.to_vec();
        of.sort_by(|a, b| value(&b.1).total_cmp(&value(&a.1)));
        of.into_iter().map(|t| t.0).collect()
    };
    let names = |r: &[Value]| r.iter().map(|h| h["image"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    // Everything re-ranked: by itm + itc, or by what is asked for.
    type Value3 = fn(&[f64; 3]) -> f64;
    let ways: [(&str, Value3); 4] =
        [("itm+itc", |s| s[1] + s[0]), ("itm", |s| s[1]), ("itc", |s| s[0]), ("mean_cosine", |s| s[2])];
    for (way, value) in ways {
        let found =
            results(&place.ok(&["search", "query", "--index", "x", text, "--json", "--rank-by", way]));
        assert_eq!(names(&found), ranked(&value, &truth), "{way}");
        for h in &found {
            let (_, want) = truth.iter().find(|t| t.0 == h["image"].as_str().unwrap()).unwrap();
            ["itc", "itm", "mean_cosine"].iter().zip(want).for_each(|(key, want)| near(&h[key], *want));
        }
    }
    // Three re-ranked: the three best by itc first, then the others by itc, without the other scores.
    let found = results(&place.ok(&["search", "query", "--index", "x", text, "--json", "--rerank", "3"]));
    let by_itc = ranked(&|s| s[0], &truth);
    let best: Vec<_> = truth.iter().filter(|t| by_itc[..3].contains(&t.0)).cloned().collect();
    assert_eq!(names(&found), [ranked(&|s| s[1] + s[0], &best), by_itc[3..].to_vec()].concat());
    assert!(found[2]["itm"].is_number() && found[3]["itm"].is_null() && found[3]["mean_cosine"].is_null());
    let two =
        results(&place.ok(&["search", "query", "--index", "x", text, "--json", "--rerank", "0", "-k", "2"]));
    assert_eq!(names(&two), by_itc[..2]);
    let table = place.ok(&["search", "query", "--index", "x", text, "-k", "2"]);
    assert_eq!(table.lines().count(), 3);
    assert!(table.starts_with("rank      itc       itm  mean_cosine  image\n   1 "), "{table}");
}

#[test]
fn a_picture_finds_itself_and_its_copies() {
    let place = Place::new(12);
    place.pictures("p", 6);
    place.picture("q/copy.png", 4);
    place.ok(&["search", "index", "--model", "model", "--out", "x", "p", "-q"]);
    let args = ["search", "query", "--index", "x", "--image", "q/copy.png", "--json"];
    let found = results(&place.ok(&args));
    assert_eq!(found[0]["image"], "p04.png");
    near(&found[0]["itc"], 1.0);
    assert!(found[0]["itm"].is_null() && found[0]["mean_cosine"].is_null());
    assert!(found[1]["itc"].as_f64().unwrap() < 0.9999);
    let found = results(&place.ok(&[&args[..], &["--rerank", "6"]].concat()));
    assert_eq!(found[0]["image"], "p04.png");
    near(&found[0]["mean_cosine"], 1.0);
}

#[test]
fn an_index_grows_and_follows_its_pictures() {
    let place = Place::new(13);
    place.pictures("p", 4);
    let index = |more: &[&str]| {
        place.run(&[&["search", "index", "--model", "model", "--out", "x", "p"], more].concat())
    };
    let all = |text: &str| {
        place.ok(&["search", "query", "--index", "x", text, "--json", "--rerank", "0", "-k", "99"])
    };
    let first = index(&[]);
    assert!(first.code == 0 && first.err.contains("4 pictures, 4 added"), "{}", first.err);
    let again = index(&[]);
    assert!(
        again.err.contains("4 of 4 pictures are in the index") && again.err.contains("0 added"),
        "{}",
        again.err
    );
    // One new, one changed, one written again with the same bytes.
    place.picture("p/sub/new.png", 20);
    place.picture("p/p01.png", 21);
    place.picture("p/p02.png", 2);
    let third = index(&[]);
    assert!(third.err.contains("5 pictures, 2 added or renewed"), "{}", third.err);
    let grown = all("赤い傘");
    assert_eq!(results(&grown).len(), 5);
    // The same as an index made at once (places in the index, which order ties, aside).
    place.ok(&["search", "index", "--model", "model", "--out", "fresh", "p", "-q"]);
    let fresh =
        place.ok(&["search", "query", "--index", "fresh", "赤い傘", "--json", "--rerank", "0", "-k", "99"]);
    assert_eq!(results(&grown), results(&fresh));
    // Gone: kept, told of when looked at, forgotten when asked.
    std::fs::remove_file(place.path("p/p00.png")).unwrap();
    let ran = place.run(&["search", "query", "--index", "x", "赤い傘", "--html", "gone.html"]);
    assert!(
        ran.code == 0 && ran.err.contains("not looked at again") && ran.err.contains("p00.png"),
        "{}",
        ran.err
    );
    assert!(place.read("gone.html").contains("no longer there"));
    let pruned = index(&["--prune"]);
    assert!(pruned.err.contains("4 pictures, 0 added or renewed, 1 forgotten"), "{}", pruned.err);
    assert_eq!(results(&all("赤い傘")).len(), 4);
    // Changed since: not compared with what it was.
    place.picture("p/p02.png", 30);
    let ran = place.run(&["search", "query", "--index", "x", "犬"]);
    assert!(ran.err.contains("the picture as it was indexed"), "{}", ran.err);
}

#[test]
fn broken_pictures_are_told_of_and_the_others_indexed() {
    let place = Place::new(14);
    place.pictures("p", 2);
    broken().iter().for_each(|(name, bytes)| place.write(&format!("p/{name}"), bytes));
    let err = place.fails(3, &["search", "index", "--model", "model", "--out", "x", "p"]);
    assert!(err.contains("5 of 7 skipped") && err.contains("2 pictures, 2 added"), "{err}");
    assert_eq!(results(&place.ok(&["search", "query", "--index", "x", "犬", "--json"])).len(), 2);
}

#[test]
fn another_model_and_empty_queries_are_refused() {
    let place = Place::new(15);
    place.model("other", 16);
    place.pictures("p", 2);
    place.ok(&["search", "index", "--model", "model", "--out", "x", "p", "-q"]);
    let before = place.read("x/index.json");
    let err = place.fails(3, &["search", "index", "--model", "other", "--out", "x", "p"]);
    assert!(err.contains("--rebuild") && err.contains("one of model"), "{err}");
    assert_eq!(place.read("x/index.json"), before);
    let err = place.fails(3, &["search", "query", "--index", "x", "--model", "other", "犬"]);
    assert!(err.contains("search with the model that made it"), "{err}");
    for text in ["", "  ", "\u{3000}", "...!"] {
        assert!(
            place.fails(2, &["search", "query", "--index", "x", text]).contains("at least one word"),
            "{text:?}"
        );
    }
    place.fails(2, &["search", "query", "--index", "x"]);
    place.fails(2, &["search", "query", "--index", "x", "犬", "--image", "p/p00.png"]);
    assert!(place.fails(2, &["search", "query", "--index", "x", "犬", "-k", "0"]).contains("top-k"));
    assert!(place.fails(3, &["search", "query", "--index", "p", "犬"]).contains("search index"));
    assert!(place.fails(3, &["search", "query", "--index", "x", "--image", "no.png"]).contains("no.png"));
    let err = place.fails(2, &["search", "index", "--model", "model", "--out", "p", "p"]);
    assert!(err.contains("empty or new folder"), "{err}");
    assert!(
        place.fails(4, &["search", "index", "--model", "model", "--out", "/proc/x", "p"]).contains("/proc")
    );
    place.ok(&["search", "index", "--model", "other", "--out", "x", "p", "-q", "--rebuild"]);
    place.ok(&["search", "query", "--index", "x", "犬"]);
    // The model's folder has moved.
    std::fs::rename(place.path("other"), place.path("moved")).unwrap();
    assert!(place.fails(3, &["search", "query", "--index", "x", "犬"]).contains("--model"));
    place.ok(&["search", "query", "--index", "x", "--model", "moved", "犬"]);
}

#[test]
fn the_page_holds_everything_and_runs_nothing() {
    let place = Place::new(17);
    let hostile = ["<img src=x onerror=alert(1)>.png", "a&b\".png", "犬.png"];
    hostile.iter().enumerate().for_each(|(i, n)| place.picture(&format!("p/{n}"), i as u8));
    place.ok(&["search", "index", "--model", "model", "--out", "x", "p", "-q"]);
    place.ok(&["search", "query", "--index", "x", "<script>犬</script>", "--html", "found.html"]);
    let html = place.read("found.html");
    assert_eq!(html.matches("data:image/jpeg;base64,").count(), 3);
    assert!(html.contains("&lt;script&gt;犬&lt;/script&gt;") && html.contains("default-src 'none'"));
    for never in ["<script", "onerror=alert(1)>", "http://", "https://", "src=x"] {
        let raw = html.replace("&lt;img src=x onerror=alert(1)&gt;", "");
        assert!(!raw.contains(never), "{never}");
    }
    place.ok(&["search", "query", "--index", "x", "--image", "p/犬.png", "--html", "like.html"]);
    assert_eq!(
        place.read("like.html").matches("data:image/jpeg;base64,").count(),
        4,
        "the query's picture, too"
    );
    assert!(!names(&place.path("")).iter().any(|n| n.ends_with(".partial")));
}

#[test]
fn pictures_that_were_moved_or_copied_are_not_computed_again() {
    let place = Place::new(18);
    place.pictures("p", 4);
    let index = |folder: &str| place.run(&["search", "index", "--model", "model", "--out", "x", folder]);
    let found = || {
        let found = results(
            &place.ok(&["search", "query", "--index", "x", "犬", "--json", "--rerank", "0", "-k", "99"]),
        );
        let mut paths: Vec<String> = found.iter().map(|h| h["path"].as_str().unwrap().to_owned()).collect();
        paths.sort();
        (paths, found.iter().map(|h| h["itc"].clone()).collect::<Vec<_>>())
    };
    index("p");
    let (_, scores) = found();
    std::fs::rename(place.path("p"), place.path("moved")).unwrap();
    let ran = index("moved");
    assert!(ran.err.contains("4 pictures, 0 added or renewed, 4 moved"), "{}", ran.err);
    let (paths, now) = found();
    assert!(now == scores && paths.iter().all(|p| p.contains("/moved/")), "{paths:?}");
    std::fs::create_dir(place.path("copy")).unwrap();
    std::fs::copy(place.path("moved/p01.png"), place.path("copy/same.png")).unwrap();
    place.picture("copy/new.png", 30);
    let ran = index("copy");
    assert!(ran.err.contains("6 pictures, 2 added or renewed, 1 of them with the features"), "{}", ran.err);
    assert_eq!(found().0.len(), 6);
}

#[test]
fn a_query_never_ranks_with_another_models_numbers() {
    let place = Place::new(19);
    place.model("other", 20);
    place.pictures("p", 40);
    let query = |index: &str| {
        place.run(&["search", "query", "--index", index, "犬", "--json", "--rerank", "0", "-k", "99"])
    };
    let index = |model: &str, out: &str| {
        ["search", "index", "--model", model, "--out", out, "p", "-q", "--rebuild"].map(str::to_owned)
    };
    let make =
        |model: &str, out: &str| place.ok(&index(model, out).iter().map(String::as_str).collect::<Vec<_>>());
    make("model", "x");
    make("other", "y");
    let right = [query("x").out, query("y").out];
    assert_ne!(right[0], right[1]);
    let folder = place.dir.path().to_owned();
    let writer = std::thread::spawn(move || {
        for model in ["other", "model", "other", "model", "other"] {
            let ran = std::process::Command::new(env!("CARGO_BIN_EXE_qformer"))
                .current_dir(&folder)
                .args(["search", "index", "--model", model, "--out", "x", "p", "-q", "--rebuild"])
                .status();
            assert!(ran.unwrap().success());
        }
    });
    let mut asked = 0;
    while !writer.is_finished() {
        let ran = query("x");
        assert!(ran.code == 0 && right.contains(&ran.out), "{} {}", ran.out, ran.err);
        asked += 1;
    }
    writer.join().unwrap();
    assert!(asked > 3, "{asked}");
    assert_eq!(query("x").out, right[1]);
    assert_eq!(names(&place.path("x")).iter().filter(|n| n.starts_with("part-")).count(), 1);
}

#[test]
fn a_build_that_is_killed_leaves_the_old_index_and_is_continued() {
    let place = Place::new(26);
    place.model("other", 27);
    place.pictures("p", 3);
    place.ok(&["search", "index", "--model", "model", "--out", "x", "p", "-q"]);
    let query = || place.ok(&["search", "query", "--index", "x", "犬", "--json", "--rerank", "0"]);
    let before = query();
    place.pictures("more", 200);
    let rebuild = ["search", "index", "--model", "other", "--out", "x", "p", "-q", "--rebuild"];
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_qformer"))
        .current_dir(place.dir.path())
        .args(rebuild)
        .arg("more")
        .spawn()
        .unwrap();
    while !place.path("x/rebuild.json").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(query(), before);
    // Two writers: one is refused.
    let lock = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(place.path("x/index.lock"))
        .unwrap();
    lock.lock().unwrap();
    assert!(place.fails(4, &rebuild).contains("another process is writing to it"));
    drop(lock);
    assert_eq!(query(), before);
    place.ok(&rebuild);
    assert_ne!(query(), before);
    assert_eq!(
        names(&place.path("x")),
        ["half-000002.f16", "index.json", "index.lock", "part-000002.safetensors"]
    );
}
