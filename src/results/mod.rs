//! What the commands write: files of captions, arrays of features, the page of a search, maps over a picture. Plain buffers in, whole files out.

mod arrays;
mod caption_file;
mod captions;
mod maps;
mod merge;
mod page;
pub mod shard;
mod sidecar;

pub use arrays::{Array, Spool, write_npy, write_safetensors};
pub use caption_file::CaptionFile;
pub use captions::{Captioned, Format, Rated, csv_header, parse, render};
pub use maps::{MapPage, Small, heat, paint};
pub use merge::{Merged, merge_captions};
pub use page::{Hit, data, escape, page};
pub use sidecar::SideCars;

/// How charts and small pictures look, on every page.
pub const STYLE: &str = include_str!("style.css");

/// Text without the spaces between Japanese words, as Japanese is written; spaces between two other words stay.
pub fn join_japanese(text: &str) -> String {
    let mut joined = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        if c != ' ' {
            joined.push(c);
            continue;
        }
        let before = joined.chars().next_back().is_some_and(is_japanese);
        let after = characters.peek().copied().is_some_and(is_japanese);
        if !before && !after {
            joined.push(' ');
        }
    }
    joined
}

/// Kana, kanji, their marks and punctuation, and the full-width forms of other characters.
fn is_japanese(c: char) -> bool {
    matches!(c, '\u{2e80}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{ff00}'..='\u{ffef}' | '\u{20000}'..='\u{323af}')
}

#[cfg(test)]
mod tests {
    use super::join_japanese;

    #[test]
    fn only_spaces_beside_japanese_go() {
        for (given, joined) in [
            ("二 匹 の 犬 が 道路 で フリスビー を し て いる", "二匹の犬が道路でフリスビーをしている"),
            ("黄色い t シャツ を 着 た 男性", "黄色いtシャツを着た男性"),
            ("new york の 街", "new yorkの街"),
            ("a b c", "a b c"),
            ("人 が 、 道路 に", "人が、道路に"),
            ("", ""),
        ] {
            assert_eq!(join_japanese(given), joined);
        }
    }
}
