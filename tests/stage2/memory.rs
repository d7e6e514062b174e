//! What may change a second stage's memory and time and none of its numbers: layers computed twice, image tokens that are kept.

use super::{Place, train, world};

fn bytes(place: &Place, run: &str) -> Vec<u8> {
    std::fs::read(place.path(&format!("{run}/model/model.safetensors"))).unwrap()
}

const BEGIN: [&str; 4] = ["--start", "model", "--llm", "llm"];

/// Dropout draws the same numbers the second time. By `--set`, and from a file.
#[test]
fn layers_computed_twice_give_the_same_bytes() {
    let place = world();
    for (name, more) in [
        ("plain", &["--prompt", "画像の説明:"][..]),
        ("dropped", &["--set", "llm_dropout=0.2", "--set", "accumulate=2"]),
    ] {
        let run = |out: &str, recompute: &str| {
            place.ok(&train(out, &[&BEGIN[..], more, &["--set", "steps=3", "--set", recompute]].concat()));
            bytes(&place, out)
        };
        let [on, off] = ["on", "off"].map(|way| run(&format!("{name}-{way}"), &format!("recompute={way}")));
        assert!(on == off, "{name}: other bytes");
        assert!(place.read(&format!("{name}-on/config.yaml")).contains("recompute: \"on\""));
    }
    place.write("on.yaml", "recompute: on\nllm_dropout: 0.2\naccumulate: 2\n");
    let mut of_file = train("file", &[&BEGIN[..], &["--set", "steps=3"]].concat());
    of_file.insert(1, "on.yaml");
    place.ok(&of_file);
    assert!(place.read("file/config.yaml").contains("recompute: \"on\""));
    assert!(bytes(&place, "file") == bytes(&place, "dropped-off"), "other bytes from a file");
}

/// All crops of such pictures are the whole of them, so what is kept of one is what every step draws; a cache that a first stage
/// filled serves the second.
#[test]
fn tokens_that_are_kept_are_those_of_the_pictures() {
    let place = world();
    for i in 0..6 {
        place.picture(&format!("photos/p{i:02}.png"), 7 * i + 4);
    }
    let whole = ["--set", "crop_scale=[1.0, 1.0]", "--set", "crop_ratio=[1.0, 1.0]", "--set", "flip=0"];
    let more = [&BEGIN[..], &whole, &["--prompt", "画像の説明:", "--set", "steps=4"]].concat();
    place.ok(&train("plain", &more));
    let exact = ["--cache", "kept", "--set", "cache_dtype=f32"];
    let first =
        [&["--start", "model"][..], &whole, &exact, &["--set", "model.max_txt_len=16", "--set", "steps=1"]]
            .concat();
    place.ok(&train("first", &first));
    let kept = std::fs::read(place.path("kept/tokens")).unwrap();
    place.ok(&train("cached", &[&more[..], &exact].concat()));
    assert!(bytes(&place, "plain") == bytes(&place, "cached"), "other bytes from a cache");
    assert!(kept == std::fs::read(place.path("kept/tokens")).unwrap(), "the cache was filled again");
    // In f16 they are rounded.
    place.ok(&train("rounded", &[&more[..], &["--cache", "half"]].concat()));
    assert!(bytes(&place, "plain") != bytes(&place, "rounded"));
    // Stopped and resumed, from the cache.
    place.ok(&train("again", &[&more[..], &exact, &["--steps", "2"]].concat()));
    place.ok(&["train", "--resume", "--out", "again", "--quiet"]);
    assert!(bytes(&place, "again") == bytes(&place, "cached"), "a resumed run has other bytes");
}
