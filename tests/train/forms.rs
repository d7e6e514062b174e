//! The forms in which the field writes captions: each is read, or one error says what was seen and what is understood.

use qformer::data::Dataset;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const NUMBERS: [&str; 4] = ["000000000009", "000000000025", "000000000030", "000000000034"];

struct Place(TempDir);

impl Place {
    /// Four pictures by COCO's names of 2017; nothing here decodes them.
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        std::fs::create_dir(place.path("images")).unwrap();
        for number in NUMBERS {
            std::fs::write(place.path(&format!("images/{number}.jpg")), number).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str, text: impl AsRef<[u8]>) -> qformer::Result<Dataset> {
        std::fs::write(self.path(name), text).unwrap();
        Dataset::read(&self.path(name), &self.path("images"), 0.0)
    }

    fn refused(&self, name: &str, text: impl AsRef<[u8]>, words: &[&str]) {
        let error = self.read(name, text).unwrap_err();
        let message = error.to_string();
        assert_eq!(error.exit_code(), 3, "{message}");
        for word in words.iter().chain(&[name.split('#').next().unwrap()]) {
            assert!(message.contains(word), "no {word:?} in {message}");
        }
    }
}

fn captions(data: &Dataset) -> Vec<(&str, Vec<&str>)> {
    let name = |path: &Path| NUMBERS.into_iter().find(|n| path.ends_with(format!("{n}.jpg"))).unwrap();
    data.samples
        .iter()
        .map(|s| {
            let captions = s.captions.iter().map(|c| c.trim()).collect();
            (name(&s.image().path()), captions)
        })
        .collect()
}

/// The same two captions of one picture and one of another, in every form.
#[test]
fn every_form_gives_the_same_captions() {
    let place = Place::new();
    let below = place.path("images").canonicalize().unwrap().display().to_string();
    let [a, b] = [NUMBERS[0], NUMBERS[1]];
    let lines = format!(
        "{{\"image\": \"{a}.jpg\", \"caption\": [\"犬\", \"猫\"], \"log_prob\": [-1.5, NaN]}}\n{{\"image\": \"{b}.jpg\", \"caption\": [\"丸\"]}}\n"
    );
    let forms = [
        ("lavis.json", format!(r#"[{{"image": "{a}.jpg", "caption": "犬"}}, {{"caption": ["丸"], "image": "{b}.jpg"}}, {{"image": "{a}.jpg", "caption": "猫"}}]"#)),
        ("own.jsonl", lines.clone()),
        ("own.json", lines),
        ("one.jsonl", format!(r#"{{"file_name": "{a}.jpg", "text": ["犬", "猫"]}}{{"file_name": "{b}.jpg", "text": "丸"}}"#)),
        ("ids.json", r#"[{"image_id": 9, "caption": ["犬", "猫"]}, {"image_id": "25", "caption": "丸"}]"#.into()),
        ("absolute.json", format!(r#"[{{"image": "{below}/{a}.jpg", "caption": ["犬", "猫"]}}, {{"image": "{b}.jpg", "caption": "丸"}}]"#)),
        ("coco.json", format!(r#"{{"info": {{"year": 2014}}, "images": [{{"id": 9, "file_name": "COCO_train2014_{a}.jpg"}}, {{"id": 25, "file_name": "COCO_val2014_{b}.jpg"}}],
            "annotations": [{{"id": 1, "image_id": 9, "caption": "犬"}}, {{"id": 2, "image_id": 25, "caption": "丸"}}, {{"id": 3, "image_id": 9, "caption": "猫"}}]}}"#)),
        ("version.json", format!(r#"{{"version": 2, "annotations": [{{"id": 1, "image_id": 9, "caption": "犬"}}, {{"id": 2, "image_id": 25, "caption": "丸"}}, {{"id": 3, "image_id": 9, "caption": "猫"}}],
            "images": [{{"id": 9, "file_name": "{a}.jpg"}}, {{"id": 25, "file_name": "{b}.jpg"}}]}}"#)),
        ("truth.json", r#"{"annotations": [{"image_id": 9, "caption": "犬", "id": 9}, {"image_id": 25, "caption": "丸", "id": 25}, {"image_id": 9, "caption": "猫", "id": 9}],
            "images": [{"id": 9}, {"id": 25}]}"#.into()),
        ("floats.json", r#"{"annotations": [{"image_id": 9.0, "caption": "犬", "id": 1.0}, {"image_id": 25.0, "caption": "丸", "id": 2}, {"image_id": 9, "caption": "猫", "id": 3}],
            "images": [{"id": 9, "x": Infinity}, {"id": 25.0}]}"#.into()),
        ("dataset_coco.json", format!(r#"{{"images": [{{"filepath": "train2014", "sentids": [1, 2], "filename": "COCO_train2014_{a}.jpg", "imgid": 0, "split": "train",
            "sentences": [{{"tokens": ["a"], "raw": "犬", "imgid": 0, "sentid": 1}}, {{"raw": "猫", "sentid": 2}}], "cocoid": 9}},
            {{"filepath": "val2014", "filename": "COCO_val2014_{b}.jpg", "imgid": 1, "split": "train", "sentences": [{{"raw": "丸"}}], "cocoid": 25}}], "dataset": "coco"}}"#)),
        ("names.json", format!(r#"{{"{a}.jpg": ["犬", "猫"], "{b}.jpg": "丸"}}"#)),
        ("kohya.json", format!(r#"{{"{a}.jpg": [{{"caption": "犬"}}, {{"caption": "猫"}}], "{b}.jpg": {{"caption": "丸", "tags": "x"}}}}"#)),
        ("a.csv", format!("image,caption\n{a}.jpg,犬\n{b}.jpg,\"丸\"\n{a}.jpg,猫\n")),
        ("metadata.csv", format!("file_name,x,text\r\n{a}.jpg,1,犬\r\n{b}.jpg,2,丸\r\n{a}.jpg,3,猫\r\n")),
        ("captions.txt", format!("image,caption\n{a}.jpg,犬\n{b}.jpg,丸\n{a}.jpg,猫\n")),
        ("open_clip.csv", format!("filepath\ttitle\n{a}.jpg\t犬\n{b}.jpg\t丸\n{a}.jpg\t猫\n")),
        ("results.csv", format!("image_name| comment_number| comment\n{a}.jpg| 0| 犬 \n{b}.jpg| 0| 丸\n{a}.jpg| 1| 猫\n")),
        ("results.token", format!("{a}.jpg#0\t犬\n{b}.jpg#0\t丸\n{a}.jpg#1\t猫\n")),
    ];
    for (name, text) in forms {
        for (mark, kind) in [("", "plain"), ("\u{feff}", "with a byte order mark")] {
            let data =
                place.read(name, format!("{mark}{text}")).unwrap_or_else(|e| panic!("{name} {kind}: {e}"));
            assert_eq!(captions(&data), [(a, vec!["犬", "猫"]), (b, vec!["丸"])], "{name} {kind}");
            assert_eq!((data.report.pictures, data.report.captions), (2, 3), "{name}");
        }
    }
}

#[test]
fn what_is_skipped_is_counted_and_named() {
    let place = Place::new();
    let [a, b] = [NUMBERS[0], NUMBERS[1]];
    let text = format!(
        r#"[{{"image": "{a}.jpg", "caption": null}}, {{"image": "{a}.jpg", "caption": "犬"}}, {{"image": "{a}.jpg", "caption": NaN}}, {{"image": "{b}.jpg", "caption": ["丸", null, " "]}}]"#
    );
    let data = place.read("null.json", text).unwrap();
    assert_eq!(captions(&data), [(a, vec!["犬"]), (b, vec!["丸"])]);
    assert_eq!(data.report.empty, 4);
    assert!(data.report.examples[0].contains("null caption of \"000000000009.jpg\""), "{:?}", data.report);
    // A line of Flickr30k's table lacks its last bar.
    let table =
        format!("image_name| comment_number| comment\n{a}.jpg| 0| 犬\n{b}.jpg| 4   丸 .\n{b}.jpg| 1| \"丸\n");
    let data = place.read("results.csv", table).unwrap();
    assert_eq!(captions(&data), [(a, vec!["犬"]), (b, vec!["\"丸"])]);
    assert_eq!(data.report.empty, 1);
    // Pictures under another COCO name are counted.
    let text = format!(
        r#"[{{"image": "val2014/COCO_val2014_{a}.jpg", "caption": "犬"}}, {{"image": "{b}.jpg", "caption": "丸"}}]"#
    );
    let data = place.read("renamed.json", text).unwrap();
    assert_eq!(data.report.renamed, 1);
    assert!(data.report.to_string().contains("another COCO name: 1 pictures"), "{}", data.report);
}

#[test]
fn a_split_of_karpathys_file_is_chosen_by_name() {
    let place = Place::new();
    let image = |n: usize, split: &str| {
        format!(
            r#"{{"filename": "{}.jpg", "split": "{split}", "sentences": [{{"raw": "犬{n}"}}], "cocoid": {n}}}"#,
            NUMBERS[n]
        )
    };
    let splits = ["train", "restval", "val", "test"];
    let images: Vec<String> = splits.iter().enumerate().map(|(n, split)| image(n, split)).collect();
    let all =
        place.read("d.json", format!("{{\"images\": [{}], \"dataset\": \"x\"}}", images.join(","))).unwrap();
    assert_eq!(all.samples.len(), 4);
    assert!(all.report.has_warnings() && all.report.notes[0].contains("#train"), "{:?}", all.report);
    let of = |split: &str| Dataset::read(&place.path(&format!("d.json#{split}")), &place.path("images"), 0.0);
    let names = |split: &str| of(split).unwrap().samples.into_iter().map(|s| s.name).collect::<Vec<_>>();
    assert_eq!(names("train"), ["000000000009.jpg", "000000000025.jpg"]);
    assert_eq!(names("val"), ["000000000030.jpg"]);
    let error = of("dev").unwrap_err().to_string();
    assert!(error.contains("restval, test, train, val"), "{error}");
}

#[test]
fn a_folder_is_read_by_its_metadata_or_by_the_texts_beside_its_pictures() {
    let place = Place::new();
    let images = place.path("images");
    std::fs::write(images.join("000000000009.caption"), "犬\n").unwrap();
    std::fs::write(images.join("000000000025.txt"), "\u{feff}丸\n").unwrap();
    let data = Dataset::read(&images, &images, 0.0).unwrap();
    assert_eq!(captions(&data), [(NUMBERS[0], vec!["犬"]), (NUMBERS[1], vec!["丸"])]);
    assert_eq!(data.report.uncaptioned, 2);
    std::fs::write(images.join("000000000009.txt"), "猫\n").unwrap();
    let error = Dataset::read(&images, &images, 0.0).unwrap_err().to_string();
    assert!(error.contains("000000000009.jpg") && error.contains("both"), "{error}");
    std::fs::write(
        images.join("metadata.jsonl"),
        "{\"file_name\": \"000000000030.jpg\", \"text\": \"丸\"}\n",
    )
    .unwrap();
    let data = Dataset::read(&images, &images, 0.0).unwrap();
    assert_eq!(captions(&data), [(NUMBERS[2], vec!["丸"])]);
}

/// Hugging Face's folders of splits, and a folder of pictures that has two paths.
#[test]
fn what_lies_a_folder_further_or_behind_a_link_is_found_or_named() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("hf/train")).unwrap();
    std::fs::write(place.path("hf/train/000000000009.jpg"), "x").unwrap();
    std::fs::write(
        place.path("hf/train/metadata.jsonl"),
        "{\"file_name\": \"000000000009.jpg\", \"text\": \"犬\"}\n",
    )
    .unwrap();
    let error = Dataset::read(&place.path("hf"), &place.path("hf"), 0.0).unwrap_err().to_string();
    assert!(error.contains("hf/train has Hugging Face's captions"), "{error}");
    std::os::unix::fs::symlink(place.path("images"), place.path("linked")).unwrap();
    let inside = place.path("linked/000000000009.jpg").display().to_string();
    let data = place.read("a.json", format!("[{{\"image\": \"{inside}\", \"caption\": \"犬\"}}]")).unwrap();
    assert_eq!(captions(&data), [(NUMBERS[0], vec!["犬"])]);
    std::fs::write(place.path("outside.jpg"), "x").unwrap();
    let outside = place.path("outside.jpg").display().to_string();
    place.refused(
        "b.json",
        format!("[{{\"image\": \"{outside}\", \"caption\": \"犬\"}}]"),
        &["the absolute path"],
    );
}

#[test]
fn what_fits_no_form_is_refused_with_what_was_seen_and_what_is_understood() {
    let place = Place::new();
    let known = ["LAVIS", "JSON lines", "COCO", "by name", ".token", "image,caption"];
    let unknown =
        |name: &str, text: &str, seen: &str| place.refused(name, text, &[&known[..], &[seen]].concat());
    unknown("empty.json", " \n", "an empty file");
    unknown("words.txt", "just words\n", "just words");
    unknown("a.csv", "image,words\nx,y\n", "without a column of captions");
    unknown("b.csv", "name;caption\nx;y\n", "without a column of pictures");
    for (bytes, what) in [
        (&b"\x1f\x8b\x08\0\0\0"[..], "a gzip file"),
        (b"\x28\xb5\x2f\xfd\0\0", "zstd"),
        (b"PK\x03\x04\0\0", "zip"),
        (b"\xff\xfe[\0]\0", "UTF-16"),
        (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    ] {
        place.refused("x.json", bytes, &[what]);
    }
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    place.refused("x.tar", tar, &["tar"]);
    let entry = |rest: &str| format!("[\n{{\"image\": \"000000000009.jpg\",\n{rest}}}]");
    for (text, words) in [
        (entry("\"caption\": 5"), &["line 3"][..]),
        (entry("\"words\": \"x\""), &["line 2", "caption, captions, text"]),
        (entry("\"caption\": \"x\", \"image_id\": 1.5"), &["line 3", "an id: a whole number or a string"]),
        (entry("\"caption\": \"x\", \"image_id\": 9007199254740993.0"), &["an id"]),
        (entry("\"caption\": \"x\", \"caption\": \"y\""), &["\"caption\" twice"]),
        ("[{\"caption\": \"x\"}]".into(), &["image, file_name", "line 1"]),
        ("[{\"image\": \"000000000009.jpg\", \"caption\": \"x\"} {}]".into(), &["','", "line 1"]),
        ("[{\"image\": \"000000000009.jpg\", \"caption\": \"x\"},]".into(), &["line 1"]),
        ("[{\"image\": \"000000000009.jpg\", \"caption\": \"x\"}]]".into(), &["the end of the file"]),
        ("[{\"image\": \"000000000009.jpg\", \"capt".into(), &["line 1", "ends in the middle"]),
        ("{\"train\": [{\"image\": \"000000000009.jpg\", \"caption\": \"x\"}]}".into(), &["an entry of its own"]),
        ("{\"images\": [{\"id\": 9}], \"annotations\": [{\"id\": 3, \"caption\": \"x\"}]}".into(), &["without image_id"]),
        ("{\"images\": [], \"annotations\": [{\"image_id\": 3, \"bbox\": []}]}".into(), &["without a caption"]),
        ("{\"images\": [{\"id\": 9, \"file_name\": \"000000000009.jpg\"}], \"annotations\": [{\"id\": 3, \"image_id\": 9, \"caption\": \"x\"}, {\"id\": 3, \"image_id\": 9, \"caption\": \"y\"}]}".into(),
            &["each annotation id once"]),
        ("[{\"image\": \"../000000000009.jpg\", \"caption\": \"x\"}]".into(), &["climbs out"]),
        ("[{\"image\": \"/elsewhere/000000000009.jpg\", \"caption\": \"x\"}]".into(), &["the absolute path"]),
        ("[{\"image\": \"cat.jpg\", \"caption\": \"x\"}]".into(), &["cat.jpg", "000000000009.jpg"]),
        ("image,caption\n000000000009.jpg,a,b\n".into(), &["the same columns", "quotes"]),
        ("image,caption\n,a\n".into(), &["none in line 2"]),
    ] {
        place.refused("bad.json", text, words);
    }
    place.refused("latin.csv", b"image,caption\n000000000009.jpg,\xe9\n", &["UTF-8", "0xe9 at offset 31"]);
}

/// Entries, characters and lines that a piece of the file cuts in two.
#[test]
fn long_files_are_read_whole() {
    let place = Place::new();
    let caption = |n: usize| format!("{}{n}", "犬".repeat(n % 700));
    let entry =
        |n: usize| format!("{{\"image\": \"{}.jpg\", \"caption\": \"{}\"}}", NUMBERS[n % 4], caption(n));
    let entries: Vec<String> = (0..4000).map(entry).collect();
    for (name, text) in [("a.json", format!("[{}]", entries.join(",\n"))), ("a.jsonl", entries.join("\n"))] {
        assert!(text.len() > 3 << 20);
        let data = place.read(name, text).unwrap();
        assert_eq!(data.report.captions, 4000);
        for (s, sample) in data.samples.iter().enumerate() {
            let want: Vec<String> = (0..1000).map(|n| caption(4 * n + s)).collect();
            assert!(sample.captions == want, "{name} {s}");
        }
    }
    let broken = format!("[{},\n{{\"image\": 5, \"caption\": \"x\"}}]", entries.join(",\n"));
    place.refused("b.json", broken, &["line 4001"]);
    let mut bytes = format!("[{}]", entries.join(",\n")).into_bytes();
    let at = bytes.len() - 5;
    bytes[at] = 0xff;
    place.refused("c.json", bytes, &[&format!("0xff at offset {at}")]);
}
