//! `qformer features` and `qformer evaluate`.

mod commands;

use commands::{Place, broken, json};
use qformer::metrics::{Case, bleu, cider_d, rouge_l};
use qformer::nn::Pass;

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Shape and elements of a .npy file, read as NumPy's format description has it.
fn npy(bytes: &[u8]) -> (Vec<usize>, Vec<f32>) {
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert_eq!((10 + length) % 64, 0);
    let header = std::str::from_utf8(&bytes[10..10 + length]).unwrap();
    assert!(
        header.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (") && header.ends_with('\n')
    );
    let shape = header.split('(').nth(1).unwrap().split(')').next().unwrap();
    let shape =
        shape.split(',').filter(|s| !s.trim().is_empty()).map(|s| s.trim().parse().unwrap()).collect();
    (shape, floats(&bytes[10 + length..]))
}

fn close(got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        // The same sums in f32 in another order.
        assert!((f64::from(*g) - w).abs() <= 1e-4 * (1.0 + w.abs()), "{g}, by hand {w}");
    }
}

#[test]
fn features_are_the_models_in_both_formats() {
    let place = Place::new(21);
    place.pictures("p", 3);
    place.write("p/cut.png", &broken()[0].1);
    let model = place.open();
    let (m, pass) = (&model.model, Pass::inference(&model.params));
    let (q, c, e) = (m.config.num_query, m.config.hidden, m.config.embed_dim);
    let pictures: Vec<_> = (0..3)
        .map(|i| qformer::vision::load(place.path(&format!("p/p{i:02}.png")), Default::default()).unwrap())
        .collect();
    let images = m.image_features(&pass, &model.pixels(&pictures).unwrap()).unwrap();
    let base = ["features", "--model", "model", "-q", "--mode"];
    place.fails(3, &[&base[..], &["image", "p", "--out", "i.safetensors"]].concat());
    place.fails(3, &[&base[..], &["image", "p", "--out", "i.npy"]].concat());
    let bytes = std::fs::read(place.path("i.safetensors")).unwrap();
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (_, about) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let names = &about.metadata().as_ref().unwrap()["names"];
    assert_eq!(json(names), serde_json::json!(["p00.png", "p01.png", "p02.png"]));
    assert_eq!(json(&place.read("i_names.json")), json(names));
    for (name, file, width, want) in
        [("image_embeds", "i.npy", c, &images.embeds), ("image_embeds_proj", "i_proj.npy", e, &images.proj)]
    {
        let tensor = read.tensor(name).unwrap();
        assert_eq!(tensor.shape(), [3, q, width]);
        close(&floats(tensor.data()), &want.to_f64().unwrap());
        assert_eq!(
            npy(&std::fs::read(place.path(file)).unwrap()),
            (vec![3, q, width], floats(tensor.data()))
        );
    }
    // Texts of different lengths, padded with zeros.
    place.write("t.txt", "\u{feff}二匹の犬\n\n赤い傘\r\n");
    place.ok(&[&base[..], &["text", "--text", "空", "--texts", "t.txt", "--out", "t.npy"]].concat());
    let texts = ["空", "二匹の犬", "赤い傘"];
    assert_eq!(json(&place.read("t_names.json")), serde_json::json!(texts));
    let ids: Vec<Vec<u32>> = texts.iter().map(|t| model.tokenizer.caption(t, m.config.max_txt_len)).collect();
    let longest = ids.iter().map(Vec::len).max().unwrap();
    let (shape, mask) = npy(&std::fs::read(place.path("t_mask.npy")).unwrap());
    assert_eq!(shape, [3, longest]);
    let (shape, hidden) = npy(&std::fs::read(place.path("t.npy")).unwrap());
    assert_eq!(shape, [3, longest, c]);
    let features = m.text_features(&pass, &ids).unwrap();
    for (t, ids) in ids.iter().enumerate() {
        let rows = &hidden[t * longest * c..][..longest * c];
        close(&rows[..ids.len() * c], &features[t].embeds.to_f64().unwrap());
        assert!(rows[ids.len() * c..].iter().all(|x| *x == 0.0));
        assert_eq!(mask[t * longest..][..longest].iter().sum::<f32>(), ids.len() as f32);
    }
    // Every picture with every text.
    place.fails(3, &[&base[..], &["multimodal", "p", "--texts", "t.txt", "--out", "m.npy"]].concat());
    let (shape, hidden) = npy(&std::fs::read(place.path("m.npy")).unwrap());
    assert_eq!(shape, [6, q, c]);
    assert_eq!(json(&place.read("m_names.json"))[3], serde_json::json!(["p01.png", "赤い傘"]));
    let pairs: Vec<(usize, usize)> = (0..3).flat_map(|i| [(i, 1), (i, 2)]).collect();
    close(&hidden, &m.match_pairs(&pass, &images, &ids, &pairs).unwrap().hidden.to_f64().unwrap());
}

#[test]
fn features_refuse_what_makes_no_sense() {
    let place = Place::new(22);
    place.pictures("p", 1);
    let fails = |code, args: &[&str]| {
        place.fails(code, &[&["features", "--model", "model", "--mode"], args].concat())
    };
    assert!(fails(2, &["image", "p", "--out", "x.bin"]).contains(".npy"));
    assert!(fails(2, &["text", "--out", "x.npy"]).contains("--text"));
    assert!(fails(2, &["text", "p", "--text", "犬", "--out", "x.npy"]).contains("PICTURES"));
    assert!(fails(2, &["image", "p", "--text", "犬", "--out", "x.npy"]).contains("text"));
    assert!(fails(4, &["image", "p", "--out", "/proc/x/y.npy"]).contains("/proc"));
    place.write("p/cut.png", &broken()[0].1);
    assert!(fails(3, &["image", "p/cut.png", "--out", "x.npy"]).contains("cut.png"));
    assert!(!place.path("x.npy").exists());
}

/// What people wrote of picture i.
fn written(i: usize) -> [String; 2] {
    let word = ["犬", "猫", "丸", "四角", "人", "傘", "空", "海"][i];
    [format!("写真の{word}がある"), format!("{word}と二匹の赤い猫")]
}

fn annotations(place: &Place, n: usize) {
    let entry = |i: usize| {
        let captions = written(i);
        serde_json::json!({"image": format!("p{i:02}.png"), "image_id": i, "caption": captions})
    };
    place.write("val.json", serde_json::Value::Array((0..n).map(entry).collect()).to_string());
}

#[test]
fn retrieval_is_the_models_scores_ranked() {
    let place = Place::new(23);
    place.pictures("p", 8);
    annotations(&place, 8);
    let model = place.open();
    let (m, pass) = (&model.model, Pass::inference(&model.params));
    // By hand, all pairs: rank of the best right answer, ties counted against it.
    let load = |i| qformer::vision::load(place.path(&format!("p/p{i:02}.png")), Default::default()).unwrap();
    let images =
        m.image_features(&pass, &model.pixels(&(0..8).map(load).collect::<Vec<_>>()).unwrap()).unwrap();
    let texts: Vec<Vec<u32>> = (0..8).flat_map(written).map(|t| model.tokenizer.caption(&t, 35)).collect();
    let pairs = |i: usize| (0..16).map(|t| (i, t)).collect::<Vec<_>>();
    let itm = |i: usize| m.match_pairs(&pass, &images, &texts, &pairs(i)).unwrap().logits.to_f64().unwrap();
    let itm: Vec<Vec<f64>> = (0..8).map(|i| itm(i).chunks(2).map(|l| l[1]).collect()).collect();
    let cls = |t: usize| m.text_features(&pass, &texts[t..=t]).unwrap()[0].proj.slice_rows(0..1).unwrap();
    let q = m.config.num_query;
    let proj = |i: usize| images.proj.slice_rows(i * q..(i + 1) * q).unwrap();
    let itc = |i: usize, t: usize| m.itc_scores(&proj(i), &cls(t)).unwrap().item().unwrap();
    let itc: Vec<Vec<f64>> = (0..8).map(|i| (0..16).map(|t| itc(i, t)).collect()).collect();
    for k in [16, 3] {
        // A candidate has fewer than k better by itc; the others all get the same.
        let text = |i: usize, t: usize| {
            let better = itc[i].iter().filter(|x| **x > itc[i][t]).count();
            if better < k { itm[i][t] + itc[i][t] } else { -100.0 }
        };
        let picture = |i: usize, t: usize| {
            let better = itc.iter().filter(|x| x[t] > itc[i][t]).count();
            if better < k { itm[i][t] + itc[i][t] } else { -100.0 }
        };
        let wrong = |i: usize| {
            let best = text(i, 2 * i).max(text(i, 2 * i + 1));
            (0..16).filter(|t| t / 2 != i && text(i, *t) >= best).count()
        };
        let txt: Vec<usize> = (0..8).map(wrong).collect();
        let wrong = |t: usize| (0..8).filter(|i| *i != t / 2 && picture(*i, t) >= picture(t / 2, t)).count();
        let img: Vec<usize> = (0..16).map(wrong).collect();
        let at = |n: usize, ranks: &[usize]| {
            100.0 * ranks.iter().filter(|r| **r < n).count() as f64 / ranks.len() as f64
        };
        let k = k.to_string();
        let args = [
            "evaluate",
            "--model",
            "model",
            "--captions",
            "val.json",
            "--images",
            "p",
            "--json",
            "-q",
            "--only",
            "retrieval",
            "--k-test",
            &k,
        ];
        let got = json(&place.ok(&args));
        for (key, n, ranks) in [
            ("txt_r1", 1, &txt),
            ("txt_r5", 5, &txt),
            ("txt_r10", 10, &txt),
            ("img_r1", 1, &img),
            ("img_r5", 5, &img),
            ("img_r10", 10, &img),
        ] {
            assert_eq!(got[key].as_f64().unwrap(), at(n, ranks), "{key} of {k}: {got}");
        }
        assert_eq!((&got["pictures"], &got["captions"], &got["skipped"]), (&8.into(), &16.into(), &0.into()));
        assert!(got.get("bleu_1").is_none());
    }
}

#[test]
fn captions_are_judged_with_or_without_the_model() {
    let place = Place::new(24);
    place.pictures("p", 4);
    annotations(&place, 4);
    place.ok(&["caption", "--model", "model", "p", "--out", "c.json", "--max-length", "12", "-q"]);
    let base = ["evaluate", "--captions", "val.json", "--json"];
    let with = json(
        &place.ok(&[&base[..], &["--model", "model", "--images", "p", "-q", "--max-length", "12"]].concat()),
    );
    let without = json(&place.ok(&[&base[..], &["--results", "c.json"]].concat()));
    for key in ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"] {
        assert_eq!(with[key], without[key], "{key}");
    }
    // Known captions: what the metrics say of the words, joined and cut the same way.
    let said = ["写真 の 犬 が ある", "赤い猫", "丸と二匹の赤い猫.", "空"];
    let entries: Vec<_> =
        said.iter().enumerate().map(|(i, c)| serde_json::json!({"image_id": i, "caption": c})).collect();
    place.write("said.json", serde_json::Value::Array(entries).to_string());
    let got = json(&place.ok(&[&base[..], &["--results", "said.json"]].concat()));
    let tokenizer = place.open().tokenizer;
    let words = |t: &str| tokenizer.words(t);
    let cases: Vec<Case> = (["写真の犬がある", "赤い猫", "丸と二匹の赤い猫", "空"].iter().enumerate())
        .map(|(i, c)| Case {
            hypothesis: words(c),
            references: written(i).iter().map(|w| words(w)).collect(),
        })
        .collect();
    let bleu = bleu(&cases).unwrap().corpus;
    for (key, want) in [
        ("bleu_1", bleu[0]),
        ("bleu_4", bleu[3]),
        ("rouge_l", rouge_l(&cases).unwrap().mean),
        ("cider_d", cider_d(&cases).unwrap().mean),
    ] {
        assert!((got[key].as_f64().unwrap() - want).abs() < 1e-12, "{key}: {got}, want {want}");
    }
    let table = place.ok(&["evaluate", "--captions", "val.json", "--results", "said.json"]);
    assert!(
        table.contains("BLEU-1") && table.contains("CIDEr-D") && table.contains("4 pictures, 8 captions"),
        "{table}"
    );
}

#[test]
fn what_is_missing_is_counted() {
    let place = Place::new(25);
    place.pictures("p", 4);
    annotations(&place, 4);
    place.write(
        "part.json",
        r#"[{"image": "p01.png", "caption": ["犬"]}, {"image": "other.png", "caption": ["猫"]}]"#,
    );
    let ran = place.run(&["evaluate", "--captions", "val.json", "--results", "part.json", "--json"]);
    assert!(ran.code == 3 && ran.err.contains("none of 3 of 4"), "{}", ran.err);
    assert_eq!((&json(&ran.out)["pictures"], &json(&ran.out)["skipped"]), (&1.into(), &3.into()));
    place.write("none.json", r#"[{"image": "photos/p01.png", "caption": ["犬"]}]"#);
    let err = place.fails(3, &["evaluate", "--captions", "val.json", "--results", "none.json"]);
    assert!(err.contains("p00.png") && err.contains("--relative-to"), "{err}");
    // A broken picture.
    place.write("p/p02.png", &broken()[0].1);
    let args = [
        "evaluate",
        "--model",
        "model",
        "--captions",
        "val.json",
        "--images",
        "p",
        "--json",
        "--max-length",
        "12",
    ];
    let ran = place.run(&args);
    assert!(ran.code == 3 && ran.err.contains("1 of 4 skipped"), "{}", ran.err);
    assert_eq!((&json(&ran.out)["pictures"], &json(&ran.out)["captions"]), (&3.into(), &6.into()));
    std::fs::remove_file(place.path("p/p02.png")).unwrap();
    assert!(place.fails(3, &args).contains("missing"));
    place.fails(2, &["evaluate", "--captions", "val.json"]);
    place.fails(2, &["evaluate", "--captions", "val.json", "--model", "model"]);
}

/// One caption of each picture is judged: of a list the first, of two entries neither.
#[test]
fn results_with_two_captions_of_a_picture_are_refused_by_its_name() {
    let place = Place::new(24);
    place.write(
        "val.json",
        r#"[{"image": "a.png", "caption": "赤い丸が一つ"}, {"image": "b.png", "caption": "青い四角が二つ"}]"#,
    );
    let evaluate = ["evaluate", "--captions", "val.json", "--json", "--results"];
    let entry = |name: &str, caption: &str| format!("{{\"image\": \"{name}\", \"caption\": {caption}}}\n");
    let (a, b) = (entry("a.png", "[\"赤い丸が一つ\", \"緑の星\"]"), entry("b.png", "\"青い四角が二つ\""));
    place.write("r.jsonl", format!("{a}{b}{}", entry("a.png", "\"赤い丸が一つ\"")));
    assert!(json(&place.ok(&[&evaluate[..], &["r.jsonl"]].concat()))["bleu_1"].as_f64().unwrap() > 0.999_99);
    place.write("r.jsonl", format!("{a}{b}{}", entry("a.png", "\"緑の星\"")));
    let error = place.fails(3, &[&evaluate[..], &["r.jsonl"]].concat());
    assert!(error.contains("\"a.png\"") && error.contains("緑の星"), "{error}");
    place.write("r.json", r#"[{"image": "a.png", "image_id": 1, "caption": "x"}, {"image": "a.png", "image_id": 2, "caption": "y"}]"#);
    assert!(place.fails(3, &[&evaluate[..], &["r.json"]].concat()).contains("\"a.png\""));
    // Ranked lines, as `caption` writes them.
    place
        .write("r.csv", "image,rank,caption\na.png,1,赤い丸が一つ\na.png,2,緑の星\nb.png,1,青い四角が二つ\n");
    assert!(json(&place.ok(&[&evaluate[..], &["r.csv"]].concat()))["bleu_1"].as_f64().unwrap() > 0.999_99);
}

/// LAVIS's own files: results by image id, ground truth whose annotations carry their image's id and whose images have no
/// names; captions beyond 50 words, written with spaces or without.
#[test]
fn results_are_judged_against_lavis_ground_truth_and_to_their_end() {
    let place = Place::new(25);
    let long = "二匹 の 犬 が 道路 で フリスビー を し て いる ".repeat(8);
    let joined = long.replace(' ', "");
    let truth = serde_json::json!({
        "annotations": [
            {"image_id": 9, "caption": joined, "id": 9}, {"image_id": 25, "caption": "青い四角", "id": 25},
            {"image_id": 9, "caption": "犬", "id": 9}, {"image_id": 25, "caption": "四角", "id": 25}],
        "images": [{"id": 9}, {"id": 25}]
    });
    place.write("gt.json", truth.to_string());
    let results = |id: serde_json::Value, caption: &str| {
        serde_json::json!([{"image_id": id, "caption": caption}, {"caption": "青い 四角", "image_id": 25}])
            .to_string()
    };
    for (id, caption) in
        [(serde_json::json!(9), &long), (serde_json::json!("9"), &joined), (serde_json::json!(9.0), &long)]
    {
        place.write("r.json", results(id, caption));
        let report = json(&place.ok(&["evaluate", "--results", "r.json", "--captions", "gt.json", "--json"]));
        assert!(report["bleu_4"].as_f64().unwrap() > 0.999_99, "{report}");
        assert_eq!((report["pictures"].as_u64(), report["captions"].as_u64()), (Some(2), Some(4)));
    }
}

/// The settings of LAVIS's ret_coco_eval.yaml become flags; flags that are given win; what cannot be is refused at once.
#[test]
fn an_evaluation_of_lavis_is_configured_by_its_own_file() {
    let place = Place::new(26);
    place.pictures("p", 4);
    annotations(&place, 4);
    let side = place.open().model.config.image_size;
    let config = format!(
        "model:\n  arch: blip2_Japanese\n  model_type: pretrain\n  use_grad_checkpoint: False\ndatasets:\n  coco_retrieval:\n    vis_processor:\n        \
         train:\n          name: \"blip_image_train\"\n          image_size: {side}\n        eval:\n          name: \"blip_image_eval\"\n          \
         image_size: {side}\n    text_processor:\n        train:\n          name: \"blip_caption\"\n        eval:\n          name: \"blip_caption\"\n    \
         build_info:\n        images:\n            storage: p\n        annotations:\n          test:\n            storage: [val.json]\nrun:\n  task: retrieval\n  \
         num_workers: 4\n  batch_size_train: 16\n  batch_size_eval: 2\n  train_splits: [\"train\"]\n  valid_splits: [\"val\"]\n  test_splits: [\"test\"]\n  \
         device: \"cuda\"\n  world_size: 1\n  dist_url: \"env://\"\n  distributed: True\n  use_dist_eval_sampler: False\n  k_test: 3\n  seed: 42\n  \
         output_dir: \"output\"\n  evaluate: True\n"
    );
    place.write("ret.yaml", &config);
    let by_file = json(&place.ok(&["evaluate", "ret.yaml", "--model", "model", "--json", "-q"]));
    let flags = [
        "evaluate",
        "--model",
        "model",
        "--images",
        "p",
        "--captions",
        "val.json",
        "--only",
        "retrieval",
        "--k-test",
        "3",
        "--json",
        "-q",
    ];
    assert_eq!(by_file, json(&place.ok(&flags)));
    assert!(by_file["k_test"] == 3 && by_file.get("bleu_1").is_none());
    let other =
        json(&place.ok(&["evaluate", "ret.yaml", "--model", "model", "--json", "-q", "--k-test", "2"]));
    assert_eq!(other["k_test"], 2);
    place.write("ret.yaml", config.replace(&format!("image_size: {side}"), "image_size: 364"));
    assert!(place.fails(2, &["evaluate", "ret.yaml", "--model", "model", "-q"]).contains("364"));
    place.write(
        "ret.yaml",
        config.replace("task: retrieval", "task: vqa").replace("blip2_Japanese", "blip2_opt"),
    );
    let error = place.fails(2, &["evaluate", "ret.yaml", "--model", "model", "-q"]);
    assert!(
        error.contains("2 settings") && error.contains("\"vqa\"") && error.contains("\"blip2_opt\""),
        "{error}"
    );
}
