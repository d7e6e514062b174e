//! Small drawn pictures with captions, and the program run on them.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub struct World(tempfile::TempDir);

const COLOURS: [(&str, [u8; 3]); 4] =
    [("赤い", [200, 30, 30]), ("青い", [30, 30, 200]), ("緑の", [30, 160, 30]), ("黄色い", [220, 210, 40])];
const SHAPES: [&str; 3] = ["丸", "四角", "縞"];

impl World {
    /// 24 pictures of 40 x 32 pixels with two captions each, in `images` and `captions.json`.
    pub fn new() -> World {
        let world = World(tempfile::tempdir().unwrap());
        std::fs::create_dir(world.path("images")).unwrap();
        let mut entries = Vec::new();
        for i in 0..24usize {
            let ((colour, rgb), shape) = (COLOURS[i % 4], SHAPES[i / 4 % 3]);
            let name = format!("{i:02}.png");
            let png = qformer::vision::encode_png(40, 32, &draw(i, rgb)).unwrap();
            std::fs::write(world.path("images").join(&name), png).unwrap();
            for caption in [format!("{colour}{shape}がある"), format!("{shape}の絵、{colour}色")] {
                entries.push(json!({ "image": name, "caption": caption, "image_id": i }));
            }
        }
        world.write("captions.json", serde_json::to_string(&entries).unwrap());
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qformer"));
        command.current_dir(self.0.path()).args(arguments).env("RAYON_NUM_THREADS", "2");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Done {
        Done(self.command(arguments).output().unwrap())
    }

    /// `train` on all pictures with a very small model; later arguments win.
    pub fn train(&self, out: &str, more: &[&str]) -> Done {
        self.run(&train(out, more))
    }

    /// The same on so many threads.
    pub fn train_on(&self, threads: &str, out: &str, more: &[&str]) -> Done {
        let mut command = self.command(&train(out, more));
        Done(command.env("RAYON_NUM_THREADS", threads).output().unwrap())
    }

    pub fn start(&self, out: &str, more: &[&str]) -> Child {
        self.command(&train(out, more)).spawn().unwrap()
    }

    /// The log without what depends on the clock.
    pub fn log(&self, out: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(out).join("log.jsonl")).unwrap_or_default();
        let timeless = |line: &str| {
            let mut v: Value = serde_json::from_str(line).unwrap();
            assert!(v.as_object_mut().unwrap().remove("time").is_some(), "{line}");
            v
        };
        text.lines().map(timeless).collect()
    }

    /// Waits until a running training has logged this many lines.
    pub fn wait_for_lines(&self, out: &str, lines: usize) {
        let since = Instant::now();
        let path = self.path(out).join("log.jsonl");
        let count = || std::fs::read_to_string(&path).map_or(0, |t| t.matches('\n').count());
        while count() < lines {
            assert!(since.elapsed() < Duration::from_secs(300), "no {lines} lines in {}", path.display());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Names of the checkpoints, oldest first.
    pub fn checkpoints(&self, out: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(out).join("checkpoints")).into_iter().flatten();
        let mut names: Vec<String> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| n.starts_with("step"))
            .collect();
        names.sort();
        names
    }

    pub fn newest(&self, out: &str) -> Vec<u8> {
        let name = self.checkpoints(out).pop().expect("a checkpoint");
        std::fs::read(self.path(out).join("checkpoints").join(name)).unwrap()
    }
}

const SMALL: [&str; 16] = [
    "--set",
    "size=tiny",
    "--set",
    "model.layers=2",
    "--set",
    "model.vit_depth=1",
    "--set",
    "model.hidden=32",
    "--set",
    "batch=6",
    "--set",
    "epochs=2",
    "--set",
    "warmup_steps=4",
    "--set",
    "save_minutes=0",
];

/// Flags win over --set, and a later --set over an earlier one.
fn train<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let data = ["train", "--images", "images", "--captions", "captions.json", "--out", out];
    data.iter().chain(&SMALL).chain(more).copied().collect()
}

/// A shape on grey: a disc, a square or stripes, a little elsewhere in every picture.
fn draw(i: usize, rgb: [u8; 3]) -> Vec<u8> {
    let (cx, cy) = (12 + i % 5 * 4, 10 + i % 3 * 5);
    let inside = |x: usize, y: usize| match i / 4 % 3 {
        0 => x.abs_diff(cx).pow(2) + y.abs_diff(cy).pow(2) < 64,
        1 => x.abs_diff(cx) < 8 && y.abs_diff(cy) < 8,
        _ => ((x + y + i) / 4).is_multiple_of(2),
    };
    let pixel = |at: usize| if inside(at % 40, at / 40) { rgb } else { [120 + (i * 3) as u8, 120, 120] };
    (0..40 * 32).flat_map(pixel).collect()
}

/// What a command did.
pub struct Done(pub Output);

impl Done {
    pub fn code(&self) -> Option<i32> {
        self.0.status.code()
    }

    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    #[track_caller]
    pub fn good(self) -> Done {
        assert_eq!(self.code(), Some(0), "{}{}", self.text(), self.errors());
        self
    }

    /// It failed with this code, said all of this, and did not panic.
    #[track_caller]
    pub fn refused(&self, code: i32, words: &[&str]) {
        let errors = self.errors();
        assert_eq!(self.code(), Some(code), "{errors}");
        assert!(!errors.contains("panicked"), "{errors}");
        for word in words {
            assert!(errors.contains(word), "no {word:?} in {errors}");
        }
    }
}

pub fn signal(child: &Child, name: &str) {
    let done = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
    assert!(done.success());
}

pub fn exists(path: impl AsRef<Path>) -> bool {
    path.as_ref().exists()
}
