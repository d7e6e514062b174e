//! Arrays of f32 to files: safetensors and NumPy's .npy. Rows are collected in a temporary file ([`Spool`]), since how many
//! pictures turn out usable is known only at the end, and memory stays flat.
//!
//! .npy 1.0: "\x93NUMPY" 1 0, u16 length of the header, a Python dictionary padded by spaces to a newline at a
//! multiple of 64, then the elements, little-endian, row-major.
//! safetensors: u64 length of the header, JSON padded by spaces to a multiple of 8, then the elements of all tensors.

use crate::files::{self, Disk};
use crate::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Rows of an array on their way to a file: [rows, row shape...].
pub struct Spool {
    file: BufWriter<File>,
    row: Vec<usize>,
    rows: usize,
}

impl Spool {
    /// `row` is the shape of one row; the temporary file lies in `folder` and has no name.
    pub fn new(folder: &Path, row: &[usize]) -> Result<Spool> {
        let file =
            tempfile::tempfile_in(folder).map_err(|e| files::write_error("collect features", folder, &e))?;
        Ok(Spool { file: BufWriter::with_capacity(1 << 20, file), row: row.to_vec(), rows: 0 })
    }

    /// Adds whole rows.
    pub fn push(&mut self, values: &[f32]) -> Result<()> {
        let size = self.row.iter().product::<usize>().max(1);
        if !values.len().is_multiple_of(size) {
            return Err(Error::argument(
                "collect features",
                "values",
                format!("rows of {size}"),
                values.len(),
            ));
        }
        let failed = |e: io::Error| {
            Error::new(Kind::Write, "collect features").got(e).fix("free some space on the disk")
        };
        let (mut bytes, mut finite) = (Vec::with_capacity(values.len() * 4), true);
        for v in values {
            finite &= v.is_finite();
            bytes.extend_from_slice(&v.to_le_bytes());
        }
        if !finite {
            return Err(Error::new(Kind::NonFinite, "collect features")
                .about(format!("row {}", self.rows))
                .expected("finite numbers")
                .got("one that is not")
                .fix("the model's numbers are too large: take an earlier checkpoint"));
        }
        self.file.write_all(&bytes).map_err(failed)?;
        self.rows += values.len() / size;
        Ok(())
    }

    /// How many rows were written.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The finished array.
    pub fn finish(self) -> Result<Array> {
        let failed = |e: io::Error| {
            Error::new(Kind::Write, "collect features").got(e).fix("free some space on the disk")
        };
        let mut file = self.file.into_inner().map_err(|e| failed(e.into_error()))?;
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let shape = std::iter::once(self.rows).chain(self.row).collect();
        Ok(Array { shape, elements: Box::new(BufReader::with_capacity(1 << 20, file)) })
    }
}

/// An array whose elements (f32, little-endian) are read once, when it is written.
pub struct Array {
    shape: Vec<usize>,
    elements: Box<dyn Read>,
}

impl Array {
    /// An array of these values.
    pub fn new(shape: &[usize], values: &[f32]) -> Array {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Array { shape: shape.to_vec(), elements: Box::new(io::Cursor::new(bytes)) }
    }

    fn bytes(&self) -> u64 {
        4 * self.shape.iter().map(|s| *s as u64).product::<u64>()
    }

    /// Copies the elements; fewer than the shape says are an error.
    fn copy(&mut self, to: &mut dyn Write) -> io::Result<()> {
        let bytes = self.bytes();
        let copied = io::copy(&mut (&mut self.elements).take(bytes), to)?;
        if copied == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// One array, as `np.load` reads it.
pub fn write_npy(disk: &dyn Disk, path: &Path, mut array: Array) -> Result<()> {
    let sizes: Vec<String> = array.shape.iter().map(usize::to_string).collect();
    let tuple = match &sizes[..] {
        [one] => format!("({one},)"),
        all => format!("({})", all.join(", ")),
    };
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {tuple}, }}");
    // 10 bytes come before the header, a newline ends it.
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let length = u16::try_from(header.len())
        .map_err(|_| Error::argument("write .npy", "shape", "a shape of a few axes", array.shape.len()))?;
    files::write_atomic(disk, path, array.bytes() + 10 + header.len() as u64, |to| {
        to.write_all(b"\x93NUMPY\x01\x00")?;
        to.write_all(&length.to_le_bytes())?;
        to.write_all(header.as_bytes())?;
        array.copy(to)
    })
}

/// Arrays by name, and text by key, as a safetensors file.
pub fn write_safetensors(
    disk: &dyn Disk,
    path: &Path,
    mut arrays: Vec<(&str, Array)>,
    notes: &BTreeMap<String, String>,
) -> Result<()> {
    let mut header = serde_json::Map::new();
    if !notes.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(notes));
    }
    let mut at = 0;
    for (name, array) in &arrays {
        let end = at + array.bytes();
        let entry = serde_json::json!({"dtype": "F32", "shape": array.shape, "data_offsets": [at, end]});
        header.insert((*name).into(), entry);
        at = end;
    }
    let mut text = serde_json::Value::Object(header).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    files::write_atomic(disk, path, at + 8 + text.len() as u64, |to| {
        to.write_all(&(text.len() as u64).to_le_bytes())?;
        to.write_all(text.as_bytes())?;
        arrays.iter_mut().try_for_each(|(_, array)| array.copy(to))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::RealDisk;

    /// `np.save(f, np.arange(6, dtype="<f4").reshape(2, 3))` of NumPy, byte by byte.
    const NUMPY: &[u8] = include_bytes!("../../tests/results/arange6.npy");

    #[test]
    fn npy_is_numpys_to_the_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        let values: Vec<f32> = (0..6).map(|v| v as f32).collect();
        write_npy(&RealDisk, &path, Array::new(&[2, 3], &values)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), NUMPY);
        // The same through a spool.
        let mut spool = Spool::new(dir.path(), &[3]).unwrap();
        spool.push(&values[..3]).unwrap();
        spool.push(&values[3..]).unwrap();
        assert!(spool.push(&values[..2]).is_err());
        write_npy(&RealDisk, &path, spool.finish().unwrap()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), NUMPY);
    }

    #[test]
    fn safetensors_are_read_by_their_own_crate() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let notes = BTreeMap::from([("names".to_owned(), "[\"犬.jpg\"]".to_owned())]);
        let arrays = vec![("b", Array::new(&[1, 2], &[1.5, -2.0])), ("a", Array::new(&[1], &[3.0]))];
        write_safetensors(&RealDisk, &path, arrays, &notes).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.tensor("b").unwrap().data(), [1.5f32.to_le_bytes(), (-2f32).to_le_bytes()].concat());
        assert_eq!(read.tensor("a").unwrap().shape(), [1]);
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["names"], "[\"犬.jpg\"]");
    }
}
