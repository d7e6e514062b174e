//! Where text meets a terminal. Names of files, models and captions are strangers' text: whatever they hold, it is shown and never obeyed.
//!
//! Everything that is written to standard output or standard error passes [`printable`]: by `note!` here, by
//! `commands/output.rs` and by the progress line.

use std::borrow::Cow;
use std::fmt::Write;

/// The text with its control characters written as `\u001b`: those of ASCII but tab and line feed, those of Latin-1, and the marks
/// that turn the direction of writing or end a line. The form is JSON's, where they occur inside strings only, so JSON that passes
/// here says the same.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(acts) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts(c) {
            let _ = write!(out, "\\u{:04x}", u32::from(c)); // into memory
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Whether a terminal would do something instead of showing a character. All of these are below U+10000.
fn acts(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\t')
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A line to standard error. Nobody may be reading there; then there is nobody to tell.
pub fn tell(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{}", printable(text));
}

/// A duration as one reads it.
pub fn duration(t: std::time::Duration) -> String {
    let s = t.as_secs();
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}

/// A line to standard error, as `eprintln!` takes it.
macro_rules! note {
    ($($text:tt)*) => {
        $crate::terminal::tell(&format!($($text)*))
    };
}
pub(crate) use note;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        assert_eq!(
            printable("a\u{1b}]0;x\u{7}\u{9b}31m\r\u{7f}b"),
            r"a\u001b]0;x\u0007\u009b31m\u000d\u007fb"
        );
        assert_eq!(printable("abc\u{202e}gpj.exe\u{2066}"), r"abc\u202egpj.exe\u2066");
        for same in ["", "犬が\t走る\n", "Ünïcode “quotes” 👩‍👩‍👧 \u{3000}", r"\u001b"]
        {
            assert!(matches!(printable(same), Cow::Borrowed(text) if text == same));
        }
        let all: String = (0..=0x3000).filter_map(char::from_u32).collect();
        assert!(!printable(&all).chars().any(acts));
    }

    /// What is escaped inside JSON's strings is read as it was.
    #[test]
    fn json_stays_the_same_json() {
        let value = serde_json::json!({"na\u{9b}me\u{7f}": ["x\u{1b}\u{85}\u{202e}y", {"k\u{2028}": 1}]});
        let text = serde_json::to_string(&value).unwrap_or_default();
        let shown = printable(&text);
        assert!(!shown.chars().any(acts) && shown != text);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).ok(), Some(value));
    }
}
