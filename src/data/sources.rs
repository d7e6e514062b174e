//! Where the pictures of a data set lie: a folder, or files that hold many: tar shards, parquet tables. Several of them are
//! named by a pattern: `shards/{00000..00099}.tar`, `data/train-*.parquet`.

use super::OPERATION;
use crate::{Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The most files that one pattern stands for.
const MAX_FILES: usize = 1_000_000;

#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    Folder(PathBuf),
    Shards(Vec<PathBuf>),
    Tables(Vec<PathBuf>),
}

impl Source {
    /// What a path or pattern names; `None` if it is a single file of another kind, or nothing of the kind at all.
    pub fn of(path: &Path) -> Result<Option<Source>> {
        if path.is_dir() {
            return Ok(Some(Source::Folder(path.to_owned())));
        }
        let pattern = path.to_str().filter(|text| !path.exists() && text.contains(['{', '*', '?', '[']));
        let files = match pattern {
            Some(text) => files(text)?,
            None if path.is_file() => vec![path.to_owned()],
            None => return Ok(None),
        };
        let kinds: Vec<Option<Kind>> = files.iter().map(|f| Kind::of(f)).collect::<Result<_>>()?;
        let all = |kind| kinds.iter().all(|k| *k == Some(kind));
        if all(Kind::Tar) {
            return Ok(Some(Source::Shards(files)));
        }
        if all(Kind::Parquet) {
            return Ok(Some(Source::Tables(files)));
        }
        match (pattern, files.iter().zip(&kinds).find(|(_, kind)| kind.is_none())) {
            (None, _) => Ok(None),
            (Some(text), odd) => {
                let got =
                    odd.map_or("both".into(), |(file, _)| format!("{}, which is neither", file.display()));
                Err(Error::file(OPERATION, text, "tar shards or parquet files", got))
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Tar,
    Parquet,
}

impl Kind {
    /// By the first bytes; a tar file of old may say nothing there, and a compressed one is refused later, by its name.
    fn of(file: &Path) -> Result<Option<Kind>> {
        let failed = |e| Error::io(OPERATION, file, &e);
        let mut start = Vec::new();
        File::open(file).map_err(failed)?.take(512).read_to_end(&mut start).map_err(failed)?;
        let name = file.to_string_lossy().to_lowercase();
        let named_tar = [".tar", ".tgz", ".tar.gz", ".tar.zst", ".tar.bz2", ".tar.xz"];
        Ok(if start.starts_with(b"PAR1") {
            Some(Kind::Parquet)
        } else if start.get(257..262) == Some(b"ustar") || named_tar.iter().any(|end| name.ends_with(end)) {
            Some(Kind::Tar)
        } else {
            None
        })
    }
}

/// The files that a pattern names, in its order; those of `*` by name.
fn files(pattern: &str) -> Result<Vec<PathBuf>> {
    if pattern.contains("://") || pattern.starts_with("pipe:") {
        return Err(Error::argument(OPERATION, pattern, "files on this machine", "an address")
            .fix("download them first"));
    }
    let mut files = Vec::new();
    for one in expand(pattern)? {
        if !one.contains(['*', '?', '[']) {
            files.push(PathBuf::from(one));
            continue;
        }
        let wrong = |e: glob::PatternError| Error::argument(OPERATION, pattern, "a pattern of paths", e);
        for path in glob::glob(&one).map_err(wrong)? {
            files.push(path.map_err(|e| Error::io(OPERATION, e.path(), e.error()))?);
        }
    }
    let missing = files.iter().find(|f| !f.is_file());
    match missing {
        Some(file) => Err(Error::file(OPERATION, file, format!("a file of {pattern}"), "none of this name")
            .fix("check the pattern")),
        None if files.is_empty() => {
            Err(Error::file(OPERATION, pattern, "files that the pattern fits", "none")
                .fix("check the pattern"))
        }
        None => Ok(files),
    }
}

/// Braces as the shell has them: `{a,b}`, and `{00..12}` with as many digits as the longer end if one begins with 0.
fn expand(pattern: &str) -> Result<Vec<String>> {
    let wrong =
        |got: &str| Error::argument(OPERATION, pattern, "braces such as {00000..00099} or {a,b}", got);
    let Some(open) = pattern.find('{') else { return Ok(vec![pattern.to_owned()]) };
    let rest = pattern.get(open + 1..).unwrap_or_default();
    let mut depth = 1;
    let close = rest.char_indices().find(|(_, c)| {
        depth += i32::from(*c == '{') - i32::from(*c == '}');
        depth == 0
    });
    let close = close.map(|(at, _)| at).ok_or_else(|| wrong("a brace without its end"))?;
    let (inside, after) = (rest.get(..close).unwrap_or_default(), rest.get(close + 1..).unwrap_or_default());
    let before = pattern.get(..open).unwrap_or_default();
    let parts = match inside.split_once("..").filter(|_| !inside.contains(['{', ','])) {
        Some((first, last)) => range(first, last).ok_or_else(|| wrong("a range that is none"))?,
        None => alternatives(inside),
    };
    if inside.is_empty() || parts.len() > MAX_FILES {
        return Err(wrong(if inside.is_empty() { "an empty brace" } else { "too many files" }));
    }
    let mut all = Vec::new();
    for part in parts {
        all.extend(expand(&format!("{before}{part}{after}"))?);
        if all.len() > MAX_FILES {
            return Err(wrong("too many files"));
        }
    }
    Ok(all)
}

fn range(first: &str, last: &str) -> Option<Vec<String>> {
    let digits =
        |text: &str| !text.is_empty() && text.len() <= 18 && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(first) || !digits(last) {
        return None;
    }
    let (a, b): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let padded = [first, last].iter().any(|text| text.len() > 1 && text.starts_with('0'));
    let width = if padded { first.len().max(last.len()) } else { 0 };
    if a.abs_diff(b) >= MAX_FILES as u64 {
        return None;
    }
    let number = |n: u64| format!("{n:0>width$}");
    Some(if a <= b { (a..=b).map(number).collect() } else { (b..=a).rev().map(number).collect() })
}

/// The parts between commas that stand in no inner brace.
fn alternatives(inside: &str) -> Vec<String> {
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for c in inside.chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        match (c, parts.last_mut()) {
            (',', _) if depth == 0 => parts.push(String::new()),
            (c, Some(part)) => part.push(c),
            _ => {}
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn braces_expand_as_in_a_shell() {
        let of = |pattern: &str| expand(pattern).map(|all| all.join(" ")).unwrap_or_else(|e| e.to_string());
        assert_eq!(of("a/{008..011}.tar"), "a/008.tar a/009.tar a/010.tar a/011.tar");
        assert_eq!(of("{9..11}"), "9 10 11");
        assert_eq!(of("{2..0}"), "2 1 0");
        assert_eq!(of("{a,b{1,2}}-{0..1}"), "a-0 a-1 b1-0 b1-1 b2-0 b2-1");
        assert_eq!(of("plain.tar"), "plain.tar");
        for bad in ["{", "{}", "{a..b}", "{0..99999999}", "{0..999999}{0..9}"] {
            assert!(of(bad).contains("braces such as"), "{bad}: {}", of(bad));
        }
    }
}
