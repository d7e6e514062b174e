//! Captions that someone else may have written, to be judged: JSON lists and JSON lines of objects with `caption` and
//! `image` or `image_id` (this program's, BLIP2-Japanese's, COCO's results), and this program's tables.

use super::captions::Format;
use crate::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// The most bytes of a file of captions.
const MAX_FILE: u64 = 4 << 30;

/// What a caption is said of: by the picture's name or its id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Of {
    Image(String),
    Id(String),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    One(String),
    /// Best first.
    Several(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Number(i64),
    Text(String),
}

#[derive(Deserialize)]
struct Entry {
    image: Option<String>,
    image_id: Option<Id>,
    caption: Text,
}

/// The first caption of every picture in a file.
pub fn read_results(path: &Path) -> Result<Vec<(Of, String)>> {
    const OPERATION: &str = "read results";
    let failed = |e| Error::io(OPERATION, path, &e);
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > MAX_FILE {
        let expected = format!("at most {} GiB", MAX_FILE >> 30);
        return Err(Error::file(OPERATION, path, expected, format!("{length} bytes")));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    let text =
        String::from_utf8(bytes).map_err(|e| Error::file(OPERATION, path, "UTF-8 text", e.utf8_error()))?;
    let text = text.trim_start_matches('\u{feff}');
    let wrong = |got: String| {
        let expected = "captions: objects with \"caption\" and \"image\" or \"image_id\"";
        Error::file(OPERATION, path, expected, got)
            .fix("write them with `qformer caption --out captions.json`")
    };
    match Format::of(path) {
        Some(Format::Csv) => table(text).map_err(wrong),
        _ if text.trim_start().starts_with('[') => {
            let entries: Vec<Entry> = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
            entries.into_iter().map(|e| first(e).map_err(wrong)).collect()
        }
        _ => {
            let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
            let entry = |(n, line): (usize, &str)| {
                let at = |e: String| wrong(format!("line {}: {e}", n + 1));
                serde_json::from_str(line).map_err(|e| at(e.to_string())).and_then(|e| first(e).map_err(at))
            };
            lines.map(entry).collect()
        }
    }
}

fn first(entry: Entry) -> Result<(Of, String), String> {
    let of = match (entry.image, entry.image_id) {
        (Some(image), _) => Of::Image(image),
        (None, Some(Id::Number(n))) => Of::Id(n.to_string()),
        (None, Some(Id::Text(id))) => Of::Id(id),
        (None, None) => return Err("a caption of no picture".into()),
    };
    match entry.caption {
        Text::One(caption) => Ok((of, caption)),
        Text::Several(captions) => {
            captions.into_iter().next().map(|c| (of, c)).ok_or_else(|| "a picture without a caption".into())
        }
    }
}

/// A table with the columns image and caption; of each picture the first line.
fn table(text: &str) -> Result<Vec<(Of, String)>, String> {
    let mut table = csv::Reader::from_reader(text.as_bytes());
    let header = table.headers().map_err(|e| e.to_string())?.clone();
    let column = |name: &str| header.iter().position(|h| h == name);
    let (Some(image), Some(caption)) = (column("image"), column("caption")) else {
        return Err(format!("a table without them: {}", header.iter().collect::<Vec<_>>().join(",")));
    };
    let mut known = std::collections::HashSet::new();
    let mut all = Vec::new();
    for row in table.records() {
        let row = row.map_err(|e| e.to_string())?;
        let name = row.get(image).unwrap_or_default().to_owned();
        if known.insert(name.clone()) {
            all.push((Of::Image(name), row.get(caption).unwrap_or_default().to_owned()));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let image = |n: &str| Of::Image(n.into());
        for (name, text, want) in [
            ("a.json", r#"[{"image": "x.jpg", "caption": ["犬", "猫"]}]"#, (image("x.jpg"), "犬")),
            ("b.json", r#" [{"image_id": 139, "caption": "犬"}]"#, (Of::Id("139".into()), "犬")),
            (
                "c.jsonl",
                "\n{\"image\":\"x.jpg\",\"caption\":[\"犬\"],\"itc\":[0.5]}\n",
                (image("x.jpg"), "犬"),
            ),
            ("d.csv", "image,rank,caption\n\"a,b.jpg\",1,犬\n\"a,b.jpg\",2,猫\n", (image("a,b.jpg"), "犬")),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            assert_eq!(read_results(&path).unwrap(), [(want.0, want.1.to_owned())], "{name}");
        }
        for text in ["[{\"caption\": \"犬\"}]", "[{\"image\": \"x\", \"caption\": []}]", "{}", "[1", "hello"]
        {
            let path = dir.path().join("bad.json");
            std::fs::write(&path, text).unwrap();
            assert!(read_results(&path).unwrap_err().to_string().contains("qformer caption"), "{text}");
        }
    }
}
