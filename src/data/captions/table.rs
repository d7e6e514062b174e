//! Captions in a table: a heading line that names the columns, and a caption a line.
//!
//! Between columns stands a comma, tab, bar or semicolon: whichever makes the heading name a picture and a caption
//! (`image,caption`, Hugging Face's `file_name,text`, open_clip's `filepath TAB title`, Flickr's `image_name| comment_number|
//! comment`). Quotes as in RFC 4180, but not beside bars. Flickr's `name#n TAB caption` has no heading.

use super::super::files::{quoted, shortened};
use super::builder::Builder;
use super::entry::{CAPTIONS, Captions, IDS, Id, NAMES, rank};
use super::text::Text;
use super::{MAX_ENTRIES, OPERATION};
use crate::{Error, Result};
use csv::{ReaderBuilder, StringRecord, Trim};

/// How the columns of a table are told apart, and which are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    delimiter: u8,
    image: usize,
    caption: usize,
    image_id: Option<usize>,
    rank: Option<usize>,
}

impl Columns {
    /// The columns that a heading line names.
    pub fn of(heading: &str) -> Option<Columns> {
        b",\t|;".iter().find_map(|delimiter| {
            let names: Vec<String> = heading
                .trim_end_matches(['\r', '\n'])
                .split(char::from(*delimiter))
                .map(|name| name.trim().trim_matches('"').trim().to_lowercase())
                .collect();
            let best = |list: &[&str]| {
                let ranked = names.iter().enumerate().filter_map(|(at, name)| Some((rank(list, name)?, at)));
                ranked.min().map(|(_, at)| at)
            };
            let (image, caption) = (best(&NAMES)?, best(&CAPTIONS)?);
            let rank = names.iter().position(|name| name == "rank");
            Some(Columns { delimiter: *delimiter, image, caption, image_id: best(&IDS), rank })
        })
    }
}

/// A line of Flickr's tables: `1000092795.jpg#0 TAB Two young guys ..`.
pub fn token_line(line: &str) -> Option<(&str, &str)> {
    let (key, caption) = line.split_once('\t')?;
    let (name, number) = key.rsplit_once('#')?;
    (!name.is_empty() && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        .then_some((name, caption))
}

pub fn read(text: &mut Text, columns: Columns, builder: &mut Builder) -> Result<()> {
    let bars = columns.delimiter == b'|';
    let path = text.path.clone();
    let mut form = ReaderBuilder::new();
    form.delimiter(columns.delimiter).quoting(!bars).flexible(bars);
    form.trim(if bars { Trim::All } else { Trim::None });
    records(&form, text, |line, _| {
        let name = line.get(columns.image).unwrap_or_default();
        if name.is_empty() {
            let at = line.position().map_or(0, csv::Position::line);
            let got = format!("none in line {at}");
            return Err(Error::file(OPERATION, &path, "a picture's name in every line", got));
        }
        // Of a table of ranked captions the first of each picture is its best.
        let ranked = columns.rank.and_then(|c| line.get(c)).is_some_and(|r| r.trim() != "1");
        if builder.best() && ranked {
            return Ok(());
        }
        let id = columns.image_id.and_then(|c| line.get(c)).filter(|id| !id.is_empty()).map(Id::of_text);
        let sample = builder.sample(Some(name), id.as_ref())?;
        let caption = line.get(columns.caption).unwrap_or_default().to_owned();
        builder.captions(sample, Captions::One(Some(caption)), None)
    })
}

/// Flickr's tables without a heading.
pub fn token(text: &mut Text, builder: &mut Builder) -> Result<()> {
    let path = text.path.clone();
    let mut form = ReaderBuilder::new();
    form.delimiter(b'\t').quoting(false).flexible(true).has_headers(false);
    records(&form, text, |line, number| {
        let whole = line.iter().collect::<Vec<_>>().join("\t");
        let Some((name, caption)) = token_line(&whole) else {
            let got = format!("line {number}: {}", quoted(&whole));
            return Err(Error::file(OPERATION, &path, "name#number TAB caption in every line", got));
        };
        let sample = builder.sample(Some(name), None)?;
        builder.captions(sample, Captions::One(Some(caption.to_owned())), None)
    })
}

/// Every record of a table, with its number from 1.
fn records(
    form: &ReaderBuilder,
    text: &mut Text,
    mut each: impl FnMut(&StringRecord, usize) -> Result<()>,
) -> Result<()> {
    let path = text.path.clone();
    let mut table = form.from_reader(text);
    let mut line = StringRecord::new();
    let mut number = 0;
    while table.read_record(&mut line).map_err(|e| unreadable(&path, e))? {
        number += 1;
        if number > MAX_ENTRIES {
            let expected = format!("at most {MAX_ENTRIES} lines");
            return Err(Error::file(OPERATION, &path, expected, "more").fix("split it into several files"));
        }
        each(&line, number)?;
    }
    Ok(())
}

/// What the reader says of a line; an error of the file itself stays what it is.
fn unreadable(path: &std::path::Path, e: csv::Error) -> Error {
    if let csv::ErrorKind::Io(io) = e.kind()
        && let Some(own) = io.get_ref().and_then(|e| e.downcast_ref::<Error>())
    {
        return own.clone();
    }
    Error::file(OPERATION, path, "a table with the same columns in every line", shortened(&e))
        .fix("put quotes around captions that hold the sign between columns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_name_columns_in_the_fields_words() {
        let of = |heading: &str| Columns::of(heading).map(|c| (c.delimiter, c.image, c.caption));
        for (heading, columns) in [
            ("image,caption", Some((b',', 0, 1))),
            ("\"image_id\",\"caption\",\"image\"\r\n", Some((b',', 2, 1))),
            ("image_name| comment_number| comment", Some((b'|', 0, 2))),
            ("filepath\ttitle", Some((b'\t', 0, 1))),
            ("file_name,text", Some((b',', 0, 1))),
            ("Title;Image", Some((b';', 1, 0))),
            ("title,caption,path,image", Some((b',', 3, 1))),
            ("a,b", None),
            ("image", None),
        ] {
            assert_eq!(of(heading), columns, "{heading}");
        }
        assert_eq!(token_line("a#b.jpg#12\t二匹\tの犬"), Some(("a#b.jpg", "二匹\tの犬")));
        assert_eq!(token_line("a.jpg\t犬"), None);
    }
}
