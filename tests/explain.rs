//! `qformer explain`: maps of a number over a picture. Their numbers are LAVIS's by `tests/lavis/explain-small.safetensors`.

mod commands;

use commands::Place;
use qformer::model::{Attended, Number};
use qformer::nn::Pass;

/// The numbers of a .npy file of f32, and its shape as it is written there.
fn npy(place: &Place, name: &str) -> (Vec<f32>, String) {
    let bytes = std::fs::read(place.path(name)).unwrap();
    let end = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let head = String::from_utf8(bytes[10..end].to_vec()).unwrap();
    let shape = head.split("'shape': ").nth(1).unwrap().split(", }").next().unwrap().to_owned();
    let numbers = bytes[end..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    (numbers, shape)
}

/// What the library says of a picture and a text.
fn explained(place: &Place, picture: &str, text: &str, number: &Number) -> (f64, Vec<Attended>) {
    let model = place.open();
    let pixels =
        model.pixels(&[qformer::vision::load(place.path(picture), Default::default()).unwrap()]).unwrap();
    let pass = Pass::inference(&model.params);
    let tokens = model.model.vit_tokens(&pass, &pixels, |_, _| {}).unwrap();
    let ids = model.tokenizer.caption(text, model.model.config.max_txt_len);
    let found = model.model.explain(&model.params, &tokens, &ids, number).unwrap();
    (found.value, found.layers)
}

#[test]
fn a_map_is_attention_times_positive_gradient() {
    let place = Place::new(31);
    place.picture("a.png", 3);
    let text = "赤い傘の人";
    let (value, layers) = explained(&place, "a.png", text, &Number::Match);
    let line = place.ok(&["explain", "--model", "model", "a.png", text, "--out", "a.npy", "-q"]);
    let last = layers.last().unwrap();
    assert_eq!(line.trim(), format!("itm of {text:?}: {value:.4}, layer {}", last.layer));
    let (map, shape) = npy(&place, "a.npy");
    let side = (last.tokens - 1).isqrt();
    assert_eq!(shape, format!("({side}, {side})"));
    // By hand: the class token comes first and is left out.
    let rows = last.heads * last.queries;
    for (patch, got) in map.iter().enumerate() {
        let of = |row: usize| {
            let at = row * last.tokens + 1 + patch;
            f64::from(last.attention[at]) * f64::from(last.gradient[at]).max(0.0)
        };
        let want = (0..rows).map(of).sum::<f64>() / rows as f64;
        assert!((f64::from(*got) - want).abs() <= 1e-6 * want.abs().max(1e-6), "{patch}: {got}, {want}");
    }
    assert!(map.iter().any(|v| *v > 0.0));
    for row in last.attention.chunks(last.tokens) {
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }
    place.ok(&["explain", "--model", "model", "a.png", text, "--out", "q.npy", "--query", "2", "-q"]);
    assert_eq!(npy(&place, "q.npy").0, last.grad_cam(Some(2)).unwrap());
    let first = &layers[0];
    let k = first.layer.to_string();
    place.ok(&["explain", "--model", "model", "a.png", text, "--out", "l.npy", "--layer", &k, "-q"]);
    assert_eq!(npy(&place, "l.npy").0, first.grad_cam(None).unwrap());
}

/// The gradient of what a change of an attention's values does: the numbers are those that other commands report.
#[test]
fn numbers_are_those_of_other_commands() {
    let place = Place::new(32);
    place.picture("p/a.png", 5);
    place.ok(&["search", "index", "--model", "model", "--out", "x", "p", "-q"]);
    let text = "二匹の犬";
    let found = place.ok(&["search", "query", "--index", "x", text, "--json"]);
    let found = commands::json(&found)["results"][0].clone();
    for (of, number) in [("itm", Number::Match), ("itc", Number::Similarity)] {
        let want = found[of].as_f64().unwrap();
        let got = explained(&place, "p/a.png", text, &number).0;
        assert!((got - want).abs() <= 1e-4 * (1.0 + want.abs()), "{of}: {got}, {want}");
    }
    // A caption's log-probability is the sum of its words' and the end's, over its tokens (as `caption` reports it).
    let ids = place.open().tokenizer.caption(text, 16);
    let whole = explained(&place, "p/a.png", text, &Number::Tokens(1..ids.len())).0;
    let each: f64 =
        (1..ids.len()).map(|t| explained(&place, "p/a.png", text, &Number::Tokens(t..t + 1)).0).sum();
    assert!((whole - each).abs() < 1e-4, "{whole}, {each}");
}

#[test]
fn a_word_of_a_caption_and_the_forms_of_a_map() {
    let place = Place::new(33);
    place.picture("a.png", 6);
    let explain =
        |more: &[&str]| place.ok(&[&["explain", "--model", "model", "a.png"], more, &["-q"]].concat());
    let line = explain(&["二匹の犬", "--of", "word:4", "--out", "deep/w.png"]);
    assert!(line.starts_with("log-probability of \"犬\" of"), "{line}");
    let map = qformer::vision::load(place.path("deep/w.png"), Default::default()).unwrap();
    let own = qformer::vision::load(place.path("a.png"), Default::default()).unwrap();
    assert_eq!((map.width, map.height), (own.width, own.height));
    assert_ne!(map.rgb, own.rgb);
    explain(&["<script>犬", "--out", "w.html"]);
    let page = place.read("w.html");
    assert!(page.contains("&lt;script&gt;犬") && !page.contains("<script"), "{page}");
    assert!(page.contains("default-src 'none'"));
    let model = place.open();
    let config = &model.model.config;
    assert_eq!(page.matches("<img ").count(), 2 + config.heads + config.num_query);
    // Without a text: of the caption that the model writes.
    let caption = place.ok(&["caption", "--model", "model", "a.png", "-q"]);
    let line = explain(&["--out", "c.npy"]);
    assert!(line.contains(&format!("{:?}", caption.trim())), "{line}: {caption}");
}

#[test]
fn what_cannot_be_explained() {
    let place = Place::new(34);
    place.picture("a.png", 6);
    let before = std::fs::read(place.path("a.png")).unwrap();
    let fails = |more: &[&str]| place.fails(2, &[&["explain", "--model", "model", "a.png"], more].concat());
    assert!(fails(&["犬", "--out", "a.jpg"]).contains(".png, .html or .npy"));
    assert!(fails(&["犬", "--out", "a.png"]).contains("another file than the picture"));
    assert!(fails(&["犬", "--out", "b.png", "--layer", "1"]).contains("a layer with cross-attention: 0"));
    assert!(fails(&["犬", "--out", "b.png", "--query", "99"]).contains("a query token from 0 to"));
    assert!(fails(&["二匹の犬", "--out", "b.png", "--of", "word:9"]).contains("1 二, 2 匹, 3 の, 4 犬"));
    assert!(fails(&["犬", "--out", "b.png", "--of", "word:0"]).contains("word:N"));
    place.fails(3, &["explain", "--model", "model", "none.png", "犬", "--out", "b.png"]);
    assert!(!place.path("b.png").exists());
    assert_eq!(std::fs::read(place.path("a.png")).unwrap(), before);
}

/// The map lies where the model looked, the picture is shown as a person sees it.
#[test]
fn a_turned_picture_is_shown_upright() {
    let place = Place::new(35);
    // Orientation 6: the stored picture's last row is the upright one's first column.
    let exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let crc = crc32fast::hash(&[&b"eXIf"[..], exif].concat()).to_be_bytes();
    let chunk = [&(exif.len() as u32).to_be_bytes()[..], b"eXIf", exif, &crc].concat();
    let mut png = qformer::vision::encode_png(30, 20, &[90; 30 * 20 * 3]).unwrap();
    png.splice(33..33, chunk);
    place.write("a.png", png);
    let upright = qformer::vision::load(place.path("a.png"), qformer::vision::Turn::Upright).unwrap();
    place.ok(&["explain", "--model", "model", "a.png", "犬", "--out", "m.png", "-q"]);
    let map = qformer::vision::load(place.path("m.png"), Default::default()).unwrap();
    assert_eq!((map.width, map.height), (20, 30));
    assert_eq!((map.width, map.height), (upright.width, upright.height));
}
