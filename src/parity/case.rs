//! A recorded case: metadata and tensors of a safetensors file, by name.

use crate::model::Config;
use crate::tensor::{DType, Tensor};
use crate::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

pub struct Case {
    pub path: PathBuf,
    pub kind: String,
    metadata: HashMap<String, String>,
    tensors: BTreeMap<String, Recorded>,
}

struct Recorded {
    shape: Vec<usize>,
    values: Values,
}

enum Values {
    F32(Vec<f32>),
    F64(Vec<f64>),
    I64(Vec<i64>),
    U8(Vec<u8>),
}

impl Case {
    pub fn open(path: &Path) -> Result<Case> {
        const OP: &str = "parity";
        let bytes = std::fs::read(path).map_err(|e| Error::io(OP, path, &e))?;
        let torn = |e: safetensors::SafeTensorError| Error::file(OP, path, "a safetensors file", e);
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(torn)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let file = SafeTensors::deserialize(&bytes).map_err(torn)?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            let data = view.data();
            let values = match view.dtype() {
                Dtype::F32 => Values::F32(
                    data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
                ),
                Dtype::F64 => Values::F64(bytemuck::pod_collect_to_vec(data)),
                Dtype::I64 => Values::I64(bytemuck::pod_collect_to_vec(data)),
                Dtype::U8 => Values::U8(data.to_vec()),
                other => {
                    return Err(Error::file(
                        OP,
                        path,
                        "f32, f64, i64 and u8 tensors",
                        format!("{other:?} in {name}"),
                    ));
                }
            };
            tensors.insert(name, Recorded { shape: view.shape().to_vec(), values });
        }
        let kind = metadata.get("kind").map(|k| k.trim_matches('"').to_string());
        let kind = kind
            .ok_or_else(|| Error::file(OP, path, "a recorded case", "a file without the metadata `kind`"))?;
        Ok(Case { path: path.to_path_buf(), kind, metadata, tensors })
    }

    /// A JSON value of the metadata.
    pub fn meta<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        let wrong = |got: String| Error::file("parity", &self.path, format!("metadata `{key}`"), got);
        let text = self.metadata.get(key).ok_or_else(|| wrong("none".into()))?;
        serde_json::from_str(text).map_err(|e| wrong(e.to_string()))
    }

    pub fn config(&self) -> Result<Config> {
        let config: Config = self.meta("config")?;
        config.check()?;
        Ok(config)
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub fn names(&self, prefix: &'static str) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str).filter(move |n| n.starts_with(prefix))
    }

    fn get(&self, name: &str) -> Result<&Recorded> {
        self.tensors
            .get(name)
            .ok_or_else(|| Error::file("parity", &self.path, format!("a tensor {name}"), "none"))
    }

    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.get(name)?.shape)
    }

    pub fn f64s(&self, name: &str) -> Result<Vec<f64>> {
        Ok(match &self.get(name)?.values {
            Values::F32(v) => v.iter().map(|x| f64::from(*x)).collect(),
            Values::F64(v) => v.clone(),
            Values::I64(v) => v.iter().map(|x| *x as f64).collect(),
            Values::U8(v) => v.iter().map(|x| f64::from(*x)).collect(),
        })
    }

    pub fn tensor(&self, name: &str, dtype: DType) -> Result<Tensor> {
        Tensor::of(dtype, &self.f64s(name)?, self.shape(name)?)
    }

    pub fn i64s(&self, name: &str) -> Result<&[i64]> {
        match &self.get(name)?.values {
            Values::I64(v) => Ok(v),
            _ => Err(Error::file("parity", &self.path, format!("i64 in {name}"), "another type")),
        }
    }

    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        match &self.get(name)?.values {
            Values::U8(v) => Ok(v),
            _ => Err(Error::file("parity", &self.path, format!("u8 in {name}"), "another type")),
        }
    }

    pub fn ids(&self, name: &str) -> Result<Vec<u32>> {
        let id = |x: &i64| {
            u32::try_from(*x).map_err(|_| Error::file("parity", &self.path, format!("ids in {name}"), x))
        };
        self.i64s(name)?.iter().map(id).collect()
    }

    /// Rows of ids without their padding: as many as the mask has ones.
    pub fn texts(&self, ids: &str, mask: &str) -> Result<Vec<Vec<u32>>> {
        let width = self.shape(ids)?.last().copied().unwrap_or(0).max(1);
        let (all, mask) = (self.ids(ids)?, self.i64s(mask)?);
        if all.len() != mask.len() {
            return Err(Error::file("parity", &self.path, "a mask as large as the ids", mask.len()));
        }
        let text = |(ids, mask): (&[u32], &[i64])| ids[..mask.iter().filter(|m| **m != 0).count()].to_vec();
        Ok(all.chunks(width).zip(mask.chunks(width)).map(text).collect())
    }
}
