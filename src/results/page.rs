//! The result of a search as one HTML page: no script, nothing fetched, pictures embedded as small JPEGs.
//!
//! Names and queries are strangers' text: everything is escaped, and the page forbids itself (by its content security
//! policy) to load or run anything that is not in it.

use base64::Engine;
use std::fmt::Write;

/// One picture that was found.
pub struct Hit {
    /// The picture's name.
    pub name: String,
    /// Where the file is, for the link.
    pub path: String,
    /// A JPEG; `None` where the picture can no longer be read.
    pub thumbnail: Option<Vec<u8>>,
    /// Scores by name, as they are shown.
    pub scores: Vec<(&'static str, Option<f32>)>,
}

/// The page; `query` is the text searched for or the name of the picture, whose thumbnail may be shown.
pub fn page(query: &str, shown: Option<&[u8]>, about: &str, hits: &[Hit]) -> String {
    let mut html = String::new();
    let title = escape(query);
    // Writing to a string does not fail.
    let _ = write!(
        html,
        "{HEAD}<title>{title} - qformer search</title>\n<style>{BASE}{}</style>\n<h1>",
        super::STYLE
    );
    if let Some(jpeg) = shown {
        let _ = write!(html, "<img class=\"query\" src=\"{}\" alt=\"\"> ", data(jpeg));
    }
    let _ = writeln!(html, "{title}</h1>\n<p>{}</p>\n<ol class=\"pictures\">", escape(about));
    for (rank, hit) in hits.iter().enumerate() {
        let (name, link) = (escape(&hit.name), escape(&file_link(&hit.path)));
        let picture = match &hit.thumbnail {
            Some(jpeg) => format!("<img src=\"{}\" alt=\"{name}\" loading=\"lazy\">", data(jpeg)),
            None => "<div class=\"gone\">no longer there</div>".to_owned(),
        };
        let _ = write!(html, "<li><a href=\"{link}\">{picture}</a><b>{}. {name}</b><table>", rank + 1);
        for (score, value) in &hit.scores {
            let value = value.map_or("-".to_owned(), |v| format!("{v:.4}"));
            let _ = write!(html, "<tr><td>{score}<td>{value}");
        }
        html.push_str("</table></li>\n");
    }
    html.push_str("</ol>\n</html>\n");
    html
}

pub(super) const HEAD: &str = "<!doctype html>\n<html lang=\"ja\">\n<meta charset=\"utf-8\">\n\
    <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n\
    <meta name=\"viewport\" content=\"width=device-width\">\n";

pub(super) const BASE: &str = "
:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; }
.query { height: 6rem; vertical-align: middle; border-radius: .3rem; }
b { display: block; margin: .5rem 0; font-weight: 600; overflow-wrap: anywhere; }
table { width: 100%; font-size: .85rem; font-variant-numeric: tabular-nums; }
td + td { text-align: right; }
";

/// A JPEG inside a page.
pub fn data(jpeg: &[u8]) -> String {
    format!("data:image/jpeg;base64,{}", base64::engine::general_purpose::STANDARD.encode(jpeg))
}

/// A `file:` link: whatever could mean something in a link is written by its number.
fn file_link(path: &str) -> String {
    let mut link = String::from("file://");
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' => {
                link.push(byte.into())
            }
            _ => drop(write!(link, "%{byte:02X}")),
        }
    }
    link
}

/// Text for between tags and inside double quotes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Control characters are not allowed in HTML.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_text() {
        let hit = Hit {
            name: "\"><script>alert(1)</script>.jpg".into(),
            path: "/p/\"><script>&'.jpg".into(),
            thumbnail: Some(vec![0xff, 0xd8]),
            scores: vec![("itc", Some(0.25)), ("itm", None)],
        };
        let html = page("<b>二匹の犬\u{1}", None, "1 & 2", &[hit]);
        assert!(!html.contains("<script") && !html.contains("<b>二"), "{html}");
        assert!(html.contains("&lt;b&gt;二匹の犬\u{fffd}") && html.contains("1 &amp; 2"));
        assert!(html.contains("file:///p/%22%3E%3Cscript%3E%26%27.jpg"));
        assert!(
            html.contains("data:image/jpeg;base64,/9g=")
                && html.contains("<td>itc<td>0.2500<tr><td>itm<td>-")
        );
    }
}
