//! Which pictures a command works on: files, folders, patterns and lists, in one order, each with its name.
//!
//! A picture's name is what the results call it. Of a single folder it is the path inside that folder, as annotation files
//! have it; otherwise the path as it was given; with `--relative-to` the path inside that folder. Names use `/`,
//! are UTF-8 and unique: what is named twice is taken once.

use crate::data;
use crate::{Error, Kind, Result};
use std::collections::HashSet;
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
    /// Pictures: files, folders (with the folders inside them), patterns such as 'photos/**/*.jpg', @LIST for a
    /// file with a path on each line, - for such a list from standard input
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
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    pub pictures: Vec<Picture>,
    /// Paths that cannot be named in a result, with the reason.
    pub unusable: Vec<Error>,
    /// One file was named, nothing else: if it is broken there is nothing to go on with.
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
        let mut folders = Vec::new();
        let mut files = 0;
        let mut unread = data::Unread::default();
        for given in &self.given {
            if given.is_dir() {
                folders.push(given.as_path());
                paths.extend(data::walk(given, &mut unread)?);
            } else if given.exists() {
                files += 1;
                paths.push(given.clone());
            } else {
                paths.extend(absent(given, &mut unread)?);
            }
        }
        for list in &self.list {
            paths.extend(read_list(list)?);
        }
        if let Some(told) = unread.told() {
            eprintln!("{told}");
        }
        let only_folder = match folders[..] {
            [folder] if self.given.len() == 1 && self.list.is_empty() => Some(folder),
            _ => None,
        };
        let mut found = name(paths, self.relative_to.as_deref().or(only_folder))?;
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

/// An argument that is no path of the disk: standard input, a list or a pattern.
fn absent(given: &Path, unread: &mut data::Unread) -> Result<Vec<PathBuf>> {
    let bytes = given.as_os_str().as_bytes();
    match bytes {
        b"-" => read_list(given),
        [b'@', list @ ..] => read_list(Path::new(OsStr::from_bytes(list))),
        _ if bytes.iter().any(|b| b"*?[".contains(b)) => pattern(given, unread),
        _ => Err(Error::file(OPERATION, given, "a picture or a folder", "nothing of this name")
            .fix("check the path")),
    }
}

/// The files that a pattern fits, sorted.
fn pattern(given: &Path, unread: &mut data::Unread) -> Result<Vec<PathBuf>> {
    let wrong =
        |got: String| Error::argument(OPERATION, given.display().to_string(), "a pattern of paths", got);
    let text = given.to_str().ok_or_else(|| wrong("one that is not UTF-8".into()))?;
    let found = glob::glob(text).map_err(|e| wrong(e.to_string()))?;
    let mut files = Vec::new();
    for path in found {
        let path = path.map_err(|e| Error::io(OPERATION, e.path(), e.error()))?;
        if path.is_dir() {
            files.extend(data::walk(&path, unread)?);
        } else {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(
            Error::file(OPERATION, given, "files that the pattern fits", "none").fix("check the pattern")
        );
    }
    Ok(files)
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

/// Gives every path its name, the first of each name.
fn name(paths: Vec<PathBuf>, root: Option<&Path>) -> Result<Found> {
    let real = |p: &Path| p.canonicalize().map_err(|e| Error::io(OPERATION, p, &e));
    let absolute = root.map(real).transpose()?;
    let mut found = Found::default();
    let mut known = HashSet::new();
    if paths.len() > MAX_PICTURES {
        return Err(Error::argument(OPERATION, "PICTURES", format!("at most {MAX_PICTURES}"), paths.len()));
    }
    for path in paths {
        let inside = match (root, &absolute) {
            (Some(root), Some(absolute)) => path
                .strip_prefix(root)
                .map(Path::to_owned)
                .ok()
                .or_else(|| Some(parent(&path)?.strip_prefix(absolute).ok()?.join(path.file_name()?)))
                .ok_or_else(|| {
                    let got = format!("{}, which lies outside", path.display());
                    Error::argument(OPERATION, "relative-to", format!("pictures in {}", root.display()), got)
                })?,
            _ => path.clone(),
        };
        match joined(&inside) {
            Some(name) if known.contains(&name) => {}
            Some(name) => {
                known.insert(name.clone());
                found.pictures.push(Picture { name, path });
            }
            None => found
                .unusable
                .push(Error::file(OPERATION, &path, "a name in UTF-8", "other bytes").fix("rename the file")),
        }
    }
    Ok(found)
}

/// The real folder a file lies in (the file itself may be a link, under whose name it is known).
fn parent(path: &Path) -> Option<PathBuf> {
    crate::files::folder_of(path).canonicalize().ok()
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
