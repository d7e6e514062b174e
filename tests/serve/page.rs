//! The page in Chromium, where it and Node are installed; its accessibility where axe-core is (`.ci/run` installs all three).

use super::client::Served;
use super::commands::Place;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Would run a script on a page that took a text for markup. A file's name cannot hold a slash.
const IN_NAMES: &str = "<img src=x onerror=alert(1)>";
const IN_WORDS: &str = "<img/src=x/onerror=alert(2)>";

/// A training that goes on until it is dropped.
struct Training(Child);

impl Training {
    fn start(place: &Place, out: &str) -> Training {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qformer"));
        command.current_dir(place.dir.path()).env("RAYON_NUM_THREADS", "1");
        command.args(["train", "--start", "model", "--images", "p", "--captions", "captions.json"]);
        command.args(["--out", out, "--batch", "4", "--steps", "1000000", "--set", "workers=1", "--quiet"]);
        command.args(["--device", "cpu"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut training = Training(command.spawn().unwrap());
        let begun = Instant::now();
        let log = place.path(out).join("log.jsonl");
        while std::fs::read_to_string(&log).map_or(0, |log| log.lines().count()) < 4 {
            assert!(training.0.try_wait().unwrap().is_none(), "the training ended");
            assert!(begun.elapsed() < Duration::from_secs(60), "no step within 60 s");
            std::thread::sleep(Duration::from_millis(50));
        }
        training
    }
}

impl Drop for Training {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|p| p.join(name)).find(|p| p.is_file())
}

/// axe.min.js: where `QFORMER_AXE` says, or where `.ci/run` puts it.
fn axe() -> Option<PathBuf> {
    let here = std::env::temp_dir().join("qformer-axe/node_modules/axe-core/axe.min.js");
    std::env::var_os("QFORMER_AXE").map_or(Some(here), |p| Some(p.into())).filter(|p: &PathBuf| p.is_file())
}

/// With `QFORMER_SHOTS`, a folder, also writes what each view looked like there.
#[test]
fn the_page_works_in_a_browser() {
    let (Some(chromium), Some(node)) = (program("chromium"), program("node")) else {
        eprintln!("SKIPPED: no Chromium or no Node (apt-get install chromium nodejs)");
        return;
    };
    let place = Place::new(54);
    // So that its captions are markup, too.
    place.model_with("model", 54, |i| format!("{IN_WORDS}{i}"));
    place.pictures("p", 8);
    let hostile = format!("p/{IN_NAMES}.png");
    place.picture(&hostile, 99);
    let entry = |i: u8| serde_json::json!({"image": format!("p{i:02}.png"), "caption": [format!("二 匹 の 犬 {IN_WORDS}"), "赤い 傘"]});
    let captions: Vec<serde_json::Value> = (0..8).map(entry).collect();
    place.write("captions.json", serde_json::to_string(&captions).unwrap());
    place.ok(&["search", "index", "--model", "model", "--out", "x", "p", "-q"]);
    let _training = Training::start(&place, IN_NAMES);
    let server = Served::start(&place, &["--index", "x", "--run", IN_NAMES]);
    let mut command = Command::new(node);
    command.arg("tests/serve/browser.mjs").arg(chromium).arg(format!("http://127.0.0.1:{}/", server.port));
    command.arg(place.path(&hostile)).arg(axe().unwrap_or_default());
    if axe().is_none() {
        eprintln!("SKIPPED: accessibility (npm install axe-core; QFORMER_AXE=.../axe.min.js)");
    }
    command.args(std::env::var_os("QFORMER_SHOTS"));
    let ran = command.output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    println!("{said}");
}
