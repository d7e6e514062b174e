//! Writing to what a user may name: links, devices, pipes, long names, rights; and what killed processes leave.

use super::*;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

fn write(path: &Path, text: &str) -> Result<()> {
    write_atomic(&RealDisk, path, text.len() as u64, |to| to.write_all(text.as_bytes()))
}

fn names(folder: &Path) -> Vec<String> {
    let mut names = RealDisk.list(folder).unwrap();
    names.sort();
    names
}

#[test]
fn a_link_is_followed_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("store/deep")).unwrap();
    fs::write(at("store/old.json"), "old").unwrap();
    symlink("store/old.json", at("one.json")).unwrap();
    symlink(at("one.json"), at("two.json")).unwrap();
    symlink("store/deep/new.json", at("dangling.json")).unwrap();
    for (link, file) in [
        ("one.json", "store/old.json"),
        ("two.json", "store/old.json"),
        ("dangling.json", "store/deep/new.json"),
    ] {
        write(&at(link), link).unwrap();
        assert!(fs::symlink_metadata(at(link)).unwrap().is_symlink(), "{link}");
        assert_eq!(fs::read_to_string(at(file)).unwrap(), link);
    }
    assert_eq!(names(&at("store")), ["deep", "old.json"], "temporary files lie beside the target, and go");
    // A name of our own is never followed.
    write_beside(&RealDisk, &at("one.json"), 1, |to| to.write_all(b"x")).unwrap();
    assert!(fs::symlink_metadata(at("one.json")).unwrap().is_file());
    assert_eq!(fs::read_to_string(at("store/old.json")).unwrap(), "two.json");
    // Round in circles, into nowhere, onto a folder.
    symlink("b", at("a")).unwrap();
    symlink("a", at("b")).unwrap();
    symlink("no/such/file", at("nowhere")).unwrap();
    for bad in ["a", "nowhere", "store"] {
        assert_eq!(write(&at(bad), "x").unwrap_err().kind(), Kind::Write, "{bad}");
    }
}

#[test]
fn what_is_no_file_is_written_to_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let link = dir.path().join("link");
    symlink(&pipe, &link).unwrap();
    for path in [&pipe, &link] {
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::read_to_string(pipe).unwrap()
        });
        write(path, "through").unwrap();
        assert_eq!(reader.join().unwrap(), "through");
    }
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    write(Path::new("/dev/null"), "gone").unwrap();
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    let e = write(Path::new("/dev/full"), "never").unwrap_err();
    assert!(e.kind() == Kind::Write && e.to_string().contains("/dev/full"), "{e}");
    // An open file, by its number: what is in it stays.
    let file = dir.path().join("log");
    fs::write(&file, "before ").unwrap();
    let open = OpenOptions::new().append(true).open(&file).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&open);
    write(Path::new(&format!("/proc/self/fd/{number}")), "after").unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "before after");
    assert_eq!(names(dir.path()), ["link", "log", "pipe"]);
}

#[test]
fn rights_stay_and_are_there_before_the_contents() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    for mode in [0o600, 0o640, 0o444, 0o200, 0o664] {
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let seen = |to: &mut dyn Write| {
            let partial = names(dir.path()).into_iter().find(|n| n.ends_with(PARTIAL)).unwrap();
            let now = fs::metadata(dir.path().join(partial)).unwrap().mode() & 0o777;
            assert_eq!(now, mode | OWN, "while it is written");
            to.write_all(b"new")
        };
        write_atomic(&RealDisk, &path, 3, seen).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, mode, "{mode:o}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }
}

#[test]
fn a_hard_link_keeps_what_it_had() {
    let dir = tempfile::tempdir().unwrap();
    let [path, backup] = ["now", "backup"].map(|n| dir.path().join(n));
    fs::write(&path, "old").unwrap();
    fs::hard_link(&path, &backup).unwrap();
    write(&path, "new").unwrap();
    assert_eq!([&path, &backup].map(|p| fs::read_to_string(p).unwrap()), ["new", "old"]);
}

#[test]
fn the_longest_names_can_be_written() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    for bytes in [vec![b'a'; 255], "あ".repeat(85).into_bytes(), vec![0xff; 255]] {
        write(&dir.path().join(std::ffi::OsStr::from_bytes(&bytes)), "x").unwrap();
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    assert!(write(&dir.path().join("a".repeat(256)), "x").is_err());
}

#[test]
fn leftovers_of_the_dead_go_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let (dead, own) = (child.id(), std::process::id());
    let ours = format!(".qformer.{own}-999999.partial");
    let locked = format!(".qformer.{dead}-1.partial");
    let stays = [ours.as_str(), &locked, ".qformer.x-0.partial", ".other.partial", "notes.partial"];
    stays.iter().for_each(|name| fs::write(dir.path().join(name), "half").unwrap());
    let writer = File::open(dir.path().join(&locked)).unwrap();
    writer.lock().unwrap();
    let left = dir.path().join(format!(".qformer.{dead}-0.partial"));
    fs::write(&left, "half").unwrap();
    let lock = dir.path().join(".qformer.0123456789abcdef.lock");
    fs::write(&lock, "").unwrap();
    write(&dir.path().join("new"), "x").unwrap();
    assert!(!left.exists() && !lock.exists());
    stays.iter().for_each(|name| assert!(dir.path().join(name).exists(), "{name}"));
    // Where nothing else tells, age does.
    let day = std::time::SystemTime::now() - std::time::Duration::from_secs(25 * 3600);
    let old = File::options().write(true).open(dir.path().join(&ours)).unwrap();
    old.set_modified(day).unwrap();
    leftovers::sweep(dir.path());
    assert!(!dir.path().join(&ours).exists() && dir.path().join(&locked).exists());
}

#[test]
fn one_holds_a_file_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("count");
    fs::write(&path, "0").unwrap();
    symlink("count", dir.path().join("link")).unwrap();
    let add = |path: PathBuf| {
        move || {
            for _ in 0..50 {
                let _held = hold(&path).unwrap().unwrap();
                let n: u32 = fs::read_to_string(&path).unwrap().parse().unwrap();
                write(&path, &(n + 1).to_string()).unwrap();
            }
        }
    };
    let threads = [path.clone(), dir.path().join("link"), path.clone()].map(|p| std::thread::spawn(add(p)));
    threads.into_iter().for_each(|t| t.join().unwrap());
    assert_eq!(fs::read_to_string(&path).unwrap(), "150");
    assert_eq!(names(dir.path()), ["count", "link"]);
    assert!(hold(Path::new("/dev/null")).unwrap().is_none());
}
