//! Captions in a table: CSV or TSV with a heading line naming the columns `image`, `caption` and, if
//! there is one, `image_id`; other columns are ignored. One caption a line; quoting as in RFC 4180.

use super::files::{quoted, shortened};
use super::{Builder, MAX_ENTRIES, OPERATION};
use crate::{Error, Result};

pub(super) fn read(text: &str, delimiter: u8, builder: &mut Builder) -> Result<()> {
    let mut table = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(text.as_bytes());
    let source = builder.source;
    let wrong = |e: csv::Error| {
        Error::file(OPERATION, source, "a table with the same columns in every line", shortened(&e))
    };
    let heading = table.headers().map_err(wrong)?.clone();
    let column = |name: &str| heading.iter().position(|h| h.trim().eq_ignore_ascii_case(name));
    let (Some(image), Some(caption)) = (column("image"), column("caption")) else {
        let got = quoted(&heading.iter().collect::<Vec<_>>().join(","));
        return Err(Error::file(OPERATION, source, "columns named image and caption", got)
            .fix("write a first line such as image,caption"));
    };
    let image_id = column("image_id");
    for (n, line) in table.records().enumerate() {
        if n == MAX_ENTRIES {
            let expected = format!("at most {MAX_ENTRIES} lines");
            return Err(Error::file(OPERATION, source, expected, "more").fix("split it into several files"));
        }
        let line = line.map_err(wrong)?;
        let name = line.get(image).unwrap_or_default();
        let id = image_id.and_then(|c| line.get(c)).filter(|id| !id.is_empty()).unwrap_or(name);
        if let Some(sample) = builder.sample(name, id)? {
            builder.caption(sample, line.get(caption).unwrap_or_default(), None);
        }
    }
    Ok(())
}
