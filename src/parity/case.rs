//! A recorded case: metadata and tensors of a safetensors file, by name. A tensor's bytes are read when it is asked for.

use crate::model::Config;
use crate::nn::{Precision, Spec};
use crate::tensor::{DType, Storage, Stream, Tensor};
use crate::weights::{Dtype, Format, Weights};
use crate::{Error, Result};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The unit roundoff of a storage of 16 bits; 0 of others.
pub fn unit(storage: Storage) -> f64 {
    match storage {
        Storage::F16 => 2f64.powi(-11),
        Storage::BF16 => 2f64.powi(-8),
        _ => 0.0,
    }
}

#[derive(Clone)]
pub struct Case {
    pub path: PathBuf,
    pub kind: String,
    weights: Arc<Weights>,
    names: Arc<[String]>,
    off: Option<Off>,
}

/// Other weights than the recorded ones, by the number of a draw.
#[derive(Clone, Copy)]
enum Off {
    /// Operands of matmuls, by what 16 bits of this precision make of them.
    Rounded(u64, Precision),
    /// All, by a hundredth of themselves.
    Moved(u64),
}

impl Case {
    pub fn open(path: &Path) -> Result<Case> {
        let weights = Weights::open(path)?;
        let wrong = |expected: &str, got: String| Error::file("parity", path, expected, got);
        if weights.format() != Format::Safetensors {
            return Err(wrong("a safetensors file", weights.format().name().into()));
        }
        let known = [Dtype::F32, Dtype::F64, Dtype::I64, Dtype::U8];
        if let Some(other) = weights.tensors().iter().find(|t| !known.contains(&t.dtype)) {
            return Err(wrong("f32, f64, i64 and u8 tensors", format!("{} in {}", other.dtype, other.name)));
        }
        let kind = weights.metadata().get("kind").map(|k| k.trim_matches('"').to_string());
        let kind =
            kind.ok_or_else(|| wrong("a recorded case", "a file without the metadata `kind`".into()))?;
        let mut names: Vec<String> = weights.tensors().iter().map(|t| t.name.clone()).collect();
        names.sort();
        Ok(Case {
            path: path.to_path_buf(),
            kind,
            weights: Arc::new(weights),
            names: names.into(),
            off: None,
        })
    }

    /// This case, every operand of a matmul off by as much as 16 bits of this precision make of one (see
    /// [`tolerance`]); another draw for every number.
    pub fn off(&self, draw: u64, precision: Precision) -> Case {
        Case { off: Some(Off::Rounded(draw, precision)), ..self.clone() }
    }

    /// This case with every weight moved by a hundredth of itself; another way for every number.
    pub fn moved(&self, draw: u64) -> Case {
        Case { off: Some(Off::Moved(draw)), ..self.clone() }
    }

    pub fn as_recorded(&self) -> Case {
        Case { off: None, ..self.clone() }
    }

    fn wrong(&self, expected: impl std::fmt::Display, got: impl std::fmt::Display) -> Error {
        Error::file("parity", &self.path, expected.to_string(), got.to_string())
    }

    /// A JSON value of the metadata.
    pub fn meta<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        let wrong = |got: String| self.wrong(format!("metadata `{key}`"), got);
        let text = self.weights.metadata().get(key).ok_or_else(|| wrong("none".into()))?;
        serde_json::from_str(text).map_err(|e| wrong(e.to_string()))
    }

    /// A JSON value of the metadata, or a default where the file has none.
    pub fn meta_or<T: DeserializeOwned>(&self, key: &str, default: T) -> Result<T> {
        if self.has_meta(key) { self.meta(key) } else { Ok(default) }
    }

    pub fn has_meta(&self, key: &str) -> bool {
        self.weights.metadata().contains_key(key)
    }

    pub fn config(&self) -> Result<Config> {
        let config: Config = self.meta("config")?;
        config.check()?;
        Ok(config)
    }

    pub fn has(&self, name: &str) -> bool {
        self.weights.get(name).is_some()
    }

    pub fn names(&self, prefix: &'static str) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str).filter(move |n| n.starts_with(prefix))
    }

    /// Pictures of a batch.
    pub fn samples(&self) -> Result<usize> {
        let name = self.names("inputs.").find(|n| n.ends_with("image"));
        Ok(name.map(|n| self.shape(n)).transpose()?.and_then(|s| s.first()).copied().unwrap_or(1))
    }

    fn bytes_of(&self, name: &str) -> Result<(Dtype, Vec<u8>)> {
        let info = self.weights.get(name).ok_or_else(|| self.wrong(format!("a tensor {name}"), "none"))?;
        Ok((info.dtype, self.weights.bytes(name)?))
    }

    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        let info = self.weights.get(name).ok_or_else(|| self.wrong(format!("a tensor {name}"), "none"))?;
        Ok(&info.shape)
    }

    pub fn f64s(&self, name: &str) -> Result<Vec<f64>> {
        let (dtype, bytes) = self.bytes_of(name)?;
        Ok(match dtype {
            Dtype::F64 => bytemuck::pod_collect_to_vec(&bytes),
            Dtype::I64 => bytemuck::pod_collect_to_vec(&bytes).into_iter().map(|x: i64| x as f64).collect(),
            Dtype::U8 => bytes.into_iter().map(f64::from).collect(),
            _ => bytemuck::pod_collect_to_vec(&bytes).into_iter().map(|x: f32| f64::from(x)).collect(),
        })
    }

    pub fn tensor(&self, name: &str, dtype: DType) -> Result<Tensor> {
        Tensor::of(dtype, &self.f64s(name)?, self.shape(name)?)
    }

    /// The recorded weight of a parameter.
    pub fn weight(&self, spec: &Spec, dtype: DType) -> Result<Tensor> {
        let name = format!("weights.{}", spec.name);
        let vit = spec.name.starts_with("visual_encoder.");
        let (draw, deviation) = match self.off {
            Some(Off::Rounded(draw, precision)) if spec.dense => {
                let unit = unit(if vit { precision.vit } else { precision.rest });
                (draw, unit * (4f64 / 3.0).sqrt())
            }
            Some(Off::Moved(draw)) => (draw, 0.01),
            _ => return self.tensor(&name, dtype),
        };
        let hash = blake3::hash(name.as_bytes());
        let seed = hash.as_bytes().iter().take(8).fold(0u64, |s, b| s << 8 | u64::from(*b));
        let stream = Stream { seed, step: draw as u32, site: 0 };
        let mut values = self.f64s(&name)?;
        for (i, v) in values.iter_mut().enumerate() {
            *v *= 1.0 + deviation * stream.normal(i as u64);
        }
        Tensor::of(dtype, &values, self.shape(&name)?)
    }

    pub fn i64s(&self, name: &str) -> Result<Vec<i64>> {
        match self.bytes_of(name)? {
            (Dtype::I64, bytes) => Ok(bytemuck::pod_collect_to_vec(&bytes)),
            (other, _) => Err(self.wrong(format!("i64 in {name}"), other)),
        }
    }

    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        match self.bytes_of(name)? {
            (Dtype::U8, bytes) => Ok(bytes),
            (other, _) => Err(self.wrong(format!("u8 in {name}"), other)),
        }
    }

    pub fn ids(&self, name: &str) -> Result<Vec<u32>> {
        let id = |x: i64| u32::try_from(x).map_err(|_| self.wrong(format!("ids in {name}"), x));
        self.i64s(name)?.into_iter().map(id).collect()
    }

    /// Rows of ids without their padding: as many as the mask has ones.
    pub fn texts(&self, ids: &str, mask: &str) -> Result<Vec<Vec<u32>>> {
        let width = self.shape(ids)?.last().copied().unwrap_or(0).max(1);
        let (all, mask) = (self.ids(ids)?, self.i64s(mask)?);
        if all.len() != mask.len() {
            return Err(self.wrong("a mask as large as the ids", mask.len()));
        }
        let text = |(ids, mask): (&[u32], &[i64])| ids[..mask.iter().filter(|m| **m != 0).count()].to_vec();
        Ok(all.chunks(width).zip(mask.chunks(width)).map(text).collect())
    }
}
