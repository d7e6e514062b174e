//! Everywhere the captions of pictures go: a file that grows, texts beside the pictures, standard output. A text that cannot be
//! written is reported and counted, and the others are written; a file of captions that cannot be saved ends the command.

use super::inputs::{self, Picture};
use super::output;
use crate::files::{self, RealDisk, composed};
use crate::results::{self, CaptionFile, Captioned, Format, Rated, SideCars};
use crate::{Error, Kind, Result};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const OPERATION: &str = "caption";
/// A file of captions is saved this often, and rarer if saving takes long.
const SAVE_EVERY: Duration = Duration::from_secs(10);
/// So many texts in a row that cannot be written: the next ones cannot be, either.
const HOPELESS: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    Text,
    Json,
    Jsonl,
    Csv,
}

/// What the command line says of them.
pub struct Where<'a> {
    pub out: Option<&'a Path>,
    pub form: Option<Form>,
    pub txt: bool,
    pub txt_dir: Option<&'a Path>,
    pub overwrite: bool,
    pub ascii: bool,
}

pub struct Outputs {
    disk: RealDisk,
    file: Option<CaptionFile>,
    /// Names of pictures that the file has under another name of the same file.
    otherwise: HashSet<String>,
    side: Option<SideCars>,
    /// Whether texts can be written into a folder.
    folders: HashMap<PathBuf, bool>,
    /// Names of pictures whose texts cannot be written.
    refused: HashSet<String>,
    in_a_row: usize,
    notes: Vec<String>,
    /// The form on standard output; text of a single picture has no name.
    stdout: Option<Form>,
    single: bool,
    /// Nobody reads standard output any more.
    closed: bool,
    ascii: bool,
    pictures: usize,
    written: usize,
    saved: Instant,
    cost: Duration,
}

impl Outputs {
    pub fn open(to: &Where, pictures: &[Picture], single: bool) -> Result<Outputs> {
        let disk = RealDisk;
        let side = to.txt.then(|| SideCars::new(to.txt_dir.map(Path::to_owned), to.overwrite));
        if let Some(side) = &side {
            side.check(pictures.iter().map(|p| (p.name.as_str(), p.path.as_path())))?;
        }
        if let Some(folder) = to.txt_dir {
            files::make_folders(&disk, folder)?;
            writable(folder)?;
        }
        let mut file = None;
        if let Some(out) = to.out {
            files::make_folders(&disk, files::folder_of(out))?;
            file = Some(CaptionFile::open(out, file_format(out, to.form)?, to.ascii, to.overwrite)?);
        }
        let to_stdout = file.is_none() && side.is_none();
        if !to_stdout && file.is_none() && to.form.is_some() {
            return Err(Error::argument(OPERATION, "format", "an --out file to write in it", "none"));
        }
        let (otherwise, doubt) = file.as_ref().map(|f| under_other_names(f, pictures)).unwrap_or_default();
        Ok(Outputs {
            disk,
            file,
            otherwise,
            side,
            folders: HashMap::new(),
            refused: HashSet::new(),
            in_a_row: 0,
            notes: doubt.into_iter().collect(),
            stdout: to_stdout.then(|| to.form.unwrap_or(Form::Text)),
            single,
            closed: false,
            ascii: to.ascii,
            pictures: pictures.len(),
            written: 0,
            saved: Instant::now(),
            cost: Duration::ZERO,
        })
    }

    /// Whether a picture's captions are missing anywhere that they can be written to.
    pub fn lacks(&mut self, picture: &Picture) -> bool {
        let file = self.file.as_ref().is_some_and(|f| !f.has(&picture.name));
        let file = file && !self.otherwise.contains(&picture.name);
        let side = match self.text_is_missing(picture) {
            Ok(missing) => missing,
            Err(e) => {
                self.refuse(picture, &e);
                false
            }
        };
        file || side || self.stdout.is_some()
    }

    fn text_is_missing(&mut self, picture: &Picture) -> Result<bool> {
        let Some(side) = &self.side else { return Ok(false) };
        if side.has(&picture.name, &picture.path)? {
            return Ok(false);
        }
        let folder = files::folder_of(&side.path(&picture.name, &picture.path)?).to_owned();
        match self.folders.get(&folder) {
            Some(true) => Ok(true),
            // That it cannot be written into was reported with the first picture of it.
            Some(false) => {
                self.refused.insert(picture.name.clone());
                Ok(false)
            }
            None => {
                // A folder that is not there yet is made when there is something to write.
                let usable = if folder.exists() { writable(&folder) } else { Ok(()) };
                self.folders.insert(folder, usable.is_ok());
                usable.map(|()| true)
            }
        }
    }

    fn refuse(&mut self, picture: &Picture, e: &Error) {
        if self.refused.insert(picture.name.clone()) {
            self.notes.push(format!("no text for {:?}: {e}", picture.name));
        }
    }

    /// What is to be reported since the last time.
    pub fn notes(&mut self) -> impl Iterator<Item = String> {
        std::mem::take(&mut self.notes).into_iter()
    }

    /// A file of captions is written even if it has none.
    pub fn begin(&mut self) {
        self.file.iter_mut().for_each(CaptionFile::begin);
    }

    /// Whether captions are to be scored.
    pub fn rated(&self) -> bool {
        let file = self.file.as_ref().is_some_and(|f| f.format() != Format::Json);
        file || matches!(self.stdout, Some(Form::Jsonl | Form::Csv))
    }

    pub fn closed(&self) -> bool {
        self.closed
    }

    pub fn written(&self) -> usize {
        self.written
    }

    pub fn put(&mut self, picture: &Picture, captions: Vec<Rated>) -> Result<()> {
        let captioned = Captioned { image: picture.name.clone(), captions };
        if let Some(form) = self.stdout {
            self.print(form, &captioned)?;
        }
        if let Some(file) = self.file.as_mut().filter(|f| !f.has(&picture.name)) {
            file.push(&captioned)?;
        }
        self.written += 1;
        match self.put_text(picture, &captioned) {
            Ok(()) => self.in_a_row = 0,
            Err(e) => {
                self.refuse(picture, &e);
                self.in_a_row += 1;
                if self.in_a_row == HOPELESS {
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    fn put_text(&self, picture: &Picture, captioned: &Captioned) -> Result<()> {
        let Some(side) = self.side.as_ref().filter(|_| !self.refused.contains(&picture.name)) else {
            return Ok(());
        };
        // It may have come since this command began.
        if side.has(&picture.name, &picture.path)? {
            return Ok(());
        }
        let texts = captioned.captions.iter().map(|c| c.caption.as_str());
        side.write(&self.disk, &picture.name, &picture.path, texts)
    }

    fn print(&mut self, form: Form, c: &Captioned) -> Result<()> {
        let first = self.written == 0;
        let text = match form {
            Form::Text => {
                let name = if c.image.contains(char::is_control) {
                    format!("{:?}", c.image)
                } else {
                    c.image.clone()
                };
                let line = |r: &Rated| {
                    if self.single { format!("{}\n", r.caption) } else { format!("{name}\t{}\n", r.caption) }
                };
                c.captions.iter().map(line).collect()
            }
            Form::Json => {
                (if first { "[" } else { ", " }).to_owned() + &results::render(c, Format::Json, self.ascii)?
            }
            Form::Jsonl => results::render(c, Format::JsonLines, self.ascii)? + "\n",
            Form::Csv => {
                let header = if first { results::csv_header() + "\n" } else { String::new() };
                header + &results::render(c, Format::Csv, false)?
            }
        };
        self.closed |= !output::print(&text)?;
        Ok(())
    }

    pub fn save_if_due(&mut self) -> Result<()> {
        if self.saved.elapsed() >= SAVE_EVERY.max(20 * self.cost) { self.save() } else { Ok(()) }
    }

    fn save(&mut self) -> Result<()> {
        if let Some(file) = &mut self.file {
            let start = Instant::now();
            file.save(&self.disk)?;
            (self.saved, self.cost) = (Instant::now(), start.elapsed());
        }
        Ok(())
    }

    pub fn end(&mut self) -> Result<()> {
        if self.stdout == Some(Form::Json) {
            output::print(if self.written == 0 { "[]\n" } else { "]\n" })?;
        }
        self.file.as_mut().map_or(Ok(()), |file| file.finish(&self.disk))
    }

    /// An error if texts could not be written.
    pub fn all_written(&self) -> Result<()> {
        match self.refused.len() {
            0 => Ok(()),
            n => Err(Error::new(Kind::Write, OPERATION)
                .expected("every text to be written")
                .got(format!("{n} of {} not, listed above", self.pictures))
                .fix("the others are done; run the same command again when nothing is in the way")),
        }
    }
}

/// Whether a file can be made in a folder.
fn writable(folder: &Path) -> Result<()> {
    let failed = |e| files::write_error("write captions", &folder.join("x.txt"), &e);
    tempfile::tempfile_in(folder).map(drop).map_err(|e| failed(e).about(folder.display().to_string()))
}

/// Pictures that a file has under other names: those where the name leads to the same file from here; and, where it leads
/// nowhere but ends alike, a warning.
fn under_other_names(file: &CaptionFile, pictures: &[Picture]) -> (HashSet<String>, Option<String>) {
    let here: HashSet<_> = pictures.iter().map(|p| composed(&p.name)).collect();
    let mut foreign: HashMap<&str, Vec<&str>> = HashMap::new();
    for name in file.names().filter(|name| !here.contains(*name)) {
        foreign.entry(last(name)).or_default().push(name);
    }
    let (mut same, mut doubtful) = (HashSet::new(), Vec::new());
    for picture in pictures.iter().filter(|p| !file.has(&p.name)) {
        let name = composed(&picture.name);
        let Some(others) = foreign.get(last(&name)) else { continue };
        let Some(real) = inputs::real(&picture.path) else { continue };
        let place = real.to_string_lossy();
        for other in others {
            match inputs::real(Path::new(other)).filter(|o| o.exists()) {
                Some(o) if o == real => drop(same.insert(picture.name.clone())),
                Some(_) => {}
                None if ends(&composed(&place), other) || ends(other, &name) => {
                    doubtful.push((*other, &picture.name))
                }
                None => {}
            }
        }
    }
    doubtful.retain(|(_, name)| !same.contains(*name));
    let warning = doubtful.first().map(|(there, name)| {
        format!(
            "warning: {}: {} pictures may be in it under other names, as {there:?} for {name:?}; they are captioned again \
             (--relative-to FOLDER names pictures by their place in it)",
            file.path().display(),
            doubtful.len()
        )
    });
    (same, warning)
}

/// What stands behind the last slash.
fn last(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// Whether a path ends in the whole parts of another.
fn ends(path: &str, end: &str) -> bool {
    path.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('/'))
}

fn file_format(out: &Path, form: Option<Form>) -> Result<Format> {
    match form {
        Some(Form::Json) => Ok(Format::Json),
        Some(Form::Jsonl) => Ok(Format::JsonLines),
        Some(Form::Csv) => Ok(Format::Csv),
        Some(Form::Text) => {
            Err(Error::argument(OPERATION, "format", "json, jsonl or csv for a file", "text")
                .fix("use --txt for a text file beside each picture"))
        }
        None => Format::of(out).ok_or_else(|| {
            Error::argument(OPERATION, "out", "a name ending in .json, .jsonl or .csv", out.display())
                .fix("rename it, or say which with --format")
        }),
    }
}
