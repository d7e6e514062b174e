//! Which pictures a command works on: files, folders, patterns and lists, in one order, each with its name.
//!
//! A picture's name is what the results call it. Of a single folder it is the path inside that folder, as annotation files
//! have it; otherwise the path as it was given; with `--relative-to` the path inside that folder. Names use `/`,
//! are UTF-8 and unique: a file that is given twice, however its path is spelled, is taken once. Two files whose names are
//! the same in Unicode's composed form cannot be told apart in a result; the second is reported and left out. So is a folder
//! that cannot be read; the others are walked.

use crate::data::{self, Image};
use crate::files::{composed, folder_of};
use crate::terminal::note;
use crate::{Error, Kind, Result};
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

const OPERATION: &str = "find pictures";
/// Bounds of a list of paths, in bytes, and of all pictures together.
const MAX_LIST: u64 = 1 << 30;
const MAX_PICTURES: usize = 10_000_000;

#[derive(clap::Args)]
pub struct Inputs {
    /// Pictures: files, folders (with the folders inside them), patterns such as 'photos/**/*.jpg', tar shards
    /// ('shards/{00000..00099}.tar'), parquet files, @LIST for a file with a path on each line, - for such a list from
    /// standard input
    #[arg(value_name = "PICTURES")]
    given: Vec<PathBuf>,
    /// A file with a path on each line (or, with NUL bytes between them, as `find -print0` writes); the same as @FILE
    #[arg(long, value_name = "FILE")]
    list: Vec<PathBuf>,
    /// Name pictures by their path inside this folder [default: the folder, if a single one is given]
    #[arg(long, value_name = "FOLDER")]
    relative_to: Option<PathBuf>,
}

/// A picture file and its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    pub name: String,
    pub path: PathBuf,
    pub image: Image,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    pub pictures: Vec<Picture>,
    /// Pictures and folders that cannot be used, with the reason.
    pub unusable: Vec<Error>,
    /// One file was named, nothing else: if it is broken there is nothing else to do.
    pub single: bool,
}

impl Inputs {
    pub fn is_empty(&self) -> bool {
        self.given.is_empty() && self.list.is_empty()
    }

    /// All pictures, in the order given; those of a folder or pattern by name.
    pub fn find(&self) -> Result<Found> {
        if self.is_empty() {
            return Err(Error::argument(
                OPERATION,
                "PICTURES",
                "at least one picture, folder or list",
                "none",
            )
            .fix("name a folder, or - to read paths from standard input"));
        }
        let mut paths = Vec::new();
        let mut unusable = Vec::new();
        let mut folders = Vec::new();
        let mut files = 0;
        let mut unread = data::Unread::default();
        let mut inside = Vec::new();
        for given in &self.given {
            if let Some(pictures) = data::inside(given)? {
                inside.extend(pictures);
                continue;
            }
            if given.is_dir() {
                folders.push(given.as_path());
                walk(given, &mut paths, (&mut unusable, &mut unread))?;
            } else if given.exists() {
                files += 1;
                paths.push(given.clone());
            } else {
                absent(given, &mut paths, (&mut unusable, &mut unread))?;
            }
        }
        for list in &self.list {
            paths.extend(read_list(list)?);
        }
        if let Some(told) = unread.told() {
            note!("{told}");
        }
        let only_folder = match folders[..] {
            [folder] if self.given.len() == 1 && self.list.is_empty() => Some(folder),
            _ => None,
        };
        let mut found = name(paths, self.relative_to.as_deref().or(only_folder))?;
        found.unusable.splice(0..0, unusable);
        for (name, image) in inside {
            found.pictures.push(Picture { name, path: image.path(), image });
        }
        found.single = files == 1 && self.given.len() == 1 && self.list.is_empty();
        if found.pictures.is_empty() && found.unusable.is_empty() {
            let got =
                self.given.iter().chain(&self.list).map(|p| p.display().to_string()).collect::<Vec<_>>();
            return Err(Error::new(Kind::File, OPERATION)
                .about(got.join(" "))
                .expected("pictures (.jpg .jpeg .png .webp .gif .bmp)")
                .got("none")
                .fix("check the path"));
        }
        Ok(found)
    }
}

/// What cannot be used and why, and the files of kinds that are not read.
type Left<'a> = (&'a mut Vec<Error>, &'a mut data::Unread);

/// The pictures of a folder.
fn walk(folder: &Path, paths: &mut Vec<PathBuf>, (unusable, unread): Left) -> Result<()> {
    let found = data::walk(folder, unread)?;
    paths.extend(found.pictures);
    unusable.extend(found.failed);
    Ok(())
}

/// An argument that is no path of the disk: standard input, a list or a pattern.
fn absent(given: &Path, paths: &mut Vec<PathBuf>, out: Left) -> Result<()> {
    let bytes = given.as_os_str().as_bytes();
    match bytes {
        b"-" => paths.extend(read_list(given)?),
        [b'@', list @ ..] => paths.extend(read_list(Path::new(OsStr::from_bytes(list)))?),
        _ if bytes.iter().any(|b| b"*?[".contains(b)) => pattern(given, paths, out)?,
        _ => {
            return Err(Error::file(OPERATION, given, "a picture or a folder", "nothing of this name")
                .fix("check the path"));
        }
    }
    Ok(())
}

/// The files that a pattern fits, sorted.
fn pattern(given: &Path, paths: &mut Vec<PathBuf>, (unusable, unread): Left) -> Result<()> {
    let wrong =
        |got: String| Error::argument(OPERATION, given.display().to_string(), "a pattern of paths", got);
    let text = given.to_str().ok_or_else(|| wrong("one that is not UTF-8".into()))?;
    let found = glob::glob(text).map_err(|e| wrong(e.to_string()))?;
    let before = (paths.len(), unusable.len());
    for path in found {
        match path {
            Ok(path) if path.is_dir() => walk(&path, paths, (unusable, unread))?,
            Ok(path) => paths.push(path),
            Err(e) => unusable.push(Error::io(OPERATION, e.path(), e.error())),
        }
    }
    if before == (paths.len(), unusable.len()) {
        return Err(
            Error::file(OPERATION, given, "files that the pattern fits", "none").fix("check the pattern")
        );
    }
    Ok(())
}

/// The paths of a list; `-` is standard input. A path that does not exist is met later, as a broken picture.
fn read_list(list: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::io("read a list of pictures", list, &e);
    let mut bytes = Vec::new();
    if list == Path::new("-") {
        std::io::stdin().lock().take(MAX_LIST + 1).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        let file = std::fs::File::open(list).map_err(failed)?;
        file.take(MAX_LIST + 1).read_to_end(&mut bytes).map_err(failed)?;
    }
    if bytes.len() as u64 > MAX_LIST {
        let expected = format!("at most {MAX_LIST} bytes");
        return Err(
            Error::file("read a list of pictures", list, expected, "more").fix("split it into several lists")
        );
    }
    // Editors on Windows put a byte order mark before a text.
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    let separator = if bytes.contains(&0) { 0 } else { b'\n' };
    let lines = bytes.split(|b| *b == separator);
    let lines = lines.map(|l| if separator == b'\n' { l.strip_suffix(b"\r").unwrap_or(l) } else { l });
    Ok(lines.filter(|l| !l.is_empty()).map(|l| PathBuf::from(OsStr::from_bytes(l))).collect())
}

/// Gives every path its name, the first of each file and of each name.
fn name(paths: Vec<PathBuf>, root: Option<&Path>) -> Result<Found> {
    let absolute = root.map(|p| p.canonicalize().map_err(|e| Error::io(OPERATION, p, &e))).transpose()?;
    let mut found = Found::default();
    let mut known: HashSet<String> = HashSet::new();
    let mut places = Places::default();
    if paths.len() > MAX_PICTURES {
        return Err(Error::argument(OPERATION, "PICTURES", format!("at most {MAX_PICTURES}"), paths.len()));
    }
    for path in paths {
        let real = places.real(&path);
        if !places.first(real.as_ref().unwrap_or(&path)) {
            continue;
        }
        let inside = match (root, &absolute) {
            (Some(root), Some(absolute)) => path
                .strip_prefix(root)
                .map(Path::to_owned)
                .ok()
                .or_else(|| Some(real?.strip_prefix(absolute).ok()?.to_owned()))
                .ok_or_else(|| {
                    let got = format!("{}, which lies outside", path.display());
                    Error::argument(OPERATION, "relative-to", format!("pictures in {}", root.display()), got)
                })?,
            _ => path.clone(),
        };
        let unusable = |expected, got| Error::file(OPERATION, &path, expected, got).fix("rename the file");
        match joined(&inside) {
            Some(name) if known.insert(composed(&name).into_owned()) => {
                found.pictures.push(Picture { name, image: Image::File(path.clone()), path });
            }
            Some(_) => {
                let got = "that of another picture, spelled otherwise in Unicode (NFC and NFD)";
                found.unusable.push(unusable("a name of its own", got));
            }
            None => found.unusable.push(unusable("a name in UTF-8", "other bytes")),
        }
    }
    Ok(found)
}

/// Where files really lie.
#[derive(Default)]
struct Places {
    folders: HashMap<PathBuf, Option<PathBuf>>,
    known: HashSet<PathBuf>,
}

impl Places {
    /// See [`real`]; each folder is looked up once.
    fn real(&mut self, path: &Path) -> Option<PathBuf> {
        let folder = folder_of(path);
        if !self.folders.contains_key(folder) {
            self.folders.insert(folder.to_owned(), folder.canonicalize().ok());
        }
        Some(self.folders.get(folder)?.as_ref()?.join(path.file_name()?))
    }

    fn first(&mut self, path: &Path) -> bool {
        self.known.insert(path.to_owned())
    }
}

/// The place of a file in the real folder it lies in (the file itself may be a link, under whose name it is known).
pub fn real(path: &Path) -> Option<PathBuf> {
    Some(folder_of(path).canonicalize().ok()?.join(path.file_name()?))
}

/// The parts of a path between slashes, without `.`; `None` if it is not UTF-8.
fn joined(path: &Path) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            // An empty part before the first slash.
            Component::RootDir => parts.push(""),
            other => parts.push(other.as_os_str().to_str()?),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(given: &[&Path]) -> Inputs {
        Inputs { given: given.iter().map(|p| p.to_path_buf()).collect(), list: Vec::new(), relative_to: None }
    }

    fn names(found: &Found) -> Vec<&str> {
        found.pictures.iter().map(|p| p.name.as_str()).collect()
    }

    #[test]
    fn names_are_paths_without_dots() {
        for (path, name) in
            [("a.jpg", "a.jpg"), ("./a/./b.jpg", "a/b.jpg"), ("/x/y.jpg", "/x/y.jpg"), ("../z", "../z")]
        {
            assert_eq!(joined(Path::new(path)).as_deref(), Some(name));
        }
        assert_eq!(joined(Path::new(OsStr::from_bytes(b"\xff.jpg"))), None);
    }

    #[test]
    fn a_folder_names_its_pictures_by_their_place_in_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("b")).unwrap();
        for name in ["z.jpg", "b/犬 1.PNG", "b/.hidden.jpg", "b/notes.txt", "[1].jpg"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let found = inputs(&[dir.path()]).find().unwrap();
        assert_eq!(names(&found), ["[1].jpg", "b/犬 1.PNG", "z.jpg"]);
        assert!(!found.single);
        // The folder and a file in it: names as given, each once.
        let file = dir.path().join("z.jpg");
        let found = inputs(&[dir.path(), &file]).find().unwrap();
        assert_eq!(found.pictures.len(), 3);
        assert!(names(&found).iter().all(|n| n.starts_with('/')));
        // A pattern; a name that looks like one but is a file.
        let found = inputs(&[&dir.path().join("**/*.PNG")]).find().unwrap();
        assert_eq!(found.pictures.len(), 1);
        let found = inputs(&[&dir.path().join("[1].jpg")]).find().unwrap();
        assert!(found.single && found.pictures.len() == 1);
        let found = Inputs { relative_to: Some(dir.path().into()), ..inputs(&[&file]) }.find().unwrap();
        assert_eq!(names(&found), ["z.jpg"]);
    }

    #[test]
    fn one_file_is_one_picture_however_it_is_spelled() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("b")).unwrap();
        for name in ["z.jpg", "b/y.jpg", "か\u{3099}.jpg"] {
            std::fs::write(at(name), "x").unwrap();
        }
        std::os::unix::fs::symlink("b", at("link")).unwrap();
        std::os::unix::fs::symlink("z.jpg", at("same.jpg")).unwrap();
        let given = [at("z.jpg"), at("./z.jpg"), at("b/../z.jpg"), at("b/y.jpg"), at("link/y.jpg")];
        let found = inputs(&given.iter().map(PathBuf::as_path).collect::<Vec<_>>()).find().unwrap();
        assert_eq!(
            found.pictures.iter().map(|p| p.path.clone()).collect::<Vec<_>>(),
            [at("z.jpg"), at("b/y.jpg")]
        );
        // A link to a picture is a picture of its own name; names that are one when composed are not two.
        assert_eq!(
            names(&inputs(&[dir.path()]).find().unwrap()),
            ["b/y.jpg", "same.jpg", "z.jpg", "か\u{3099}.jpg"]
        );
        std::fs::write(at("が.jpg"), "other").unwrap();
        let found = inputs(&[dir.path()]).find().unwrap();
        assert_eq!((found.pictures.len(), found.unusable.len()), (4, 1));
        assert!(found.unusable[0].to_string().contains("NFD"), "{}", found.unusable[0]);
    }

    #[test]
    fn lists_have_a_path_on_each_line_or_between_nul_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("list.txt");
        std::fs::write(&list, "a.jpg\r\n\nb c.jpg\n").unwrap();
        let at = PathBuf::from(format!("@{}", list.display()));
        assert_eq!(names(&inputs(&[&at]).find().unwrap()), ["a.jpg", "b c.jpg"]);
        std::fs::write(&list, "\u{feff}a.jpg\r\nb.jpg\r\n").unwrap();
        assert_eq!(names(&inputs(&[&at]).find().unwrap()), ["a.jpg", "b.jpg"]);
        std::fs::write(&list, "a\nb.jpg\0c.jpg\0").unwrap();
        let found = Inputs { list: vec![list], ..inputs(&[]) }.find().unwrap();
        assert_eq!(names(&found), ["a\nb.jpg", "c.jpg"]);
        std::fs::write(dir.path().join("odd"), b"\xff.jpg\nok.jpg").unwrap();
        let found = Inputs { list: vec![dir.path().join("odd")], ..inputs(&[]) }.find().unwrap();
        assert_eq!((names(&found), found.unusable.len()), (vec!["ok.jpg"], 1));
    }

    #[test]
    fn nothing_to_work_on_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(inputs(&[]).find().is_err());
        assert!(inputs(&[dir.path()]).find().unwrap_err().to_string().contains("expected pictures"));
        assert!(inputs(&[&dir.path().join("*.jpg")]).find().is_err());
        assert!(
            inputs(&[&dir.path().join("no.jpg")]).find().unwrap_err().to_string().contains("check the path")
        );
    }
}
