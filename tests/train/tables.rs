//! Parquet files as pyarrow writes them (`record_parquet.py`): picture n is 8 x 8 pixels of grey n, its captions name n.

use super::world::World;
use qformer::data::Dataset;
use std::path::PathBuf;

fn recorded(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/train/parquet").join(name)
}

fn read(name: &str) -> qformer::Result<Dataset> {
    Dataset::read(&recorded(name), &recorded(name), 0.0)
}

#[test]
fn pictures_inside_are_read_row_by_row() {
    let data = read("inside.parquet").unwrap();
    assert_eq!((data.report.pictures, data.report.captions), (30, 30));
    // Backwards: no row depends on one read before it.
    for (n, sample) in data.samples.iter().enumerate().rev() {
        assert_eq!(sample.name, format!("inside.parquet/{n}"));
        assert_eq!(sample.captions, [format!("写真{n}")]);
        let picture = sample.image().load(Default::default()).unwrap();
        assert_eq!((picture.width, picture.height), (8, 8));
        assert!(picture.rgb.iter().all(|v| usize::from(*v) == n), "row {n}");
    }
    let data = read("lists.parquet").unwrap();
    assert_eq!((data.report.captions, data.report.empty), (50, 10));
    assert_eq!(data.samples[4].captions, ["写真4", "絵4"]);
    assert_eq!(data.samples[3].captions, ["写真3"]);
    assert_eq!((data.samples[4].image_id.as_str(), data.samples[5].image_id.as_str()), ("2", "2"));
    for n in [29, 0, 17] {
        let picture = data.samples[n].image().load(Default::default()).unwrap();
        assert!(picture.rgb.iter().all(|v| usize::from(*v) == n), "row {n}");
    }
}

#[test]
fn pictures_beside_are_named_by_a_column() {
    let world = World::new();
    let data = Dataset::read(&recorded("beside.parquet"), &world.path("images"), 0.0).unwrap();
    assert_eq!((data.report.pictures, data.report.empty, data.report.uncaptioned), (23, 1, 1));
    assert_eq!(data.samples[0].name, "01.png");
    assert_eq!(data.samples[0].captions, ["写真1"]);
    // The same as ground truth, where nothing is opened.
    assert_eq!(Dataset::read_captions(&recorded("beside.parquet")).unwrap().samples.len(), 23);
}

#[test]
fn a_training_on_a_table_runs_and_resumes() {
    let world = World::new();
    let path = recorded("inside.parquet").display().to_string();
    let train = |out: &str, more: &[&str]| {
        let base = [
            "train",
            "--captions",
            &path,
            "--out",
            out,
            "--size",
            "tiny",
            "--batch",
            "6",
            "--epochs",
            "2",
            "--quiet",
        ];
        world.run(&[&base[..], &["--set", "model.layers=1"], more].concat())
    };
    train("whole", &[]).good();
    train("parts", &["--steps", "3"]).good();
    train("parts", &["--resume"]).good();
    assert!(world.newest("whole") == world.newest("parts"));
}

#[test]
fn what_cannot_be_read_is_named() {
    let world = World::new();
    let error = read("zstd.parquet").unwrap_err().to_string();
    assert!(error.contains("ZSTD") && error.contains("snappy") && error.contains("file_name"), "{error}");
    let whole = std::fs::read(recorded("inside.parquet")).unwrap();
    let broken = |bytes: &[u8]| {
        world.write("broken.parquet", bytes);
        let path = world.path("broken.parquet");
        let error = Dataset::read(&path, &path, 0.0).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        assert!(error.to_string().contains("broken.parquet"), "{error}");
    };
    broken(&whole[..whole.len() / 2]);
    broken(&whole[..12]);
    // Damage anywhere: an error of the file or of a picture, never a panic or another picture.
    for at in (4..whole.len()).step_by(61) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        world.write("damaged.parquet", &bytes);
        let path = world.path("damaged.parquet");
        if let Ok(data) = Dataset::read(&path, &path, 1.0) {
            for sample in &data.samples {
                let _ = sample.image().load(Default::default());
            }
        }
    }
}
