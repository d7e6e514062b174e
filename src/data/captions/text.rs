//! A text file read through a window: UTF-8 with or without a byte order mark, and at any time at most one entry of it in
//! memory. What is not UTF-8 is an error that names the first bad byte; lines are counted for messages.

use super::OPERATION;
use crate::{Error, Result};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Bounds of a whole file and of one entry in it.
const MAX_FILE: u64 = 2 << 30;
const MAX_ENTRY: usize = 64 << 20;
const PIECE: usize = 1 << 20;

pub struct Text {
    pub path: PathBuf,
    file: File,
    window: Vec<u8>,
    /// The window before this place is done with; up to `valid` it is known to be UTF-8.
    start: usize,
    valid: usize,
    /// Where in the file the window begins, and how many lines lie before it.
    offset: u64,
    lines: u64,
    ended: bool,
    /// Bytes of the value that was taken last.
    last: usize,
}

impl Text {
    pub fn open(path: &Path) -> Result<Text> {
        let failed = |e| Error::io(OPERATION, path, &e);
        let file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut text = Text {
            path: path.to_owned(),
            file,
            window: Vec::new(),
            start: 0,
            valid: 0,
            offset: 0,
            lines: 0,
            ended: false,
            last: 0,
        };
        if length > MAX_FILE {
            return Err(text.too_large());
        }
        text.fill()?;
        if text.window.starts_with("\u{feff}".as_bytes()) {
            text.start = 3;
        }
        Ok(text)
    }

    fn too_large(&self) -> Error {
        Error::file(
            OPERATION,
            &self.path,
            format!("at most {} GiB of captions", MAX_FILE >> 30),
            "a larger file",
        )
        .fix("split it into several files, each a data set")
    }

    /// What is in the window and not done with.
    pub fn rest(&self) -> &[u8] {
        self.window.get(self.start..self.valid).unwrap_or_default()
    }

    pub fn done(&mut self, bytes: usize) {
        self.start = (self.start + bytes).min(self.valid);
    }

    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Notes how long the value was that has just been taken.
    pub fn mark(&mut self, bytes: usize) {
        self.last = bytes;
    }

    /// The line of what comes next, from 1.
    pub fn line(&self) -> u64 {
        1 + self.lines + newlines(self.window.get(..self.start).unwrap_or_default())
    }

    /// The line in which the value that has just been taken begins.
    pub fn line_of_value(&self) -> u64 {
        let at = self.start.saturating_sub(self.last);
        1 + self.lines + newlines(self.window.get(..at).unwrap_or_default())
    }

    /// Reads on until at least `bytes` are in the window, or the file ends.
    pub fn reserve(&mut self, bytes: usize) -> Result<()> {
        while self.rest().len() < bytes && self.fill()? {}
        Ok(())
    }

    /// Reads a piece more; false at the end of the file.
    pub fn fill(&mut self) -> Result<bool> {
        if self.ended {
            return Ok(false);
        }
        if self.start > 0 {
            let done = self.window.get(..self.start).unwrap_or_default();
            self.lines += newlines(done);
            self.offset += self.start as u64;
            self.window.drain(..self.start);
            self.valid -= self.start;
            self.start = 0;
        }
        if self.valid > MAX_ENTRY {
            let expected = format!("entries of at most {} MiB", MAX_ENTRY >> 20);
            return Err(Error::file(
                OPERATION,
                &self.path,
                expected,
                format!("a larger one in line {}", self.line()),
            ));
        }
        let before = self.window.len();
        let failed = |e| Error::io(OPERATION, &self.path, &e);
        // A long entry is read in ever larger pieces, so that it is not looked through again and again.
        let piece = PIECE.max(self.valid) as u64;
        (&self.file).take(piece).read_to_end(&mut self.window).map_err(failed)?;
        self.ended = self.window.len() == before;
        if self.offset + self.window.len() as u64 > MAX_FILE {
            return Err(self.too_large()); // a device, or a file that grows
        }
        self.check()?;
        Ok(!self.ended)
    }

    /// UTF-8 as far as whole characters are there.
    fn check(&mut self) -> Result<()> {
        match std::str::from_utf8(self.window.get(self.valid..).unwrap_or_default()) {
            Ok(_) => self.valid = self.window.len(),
            Err(e) if e.error_len().is_none() && !self.ended => self.valid += e.valid_up_to(),
            Err(e) => {
                let at = self.valid + e.valid_up_to();
                let byte = self.window.get(at).copied().unwrap_or_default();
                let got = format!("byte 0x{byte:02x} at offset {}", self.offset + at as u64);
                return Err(
                    Error::file(OPERATION, &self.path, "UTF-8 text", got).fix("save the file as UTF-8")
                );
            }
        }
        Ok(())
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|b| **b == b'\n').count() as u64
}

/// For the reader of tables.
impl Read for Text {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.rest().is_empty() {
            self.fill().map_err(io::Error::other)?;
        }
        let n = self.rest().len().min(to.len());
        if let (Some(to), Some(from)) = (to.get_mut(..n), self.rest().get(..n)) {
            to.copy_from_slice(from);
        }
        self.done(n);
        Ok(n)
    }
}
