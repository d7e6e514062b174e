//! A file of captions that can be gone on with: what is in it stays, new pictures are added at its end, and it is
//! written whole each time (`files::write_atomic`), so that it can be read at any moment and no crash tears it.
//!
//!   JSON        [{"image": "x.jpg", "caption": ["...", ...]}, ...]      on one line, as Python's `json.dump` and so
//!               BLIP2-Japanese write it, with non-ASCII characters as they are, or escaped where `ascii` is set
//!   JSON lines  {"image":"x.jpg","caption":["..."],"log_prob":[..],"itc":[..],"itm":[..]}
//!   CSV         image,rank,caption,log_prob,itc,itm      a line per caption, ranks from 1

use crate::files::{self, Disk};
use crate::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const OPERATION: &str = "write captions";
/// The largest file that is gone on with.
const MAX_FILE: u64 = 4 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    JsonLines,
    Csv,
}

/// A caption and how sure the model is of it: the sum of its tokens' log-probabilities, and its scores as a search
/// for the picture would have them.
#[derive(Clone, Debug, PartialEq)]
pub struct Rated {
    pub caption: String,
    pub log_prob: f32,
    pub itc: f32,
    pub itm: f32,
}

/// A picture's captions, best first.
#[derive(Clone, Debug, PartialEq)]
pub struct Captioned {
    pub image: String,
    pub captions: Vec<Rated>,
}

/// An entry of the plain form; other keys would be lost when the file is written again, so they are refused.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain {
    image: String,
    caption: Vec<String>,
}

#[derive(Deserialize)]
struct Named {
    image: String,
}

impl Format {
    /// By the ending of a file's name.
    pub fn of(path: &Path) -> Option<Format> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "json" => Some(Format::Json),
            "jsonl" | "ndjson" => Some(Format::JsonLines),
            "csv" => Some(Format::Csv),
            _ => None,
        }
    }
}

/// One picture's captions in a format, without what stands between pictures.
pub fn render(captioned: &Captioned, format: Format, ascii: bool) -> Result<String> {
    let c = &captioned.captions;
    let text = match format {
        Format::Json => plain(&captioned.image, c.iter().map(|r| r.caption.as_str())),
        Format::JsonLines => {
            #[derive(Serialize)]
            struct Line<'a> {
                image: &'a str,
                caption: Vec<&'a str>,
                log_prob: Vec<f32>,
                itc: Vec<f32>,
                itm: Vec<f32>,
            }
            serde_json::to_string(&Line {
                image: &captioned.image,
                caption: c.iter().map(|r| r.caption.as_str()).collect(),
                log_prob: c.iter().map(|r| r.log_prob).collect(),
                itc: c.iter().map(|r| r.itc).collect(),
                itm: c.iter().map(|r| r.itm).collect(),
            })
            .map_err(|e| Error::new(Kind::Write, OPERATION).got(e))?
        }
        Format::Csv => {
            let mut lines = String::new();
            for (i, r) in c.iter().enumerate() {
                let numbers = [r.log_prob, r.itc, r.itm].map(|x| x.to_string());
                let [log_prob, itc, itm] = &numbers;
                lines +=
                    &csv_line(&[&captioned.image, &(i + 1).to_string(), &r.caption, log_prob, itc, itm])?;
            }
            lines
        }
    };
    Ok(if ascii && format != Format::Csv { escaped(&text) } else { text })
}

const COLUMNS: [&str; 6] = ["image", "rank", "caption", "log_prob", "itc", "itm"];

/// The first line of a table, without its end.
pub fn csv_header() -> String {
    COLUMNS.join(",")
}

/// `{"image": "x.jpg", "caption": ["..."]}` with the spaces of Python's `json.dump`.
fn plain<'a>(image: &str, captions: impl Iterator<Item = &'a str>) -> String {
    let quoted = |s: &str| serde_json::Value::from(s).to_string();
    let captions: Vec<String> = captions.map(quoted).collect();
    format!("{{\"image\": {}, \"caption\": [{}]}}", quoted(image), captions.join(", "))
}

/// JSON in ASCII: other characters as \uXXXX, in UTF-16 as JSON has it.
fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() && c != '\x7f' {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out += &format!("\\u{unit:04x}");
            }
        }
    }
    out
}

fn csv_line(cells: &[&str]) -> Result<String> {
    let failed = |e: String| Error::new(Kind::Write, OPERATION).about("csv").got(e);
    let mut line = csv::Writer::from_writer(Vec::new());
    line.write_record(cells).map_err(|e| failed(e.to_string()))?;
    let bytes = line.into_inner().map_err(|e| failed(e.to_string()))?;
    String::from_utf8(bytes).map_err(|e| failed(e.to_string()))
}

/// The pictures in a file of captions and their text as it stands there.
pub fn parse(text: &str, format: Format, path: &Path) -> Result<Vec<(String, String)>> {
    let wrong = |expected: &str, got: String| {
        Error::file("go on with captions", path, expected, got)
            .fix("choose another --out, or replace the file with --overwrite")
    };
    match format {
        Format::Json => {
            let expected = "a list of {\"image\": ..., \"caption\": [...]}";
            let list: Vec<Plain> = serde_json::from_str(text).map_err(|e| wrong(expected, e.to_string()))?;
            Ok(list
                .into_iter()
                .map(|p| {
                    let text = plain(&p.image, p.caption.iter().map(String::as_str));
                    (p.image, text)
                })
                .collect())
        }
        Format::JsonLines => {
            let named = |(n, line): (usize, &str)| match serde_json::from_str::<Named>(line) {
                Ok(named) => Ok((named.image, line.to_owned())),
                Err(e) => Err(wrong("an object with \"image\" on each line", format!("line {}: {e}", n + 1))),
            };
            text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()).map(named).collect()
        }
        Format::Csv => {
            let mut table = csv::Reader::from_reader(text.as_bytes());
            let header = table.headers().map_err(|e| wrong("a table", e.to_string()))?;
            if header.iter().ne(COLUMNS) {
                let got = header.iter().collect::<Vec<_>>().join(",");
                return Err(wrong(&format!("the columns {}", csv_header()), got));
            }
            let row = |row: Result<csv::StringRecord, csv::Error>| {
                let row = row.map_err(|e| wrong("a table", e.to_string()))?;
                Ok((row.get(0).unwrap_or_default().to_owned(), csv_line(&row.iter().collect::<Vec<_>>())?))
            };
            table.records().map(row).collect()
        }
    }
}

/// A file of captions while it grows.
pub struct CaptionFile {
    path: PathBuf,
    format: Format,
    ascii: bool,
    entries: Vec<String>,
    known: HashSet<String>,
    /// The file as we last read or wrote it.
    stamp: Option<(u64, SystemTime)>,
    changed: bool,
}

impl CaptionFile {
    /// Opens a file to go on with it, or begins a new one; `overwrite` forgets what is in it (the file itself
    /// is only replaced by the first [`CaptionFile::save`]). The folder must be there and writable.
    pub fn open(path: &Path, format: Format, ascii: bool, overwrite: bool) -> Result<CaptionFile> {
        if path.is_dir() {
            return Err(Error::argument(
                OPERATION,
                "out",
                "a file",
                format!("the folder {}", path.display()),
            ));
        }
        // Better now than after an hour of captioning.
        let folder = files::folder_of(path);
        tempfile::Builder::new()
            .prefix(".qformer-")
            .tempfile_in(folder)
            .map_err(|e| files::write_error(OPERATION, path, &e))?;
        let mut file = CaptionFile {
            path: path.to_owned(),
            format,
            ascii,
            entries: Vec::new(),
            known: HashSet::new(),
            stamp: stamp(path),
            changed: false,
        };
        if file.stamp.is_some() && !overwrite {
            let text = read(path)?;
            for (image, entry) in parse(&text, format, path)? {
                file.known.insert(image);
                file.entries.push(if ascii && format != Format::Csv { escaped(&entry) } else { entry });
            }
        }
        Ok(file)
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn has(&self, image: &str) -> bool {
        self.known.contains(image)
    }

    /// Pictures in the file.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    pub fn push(&mut self, captioned: &Captioned) -> Result<()> {
        self.entries.push(render(captioned, self.format, self.ascii)?);
        self.known.insert(captioned.image.clone());
        self.changed = true;
        Ok(())
    }

    /// Writes the file if there is anything new; an error if another program has written to it meanwhile.
    pub fn save(&mut self, disk: &dyn Disk) -> Result<()> {
        if !self.changed {
            return Ok(());
        }
        if stamp(&self.path) != self.stamp {
            return Err(Error::new(Kind::Write, OPERATION)
                .about(self.path.display().to_string())
                .expected("the file as it was when last read or written")
                .got("another: some other program wrote to it")
                .fix("let one command at a time write to it, and run this one again"));
        }
        let bytes: usize = self.entries.iter().map(|e| e.len() + 2).sum();
        files::write_atomic(disk, &self.path, bytes as u64 + 64, |to| self.write(to))?;
        self.stamp = stamp(&self.path);
        self.changed = false;
        Ok(())
    }

    fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        match self.format {
            Format::Json => {
                to.write_all(b"[")?;
                for (i, entry) in self.entries.iter().enumerate() {
                    to.write_all(if i == 0 { b"" } else { b", " })?;
                    to.write_all(entry.as_bytes())?;
                }
                to.write_all(b"]")
            }
            Format::JsonLines => self.entries.iter().try_for_each(|entry| writeln!(to, "{entry}")),
            Format::Csv => {
                writeln!(to, "{}", csv_header())?;
                self.entries.iter().try_for_each(|entry| to.write_all(entry.as_bytes()))
            }
        }
    }
}

fn stamp(path: &Path) -> Option<(u64, SystemTime)> {
    let about = std::fs::metadata(path).ok()?;
    Some((about.len(), about.modified().ok()?))
}

fn read(path: &Path) -> Result<String> {
    let failed = |e| Error::io("go on with captions", path, &e);
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > MAX_FILE {
        let expected = format!("at most {} GiB", MAX_FILE >> 30);
        return Err(Error::file("go on with captions", path, expected, format!("{length} bytes"))
            .fix("begin another file"));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    let text = String::from_utf8(bytes).map_err(|e| {
        Error::file("go on with captions", path, "UTF-8 text", e.utf8_error())
            .fix("choose another --out, or replace the file with --overwrite")
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::RealDisk;

    fn captioned(image: &str, captions: &[&str]) -> Captioned {
        let rated = |c: &&str| Rated { caption: (*c).into(), log_prob: -1.5, itc: 0.25, itm: -0.5 };
        Captioned { image: image.into(), captions: captions.iter().map(rated).collect() }
    }

    // What Python's json.dumps prints of this, with ensure_ascii (its default) and without.
    #[test]
    fn json_is_as_python_dumps_it() {
        let c = captioned("x\"\u{e9}\n\u{1}.jpg\u{7f}", &["二 匹 の 犬", "😀"]);
        let ascii = r#"{"image": "x\"\u00e9\n\u0001.jpg\u007f", "caption": ["\u4e8c \u5339 \u306e \u72ac", "\ud83d\ude00"]}"#;
        let plain = "{\"image\": \"x\\\"é\\n\\u0001.jpg\u{7f}\", \"caption\": [\"二 匹 の 犬\", \"😀\"]}";
        assert_eq!(render(&c, Format::Json, true).unwrap(), ascii);
        assert_eq!(render(&c, Format::Json, false).unwrap(), plain);
    }

    #[test]
    fn a_file_goes_on_where_it_was_left() {
        let dir = tempfile::tempdir().unwrap();
        for (name, format) in
            [("a.json", Format::Json), ("a.jsonl", Format::JsonLines), ("a.csv", Format::Csv)]
        {
            let path = dir.path().join(name);
            assert_eq!(Format::of(&path), Some(format));
            let names = ["x.jpg", "a, \"b\"\n.jpg", "=1+1.jpg"];
            let mut file = CaptionFile::open(&path, format, false, false).unwrap();
            file.push(&captioned(names[0], &["犬", "猫, と 「犬」"])).unwrap();
            file.save(&RealDisk).unwrap();
            let mut file = CaptionFile::open(&path, format, false, false).unwrap();
            assert!(file.has(names[0]) && !file.has(names[1]));
            for n in &names[1..] {
                file.push(&captioned(n, &["三 人"])).unwrap();
            }
            file.save(&RealDisk).unwrap();
            // All at once gives the same bytes.
            let other = dir.path().join(format!("all-{name}"));
            let mut all = CaptionFile::open(&other, format, false, false).unwrap();
            all.push(&captioned(names[0], &["犬", "猫, と 「犬」"])).unwrap();
            names[1..].iter().for_each(|n| all.push(&captioned(n, &["三 人"])).unwrap());
            all.save(&RealDisk).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(bytes, std::fs::read(&other).unwrap());
            let again = CaptionFile::open(&path, format, false, false).unwrap();
            assert_eq!(again.len(), 3);
            assert!(CaptionFile::open(&path, format, false, true).unwrap().is_empty());
        }
    }

    #[test]
    fn a_strangers_file_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        for text in [
            r#"{"images": [], "annotations": []}"#,
            r#"[{"image": "x.jpg", "caption": ["犬"], "image_id": 3}]"#,
            r#"[{"image": "x.jpg", "caption": ["#,
            "",
        ] {
            std::fs::write(&path, text).unwrap();
            let e = CaptionFile::open(&path, Format::Json, false, false).err().unwrap();
            assert!(e.to_string().contains("--overwrite"), "{e}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        std::fs::write(&path, "[]").unwrap();
        let mut file = CaptionFile::open(&path, Format::Json, false, false).unwrap();
        file.push(&captioned("x.jpg", &["犬"])).unwrap();
        std::fs::write(&path, r#"[{"image": "y.jpg", "caption": []}]"#).unwrap();
        assert!(file.save(&RealDisk).unwrap_err().to_string().contains("some other program"));
    }
}
