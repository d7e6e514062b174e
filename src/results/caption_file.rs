//! A file of captions that grows over several runs, and may be added to by several at once: what is in it stays, new pictures
//! come at its end, and it is written whole each time (`files::write_atomic`), so that it can be read at any moment and no
//! crash tears it.
//!
//! At each save the file is held (`files::hold`). If another program has written to it since, it is read again and what this
//! run has added is put to it; a picture that both have captioned keeps the captions that were there first. Names of pictures
//! are compared in Unicode's composed form (NFC). What is no regular file (a pipe, a device) is not read: each picture is
//! written to it at once.

use super::captions::{
    ADDING, Captioned, Format, OPERATION, begin, end, escaped, parse, render, write_entry,
};
use crate::files::{self, Disk, Target, composed};
use crate::{Error, Result};
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The largest file that is added to.
const MAX_FILE: u64 = 4 << 30;

/// A picture's captions (in a table, one of them) as they stand in the file.
struct Entry {
    /// The picture's name, composed.
    image: String,
    text: String,
}

/// A file as it was when we last read or wrote it.
type Stamp = (u64, SystemTime, u64);

pub struct CaptionFile {
    path: PathBuf,
    format: Format,
    ascii: bool,
    /// Of the file as it was last read.
    there: Vec<Entry>,
    /// Added by this run, and not in `there`.
    added: Vec<Entry>,
    known: HashSet<String>,
    /// What `overwrite` forgets: the hashes of the entries that stood there.
    forgotten: Option<HashSet<blake3::Hash>>,
    stamp: Option<Stamp>,
    changed: bool,
    stream: Option<Stream>,
}

struct Stream {
    file: File,
    begun: bool,
}

impl CaptionFile {
    /// Opens a file to add to it, or begins a new one; `overwrite` forgets what is in it (the file itself
    /// is only replaced by the first [`CaptionFile::save`]). The folder must be there and writable.
    pub fn open(path: &Path, format: Format, ascii: bool, overwrite: bool) -> Result<CaptionFile> {
        let failed = |e: io::Error| files::write_error(OPERATION, path, &e);
        if path.is_dir() {
            let got = format!("the folder {}", path.display());
            return Err(Error::argument(OPERATION, "out", "a file", got));
        }
        let mut file = CaptionFile {
            path: path.to_owned(),
            format,
            ascii,
            there: Vec::new(),
            added: Vec::new(),
            known: HashSet::new(),
            forgotten: None,
            stamp: None,
            changed: false,
            stream: None,
        };
        match files::RealDisk.target(path).map_err(failed)? {
            Target::Stream(stream) => {
                let to = files::open_stream(&stream).map_err(failed)?;
                file.stream = Some(Stream { file: to, begun: false });
            }
            Target::File(real) => {
                // Better now than after an hour of captioning.
                let folder = files::folder_of(&real);
                tempfile::tempfile_in(folder).map_err(|e| files::write_error(OPERATION, &real, &e))?;
                file.stamp = stamp(path);
                file.read_all(overwrite)?;
            }
        }
        Ok(file)
    }

    fn read_all(&mut self, overwrite: bool) -> Result<()> {
        if self.stamp.is_some() && !overwrite {
            self.there = self.read()?;
            self.known = self.there.iter().map(|e| e.image.clone()).collect();
        }
        if overwrite {
            // Someone else's file is replaced, too.
            let there = if self.stamp.is_some() { self.read().unwrap_or_default() } else { Vec::new() };
            self.forgotten = Some(there.iter().map(|e| blake3::hash(e.text.as_bytes())).collect());
        }
        Ok(())
    }

    fn read(&self) -> Result<Vec<Entry>> {
        let ascii = self.ascii && self.format != Format::Csv;
        let entry = |(image, text): (String, String)| Entry {
            image: composed(&image).into_owned(),
            text: if ascii { escaped(&text) } else { text },
        };
        Ok(parse(&read(&self.path)?, self.format, &self.path)?.into_iter().map(entry).collect())
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn has(&self, image: &str) -> bool {
        self.known.contains(composed(image).as_ref())
    }

    /// The names of the pictures in it, composed.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.known.iter().map(String::as_str)
    }

    /// Pictures in the file.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Lets the next save write the file even if it has no pictures.
    pub fn begin(&mut self) {
        self.changed |= self.stamp.is_none() && self.stream.is_none();
    }

    pub fn push(&mut self, captioned: &Captioned) -> Result<()> {
        let text = render(captioned, self.format, self.ascii)?;
        let image = composed(&captioned.image).into_owned();
        self.known.insert(image.clone());
        self.changed = true;
        match &mut self.stream {
            Some(stream) => {
                stream.add(self.format, &text).map_err(|e| files::write_error(OPERATION, &self.path, &e))
            }
            None => {
                self.added.push(Entry { image, text });
                Ok(())
            }
        }
    }

    /// Writes the file if there is anything new; what other programs have added meanwhile stays.
    pub fn save(&mut self, disk: &dyn Disk) -> Result<()> {
        if !self.changed || self.stream.is_some() {
            return Ok(());
        }
        let _held = files::hold(&self.path)?;
        let now = stamp(&self.path);
        if now != self.stamp && now.is_some() {
            self.merge()?;
        }
        let bytes: usize = self.entries().map(|e| e.text.len() + 2).sum();
        files::write_atomic(disk, &self.path, bytes as u64 + 64, |to| self.write(to))?;
        self.stamp = stamp(&self.path);
        self.changed = false;
        Ok(())
    }

    /// The last save.
    pub fn finish(&mut self, disk: &dyn Disk) -> Result<()> {
        if let Some(stream) = &mut self.stream {
            return stream.end(self.format).map_err(|e| files::write_error(OPERATION, &self.path, &e));
        }
        self.save(disk)
    }

    /// Takes over what the file holds now.
    fn merge(&mut self) -> Result<()> {
        let mut there = self.read()?;
        let names = |entries: &[Entry]| entries.iter().map(|e| e.image.clone()).collect::<HashSet<_>>();
        if let Some(forgotten) = &self.forgotten {
            let own = names(&self.added);
            there
                .retain(|e| !own.contains(&e.image) && !forgotten.contains(&blake3::hash(e.text.as_bytes())));
        }
        self.known = names(&there);
        self.added.retain(|e| !self.known.contains(&e.image));
        self.known.extend(self.added.iter().map(|e| e.image.clone()));
        self.there = there;
        Ok(())
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.there.iter().chain(&self.added)
    }

    fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        to.write_all(begin(self.format).as_bytes())?;
        for (i, entry) in self.entries().enumerate() {
            write_entry(self.format, i == 0, &entry.text, to)?;
        }
        to.write_all(end(self.format).as_bytes())
    }
}

impl Stream {
    fn begin(&mut self, format: Format) -> io::Result<bool> {
        let first = !std::mem::replace(&mut self.begun, true);
        if first {
            self.file.write_all(begin(format).as_bytes())?;
        }
        Ok(first)
    }

    fn add(&mut self, format: Format, text: &str) -> io::Result<()> {
        let first = self.begin(format)?;
        let mut whole = Vec::with_capacity(text.len() + 2);
        write_entry(format, first, text, &mut whole)?;
        self.file.write_all(&whole)
    }

    fn end(&mut self, format: Format) -> io::Result<()> {
        self.begin(format)?;
        self.file.write_all(end(format).as_bytes())?;
        if format == Format::Json { self.file.write_all(b"\n") } else { Ok(()) }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let about = std::fs::metadata(path).ok()?;
    Some((about.len(), about.modified().ok()?, about.ino()))
}

pub(super) fn read(path: &Path) -> Result<String> {
    let failed = |e| Error::io(ADDING, path, &e);
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > MAX_FILE {
        let expected = format!("at most {} GiB", MAX_FILE >> 30);
        return Err(Error::file(ADDING, path, expected, format!("{length} bytes")).fix("begin another file"));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    let text = String::from_utf8(bytes).map_err(|e| {
        Error::file(ADDING, path, "UTF-8 text", e.utf8_error())
            .fix("choose another --out, or replace the file with --overwrite")
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::RealDisk;
    use crate::results::Rated;

    fn captioned(image: &str, captions: &[&str]) -> Captioned {
        let rated = |c: &&str| Rated { caption: (*c).into(), log_prob: -1.5, itc: 0.25, itm: -0.5 };
        Captioned { image: image.into(), captions: captions.iter().map(rated).collect() }
    }

    #[test]
    fn a_file_goes_on_where_it_was_left() {
        let dir = tempfile::tempdir().unwrap();
        for (name, format) in
            [("a.json", Format::Json), ("a.jsonl", Format::JsonLines), ("a.csv", Format::Csv)]
        {
            let path = dir.path().join(name);
            assert_eq!(Format::of(&path), Some(format));
            let names = ["x.jpg", "a, \"b\"\n.jpg", "=1+1.jpg"];
            let mut file = CaptionFile::open(&path, format, false, false).unwrap();
            file.push(&captioned(names[0], &["犬", "猫, と 「犬」"])).unwrap();
            file.save(&RealDisk).unwrap();
            let mut file = CaptionFile::open(&path, format, false, false).unwrap();
            assert!(file.has(names[0]) && !file.has(names[1]));
            for n in &names[1..] {
                file.push(&captioned(n, &["三 人"])).unwrap();
            }
            file.save(&RealDisk).unwrap();
            // All at once gives the same bytes.
            let other = dir.path().join(format!("all-{name}"));
            let mut all = CaptionFile::open(&other, format, false, false).unwrap();
            all.push(&captioned(names[0], &["犬", "猫, と 「犬」"])).unwrap();
            names[1..].iter().for_each(|n| all.push(&captioned(n, &["三 人"])).unwrap());
            all.save(&RealDisk).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(bytes, std::fs::read(&other).unwrap());
            let again = CaptionFile::open(&path, format, false, false).unwrap();
            assert_eq!(again.len(), 3);
            assert!(CaptionFile::open(&path, format, false, true).unwrap().is_empty());
        }
    }

    #[test]
    fn a_strangers_file_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        for text in [
            r#"{"images": [], "annotations": []}"#,
            r#"[{"image": "x.jpg", "caption": ["犬"], "image_id": 3}]"#,
            r#"[{"image": "x.jpg", "caption": ["#,
            "",
        ] {
            std::fs::write(&path, text).unwrap();
            let e = CaptionFile::open(&path, Format::Json, false, false).err().unwrap();
            assert!(e.to_string().contains("--overwrite"), "{e}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }

    /// Several writers, in any order, lose nothing; who was first is kept, and what a person wrote.
    #[test]
    fn what_others_add_meanwhile_stays() {
        let dir = tempfile::tempdir().unwrap();
        for (name, format) in
            [("a.json", Format::Json), ("a.jsonl", Format::JsonLines), ("a.csv", Format::Csv)]
        {
            let path = dir.path().join(name);
            let open = |overwrite| CaptionFile::open(&path, format, false, overwrite).unwrap();
            let text = || std::fs::read_to_string(&path).unwrap();
            let [mut one, mut two] = [open(false), open(false)];
            one.push(&captioned("x.jpg", &["一", "二"])).unwrap();
            two.push(&captioned("y.jpg", &["三"])).unwrap();
            two.push(&captioned("x.jpg", &["遅い"])).unwrap();
            one.save(&RealDisk).unwrap();
            two.save(&RealDisk).unwrap();
            one.push(&captioned("z.jpg", &["四"])).unwrap();
            one.save(&RealDisk).unwrap();
            assert_eq!(open(false).len(), 3, "{}", text());
            assert!(["一", "二", "三", "四"].iter().all(|c| text().contains(c)) && !text().contains("遅い"));
            // A person corrects one and takes one out: both stay so.
            let edited = match format {
                Format::Csv => text().replace("三", "手").lines().filter(|l| !l.starts_with("x.jpg")).fold(
                    String::new(),
                    |t, l| {
                        t + l
                            + "
"
                    },
                ),
                Format::JsonLines => text()
                    .replace("三", "手")
                    .lines()
                    .filter(|l| !l.contains("x.jpg"))
                    .fold(String::new(), |t, l| {
                        t + l
                            + "
"
                    }),
                Format::Json => {
                    r#"[{"image": "y.jpg", "caption": ["手"]}, {"image": "z.jpg", "caption": ["四"]}]"#.into()
                }
            };
            let mut three = open(false);
            std::fs::write(&path, edited).unwrap();
            three.push(&captioned("w.jpg", &["五"])).unwrap();
            three.save(&RealDisk).unwrap();
            assert_eq!(open(false).len(), 3, "{}", text());
            assert!(text().contains("手") && !text().contains("一"), "{}", text());
            // Begun anew: what stood there goes, what others add in the meantime does not.
            let [mut anew, mut other] = [open(true), open(false)];
            other.push(&captioned("v.jpg", &["六"])).unwrap();
            other.save(&RealDisk).unwrap();
            anew.push(&captioned("y.jpg", &["新"])).unwrap();
            anew.save(&RealDisk).unwrap();
            assert_eq!(open(false).len(), 2, "{}", text());
            assert!(text().contains("新") && text().contains("六") && !text().contains("手"), "{}", text());
            // Gone: everything that is known is written again.
            other.push(&captioned("u.jpg", &["七"])).unwrap();
            std::fs::remove_file(&path).unwrap();
            other.save(&RealDisk).unwrap();
            assert_eq!(open(false).len(), 5, "{}", text());
        }
        // Torn by someone else: an error, and it stays as it is.
        let path = dir.path().join("a.json");
        let mut file = CaptionFile::open(&path, Format::Json, false, false).unwrap();
        file.push(&captioned("new.jpg", &["犬"])).unwrap();
        std::fs::write(&path, "[{").unwrap();
        assert!(file.save(&RealDisk).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[{");
    }

    #[test]
    fn a_pipe_gets_each_picture_at_once_and_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let whole = |name: &str, format| {
            let path = dir.path().join(name);
            let mut file = CaptionFile::open(&path, format, false, false).unwrap();
            for image in ["x.jpg", "y.jpg"] {
                file.push(&captioned(image, &["犬", "猫"])).unwrap();
            }
            file.finish(&RealDisk).unwrap();
            std::fs::read_to_string(path).unwrap()
        };
        for (name, format, end) in
            [("a.json", Format::Json, "\n"), ("a.jsonl", Format::JsonLines, ""), ("a.csv", Format::Csv, "")]
        {
            let want = whole(name, format) + end;
            let pipe = dir.path().join(format!("pipe-{name}"));
            rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
            let reader = std::thread::spawn({
                let pipe = pipe.clone();
                move || std::fs::read_to_string(pipe).unwrap()
            });
            whole_to(&pipe, format);
            assert_eq!(reader.join().unwrap(), want);
        }
        fn whole_to(path: &Path, format: Format) {
            let mut file = CaptionFile::open(path, format, false, false).unwrap();
            for image in ["x.jpg", "y.jpg"] {
                file.push(&captioned(image, &["犬", "猫"])).unwrap();
                file.save(&RealDisk).unwrap();
            }
            file.finish(&RealDisk).unwrap();
        }
    }

    #[test]
    fn a_name_is_the_same_composed_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        std::fs::write(&path, r#"[{"image": "が.png", "caption": ["手"]}]"#).unwrap();
        let file = CaptionFile::open(&path, Format::Json, false, false).unwrap();
        assert!(file.has("か\u{3099}.png") && file.has("が.png") && !file.has("か.png"));
    }
}
