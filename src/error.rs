//! The one error of the crate. Every error says what was asked (operation), of what (argument),
//! what was expected, what came instead, and - where we know it - what to change.

use std::borrow::Cow;
use std::fmt;

/// What sort of trouble it is; the command's exit code follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A wrong argument, option, configuration, shape or dtype. Exit code 2.
    Argument,
    /// A file that is missing, torn, hostile or of another kind. Exit code 3.
    File,
    /// Too much of a data set is unusable. Exit code 3.
    Data,
    /// Writing failed: the disk is full, the folder is not writable. Exit code 4.
    Write,
    /// The numbers differ from the recorded ones. Exit code 5.
    Parity,
    /// A GPU that is not there, or failed. Exit code 6.
    Device,
    /// A GPU has no memory left; what it holds is whole. Exit code 6.
    Memory,
    /// A loss or a gradient is not finite. Exit code 7.
    NonFinite,
    /// A process of a group does not answer, or what they have differs. Exit code 8.
    Group,
    /// Stopped by a signal after saving. Exit code 128 + the signal's number.
    Signal(i32),
}

#[derive(Debug, Clone, PartialEq)]
struct Inner {
    kind: Kind,
    operation: String,
    argument: String,
    expected: String,
    got: String,
    fix: String,
}

/// Shown the same way with `{}` and `{:?}`, so that `unwrap` and a `main` that returns it read well.
#[derive(Clone, PartialEq)]
pub struct Error(Box<Inner>);

/// What everything here that can fail returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of an operation, of which nothing else is said yet.
    pub fn new(kind: Kind, operation: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind,
            operation: operation.into(),
            argument: String::new(),
            expected: String::new(),
            got: String::new(),
            fix: String::new(),
        }))
    }

    /// A wrong argument of an operation: `Error::argument("linear", "weight", "[3, 4]", "[4, 3]")`.
    pub fn argument(
        operation: impl Into<String>,
        argument: impl Into<String>,
        expected: impl fmt::Display,
        got: impl fmt::Display,
    ) -> Self {
        Error::new(Kind::Argument, operation).about(argument).expected(expected).got(got)
    }

    /// Trouble with a file: `Error::file("load model", path, "a safetensors file", "a text file")`.
    pub fn file(
        operation: impl Into<String>,
        path: impl AsRef<std::path::Path>,
        expected: impl fmt::Display,
        got: impl fmt::Display,
    ) -> Self {
        Error::new(Kind::File, operation)
            .about(path.as_ref().display().to_string())
            .expected(expected)
            .got(got)
    }

    /// An error of the operating system at a path.
    pub fn io(
        operation: impl Into<String>,
        path: impl AsRef<std::path::Path>,
        error: &std::io::Error,
    ) -> Self {
        use std::io::ErrorKind as E;
        let write = matches!(
            error.kind(),
            E::StorageFull | E::ReadOnlyFilesystem | E::QuotaExceeded | E::PermissionDenied
        );
        let e = Error::new(if write { Kind::Write } else { Kind::File }, operation)
            .about(path.as_ref().display().to_string())
            .got(error);
        match error.kind() {
            E::NotFound => e.fix("check the path"),
            E::StorageFull => e.fix("free some space and run the same command again"),
            E::PermissionDenied | E::ReadOnlyFilesystem => e.fix("choose a path you may use"),
            _ => e,
        }
    }

    /// Of which argument, file or tensor.
    #[must_use]
    pub fn about(mut self, argument: impl Into<String>) -> Self {
        self.0.argument = argument.into();
        self
    }

    /// This error as trouble with the file or folder that says so: its kind, and the path in front of the key.
    #[must_use]
    pub fn in_file(mut self, path: impl AsRef<std::path::Path>) -> Self {
        let path = path.as_ref().display();
        let key = std::mem::take(&mut self.0.argument);
        self.0.argument = if key.is_empty() { path.to_string() } else { format!("{path}: {key}") };
        self.0.kind = Kind::File;
        self
    }

    /// What was expected.
    #[must_use]
    pub fn expected(mut self, expected: impl fmt::Display) -> Self {
        self.0.expected = expected.to_string();
        self
    }

    /// What came instead.
    #[must_use]
    pub fn got(mut self, got: impl fmt::Display) -> Self {
        self.0.got = got.to_string();
        self
    }

    /// What the reader can do about it.
    #[must_use]
    pub fn fix(mut self, fix: impl fmt::Display) -> Self {
        self.0.fix = fix.to_string();
        self
    }

    /// More that the reader can do about it.
    #[must_use]
    pub fn also(mut self, fix: impl fmt::Display) -> Self {
        let own = std::mem::take(&mut self.0.fix);
        self.0.fix = if own.is_empty() { fix.to_string() } else { format!("{own}; {fix}") };
        self
    }

    /// What sort of trouble it is.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// What the command ends with.
    pub fn exit_code(&self) -> u8 {
        match self.0.kind {
            Kind::Argument => 2,
            Kind::File | Kind::Data => 3,
            Kind::Write => 4,
            Kind::Parity => 5,
            Kind::Device | Kind::Memory => 6,
            Kind::NonFinite => 7,
            Kind::Group => 8,
            Kind::Signal(n) => u8::try_from(128 + n).unwrap_or(1),
        }
    }
}

/// Longer words of a message are cut in the middle, and longer parts of it: it has to fit a screen.
const LONGEST_WORD: usize = 300;
const LONGEST_PART: usize = 4000;

/// The text, or its beginning and its end if it has more characters than that.
fn cut(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let kept = most / 2;
    let places = (text.char_indices().nth(kept), text.char_indices().nth_back(kept - 1));
    match places {
        (Some((head, _)), Some((tail, _))) if head < tail => {
            let left_out = text[head..tail].chars().count();
            Cow::Owned(format!("{}...({left_out} characters)...{}", &text[..head], &text[tail..]))
        }
        _ => Cow::Borrowed(text),
    }
}

/// A part of a message as it is shown.
fn shown(text: &str) -> Cow<'_, str> {
    if text.len() <= LONGEST_WORD {
        return Cow::Borrowed(text);
    }
    let words: Vec<Cow<str>> =
        text.split_inclusive([' ', '\n', '\t']).map(|word| cut(word, LONGEST_WORD)).collect();
    Cow::Owned(cut(&words.concat(), LONGEST_PART).into_owned())
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = &*self.0;
        let [operation, argument, expected, got, fix] =
            [&e.operation, &e.argument, &e.expected, &e.got, &e.fix].map(|part| shown(part));
        write!(f, "{operation}")?;
        if !argument.is_empty() {
            write!(f, ": {argument}")?;
        }
        match (expected.is_empty(), got.is_empty()) {
            (false, false) => write!(f, ": expected {expected}, got {got}")?,
            (false, true) => write!(f, ": expected {expected}")?,
            (true, false) => write!(f, ": {got}")?,
            (true, true) => {}
        }
        if !fix.is_empty() {
            write!(f, "; {fix}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_shown_the_same_way_by_unwrap() {
        let e = Error::argument("linear", "weight", "[3, 4]", "[4, 3]").fix("transpose it");
        assert_eq!(format!("{e:?}"), "linear: weight: expected [3, 4], got [4, 3]; transpose it");
    }

    #[test]
    fn messages_fit_a_screen() {
        let long = "猫".repeat(900_000);
        let e = Error::argument("read settings", &long, "a setting", format!("{long} {long}")).fix(&long);
        let message = e.to_string();
        assert!(message.chars().count() < 1500, "{}", message.chars().count());
        assert!(message.starts_with("read settings: 猫猫") && message.ends_with("猫猫"), "{message}");
        assert!(message.contains("...(899700 characters)..."), "{message}");
        let many = "word ".repeat(10_000);
        assert!(Error::argument("a", "b", &many, "c").to_string().len() < 4200);
        // What fits is as it was.
        let path = "/a".repeat(150);
        assert!(Error::argument("a", &path, "b", "c").to_string().contains(&path));
    }
}
