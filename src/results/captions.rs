//! The forms of a file of captions: what a picture's captions look like in each, and which pictures a file holds.
//!
//!   JSON        [{"image": "x.jpg", "caption": ["...", ...]}, ...]      on one line, as Python's `json.dump` and so
//!               BLIP2-Japanese write it, with non-ASCII characters as they are, or escaped where `ascii` is set
//!   JSON lines  {"image":"x.jpg","caption":["..."],"log_prob":[..],"itc":[..],"itm":[..]}
//!   CSV         image,rank,caption,log_prob,itc,itm      a line per caption, ranks from 1

use crate::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::path::Path;

pub(super) const OPERATION: &str = "write captions";
/// The operation of a run that adds to a file.
pub(super) const ADDING: &str = "add to captions";

/// How captions are written.
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
    /// The text.
    pub caption: String,
    /// The sum over its tokens.
    pub log_prob: f32,
    /// See [`crate::pretrained::scores::Scores`].
    pub itc: f32,
    /// See [`crate::pretrained::scores::Scores`].
    pub itm: f32,
}

/// A picture's captions, best first.
#[derive(Clone, Debug, PartialEq)]
pub struct Captioned {
    /// The picture's name.
    pub image: String,
    /// Best first.
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
pub(super) fn escaped(json: &str) -> String {
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

/// What stands before the first picture of a file.
pub(super) fn begin(format: Format) -> String {
    match format {
        Format::Json => "[".into(),
        Format::JsonLines => String::new(),
        Format::Csv => csv_header() + "\n",
    }
}

/// A picture's text, with what stands between it and the one before.
pub(super) fn write_entry(format: Format, first: bool, text: &str, to: &mut dyn Write) -> io::Result<()> {
    let (before, after) = match format {
        Format::Json => (if first { "" } else { ", " }, ""),
        Format::JsonLines => ("", "\n"),
        // A line of a table has its end.
        Format::Csv => ("", ""),
    };
    [before, text, after].iter().try_for_each(|part| to.write_all(part.as_bytes()))
}

/// What stands behind the last one.
pub(super) fn end(format: Format) -> &'static str {
    if format == Format::Json { "]" } else { "" }
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
        Error::file(ADDING, path, expected, got)
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

#[cfg(test)]
mod tests {
    use super::*;

    // What Python's json.dumps prints of this, with ensure_ascii (its default) and without.
    #[test]
    fn json_is_as_python_dumps_it() {
        let rated = |c: &str| Rated { caption: c.into(), log_prob: -1.5, itc: 0.25, itm: -0.5 };
        let (name, captions) = ("x\"\u{e9}\n\u{1}.jpg\u{7f}", ["二 匹 の 犬", "😀"].map(rated).to_vec());
        let c = Captioned { image: name.into(), captions };
        let ascii = r#"{"image": "x\"\u00e9\n\u0001.jpg\u007f", "caption": ["\u4e8c \u5339 \u306e \u72ac", "\ud83d\ude00"]}"#;
        let plain = "{\"image\": \"x\\\"é\\n\\u0001.jpg\u{7f}\", \"caption\": [\"二 匹 の 犬\", \"😀\"]}";
        assert_eq!(render(&c, Format::Json, true).unwrap(), ascii);
        assert_eq!(render(&c, Format::Json, false).unwrap(), plain);
    }
}
