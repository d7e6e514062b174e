//! The commands around a training: doctor and report.

use super::world::World;
use serde_json::{Value, json};

#[test]
fn doctor_tells_the_healthy_from_the_sick() {
    let world = World::new();
    let ask = |more: &[&str]| {
        let base =
            ["doctor", "--images", "images", "--captions", "captions.json", "--batch", "2", "--seed", "1"];
        world.run(&[&base[..], more].concat())
    };
    let healthy = ask(&["--profile", "lavis-image-id"]).good();
    assert!(
        healthy.text().contains("24 pictures, 48 captions") && !healthy.text().contains("!!"),
        "{}",
        healthy.text()
    );

    let png = std::fs::read(world.path("images/05.png")).unwrap();
    world.write("images/05.png", &png[..png.len() / 2]);
    std::fs::copy(world.path("images/02.png"), world.path("images/03.png")).unwrap();
    let sick = ask(&["--profile", "lavis-image-id"]);
    sick.refused(3, &["1 broken pictures", "1 pictures with another's bytes"]);
    assert!(sick.text().contains("05.png"), "{}", sick.text());
    let json = ask(&["--json"]);
    assert_eq!(json.code(), Some(3));
    let seen: Value = serde_json::from_str(&json.text()).unwrap();
    let broken =
        seen["findings"].as_array().unwrap().iter().find(|f| f["what"] == "broken pictures").unwrap();
    assert_eq!(broken["count"], 1);

    // with a vocabulary that lacks a character, and a length that cuts
    ask(&["--vocab", "nowhere"]).refused(3, &["nowhere"]);
    ask(&["--max-txt-len", "4"]).refused(3, &["captions longer than the model reads"]);
}

#[test]
fn report_is_one_page_with_curves_settings_and_captions() {
    let world = World::new();
    let v = [
        "--set",
        "validation.images=images",
        "--set",
        "validation.captions=captions.json",
        "--set",
        "eval_every=2",
    ];
    world.train("run", &[&v[..], &["--steps", "6"]].concat()).good();
    world.write(
        "out.json",
        json!([
            {"image": "00.png", "caption": ["<b>赤い丸</b>", "丸"]},
            {"image": "gone.png", "caption": "何もない"},
            {"image": "../captions.json", "caption": "外"}
        ])
        .to_string(),
    );
    let done = world.run(&["report", "run", "--captions", "out.json", "--images", "images"]).good();
    assert_eq!(done.text().trim(), "run/report.html");
    let html = std::fs::read_to_string(world.path("run/report.html")).unwrap();
    for part in [
        "<svg",
        "best validation loss",
        "init_lr: 0.0001",
        "data:image/jpeg;base64,",
        "&lt;b&gt;赤い丸&lt;/b&gt;",
        "何もない",
    ] {
        assert!(html.contains(part), "no {part} in the page");
    }
    assert!(html.contains("outside the folder of pictures") && html.matches("data:image/jpeg").count() == 1);
    for outside in ["http:", "https:", "<script", "src=\"r", "<link", "@import", "url("] {
        assert!(!html.contains(outside), "{outside} in the page");
    }
    world.run(&["report", "nowhere"]).refused(3, &["nowhere", "--out"]);
    world.write("out.json", "[{\"image\": 3}]");
    world.run(&["report", "run", "--captions", "out.json"]).refused(3, &["out.json", "caption"]);
}
