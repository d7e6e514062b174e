//! JSON cut into its values without parsing them: the window holds one entry at a time, however long the list is.
//!
//! Only strings and depth are followed here; whether a value is JSON is decided by serde_json when it is parsed. Python's
//! NaN, Infinity and -Infinity become an empty object: no number, no text, no caption.

use super::super::files::shortened;
use super::OPERATION;
use super::text::Text;
use crate::{Error, Result};
use serde::de::DeserializeOwned;

pub const CAPTIONS: &str =
    "captions: objects with a picture's name (image, file_name, ..) and its caption (caption, text, ..)";

impl Text {
    /// The next byte that is no white space; `None` at the end.
    pub fn peek(&mut self) -> Result<Option<u8>> {
        loop {
            let blank = self.rest().iter().take_while(|b| b.is_ascii_whitespace()).count();
            let next = self.rest().get(blank).copied();
            self.done(blank);
            if next.is_some() || !self.fill()? {
                return Ok(next);
            }
        }
    }

    /// Takes this byte, which must come next.
    pub fn take_byte(&mut self, byte: u8) -> Result<()> {
        match self.peek()? {
            Some(b) if b == byte => {
                self.done(1);
                Ok(())
            }
            other => {
                let got = other.map_or("the end of the file".into(), |b| format!("{:?}", char::from(b)));
                Err(self.wrong(&format!("{:?} expected, {got} found", char::from(byte))))
            }
        }
    }

    /// Goes through a list from `[` to `]`.
    pub fn list(&mut self, mut each: impl FnMut(&mut Text) -> Result<()>) -> Result<()> {
        self.take_byte(b'[')?;
        if self.peek()? == Some(b']') {
            self.done(1);
            return Ok(());
        }
        loop {
            each(self)?;
            if self.peek()? == Some(b']') {
                self.done(1);
                return Ok(());
            }
            self.take_byte(b',')?;
        }
    }

    /// Goes through an object from `{` to `}`: `each` takes the value of the key.
    pub fn object(&mut self, mut each: impl FnMut(&mut Text, String) -> Result<()>) -> Result<()> {
        self.take_byte(b'{')?;
        if self.peek()? == Some(b'}') {
            self.done(1);
            return Ok(());
        }
        loop {
            let key: String = self.value()?;
            self.take_byte(b':')?;
            each(self, key)?;
            if self.peek()? == Some(b'}') {
                self.done(1);
                return Ok(());
            }
            self.take_byte(b',')?;
        }
    }

    /// The next value.
    pub fn value<T: DeserializeOwned>(&mut self) -> Result<T> {
        let length = self.length()?;
        let json = self.rest().get(..length).unwrap_or_default();
        let parsed = parse(json);
        match parsed {
            Ok(value) => {
                self.done(length);
                self.mark(length);
                Ok(value)
            }
            Err(e) => {
                let (message, lines) = (e.to_string(), e.line().max(1) as u64 - 1);
                let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(what, _)| what);
                let place =
                    format!("line {}, column {}: {}", self.line() + lines, e.column(), shortened(&message));
                Err(self.refused(place))
            }
        }
    }

    /// The next value, passed over.
    pub fn skip(&mut self) -> Result<()> {
        let length = self.length()?;
        self.done(length);
        Ok(())
    }

    fn length(&mut self) -> Result<usize> {
        self.peek()?;
        let mut scan = Scan::default();
        loop {
            match scan.go(self.rest()) {
                Some(length) if length > 0 => return Ok(length),
                Some(_) => return Err(self.wrong("a value is missing")),
                None if self.fill()? => {}
                None => {
                    return match scan.at_end() {
                        Some(length) => Ok(length),
                        None => Err(self.wrong("the file ends in the middle of the entry that begins here")),
                    };
                }
            }
        }
    }

    /// The length of the next value if it ends within the window.
    pub fn length_in_window(&self) -> Option<usize> {
        let mut scan = Scan::default();
        scan.go(self.rest()).or_else(|| scan.at_end().filter(|_| self.ended()))
    }

    /// The error of something that is no JSON, or not what was expected next.
    pub fn wrong(&self, got: &str) -> Error {
        self.refused(format!("line {}: {got}", self.line()))
    }

    /// The error of the value that was taken last.
    pub fn wrong_value(&self, got: &str) -> Error {
        self.refused(format!("line {}: {got}", self.line_of_value()))
    }

    fn refused(&self, got: String) -> Error {
        Error::file(OPERATION, &self.path, CAPTIONS, got).fix("repair the file at that line")
    }
}

/// A value, whoever wrote its numbers.
pub fn parse<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(json).or_else(|e| match without_nan(json) {
        Some(json) => serde_json::from_slice(&json),
        None => Err(e),
    })
}

/// Where in a value a scan stands.
#[derive(Default)]
struct Scan {
    at: usize,
    depth: usize,
    string: bool,
    escaped: bool,
    begun: bool,
}

impl Scan {
    /// Goes on through `bytes`, which begin where they did before; the length of the value once its end is there.
    fn go(&mut self, bytes: &[u8]) -> Option<usize> {
        while let Some(&b) = bytes.get(self.at) {
            if self.string {
                match b {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => {
                        self.string = false;
                        if self.depth == 0 {
                            return Some(self.at + 1);
                        }
                    }
                    _ => {}
                }
                self.at += 1;
                continue;
            }
            match b {
                b'"' if self.depth == 0 && self.begun => return Some(self.at),
                b'"' => self.string = true,
                b'{' | b'[' if self.depth == 0 && self.begun => return Some(self.at),
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth == 0 => return Some(self.at),
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(self.at + 1);
                    }
                }
                b',' | b':' if self.depth == 0 => return Some(self.at),
                _ if self.depth == 0 && b.is_ascii_whitespace() => return Some(self.at),
                _ => {}
            }
            self.begun = true;
            self.at += 1;
        }
        None
    }

    /// A number or a word may end with the file.
    fn at_end(&self) -> Option<usize> {
        (self.begun && self.depth == 0 && !self.string).then_some(self.at)
    }
}

/// The JSON of a text with `{}` for NaN and the infinities outside of strings; `None` if there are none.
fn without_nan(json: &[u8]) -> Option<Vec<u8>> {
    let (mut repaired, mut at) = (Vec::with_capacity(json.len()), 0);
    let (mut string, mut escaped, mut found) = (false, false, false);
    while let Some(&b) = json.get(at) {
        let rest = json.get(at..).unwrap_or_default();
        let word =
            ["NaN", "Infinity", "-Infinity"].into_iter().find(|w| !string && rest.starts_with(w.as_bytes()));
        if let Some(word) = word {
            repaired.extend_from_slice(b"{}");
            at += word.len();
            found = true;
            continue;
        }
        match b {
            _ if escaped => escaped = false,
            b'\\' if string => escaped = true,
            b'"' => string = !string,
            _ => {}
        }
        repaired.push(b);
        at += 1;
    }
    found.then_some(repaired)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_end_where_they_end() {
        for (text, length) in [
            (r#"{"a": "}\"]"} , 1"#, 13),
            ("[1, [2]]x", 8),
            ("12, 3", 2),
            (r#""a\\", "#, 5),
            ("true]", 4),
            ("{", 0),
            ("\"a", 0),
        ] {
            assert_eq!(Scan::default().go(text.as_bytes()).unwrap_or(0), length, "{text}");
        }
        let mut scan = Scan::default();
        assert_eq!((scan.go(b"12"), scan.at_end()), (None, Some(2)));
    }

    #[test]
    fn pythons_numbers_become_objects_outside_of_strings() {
        let repaired = without_nan(br#"{"a": NaN, "NaN \" NaN": [-Infinity, Infinity]}"#).unwrap();
        assert_eq!(repaired, br#"{"a": {}, "NaN \" NaN": [{}, {}]}"#);
        assert_eq!(without_nan(b"{\"NaN\": 1}"), None);
    }
}
