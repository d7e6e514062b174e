//! Precision: how a GPU stores each part of a model. The CPU computes in f32 (or f64).

use super::Spec;
use crate::ops::Gelu;
use crate::tensor::{Device, Storage};
use crate::{Error, Result};

/// The parts of a model that are stored each in its own way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// The image encoder.
    Vit,
    /// Everything behind it.
    #[default]
    Rest,
}

/// How a GPU stores what dense layers work on: weights and activations of the image encoder, and of everything behind it;
/// and which GELU the image encoder has.
/// The image encoder's residual stream, norms, statistics, losses, master weights and moments are in f32 always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Precision {
    /// Of the image encoder.
    pub vit: Storage,
    /// Of everything behind it.
    pub rest: Storage,
    /// Of a frozen image encoder.
    pub vit_gelu: Gelu,
}

impl Precision {
    /// The oracle.
    pub const F32: Precision = Precision::of(Storage::F32, Storage::F32);
    /// As LAVIS trains; needs loss scaling.
    pub const F16: Precision = Precision::of(Storage::F16, Storage::F16);
    /// EVA's weights are published in f16, which bf16 would round.
    pub const BF16: Precision = Precision::of(Storage::F16, Storage::BF16);
    /// The image encoder, too.
    pub const BF16_VIT: Precision = Precision::of(Storage::BF16, Storage::BF16);

    const fn of(vit: Storage, rest: Storage) -> Precision {
        Precision { vit, rest, vit_gelu: Gelu::Exact }
    }

    /// By its name in settings.
    pub fn named(name: &str) -> Result<Precision> {
        match name {
            "f32" => Ok(Precision::F32),
            "f16" => Ok(Precision::F16),
            "bf16" => Ok(Precision::BF16),
            "bf16-vit" => Ok(Precision::BF16_VIT),
            _ => Err(Error::argument("precision", "name", "f32, f16, bf16 or bf16-vit", name)),
        }
    }

    /// What a command is told: a name, or nothing - then f32 on the CPU and bf16 on a GPU.
    pub fn on(device: &Device, name: Option<&str>) -> Result<Precision> {
        match (device.keeps_storages(), name) {
            (false, None | Some("f32")) => Ok(Precision::F32),
            (false, Some(other)) => Err(Error::argument("precision", "dtype", "f32 on the CPU", other)
                .fix("16 bits run on a GPU: --device cuda")),
            (true, name) => Precision::named(name.unwrap_or("bf16")),
        }
    }

    /// With this GELU on a device.
    pub fn with_gelu(self, device: &Device, vit_gelu: Gelu) -> Result<Precision> {
        match (device.keeps_storages(), vit_gelu) {
            (false, Gelu::Tanh) => Err(Error::argument("precision", "vit_gelu", "exact on the CPU", "tanh")
                .fix("it is a matmul's end on a GPU: --device cuda; leave --vit-gelu out")),
            _ => Ok(Precision { vit_gelu, ..self }),
        }
    }

    /// Refuses GELU in a form that has no gradient where the image encoder is trained.
    pub(super) fn check(self, specs: &[Spec]) -> Result<()> {
        let trained = specs.iter().any(|s| s.trained && s.part == Part::Vit);
        if self.vit_gelu == Gelu::Tanh && trained {
            let want = "exact where the image encoder is trained";
            return Err(Error::argument("precision", "vit_gelu", want, "tanh")
                .fix("freeze the image encoder, or leave --vit-gelu out"));
        }
        Ok(())
    }

    /// Of the storages; their GELU has a name of its own.
    pub fn name(self) -> &'static str {
        if (self.vit, self.rest) == (Storage::BF16, Storage::BF16) { "bf16-vit" } else { self.rest.name() }
    }

    /// Of a part's activations and frozen weights.
    pub(super) fn storage(self, part: Part) -> Storage {
        match part {
            Part::Vit => self.vit,
            Part::Rest => self.rest,
        }
    }

    /// How a GPU stores a parameter, and the copy that matmuls use if that is another.
    pub(super) fn stores(self, spec: &Spec) -> (Storage, Option<Storage>) {
        let matmuls = if spec.dense { self.storage(spec.part) } else { Storage::F32 };
        if spec.trained {
            (Storage::F32, Some(matmuls).filter(|s| *s != Storage::F32))
        } else {
            (matmuls, None)
        }
    }
}

/// Where to compute and how, as a command line or a configuration names them.
pub fn place(
    device: &str,
    dtype: Option<&str>,
    vit_gelu: Gelu,
    say: impl FnOnce(String),
) -> Result<(Device, Precision)> {
    let device = Device::announced(device, say)?;
    let precision = Precision::on(&device, dtype)?.with_gelu(&device, vit_gelu)?;
    Ok((device, precision))
}
