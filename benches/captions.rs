//! Reading files of captions: seconds (wall clock) and peak memory for a million captions in each text form of the field.
//!
//! `cargo bench --bench captions`; with QFORMER_CAPTIONS=FILE,.. on your own files, with QFORMER_COUNT=N for another number.
//! Every file is read by a process of its own, three times: the least time and the largest memory count.

use qformer::data::Dataset;
use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Captions of a picture, as COCO has them.
const PER_PICTURE: usize = 5;
const RUNS: usize = 3;

/// What a form writes of a caption: its number, its picture's name, the caption.
type Line = fn(usize, &str, &str) -> String;

struct Form {
    name: &'static str,
    before: &'static str,
    line: Line,
    between: &'static str,
    after: &'static str,
}

const FORMS: [Form; 10] = [
    Form {
        name: "lavis.json",
        before: "[",
        line: |n, image, caption| {
            format!(
                r#"{{"caption": "{caption}", "image": "{image}", "image_id": "coco_{}"}}"#,
                n / PER_PICTURE
            )
        },
        between: ", ",
        after: "]",
    },
    Form {
        name: "lines.jsonl",
        before: "",
        line: |_, image, caption| format!(r#"{{"image": "{image}", "caption": "{caption}"}}"#),
        between: "\n",
        after: "\n",
    },
    Form {
        name: "metadata.jsonl",
        before: "",
        line: |_, image, caption| format!(r#"{{"file_name": "{image}", "text": "{caption}"}}"#),
        between: "\n",
        after: "\n",
    },
    Form {
        name: "ground-truth.json",
        before: r#"{"annotations": ["#,
        line: |n, _, caption| {
            format!(r#"{{"id": {n}, "image_id": {}, "caption": "{caption}"}}"#, n / PER_PICTURE)
        },
        between: ", ",
        after: "]}",
    },
    Form {
        name: "coco.json",
        before: r#"{"annotations": ["#,
        line: |n, _, caption| {
            format!(r#"{{"id": {n}, "image_id": {}, "caption": "{caption}"}}"#, n / PER_PICTURE)
        },
        between: ", ",
        after: r#"], "images": ["#,
    },
    Form {
        name: "by-name.json",
        before: "{",
        line: |n, image, caption| match n % PER_PICTURE {
            0 => format!(r#""{image}": ["{caption}""#),
            last if last + 1 == PER_PICTURE => format!(r#""{caption}"]"#),
            _ => format!(r#""{caption}""#),
        },
        between: ", ",
        after: "}",
    },
    Form {
        name: "table.csv",
        before: "image,caption\n",
        line: |_, image, caption| format!("{image},{caption}"),
        between: "\n",
        after: "\n",
    },
    Form {
        name: "open_clip.tsv",
        before: "filepath\ttitle\n",
        line: |_, image, caption| format!("{image}\t{caption}"),
        between: "\n",
        after: "\n",
    },
    Form {
        name: "flickr.csv",
        before: "image_name| comment_number| comment\n",
        line: |n, image, caption| format!("{image}| {}| {caption}", n % PER_PICTURE),
        between: "\n",
        after: "\n",
    },
    Form {
        name: "flickr.token",
        before: "",
        line: |n, image, caption| format!("{image}#{}\t{caption}", n % PER_PICTURE),
        between: "\n",
        after: "\n",
    },
];

fn image(picture: usize) -> String {
    format!("COCO_train2014_{picture:012}.jpg")
}

/// A caption of ten words, drawn by a fixed rule.
fn caption(number: usize) -> String {
    const WORDS: [&str; 16] = [
        "赤い",
        "丸",
        "が",
        "左上",
        "に",
        "二つ",
        "描か",
        "れ",
        "て",
        "いる",
        "犬",
        "公園",
        "で",
        "遊ぶ",
        "男性",
        "テーブル",
    ];
    let mut state = number as u64;
    let mut word = |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        WORDS[(state >> 60) as usize]
    };
    (0..10).map(&mut word).collect()
}

fn write(folder: &Path, form: &Form, count: usize) -> Result<PathBuf, Box<dyn Error>> {
    let path = folder.join(form.name);
    let mut to = BufWriter::new(File::create(&path)?);
    to.write_all(form.before.as_bytes())?;
    for n in 0..count {
        let between = if n == 0 { "" } else { form.between };
        write!(to, "{between}{}", (form.line)(n, &image(n / PER_PICTURE), &caption(n)))?;
    }
    to.write_all(form.after.as_bytes())?;
    if form.name == "coco.json" {
        for picture in 0..count.div_ceil(PER_PICTURE) {
            let between = if picture == 0 { "" } else { ", " };
            write!(to, r#"{between}{{"id": {picture}, "file_name": "{}"}}"#, image(picture))?;
        }
        to.write_all(b"]}")?;
    }
    Ok(path)
}

fn karpathy(folder: &Path, count: usize) -> Result<PathBuf, Box<dyn Error>> {
    let path = folder.join("karpathy.json");
    let mut to = BufWriter::new(File::create(&path)?);
    to.write_all(br#"{"dataset": "coco", "images": ["#)?;
    for picture in 0..count / PER_PICTURE {
        let between = if picture == 0 { "" } else { ", " };
        let captions = picture * PER_PICTURE..(picture + 1) * PER_PICTURE;
        let sentences: Vec<String> = captions
            .map(|n| {
                format!(r#"{{"tokens": [], "raw": "{}", "imgid": {picture}, "sentid": {n}}}"#, caption(n))
            })
            .collect();
        let (name, sentences) = (image(picture), sentences.join(", "));
        write!(
            to,
            r#"{between}{{"filename": "{name}", "filepath": "train2014", "imgid": {picture}, "cocoid": {picture}, "split": "train", "sentences": [{sentences}]}}"#
        )?;
    }
    to.write_all(b"]}")?;
    Ok(path)
}

/// Reads one file and prints captions, seconds and peak memory in MB.
fn read(file: &Path) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let data = Dataset::read_captions(file)?;
    let seconds = start.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    let kilobytes: f64 = peak.trim().trim_end_matches(" kB").parse()?;
    println!("{} {seconds} {}", data.report.captions, kilobytes * 1.024e-3);
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    if let Some(file) = std::env::var_os("QFORMER_READ") {
        return read(Path::new(&file));
    }
    let folder = tempfile::tempdir()?;
    let count = std::env::var("QFORMER_COUNT").map_or(Ok(1_000_000), |n| n.parse::<usize>())?;
    let count = count.next_multiple_of(PER_PICTURE);
    let files = match std::env::var("QFORMER_CAPTIONS") {
        Ok(list) => list.split(',').map(PathBuf::from).collect(),
        Err(_) => {
            let mut files = Vec::new();
            for form in &FORMS {
                files.push(write(folder.path(), form, count)?);
            }
            files.push(karpathy(folder.path(), count)?);
            files
        }
    };
    println!("{:<20} {:>9} {:>7} {:>7}", "file", "captions", "s", "MB");
    for file in files {
        let (mut least, mut largest, mut captions) = (f64::INFINITY, 0.0f64, String::new());
        for _ in 0..RUNS {
            let child = Command::new(std::env::current_exe()?).env("QFORMER_READ", &file).output()?;
            let text = String::from_utf8_lossy(&child.stdout);
            let numbers: Vec<&str> = text.split_whitespace().collect();
            let [count, seconds, memory] = numbers[..] else {
                return Err(format!("{}: {}", file.display(), String::from_utf8_lossy(&child.stderr)).into());
            };
            (least, largest) = (least.min(seconds.parse()?), largest.max(memory.parse()?));
            captions = count.to_owned();
        }
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        println!("{name:<20} {captions:>9} {least:>7.2} {largest:>7.0}");
    }
    Ok(())
}
