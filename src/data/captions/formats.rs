//! Which form a file of captions has: told by what is in it, never by its name, from one table of formats.

use super::super::files::quoted;
use super::builder::Builder;
use super::entry::{CAPTIONS, Entry, NAMES, rank};
use super::table::{self, Columns};
use super::text::Text;
use super::{OPERATION, json};
use crate::{Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// An object that ends within so many bytes may be one of several lines.
const LOOK: usize = 4 << 20;

/// The beginning of a file.
struct Head<'a> {
    text: &'a str,
    /// The first JSON object, if it ends within the window, and whether something comes after it.
    object: Option<(Entry, bool)>,
    /// It has lists as COCO's and Karpathy's objects have them.
    parts: bool,
}

struct Format {
    about: &'static str,
    fits: fn(&Head) -> bool,
    read: fn(&mut Text, &mut Builder) -> Result<()>,
}

/// Whether there is a list under the key of one of the parts of COCO's and Karpathy's objects.
fn has_parts(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    [r#""images""#, r#""annotations""#].into_iter().any(|key| {
        text.match_indices(key).any(|(at, _)| {
            let after = text.get(at + key.len()..).unwrap_or_default().trim_start();
            after.strip_prefix(':').is_some_and(|value| value.trim_start().starts_with('['))
        })
    })
}

/// In this order the first that fits is taken.
const FORMATS: [Format; 6] = [
    Format {
        about: "a JSON list of objects with image and caption (LAVIS)",
        fits: |h| h.text.starts_with('['),
        read: json::list,
    },
    Format { about: "JSON lines of such objects (file_name, text)", fits: is_lines, read: json::lines },
    Format {
        about: "a JSON object of images and annotations (COCO, STAIR, Karpathy)",
        fits: |h| h.parts,
        read: json::object,
    },
    Format {
        about: "a JSON object of captions by name",
        fits: |h| h.text.starts_with('{'),
        read: json::by_name,
    },
    Format {
        about: "lines of name#number TAB caption (Flickr's .token)",
        fits: |h| table::token_line(first_line(h.text)).is_some(),
        read: table::token,
    },
    Format {
        about: "a table whose first line names its columns (image,caption)",
        fits: |h| Columns::of(first_line(h.text)).is_some(),
        read: |text, builder| {
            let columns = Columns::of(first_line(&head_of(text)));
            columns.map_or(Ok(()), |columns| table::read(text, columns, builder))
        },
    },
];

/// Several objects one after the other, or a single one that is an entry.
fn is_lines(head: &Head) -> bool {
    let Some((entry, more)) = &head.object else { return false };
    let whole = (entry.name.is_some() || entry.image_id.is_some()) && entry.captions.is_some();
    head.text.starts_with('{') && (*more && !head.parts || whole)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn head_of(text: &Text) -> String {
    let bytes = text.rest();
    String::from_utf8_lossy(bytes.get(..bytes.len().min(1 << 16)).unwrap_or_default()).into_owned()
}

/// Reads the captions of a file in whichever form they are.
pub fn read(path: &Path, builder: &mut Builder) -> Result<()> {
    foreign(path)?;
    let mut text = Text::open(path)?;
    text.peek()?;
    if text.rest().first() == Some(&b'{') {
        text.reserve(LOOK)?;
    }
    let start = head_of(&text);
    let parts = start.starts_with('{') && has_parts(text.rest());
    let object = text.length_in_window().map(|length| {
        let (object, rest) = text.rest().split_at(length);
        let more = rest.iter().any(|b| !b.is_ascii_whitespace()) || !text.ended();
        (serde_json::from_slice(object).unwrap_or_default(), more)
    });
    let head = Head { text: &start, object, parts };
    match FORMATS.iter().find(|format| (format.fits)(&head)) {
        Some(format) => (format.read)(&mut text, builder),
        None => Err(unknown(path, &start)),
    }
}

fn unknown(path: &Path, start: &str) -> Error {
    let forms: Vec<&str> = FORMATS.iter().map(|f| f.about).collect();
    let got = match first_line(start) {
        "" if start.is_empty() => "an empty file".to_owned(),
        line => {
            let columns: Vec<&str> = line.split([',', '\t', '|', ';']).map(str::trim).collect();
            let has = |list: &[&str]| columns.iter().any(|c| rank(list, &c.to_lowercase()).is_some());
            let lacks = match (has(&NAMES), has(&CAPTIONS)) {
                _ if columns.len() < 2 => "",
                (true, false) => ", a heading without a column of captions",
                (false, true) => ", a heading without a column of pictures",
                _ => "",
            };
            format!("a text that begins with {}{lacks}", quoted(&line.chars().take(60).collect::<String>()))
        }
    };
    let fix = "write one of these, such as [{\"image\": \"a.jpg\", \"caption\": \"..\"}], or a first line image,caption";
    Error::file(OPERATION, path, forms.join("; "), got).fix(fix)
}

/// Files of another kind, by their first bytes: what they are, and what to do.
const FOREIGN: [(&[u8], &str, &str); 13] = [
    (b"\x1f\x8b", "a gzip file", "decompress it first (gzip -d)"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "decompress it first (zstd -d)"),
    (b"BZh", "a bzip2 file", "decompress it first (bzip2 -d)"),
    (b"\xfd7zXZ", "an xz file", "decompress it first (xz -d)"),
    (b"PK\x03\x04", "a zip file (or a spreadsheet)", "unpack it, or save the sheet as CSV"),
    (b"ARROW1", "an Arrow or Feather file", "write it as parquet or JSON lines"),
    (b"\x89HDF", "an HDF5 file", "write its captions as JSON"),
    (b"SQLite format 3", "an SQLite database", "write its captions as JSON or CSV"),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
    (b"\x80\x04\x95", "a Python pickle", "write it with json.dump"),
    (b"\xff\xd8\xff", "a JPEG picture", "name the file of captions"),
    (b"\x89PNG", "a PNG picture", "name the file of captions"),
];

/// Refuses files that are no text and no table of ours.
fn foreign(path: &Path) -> Result<()> {
    let failed = |e| Error::io(OPERATION, path, &e);
    let mut start = Vec::new();
    File::open(path).map_err(failed)?.take(512).read_to_end(&mut start).map_err(failed)?;
    let found = FOREIGN.iter().find(|(magic, ..)| start.starts_with(magic));
    match found {
        Some((_, what, fix)) => Err(Error::file(OPERATION, path, "captions as text", what).fix(fix)),
        None if start.get(257..262) == Some(b"ustar") => {
            let fix = format!("name it as the pictures, too: --images {}", path.display());
            Err(Error::file(OPERATION, path, "captions as text", "a tar file (webdataset)").fix(fix))
        }
        None => Ok(()),
    }
}
