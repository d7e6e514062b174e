//! Text as a sentencepiece model wants it: replacement rules at each place, the longest prefix first; spaces to ▁, one
//! before (or after) the text, runs and ends left out, as the model's file says.

use super::charsmap::Charsmap;
use super::pieces::Lookup;
use crate::text::cursor::Found;

/// What a space becomes, and what stands for it in pieces.
pub const SPACE: &str = "\u{2581}";

/// How text is normalised.
pub struct Rules {
    pub charsmap: Option<Charsmap>,
    pub add_dummy_prefix: bool,
    pub remove_extra_whitespaces: bool,
    pub escape_whitespaces: bool,
    /// The space that is added goes to the end.
    pub space_last: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            charsmap: None,
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
            space_last: false,
        }
    }
}

impl Rules {
    pub fn set_charsmap(&mut self, bytes: &[u8]) -> Found<()> {
        self.charsmap = if bytes.is_empty() { None } else { Some(Charsmap::parse(bytes)?) };
        Ok(())
    }

    /// The normalised text. Symbols that users defined stay as they are.
    pub fn apply(&self, text: &str, defined: Option<&Lookup>) -> String {
        let mut rest = text;
        if self.remove_extra_whitespaces {
            while let (" ", length @ 1..) = self.prefix(rest, defined) {
                rest = rest.get(length..).unwrap_or_default();
            }
        }
        if rest.is_empty() {
            return String::new();
        }
        let space = if self.escape_whitespaces { SPACE } else { " " };
        let mut normalized = String::with_capacity(rest.len() + rest.len() / 2);
        if self.add_dummy_prefix && !self.space_last {
            normalized.push_str(space);
        }
        let mut after_space = self.remove_extra_whitespaces;
        while !rest.is_empty() {
            let (mut piece, length) = self.prefix(rest, defined);
            if after_space {
                piece = piece.trim_start_matches(' ');
            }
            if !piece.is_empty() {
                let mut parts = piece.split(' ');
                normalized.push_str(parts.next().unwrap_or_default());
                for part in parts {
                    normalized.push_str(space);
                    normalized.push_str(part);
                }
                after_space = self.remove_extra_whitespaces && piece.ends_with(' ');
            }
            rest = rest.get(length..).unwrap_or_default();
        }
        if self.remove_extra_whitespaces {
            normalized.truncate(normalized.trim_end_matches(space).len());
        }
        if self.add_dummy_prefix && self.space_last {
            normalized.push_str(space);
        }
        normalized
    }

    /// What the beginning of a text becomes, and how many bytes of it that is.
    fn prefix<'a>(&'a self, text: &'a str, defined: Option<&Lookup>) -> (&'a str, usize) {
        let kept = |length| (text.get(..length).unwrap_or_default(), length);
        if let Some(length) = defined.and_then(|d| d.longest(text)) {
            return kept(length);
        }
        match self.charsmap.as_ref().and_then(|map| map.longest(text)) {
            Some((length, replacement)) => (replacement, length),
            None => kept(text.chars().next().map_or(0, char::len_utf8)),
        }
    }
}
