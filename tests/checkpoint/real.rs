//! The same promises on the real file system: killed processes, locks, a full disk, signals. The child processes
//! are this test program itself, told by a variable of the environment what to do.

use crate::{expected, save};
use qformer::console::signals::Stop;
use qformer::files::{Disk, DiskFile, RealDisk};
use qformer::train::checkpoint::{self, Folder, KEEP_LAST};
use qformer::{Error, Kind};
use rustix::process::{Pid, Signal, kill_process};
use std::any::Any;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

const ROLE: &str = "QFORMER_TEST_ROLE";
const FOLDER: &str = "QFORMER_TEST_FOLDER";
/// Tensors of a child: about 300 KB, so that kills also hit the writing.
const SCALE: usize = 100;

/// What a child process does; an ordinary test run has no role and passes at once.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let folder = PathBuf::from(std::env::var(FOLDER).unwrap());
    match role.as_str() {
        "save" => save_for_ever(&folder),
        "hold" => {
            let _folder = Folder::own(&RealDisk, &folder).unwrap();
            say("ready");
            std::thread::sleep(Duration::from_secs(60));
        }
        "stop" | "deaf" => {
            let stop = Stop::listen().unwrap();
            say("ready");
            while stop.signal().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            say("seen");
            if role == "deaf" {
                std::thread::sleep(Duration::from_secs(60));
            }
            say("saved");
            std::process::exit(stop.error("train").unwrap().exit_code().into());
        }
        other => panic!("no role {other}"),
    }
}

/// Around the test harness, which holds back what `println!` prints.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    out.write_all(format!("\n> {line}\n").as_bytes()).and_then(|()| out.flush()).unwrap();
}

fn save_for_ever(path: &Path) {
    let mut folder = Folder::own(&RealDisk, path).unwrap();
    let start = checkpoint::latest(&RealDisk, path, |e| panic!("{e}")).unwrap();
    let start = start.map_or(0, |path| checkpoint::load(&RealDisk, &path).unwrap().progress.step);
    for step in start + 1.. {
        save(&mut folder, &expected(step, SCALE)).unwrap();
        say(&step.to_string());
        folder.prune(KEEP_LAST, 0).unwrap();
    }
}

/// Kills its process when dropped, so that a failing test leaves none behind.
struct Role {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Role {
    fn start(role: &str, folder: &Path) -> Role {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["real::child", "--exact", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(FOLDER, folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Role { child, out }
    }

    /// The next line the child says; None when it has ended.
    fn hear(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.out.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some(said) = line.strip_prefix("> ").and_then(|l| l.strip_suffix('\n')) {
                return Some(said.to_string());
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_hundred_kills_lose_nothing_that_was_acknowledged() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("new/run");
    let mut dice = crate::Dice(7);
    let (mut acknowledged, mut half_written) = (0, 0);
    for round in 0..100 {
        let mut role = Role::start("save", &folder);
        if dice.below(4) > 0 {
            acknowledged = role.hear().expect("a first save").parse().unwrap();
        }
        std::thread::sleep(Duration::from_micros(dice.below(20_000) as u64));
        role.child.kill().unwrap();
        while let Some(said) = role.hear() {
            acknowledged = said.parse().unwrap();
        }
        drop(role);
        half_written += partials(&folder).len();
        let found = checkpoint::latest(&RealDisk, &folder, |e| panic!("round {round}: {e}")).unwrap();
        let Some(path) = found else { panic!("round {round}: nothing left of step {acknowledged}") };
        let loaded = checkpoint::load(&RealDisk, &path).unwrap();
        let step = loaded.progress.step;
        assert!(step >= acknowledged, "round {round}: step {step} is left of {acknowledged}");
        assert!(loaded == expected(step, SCALE), "round {round}: not the contents of step {step}");
    }
    assert!(
        acknowledged >= 100 && half_written >= 10,
        "{acknowledged} saves, {half_written} cut in the middle"
    );
    drop(Folder::own(&RealDisk, &folder).unwrap());
    assert_eq!(partials(&folder), [] as [String; 0], "the next owner cleans up");
}

fn partials(folder: &Path) -> Vec<String> {
    let names = RealDisk.list(folder).unwrap_or_default();
    names.into_iter().filter(|n| n.ends_with(".partial")).collect()
}

#[test]
fn one_training_per_folder_and_a_dead_one_is_not_in_the_way() {
    let temporary = tempfile::tempdir().unwrap();
    let mut role = Role::start("hold", temporary.path());
    assert_eq!(role.hear().as_deref(), Some("ready"));
    let e = Folder::own(&RealDisk, temporary.path()).map(|_| ()).unwrap_err();
    let who = format!("one locked by process {}; wait for it", role.child.id());
    assert!(e.to_string().contains(&who) && e.kind() == Kind::Argument, "{e}");
    drop(role);
    let folder = Folder::own(&RealDisk, temporary.path()).unwrap();
    assert!(Folder::own(&RealDisk, temporary.path()).is_err(), "a second owner in one process");
    drop(folder);
    Folder::own(&RealDisk, temporary.path()).unwrap();
}

#[test]
fn a_signal_stops_after_saving_and_a_second_one_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        for role in ["stop", "deaf"] {
            let mut child = Role::start(role, folder.path());
            assert_eq!(child.hear().as_deref(), Some("ready"));
            child.signal(signal);
            assert_eq!(child.hear().as_deref(), Some("seen"));
            if role == "deaf" {
                child.signal(signal);
            }
            let saved = (role == "stop").then(|| "saved".to_string());
            assert_eq!(child.hear(), saved, "{role}");
            assert_eq!(child.child.wait().unwrap().code(), Some(code), "{role}");
        }
    }
    assert_eq!(Error::new(Kind::Signal(15), "train").exit_code(), 143);
}

/// A disk that overstates its free space, as when another program fills it after we asked.
struct Boastful;

impl Disk for Boastful {
    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        RealDisk.create(path)
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        RealDisk.open(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        RealDisk.make_folder(folder)
    }
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        RealDisk.sync_folder(folder)
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(folder)
    }
    fn lock(&self, path: &Path, owner: &str) -> io::Result<Box<dyn Any + Send>> {
        RealDisk.lock(path, owner)
    }
}

/// A file system of 4 MiB in memory, gone when dropped; None without the right to mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<SmallDisk> {
        let folder = tempfile::tempdir().unwrap();
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
            .arg(folder.path())
            .stderr(Stdio::null())
            .status();
        done.is_ok_and(|s| s.success()).then_some(SmallDisk(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_keeps_the_old_checkpoint_and_says_what_to_do() {
    let Some(small) = SmallDisk::mount() else {
        eprintln!("SKIPPED: no right to mount a small file system, so no disk was really filled");
        return;
    };
    let path = small.0.path().join("run");
    let scale = 550; // about 1.5 MB a checkpoint: two fit, a third does not
    let mut folder = Folder::own(&RealDisk, &path).unwrap();
    for step in [1, 2] {
        save(&mut folder, &expected(step, scale)).unwrap();
    }
    let asked = save(&mut folder, &expected(3, scale)).unwrap_err();
    assert!(asked.to_string().contains("bytes free (1.1 times the file)"), "{asked}");
    drop(folder);

    let mut folder = Folder::own(&Boastful, &path).unwrap();
    let full = save(&mut folder, &expected(3, scale)).unwrap_err();
    assert!(full.to_string().contains("No space left on device"), "{full}");
    for e in [asked, full] {
        let text = e.to_string();
        assert_eq!((e.kind(), e.exit_code()), (Kind::Write, 4), "{text}");
        assert!(text.contains("step-000000003.safetensors") && text.contains("free "), "{text}");
        assert!(
            text.contains(path.to_str().unwrap()) && text.contains("nothing saved before is lost"),
            "{text}"
        );
    }
    assert_eq!(partials(&path), [] as [String; 0]);
    let found = checkpoint::latest(&RealDisk, &path, |e| panic!("{e}")).unwrap().unwrap();
    assert!(checkpoint::load(&RealDisk, &found).unwrap() == expected(2, scale));
    folder.prune(1, 0).unwrap();
    save(&mut folder, &expected(3, scale)).unwrap();
}

#[test]
fn no_folder_is_no_checkpoint_and_no_file_is_an_error() {
    let temporary = tempfile::tempdir().unwrap();
    let missing = temporary.path().join("missing");
    assert_eq!(checkpoint::latest(&RealDisk, &missing, |_| ()), Ok(None));
    let e = checkpoint::load(&RealDisk, &missing).unwrap_err();
    assert!(e.kind() == Kind::File && e.to_string().contains("check the path"), "{e}");
    std::fs::write(&missing, "a file").unwrap();
    let e = Folder::own(&RealDisk, &missing).map(|_| ()).unwrap_err();
    assert!(e.kind() == Kind::Write && RealDisk.open(&missing).is_ok(), "{e}");
    let taken = RealDisk.create(&missing).map(|_| ()).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
}
