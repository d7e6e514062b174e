//! Standard output that may be closed at any time, as by `| head`. What a terminal would obey is escaped ([`printable`]).

use crate::terminal::printable;
use crate::{Error, Kind, Result};
use std::io::{self, BufWriter, ErrorKind, Write};

/// Where a command writes its lines.
pub struct Output {
    to: BufWriter<io::StdoutLock<'static>>,
    closed: bool,
}

impl Output {
    pub fn new() -> Output {
        Output { to: BufWriter::new(io::stdout().lock()), closed: false }
    }

    /// Writes a line. False if nobody reads any more: then the command may end, and well.
    pub fn line(&mut self, text: impl std::fmt::Display) -> Result<bool> {
        let written = writeln!(self.to, "{}", printable(&text.to_string()));
        self.noted(written)
    }

    /// Writes out what is held back.
    pub fn flush(&mut self) -> Result<bool> {
        let written = self.to.flush();
        self.noted(written)
    }

    fn noted(&mut self, written: io::Result<()>) -> Result<bool> {
        match written {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::BrokenPipe => self.closed = true,
            Err(e) => return Err(Error::new(Kind::Write, "write to standard output").got(e)),
        }
        Ok(!self.closed)
    }
}

/// Text to standard output, at once; false if nobody reads any more.
pub fn print(text: &str) -> Result<bool> {
    let mut out = Output::new();
    let written = out.to.write_all(printable(text).as_bytes());
    out.noted(written)?;
    out.flush()
}

/// A line to standard output, as `println!` has it; nothing where nobody reads any more.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::commands::output::print(&format!("{}\n", format_args!($($text)*))).map(drop)
    };
}
pub(crate) use say;
