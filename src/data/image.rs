//! A picture of a data set, wherever it lies: a file of its own, or a part of a larger one. Its bytes are read when they
//! are needed, by position, so that any number of threads may read one file.

use super::OPERATION;
use crate::vision::{self, Photo, Picture, Turn};
use crate::{Error, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a sample's picture lies; small, as there are millions.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Place {
    /// Not found, or not looked for yet.
    Nowhere,
    /// In this folder, under the sample's name.
    Under(Arc<Path>),
    /// Here: links are followed.
    At(Box<Path>),
    /// A member of a tar shard.
    Inside(Box<Member>),
    /// A row of a parquet file.
    #[cfg(feature = "parquet")]
    Row(Box<Row>),
}

/// A part of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub(crate) shard: Arc<Path>,
    pub(crate) name: Box<str>,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// A row of a table.
#[cfg(feature = "parquet")]
#[derive(Clone, Debug)]
pub struct Row {
    pub(super) table: Arc<super::parquet::Table>,
    pub(super) row: u64,
}

#[cfg(feature = "parquet")]
impl PartialEq for Row {
    fn eq(&self, other: &Row) -> bool {
        (&self.table.path, self.row) == (&other.table.path, other.row)
    }
}

impl Place {
    /// The picture of the sample of this name.
    pub fn image(&self, name: &str) -> Image {
        match self {
            Place::Nowhere => Image::File(PathBuf::from(name)),
            Place::Under(folder) => Image::File(folder.join(name)),
            Place::At(path) => Image::File(path.to_path_buf()),
            Place::Inside(member) => Image::Inside(member.clone()),
            #[cfg(feature = "parquet")]
            Place::Row(row) => Image::Row(row.clone()),
        }
    }
}

/// A picture that can be read.
#[derive(Clone, Debug, PartialEq)]
pub enum Image {
    /// A file of its own.
    File(PathBuf),
    /// A member of a tar shard.
    Inside(Box<Member>),
    /// A row of a parquet file.
    #[cfg(feature = "parquet")]
    Row(Box<Row>),
}

impl Image {
    /// The picture, decoded.
    pub fn load(&self, turn: Turn) -> Result<Picture> {
        self.photo(turn)?.picture()
    }

    /// The picture, looked at and not decoded yet.
    pub fn photo(&self, turn: Turn) -> Result<Photo<'static>> {
        match self {
            Image::File(path) => Photo::open(path, turn),
            _ => Photo::owned(self.read(vision::MAX_FILE)?, self.path(), turn),
        }
    }

    /// The bytes of the picture file, at most `limit`.
    pub fn read(&self, limit: u64) -> Result<Vec<u8>> {
        let too_large = || {
            let expected = format!("at most {limit} bytes");
            Error::file(OPERATION, self.path(), expected, "a larger file")
        };
        let failed = |e: std::io::Error| Error::io(OPERATION, self.path(), &e);
        match self {
            Image::File(path) => {
                let mut bytes = Vec::new();
                let file = File::open(path).map_err(failed)?;
                std::io::Read::read_to_end(
                    &mut std::io::Read::take(file, limit.saturating_add(1)),
                    &mut bytes,
                )
                .map_err(failed)?;
                if bytes.len() as u64 > limit { Err(too_large()) } else { Ok(bytes) }
            }
            Image::Inside(member) if member.bytes > limit => Err(too_large()),
            Image::Inside(member) => {
                let mut bytes = vec![0; member.bytes as usize];
                let file = File::open(&member.shard).map_err(failed)?;
                file.read_exact_at(&mut bytes, member.offset).map_err(failed)?;
                Ok(bytes)
            }
            #[cfg(feature = "parquet")]
            Image::Row(row) => {
                let bytes = row.table.picture(row.row)?;
                if bytes.len() as u64 > limit { Err(too_large()) } else { Ok(bytes) }
            }
        }
    }

    /// What messages call it: the path of its file, and inside of a larger one its name there.
    pub fn path(&self) -> PathBuf {
        match self {
            Image::File(path) => path.clone(),
            Image::Inside(member) => member.shard.join(&*member.name),
            #[cfg(feature = "parquet")]
            Image::Row(row) => row.table.path.join(row.row.to_string()),
        }
    }

    /// The file on the disk that holds it.
    pub fn file(&self) -> &Path {
        match self {
            Image::File(path) => path,
            Image::Inside(member) => &member.shard,
            #[cfg(feature = "parquet")]
            Image::Row(row) => &row.table.path,
        }
    }
}

impl From<PathBuf> for Image {
    fn from(path: PathBuf) -> Image {
        Image::File(path)
    }
}
