//! Captions in parquet files, their pictures inside (a column of bytes, as Hugging Face writes `image: {bytes, path}`) or
//! beside (a column of names). Columns have the field's names, those of tables and JSON; a list of captions is one row.
//!
//! A picture is read when it is needed: of its row group the pages before it are passed over by their headers, and the one
//! that holds it is decompressed. The file's own end is the table of offsets, read once.

use super::captions::{Builder, CAPTIONS, Captions, Door, IDS, Id, NAMES, Want, rank};
use super::files::{Root, shortened};
use super::image::{Place, Row};
use super::{Dataset, MAX_ENTRIES, OPERATION};
use crate::{Error, Result};
use ::parquet::basic::{Compression, LogicalType, Type};
use ::parquet::column::reader::ColumnReader;
use ::parquet::data_type::ByteArray;
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use ::parquet::schema::types::ColumnDescriptor;
use bytes::Bytes;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows that are read at once.
const ROWS: usize = 8192;

/// A file read by position, opened for each piece: any number of threads and files.
struct Pieces {
    path: PathBuf,
    bytes: u64,
}

struct Piece {
    file: File,
    at: u64,
}

impl Length for Pieces {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for Pieces {
    type T = Piece;

    fn get_read(&self, start: u64) -> Result<Piece, ParquetError> {
        Ok(Piece { file: File::open(&self.path)?, at: start })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.bytes) {
            return Err(ParquetError::EOF(format!("{length} bytes at offset {start} lie behind the end")));
        }
        let mut bytes = vec![0; length];
        File::open(&self.path)?.read_exact_at(&mut bytes, start)?;
        Ok(bytes.into())
    }
}

impl Read for Piece {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(to, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// A parquet file and its column of pictures.
pub struct Table {
    pub path: PathBuf,
    reader: SerializedFileReader<Pieces>,
    columns: Columns,
    /// The first row of each row group, and the number of all.
    starts: Vec<u64>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

/// Leaf columns by what they are.
#[derive(Clone, Copy, Debug, Default)]
struct Columns {
    bytes: Option<usize>,
    name: Option<usize>,
    caption: Option<usize>,
    id: Option<usize>,
}

impl Columns {
    fn of(columns: &[Arc<ColumnDescriptor>]) -> Columns {
        let mut best: [Option<(usize, usize)>; 4] = [None; 4];
        for (at, column) in columns.iter().enumerate() {
            let parts: Vec<String> = column.path().parts().iter().map(|p| p.to_lowercase()).collect();
            let (Some(first), Some(last)) = (parts.first(), parts.last()) else { continue };
            let text = matches!(column.logical_type_ref(), Some(LogicalType::String))
                || column.converted_type() == ::parquet::basic::ConvertedType::UTF8;
            let binary = column.physical_type() == Type::BYTE_ARRAY;
            // An object of bytes and path; and a list's element, however it is called.
            let alone = parts.len() == 1;
            let slot = if binary && !text && (alone && rank(&NAMES, first).is_some() || last == "bytes") {
                Some((0, rank(&NAMES, first).unwrap_or(NAMES.len())))
            } else if text && alone && rank(&NAMES, first).is_some() {
                rank(&NAMES, first).map(|r| (1, r))
            } else if text && rank(&CAPTIONS, first).is_some() {
                rank(&CAPTIONS, first).map(|r| (2, r))
            } else if alone && rank(&IDS, first).is_some() {
                rank(&IDS, first).map(|r| (3, r))
            } else {
                None
            };
            if let Some((slot, rank)) = slot
                && best.get(slot).copied().flatten().is_none_or(|(known, _)| rank < known)
            {
                best[slot] = Some((rank, at));
            }
        }
        let [bytes, name, caption, id] = best.map(|b| b.map(|(_, at)| at));
        Columns { bytes, name, caption, id }
    }
}

/// What the reader says, and its panics on damaged files.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, ParquetError>) -> Result<T> {
    let wrong = |got: String| {
        Error::file(OPERATION, path, "a whole parquet file", got).fix("write or download the file again")
    };
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|e| wrong(shortened(&e))),
        Err(_) => Err(wrong("one that its reader cannot make sense of".into())),
    }
}

impl Table {
    fn open(path: &Path) -> Result<Table> {
        let bytes = std::fs::metadata(path).map_err(|e| Error::io(OPERATION, path, &e))?.len();
        let pieces = Pieces { path: path.to_owned(), bytes };
        let reader = guarded(path, || SerializedFileReader::new(pieces))?;
        let columns = Columns::of(reader.metadata().file_metadata().schema_descr().columns());
        let mut starts = vec![0];
        for group in reader.metadata().row_groups() {
            let rows = u64::try_from(group.num_rows()).unwrap_or(0);
            starts.push(starts.last().copied().unwrap_or(0) + rows);
        }
        let table = Table { path: path.to_owned(), reader, columns, starts };
        table.check_compression()?;
        Ok(table)
    }

    fn rows(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// The columns that are read must be compressed as can be undone here.
    fn check_compression(&self) -> Result<()> {
        let Columns { bytes, name, caption, id } = self.columns;
        for group in self.reader.metadata().row_groups() {
            for column in [bytes, name, caption, id].into_iter().flatten() {
                let Some(column) = group.columns().get(column) else { continue };
                let compression = column.compression();
                if !matches!(compression, Compression::UNCOMPRESSED | Compression::SNAPPY) {
                    let got = format!("{compression} in column {}", column.column_path().string());
                    let fix = "write the file again with compression=\"snappy\"";
                    return Err(Error::file(OPERATION, &self.path, "no compression, or snappy", got).fix(fix));
                }
            }
        }
        Ok(())
    }

    /// The values of a column of texts or whole numbers, a list for each row.
    fn column(&self, column: usize, mut each: impl FnMut(Vec<Option<String>>) -> Result<()>) -> Result<()> {
        let schema = self.reader.metadata().file_metadata().schema_descr();
        let most = schema.columns().get(column).map_or(0, |c| c.max_def_level());
        for group in 0..self.reader.num_row_groups() {
            let mut reader =
                guarded(&self.path, || self.reader.get_row_group(group)?.get_column_reader(column))?;
            loop {
                let rows = guarded(&self.path, || some_rows(&mut reader, most))?;
                if rows.is_empty() {
                    break;
                }
                rows.into_iter().try_for_each(&mut each)?;
            }
        }
        Ok(())
    }

    /// Which rows have a picture in them.
    fn has_bytes(&self) -> bool {
        self.columns.bytes.is_some()
    }

    /// The picture of a row.
    pub fn picture(&self, row: u64) -> Result<Vec<u8>> {
        let none = || {
            Error::file(OPERATION, &self.path, "a picture in every row", format!("none in row {row}"))
                .fix("leave the row out")
        };
        let column = self.columns.bytes.ok_or_else(none)?;
        let group = self.starts.partition_point(|start| *start <= row).checked_sub(1).ok_or_else(none)?;
        let skip = self.starts.get(group).map_or(0, |start| row - start) as usize;
        let value = guarded(&self.path, || {
            let mut reader = self.reader.get_row_group(group)?.get_column_reader(column)?;
            let ColumnReader::ByteArrayColumnReader(reader) = &mut reader else { return Ok(None) };
            reader.skip_records(skip)?;
            let (mut values, mut levels) = (Vec::new(), Vec::new());
            reader.read_records(1, Some(&mut levels), None, &mut values)?;
            Ok(values.into_iter().next())
        })?;
        value.map(|v: ByteArray| v.data().to_vec()).ok_or_else(none)
    }
}

/// The next rows of a column whose values are there at definition level `most`.
fn some_rows(reader: &mut ColumnReader, most: i16) -> Result<Vec<Vec<Option<String>>>, ParquetError> {
    let (mut defined, mut repeated): (Vec<i16>, Vec<i16>) = (Vec::new(), Vec::new());
    macro_rules! read {
        ($reader:expr, $text:expr) => {{
            let mut values = Vec::new();
            $reader.read_records(ROWS, Some(&mut defined), Some(&mut repeated), &mut values)?;
            let values: Vec<String> = values.into_iter().map($text).collect::<Result<_, ParquetError>>()?;
            values
        }};
    }
    let text = |v: ByteArray| v.as_utf8().map(str::to_owned);
    let values: Vec<String> = match reader {
        ColumnReader::ByteArrayColumnReader(r) => read!(r, text),
        ColumnReader::Int32ColumnReader(r) => read!(r, |n: i32| Ok(n.to_string())),
        ColumnReader::Int64ColumnReader(r) => read!(r, |n: i64| Ok(n.to_string())),
        _ => return Err(ParquetError::General("a column that is neither text nor whole numbers".into())),
    };
    // Columns without levels have a value for each row.
    if defined.is_empty() {
        return Ok(values.into_iter().map(|v| vec![Some(v)]).collect());
    }
    let mut rows: Vec<Vec<Option<String>>> = Vec::new();
    let mut values = values.into_iter();
    for (at, defined) in defined.iter().enumerate() {
        if repeated.get(at).is_none_or(|level| *level == 0) {
            rows.push(Vec::new());
        }
        let value = if *defined == most { values.next() } else { None };
        if let Some(row) = rows.last_mut() {
            row.push(value);
        }
    }
    Ok(rows)
}

/// The captioned pictures of parquet files; `images` is the folder of pictures that do not lie inside, if they are to be
/// found at all.
pub(super) fn read(
    source: &Path,
    files: &[PathBuf],
    images: Option<&Path>,
    missing_share: f64,
) -> Result<Dataset> {
    let tables: Vec<Arc<Table>> =
        files.iter().map(|f| Table::open(f).map(Arc::new)).collect::<Result<_>>()?;
    let inside = tables.iter().all(|t| t.has_bytes());
    let door = match images {
        Some(images) if !inside => {
            let folder = if images.is_dir() { images } else { crate::files::folder_of(source) };
            Door::Folder { root: Root::new(OPERATION, folder)?, given: folder.to_owned() }
        }
        _ => Door::Names,
    };
    let mut builder = Builder::new(source, door, Want::All(None));
    for table in &tables {
        add(&mut builder, table, inside)?;
    }
    builder.finish(missing_share)
}

/// Every picture that lies in parquet files, in their order.
pub(super) fn pictures(files: &[PathBuf]) -> Result<Vec<(String, Place)>> {
    let mut all = Vec::new();
    for path in files {
        let table = Arc::new(Table::open(path)?);
        if !table.has_bytes() {
            let expected = format!("a column of pictures ({}, or image.bytes)", NAMES.join(", "));
            return Err(Error::file(OPERATION, path, expected, "none of bytes"));
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let place = |row| Place::Row(Box::new(Row { table: Arc::clone(&table), row }));
        all.extend((0..table.rows()).map(|row| (format!("{file}/{row}"), place(row))));
    }
    Ok(all)
}

fn add(builder: &mut Builder, table: &Arc<Table>, inside: bool) -> Result<()> {
    let wrong = |what: &str, names: &[&str]| {
        let columns = table.reader.metadata().file_metadata().schema_descr();
        let have: Vec<String> = columns.columns().iter().map(|c| c.path().string()).collect();
        Error::file(
            OPERATION,
            &table.path,
            format!("a column of {what} ({})", names.join(", ")),
            have.join(", "),
        )
    };
    let Columns { name, caption, id, .. } = table.columns;
    let caption = caption.ok_or_else(|| wrong("captions", &CAPTIONS))?;
    if table.rows() > MAX_ENTRIES as u64 {
        let expected = format!("at most {MAX_ENTRIES} rows");
        return Err(
            Error::file(OPERATION, &table.path, expected, table.rows()).fix("split it into several files")
        );
    }
    let one = |column: usize| -> Result<Vec<Option<String>>> {
        let mut all = Vec::new();
        table.column(column, |row| {
            all.push(row.into_iter().next().flatten());
            Ok(())
        })?;
        Ok(all)
    };
    let ids = id.map(one).transpose()?;
    let names = if inside { None } else { Some(one(name.ok_or_else(|| wrong("pictures", &NAMES))?)?) };
    let file = table.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut row = 0;
    table.column(caption, |captions| {
        let at = row as usize;
        let id = ids.as_ref().and_then(|ids| ids.get(at)?.as_deref()).map(Id::of_text);
        let sample = match names.as_ref().map(|names| names.get(at)) {
            None => {
                let place = Place::Row(Box::new(Row { table: Arc::clone(table), row }));
                builder.placed(&format!("{file}/{row}"), id.as_ref(), place)?
            }
            Some(Some(Some(name))) => builder.sample(Some(name), id.as_ref())?,
            Some(_) => {
                let got = format!("none in row {row}");
                return Err(Error::file(OPERATION, &table.path, "a picture's name in every row", got));
            }
        };
        row += 1;
        builder.captions(sample, Captions::Several(captions), None)
    })
}
