//! webdataset's tar shards: read by position, trained on, captioned; and shards that are wrong.

use super::world::World;
use qformer::data::{Dataset, Image};
use std::path::Path;
use std::process::Command;

/// The pictures and captions of a world as shards of so many pictures; the members of a sample share its number.
fn shards(world: &World, each: usize) -> usize {
    let entries = std::fs::read_to_string(world.path("captions.json")).unwrap();
    let entries: Vec<serde_json::Value> = serde_json::from_str(&entries).unwrap();
    let mut captions = std::collections::BTreeMap::<String, Vec<String>>::new();
    for entry in entries {
        let text = |key: &str| entry[key].as_str().unwrap().to_owned();
        captions.entry(text("image")).or_default().push(text("caption"));
    }
    std::fs::create_dir_all(world.path("shards")).unwrap();
    let all: Vec<_> = captions.into_iter().collect();
    for (n, samples) in all.chunks(each).enumerate() {
        let mut tar =
            tar::Builder::new(std::fs::File::create(world.path(&format!("shards/{n:05}.tar"))).unwrap());
        for (i, (name, captions)) in samples.iter().enumerate() {
            let picture = std::fs::read(world.path(&format!("images/{name}"))).unwrap();
            append(&mut tar, &format!("{i:04}.png"), &picture);
            if i % 2 == 0 {
                append(&mut tar, &format!("{i:04}.txt"), captions.join("\n").as_bytes());
            } else {
                let json = serde_json::json!({"caption": captions, "url": "x", "width": f64::from(3)});
                append(&mut tar, &format!("{i:04}.json"), json.to_string().as_bytes());
            }
            append(&mut tar, &format!("{i:04}.cls"), b"3");
        }
        tar.into_inner().unwrap();
    }
    all.len().div_ceil(each)
}

fn append<W: std::io::Write>(tar: &mut tar::Builder<W>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, bytes).unwrap();
}

fn read(path: &Path) -> qformer::Result<Dataset> {
    Dataset::read(path, path, 0.0)
}

#[test]
fn shards_are_a_data_set_like_a_folder() {
    let world = World::new();
    assert_eq!(shards(&world, 9), 3);
    let pattern = world.path("shards/{00000..00002}.tar");
    let data = read(&pattern).unwrap();
    let folder = Dataset::read(&world.path("captions.json"), &world.path("images"), 0.0).unwrap();
    assert_eq!((data.report.pictures, data.report.captions), (24, 48));
    assert_eq!(data.samples[9].name, "00001.tar/0000.png");
    for (sample, file) in data.samples.iter().zip(&folder.samples) {
        assert_eq!(sample.captions, file.captions);
        assert!(matches!(sample.image(), Image::Inside(_)));
        assert_eq!(sample.image().read(1 << 20).unwrap(), std::fs::read(file.image().path()).unwrap());
        assert!(
            sample.image().load(Default::default()).unwrap()
                == file.image().load(Default::default()).unwrap()
        );
    }
    // What was found is kept, and found again when the shard is another.
    let kept = world.path("shards/00000.tar.offsets");
    let text = std::fs::read_to_string(&kept).unwrap();
    std::fs::write(&kept, text.replace("0000.", "kept.")).unwrap();
    assert_eq!(read(&pattern).unwrap().samples[0].name, "00000.tar/kept.png");
    let file = std::fs::File::options().append(true).open(world.path("shards/00000.tar")).unwrap();
    file.set_len(file.metadata().unwrap().len() + 512).unwrap();
    assert_eq!(read(&pattern).unwrap().samples[0].name, "00000.tar/0000.png");
    std::fs::write(&kept, &text.as_bytes()[..text.len() / 2]).unwrap();
    assert_eq!(read(&pattern).unwrap().report.captions, 48);
    // By a star; captions elsewhere, whose pictures are members.
    assert_eq!(
        read(&world.path("shards/*.tar")).unwrap(),
        Dataset { report: read(&world.path("shards/*.tar")).unwrap().report, samples: data.samples.clone() }
    );
    world.write("c.json", r#"[{"image": "00002.tar/0003.png", "caption": "犬"}]"#);
    let data = Dataset::read(&world.path("c.json"), &pattern, 0.0).unwrap();
    assert_eq!(data.samples[0].captions, ["犬"]);
    world.write("c.json", r#"[{"image": "0003.png", "caption": "犬"}]"#);
    let error = Dataset::read(&world.path("c.json"), &pattern, 0.0).unwrap_err().to_string();
    assert!(error.contains("00000.tar/0000.png"), "{error}");
}

#[test]
fn a_training_on_shards_is_resumed_to_the_same_bytes() {
    let world = World::new();
    shards(&world, 9);
    let train = |out: &str, more: &[&str]| {
        let base = [
            "train",
            "--images",
            "shards/{00000..00002}.tar",
            "--out",
            out,
            "--size",
            "tiny",
            "--batch",
            "6",
        ];
        let small = ["--set", "model.layers=1", "--set", "save_minutes=0", "--epochs", "2", "--quiet"];
        world.run(&[&base[..], &small, more].concat())
    };
    train("whole", &[]).good();
    train("parts", &["--steps", "5"]).good();
    train("parts", &["--resume"]).good();
    assert!(world.newest("whole") == world.newest("parts"));
    assert_eq!(world.log("whole").len(), 8 * 2);
    let done = world.run(&[
        "doctor",
        "--images",
        "shards/{00000..00002}.tar",
        "--batch",
        "2",
        "--profile",
        "lavis-image-id",
    ]);
    assert!(done.text().contains("24 pictures, 48 captions"), "{}{}", done.text(), done.errors());
}

/// Captions of a shard's pictures are those of the files that it was made of, under names that tell shards apart.
#[test]
fn pictures_in_shards_are_captioned_like_files() {
    let world = World::new();
    shards(&world, 9);
    world.run(&["convert", "--random", "tiny", "--out", "model"]).good();
    let caption = |pictures: &str| {
        let short = ["--max-length", "5", "--min-length", "1", "--quiet", "--format", "jsonl"];
        let text =
            world.run(&[&["caption", "--model", "model", pictures], &short[..]].concat()).good().text();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect::<Vec<serde_json::Value>>()
    };
    let (inside, files) = (caption("shards/{00000..00002}.tar"), caption("images"));
    assert_eq!(inside.len(), 24);
    assert_eq!(inside[10]["image"], "00001.tar/0001.png");
    for (inside, file) in inside.iter().zip(&files) {
        assert_eq!(inside["caption"], file["caption"]);
    }
    world
        .run(&["search", "index", "--model", "model", "--out", "i", "shards/00000.tar"])
        .refused(2, &["unpack"]);
}

#[test]
fn shards_that_are_wrong_are_refused_by_name_and_offset() {
    let world = World::new();
    shards(&world, 12);
    let whole = std::fs::read(world.path("shards/00001.tar")).unwrap();
    let path = world.path("shards/00001.tar");
    let error = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = read(&world.path("shards/{00000,00001}.tar")).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        error.to_string()
    };
    // Cut in a member, in a header, in garbage.
    let cut = error(&whole[..700]);
    assert!(cut.contains("00001.tar") && cut.contains("at offset 512") && cut.contains("0000.png"), "{cut}");
    let first =
        usize::try_from(u64::from_str_radix(std::str::from_utf8(&whole[124..135]).unwrap(), 8).unwrap())
            .unwrap();
    let second = 512 + first.next_multiple_of(512);
    let cut = error(&whole[..second + 100]);
    assert!(cut.contains(&format!("at offset {second}")), "{cut}");
    let mut damaged = whole.clone();
    damaged[second + 3] ^= 0xff;
    assert!(error(&damaged).contains(&format!("at offset {second}")));
    for (magic, kind) in
        [(&b"\x1f\x8b\x08\0"[..], "gzip"), (b"\x28\xb5\x2f\xfd\0\0", "zstd"), (b"BZh91AY", "bzip2")]
    {
        assert!(error(magic).contains(kind), "{kind}");
    }
    assert!(error(&[7; 4096]).contains("at offset 0"));
    // Without its end mark it is read, and said.
    let end = whole.len() - whole.iter().rev().take_while(|b| **b == 0).count();
    std::fs::write(&path, &whole[..end.next_multiple_of(512)]).unwrap();
    let data = read(&world.path("shards/{00000,00001}.tar")).unwrap();
    assert!(
        data.report.has_warnings() && data.report.to_string().contains("lacks its end"),
        "{}",
        data.report
    );
    let missing = read(&world.path("shards/{00000..00002}.tar")).unwrap_err().to_string();
    assert!(missing.contains("00002.tar"), "{missing}");
}

#[test]
fn long_names_are_read_and_sparse_members_refused() {
    let world = World::new();
    let long = format!("{}/{}", "犬".repeat(60), "a".repeat(150));
    let picture = std::fs::read(world.path("images/00.png")).unwrap();
    let path = world.path("long.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
    append(&mut tar, &format!("{long}.png"), &picture);
    append(&mut tar, &format!("{long}.txt"), "犬".as_bytes());
    tar.into_inner().unwrap();
    let data = read(&path).unwrap();
    assert_eq!(data.samples[0].name, format!("long.tar/{long}.png"));
    assert_eq!(data.samples[0].image().read(1 << 20).unwrap(), picture);
    // The same by the system's tar in pax format, and a file with a hole in it.
    std::fs::create_dir(world.path("d")).unwrap();
    std::fs::write(world.path("d/x.png"), &picture).unwrap();
    std::fs::write(world.path("d/x.txt"), "猫\n").unwrap();
    let tar = |file: &str, more: &[&str]| {
        let mut command = Command::new("tar");
        command.args(more).arg("-cf").arg(world.path(file)).arg("-C").arg(world.path("d")).arg(".");
        command.status().is_ok_and(|s| s.success())
    };
    if !tar("pax.tar", &["--format=pax"]) {
        eprintln!("SKIPPED: no tar command, so nothing of its forms was read");
        return;
    }
    assert_eq!(read(&world.path("pax.tar")).unwrap().samples[0].captions, ["猫"]);
    let hole = std::fs::File::create(world.path("d/hole.png")).unwrap();
    hole.set_len(1 << 20).unwrap();
    for format in ["--format=gnu", "--format=pax"] {
        assert!(tar("sparse.tar", &["--sparse", format]));
        let error = read(&world.path("sparse.tar")).unwrap_err().to_string();
        assert!(error.contains("sparse") && error.contains("sparse.tar"), "{format}: {error}");
    }
}
